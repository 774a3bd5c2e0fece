"""A Hugging Face `datasets` data set that is trained on as it is streamed; no picture is kept.

The captions are read once, before the first epoch, and kept as a manifest in the cache: so the
rows are counted, and their order is known whole, as for tar shards. The pictures are streamed anew
in every epoch.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image
from pydantic import Field
from torch import Tensor

from xlcm.data.hf_rows import StreamedRows, files_of, open_builder, opened, stream_of
from xlcm.data.images import Opened, load_image, load_pixels
from xlcm.data.lanes import lanes_of
from xlcm.data.languages import language_fault
from xlcm.data.manifest import DataError, Manifest, ManifestWriter
from xlcm.data.sources.base import Skipped
from xlcm.data.sources.columns import ORIGINS, ROW, Layout, TextColumn
from xlcm.data.sources.gathering import gather
from xlcm.data.sources.hf import read_part, top_columns, undecoded
from xlcm.data.sources.row_captions import Row
from xlcm.registry import nearest
from xlcm.types import Item, Origin

VERSION = 1  # of what is kept; a new one makes old ones void
COUNTS = "rows.json"
CAPTIONS = "captions.jsonl"


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
        langs: captions in other languages are left out; items stay.
        open_shards: so many are read at a time, over all processes and workers.
        workers: the `data.workers` for which the order is laid out. With another number it is the
            same order, but several workers then read one shard.
        buffer: rows of a shard that are shuffled together; a worker holds so many undecoded
            pictures for each shard that it has open.

    Attributes:
        name: of the folder, or on the hub.
        shard: `(items,)` int32, the shard of each item.
        lanes: how the order is laid out.

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
        langs: list[str] | None = None,
        open_shards: Annotated[int, Field(gt=0)] = 16,
        workers: Annotated[int, Field(gt=0)] = 2,
        buffer: Annotated[int, Field(gt=0)] = 256,
    ) -> None:
        for lang in langs or ():
            if fault := language_fault(lang):
                raise ValueError(f"langs: {fault}")
        layout = Layout(texts=read_captions(captions), id=ROW)
        self.name = Path(path).name
        self.split = split
        self.langs = frozenset(langs) if langs is not None else None
        self.open_shards = open_shards
        self._called = f"{path}, {split}"
        self._image = image
        builder = open_builder(path, config=config, revision=revision)
        stream = stream_of(builder, path, split)
        pictures = top_columns(stream, split, [image], path)
        texts = top_columns(stream, split, [text.column for text in layout.texts], path)
        folder = _folder([path, split, revision, repr(layout), *files_of(builder, split)])
        if not (folder / COUNTS).is_file():
            slim = open_builder(path, config=config, revision=revision, columns=texts)
            _count(stream_of(slim, path, split), folder, layout, path, split)
        known = json.loads((folder / COUNTS).read_text(encoding="utf-8"))
        if known["silent"]:
            warnings.warn(f"{self._called}: {known['silent']} of {sum(known['rows'])} rows have no "
                          f"caption, such as row {known['first']}", stacklevel=2)  # fmt: skip
        self._manifest = Manifest(folder / CAPTIONS, split)
        self.shard = np.repeat(np.arange(len(known["rows"]), dtype=np.int32), known["rows"])
        self._first = np.cumsum([0, *known["rows"]])
        self.lanes = lanes_of(len(known["rows"]), at_once=open_shards, turns=workers, buffer=buffer)
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
        item = replace(self._manifest[index], where=self.where(index))
        if self.langs is None:
            return item
        return replace(item, captions=tuple(c for c in item.captions if c.lang in self.langs))

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
        shard = int(self.shard[index])
        value = self._pictures.get(shard, index - int(self._first[shard]))
        return opened({self._pictures.column: value}, self._image, self.where(index), load)

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


# -- the captions, read once ---------------------------------------------------------------------


def _folder(about: list[Any]) -> Path:
    digest = sha256(json.dumps([VERSION, *about]).encode()).hexdigest()[:24]
    cache = Path(os.environ.get("XLCM_CACHE") or Path.home() / ".cache" / "xlcm")
    return cache / "streams" / digest


def _count(stream: Any, folder: Path, layout: Layout, name: str, split: str) -> None:
    """Write the captions of all rows as a manifest, and how many rows each shard has."""
    rows = [0] * int(stream.num_shards)
    skipped = Skipped()
    silent: list[int] = []

    def read() -> Iterator[Row]:
        for shard in range(len(rows)):
            part = stream.shard(len(rows), shard)
            for row in read_part(part, split, layout, name, numbered_from=sum(rows)):
                rows[shard] += 1
                yield row

    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        with ManifestWriter(aside / CAPTIONS) as writer:
            for number, item in enumerate(gather(read(), layout, on_skip=skipped.add), 1):
                writer.write(replace(item, split=split))
                silent += [] if item.captions else [number]
        if not sum(rows):
            raise DataError(f"{name}, split {split!r}: no rows")
        known = {"rows": rows, "silent": len(silent), "first": silent[0] if silent else None}
        (aside / COUNTS).write_text(json.dumps(known) + "\n", encoding="utf-8")
        try:
            aside.rename(folder)
        except OSError:  # another process was sooner, with the same
            if not (folder / COUNTS).is_file():
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
