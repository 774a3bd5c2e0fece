"""A batch cut into pieces of captions of like length, and put together again.

Rows are cut after the batch was drawn, so that negatives stay what chance made of them. Short
captions no longer carry the padding of long ones; half of what a text tower computes on captions
in random order is padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from xlcm.types import Batch


class Counts(NamedTuple):
    """What text towers are given of a batch.

    Attributes:
        tokens: real ones, on the device of the batch: nobody waits for the number before the step.
        positions: tokens and padding as they are given.
        whole: tokens and padding of a batch in pieces as it was; None: it is whole.
    """

    tokens: Tensor
    positions: int
    whole: int | None = None


@dataclass(frozen=True, slots=True)
class Pieces:
    """The rows of one batch in several smaller ones, the longest captions first.

    Args:
        batches: each padded to its own longest captions.
        rows: `(n,)` int64 on the CPU: which rows of the whole batch each piece has.
        counts: of all captions.
    """

    batches: tuple[Batch, ...]
    rows: tuple[Tensor, ...]
    counts: Counts

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
    return Pieces(batches, rows, Counts(lengths.sum(), positions, _positions(batch)))


def counts_of(seen: Batch | Pieces) -> Counts:
    """Return what text towers are given of a batch, in pieces or not."""
    if isinstance(seen, Pieces):
        return seen.counts
    tokens = [text.mask.sum() for text in seen.text.values()]
    return Counts(torch.stack(tokens).sum() if tokens else torch.tensor(0), _positions(seen))


def padding(counts: Sequence[Counts]) -> dict[str, float]:
    """Return the shares of padding in all that text towers were given.

    Returns:
        `padding` as it was given, and of batches in pieces `padding_whole`, what it would have
        been without; empty if there were no captions.
    """
    positions = sum(one.positions for one in counts)
    if not positions:
        return {}
    tokens = sum(int(one.tokens) for one in counts)
    found = {"padding": 1 - tokens / positions}
    whole = [one.whole for one in counts if one.whole is not None]
    return {**found, "padding_whole": 1 - tokens / sum(whole)} if whole else found


def _positions(batch: Batch) -> int:
    return sum(text.mask.numel() for text in batch.text.values())
