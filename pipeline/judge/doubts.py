"""What speaks against taking figures at their word, so that a page warns and names no winner where there is none."""

from collections.abc import Mapping
from typing import Any

from pipeline.config.errors import ConfigError

__all__ = ["LEAST_REFERENCE", "clear_best", "doubts", "label_share", "require_neighbours"]

LEAST_REFERENCE = 200
"""Held-out images with fewer of which a Fréchet distance mostly tells which images they happened to be."""

_LEAST_SKILL = 0.25  # of what lies between guessing and never erring


def label_share(label_counts: Mapping[str, int]) -> float | None:
    """Share of the most frequent label: how often somebody is right who always says it; None without labels.

    Example:
        >>> label_share({"cat": 30, "dog": 10}), label_share({})
        (0.75, None)
    """
    total = sum(label_counts.values())
    return max(label_counts.values()) / total if total else None


def doubts(metrics: Mapping[str, Any], share: float | None) -> list[str]:
    """Reasons why no figure of an evaluation or a comparison decides anything; empty where there is none.

    Args:
        metrics: with `extractor` (`name`, `accuracy`), `num_reference` and `split`; what is missing is not judged.
        share: see `label_share`.

    Example:
        >>> few = {"extractor": {"name": "classifier", "accuracy": 0.11}, "num_reference": 12, "split": "test"}
        >>> for doubt in doubts(few, 0.1):
        ...     print(doubt.partition(":")[0])
        12 test images are too few to judge by, at least 200 are needed
        the classifier is right in 11% of the test images, where always giving the same label is right in 10%
        >>> doubts(few | {"num_reference": 359, "extractor": {"name": "classifier", "accuracy": 0.99}}, 0.1)
        []
    """
    found = []
    references, accuracy = metrics.get("num_reference"), metrics["extractor"].get("accuracy")
    if references is not None and references < LEAST_REFERENCE:
        found.append(
            f"{references} {metrics['split']} images are too few to judge by, at least {LEAST_REFERENCE} are needed: "
            "another dozen would give other figures"
        )
    if accuracy is not None and share is not None and accuracy < share + _LEAST_SKILL * (1 - share):
        found.append(
            f"the {metrics['extractor']['name']} is right in {accuracy:.0%} of the test images, where always giving "
            f"the same label is right in {share:.0%}: its features, which are compared, tell little"
        )
    return found


def require_neighbours(neighbours: int, counts: Mapping[str, int], judged: Mapping[str, tuple[str, int]]) -> None:
    """Refuse to look for more neighbours than images have.

    Args:
        neighbours: `evaluate.neighbours`.
        counts: split -> images.
        judged: split -> (key of how many are generated, that number).

    Raises:
        ConfigError: naming key, value and what is allowed.

    Example:
        >>> require_neighbours(5, {"test": 5}, {"test": ("evaluate.num_images", 2000)})
        Traceback (most recent call last):
        pipeline.config.errors.ConfigError: evaluate.neighbours: 5 must be below 5, the number of test images
    """
    for split, (key, generated) in judged.items():
        there = counts.get(split, 0)
        if neighbours >= min(there, generated):
            of = f"the number of {split} images" if there <= generated else key
            raise ConfigError(f"evaluate.neighbours: {neighbours} must be below {min(there, generated)}, {of}")


def clear_best(figures: Mapping[str, tuple[float, float]]) -> tuple[str | None, str]:
    """Which of some means is the lowest, if by more than the spread.

    Args:
        figures: name -> (mean, standard deviation); a standard deviation of zero is that of a single value, unknown.

    Returns:
        (its name, or None; why there is none).

    Example:
        >>> clear_best({"net": (9.1, 0.1), "mixture": (9.9, 0.1), "normal": (17.0, 0.4)})
        ('net', '')
        >>> clear_best({"net": (9.1, 0.1), "mixture": (9.2, 0.1)})
        (None, 'net and mixture differ by 0.1 with a spread of 0.14')
    """
    if len(figures) < 2:
        return None, ""
    first, second = sorted(figures, key=lambda name: figures[name][0])[:2]
    gap = figures[second][0] - figures[first][0]
    spread = (figures[first][1] ** 2 + figures[second][1] ** 2) ** 0.5
    if spread == 0:
        return None, f"{first} and {second} differ by {gap:.2g}, and one draw tells no spread"
    if gap <= spread:
        return None, f"{first} and {second} differ by {gap:.2g} with a spread of {spread:.2g}"
    return first, ""
