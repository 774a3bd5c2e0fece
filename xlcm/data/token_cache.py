"""Tokens of captions that were met before: each text is tokenised once in each process.

A batch is then put together by numpy alone, some ten times as fast as a tokenizer reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from xlcm.types import TextBatch

MOST = 200_000  # texts that a process keeps, some 100 MB; others are read each time they come


@runtime_checkable
class RowTokenizer(Protocol):
    """A tokenizer that gives the ids of single texts, which can be kept.

    Attributes:
        pad_id: what stands behind the shorter texts of a batch.
    """

    pad_id: int

    def __call__(self, texts: Sequence[str], langs: Sequence[str] = ()) -> TextBatch:
        """Return the texts as one batch."""
        ...

    def rows(self, texts: Sequence[str]) -> tuple[list[list[int]], list[bool]]:
        """Return the ids of each text as they stand in a batch, and whether it was cut."""
        ...


class TokenCache:
    """A tokenizer that remembers; it returns what the tokenizer itself would.

    Args:
        tokenizer: whose rows hang on the texts alone, not on their languages or neighbours.
        most: texts that are kept.
    """

    def __init__(self, tokenizer: RowTokenizer, most: int = MOST) -> None:
        self.tokenizer = tokenizer
        self.most = most
        self._rows: dict[str, np.ndarray] = {}
        self._cut: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rows": {}, "_cut": set()}

    def __call__(self, texts: Sequence[str], langs: Sequence[str] = ()) -> TextBatch:
        """Return ids `(b, L)`, mask `(b, L)`, the languages and the number of cut texts."""
        known, cut = self._rows, self._cut
        new = list(dict.fromkeys(text for text in texts if text not in known))
        if new:
            rows, lost = self.tokenizer.rows(new)
            read = {text: np.array(row, dtype=np.int32) for text, row in zip(new, rows)}
            short = {text for text, shortened in zip(new, lost) if shortened}
            if len(known) + len(new) <= self.most:
                known.update(read)
                cut.update(short)
            else:
                known = read | {text: known[text] for text in texts if text in known}
                cut = cut | short
        found = [known[text] for text in texts]
        counts = np.fromiter(map(len, found), dtype=np.int64, count=len(found))
        mask = np.arange(counts.max(initial=0)) < counts[:, None]
        ids = np.full(mask.shape, self.tokenizer.pad_id, dtype=np.int64)
        if found:
            ids[mask] = np.concatenate(found)
        shortened = sum(text in cut for text in texts) if cut else 0
        return TextBatch(torch.from_numpy(ids), torch.from_numpy(mask), tuple(langs), shortened)
