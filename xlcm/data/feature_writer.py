"""Writes feature stores, whose parts `xlcm.data.features` tells."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from xlcm.data.feature_index import INDEX, VERSION, Kind, read_index, sha256_of, shard_sources
from xlcm.data.manifest import DataError
from xlcm.files import readable_like

LONGEST_KEY = 512  # bytes; keys lie in a table as wide as the longest of them
DTYPES = {"float32": torch.float32, "float16": torch.float16}
DIMENSIONS = {"pooled": 1, "tokens": 2, "views": 2}


def _differences(name: str, there: Any, wanted: Any) -> Iterator[str]:
    """Yield `a.b=1, not 2` for all that differs."""
    if not (isinstance(there, dict) and isinstance(wanted, dict)):
        yield f"{name}={there!r}, not {wanted!r}"
        return
    for key in [*there, *(key for key in wanted if key not in there)]:
        if there.get(key) != wanted.get(key):
            yield from _differences(f"{name}.{key}", there.get(key), wanted.get(key))


def source_of(*about: object) -> int:
    """Return a number for what features were made of, the same for the same words and numbers."""
    digest = hashlib.sha256(json.dumps(about).encode()).digest()
    return int.from_bytes(digest[:7], "big") + 1  # fits int64, and is never 0


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
        self._keys: dict[str, int] = {}  # with the source behind each
        self._waiting: list[tuple[str, Tensor]] = []
        self._boxes: list[Tensor] = []
        if (self.folder / INDEX).is_file():
            self._continue()

    def _continue(self) -> None:
        found = read_index(self.folder)
        for name in ("kind", "dim", "dtype", "views", "encoder", "boxes"):
            there, wanted = found.get(name), self._index.get(name)
            if there != wanted:
                told = "; ".join(_differences(name, there, wanted))
                raise DataError(
                    f"{self.folder}: the feature store here has {told}; choose another folder or "
                    "delete this one"
                )
        self._index = {**found, "complete": False}
        for shard in found["shards"]:
            self._keys.update(shard_sources(self.folder / shard["file"]))

    def __enter__(self) -> FeatureWriter:
        return self

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def refuse_other(self, key: str, source: int, where: str) -> None:
        """See that features which are there are of the same source, as far as both are known.

        Args:
            key: of features that are there.
            source: as for `add`.
            where: names the item, for the message.

        Raises:
            DataError: if they are of another one.
        """
        if source and self._keys[key] and source != self._keys[key]:
            raise DataError(
                f"{where}: {self.folder} has features under the key {key!r} already, and they are "
                "of something else: encode into another folder, or delete this one"
            )

    def add(self, key: str, value: Tensor, boxes: Tensor | None = None, *, source: int = 0) -> None:
        """Add the features of one item.

        Args:
            key: unique, at most 512 bytes in UTF-8, without control characters.
            value: `(dim,)`, `(T, dim)` or `(views, dim)`, as the kind says; finite.
            boxes: `(T, 4)`, corners as shares of the picture, if this store has boxes.
            source: `source_of` what the features are of, for `refuse_other`; 0: not known.

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
        self._keys[key] = source
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
        sources = [self._keys[key] for key, _ in self._waiting]
        if any(sources):
            tensors["sources"] = torch.tensor(sources)
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
        readable_like(aside, self.folder)
        digest = sha256_of(aside)
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
        for pattern in (f".{INDEX}.*", ".shard-*.*", ".keys.npy.*", ".rows.npy.*"):
            for left in self.folder.glob(pattern):  # by a run that was killed
                left.unlink(missing_ok=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
