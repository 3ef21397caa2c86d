"""Cuts the queries of a direction into blocks, so that its distance matrices take bounded memory for any n."""

import torch
from torch import Tensor

__all__ = ["BLOCK_BYTES", "own_positions", "row_blocks"]

BLOCK_BYTES = 64 * 2**20  # of the (block, columns) matrices of one direction that are alive at the same time


def row_blocks(count: int, columns: int, matrices: int, like: Tensor) -> list[slice]:
    """Slices of `count` queries whose (block, columns) matrices take at most `BLOCK_BYTES` together.

    Small sets are one block. A block has one query at least, however many columns there are.

    Args:
        count: how many queries.
        columns: entries of a matrix per query.
        matrices: how many such matrices are alive at the same time.
        like: of the matrices' element type.

    Example:
        >>> row_blocks(512, 512, 6, torch.zeros(()))
        [slice(0, 512, None)]
        >>> len(row_blocks(65536, 65536, 6, torch.zeros(())))
        1561
    """
    size = max(1, BLOCK_BYTES // max(1, columns * matrices * like.element_size()))
    return [slice(start, min(start + size, count)) for start in range(0, max(count, 1), size)]


def own_positions(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of each query's own particle in the (queries, n) matrix, from their numbers among the particles.

    Example:
        >>> own_positions(torch.tensor([4, 5]))
        (tensor([0, 1]), tensor([4, 5]))
    """
    return torch.arange(len(columns), device=columns.device), columns
