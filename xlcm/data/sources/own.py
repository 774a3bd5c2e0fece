"""What the readers of a user's own files share: files and splits, pictures, the import itself."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from xlcm.data.manifest import DataError
from xlcm.data.sources.base import Need, Plan, Skipped, add_common, run_import
from xlcm.data.sources.columns import (
    ROW,
    Layout,
    add_bad_pictures,
    lookup,
    read_files,
    read_layout,
)
from xlcm.data.sources.gathering import Shown, gather, identity
from xlcm.data.sources.image_paths import Pictures
from xlcm.data.sources.pictures import PictureFolder, safe_name
from xlcm.data.sources.row_captions import Row
from xlcm.data.sources.several_right import kept
from xlcm.data.sources.text_lines import find
from xlcm.types import Item

Read: TypeAlias = Callable[[Path, "str | None"], Iterator[Row]]


def add_own(parser: argparse.ArgumentParser) -> None:
    """Declare `run_import`'s options, and which files are read."""
    add_common(parser)
    add_files(parser)


def add_files(parser: argparse.ArgumentParser) -> None:
    """Declare which files are read."""
    parser.add_argument("--files", nargs="+", required=True, metavar="[SPLIT[/LANG]=]FILE",
                        help="below --root, plain or .gz; * stands for any name")  # fmt: skip


def add_pictures(parser: argparse.ArgumentParser) -> None:
    """Declare what is done with pictures that come inside the data."""
    parser.add_argument("--no-pictures", action="store_true",
                        help="don't unpack them: features are keyed by id")  # fmt: skip
    add_bad_pictures(parser)


def pictures_folder(out: str | Path) -> Path:
    """Return where pictures are written: `<name of the manifest>_images` beside it."""
    return Path(out).parent / f"{Path(out).stem}_images"


def run_own(args: argparse.Namespace, read: Read, *, title: str) -> int:
    """Import files of rows.

    Args:
        args: of `add_own` and `add_columns`.
        read: takes a file and its split.
        title: what the files are.

    Raises:
        DataError: naming file, line and the way out.
    """
    layout, root = read_layout(args), Path(args.root)
    files = read_files(args.files, root)

    def rows() -> Iterator[Row]:
        for file in files:
            for row in read(find(root, file.path), file.split):
                yield replace(row, lang=file.lang) if file.lang else row

    needs = tuple(Need(file.path, file.split or "rows") for file in files)
    return run_rows(args, rows, layout, title=title, needs=needs)


def run_rows(
    args: argparse.Namespace,
    rows: Callable[[], Iterator[Row]],
    layout: Layout,
    *,
    title: str,
    needs: tuple[Need, ...] = (),
) -> int:
    """Import rows; pictures among their values are written first.

    Raises:
        DataError: naming file, line and the way out.
    """
    skipped = Skipped()
    pictures: dict[str, str | None] | None = None
    if layout.picture is not None:
        folder = PictureFolder(pictures_folder(args.out), drop=args.bad_pictures == "drop")
        pictures = unpack(kept(rows(), layout.only, lambda *_: None), layout, folder)
        args.images = str(folder.folder)
    there = None
    if layout.query is not None and args.images is not None and args.missing_images == "drop":
        files = Pictures(args.images, args.out, "drop", more=args.more_images)

        def there(shown: Shown) -> bool:
            return files.place(Item("", "", (), shown.image, shown.video)) is not None

    def items() -> Iterator[Item]:
        return gather(rows(), layout, on_skip=skipped.add, pictures=pictures, there=there)

    plan = Plan(
        name=args.source,
        title=f"your {title}",
        get="they are your own: check --root and the names.",
        terms="Yours.",
        cite="-",
        needs=needs,
        items=items,
        skipped=skipped,
    )
    return run_import(plan, args)


def unpack(rows: Iterator[Row], layout: Layout, folder: PictureFolder) -> dict[str, str | None]:
    """Write the picture of each row; return its path below the folder, or None, by `file:line`.

    Rows of one item have one picture, which is written once.

    Raises:
        DataError: for a row without picture data, or data that is no picture.
    """
    from xlcm.data.tables import say

    assert layout.picture is not None
    saved: dict[str, str | None] = {}
    for row in rows:
        key, _ = identity(row, layout)
        name = safe_name(key)
        if layout.id == ROW:  # millions of files in one folder are slow to list
            file, _, number = key.rpartition("-")
            name = f"{safe_name(file)}/{number}"
        saved[row.where] = folder.save(name, picture_data(row, layout.picture), row.where)
    say(folder.tell())
    return saved


def picture_data(row: Row, column: str) -> bytes | str:
    """Return the bytes or base64 in a column; `{"bytes": ...}` as `datasets` has it counts too.

    Raises:
        DataError: if there is none.
    """
    try:
        data = lookup(row.values, column)
    except KeyError:
        raise DataError(f"{row.where}: no {column!r}; there are {', '.join(row.values)}") from None
    if isinstance(data, dict):
        data = data.get("bytes")
    if isinstance(data, bytearray | memoryview):
        data = bytes(data)
    if not isinstance(data, bytes | str):
        raise DataError(f"{row.where}: {column!r} holds no bytes or base64 but {data!r:.60}")
    return data
