"""Your own JSON lines, or a JSON list of objects (as CCLM's), captions by key or by language."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from xlcm.data.manifest import DataError
from xlcm.data.sources.columns import add_columns, add_joining
from xlcm.data.sources.row_captions import Row
from xlcm.data.sources.text_lines import iter_lines, read_json, read_jsonl


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `xlcm data import jsonl`."""
    from xlcm.data.sources.own import add_own

    add_own(parser)
    add_columns(parser, pictures=True)
    add_joining(parser)


def run(args: argparse.Namespace) -> int:
    """Import; exit code as of `run_import`."""
    from xlcm.data.sources.own import run_own

    return run_own(args, read_objects, title="JSON lines")


def read_objects(path: Path, split: str | None = None) -> Iterator[Row]:
    """Yield the objects of a file; a list (`[` comes first) is read whole, lines one at a time.

    Raises:
        DataError: as `file:line`, or `file: entry n` (from 0) for a list.
    """
    stem = Path(path).name.partition(".")[0]
    begin = next((line.lstrip()[:1] for _, line in iter_lines(path) if line.strip()), "")
    if not begin:
        raise DataError(f"{path}: the file is empty")
    if begin != "[":
        for count, (number, row) in enumerate(read_jsonl(path), 1):
            yield Row(f"{path}:{number}", split, row, f"{stem}-{count}")
        return
    for number, row in enumerate(read_json(path)):
        where = f"{path}: entry {number}"
        if type(row) is not dict:
            raise DataError(f"{where}: expected an object {{...}}, got {row!r:.60}")
        yield Row(where, split, row, f"{stem}-{number + 1}")
