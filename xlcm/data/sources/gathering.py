"""Rows with named values (of a table, JSON lines, a data set) -> items of a manifest."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import NamedTuple

from xlcm.data.manifest import DataError
from xlcm.data.sources.columns import ROW, Layout, drawn_split, lookup
from xlcm.data.sources.row_captions import OnSkip, Row, captions_of, hint, word
from xlcm.data.sources.several_right import SeveralRight, kept
from xlcm.types import Caption, Item


class Shown(NamedTuple):
    """What a row's item shows; `segment` in seconds, as `Item` has it."""

    image: str | None
    video: str | None
    features: str | None
    segment: tuple[float, float] | None


@dataclass
class _Open:
    """An item that more rows may belong to."""

    where: str
    split: str
    shown: Shown
    captions: list[Caption] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def done(self, key: str) -> Item:
        image, video, features, segment = self.shown
        return Item(key, self.split, tuple(self.captions), image, video, features, self.where,
                    segment)  # fmt: skip


def gather(
    rows: Iterable[Row],
    layout: Layout,
    *,
    on_skip: OnSkip,
    pictures: Mapping[str, str | None] | None = None,
    there: Callable[[Shown], bool] | None = None,
) -> Iterator[Item]:
    """Yield one item for each id (or picture), in the order of their first rows.

    All captions are in memory until the last row is read, as any row may belong to any item;
    with `id` `@row` none are.

    Args:
        rows: with the columns that the layout names.
        layout: what the columns are.
        on_skip: told of captions without text, and of rows without picture; they are left out.
        pictures: where they were written, by `file:line`; None for one that was dropped, with
            its row.
        there: whether an item will be kept; one that won't is no answer to a query. None: all are.

    Raises:
        DataError: naming file, line, column and the way out.
    """
    items: dict[str, _Open] = {}
    met: Counter[str] = Counter()
    first: Row | None = None
    several = None if layout.query is None else SeveralRight(layout.query)
    for row in kept(rows, layout.only, on_skip):
        first = first or row
        if pictures is not None and pictures.get(row.where) is None:
            on_skip(row.where, "rows whose picture can't be read")
            continue
        met.update(column for column in _columns(layout) if _has(row, column))
        key, shown = identity(row, layout)
        if pictures is not None:
            shown = shown._replace(image=pictures[row.where])
        # parts of one video fall into one split
        drawn_by = key if shown.segment is None else str(shown.video)
        split = split_of(row, layout, drawn_by)
        item = items.get(key) or _Open(row.where, split, shown)
        _same(item, key, split, shown, row)
        captions = captions_of(row, layout, key, item.counts, on_skip)
        if several is not None:
            captions = several.take(row, split, key, captions)
        if several is None or there is None or there(shown):
            item.captions += captions
        if layout.id == ROW:  # no other row belongs to it; a name that comes again is refused later
            yield item.done(key)
        else:
            items[key] = item
    if first is not None and (pictures is None or any(pictures.values())):
        _all_met(layout, met, first)
    for key, item in items.items():
        yield item.done(key) if several is None else several.done(item.done(key))


def identity(row: Row, layout: Layout) -> tuple[str, Shown]:
    """Return the id of a row's item, and what it shows.

    Raises:
        DataError: if a column that names them is missing or empty, or times are none.
    """
    image = _path(row, layout.image, layout.strip)
    video = _path(row, layout.video, layout.strip)
    features = None if layout.features is None else word(row, layout.features)
    segment = _segment(row, layout)
    if layout.id == ROW:
        key = row.name
    elif layout.id is not None:
        key = word(row, layout.id)
    else:
        key = os.path.splitext(image or video or "")[0]
        key += f"@{segment[0]:.10g}-{segment[1]:.10g}" if segment else ""
    return key, Shown(image, video, features, segment)


def split_of(row: Row, layout: Layout, key: str) -> str:
    """Return the split of a row's item, drawn by `key` where it is to be drawn.

    Raises:
        DataError: if nothing says it.
    """
    if layout.split is not None:
        split: str | None = word(row, layout.split)
    else:
        split = row.split or layout.one_split
    if split is None:
        raise DataError(f"{row.where}: which split? Write --files train=FILE, or give --split, "
                        "--split-column or --hold-out")  # fmt: skip
    split = layout.split_names.get(split, split)
    return drawn_split(key, layout.hold_out) or split if split == "train" else split


# -- parts of a row -----------------------------------------------------------------------------


def _path(row: Row, column: str | None, strip: str) -> str | None:
    if column is None:
        return None
    path = word(row, column).replace("\\", "/")
    if "://" in path[:12]:
        raise DataError(f"{row.where}: {column!r} is a URL, and nothing is fetched here: download "
                        "the pictures, and give their paths in a column")  # fmt: skip
    return path.removeprefix(strip).removeprefix("./")


def _segment(row: Row, layout: Layout) -> tuple[float, float] | None:
    if layout.start is None or layout.end is None:
        return None
    start, end = (_seconds(row, column) for column in (layout.start, layout.end))
    if not 0 <= start < end:
        raise DataError(f"{row.where}: it begins at {start:g} s ({layout.start!r}) and ends at "
                        f"{end:g} s ({layout.end!r})")  # fmt: skip
    return start, end


def _seconds(row: Row, column: str) -> float:
    try:
        value = lookup(row.values, column)
    except KeyError:
        raise DataError(f"{row.where}: no {column!r}{hint(column, row)}") from None
    try:
        seconds = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        seconds = float("nan")
    if not isfinite(seconds):
        raise DataError(f"{row.where}: {column!r} must be a number of seconds, such as 62.5, got "
                        f"{value!r:.60}")  # fmt: skip
    return seconds


# -- checks over rows ---------------------------------------------------------------------------


def _same(item: _Open, key: str, split: str, shown: Shown, row: Row) -> None:
    if item.split != split:
        raise DataError(f"{row.where}: item {key!r} is in split {split!r} here, in {item.split!r} "
                        f"at {item.where}; training and test data must not share it")  # fmt: skip
    for name, old, new in zip(("image", "video", "feature key", "segment"), item.shown, shown):
        if old != new:
            raise DataError(f"{row.where}: item {key!r} has the {name} {new!r} here, {old!r} at "
                            f"{item.where}; give --id a column that tells them apart")  # fmt: skip


def _columns(layout: Layout) -> list[str]:
    return [*layout.single, *(text.column for text in layout.texts)]


def _has(row: Row, column: str) -> bool:
    try:
        lookup(row.values, column)
    except KeyError:
        return False
    return True


def _all_met(layout: Layout, met: Counter[str], first: Row) -> None:
    """Refuse a column that no row has: misspelt, it would be lost unseen."""
    for column in _columns(layout):
        if not met[column]:
            file = first.where.rpartition(":")[0] or first.where
            raise DataError(f"{file}: no row has {column!r}{hint(column, first)}")
