"""The captions of a streamed data set, read once and kept as a manifest in the cache."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from msgspec import structs

from xlcm.data.hf_rows import named, rows_said
from xlcm.data.manifest import DataError, ManifestWriter
from xlcm.data.progress import Progress
from xlcm.data.sources.base import Skipped
from xlcm.data.sources.columns import ROW, Layout
from xlcm.data.sources.gathering import gather
from xlcm.data.sources.hf import read_part
from xlcm.data.sources.row_captions import Row
from xlcm.types import Item

VERSION = 2  # of what is kept; a new one makes old ones void
COUNTS = "rows.json"
CAPTIONS = "captions.jsonl"


def kept_captions(
    stream: Any, layout: Layout, name: str, split: str, about: list[Any]
) -> tuple[Path, dict[str, Any]]:
    """Return a manifest with an item a row, and what was counted; read the stream if need be.

    It lies in `$XLCM_CACHE/streams` (by default `~/.cache/xlcm/streams`). Of several processes of
    one machine one reads, with its progress shown, and the others wait.

    Args:
        stream: of `xlcm.data.hf_rows.stream_of`, with the columns of the layout.
        layout: what the columns are. `id` names each row; with a `picture` each item has the path
            of its picture.
        name: of the data set, for messages.
        split: of the data set.
        about: what the captions depend on, as plain data.

    Returns:
        The manifest, and as a dictionary `rows` (of each shard), `silent` (rows without captions)
        and `first` (the first of these, from 1; None).

    Raises:
        DataError: if there are no rows, one can't be read, or two have one id.
    """
    digest = sha256(json.dumps([VERSION, *about]).encode()).hexdigest()[:24]
    cache = Path(os.environ.get("XLCM_CACHE") or Path.home() / ".cache" / "xlcm")
    folder = cache / "streams" / digest
    if not (folder / COUNTS).is_file():
        with _alone(folder):
            if not (folder / COUNTS).is_file():
                _read(stream, folder, layout, name, split)
    return folder / CAPTIONS, json.loads((folder / COUNTS).read_text(encoding="utf-8"))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process of this machine in at a time."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f"{folder.name}.lock"), "ab") as lock:
        with suppress(OSError):  # on a disk without locks each reads for itself; one's is kept
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _read(stream: Any, folder: Path, layout: Layout, name: str, split: str) -> None:
    """Write the captions of all rows as a manifest, and how many rows each shard has."""
    rows = [0] * int(stream.num_shards)
    skipped = Skipped()
    silent: list[int] = []
    pictures: list[str | None] = []  # of the row that is at work
    told = Progress(rows_said(stream, split), f"{name}, {split}: captions", unit="rows")

    def read() -> Iterator[Row]:
        for shard in range(len(rows)):
            part = stream.shard(len(rows), shard)
            for row in read_part(part, split, layout, name, numbered_from=sum(rows)):
                rows[shard] += 1
                pictures[:] = [_path(row, layout)]
                told.advance(1)
                yield named(row, layout)

    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        with ManifestWriter(aside / CAPTIONS) as writer:
            apart = replace(layout, id=ROW)  # each row an item, however it is called
            for number, item in enumerate(gather(read(), apart, on_skip=skipped.add), 1):
                _write(writer, structs.replace(item, split=split, image=pictures[0]), layout)
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
        told.close()
        shutil.rmtree(aside, ignore_errors=True)


def _path(row: Row, layout: Layout) -> str | None:
    if layout.picture is None:
        return None
    value = row.values[layout.picture]
    return value["path"] if isinstance(value, dict) else None


def _write(writer: ManifestWriter, item: Item, layout: Layout) -> None:
    try:
        writer.write(item)
    except DataError as error:
        said = str(error).partition(": ")[2].replace(", in line ", ", in row ")
        if "was written before" in said and layout.id not in (None, ROW):
            said += f"; leave `id: {layout.id}` out, or make one item of the rows of an id: "
            said += f"`xlcm data import hf --id {layout.id}`"
        raise DataError(f"{item.where}: {said}") from error
