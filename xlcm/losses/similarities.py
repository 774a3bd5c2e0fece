"""Similarities of local rows to the columns of all processes, in both directions at once."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from xlcm.distributed import gather, local_rows, world
from xlcm.losses.base import full_precision

Reduction = Literal["mean", "sum"]


@full_precision
def both_ways(left: Tensor, right: Tensor, *, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return the similarities of each left row to all right ones, and of each right row back.

    On one process the second is the first one transposed: one product serves both directions.

    Args:
        left: `(b, D)`, L2-normalised; half precision is widened first.
        right: `(b, D)`, L2-normalised.
        scale: factor of the similarities, such as an inverse temperature.

    Returns:
        Two `(b, B)` for a global batch of B rows, in float32 or float64.
    """
    left = scale * left  # of (b, D) numbers and not of (b, B)
    if world() == 1:
        similarity = left @ right.T
        return similarity, similarity.T
    return left @ gather(right).T, right @ gather(left).T


def own_columns(similarity: Tensor) -> Tensor:
    """Return where in `(b, B)` each row meets its own column: 1 there and 0 elsewhere."""
    own = torch.zeros_like(similarity, memory_format=torch.contiguous_format)
    mine = local_rows(len(similarity), similarity.device)
    return own.scatter_(1, mine[:, None], 1.0)


def reduce(terms: list[Tensor], reduction: Reduction) -> Tensor:
    """Return the mean or the sum of the directions that count."""
    total = torch.stack(terms).sum()
    return total / len(terms) if reduction == "mean" else total


def check_rows(**embeddings: Tensor) -> None:
    """Raise ValueError unless all are `(b, dim)` with the same b, at least 1."""
    shapes = _shapes(embeddings)
    if any(rows.ndim != 2 for rows in embeddings.values()):
        raise ValueError(f"{shapes}: all must be (batch, dim)")
    sizes = {len(rows) for rows in embeddings.values()}
    if len(sizes) > 1:
        raise ValueError(f"{shapes}: row i of each must mean the same pair, so all need one batch")
    if sizes == {0}:
        raise ValueError("a batch without rows has no loss; drop it before the method sees it")


def check_pairs(**embeddings: Tensor) -> None:
    """Raise ValueError unless all are `(b, dim)` with the same b, at least 1, and the same dim."""
    check_rows(**embeddings)
    if len({rows.shape[1] for rows in embeddings.values()}) > 1:
        raise ValueError(f"{_shapes(embeddings)}: the widths must be equal to be compared")


def _shapes(embeddings: dict[str, Tensor]) -> str:
    return ", ".join(f"{name} {tuple(rows.shape)}" for name, rows in embeddings.items())
