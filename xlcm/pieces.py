"""A batch cut into pieces of captions of like length, and put together again.

Rows are cut after the batch was drawn, so that negatives stay what chance made of them. Short
captions no longer carry the padding of long ones; half of what a text tower computes on captions
in random order is padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xlcm.types import Batch


@dataclass(frozen=True, slots=True)
class Pieces:
    """The rows of one batch in several smaller ones, the longest captions first.

    Args:
        batches: each padded to its own longest captions.
        rows: `(n,)` int64 on the CPU: which rows of the whole batch each piece has.
        counts: of all captions: real tokens, tokens and padding in the pieces, tokens and padding
            in the batch as it was.
    """

    batches: tuple[Batch, ...]
    rows: tuple[Tensor, ...]
    counts: tuple[int, int, int]

    def whole(self, parts: Sequence[Tensor]) -> Tensor:
        """Return what was computed of each piece, `(n, ...)`, in the order of the batch."""
        place = torch.cat(self.rows).argsort()
        return torch.cat(list(parts))[place.to(parts[0].device)]


def cut(batch: Batch, size: int) -> Pieces:
    """Sort the rows by their number of tokens, over all captions, and cut them.

    Args:
        batch: any.
        size: rows a piece; the last one, of the shortest captions, may have fewer.

    Raises:
        ValueError: for a size below 1.
    """
    if size < 1:
        raise ValueError(f"a piece has at least one row, not {size}")
    lengths = torch.zeros(len(batch.ids), dtype=torch.int64)
    for text in batch.text.values():
        lengths += text.mask.sum(dim=1).cpu()
    rows = lengths.argsort(descending=True, stable=True).split(size)
    batches = tuple(batch.select(some) for some in rows)
    positions = sum(_positions(piece) for piece in batches)
    return Pieces(batches, rows, (int(lengths.sum()), positions, _positions(batch)))


def padding(counts: Sequence[tuple[int, int, int]]) -> dict[str, float]:
    """Return the shares of padding in all that text towers were given, as `Pieces.counts` has it.

    Returns:
        `padding` in pieces and `padding_whole` without; empty if there were no captions.
    """
    tokens, positions, whole = (sum(column) for column in zip(*counts)) if counts else (0, 0, 0)
    if not positions:
        return {}
    return {"padding": 1 - tokens / positions, "padding_whole": 1 - tokens / whole}


def _positions(batch: Batch) -> int:
    return sum(text.mask.numel() for text in batch.text.values())
