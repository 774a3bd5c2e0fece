"""Your own table: CSV or TSV, one caption a row or several columns a language."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from xlcm.data.manifest import DataError
from xlcm.data.sources.columns import add_columns, add_joining
from xlcm.data.sources.row_captions import Row
from xlcm.data.sources.text_lines import iter_lines

TAB_ENDINGS = (".tsv", ".tab")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `xlcm data import csv`."""
    from xlcm.data.sources.own import add_own

    add_own(parser)
    add_columns(parser, pictures=True)
    add_joining(parser)
    parser.add_argument("--delimiter", help="between cells (default: a tab in .tsv, else a comma)")
    parser.add_argument("--quotes", action=argparse.BooleanOptionalAction, default=None,
                        help="cells may be quoted (default: no in .tsv, else yes)")  # fmt: skip
    parser.add_argument("--header", nargs="+", metavar="COLUMN",
                        help="names of the columns of a file that has no header line")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Import; exit code as of `run_import`."""
    from xlcm.data.sources.own import run_own

    delimiter = None if args.delimiter is None else args.delimiter.replace("\\t", "\t")
    if delimiter is not None and len(delimiter) != 1:
        raise DataError(f"--delimiter {args.delimiter!r}: one character is expected")

    def rows(path: Path, split: str | None) -> Iterator[Row]:
        return read_table(path, split, delimiter=delimiter, quotes=args.quotes, header=args.header)

    return run_own(args, rows, title="table")


def read_table(
    path: Path,
    split: str | None = None,
    *,
    delimiter: str | None = None,
    quotes: bool | None = None,
    header: Sequence[str] | None = None,
) -> Iterator[Row]:
    """Yield the rows of a CSV or TSV file, plain or .gz, one in memory at a time.

    Args:
        path: UTF-8, with or without byte-order mark, any line ends.
        split: given to each row.
        delimiter: None: a tab in `.tsv` and `.tab`, else a comma.
        quotes: whether cells may stand in quotes, with delimiters and line breaks inside them;
            None: not in files with tabs, where a quote is a character like others.
        header: names of the columns; None: the first line has them.

    Raises:
        DataError: as `file:line`; for a row, the line that it begins in.
    """
    tabs = Path(path).name.lower().removesuffix(".gz").endswith(TAB_ENDINGS)
    delimiter = delimiter or ("\t" if tabs else ",")
    quotes = (delimiter != "\t") if quotes is None else quotes
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # pictures in base64 are long
    reader = csv.reader(
        (line + "\n" for _, line in iter_lines(path)),
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE,
        strict=True,
    )
    names = list(header) if header else None
    stem = Path(path).name.partition(".")[0]
    number = 0
    while True:
        begins = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            hint = "" if not quotes else "; is a quote never closed? (--no-quotes: quotes are text)"
            if str(error).startswith("new-line character"):
                error = csv.Error("a carriage return within a line")
                hint = "; if lines end in those alone, convert the file with `tr '\\r' '\\n'`"
            raise DataError(f"{path}:{begins}: {error}{hint}") from error
        where = f"{path}:{begins}"
        if not cells or cells == [""]:
            continue
        if names is None:
            names = _names(cells, where)
            other = next((mark for mark in "\t;|," if mark in names[0]), None)
            if len(names) == 1 and other is not None:
                shown = "$'\\t'" if other == "\t" else f"'{other}'"
                raise DataError(f"{where}: one column, {names[0]!r}: is it {shown} that stands "
                                f"between cells (--delimiter {shown})?")  # fmt: skip
        elif len(cells) != len(names):
            raise DataError(f"{where}: {len(cells)} cells, expected {len(names)} "
                            f"({', '.join(names)}){_reason(cells, delimiter, quotes)}")  # fmt: skip
        else:
            number += 1
            yield Row(where, split, dict(zip(names, cells)), f"{stem}-{number}")
    if names is None:
        raise DataError(f"{path}: the file is empty; it needs a header line")
    if not number:
        raise DataError(f"{path}: there are no rows below the header {', '.join(names)!r:.80}")


def _names(cells: Sequence[str], where: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{where}: two columns are called {twice[0]!r}; if this is no header, name "
                        "the columns with --header")  # fmt: skip
    return names


def _reason(cells: Sequence[str], delimiter: str, quotes: bool) -> str:
    shown = "a tab" if delimiter == "\t" else repr(delimiter)
    if len(cells) == 1:
        return f"; is {shown} what stands between cells (--delimiter)?"
    way = " the cell must stand in quotes" if quotes else " take it out, or use --quotes"
    return f"; where text holds {shown},{way}"
