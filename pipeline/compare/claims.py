"""What the comparison is made to find out: claims about LDC-VAE, each decided from the figures."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ldcvae.variants import AUTOENCODERS, GENERATORS

__all__ = ["goals", "winner"]

Row = Mapping[str, Any]


def _kind(row: Row) -> str:
    return GENERATORS[row["generator"]].kind


def _text(row: Row, figure: str) -> str:
    digits = ".2f" if figure == "fd" else ".3f"
    spread = f" ± {row['spread'][figure]:{digits}}" if len(row["values"][figure]) > 1 else ""
    return f"{row['figures'][figure]:{digits}}{spread}"


def _gap(better: Row, worse: Row, figure: str, sign: float) -> tuple[float, float]:
    """(by how much the first is better, the spread of that).

    On one autoencoder the seeds are compared one by one: what its own training does to all its generators is no
    spread between them.
    """
    gap = sign * (better["figures"][figure] - worse["figures"][figure])
    if _paired(better, worse):
        differences = [a - b for a, b in zip(better["values"][figure], worse["values"][figure], strict=True)]
        return gap, statistics.stdev(differences)
    return gap, (better["spread"][figure] ** 2 + worse["spread"][figure] ** 2) ** 0.5


def _paired(one: Row, other: Row) -> bool:
    return one["autoencoder"] == other["autoencoder"] and len(one["values"]["fd"]) == len(other["values"]["fd"]) > 1


def _best(rows: Sequence[Row], figure: str, sign: float) -> Row | None:
    return max(rows, key=lambda row: sign * row["figures"][figure], default=None)


def winner(rows: Sequence[Row], names: Mapping[str, str]) -> tuple[Row | None, str]:
    """The row with the lowest FD that is no bound, if by more than the spread over seeds; else why there is none.

    Args:
        rows: as in `compare/results.json`.
        names: autoencoder -> what to call it.
    """
    judged = [row for row in rows if not row["bound"] and row["figures"].get("fd") is not None]
    first = _best(judged, "fd", -1.0)
    second = _best([row for row in judged if row is not first], "fd", -1.0)
    if first is None or second is None:
        return None, ""
    gap, spread = _gap(first, second, "fd", -1.0)
    pair = " and ".join(f"{row['label']} on {names[row['autoencoder']]}" for row in (first, second))
    if len(first["values"]["fd"]) < 2:
        return None, f"{pair} differ by {gap:.2g}, and one seed tells no spread"
    return (first, "") if gap > spread else (None, f"{pair} differ by {gap:.2g} with a spread of {spread:.2g}")


def _better(
    claim: str, ours: Row | None, others: Sequence[Row], figure: str, sign: float, names: Mapping[str, str]
) -> list[dict[str, Any]]:
    """A claim that one row is better than all others by more than the spread; none if there is nothing to compare."""
    rival = _best(others, figure, sign)
    if ours is None or rival is None:
        return []
    gap, spread = _gap(ours, rival, figure, sign)
    found = (f"{_text(row, figure)} ({row['label']} on {names[row['autoencoder']]})" for row in (ours, rival))
    detail = " against ".join(found)
    if len(ours["values"][figure]) < 2:
        detail += "; one seed decides nothing"
    elif _paired(ours, rival):
        digits = ".2f" if figure == "fd" else ".3f"
        detail += f"; better by {gap:{digits}} ± {spread:{digits}} from seed to seed"
    return [{"claim": claim, "met": gap > spread and len(ours["values"][figure]) > 1, "detail": detail}]


def goals(rows: Sequence[Row], names: Mapping[str, str]) -> list[dict[str, Any]]:
    """The claims that these rows can decide.

    A difference counts when it is more than its standard deviation over seeds: of the seeds' own differences on one
    autoencoder, of both rows taken together on two; with one seed nothing counts. The sampler net is the direction
    with the lowest latent MMD² on each autoencoder: that is what it is trained for, and outliers do not fool it as
    they do FD.

    Args:
        rows: as in `compare/results.json`.
        names: autoencoder -> what to call it.

    Returns:
        `claim`, `met`, `detail` of each.

    Example:
        >>> def row(generator, fd):
        ...     return {"autoencoder": "ldc_svgd", "generator": generator, "label": generator, "bound": False,
        ...             "figures": {"fd": fd, "coverage": 0.5, "mmd2": 1e-4, "latents_per_s": 1.0},
        ...             "spread": {"fd": 0.1, "coverage": 0.0}, "values": {"fd": [fd] * 3, "coverage": [0.5] * 3}}
        >>> [goal["met"] for goal in goals([row("drift", 10.0), row("gmm", 12.0)], {"ldc_svgd": "LDC-VAE"})][:1]
        [True]
    """
    found: list[dict[str, Any]] = []
    free = [row for row in rows if not row["bound"]]
    nets: list[Row] = []
    gibbs = [name for name, record in reversed(list(AUTOENCODERS.items())) if record.gibbs]
    for name in gibbs:
        own = [row for row in free if row["autoencoder"] == name]
        ours = _best([row for row in own if _kind(row) == "net"], "mmd2", -1.0)
        others = [row for row in own if _kind(row) != "net"]
        where = f"with the {AUTOENCODERS[name].encoder.upper()} encoder"
        found += _better(
            f"{where}, the sampler net has a lower FD than every other generator", ours, others, "fd", -1.0, names
        )
        found += _better(
            f"{where}, the sampler net covers more than every other generator", ours, others, "coverage", 1.0, names
        )
        found += _speed(where, ours, [row for row in own if _kind(row) == "chain"])
        nets += [ours] if ours is not None else []
    pairs = [row for row in free if row["autoencoder"] not in gibbs and _kind(row) != "net"]
    found += _better(
        "LDC-VAE has a lower FD than every pair of another autoencoder and generator",
        _best(nets, "fd", -1.0),
        pairs,
        "fd",
        -1.0,
        names,
    )
    return found


def _speed(where: str, ours: Row | None, chains: Sequence[Row]) -> list[dict[str, Any]]:
    """At least a hundred times the latents per second of a chain whose latents are no better in MMD²."""
    fastest = max(chains, key=lambda row: row["figures"]["latents_per_s"], default=None)
    if ours is None or fastest is None:
        return []
    ratio = ours["figures"]["latents_per_s"] / fastest["figures"]["latents_per_s"]
    equal = ours["figures"]["mmd2"] <= min(row["figures"]["mmd2"] for row in chains)
    mmd2 = ", ".join(f"{row['label']} {row['figures']['mmd2'] * 1e3:.2f}e-3" for row in (ours, *chains))
    claim = f"{where}, the sampler net draws a hundred times faster than Langevin and HMC, at no larger latent MMD²"
    return [{"claim": claim, "met": ratio >= 100 and equal, "detail": f"{int(ratio):,} times; MMD² {mmd2}"}]
