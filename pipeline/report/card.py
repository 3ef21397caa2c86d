"""The card of a run's model, with the figures of its evaluation: what to publish beside the weights."""

from collections.abc import Mapping
from typing import Any

from ldcvae.config import LDCVAEConfig
from ldcvae.model_card import card_body

__all__ = ["model_card"]


def model_card(
    config: LDCVAEConfig, data: Mapping[str, Any], metrics: Mapping[str, Any], names: Mapping[str, str]
) -> str:
    """Markdown for a model's `README.md`.

    Args:
        config: of the model.
        data: `info` of the data's manifest.
        metrics: of the evaluation.
        names: generator -> what people call it.

    Example:
        >>> info = {"source": "digits", "counts": {"train": 9, "test": 2}, "classes": ["0", "1"]}
        >>> found = {"extractor": {"figure": "FD-random"}, "num_images": 50, "draws": 1, "split": "test",
        ...          "num_reference": 2, "generators": {"sampler": {"fd": 1.0}}}
        >>> text = model_card(LDCVAEConfig((1, 8, 8)), info, found, {"sampler": "Sampler net"})
        >>> "- Data: digits, 9 training images of 2 classes." in text, "| Sampler net | 1 |" in text
        (True, True)
    """
    classes = len(data["classes"])
    source = f"{data['source']}, {data['counts']['train']:,} training images" + f" of {classes} classes" * bool(
        classes
    )
    against = f"{metrics['num_reference']:,} of the" if "num_reference" in metrics else "those of the"
    judged = (
        f"{metrics['extractor']['figure']} of {metrics['num_images']:,} images against {against} {metrics['split']} "
        f"split, mean of {metrics['draws']} draws; another classifier's figures compare with none of these."
    )
    rows = {
        names[name]: row for name, row in metrics["generators"].items() if name in names and row.get("fd") is not None
    }
    return card_body(config, source, rows, judged)
