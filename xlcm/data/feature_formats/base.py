"""What all readers of foreign formats share: keys, errors, and the face of a feature store."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from xlcm.data.boxes import corners_from
from xlcm.data.features import FeatureStore, Kind
from xlcm.data.manifest import DataError
from xlcm.registry import nearest

ID_NAMES = ("ids", "keys", "names", "id", "image_id", "image_ids", "video_id", "video_ids",
            "image", "images", "video", "videos")  # fmt: skip
VALUE_NAMES = ("features", "values", "embeddings", "feats", "feature")
BOX_NAMES = ("boxes", "bbox", "bboxes")
SIZE_NAMES = ("wh", "sizes", "image_wh")
COUNT_NAMES = ("num_boxes", "lengths", "counts")


class FeatureReader(FeatureStore):
    """Features in a file or folder of another format; it can stand wherever a store does.

    A subclass gives the keys, opens its files in `_open` and reads one place in `_read`.

    Args:
        path: the file or folder.
        kind: `pooled` `(dim,)` or `tokens` `(T, dim)`.
        dim: size of a vector.
        places: where each key's features are, in words of the subclass.
        files: which files are read; their sizes and times tell whether something changed.
        boxes: whether there are boxes of regions.
    """

    def __init__(
        self,
        path: Path,
        *,
        kind: Kind,
        dim: int,
        places: Mapping[str, Any],
        files: Sequence[Path],
        boxes: bool = False,
    ) -> None:
        self.folder = path
        self.kind, self.dim, self.views = kind, dim, None
        self.encoder: dict[str, Any] = {}
        self.has_boxes = boxes
        self._pid = os.getpid()
        self._places = dict(places)
        shards = [{"file": str(file.absolute())} for file in files]
        self.index = {"count": len(self._places), "complete": True, "shards": shards}

    def _open(self) -> None:
        """Open the files; called again in every process that gets a copy."""

    def _leave(self) -> None:
        """Let go of open files that a fork shares with the process it comes from."""

    def _closed(self) -> tuple[str, ...]:
        """Return the names of what `_open` sets, which no copy takes along."""
        return ()

    def __getstate__(self) -> dict[str, Any]:
        left = self._closed()
        return {name: value for name, value in self.__dict__.items() if name not in left}

    def _read(self, place: Any) -> np.ndarray:
        """Return `(dim,)` or `(T, dim)`."""
        raise NotImplementedError

    def _read_boxes(self, place: Any) -> tuple[np.ndarray, tuple[float, float] | None]:
        """Return `(T, 4 or more)`, and width and height of the picture if they are known."""
        raise NotImplementedError

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def keys(self) -> Iterator[str]:
        """Yield all keys, in the order of the files."""
        return iter(self._places)

    def __getitem__(self, key: str) -> Tensor:
        """Return `(dim,)` or `(T, dim)`, float32.

        Raises:
            DataError: naming the key and the file, if it is not in it or can't be read.
        """
        place = self._where(key)
        try:
            found = np.asarray(self._read(place))
        except DataError:
            raise
        # h5py, lmdb and zipfile raise a dozen types on damaged files
        except Exception as error:
            self._unreadable(key, str(error) or type(error).__name__, error)
        return self._checked(key, found)

    def _checked(self, key: str, found: np.ndarray) -> Tensor:
        if found.dtype.kind not in "fiu":
            self._unreadable(key, f"values of type {found.dtype} are no numbers")
        value = plain(found, self.kind)
        if value.ndim != (1 if self.kind == "pooled" else 2) or value.shape[-1] != self.dim:
            wanted = f"({self.dim},)" if self.kind == "pooled" else f"(T, {self.dim})"
            self._unreadable(key, f"shape {found.shape}, where the first item has {wanted}")
        if not len(value):
            self._unreadable(key, f"shape {found.shape} is empty")
        return torch.from_numpy(np.array(value, dtype=np.float32))

    def boxes(self, key: str) -> Tensor:
        """Return the corners of an item's regions, `(T, 4)` float32, shares of the picture.

        Raises:
            DataError: if the file has no boxes, or they are in pixels of an unknown size, or of
                an impossible number.
        """
        place = self._where(key)
        if not self.has_boxes:
            raise DataError(f"{self.folder}: there are no boxes in it")
        try:
            found, size = self._read_boxes(place)
        except DataError:
            raise
        except ValueError as error:
            self._unreadable(key, str(error), error)
        return torch.from_numpy(corners_from(np.asarray(found), size, f"{self.folder}, {key!r}"))

    def view(self, key: str, number: int) -> Tensor:
        """Raise: other formats have no views."""
        raise ValueError(f"{self.folder} holds {self.kind!r} features, which have no views")

    def rows(self, keys: Sequence[str]) -> Tensor:
        """Return the features of many items, `(n, dim)` float32.

        Raises:
            ValueError: for `tokens`, whose items differ in length.
            DataError: as for `reader[key]`.
        """
        if self.kind == "tokens":
            raise ValueError(f"{self.folder} holds token features, whose lengths differ; take "
                             "them one by one")  # fmt: skip
        out = torch.empty(len(keys), self.dim)
        for i, key in enumerate(keys):
            out[i] = self[key]
        return out

    def verify(self) -> list[str]:
        """Return one sentence a file that is missing; these formats keep no checksums."""
        files = [Path(shard["file"]) for shard in self.index["shards"]]
        return [f"{file}: missing" for file in files if not file.exists()]

    def _where(self, key: str) -> Any:
        if self._pid != os.getpid():
            self._leave()
            self._pid = os.getpid()
        try:
            return self._places[key]
        except KeyError:
            raise DataError(
                f"features {self.folder} have no key {key!r}"
                f"{nearest(key, list(self._places)[:2000])} ({len(self)} keys)",
                kind="feature_missing",
            ) from None

    def _unreadable(self, key: str, what: str, error: Exception | None = None) -> NoReturn:
        raise DataError(f"{self.folder}: features {key!r} can't be read: {what}",
                        kind="feature_unreadable") from error  # fmt: skip


class MatrixReader(FeatureReader):
    """Pooled features that are the rows of one matrix; a place is a row's number."""

    _matrix: np.ndarray

    def _closed(self) -> tuple[str, ...]:
        return ("_matrix",)

    def _read(self, place: Any) -> np.ndarray:
        return self._matrix[place]

    def rows(self, keys: Sequence[str]) -> Tensor:
        """Return the features of many items, `(n, dim)` float32, taken at once.

        Raises:
            ValueError: for `tokens`, whose items differ in length.
            DataError: naming a key that is not there.
        """
        if self.kind == "tokens" or self._matrix.ndim != 2:
            return super().rows(keys)
        try:
            rows = [self._places[key] for key in keys]
        except KeyError as error:
            self._where(error.args[0])
        taken = np.take(self._matrix, rows, axis=0)
        return torch.from_numpy(np.asarray(taken, dtype=np.float32))


def plain(found: np.ndarray, kind: Kind) -> np.ndarray:
    """Drop leading axes of size 1 beyond what the kind has: `(1, T, D)` is `(T, D)`."""
    wanted = 1 if kind == "pooled" else 2
    while found.ndim > wanted and found.shape[0] == 1:
        found = found[0]
    return found[None] if kind == "tokens" and found.ndim == 1 else found


def kind_of(found: np.ndarray, where: str) -> tuple[Kind, int]:
    """Return kind and vector size that the features of one item show.

    Raises:
        DataError: for numbers without a vector, or more than two axes.
    """
    shape = list(found.shape)
    while len(shape) > 2 and shape[0] == 1:
        del shape[0]
    if not 1 <= len(shape) <= 2 or not shape[-1]:
        raise DataError(f"{where}: features of one item must be (D,) or (T, D), got {found.shape}",
                        kind="feature_unreadable")  # fmt: skip
    return ("pooled" if len(shape) == 1 else "tokens"), shape[-1]


def first_of(names: Sequence[str], known: Sequence[str]) -> str | None:
    """Return the first of `names` that is known, in whatever case it is written."""
    lowered = {name.lower(): name for name in known}
    return next((lowered[name] for name in names if name in lowered), None)


def real_rows(found: np.ndarray, count: int) -> np.ndarray:
    """Return the first `count` rows, those that are no padding.

    Raises:
        ValueError: if that is none of them, or more than there are.
    """
    if not 0 < count <= len(found):
        raise ValueError(f"its number of regions or frames is {count}, of {len(found)} rows; take "
                         "such items out of the data")  # fmt: skip
    return found[:count]


def refuse_ids(path: Path, ids: Path | None) -> None:
    """Refuse a file of ids where the features have keys of their own.

    Raises:
        DataError: if one is given.
    """
    if ids is not None:
        raise DataError(f"{path} knows its own keys; leave the file of ids, {ids}, out")


def numbered(ids: Sequence[str], count: int, where: str, ids_from: str) -> dict[str, int]:
    """Return id -> row.

    Raises:
        DataError: for a number of ids other than of rows, or an id that is there twice.
    """
    if len(ids) != count:
        raise DataError(f"{where} has {count} rows, {ids_from} {len(ids)} ids; they must be equal, "
                        "line by line")  # fmt: skip
    places: dict[str, int] = {}
    for row, name in enumerate(ids):
        if not name:
            raise DataError(f"{ids_from}: id {row + 1} is empty")
        if name in places:
            raise DataError(f"{ids_from}: id {name!r} is at {places[name] + 1} and at {row + 1}")
        places[name] = row
    return places
