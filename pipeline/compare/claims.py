"""What the comparison is made to find out: claims about LDC-VAE, each decided from the figures.

A difference is *better* or *worse* where a 95 % interval of Student's t about its mean leaves zero out, else *not
distinguishable*. Generators on one autoencoder are compared seed by seed: what its training does to all of them is no
difference between them. Which direction "the sampler net" follows is chosen on validation images.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from scipy import stats

from ldcvae.variants import AUTOENCODERS, GENERATORS
from pipeline.compare.cells import DECODER

__all__ = ["against", "chosen_net", "goals", "interval", "winner"]

Row = Mapping[str, Any]

_CONFIDENCE = 0.95
_SIGNS = {"fd": -1.0, "coverage": 1.0}  # better is lower or higher
_DIGITS = {"fd": ".2f", "coverage": ".3f"}


def _quantile(freedom: float) -> float:
    return float(stats.t.ppf(0.5 + _CONFIDENCE / 2, freedom))


def interval(*groups: Sequence[float]) -> tuple[float, float, float]:
    """Mean of paired differences and the ends of its 95 % interval; without end where no group has two.

    With several groups, each of one autoencoder, the mean of their means: these autoencoders are what is asked about,
    and chance is what differs between trainings of one. So the variance is that within groups, pooled.

    Example:
        >>> [round(number, 2) for number in interval([1.0, 2.0, 3.0])]
        [2.0, -0.48, 4.48]
        >>> [round(number, 2) for number in interval([1.0, 2.0, 3.0], [11.0, 12.0, 13.0])]
        [7.0, 5.87, 8.13]
    """
    mean = statistics.fmean(map(statistics.fmean, groups))
    freedom = sum(len(group) - 1 for group in groups)
    if freedom < 1:
        return mean, -float("inf"), float("inf")
    variance = sum((len(group) - 1) * statistics.variance(group) for group in groups if len(group) > 1) / freedom
    half = _quantile(freedom) * (variance * sum(1 / len(group) for group in groups)) ** 0.5 / len(groups)
    return mean, mean - half, mean + half


def _unpaired(ours: Sequence[float], others: Sequence[float]) -> tuple[float, float, float]:
    """The same of a difference of means (Welch): of two autoencoders, no training is the other's pair."""
    mean, counts = statistics.fmean(ours) - statistics.fmean(others), (len(ours), len(others))
    if min(counts) < 2:
        return mean, -float("inf"), float("inf")
    parts = [statistics.variance(values) / len(values) for values in (ours, others)]
    if not sum(parts):
        return mean, mean, mean
    freedom = sum(parts) ** 2 / sum(part**2 / (count - 1) for part, count in zip(parts, counts, strict=True))
    half = _quantile(freedom) * sum(parts) ** 0.5
    return mean, mean - half, mean + half


def _verdict(low: float, high: float) -> str:
    """Of an interval of by how much it is better."""
    return "better" if low > 0 else "worse" if high < 0 else "not distinguishable"


def _gap(ours: Row, other: Row, figure: str) -> tuple[float, float, float]:
    """By how much the first is better: mean and interval."""
    one, two = ([_SIGNS[figure] * value for value in row["values"][figure]] for row in (ours, other))
    if ours["autoencoder"] == other["autoencoder"] and len(one) == len(two):
        return interval([a - b for a, b in zip(one, two, strict=True)])
    return _unpaired(one, two)


def _kind(row: Row) -> str:
    return GENERATORS[row["generator"]].kind


def _text(row: Row, figure: str) -> str:
    spread = f" ± {row['spread'][figure]:{_DIGITS[figure]}}" if len(row["values"][figure]) > 1 else ""
    return f"{row['figures'][figure]:{_DIGITS[figure]}}{spread}"


def _closest(ours: Row, others: Sequence[Row], figure: str) -> Row:
    """The row that ours is least surely better than, before all one that it is surely worse than.

    Where it is better than that one, it is than all.
    """

    def by(row: Row) -> tuple[bool, float, float]:
        gap, low, high = _gap(ours, row, figure)
        return high >= 0, low, gap

    return min(others, key=by)


def chosen_net(rows: Sequence[Row]) -> Row | None:
    """The sampler net among these rows with the least FD to validation images, over the seeds."""

    def by(row: Row) -> float:
        selection = row.get("selection")
        return float("inf") if selection is None else selection

    return min((row for row in rows if _kind(row) == "net"), key=by, default=None)


def winner(rows: Sequence[Row], names: Mapping[str, str]) -> tuple[Row | None, str]:
    """The row with the lowest FD that is no bound, if it is better than every other; else why there is none.

    Args:
        rows: as in `compare/results.json`.
        names: autoencoder -> what to call it.
    """
    judged = [row for row in rows if not row["bound"] and row["figures"].get("fd") is not None]
    first = min(judged, key=lambda row: row["figures"]["fd"], default=None)
    others = [row for row in judged if row is not first]
    if first is None or not others:
        return None, ""
    second = _closest(first, others, "fd")
    gap, low, high = _gap(first, second, "fd")
    pair = " and ".join(f"{row['label']} on {names[row['autoencoder']]}" for row in (first, second))
    if len(first["values"]["fd"]) < 2:
        return None, f"{pair} differ by {gap:.2g}, and one seed tells no spread"
    told = f"{pair} differ by {gap:.2g}, 95 % interval {low:.2g} to {high:.2g}"
    return (first, "") if low > 0 else (None, told)


def _better(
    claim: str, ours: Row | None, others: Sequence[Row], figure: str, names: Mapping[str, str]
) -> list[dict[str, Any]]:
    """A claim that one row is better than each of the others; none if there is nothing to compare."""
    if ours is None or not others:
        return []
    rival = _closest(ours, others, figure)
    gap, low, high = _gap(ours, rival, figure)
    found = (f"{_text(row, figure)} ({row['label']} on {names[row['autoencoder']]})" for row in (ours, rival))
    detail, verdict = " against ".join(found), _verdict(low, high)
    if min(len(row["values"][figure]) for row in (ours, rival)) < 2:
        detail += "; one seed decides nothing"
    else:
        digits = _DIGITS[figure]
        detail += f"; better by {gap:{digits}}, 95 % interval {low:{digits}} to {high:{digits}}: {verdict}"
    return [{"claim": claim, "met": verdict == "better", "verdict": verdict, "detail": detail}]


def against(rows: Sequence[Row], figure: str = "fd") -> list[dict[str, Any]]:
    """The sampler net against every other generator, over the autoencoders that both were judged on.

    Autoencoders without phase `decoder` and with it are told apart.

    Args:
        rows: as in `compare/results.json`.
        figure: of which less is better; `fd_second`, say.

    Returns:
        `generator`, `label`, `decoder`, `bound`, `pairs` (autoencoder, seed), `ahead` of them, `mean` by which the
        net's figure is lower, `low` and `high` of its `interval` (None for one seed), and `verdict`; the largest mean
        first.

    Example:
        >>> def row(generator, *fd):
        ...     return {"autoencoder": "vae", "generator": generator, "label": generator, "values": {"fd": fd}}
        >>> found = against([row("drift", 1.0, 1.2, 1.1), row("gmm", 2.0, 2.1, 2.1)])
        >>> [(one["verdict"], one["ahead"]) for one in found]
        [('better', 3)]
    """
    found = []
    for decoder in (False, True):
        of: dict[str, list[Row]] = {}
        for row in rows:
            if row["autoencoder"].endswith(DECODER) == decoder:
                of.setdefault(row["autoencoder"], []).append(row)
        # By label too: a learnt prior is another generator than N(0, I).
        pairs: dict[tuple[str, str], list[list[float]]] = {}
        for group in of.values():
            if (net := chosen_net(group)) is None:
                continue
            for row in group:
                theirs, ours = (one["values"].get(figure, []) for one in (row, net))
                if _kind(row) != "net" and len(theirs) == len(ours) > 0:
                    both = zip(theirs, ours, strict=True)
                    key = row["generator"], row["label"]
                    pairs.setdefault(key, []).append([other - own for other, own in both])
        found += [_summary(*key, decoder, differences) for key, differences in pairs.items()]
    return sorted(found, key=lambda one: (one["decoder"], -one["mean"]))


def _summary(name: str, label: str, decoder: bool, differences: list[list[float]]) -> dict[str, Any]:
    every = [difference for of_one in differences for difference in of_one]
    mean, low, high = interval(*differences)
    ends = {"low": low, "high": high} if len(every) > len(differences) else {"low": None, "high": None}
    about = {"generator": name, "label": label, "decoder": decoder, "bound": GENERATORS[name].kind == "bound"}
    about |= {"pairs": len(every), "ahead": sum(difference > 0 for difference in every), "mean": mean}
    return about | ends | {"verdict": _verdict(low, high)}


def goals(rows: Sequence[Row], names: Mapping[str, str]) -> list[dict[str, Any]]:
    """The claims that these rows can decide.

    Args:
        rows: as in `compare/results.json`.
        names: autoencoder -> what to call it.

    Returns:
        `claim`, `met`, `detail` of each; `verdict` too where it is about a difference: met is "better".

    Example:
        >>> def row(generator, fd):
        ...     return {"autoencoder": "ldc_svgd", "generator": generator, "label": generator, "bound": False,
        ...             "figures": {"fd": fd, "coverage": 0.5, "mmd2": 1e-4, "latents_per_s": 1.0}, "selection": fd,
        ...             "spread": {"fd": 0.1, "coverage": 0.0}, "values": {"fd": [fd] * 3, "coverage": [0.5] * 3}}
        >>> [goal["verdict"] for goal in goals([row("drift", 10.0), row("gmm", 12.0)], {"ldc_svgd": "LDC-VAE"})]
        ['better', 'not distinguishable']
    """
    found: list[dict[str, Any]] = []
    free = [row for row in rows if not row["bound"]]
    nets: list[Row] = []
    gibbs = [name for name, record in reversed(list(AUTOENCODERS.items())) if record.gibbs]
    for name in gibbs:
        own = [row for row in free if row["autoencoder"] == name]
        ours, others = chosen_net(own), [row for row in own if _kind(row) != "net"]
        where = f"with the {AUTOENCODERS[name].encoder.upper()} encoder"
        found += _better(
            f"{where}, the sampler net has a lower FD than every other generator", ours, others, "fd", names
        )
        found += _better(
            f"{where}, the sampler net covers more than every other generator", ours, others, "coverage", names
        )
        found += _speed(where, ours, [row for row in own if _kind(row) == "chain"])
        nets += [ours] if ours is not None else []
    pairs = [row for row in free if row["autoencoder"] not in gibbs and _kind(row) != "net"]
    claim = "LDC-VAE has a lower FD than every pair of another autoencoder and generator"
    found += _better(claim, chosen_net(nets), pairs, "fd", names)
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
