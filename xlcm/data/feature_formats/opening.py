"""One door to features of every format."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from xlcm.data.boxes import BoxSize, describe_boxes
from xlcm.data.feature_formats.arrays import (
    NpyFolderReader,
    NpyReader,
    NpzReader,
    SafetensorsReader,
)
from xlcm.data.feature_formats.base import FeatureReader, refuse_ids
from xlcm.data.feature_formats.bigfile import BigFileReader
from xlcm.data.feature_formats.hdf5 import HDF5Reader
from xlcm.data.feature_formats.lmdb import LMDBReader
from xlcm.data.features import INDEX, FeatureStore
from xlcm.data.manifest import DataError

HDF5 = (".h5", ".hdf5", ".hdf", ".he5")
PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt")


def open_features(
    path: str | Path, *, ids: str | Path | None = None, boxes: BoxSize = 0
) -> FeatureStore:
    """Open features of any known format; what comes back reads like a feature store.

    Args:
        path: the folder of a feature store, of a BigFile, of an LMDB or of `<id>.npy` files; or a
            .npy, .npz, HDF5, LMDB or .safetensors file.
        ids: a file that names the rows of a matrix, where the format needs one and it isn't found
            beside it.
        boxes: how many numbers about its box each region gets behind its features: 0, 4, 5 or 7.

    Raises:
        DataError: if it is none of these, is damaged, or its ids don't fit; if boxes are wanted and
            there are none.
        ImportError: naming the package that reads this format.
    """
    path = Path(path)
    names = None if ids is None else Path(ids)
    opened = _open(path, names)
    return BoxedFeatures(opened, boxes) if boxes else opened


def _open(path: Path, ids: Path | None) -> FeatureStore:
    if path.is_dir():
        refuse_ids(path, ids)
        return _open_folder(path)
    ending = path.suffix.lower()
    if ending in PICKLES:
        raise DataError(
            f"{path}: reading a pickle runs code that is in it, so xlcm doesn't; load it where you "
            "trust it, and save the arrays by numpy.savez or safetensors"
        )
    if path.is_file():
        if ending == ".npy":
            return NpyReader(path, ids)
        if ending == ".npz":
            return NpzReader(path, ids)
        if ending in HDF5:
            return HDF5Reader(path, ids)
        if ending == ".safetensors":
            return SafetensorsReader(path, ids)
        if ending in (".lmdb", ".mdb"):
            refuse_ids(path, ids)
            return LMDBReader(path)
        raise DataError(f"{path}: features can't be told by the ending {ending!r}; known are .npy, "
                        f".npz, .safetensors, .lmdb, {', '.join(HDF5)}, and folders")  # fmt: skip
    return FeatureStore(path)  # says that there is none


def _open_folder(path: Path) -> FeatureStore:
    if (path / INDEX).is_file():
        return FeatureStore(path)
    if (path / "feature.bin").is_file() or (path / "shape.txt").is_file():
        return BigFileReader(path)
    if (path / "data.mdb").is_file():
        return LMDBReader(path)
    if next(path.glob("*.npy"), None) is not None:
        return NpyFolderReader(path)
    return FeatureStore(path)  # says that there is none


class BoxedFeatures(FeatureReader):
    """Region features with numbers about their boxes behind them: `(T, dim + 4, 5 or 7)`.

    A first linear layer over both is the sum of one over each, which is how the models that were
    made for regions take boxes.

    Args:
        store: of kind `tokens`, with boxes.
        size: how many numbers.
    """

    def __init__(self, store: FeatureStore, size: BoxSize) -> None:
        if not store.has_boxes:
            raise DataError(f"{store.folder}: boxes={size} is wanted, but there are no boxes in it")
        self.store, self.size = store, size
        self.folder, self.index, self.encoder = store.folder, store.index, store.encoder
        self.kind, self.dim, self.views = store.kind, store.dim + size, store.views
        self.has_boxes = True

    def __len__(self) -> int:
        return len(self.store)

    def __contains__(self, key: object) -> bool:
        return key in self.store

    def keys(self) -> Iterator[str]:
        """Yield all keys."""
        return self.store.keys()

    def __getitem__(self, key: str) -> Tensor:
        """Return `(T, dim)`, float32, the numbers of the boxes included.

        Raises:
            DataError: as for the store; if features and boxes differ in number.
        """
        values, corners = self.store[key], self.boxes(key)
        if len(values) != len(corners):
            raise DataError(f"{self.folder}: {key!r} has {len(values)} regions and {len(corners)} "
                            "boxes", kind="feature_unreadable")  # fmt: skip
        return torch.cat([values, describe_boxes(corners, self.size)], dim=1)

    def boxes(self, key: str) -> Tensor:
        """Return the corners, `(T, 4)`."""
        return self.store.boxes(key)

    def verify(self) -> list[str]:
        """Return what is wrong with the files."""
        return self.store.verify()
