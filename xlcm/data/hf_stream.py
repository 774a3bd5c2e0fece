"""A Hugging Face `datasets` data set that is trained on as it is streamed; no picture is kept.

The captions are read once, before the first epoch, and kept as a manifest in the cache
(`hf_captions.py`): so the rows are counted, and their order is known whole, as for tar shards. The
pictures are streamed anew in every epoch, or opened one by one where each is a file of its own.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import structs
from PIL import Image
from pydantic import Field
from torch import Tensor

from xlcm.data.hf_captions import kept_captions
from xlcm.data.hf_rows import (
    StreamedRows,
    files_of,
    loose_pictures,
    open_builder,
    opened,
    stream_of,
)
from xlcm.data.images import Opened, load_image, load_pixels
from xlcm.data.lanes import Lanes, lanes_of
from xlcm.data.languages import language_fault
from xlcm.data.manifest import DataError, Manifest
from xlcm.data.sources.columns import ORIGINS, ROW, Layout, TextColumn
from xlcm.data.sources.hf import top_columns, undecoded
from xlcm.registry import nearest
from xlcm.types import Item, Origin


class HfStream:
    """The rows of a streamed data set, each an item; a `Dataset` that knows its shards.

    Args:
        path: its name on the hub, or a folder of files that `load_dataset` knows.
        captions: column, or columns, of captions by what they are: `de`, `de/mt`, or
            `de/mt/COLUMN` for translations of what is in that column.
        split: which of its splits.
        config: of a data set that has several.
        revision: branch, tag or commit on the hub. A run must go on with the files that it began
            with: name a commit.
        image: the column of pictures.
        id: a column that calls each row by a name of its own, by which rows are found again in
            what scores are measured on; None: they are numbered.
        langs: captions in other languages are left out; items stay.
        open_shards: so many are read at a time, over all processes and workers.
        workers: the `data.workers` for which the order is laid out. With another number it is the
            same order, but several workers then read one shard.
        buffer: rows of a shard that are shuffled together; a worker holds so many undecoded
            pictures for each shard that it has open.

    Attributes:
        name: of the folder, or on the hub.
        has_ids: whether rows have names of their own.
        shard: `(items,)` int32, the shard of each item.
        lanes: how the order is laid out; None: any row can be had at any time, as for a manifest,
            since each picture is a file of its own.

    Raises:
        DataError: if it can't be opened, has no such column, or no rows.
        ImportError: naming the extra, if `datasets` is not installed.
        ValueError: for a key of `captions` that can't be understood, or a wrong language.
    """

    def __init__(
        self,
        *,
        path: str,
        captions: dict[str, str | list[str]],
        split: str = "train",
        config: str | None = None,
        revision: str | None = None,
        image: str = "image",
        id: str | None = None,
        langs: list[str] | None = None,
        open_shards: Annotated[int, Field(gt=0)] = 16,
        workers: Annotated[int, Field(gt=0)] = 2,
        buffer: Annotated[int, Field(gt=0)] = 256,
    ) -> None:
        for lang in langs or ():
            if fault := language_fault(lang):
                raise ValueError(f"langs: {fault}")
        layout = Layout(texts=read_captions(captions), id=id or ROW)
        self.name = Path(path).name
        self.split = split
        self.langs = frozenset(langs) if langs is not None else None
        self.open_shards = open_shards
        self.has_ids = layout.id != ROW
        self._called = f"{path}, {split}"
        self._image = image
        builder = open_builder(path, config=config, revision=revision)
        stream = stream_of(builder, path, split)
        pictures = top_columns(stream, split, [image], path)
        loose = loose_pictures(builder, stream, pictures[0])
        if loose:  # their paths are kept too
            layout = replace(layout, picture=pictures[0])
        named = [*layout.single, *(text.column for text in layout.texts)]
        slim = open_builder(
            path, config=config, revision=revision, columns=top_columns(stream, split, named, path)
        )
        about = [path, split, revision, repr(layout), *files_of(builder, split)]
        file, known = kept_captions(stream_of(slim, path, split), layout, path, split, about)
        if known["silent"]:
            warnings.warn(f"{self._called}: {known['silent']} of {sum(known['rows'])} rows have no "
                          f"caption, such as row {known['first']}", stacklevel=2)  # fmt: skip
        self._manifest = Manifest(file, split)
        self.shard = np.repeat(np.arange(len(known["rows"]), dtype=np.int32), known["rows"])
        self._first = np.cumsum([0, *known["rows"]])
        self.lanes: Lanes | None = None
        self._pictures: StreamedRows | None = None
        if loose:
            return
        shards = len(known["rows"])
        self.lanes = lanes_of(shards, at_once=open_shards, turns=workers, buffer=buffer)
        slim = open_builder(path, config=config, revision=revision, columns=pictures)
        self._pictures = StreamedRows(
            undecoded(stream_of(slim, path, split).select_columns(pictures)),
            pictures[0],
            keep=buffer,
            open_shards=self.lanes.number + 1,
            name=self._called,
        )

    def __len__(self) -> int:
        return len(self.shard)

    def __getitem__(self, index: int) -> Item:
        """Return the captions of an item, without its pixels."""
        item = self.whole(index)
        if self.langs is None:
            return item
        return structs.replace(
            item, captions=tuple(c for c in item.captions if c.lang in self.langs)
        )

    def whole(self, index: int) -> Item:
        """Return an item with its captions in all languages."""
        return structs.replace(self._manifest[index], where=self.where(index), image=None)

    def where(self, index: int) -> str:
        """Return the data set, split and row of an item, for messages."""
        return f"{self._called} row {index + 1}"

    def load_image(self, index: int) -> Image.Image:
        """Return the picture as RGB.

        Raises:
            DataError: naming the row, if it can't be had.
        """
        return self._load(index, load_image)

    def load_pixels(self, index: int) -> Tensor:
        """Return the pixels of the picture, uint8 `(3, H, W)`; sooner than `load_image`.

        Raises:
            DataError: as for `load_image`.
        """
        return self._load(index, load_pixels)

    def _load(self, index: int, load: Callable[..., Opened]) -> Opened:
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of {len(self)} in {self.name}")
        index %= len(self)
        top = self._image.partition(".")[0] if self._pictures is None else self._pictures.column
        if self._pictures is None:
            value: Any = {"path": self._manifest[index].image, "bytes": None}
        else:
            shard = int(self.shard[index])
            value = self._pictures.get(shard, index - int(self._first[shard]))
        return opened({top: value}, self._image, self.where(index), load)

    def load_features(self, index: int) -> Tensor:
        """Refuse: a stream has pictures alone.

        Raises:
            DataError: always.
        """
        raise DataError(f"{self.where(index)}: a stream has no features; read pictures, or write "
                        "features beside a manifest (`xlcm data import hf`)")  # fmt: skip


def read_captions(captions: Mapping[str, str | list[str]]) -> tuple[TextColumn, ...]:
    """Return the columns of captions that a config names.

    Args:
        captions: column or columns by `LANG`, `LANG/ORIGIN` or `LANG/ORIGIN/FROM`.

    Raises:
        ValueError: naming the key that can't be understood.
    """
    found: list[TextColumn] = []
    for key, value in captions.items():
        lang, origin, made_from = (*key.split("/", 2), "", "")[:3]
        if fault := language_fault(lang):
            raise ValueError(f"captions.{key}: {fault}")
        if origin and origin not in ORIGINS:
            raise ValueError(f"captions.{key}: an origin is one of {', '.join(ORIGINS)}, not "
                             f"{origin!r}{nearest(origin, ORIGINS)}")  # fmt: skip
        known: Origin = origin or "human"  # type: ignore[assignment]
        for column in [value] if isinstance(value, str) else value:
            found.append(TextColumn(column, lang, known, made_from or None))
    named = [text.column for text in found]
    if not named:
        raise ValueError("captions: no column is named; write for example {en: caption}")
    if twice := [column for column, count in Counter(named).items() if count > 1]:
        raise ValueError(f"captions: the column {twice[0]!r} is named twice")
    for text in found:
        if text.made_from is not None and text.made_from not in named:
            raise ValueError(f"captions.{text.lang}/{text.origin}/{text.made_from}: no column "
                             f"{text.made_from!r} is named beside it")  # fmt: skip
    return tuple(found)
