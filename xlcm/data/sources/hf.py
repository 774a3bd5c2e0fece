"""A Hugging Face `datasets` data set: a folder of `save_to_disk`, of Parquet files, or the hub."""

from __future__ import annotations

import argparse
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from xlcm.data.manifest import DataError
from xlcm.data.sources.columns import Layout, add_columns, add_joining, read_layout
from xlcm.data.sources.row_captions import Row
from xlcm.registry import nearest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `xlcm data import hf`."""
    from xlcm.data.sources.base import add_common

    add_common(parser)
    parser.add_argument("--hub", metavar="NAME", help="download this data set into --root first; "
                        "without it nothing is fetched")  # fmt: skip
    parser.add_argument("--config", metavar="NAME", help="of a data set that has several")
    parser.add_argument("--splits", nargs="+", help="only these (default: all)")
    add_columns(parser, pictures=True)
    add_joining(parser)


def run(args: argparse.Namespace) -> int:
    """Import; exit code as of `run_import`."""
    from xlcm.data.sources.own import run_rows

    layout = read_layout(args)
    if args.hub is not None:
        Path(args.root).mkdir(parents=True, exist_ok=True)
    parts = open_parts(args.root, hub=args.hub, config=args.config)
    if unknown := sorted(set(args.splits or ()) - parts.keys()):
        raise DataError(f"{args.root}: no split {unknown[0]!r}{nearest(unknown[0], parts)}; there "
                        f"are {', '.join(parts)}")  # fmt: skip
    kept = {name: part for name, part in parts.items() if not args.splits or name in args.splits}

    def rows() -> Iterator[Row]:
        for split, part in kept.items():
            yield from read_part(part, split, layout, args.hub or args.root)

    return run_rows(args, rows, layout, title="data set")


def open_parts(
    root: str | Path, *, hub: str | None = None, config: str | None = None
) -> dict[str, Any]:
    """Return the splits of a data set by name.

    Args:
        root: written by `save_to_disk`, or files that `load_dataset` knows; with `hub` the folder
            that the download is kept in.
        hub: name of the data set on the hub.
        config: of a data set that has several.

    Raises:
        DataError: if it can't be opened.
        ImportError: naming the extra, if `datasets` is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError("this needs `datasets`: pip install 'xlcm[stream]'") from error

    root = Path(root)
    if hub is None and not root.is_dir():
        raise DataError(f"{root}: no such folder; a data set of the hub is fetched by --hub NAME")
    saved = any((root / name).is_file() for name in ("dataset_dict.json", "state.json"))
    try:
        if hub is not None:
            opened = datasets.load_dataset(hub, config, cache_dir=str(root))
        elif saved:
            opened = datasets.load_from_disk(str(root))
        else:
            opened = datasets.load_dataset(str(root), config)
    except (ValueError, OSError, KeyError, datasets.exceptions.DatasetGenerationError) as error:
        raise DataError(f"{hub or root}: `datasets` can't open it: {reason(error)}") from error
    if isinstance(opened, Mapping):
        return {str(name): part for name, part in opened.items()}
    return {str(opened.split or "rows"): opened}


def read_part(
    part: Any, split: str, layout: Layout, name: str, *, skip: int = 0, numbered_from: int = 0
) -> Iterator[Row]:
    """Yield the rows of one split; columns that the layout doesn't name are never decoded.

    Args:
        part: the split, or a stream of it.
        split: its name.
        layout: what the columns are.
        name: of the data set, for messages.
        skip: rows that are passed over.
        numbered_from: how many rows come before the part, in the numbers of rows.

    Raises:
        DataError: for a column that isn't there, or files that can't be read.
    """
    tops = top_columns(part, split, [*layout.single, *(text.column for text in layout.texts)], name)
    part = undecoded(part.select_columns(tops))
    if layout.image is not None and _is_picture(part, layout.image):
        raise DataError(f"{name}: {layout.image!r} holds pictures, not paths: --picture-data "
                        f"{layout.image} instead of --image")  # fmt: skip
    known = None if split == "rows" else split
    number = numbered_from + skip
    try:
        for values in part.skip(skip) if skip else part:
            number += 1
            yield Row(f"{name}, {split} row {number}", known, values, f"{split}-{number}")
    except (OSError, ValueError) as error:  # of the files, not of who takes the rows
        raise ReadError(
            f"{name}, {split}, behind row {number}: `datasets` can't read on: {reason(error)}"
        ) from error


def reason(error: BaseException) -> str:
    """Return what `datasets` stumbled over, and the file that it was reading, if that can be told.

    Its own message may say neither: "An error occurred while generating the dataset".
    """
    chain = [error]
    while (before := chain[-1].__cause__) is not None:
        chain.append(before)
    told = next((e for e in chain if type(e).__name__ != "DatasetGenerationError"), error)
    files = [
        frame.f_locals.get("file")
        for one in chain
        for frame, _ in traceback.walk_tb(one.__traceback__)
        if "packaged_modules" in frame.f_code.co_filename
    ]
    named = [file for file in files if isinstance(file, str)]
    said = f"{named[-1]}: {told}" if named and named[-1] not in str(told) else str(told)
    if isinstance(told, UnicodeDecodeError):
        said += " (not UTF-8; `iconv -f latin1 -t utf-8` may help)"
    return said


class ReadError(DataError):
    """A data set that can't be read on; a second try may help."""


def top_columns(part: Any, split: str, wanted: Iterable[str], name: str) -> list[str]:
    """Return the columns that hold the wanted ones: `a` for `a.b`.

    Raises:
        DataError: for a column that isn't there.
    """
    tops: list[str] = []
    for column in wanted:
        top = column if column in part.column_names else column.partition(".")[0]
        if top not in part.column_names:
            raise DataError(f"{name}, split {split!r}: no column {column!r}"
                            f"{nearest(column, part.column_names)}; there are "
                            f"{', '.join(part.column_names)}")  # fmt: skip
        tops += [top] if top not in tops else []
    return tops


def undecoded(part: Any) -> Any:
    """Return a data set whose pictures come as the bytes of their files."""
    import datasets

    for column in part.column_names:
        if _is_picture(part, column):
            part = part.cast_column(column, datasets.Image(decode=False))
    return part


def _is_picture(part: Any, column: str) -> bool:
    import datasets

    return isinstance(part.features.get(column), datasets.Image)
