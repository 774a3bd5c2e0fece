"""A Hugging Face data set, streamed row by row into tar shards: nothing else is kept of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from xlcm.data.hf_rows import named, picture_bytes
from xlcm.data.images import load_image
from xlcm.data.manifest import DataError
from xlcm.data.seen import Seen
from xlcm.data.shard_parts import Part, json_part
from xlcm.data.shard_writer import ShardWriter, Written
from xlcm.data.sources.base import Skipped
from xlcm.data.sources.columns import ROW, Layout
from xlcm.data.sources.gathering import gather
from xlcm.data.sources.hf import read_part
from xlcm.data.sources.row_captions import Row
from xlcm.types import Item


def write_stream(
    stream: Any,
    out: str | Path,
    layout: Layout,
    *,
    name: str,
    split: str,
    called: str | None = None,
    shard_items: int = 1000,
    check: bool = True,
    skip: bool = False,
    about: Any = None,
    on_item: Callable[[], None] = lambda: None,
) -> Written:
    """Write a stream of rows as tar shards, each row an item, in their order.

    Args:
        stream: of `xlcm.data.hf_rows.stream_of`.
        out: the new folder.
        layout: which column holds what; `id` calls each row by a name of its own, and `@row` by
            its number.
        name: of the data set, for messages.
        split: of the data set.
        called: what the shards call it; None: the same.
        shard_items: items a shard; the last one has what is left.
        check: decode each picture before it is written.
        skip: leave out and name rows whose picture can't be had; False: stop there.
        about: the files of the data set, and all that names them: who writes the same with the
            same options into the same folder after a kill goes on behind the last whole shard.
            None: it begins anew.
        on_item: called after each row.

    Raises:
        DataError: naming the row that is bad, or has the id of another; if the folder exists.
    """
    if layout.image is not None or layout.video is not None:
        raise DataError("a stream has no files beside it: --picture-data names the column that "
                        "holds the pictures themselves")  # fmt: skip
    skipped = Skipped()
    called = called or split
    if about is not None:
        about = [about, name, split, called, repr(layout), shard_items, check, skip]
    with ShardWriter(out, called, about=about, numbered=layout.id == ROW) as writer:
        before = writer.kept or {"rows": 0, "counts": {}, "places": {}}
        rows = before["rows"]
        skipped.counts, skipped.places = Counter(before["counts"]), before["places"]
        ids = writer.ids() if layout.id != ROW else Seen()
        full = True
        for item, row in _items(stream, layout, name, split, skipped, rows):
            if item.split != called:
                raise DataError(f"{row.where}: an item of split {item.split!r}; shards are of one "
                                f"split, here {called!r}")  # fmt: skip
            if ids.add(item.id):
                raise DataError(f"{row.where}: an earlier row has the id {item.id!r} too; --id "
                                f"{ROW} numbers rows, and `xlcm data import hf --id {layout.id}` "
                                "makes one item of those of an id")  # fmt: skip
            if full:
                writer.begin()
            writer.add(_parts(item, row, layout, check), skip=skip)
            rows += 1
            full = writer.items[-1] >= shard_items
            if full:
                writer.keep({"rows": rows, "counts": skipped.counts, "places": skipped.places})
            on_item()
    left_out = [f"{count} {why}, such as at {skipped.places[why][0]}"
                for why, count in skipped.counts.items()]  # fmt: skip
    return Written(writer.folder, writer.items, writer.skipped, left_out)


def _items(
    stream: Any, layout: Layout, name: str, split: str, skipped: Skipped, done: int
) -> Iterator[tuple[Item, Row]]:
    """Yield each row's item with the row, behind those that are done."""
    last: list[Row] = []

    def rows() -> Iterator[Row]:
        for row in read_part(stream, split, layout, name, skip=done):
            last[:] = [row]
            yield named(row, layout)

    apart = replace(layout, id=ROW)  # each row an item, however it is called
    for item in gather(rows(), apart, on_skip=skipped.add):  # before the next one is read
        yield item, last[0]


def _parts(item: Item, row: Row, layout: Layout, check: bool) -> Iterator[Part]:
    yield json_part(item)
    if layout.picture is not None:
        raw = picture_bytes(row.values, layout.picture, row.where)
        if check:
            try:
                load_image(raw, name=layout.picture)
            except DataError as error:
                raise DataError(f"{row.where}: {error}", kind=error.kind) from error
        yield "img", raw
