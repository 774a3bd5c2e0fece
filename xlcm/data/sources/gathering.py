"""Rows with named values (of a table, JSON lines, a data set) -> items of a manifest."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from xlcm.data.languages import language_fault
from xlcm.data.manifest import DataError
from xlcm.data.sources.columns import ORIGINS, ROW, Layout, TextColumn, drawn_split, lookup
from xlcm.registry import nearest
from xlcm.types import Caption, Item, Origin

OnEmpty = Callable[[str], None]
"""Told `file:line` of each caption without text."""


@dataclass(frozen=True)
class Row:
    """One row.

    Args:
        where: `file:line` for messages.
        split: of the file that it is in, where that is known.
        lang: of the file's captions, likewise.
        values: by column.
        name: tells it apart from all other rows: `<file>-<number of the row, from 1>`.
    """

    where: str
    split: str | None
    values: Mapping[str, Any]
    name: str
    lang: str | None = None


@dataclass
class _Open:
    """An item that more rows may belong to."""

    where: str
    split: str
    paths: tuple[str | None, str | None, str | None]  # image, video, feature key
    captions: list[Caption] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def done(self, key: str) -> Item:
        image, video, features = self.paths
        return Item(key, self.split, tuple(self.captions), image, video, features, self.where)


@dataclass
class _Text:
    """One caption of a row, before it has an id."""

    column: str
    lang: str
    origin: Origin
    place: int
    text: str
    made_from: str | None
    id: str = ""


def gather(
    rows: Iterable[Row],
    layout: Layout,
    *,
    on_empty: OnEmpty,
    pictures: Mapping[str, str | None] | None = None,
) -> Iterator[Item]:
    """Yield one item for each id (or picture), in the order of their first rows.

    All captions are in memory until the last row is read, as any row may belong to any item;
    with `id` `@row` none are.

    Args:
        rows: with the columns that the layout names.
        layout: what the columns are.
        on_empty: told of captions without text, which are left out.
        pictures: where they were written, by `file:line`; None for one that was dropped, with
            its row.

    Raises:
        DataError: naming file, line, column and the way out.
    """
    items: dict[str, _Open] = {}
    met: Counter[str] = Counter()
    first: Row | None = None
    for row in rows:
        first = first or row
        if pictures is not None and pictures.get(row.where) is None:
            continue
        met.update(column for column in _columns(layout) if _has(row, column))
        key, paths = identity(row, layout)
        if pictures is not None:
            paths = (pictures[row.where], *paths[1:])
        split = split_of(row, layout, key)
        item = items.get(key) or _Open(row.where, split, paths)
        _same(item, key, split, paths, row)
        item.captions += _captions(row, layout, key, item.counts, on_empty)
        if layout.id == ROW:  # no other row belongs to it; a name that comes again is refused later
            yield item.done(key)
        else:
            items[key] = item
    if first is not None and (pictures is None or any(pictures.values())):
        _all_met(layout, met, first)
    for key, item in items.items():
        yield item.done(key)


def identity(row: Row, layout: Layout) -> tuple[str, tuple[str | None, str | None, str | None]]:
    """Return the id of a row's item, and its image, video and feature key.

    Raises:
        DataError: if a column that names them is missing or empty.
    """
    image = _path(row, layout.image, layout.strip)
    video = _path(row, layout.video, layout.strip)
    features = None if layout.features is None else word(row, layout.features)
    if layout.id == ROW:
        key = row.name
    elif layout.id is not None:
        key = word(row, layout.id)
    else:
        key = os.path.splitext(image or video or "")[0]
    return key, (image, video, features)


def word(row: Row, column: str) -> str:
    """Return a value that must be there, text or a whole number.

    Raises:
        DataError: naming the column, and the nearest one that exists.
    """
    try:
        value = lookup(row.values, column)
    except KeyError:
        raise DataError(f"{row.where}: no {column!r}{_hint(column, row)}") from None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(
            f"{row.where}: {column!r} must be text or a whole number, got {value!r:.60}"
        )
    if not (text := str(value).strip()):
        raise DataError(f"{row.where}: {column!r} is empty")
    return text


def split_of(row: Row, layout: Layout, key: str) -> str:
    """Return the split of a row's item.

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


def _captions(
    row: Row, layout: Layout, key: str, counts: Counter[str], on_empty: OnEmpty
) -> Iterator[Caption]:
    texts = [text for column in layout.texts for text in _texts(row, layout, column)]
    sizes = Counter(text.column for text in texts)
    by_column: dict[tuple[str, int], str] = {}
    sources: dict[int, str] = {}
    for text in texts:
        if not text.text:
            on_empty(row.where)
            continue
        kind = text.lang if text.origin == "human" else f"{text.lang}.{text.origin}"
        text.id = f"{key}#{kind}.{counts[kind]}"
        counts[kind] += 1
        by_column[text.column, text.place] = text.id
        if text.lang == layout.mt_from and text.origin == "human":
            sources.setdefault(text.place, text.id)
    for text in texts:
        if not text.id:
            continue
        of = None
        if (made_from := text.made_from) is not None:
            if sizes[made_from] not in (0, sizes[text.column]):
                raise DataError(
                    f"{row.where}: {text.column!r} has {sizes[text.column]} captions, but "
                    f"{made_from!r} has {sizes[made_from]}: translations are linked by their place"
                )
            of = by_column.get((made_from, text.place))
        elif text.origin == "mt":
            of = sources.get(text.place)
        engine = layout.engine if text.origin != "human" else None
        yield Caption(text.id, text.lang, text.text, text.origin, of, engine)


def _texts(row: Row, layout: Layout, column: TextColumn) -> Iterator[_Text]:
    try:
        value = lookup(row.values, column.column)
    except KeyError:
        return
    for place, (lang, text) in enumerate_places(value, row, column.column, layout.separator):
        code = _lang(lang or column.lang, row, layout, column.column)
        origin = column.origin or _origin(row, layout, code)
        yield _Text(column.column, code, origin, place, text.strip(), column.made_from)


def enumerate_places(
    value: Any, row: Row, column: str, separator: str | None
) -> Iterator[tuple[int, tuple[str | None, str]]]:
    """Yield (place, (language or None, text)) of the captions in one value.

    A value is text, a list of texts, an object of these by language, or a list of such objects.
    Captions of one place say the same in several languages.

    Raises:
        DataError: for anything else.
    """
    if value is None:
        return
    if isinstance(value, str):
        parts = value.split(separator) if separator else [value]
        yield from ((place, (None, part)) for place, part in enumerate(parts))
    elif isinstance(value, list):
        for place, part in enumerate(value):
            for _, found in enumerate_places(part, row, column, None):
                yield place, found
    elif isinstance(value, Mapping):
        for lang, part in value.items():
            for place, (_, text) in enumerate_places(part, row, column, separator):
                yield place, (str(lang), text)
    else:
        raise DataError(f"{row.where}: {column!r} holds no text but {value!r:.60}")


def _lang(lang: str | None, row: Row, layout: Layout, column: str) -> str:
    if lang is None and layout.lang is not None:
        lang = word(row, layout.lang)
    lang = lang or row.lang or layout.one_lang
    if lang is None:
        raise DataError(f"{row.where}: which language is {column!r}? Write --captions "
                        f"LANG={column}, --files SPLIT/LANG=, --lang or --lang-column")  # fmt: skip
    lang = layout.lang_names.get(lang, lang)
    if fault := language_fault(lang):
        raise DataError(f"{row.where}: {column!r}: {fault} (`--lang-names {lang}=CODE` renames)",
                        kind="unknown_language")  # fmt: skip
    return lang


def _origin(row: Row, layout: Layout, lang: str) -> Origin:
    if layout.origin is not None:
        origin = word(row, layout.origin)
        if origin not in ORIGINS:
            raise DataError(f"{row.where}: {layout.origin!r} is one of {', '.join(ORIGINS)}, "
                            f"not {origin!r}{nearest(origin, ORIGINS)}")  # fmt: skip
        return origin
    return "mt" if layout.mt_from is not None and lang != layout.mt_from else "human"


# -- checks over rows ---------------------------------------------------------------------------


def _same(item: _Open, key: str, split: str, paths: tuple[str | None, ...], row: Row) -> None:
    if item.split != split:
        raise DataError(f"{row.where}: item {key!r} is in split {split!r} here, in {item.split!r} "
                        f"at {item.where}; training and test data must not share it")  # fmt: skip
    for name, old, new in zip(("image", "video", "feature key"), item.paths, paths):
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
            file = first.where.rpartition(":")[0]
            raise DataError(f"{file}: no row has {column!r}{_hint(column, first)}")


def _hint(column: str, row: Row) -> str:
    known = [str(name) for name in row.values]
    return nearest(column, known) or f"; there are {', '.join(known)}"
