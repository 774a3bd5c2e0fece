"""Feature stores: precomputed features on disk, looked up by key.

A store is a folder:

    index.json               kind, dim, dtype, shards with their sizes and SHA-256, who made it
    shard-00000.safetensors  `values`, with `keys` and `starts`: each shard stands for itself;
                             `boxes` of regions, if there are any
    keys.npy, rows.npy       the sorted keys and where each one lies; opened by memory map
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from xlcm.data.manifest import DataError
from xlcm.data.mapped import map_tensor
from xlcm.registry import nearest

Kind: TypeAlias = Literal["pooled", "tokens", "views"]
VERSION = 1
INDEX = "index.json"
MEMORY_KEYS = 100_000  # up to so many keys are kept as a dict (20 MB); beyond, they are searched
LONGEST_KEY = 512  # bytes; keys lie in a table as wide as the longest of them
DTYPES = {"float32": torch.float32, "float16": torch.float16}
DIMENSIONS = {"pooled": 1, "tokens": 2, "views": 2}


class FeatureWriter:
    """Writes a feature store shard by shard; an interrupted one goes on after its last shard.

    Use it as `with FeatureWriter(folder, ...) as writer:` and ask `key in writer` what is done.
    The store can be read once the block has ended without an error.

    Args:
        folder: new, or one that the same settings began.
        kind: `pooled` `(dim,)`, `tokens` `(T, dim)` with any T, or `views` `(views, dim)` of one
            picture, the unchanged one first.
        dim: size of a vector.
        dtype: on disk.
        encoder: what made the features; a store with another one is never continued.
        views: how many, for that kind.
        shard_items: items a shard.
        boxes: whether each item's regions have boxes, for `tokens`.

    Raises:
        DataError: if the folder holds a store with other settings.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        kind: Kind,
        dim: int,
        dtype: Literal["float32", "float16"] = "float16",
        encoder: Mapping[str, Any] | None = None,
        views: int | None = None,
        shard_items: int = 8192,
        boxes: bool = False,
    ) -> None:
        if kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
        if (views is not None) != (kind == "views"):
            raise ValueError(f"`views` is the number of views of kind='views'; got {views}, {kind}")
        if boxes and kind != "tokens":
            raise ValueError(f"boxes belong to the regions of kind='tokens', got {kind!r}")
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.shard_items = shard_items
        self._index: dict[str, Any] = {
            "version": VERSION, "kind": kind, "dim": dim, "dtype": dtype, "views": views,
            "encoder": json.loads(json.dumps(dict(encoder or {}))), "count": 0, "complete": False,
            "shards": [],
        }  # fmt: skip
        if boxes:
            self._index["boxes"] = True
        self._keys: dict[str, None] = {}
        self._waiting: list[tuple[str, Tensor]] = []
        self._boxes: list[Tensor] = []
        if (self.folder / INDEX).is_file():
            self._continue()

    def _continue(self) -> None:
        found = _read_index(self.folder)
        for name in ("kind", "dim", "dtype", "views", "encoder", "boxes"):
            there, wanted = found.get(name), self._index.get(name)
            if there != wanted:
                raise DataError(
                    f"{self.folder}: the feature store here has {name}={there!r}, not "
                    f"{wanted!r}; choose another folder or delete this one"
                )
        self._index = {**found, "complete": False}
        for shard in found["shards"]:
            self._keys.update(dict.fromkeys(_shard_keys(self.folder / shard["file"])))

    def __enter__(self) -> FeatureWriter:
        return self

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, key: str, value: Tensor, boxes: Tensor | None = None) -> None:
        """Add the features of one item.

        Args:
            key: unique, at most 512 bytes in UTF-8, without control characters.
            value: `(dim,)`, `(T, dim)` or `(views, dim)`, as the kind says; finite.
            boxes: `(T, 4)`, corners as shares of the picture, if this store has boxes.

        Raises:
            DataError: for a bad or known key, another shape, NaN or infinity (also where float16
                can't hold the number).
        """
        if key in self._keys:
            raise DataError(f"{self.folder}: key {key!r} was written before")
        if not key or not key.isprintable() or len(key.encode()) > LONGEST_KEY:
            raise DataError(f"{self.folder}: key {key!r} must be 1 to {LONGEST_KEY} bytes of "
                            "printable text")  # fmt: skip
        kind, dim, views = (self._index[name] for name in ("kind", "dim", "views"))
        wanted = {"pooled": f"({dim},)", "tokens": f"(T, {dim})", "views": f"({views}, {dim})"}
        if (
            value.ndim != DIMENSIONS[kind] or value.shape[-1] != dim or value.shape[0] == 0
            or (kind == "views" and value.shape[0] != views)
        ):  # fmt: skip
            raise DataError(f"{self.folder}: features of {key!r} must be {wanted[kind]} for kind "
                            f"{kind!r}, got {tuple(value.shape)}")  # fmt: skip
        stored = value.detach().to("cpu", DTYPES[self._index["dtype"]], copy=True)
        if not stored.isfinite().all():
            raise DataError(f"{self.folder}: features of {key!r} are not finite (NaN, infinity, or "
                            f"beyond {self._index['dtype']})")  # fmt: skip
        if ("boxes" in self._index) != (boxes is not None) or (
            boxes is not None and boxes.shape != (len(value), 4)
        ):
            given = None if boxes is None else tuple(boxes.shape)
            needed = f"({len(value)}, 4)" if "boxes" in self._index else None
            raise DataError(f"{self.folder}: boxes of {key!r} must be {needed}, got {given}")
        self._keys[key] = None
        self._waiting.append((key, stored))
        if boxes is not None:
            self._boxes.append(boxes.detach().to("cpu", torch.float32, copy=True))
        if len(self._waiting) >= self.shard_items:
            self._write_shard()

    def _write_shard(self) -> None:
        if not self._waiting:
            return
        file = f"shard-{len(self._index['shards']):05d}.safetensors"
        keys = "\n".join(key for key, _ in self._waiting).encode()
        values = [value for _, value in self._waiting]
        tensors = {"keys": torch.from_numpy(np.frombuffer(keys, dtype=np.uint8).copy())}
        if self._index["kind"] == "tokens":
            ends = np.cumsum([len(value) for value in values])
            tensors["starts"] = torch.from_numpy(np.concatenate([[0], ends]).astype(np.int64))
            tensors["values"] = torch.cat(values)
            if self._boxes:
                tensors["boxes"] = torch.cat(self._boxes)
        else:
            tensors["values"] = torch.stack(values)
        aside = self.folder / f".{file}.{os.getpid()}"
        save_file(tensors, aside)
        digest = _sha256(aside)
        os.replace(aside, self.folder / file)
        entry = {"file": file, "items": len(values), "sha256": digest}
        self._index["shards"].append(entry)
        self._index["count"] += len(values)
        self._waiting, self._boxes = [], []
        self._write_index()

    def _write_index(self) -> None:
        aside = self.folder / f".{INDEX}.{os.getpid()}"
        aside.write_text(json.dumps(self._index, indent=1) + "\n", encoding="utf-8")
        os.replace(aside, self.folder / INDEX)

    def close(self) -> None:
        """Write what waits, and the table of keys that makes the store readable."""
        self._write_shard()
        names = np.array([key.encode() for key in self._keys] or [b""], dtype=np.bytes_)
        order = np.argsort(names, kind="stable")[: len(self._keys)]
        for file, table in (("keys.npy", names[order]), ("rows.npy", order.astype(np.int64))):
            aside = self.folder / f".{file}.{os.getpid()}.npy"
            np.save(aside, table, allow_pickle=False)
            os.replace(aside, self.folder / file)
        self._index["complete"] = True
        self._write_index()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()


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
        self.index = _read_index(self.folder)
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
        self._open()

    def _open(self) -> None:
        try:
            self._names = np.load(self.folder / "keys.npy", mmap_mode="r", allow_pickle=False)
            self._rows = np.load(self.folder / "rows.npy", mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.folder}: the table of keys can't be read: {error}") from error
        self._shards: dict[int, np.ndarray] = {}
        self._starts: dict[int, np.ndarray] = {}
        self._row_of: dict[str, int] | None = None

    def __getstate__(self) -> dict[str, Any]:
        left = ("_names", "_rows", "_shards", "_starts", "_row_of")
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
        file = self.folder / self.index["shards"][shard]["file"]
        return _copied(map_tensor(file, "boxes")[first:last])

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

        Raises:
            ValueError: for `tokens`, whose items differ in length.
            DataError: as for `store[key]`.
        """
        if self.kind == "tokens":
            raise ValueError(f"{self.folder} holds token features, whose lengths differ; take "
                             "them one by one")  # fmt: skip
        shape = (self.dim,) if self.views is None else (self.views, self.dim)
        rows = np.array([self._row(key) for key in keys], dtype=np.int64)
        shards = np.searchsorted(self._ends, rows, side="right")
        out = np.empty((len(keys), *shape), dtype=self.index["dtype"])
        for shard in np.unique(shards).tolist():
            values, here = self._shard(shard), np.flatnonzero(shards == shard)
            inside = rows[here] - (int(self._ends[shard - 1]) if shard else 0)
            for i, row in zip(here.tolist(), inside.tolist()):
                out[i] = values[row]
        return torch.from_numpy(out).float()

    def verify(self) -> list[str]:
        """Return one sentence a shard that is missing or is not what was written."""
        faults = []
        for shard in self.index["shards"]:
            file = self.folder / shard["file"]
            if not file.is_file():
                faults.append(f"{file}: missing")
            elif _sha256(file) != shard["sha256"]:
                faults.append(f"{file}: SHA-256 differs from index.json: damaged or replaced")
        return faults

    def _find(self, key: str) -> int | None:
        name = key.encode()
        # numpy drops NULs at the end of bytes, so a key with one would find its neighbour
        if len(self) == 0 or len(name) > self._names.dtype.itemsize or name.endswith(b"\0"):
            return None
        at = int(np.searchsorted(self._names, np.bytes_(name)))
        found = at < len(self._names) and bytes(self._names[at]) == name
        return int(self._rows[at]) if found else None

    def _row(self, key: str) -> int:
        """Return a key's row, counted over all shards."""
        if self._row_of is None and len(self) <= MEMORY_KEYS:
            self._row_of = dict(zip(self.keys(), self._rows.tolist()))
        row = self._find(key) if self._row_of is None else self._row_of.get(key)
        if row is None:
            raise DataError(
                f"feature store {self.folder} has no key {key!r}{self._alike(key)}",
                kind="feature_missing",
            )
        return row

    def _place(self, key: str) -> tuple[int, int]:
        """Return the shard of a key and its row there."""
        row = self._row(key)
        shard = int(np.searchsorted(self._ends, row, side="right"))
        return shard, row - (int(self._ends[shard - 1]) if shard else 0)

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


def _read_index(folder: Path) -> dict[str, Any]:
    file = folder / INDEX
    if not file.is_file():
        raise DataError(f"{folder} is no feature store: there is no {INDEX}; make one with "
                        "recipes/encode.py")  # fmt: skip
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
        version = index["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: not the index of a feature store: {error!r}") from error
    if version != VERSION:
        raise DataError(f"{file}: format version {version}; this xlcm reads version {VERSION}")
    return index


def _shard_keys(file: Path) -> list[str]:
    try:
        with safe_open(file, framework="np") as shard:
            return shard.get_tensor("keys").tobytes().decode().split("\n")
    except (SafetensorError, OSError) as error:
        raise DataError(f"{file}: this shard can't be read ({error}); delete the folder and "
                        "encode again") from error  # fmt: skip


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
