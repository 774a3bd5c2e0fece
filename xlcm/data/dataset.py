"""What training and evaluation read: items by number, and the pixels or features of one."""

from __future__ import annotations

from typing import Protocol

from PIL import Image
from torch import Tensor

from xlcm.types import Item


class Dataset(Protocol):
    """One split of one source of items; cheap to copy into a worker.

    Attributes:
        name: for reports.
        split: `train`, `val`, `test`, ...
    """

    name: str
    split: str

    def __len__(self) -> int:
        """Return the number of items."""
        ...

    def __getitem__(self, index: int) -> Item:
        """Return the captions of an item, without its pixels."""
        ...

    def load_image(self, index: int) -> Image.Image:
        """Return the picture as RGB.

        Raises:
            DataError: naming the manifest's line and the file, if it can't be had.
        """
        ...

    def load_features(self, index: int) -> Tensor:
        """Return precomputed features `(D,)` or `(T, D)`, float32."""
        ...
