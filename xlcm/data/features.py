"""Feature stores: precomputed features on disk, looked up by key.

A store is a folder:

    index.json               kind, dim, dtype, shards with their sizes and SHA-256, who made it
    shard-00000.safetensors  `values`, with `keys` and `starts`: each shard stands for itself;
                             `boxes` of regions, and `sources`, digests of what each item was
                             made of, if there are any
    keys.npy, rows.npy       the sorted keys and where each one lies; opened by memory map
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from xlcm.data.feature_index import INDEX, Kind, read_index, sha256_of, shard_keys
from xlcm.data.feature_writer import FeatureWriter
from xlcm.data.manifest import DataError
from xlcm.data.mapped import map_tensor, spanned
from xlcm.registry import nearest

__all__ = ["INDEX", "FeatureStore", "FeatureWriter", "Kind"]

MEMORY_KEYS = 100_000  # up to so many keys are kept as a dict (20 MB); beyond, they are searched


class FeatureStore:
    """Reads a feature store; values stay on disk until asked for, float32 when they come.

    Args:
        folder: of a finished store.

    Attributes:
        kind: `pooled`, `tokens` or `views`.
        dim: size of a vector.
        views: how many, for that kind; otherwise None.
        encoder: what made the features.
        has_boxes: whether there are boxes of regions.

    Raises:
        DataError: if it is no feature store, unfinished, or of another version.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.index = read_index(self.folder)
        if not self.index["complete"]:
            raise DataError(f"{self.folder}: the feature store is unfinished "
                            f"({self.index['count']} items so far); run its encoding again, it "
                            "goes on where it was")  # fmt: skip
        self.kind: Kind = self.index["kind"]
        self.dim: int = self.index["dim"]
        self.views: int | None = self.index["views"]
        self.encoder: dict[str, Any] = self.index["encoder"]
        self.has_boxes = bool(self.index.get("boxes"))
        self._ends = np.cumsum([shard["items"] for shard in self.index["shards"]], dtype=np.int64)
        self._total = int(self._ends[-1]) if len(self._ends) else 0
        self._begins_listed: list[int] = [0, *self._ends[:-1].tolist()]
        self._open()

    def _open(self) -> None:
        try:
            self._names = np.load(self.folder / "keys.npy", mmap_mode="r", allow_pickle=False)
            self._rows = np.load(self.folder / "rows.npy", mmap_mode="r", allow_pickle=False)
        # beside the usual ones, a damaged header leads to those of Python's parser
        except Exception as error:
            raise DataError(f"{self.folder}: the table of keys can't be read: {error}",
                            kind="feature_unreadable") from error  # fmt: skip
        self._shards: dict[int, np.ndarray] = {}
        self._starts: dict[int, np.ndarray] = {}
        self._corners: dict[int, np.ndarray] = {}
        self._whole: tuple[np.ndarray, np.ndarray] | None = None
        self._row_of: dict[str, int] | None = None

    def __getstate__(self) -> dict[str, Any]:
        left = ("_names", "_rows", "_shards", "_starts", "_corners", "_whole", "_row_of")
        return {name: value for name, value in self.__dict__.items() if name not in left}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return self.index["count"]

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._find(key) is not None

    def keys(self) -> Iterator[str]:
        """Yield all keys, sorted by their bytes."""
        return (bytes(name).decode() for name in self._names)

    def __getitem__(self, key: str) -> Tensor:
        """Return `(dim,)`, `(T, dim)` or `(views, dim)`, float32.

        Raises:
            DataError: naming the key and the store, if it is not in it or can't be read.
        """
        shard, row = self._place(key)
        values = self._shard(shard)
        if self.kind == "tokens":
            first, last = self._starts[shard][row : row + 2]
            return _copied(values[first:last])
        return _copied(values[row])

    def boxes(self, key: str) -> Tensor:
        """Return the corners of an item's regions, `(T, 4)` float32, shares of the picture.

        Raises:
            DataError: as for `store[key]`; if the store has no boxes.
        """
        if not self.has_boxes:
            raise DataError(f"{self.folder}: there are no boxes in it")
        shard, row = self._place(key)
        self._shard(shard)
        first, last = self._starts[shard][row : row + 2]
        return _copied(self._corners[shard][first:last])

    def view(self, key: str, number: int) -> Tensor:
        """Return one of an item's views, `(dim,)` float32; number 0 is the unchanged picture.

        Raises:
            DataError: as for `store[key]`.
            IndexError: if there is no such view.
        """
        if self.kind != "views" or self.views is None:
            raise ValueError(f"{self.folder} holds {self.kind!r} features, which have no views")
        if not 0 <= number < self.views:
            raise IndexError(f"view {number} of {self.views} in {self.folder}")
        shard, row = self._place(key)
        return _copied(self._shard(shard)[row, number])

    def rows(self, keys: Sequence[str]) -> Tensor:
        """Return the features of many items, `(n, dim)` or `(n, views, dim)`, float32.

        One call of numpy for all, however many shards there are.

        Raises:
            ValueError: for `tokens`, whose items differ in length.
            DataError: as for `store[key]`; if any shard of the store can't be read.
        """
        if self.kind == "tokens":
            raise ValueError(f"{self.folder} holds token features, whose lengths differ; take "
                             "them one by one")  # fmt: skip
        if not keys:
            return torch.empty(0, *(self.dim,) if self.views is None else (self.views, self.dim))
        rows = self._rows_of(keys)
        if self._whole is None:
            self._whole = spanned([self._shard(n) for n in range(len(self.index["shards"]))])
        whole, places = self._whole
        at = places[rows]
        # `take` is a little faster, but would copy an array that is not contiguous as a whole
        found = whole.take(at, axis=0) if whole.flags.c_contiguous else whole[at]
        return torch.from_numpy(found).float()

    def verify(self) -> list[str]:
        """Return one sentence a shard or table of keys that is missing or not what was written."""
        faults = []
        for shard in self.index["shards"]:
            file = self.folder / shard["file"]
            if not file.is_file():
                faults.append(f"{file}: missing")
            elif sha256_of(file) != shard["sha256"]:
                faults.append(f"{file}: SHA-256 differs from index.json: damaged or replaced")
        if not faults:  # the shards know their keys themselves
            files = [self.folder / shard["file"] for shard in self.index["shards"]]
            written = [key for file in files for key in shard_keys(file)]
            found = dict(zip(self.keys(), self._rows.tolist()))
            if found != {key: row for row, key in enumerate(written)}:
                faults.append(f"{self.folder}: keys.npy or rows.npy differ from the keys in the "
                              "shards: damaged or replaced")  # fmt: skip
        return faults

    def _find(self, key: str) -> int | None:
        name = key.encode()
        # numpy drops NULs at the end of bytes, so a key with one would find its neighbour
        if len(self) == 0 or len(name) > self._names.dtype.itemsize or name.endswith(b"\0"):
            return None
        at = int(np.searchsorted(self._names, np.bytes_(name)))
        found = at < len(self._names) and bytes(self._names[at]) == name
        return int(self._rows[at]) if found else None

    def _known(self) -> dict[str, int] | None:
        """Return key -> row, counted over all shards, if there are not too many for memory."""
        if self._row_of is None and len(self) <= MEMORY_KEYS:
            self._row_of = dict(zip(self.keys(), self._rows.tolist()))
        return self._row_of

    def _rows_of(self, keys: Sequence[str]) -> np.ndarray:
        known = self._known()
        rows: np.ndarray | None
        try:
            if known is not None:
                rows = np.fromiter(map(known.__getitem__, keys), np.int64, len(keys))
            else:
                rows = self._find_all(keys)
        except (KeyError, IndexError):
            rows = None
        if rows is None:  # one by one, to say which one is missing
            return np.array([self._row(key) for key in keys])
        for row in (int(rows.min()), int(rows.max())):
            if not 0 <= row < self._total:
                self._check_tables(row)
        return rows

    def _check_tables(self, row: int = 0) -> None:
        """Refuse tables of keys and rows that can't be of these shards."""
        if len(self._names) != len(self._rows) or not 0 <= row < self._total:
            raise DataError(f"{self.folder}: keys.npy and rows.npy are damaged, or those of "
                            "another store", kind="feature_unreadable")  # fmt: skip

    def _find_all(self, keys: Sequence[str]) -> np.ndarray | None:
        """Return the rows of keys that are searched on disk; None if one may be missing."""
        names = [key.encode() for key in keys]
        width = self._names.dtype.itemsize
        # what `_find` says about NULs; and a longer name would be cut to one that is there
        if any(len(name) > width or name.endswith(b"\0") for name in names):
            return None
        asked = np.array(names, dtype=self._names.dtype)
        at = np.minimum(np.searchsorted(self._names, asked), len(self._names) - 1)
        return self._rows[at] if bool((self._names[at] == asked).all()) else None

    def _row(self, key: str) -> int:
        known = self._known()
        try:
            row = self._find(key) if known is None else known.get(key)
        except IndexError:  # there are fewer rows than keys
            row = None
        if row is None:
            self._check_tables()
            raise DataError(
                f"feature store {self.folder} has no key {key!r}{self._alike(key)}",
                kind="feature_missing",
            )
        if not 0 <= row < self._total:
            self._check_tables(row)
        return row

    def _place(self, key: str) -> tuple[int, int]:
        """Return the shard of a key and its row there."""
        row = self._row(key)
        shard = bisect_right(self._begins_listed, row) - 1
        return shard, row - self._begins_listed[shard]

    def _alike(self, key: str) -> str:
        at = int(np.searchsorted(self._names, np.bytes_(key.encode())))
        around = [bytes(name).decode() for name in self._names[max(at - 5, 0) : at + 5]]
        return nearest(key, around) + f" ({len(self)} keys)"

    def _shard(self, number: int) -> np.ndarray:
        if number not in self._shards:
            file = self.folder / self.index["shards"][number]["file"]
            if not file.is_file():
                raise DataError(
                    f"{file}: this shard of the feature store is missing", kind="feature_unreadable"
                )
            try:
                if self.kind == "tokens":
                    self._starts[number] = np.array(map_tensor(file, "starts"))
                if self.has_boxes:
                    self._corners[number] = map_tensor(file, "boxes")
                self._shards[number] = map_tensor(file, "values")
            except (SafetensorError, OSError, KeyError, ValueError) as error:
                raise DataError(
                    f"{self.folder}: features in {file.name} can't be read: {error}",
                    kind="feature_unreadable",
                ) from error
        return self._shards[number]


def _copied(values: np.ndarray) -> Tensor:
    """Return a float32 copy that nothing on disk stands behind."""
    return torch.from_numpy(np.array(values, dtype=np.float32))
