"""What a tower is shown of many items, batch by batch, read in other processes if wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from xlcm.data.collate import stack_visuals
from xlcm.data.dataset import Dataset, picture
from xlcm.data.manifest import DataError
from xlcm.types import Visual


class _Visuals(TorchDataset):
    """Picture or first view of the features by number; a fault travels as a value."""

    def __init__(self, dataset: Dataset, transform: Callable[[Any], Tensor] | None) -> None:
        self.dataset = dataset
        self.transform = transform

    def __getitem__(self, index: int) -> Tensor | DataError:
        try:
            if self.transform is not None:
                return self.transform(picture(self.dataset, index, self.transform))
            features = self.dataset.load_features(index)
            return features if isinstance(features, Tensor) else features[0]
        except DataError as error:
            return error


def visuals_of(
    dataset: Dataset,
    transform: Callable[[Any], Tensor] | None,
    numbers: range,
    *,
    batch_size: int,
    workers: int = 0,
) -> Iterator[Visual]:
    """Yield the pictures of items, or their features (of several views the first), in order.

    Args:
        dataset: which items.
        transform: makes pixels of a picture; None: features are read.
        numbers: of the items.
        batch_size: items at a time.
        workers: processes that read; 0 reads in this one.

    Raises:
        DataError: naming file and line of a picture or features that can't be had.
    """
    loader = DataLoader(
        _Visuals(dataset, transform),
        sampler=numbers,
        batch_size=batch_size,
        collate_fn=list,
        num_workers=workers,
    )
    for found in loader:
        faults = [one for one in found if isinstance(one, DataError)]
        if faults:
            raise faults[0]
        yield stack_visuals(found) if transform is None else Visual(torch.stack(found))
