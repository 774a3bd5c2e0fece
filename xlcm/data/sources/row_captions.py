"""The captions in one row of named values, with ids, languages, origins and links."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from xlcm.data.languages import language_fault
from xlcm.data.manifest import DataError
from xlcm.data.sources.columns import ORIGINS, Layout, TextColumn, lookup
from xlcm.registry import nearest
from xlcm.types import Caption, Origin

OnSkip = Callable[..., None]
"""Told `file:line` of each caption without text, and of other things with their name."""


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
class _Text:
    """One caption of a row, before it has an id."""

    column: str
    lang: str
    origin: Origin
    place: int
    text: str
    made_from: str | None
    id: str = ""


def word(row: Row, column: str) -> str:
    """Return a value that must be there, text or a whole number.

    Raises:
        DataError: naming the column, and the nearest one that exists.
    """
    try:
        value = lookup(row.values, column)
    except KeyError:
        raise DataError(f"{row.where}: no {column!r}{hint(column, row)}") from None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(
            f"{row.where}: {column!r} must be text or a whole number, got {value!r:.60}"
        )
    if not (text := str(value).strip()):
        raise DataError(f"{row.where}: {column!r} is empty")
    return text


def hint(column: str, row: Row) -> str:
    """Return the nearest column that a row has, or all of them, as the end of a message."""
    known = [str(name) for name in row.values]
    return nearest(column, known) or f"; there are {', '.join(known)}"


def captions_of(
    row: Row, layout: Layout, key: str, counts: Counter[str], on_skip: OnSkip
) -> Iterator[Caption]:
    """Yield the captions of one row, translations linked to what they were made from.

    Args:
        row: with the columns that the layout names.
        layout: what the columns are.
        key: of the item.
        counts: of its captions so far by kind, from which they are numbered; is changed.
        on_skip: told of captions without text, which are left out.

    Raises:
        DataError: naming file, line, column and the way out.
    """
    texts = [text for column in layout.texts for text in _texts(row, layout, column)]
    sizes = Counter(text.column for text in texts)
    by_column: dict[tuple[str, int], str] = {}
    sources: dict[int, str] = {}
    for text in texts:
        if not text.text:
            on_skip(row.where)
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
