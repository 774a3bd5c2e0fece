"""Several corpora as one training split, each with a share of the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from PIL import Image
from pydantic import Field
from torch import Tensor

from xlcm.config import Part
from xlcm.data.dataset import Dataset
from xlcm.data.hf_stream import HfStream
from xlcm.data.lanes import Lanes
from xlcm.data.shards import Shards
from xlcm.data.subset import Subset
from xlcm.registry import datasets
from xlcm.types import Item


class Mix:
    """Corpora one behind the other; in training each gets its share of every epoch's rows.

    Args:
        parts: the corpora by name.
        temperature: a corpus's share is proportional to (its rows) ** (1 / temperature): 1 follows
            the sizes, larger values lift the small corpora. A small one then comes several times
            an epoch, a large one goes on in the next epoch where it stopped.

    Raises:
        ValueError: if there are no parts, one is itself a mix, or all are not of one split.
    """

    def __init__(
        self,
        *,
        parts: dict[str, Annotated[Dataset, Part(datasets)]],
        temperature: Annotated[float, Field(gt=0)] = 1.0,
    ) -> None:
        if not parts:
            raise ValueError("`parts` is empty: name at least one corpus")
        nested = [name for name, part in parts.items() if isinstance(part, Mix)]
        if nested:
            raise ValueError(f"parts.{nested[0]} is a mix of its own; name its corpora here")
        splits = {name: part.split for name, part in parts.items()}
        if len(set(splits.values())) > 1:
            raise ValueError(f"parts of different splits: {splits}")
        self.parts = dict(parts)
        self.temperature = temperature
        self.name = "+".join(parts)
        self.split = next(iter(splits.values()))
        self._count()

    def _count(self) -> None:
        self._first = np.cumsum([0, *(len(part) for part in self.parts.values())])

    def replace(self, name: str, part: Dataset) -> None:
        """Put another dataset in a part's place, such as the usable part of it."""
        self.parts[name] = part
        self._count()

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, index: int) -> Item:
        """Return the captions of an item, without its pixels."""
        part, number = self._locate(index)
        return part[number]

    def lost_captions(self, index: int) -> bool:
        """Return whether some of an item's captions are left out for their faults."""
        part, number = self._locate(index)
        return isinstance(part, Subset) and part.lost_captions(number)

    def load_image(self, index: int) -> Image.Image:
        """Return the picture as RGB."""
        part, number = self._locate(index)
        return part.load_image(number)

    def load_pixels(self, index: int) -> Image.Image | Tensor:
        """Return pixels, uint8 `(3, H, W)`, or the picture where its dataset knows no pixels."""
        part, number = self._locate(index)
        found: Image.Image | Tensor = getattr(part, "load_pixels", part.load_image)(number)
        return found

    def load_features(self, index: int) -> Tensor | Sequence[Tensor]:
        """Return precomputed features."""
        part, number = self._locate(index)
        return part.load_features(number)

    def _locate(self, index: int) -> tuple[Dataset, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of {len(self)} in {self.name}")
        index %= len(self)
        place = int(np.searchsorted(self._first, index, side="right")) - 1
        return list(self.parts.values())[place], index - int(self._first[place])


@dataclass(frozen=True)
class Layout:
    """Which corpus and shard each item is in.

    Args:
        names: of the corpora.
        corpus: `(items,)` int32, their numbers.
        shard: `(items,)` int32, counted in each corpus; -1: in none, read at random.
        open_shards: of each corpus: how many are read at a time.
        temperature: of the mix.
        lanes: of each corpus: None, or how its shards are read that can only be read from their
            beginning on; empty: there is none of these.
    """

    names: tuple[str, ...]
    corpus: np.ndarray
    shard: np.ndarray
    open_shards: tuple[int, ...]
    temperature: float = 1.0
    lanes: tuple[Lanes | None, ...] = ()

    def streamed(self, corpus: int) -> Lanes | None:
        """Return the lanes of a corpus of streamed shards; None for any other one."""
        return self.lanes[corpus] if self.lanes else None

    def shards(self, corpus: int) -> int:
        """Return how many shards a corpus has; 0: it is read at random."""
        return int(self.shard[self.corpus == corpus].max(initial=-1)) + 1


def layout(dataset: Dataset) -> Layout | None:
    """Return the layout of a dataset with shards or several corpora; None for any other one."""
    if isinstance(dataset, Subset):
        inner = layout(dataset.dataset)
        if inner is None:
            return None
        at = dataset.indices
        return replace(inner, corpus=inner.corpus[at], shard=inner.shard[at])
    if isinstance(dataset, Shards) or (isinstance(dataset, HfStream) and dataset.lanes is not None):
        corpus = np.zeros(len(dataset), dtype=np.int32)
        lanes = (dataset.lanes,) if isinstance(dataset, HfStream) else ()
        return Layout((dataset.name,), corpus, dataset.shard, (dataset.open_shards,), lanes=lanes)
    if not isinstance(dataset, Mix):
        return None
    inner_layouts = [layout(part) for part in dataset.parts.values()]
    sizes = [len(part) for part in dataset.parts.values()]
    return Layout(
        names=tuple(dataset.parts),
        corpus=np.repeat(np.arange(len(sizes), dtype=np.int32), sizes),
        shard=np.concatenate(
            [
                np.full(size, -1, dtype=np.int32) if one is None else one.shard
                for one, size in zip(inner_layouts, sizes)
            ]
        ),
        open_shards=tuple(1 if one is None else one.open_shards[0] for one in inner_layouts),
        temperature=dataset.temperature,
        lanes=tuple(None if one is None else one.streamed(0) for one in inner_layouts),
    )


def quotas(rows: Sequence[int], temperature: float) -> list[int]:
    """Return how many rows of an epoch each corpus gets; together as many as there are.

    Shares are proportional to `rows ** (1 / temperature)`, rounded so that the sum is kept.
    """
    sizes = np.array(rows, dtype=np.float64)
    weights = (sizes / sizes.max()) ** (1 / temperature)  # at most 1: low temperatures overflow
    exact = weights / weights.sum() * sum(rows)
    whole = np.floor(exact).astype(np.int64)
    left = int(sum(rows) - whole.sum())
    whole[np.argsort(whole - exact, kind="stable")[:left]] += 1
    return [int(count) for count in whole]
