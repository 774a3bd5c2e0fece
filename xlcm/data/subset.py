"""The usable part of a dataset, as if the rest had never been there."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from msgspec.structs import replace
from PIL import Image
from torch import Tensor

from xlcm.data.dataset import Dataset
from xlcm.types import Item


class Subset:
    """Some items of a dataset, numbered anew, without some of their captions.

    Args:
        dataset: the whole.
        indices: of the items that stay, in order.
        without: which captions are left out: number of an item in the whole -> their places among
            its captions. Ids would not do: a repeated one names a good caption too.
    """

    def __init__(
        self,
        dataset: Dataset,
        indices: Sequence[int],
        without: Mapping[int, Collection[int]] | None = None,
    ) -> None:
        self.dataset = dataset
        self.name, self.split = dataset.name, dataset.split
        self.indices = np.asarray(indices, dtype=np.int64)
        self.without = dict(without or {})

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Item:
        """Return the captions of an item, without its pixels."""
        item = self.dataset[int(self.indices[index])]
        out = self.without.get(int(self.indices[index]))
        if not out:
            return item
        kept = tuple(c for place, c in enumerate(item.captions) if place not in out)
        return replace(item, captions=kept)

    def lost_captions(self, index: int) -> bool:
        """Return whether some of an item's captions are left out."""
        return int(self.indices[index]) in self.without

    def load_image(self, index: int) -> Image.Image:
        """Return the picture as RGB."""
        return self.dataset.load_image(int(self.indices[index]))

    def load_pixels(self, index: int) -> Image.Image | Tensor:
        """Return pixels, uint8 `(3, H, W)`, or the picture where its dataset knows no pixels."""
        load = getattr(self.dataset, "load_pixels", self.dataset.load_image)
        found: Image.Image | Tensor = load(int(self.indices[index]))
        return found

    def load_features(self, index: int) -> Tensor | Sequence[Tensor]:
        """Return precomputed features."""
        return self.dataset.load_features(int(self.indices[index]))

    def load_feature_rows(self, items: Sequence[Item]) -> Tensor | None:
        """Return pooled features of many items at once; None: take them one by one."""
        many = getattr(self.dataset, "load_feature_rows", None)
        return None if many is None else many(items)
