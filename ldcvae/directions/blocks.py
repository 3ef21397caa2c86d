"""Cuts the queries of a direction into blocks, so that its distance matrices take bounded memory for any n."""

import torch
from torch import Tensor

__all__ = ["BLOCK_BYTES", "own_positions", "row_blocks"]

# Of the (block, columns) matrices of one direction that are alive at the same time.
BLOCK_BYTES = 64 * 2**20
# A GPU starts each kernel by itself: with the blocks of a CPU, 65,536 particles' `drift` was half a million of them,
# and took 24 times its bare products (H200, docs/performance.md).
GPU_BLOCK_BYTES = 2**30


def row_blocks(count: int, columns: int, matrices: int, like: Tensor) -> list[slice]:
    """Slices of `count` queries whose (block, columns) matrices take at most `BLOCK_BYTES` together, on a GPU more.

    Small sets are one block. A block has one query at least, however many columns there are.

    Args:
        count: how many queries.
        columns: entries of a matrix per query.
        matrices: how many such matrices are alive at the same time.
        like: of the matrices' element type and device.

    Example:
        >>> row_blocks(512, 512, 6, torch.zeros(()))
        [slice(0, 512, None)]
        >>> len(row_blocks(65536, 65536, 6, torch.zeros(())))
        1561
    """
    room = GPU_BLOCK_BYTES if like.is_cuda else BLOCK_BYTES
    size = max(1, room // max(1, columns * matrices * like.element_size()))
    return [slice(start, min(start + size, count)) for start in range(0, max(count, 1), size)]


def own_positions(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of each query's own particle in the (queries, n) matrix, from their numbers among the particles.

    Example:
        >>> own_positions(torch.tensor([4, 5]))
        (tensor([0, 1]), tensor([4, 5]))
    """
    return torch.arange(len(columns), device=columns.device), columns
