"""What kind of covariances the components of a Gaussian mixture have: chosen by dimension and number, nothing else.

So that two processes, today's and a resumed one, choose the same without having seen a latent.
"""

from typing import Any, Literal, NamedTuple

__all__ = [
    "KINDS",
    "Covariances",
    "Kind",
    "base_fields",
    "base_note",
    "choose_covariances",
    "draws_to_fit",
]

Kind = Literal["full", "low_rank", "diagonal"]
KINDS: tuple[Kind, ...] = ("full", "low_rank", "diagonal")

FULL_DIM = 512  # beyond, a component takes a second a step of EM, and low rank has more of them
FULL_NUMBERS = 2**23  # of all full covariances, K·d²; EM holds some copies in float64 (64 MiB each)
FACTOR_NUMBERS = 2**20  # of all factors, K·d·r; an EM step takes 4 n K d r operations
RANK = 32
_LEAST_RANK = 4
DRAWN_NUMBERS = 2**25  # n·d of the draws that a base of another kind is fitted to (128 MiB)


class Covariances(NamedTuple):
    """Kind of a mixture's covariances, and the rank r beside the diagonal (0 unless low_rank)."""

    kind: Kind
    rank: int


def choose_covariances(dim: int, components: int) -> Covariances:
    """The richest kind of covariances that stays cheap.

    - full, (K, d, d), up to d = 512 and K·d² = 2²³. Fitted to posteriors, whose own variances count, they need not
      have a row for every dimension: at d = 256, 200 images a component, they were nearer than low rank
      (docs/experiments.md);
    - low_rank, a diagonal plus rank r = min(32, d/4), or less, down to 4, where the factors would have more than
      K·d·r = 2²⁰ numbers: with ten components up to d = 26,214;
    - diagonal beyond.

    Args:
        dim: d.
        components: K >= 1.

    Example:
        >>> choose_covariances(64, 300), choose_covariances(1024, 10)
        (Covariances(kind='full', rank=0), Covariances(kind='low_rank', rank=32))
    """
    if dim <= FULL_DIM and components * dim * dim <= FULL_NUMBERS:
        return Covariances("full", 0)
    rank = min(RANK, max(1, dim // 4), FACTOR_NUMBERS // (components * dim))
    if rank >= min(_LEAST_RANK, max(1, dim // 4)):
        return Covariances("low_rank", rank)
    return Covariances("diagonal", 0)


def draws_to_fit(dim: int, components: int) -> int:
    """How many draws a sampler's base is fitted to: with too few a mixture fits those draws, not their law.

    Low-rank and diagonal covariances have few numbers a dimension: 500 draws a component, and n·d <= 2²⁵, which
    bounds the memory, though not below 20 draws a component. Full ones are fitted to the posteriors themselves.

    Example:
        >>> draws_to_fit(1024, 300), draws_to_fit(4096, 10)
        (32768, 8192)
    """
    return max(min(max(10_000, 500 * components), DRAWN_NUMBERS // dim), 20 * components)


def base_fields(dim: int, components: int, centres: int = 1) -> dict[str, Any]:
    """The fields of an `LDCVAEConfig` that say what the sampler's base of so many components (0: N(0, I)) is.

    Example:
        >>> base_fields(1024, 10)
        {'base_components': 10, 'base_kind': 'low_rank', 'base_rank': 32, 'base_centres': 1}
    """
    chosen = choose_covariances(dim, components) if components else Covariances("full", 0)
    return {
        "base_components": components,
        "base_kind": chosen.kind,
        "base_rank": chosen.rank,
        "base_centres": centres,
    }


def base_note(dim: int, components: int, kind: str, rank: int) -> str:
    """A sentence on a base whose covariances are not full, for people.

    Example:
        >>> print(base_note(1024, 9, "low_rank", 32))
        base of 9 components with low-rank covariances (rank 32), as d = 1,024 is too much for full ones (at most 512)
    """
    name = f"low-rank covariances (rank {rank})" if kind == "low_rank" else "diagonal covariances"
    if dim > FULL_DIM:
        reason = f"d = {dim:,} is too much for full ones (at most {FULL_DIM})"
    else:
        reason = f"so many full ones at d = {dim} would be {components * dim * dim:,} numbers"
    return f"base of {components:,} components with {name}, as {reason}"
