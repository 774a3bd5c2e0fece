"""A Hugging Face data set, streamed row by row into tar shards: nothing else is kept of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from xlcm.data.images import load_image
from xlcm.data.manifest import DataError
from xlcm.data.shard_writer import Part, ShardWriter, Written, json_part
from xlcm.data.sources.base import Skipped
from xlcm.data.sources.columns import ROW, Layout
from xlcm.data.sources.gathering import gather
from xlcm.data.sources.hf import read_part
from xlcm.data.sources.own import picture_data
from xlcm.data.sources.pictures import decode_base64
from xlcm.data.sources.row_captions import Row
from xlcm.types import Item


def open_stream(name: str, split: str, *, config: str | None = None) -> Any:
    """Return a split as a stream of `datasets`.

    Args:
        name: on the hub, or a folder of files that `load_dataset` knows.
        split: its name there.
        config: of a data set that has several.

    Raises:
        DataError: if it can't be opened.
        ImportError: naming the extra, if `datasets` is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError("this needs `datasets`: pip install 'xlcm[stream]'") from error
    try:
        stream = datasets.load_dataset(name, config, split=split, streaming=True)
        return stream if stream.features is not None else stream._resolve_features()
    except (ValueError, OSError, KeyError, datasets.exceptions.DatasetNotFoundError) as error:
        raise DataError(f"{name}, split {split!r}: `datasets` can't open it: {error}") from error


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
    on_item: Callable[[], None] = lambda: None,
) -> Written:
    """Write a stream of rows as tar shards, each row an item, in their order.

    Args:
        stream: of `open_stream`.
        out: the new folder.
        layout: which column holds what; `id` must be `@row`.
        name: of the data set, for messages.
        split: of the data set.
        called: what the shards call it; None: the same.
        shard_items: items a shard; the last one has what is left.
        check: decode each picture before it is written.
        skip: leave out and name rows whose picture can't be had; False: stop there.
        on_item: called after each row.

    Raises:
        DataError: naming the row that is bad; if the folder exists; if `id` is another column.
    """
    if layout.id != ROW:
        raise DataError("rows of a stream can't be gathered into items: --id @row")
    if layout.image is not None or layout.video is not None:
        raise DataError("a stream has no files beside it: --picture-data names the column that "
                        "holds the pictures themselves")  # fmt: skip
    skipped = Skipped()
    called = called or split
    with ShardWriter(out, called) as writer:
        for item, row in _items(stream, layout, name, split, skipped):
            if item.split != called:
                raise DataError(f"{row.where}: an item of split {item.split!r}; shards are of one "
                                f"split, here {called!r}")  # fmt: skip
            if not writer.items or writer.items[-1] >= shard_items:
                writer.begin()
            try:
                parts: list[Part] = [json_part(item)]
                if layout.picture is not None:
                    parts.append(_picture(row, layout.picture, check))
            except DataError as error:
                if not skip:
                    raise
                writer.skipped.append(str(error))
            else:
                writer.add(parts)
            on_item()
    left_out = [f"{count} {why}, such as at {skipped.places[why][0]}"
                for why, count in skipped.counts.items()]  # fmt: skip
    return Written(writer.folder, writer.items, writer.skipped, left_out)


def _items(
    stream: Any, layout: Layout, name: str, split: str, skipped: Skipped
) -> Iterator[tuple[Item, Row]]:
    """Yield each row's item with the row."""
    last: list[Row] = []

    def rows() -> Iterator[Row]:
        for row in read_part(stream, split, layout, name):
            last[:] = [row]
            yield row

    for item in gather(rows(), layout, on_skip=skipped.add):  # one a row, before the next is read
        yield item, last[0]


def _picture(row: Row, column: str, check: bool) -> Part:
    data = picture_data(row, column)
    try:
        raw = data if isinstance(data, bytes) else decode_base64(data)
        if check:
            load_image(raw, name=column)
    except ValueError as error:
        raise DataError(f"{row.where}: {error}", kind="image_undecodable") from error
    return "img", raw
