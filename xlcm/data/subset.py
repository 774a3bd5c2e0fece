"""The usable part of a dataset, as if the rest had never been there."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
from PIL import Image
from torch import Tensor

from xlcm.data.dataset import Dataset
from xlcm.types import Item


class Subset:
    """Some items of a dataset, numbered anew, without some of their captions.

    Args:
        dataset: the whole.
        indices: of the items that stay, in order.
        without: ids of captions that are left out.
    """

    def __init__(
        self, dataset: Dataset, indices: Sequence[int], without: Collection[str] = ()
    ) -> None:
        self.dataset = dataset
        self.name, self.split = dataset.name, dataset.split
        self.indices = np.asarray(indices, dtype=np.int64)
        self.without = frozenset(without)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Item:
        """Return the captions of an item, without its pixels."""
        item = self.dataset[int(self.indices[index])]
        if not self.without:
            return item
        return replace(item, captions=tuple(c for c in item.captions if c.id not in self.without))

    def load_image(self, index: int) -> Image.Image:
        """Return the picture as RGB."""
        return self.dataset.load_image(int(self.indices[index]))

    def load_features(self, index: int) -> Tensor | Sequence[Tensor]:
        """Return precomputed features."""
        return self.dataset.load_features(int(self.indices[index]))
