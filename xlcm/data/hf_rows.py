"""Rows of a streamed Hugging Face data set by shard and number: read on from where one is."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from xlcm.data.images import Opened
from xlcm.data.manifest import DataError
from xlcm.data.sources.columns import ROW, Layout, lookup
from xlcm.data.sources.hf import reason, undecoded
from xlcm.data.sources.own import picture_data
from xlcm.data.sources.pictures import decode_base64
from xlcm.data.sources.row_captions import Row, word

READ = 32  # rows that are taken out of a file at a time


def open_builder(
    name: str,
    *,
    config: str | None = None,
    revision: str | None = None,
    columns: list[str] | None = None,
) -> Any:
    """Return the builder of a data set, which knows its files; nothing of it is read.

    Args:
        name: on the hub, or a folder of files that `load_dataset` knows.
        config: of a data set that has several.
        revision: branch, tag or commit on the hub.
        columns: read no others, where the files (Parquet) allow it.

    Raises:
        DataError: if it can't be opened.
        ImportError: naming the extra, if `datasets` is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError("this needs `datasets`: pip install 'xlcm[stream]'") from error
    if any((Path(name) / file).is_file() for file in ("dataset_dict.json", "state.json")):
        raise DataError(f"{name}: written by `save_to_disk`, which can't be streamed: `xlcm data "
                        "import hf` reads it, or write it with `to_parquet`")  # fmt: skip
    try:
        builder = datasets.load_dataset_builder(name, config, revision=revision)
        if columns is not None and hasattr(builder.config, "columns"):
            return datasets.load_dataset_builder(name, config, revision=revision, columns=columns)
        return builder
    except (ValueError, OSError, KeyError) as error:
        raise DataError(f"{name}: `datasets` can't open it: {reason(error)}") from error


def stream_of(builder: Any, name: str, split: str) -> Any:
    """Return a split as a stream, with the types of its columns.

    Raises:
        DataError: for a split that there is not, or files that can't be opened.
    """
    try:
        stream = builder.as_streaming_dataset(split=split)
        return stream if stream.features is not None else stream._resolve_features()
    except (ValueError, OSError, KeyError) as error:
        raise DataError(
            f"{name}, split {split!r}: `datasets` can't open it: {reason(error)}"
        ) from error


def files_of(builder: Any, split: str) -> list[Any]:
    """Return the files of a split, with what tells a changed one: its time, or the commit."""
    files = (builder.config.data_files or {}).get(split)
    if files is None:
        return [builder.config_id, builder.hash]
    return [str(builder.config_id), [str(file) for file in files], [*files.origin_metadata]]


def rows_said(stream: Any, split: str) -> int | None:
    """Return how many rows a data set says that a split has; None: it doesn't say."""
    splits = stream.info.splits or {}
    return getattr(splits.get(split), "num_examples", None) or None


def loose_pictures(builder: Any, stream: Any, column: str) -> bool:
    """Return whether the rows name pictures that are files of their own (`imagefolder`).

    Any of them can then be had at any time, and there are no shards to keep to.
    """
    from datasets.packaged_modules.folder_based_builder import folder_based_builder

    if not isinstance(builder, folder_based_builder.FolderBasedBuilder):
        return False
    first = next(iter(undecoded(stream.select_columns([column]).take(1))), {column: None})[column]
    return isinstance(first, dict) and bool(first.get("path")) and not first.get("bytes")


def named(row: Row, layout: Layout) -> Row:
    """Return a row under the id in a column, where a layout names one; else as it is numbered.

    Raises:
        DataError: if the column is empty.
    """
    return row if layout.id in (None, ROW) else replace(row, name=word(row, str(layout.id)))


class StreamedRows:
    """One column of a stream, by shard and number of the row in it.

    Any row can be had at any time. Going on is cheap: a shard is read from its file as its rows
    are asked for, and the last `keep` rows that were passed over are held. Going back beyond
    those opens the shard again and skips.

    Args:
        stream: of `stream_of`, with this column alone.
        column: its name.
        keep: rows a shard that are held.
        open_shards: so many stay open.
        name: for messages.
    """

    def __init__(self, stream: Any, column: str, *, keep: int, open_shards: int, name: str) -> None:
        self.stream = stream
        self.column = column
        self.keep = keep
        self.open_shards = open_shards
        self.name = name
        self.shards = int(stream.num_shards)
        self._cursors: list[_Cursor] = []  # the last in line was used last
        self._process = os.getpid()

    def get(self, shard: int, number: int) -> Any:
        """Return the value of a row.

        Raises:
            DataError: if the shard can't be read, or has no such row any more.
        """
        if self._process != os.getpid():  # a forked worker must not share an open file
            self._cursors, self._process = [], os.getpid()
        cursor = self._cursor(shard, number)
        try:
            return cursor.get(number)
        except StopIteration:
            said = "the shard has become shorter since its rows were counted; start again"
            raise DataError(f"{self.name}, shard {shard}, row {number + 1}: {said}") from None
        except DataError:
            raise
        except (OSError, ValueError) as error:
            self._cursors.remove(cursor)
            raise DataError(
                f"{self.name}, shard {shard}: `datasets` can't read it: {reason(error)}"
            ) from error

    def _cursor(self, shard: int, number: int) -> _Cursor:
        fitting = [c for c in self._cursors if c.shard == shard and c.reaches(number)]
        if fitting:
            cursor = max(fitting, key=lambda c: c.next)  # with the least to pass over
            self._cursors.remove(cursor)
        else:
            while len(self._cursors) >= self.open_shards:
                self._cursors.pop(0).close()
            part = self.stream.shard(self.shards, shard)
            first = max(number - self.keep, 0)  # rows just before it are wanted soon, in a block
            cursor = _Cursor(part, shard, self.column, first, self.keep)
        self._cursors.append(cursor)
        return cursor

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cursors": []}


class _Cursor:
    """A shard that is open at some row, and the rows just before it."""

    def __init__(self, part: Any, shard: int, column: str, first: int, keep: int) -> None:
        self.shard = shard
        self.next = first
        self.keep = keep
        # `iter` rather than `for`: in a worker the latter leaves out the shards of other workers
        self._tables: Iterator[Any] = (part.skip(first) if first else part).iter(batch_size=READ)
        self._column = column
        self._kept: OrderedDict[int, Any] = OrderedDict()

    def reaches(self, number: int) -> bool:
        return number >= self.next or number in self._kept

    def get(self, number: int) -> Any:
        while number >= self.next:
            for value in next(self._tables)[self._column]:
                self._kept[self.next] = value
                self.next += 1
            while len(self._kept) > self.keep + READ:
                self._kept.popitem(last=False)
        return self._kept[number]

    def close(self) -> None:
        self._tables.close()  # type: ignore[attr-defined]  # a generator; its file with it


def opened(
    values: Mapping[str, Any], column: str, where: str, load: Callable[..., Opened]
) -> Opened:
    """Return the picture in a column of a row.

    Args:
        values: of the row; in `column` bytes or base64, or `{"bytes": ..., "path": ...}`.
        column: its name; `a.b` is the value `b` inside the object `a`.
        where: the row, for messages.
        load: `load_image` or `load_pixels`.

    Raises:
        DataError: naming the row, if there is none.
    """
    data = picture_bytes(values, column, where)
    try:
        return load(data, name=column)
    except DataError as error:
        raise DataError(f"{where}: {error}", kind=error.kind) from error


def picture_bytes(values: Mapping[str, Any], column: str, where: str) -> bytes:
    """Return the file of a picture, as `opened` takes it.

    Raises:
        DataError: naming the row, if there is none.
    """
    row = Row(where, None, values, "")
    found = lookup(values, column)
    path = found.get("path") if isinstance(found, dict) and not found.get("bytes") else None
    try:
        if path:  # a folder of pictures: the rows name the files
            import fsspec

            with fsspec.open(path, "rb") as file:
                return bytes(file.read())
        data = picture_data(row, column)
        return data if isinstance(data, bytes) else decode_base64(data)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{where}: {path}: {error}", kind="image_missing") from error
    except ValueError as error:
        raise DataError(f"{where}: {error}", kind="image_undecodable") from error
