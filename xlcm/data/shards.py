"""Tar shards after the WebDataset convention, read in place: nothing is unpacked.

A folder that `xlcm data shard` wrote has `shards.json` (which files, how many items each) and

    000000.tar   000000000.json         the manifest line, with captions and translations
                 000000000.jpg          the picture, as it was
                 000000000.pooled.npy   features: pooled, tokens or views

Shards of others are read too: a folder or a pattern of tars with `.json` manifest lines, or with
the `.jpg` and `.txt` pairs that img2dataset writes.
"""

from __future__ import annotations

import glob
import io
import json
import os
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from msgspec.structs import replace
from PIL import Image
from pydantic import Field
from torch import Tensor

from xlcm.data.faults import Fault
from xlcm.data.images import Opened, load_image, load_pixels
from xlcm.data.languages import language_fault
from xlcm.data.manifest import DataError, parse_item
from xlcm.data.tar_index import KINDS, Place, TarIndex, tar_index
from xlcm.registry import nearest
from xlcm.types import Caption, Item

INDEX = "shards.json"
OPEN_FILES = 64  # a process keeps so many shards open


class Shards:
    """The items of a set of tar shards; a `Dataset` that also says which shard each item is in.

    Args:
        path: a folder of shards, or a pattern such as `data/cc3m-*.tar`.
        split: which split they are; a folder of `xlcm data shard` knows its own.
        langs: captions in other languages are left out; items stay.
        txt_lang: the language of `.txt` captions, for shards without manifest lines.
        open_shards: so many are read at a time while training, their rows mixed; the order of
            the shards changes with each epoch. More mix better and jump about more.

    Attributes:
        name: the folder's name, or the pattern's without its ending.
        files: the shards, in order.
        has_ids: whether items have names of their own; not so where `shard-hf` numbered them.
        shard: `(items,)` int32, the shard of each item.
        faults: one for each truncated shard.
        lost: items that truncated shards lack, as far as `shards.json` tells.

    Raises:
        DataError: if there are no shards, one is missing or no tar, or the split is another one.
        ValueError: for a language that is no BCP 47 code.
    """

    def __init__(
        self,
        *,
        path: str,
        split: str = "train",
        langs: list[str] | None = None,
        txt_lang: str | None = None,
        open_shards: Annotated[int, Field(gt=0)] = 16,
    ) -> None:
        for lang in [*(langs or ()), *([txt_lang] if txt_lang else [])]:
            if fault := language_fault(lang):
                raise ValueError(f"langs: {fault}")
        self.name = Path(path).name.partition(".tar")[0].rstrip("-_*") or "shards"
        self.split = split
        self.langs = frozenset(langs) if langs is not None else None
        self.txt_lang = txt_lang
        self.open_shards = open_shards
        self.files, expected, self.has_ids = _find(path, split)
        self.indices: list[TarIndex] = []
        self.faults: list[Fault] = []
        self.lost = 0
        self._stamps = [_stamp(file) for file in self.files]
        for file in self.files:
            index = tar_index(file)
            self.indices.append(index)
            if index.truncated:
                self._truncated(file, len(index), expected.get(file))
            elif len(index) != expected.get(file, len(index)):
                raise DataError(f"{file}: {len(index)} items, but {INDEX} beside it says "
                                f"{expected[file]}: write the shards again")  # fmt: skip
        sizes = [len(index) for index in self.indices]
        self.shard = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        self._first = np.cumsum([0, *sizes])
        if not len(self):
            raise DataError(f"{path}: the {len(sizes)} shards have no whole item")
        self._open: OrderedDict[int, io.FileIO] = OrderedDict()

    def _truncated(self, file: str, found: int, expected: int | None) -> None:
        lost = "" if expected is None else f", {expected - found} of its {expected} are lost"
        message = f"the tar file is truncated: {found} items can be read{lost}; copy it again"
        self.lost += (expected or found) - found
        self.faults.append(Fault(f"{file}:{found + 1}", "", None, "shard_truncated", message))
        warnings.warn(f"{file}: {message}", stacklevel=3)

    def __len__(self) -> int:
        return len(self.shard)

    def __getitem__(self, index: int) -> Item:
        """Return the captions of an item, without its pixels.

        Raises:
            DataError: naming shard and file, if it has no captions that can be read.
        """
        item = self.whole(index)
        if self.langs is None:
            return item
        return replace(item, captions=tuple(c for c in item.captions if c.lang in self.langs))

    def whole(self, index: int) -> Item:
        """Return an item with its captions in all languages.

        Raises:
            DataError: as for `shards[index]`.
        """
        shard, number = self._locate(index)
        key, where = self.indices[shard].key(number), self.where(index)
        if self.txt_lang is not None:
            text = self._read(index, "txt")
            if text is None:
                raise DataError(f"{where}: no {key}.txt; without `txt_lang`, captions are read "
                                "from .json")  # fmt: skip
            item = _from_text(f"{Path(self.files[shard]).stem}/{key}", text, self, where)
        else:
            raw = self._read(index, "json")
            if raw is None:
                raise DataError(f"{where}: no {key}.json with a manifest line; set `txt_lang` to "
                                "take the captions from .txt")  # fmt: skip
            item = parse_item(raw, where)
            if item.split != self.split:
                raise DataError(f"{where}: an item of split {item.split!r}, but the dataset says "
                                f"split: {self.split}")  # fmt: skip
        return item

    def where(self, index: int) -> str:
        """Return `shard:key` of an item, for messages."""
        shard, number = self._locate(index)
        return f"{self.files[shard]}:{self.indices[shard].key(number)}"

    def has(self, index: int, part: str) -> bool:
        """Return whether the shard has one of `xlcm.data.tar_index.PARTS` of an item."""
        shard, number = self._locate(index)
        return self.indices[shard].place(number, part) is not None

    def picture_file(self, index: int) -> bytes | None:
        """Return the bytes of an item's picture; None if it has none."""
        return self._read(index, "image")

    def load_image(self, index: int) -> Image.Image:
        """Return the picture as RGB.

        Raises:
            DataError: naming shard and key, if it can't be had.
        """
        return self._opened(index, load_image)

    def load_pixels(self, index: int) -> Tensor:
        """Return the pixels of the picture, uint8 `(3, H, W)`; sooner than `load_image`.

        Raises:
            DataError: as for `load_image`.
        """
        return self._opened(index, load_pixels)

    def _opened(self, index: int, load: Callable[..., Opened]) -> Opened:
        shard, number = self._locate(index)
        where, data = self.where(index), self._read(index, "image")
        if data is None:
            raise DataError(f"{where}: no picture in the shard; write it with pictures, or read "
                            "features with an encoder that takes them",
                            kind="image_missing")  # fmt: skip
        try:
            return load(data, name=self.indices[shard].key(number))
        except DataError as error:
            raise DataError(f"{where}: {error}", kind=error.kind) from error

    def load_features(self, index: int) -> Tensor | list[Tensor]:
        """Return the features, float32: `(D,)`, `(T, D)`, or a list of views `(D,)`.

        Raises:
            DataError: naming shard and key, if they can't be had.
        """
        where = self.where(index)
        for kind in KINDS:
            data = self._read(index, kind)
            if data is None:
                continue
            try:
                values = np.load(io.BytesIO(data), allow_pickle=False).astype(np.float32)
            except (ValueError, EOFError, OSError) as error:
                raise DataError(f"{where}: {kind}.npy is no npy file of numbers: {error}",
                                kind="feature_unreadable") from error  # fmt: skip
            if values.ndim != (1 if kind == "pooled" else 2) or not values.size:
                raise DataError(f"{where}: {kind}.npy has the shape {values.shape}, where "
                                f"{'(D,)' if kind == 'pooled' else '(T, D), T at least 1,'} was "
                                "expected", kind="feature_unreadable")  # fmt: skip
            found = torch.from_numpy(values)
            if not found.isfinite().all():
                raise DataError(f"{where}: features hold NaN or infinity",
                                kind="feature_not_finite")  # fmt: skip
            return list(found) if kind == "views" else found
        raise DataError(f"{where}: no features in the shard; write it with `xlcm data shard "
                        "--features`")  # fmt: skip

    # -- files ----------------------------------------------------------------------------------

    def _locate(self, index: int) -> tuple[int, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of {len(self)} in {self.name}")
        index %= len(self)
        shard = int(self.shard[index])
        return shard, index - int(self._first[shard])

    def _read(self, index: int, part: str) -> bytes | None:
        shard, number = self._locate(index)
        place = self.indices[shard].place(number, part)
        return None if place is None else self._bytes(shard, place)

    def _bytes(self, shard: int, place: Place) -> bytes:
        file = self._open.pop(shard, None)
        if file is None:
            while len(self._open) >= OPEN_FILES:
                self._open.popitem(last=False)[1].close()
            if _stamp(self.files[shard]) != self._stamps[shard]:
                raise DataError(f"{self.files[shard]}: the shard was changed while it was in use; "
                                "start again")  # fmt: skip
            file = open(self.files[shard], "rb", buffering=0)  # noqa: SIM115 -- stays open
        self._open[shard] = file  # the last in line to be closed
        # forked workers share the file's position, which pread doesn't use
        data = os.pread(file.fileno(), place.size, place.offset)
        if len(data) != place.size:
            raise DataError(f"{self.files[shard]}: became shorter while it was in use")
        return data

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def __del__(self) -> None:
        for file in self.__dict__.get("_open", {}).values():
            file.close()


def _stamp(file: str) -> tuple[int, int]:
    status = os.stat(file)
    return status.st_size, status.st_mtime_ns


def _from_text(identity: str, text: bytes, shards: Shards, where: str) -> Item:
    try:
        words = text.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: the .txt caption is not UTF-8", kind="not_utf8") from error
    lang = shards.txt_lang
    assert lang is not None
    captions = (Caption(f"{identity}#{lang}", lang, words),) if words else ()
    return Item(identity, shards.split, captions, where=where)


def _find(path: str, split: str) -> tuple[list[str], dict[str, int], bool]:
    """Return the shards, how many items each must have as far as known, and if they have ids."""
    folder = Path(path)
    index = folder / INDEX
    if not index.is_file():
        files = sorted(glob.glob(str(folder / "*.tar") if folder.is_dir() else path))
        if not files and not folder.exists() and not glob.has_magic(path):
            beside = folder.parent.iterdir() if folder.parent.is_dir() else ()
            raise DataError(f"{path}: no such folder of shards"
                            + nearest(folder.name, sorted(p.name for p in beside)))  # fmt: skip
        if not files:
            raise DataError(f"{path}: no tar files here; `xlcm data shard` writes them from a "
                            "manifest")  # fmt: skip
        return files, {}, True
    try:
        known = json.loads(index.read_text(encoding="utf-8"))
        listed = {str(folder / shard["file"]): int(shard["items"]) for shard in known["shards"]}
        wrote = known["split"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{index}: not the list that `xlcm data shard` writes: {error}") from error
    if wrote != split:
        raise DataError(f"{path}: these are shards of split {wrote!r}, not of {split!r}")
    missing = [file for file in listed if not Path(file).is_file()]
    if missing:
        raise DataError(f"{missing[0]}: missing, and {len(missing) - 1} more; {index} lists "
                        f"{len(listed)} shards: copy them again")  # fmt: skip
    return list(listed), listed, not known.get("numbered", False)
