"""One line of a manifest: from JSON to an item with every check, and back.

The usual line takes the short way through the functions here, since a manifest of millions is read
once an epoch; whatever looks odd is looked at again slowly, to say what is wrong with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from math import isfinite
from typing import Any, NoReturn

from xlcm.data.json_faults import told
from xlcm.registry import nearest
from xlcm.types import Caption, Item

REQUIRED_ITEM = ("id", "split", "captions")
ITEM_KEYS = frozenset({*REQUIRED_ITEM, "image", "video", "segment", "features"})
REQUIRED_CAPTION = ("id", "lang", "text")
CAPTION_KEYS = frozenset(
    {*REQUIRED_CAPTION, "origin", "of", "engine", "noise", "quality", "relevant"}
)
ORIGINS = frozenset({"human", "mt", "back"})

_decode = json.JSONDecoder().decode
_scan: Any = json.JSONDecoder().scan_once  # type: ignore[attr-defined]
_text_or_none = frozenset({str, type(None)})
_new = object.__new__


# A frozen class sets each field through `object.__setattr__`, which takes as long as all the rest.
# An object of the same slots without the guard is filled in a tenth, and then told its class.


class _OpenCaption:
    __slots__ = tuple(field.name for field in fields(Caption))


class _OpenItem:
    __slots__ = tuple(field.name for field in fields(Item))


class DataError(ValueError):
    """Data that can't be used; the message names the file and line, the reason, the way out.

    Args:
        kind: which fault of `xlcm.data.faults.KINDS` it is, for counting.
    """

    def __init__(self, message: str, *, kind: str = "bad_line") -> None:
        super().__init__(message)
        self.kind = kind


# -- reading ------------------------------------------------------------------------------------


def parse_item(raw: bytes, where: str = "") -> Item:
    """Return the item that one line describes, its types and keys checked.

    Args:
        raw: the line in UTF-8.
        where: `file:line`, for messages.

    Raises:
        DataError: naming `where`, the key, what came and what was expected.
    """
    try:
        text = raw.decode()
        row, end = _scan(text, 0)
        if end < len(text) and not text[end:].isspace():
            row = _row(raw, where)
    except (ValueError, StopIteration, RecursionError):
        row = _row(raw, where)
    if b"\\" in raw and (b"\\ud" in raw or b"\\uD" in raw):  # to look for one byte is far faster
        refuse_halves(row, where)
    if type(row) is not dict:
        _fail(where, f"expected an object {{...}}, got {_kind(row)}")
    if not row.keys() <= ITEM_KEYS:
        _unknown(row, ITEM_KEYS, where, "")
    try:
        identity, split, captions = row["id"], row["split"], row["captions"]
    except KeyError as error:
        _fail(where, f"key {error} is missing; an item needs {', '.join(REQUIRED_ITEM)}")
    if type(identity) is not str or type(split) is not str or not identity or not split:
        name = "id" if type(identity) is not str or not identity else "split"
        _fail(where, f"{name!r} must be text that is not empty, got {_kind(row[name])}")
    if type(captions) is not list:
        _fail(where, f"'captions' must be a list, got {_kind(captions)}")
    image, video, features = row.get("image"), row.get("video"), row.get("features")
    if not (
        (image is None or type(image) is str) and (video is None or type(video) is str)
        and (features is None or type(features) is str)
    ):  # fmt: skip
        name = next(n for n in ("image", "video", "features")
                    if type(row.get(n)) not in _text_or_none)  # fmt: skip
        _fail(where, f"{name!r} must be text, got {_kind(row[name])}")
    item: Any = _new(_OpenItem)
    item.id, item.split = identity, split
    item.captions = tuple(_captions(captions, where, identity))
    item.image, item.video, item.features, item.where = image, video, features, where
    segment = row.get("segment")
    item.segment = None if segment is None else _segment(segment, video, where)
    item.__class__ = Item
    return item


def _segment(times: Any, video: str | None, where: str) -> tuple[float, float]:
    numbers = type(times) is list and [type(t) in (int, float) for t in times] == [True, True]
    if not numbers or not 0 <= times[0] < times[1] or not isfinite(times[1]):
        _fail(where, "'segment' must be [start, end] in seconds, 0 <= start < end, got "
              f"{_kind(times)}")  # fmt: skip
    if video is None:
        _fail(where, "'segment' is a part of a `video`, and the item has none")
    return float(times[0]), float(times[1])


def _row(raw: bytes, where: str) -> Any:
    """Read the JSON of a line that has something odd about it."""
    try:
        return _decode(raw.decode("utf-8").strip())
    except UnicodeDecodeError as error:
        _fail(where, f"not UTF-8 at byte {error.start} of the line (0x{raw[error.start]:02x}); "
              "convert the file, for example with `iconv -t utf-8`", "not_utf8")  # fmt: skip
    except json.JSONDecodeError as error:
        _fail(where, told(error))
    except ValueError as error:  # a number of too many digits
        _fail(where, f"not JSON: {error}")
    except RecursionError:
        _fail(where, "not a manifest line: too many brackets inside one another")


def _captions(rows: list[Any], where: str, owner: str) -> Iterator[Caption]:
    for position, row in enumerate(rows):
        if type(row) is not dict:
            _fail(where, f"captions[{position}] must be an object {{...}}, got {_kind(row)}")
        try:
            identity, lang, text = row["id"], row["lang"], row["text"]
        except KeyError as error:
            if not row.keys() <= CAPTION_KEYS:
                _unknown(row, CAPTION_KEYS, where, f"captions[{position}].")
            needs = ", ".join(REQUIRED_CAPTION)
            _fail(where, f"captions[{position}]: key {error} is missing; a caption needs {needs}")
        if len(row) == 4 and "origin" in row:  # then no other key is there
            origin, of, engine, noise, quality = row["origin"], None, None, None, None
            relevant = None
        else:
            if not row.keys() <= CAPTION_KEYS:
                _unknown(row, CAPTION_KEYS, where, f"captions[{position}].")
            get = row.get
            origin, of, engine = get("origin", "human"), get("of"), get("engine")
            noise, quality, relevant = get("noise"), get("quality"), get("relevant")
        if not (
            type(identity) is str and identity and type(lang) is str and type(text) is str
            and (of is None or type(of) is str) and (engine is None or type(engine) is str)
        ):  # fmt: skip
            _wrong_type(row, where, position)
        if origin != "human" and (type(origin) is not str or origin not in ORIGINS):
            _fail(where, f"captions[{position}].origin must be one of human, mt, back, got "
                  f"{origin!r}" + nearest(str(origin), ORIGINS))  # fmt: skip
        caption: Any = _new(_OpenCaption)
        caption.id, caption.lang, caption.text = identity, lang, text
        caption.origin, caption.of, caption.engine = origin, of, engine
        caption.noise = () if noise is None else _noise(noise, where, position)
        caption.quality = () if quality is None else _quality(quality, where, position)
        caption.relevant = () if relevant is None else _relevant(relevant, where, position, owner)
        caption.__class__ = Caption
        yield caption


def _wrong_type(row: dict[str, Any], where: str, position: int) -> NoReturn:
    for name in ("id", "lang", "text", "of", "engine"):
        optional = name in ("of", "engine")
        if type(row.get(name)) not in (_text_or_none if optional else (str,)):
            _fail(where, f"captions[{position}].{name} must be text, got {_kind(row.get(name))}")
    _fail(where, f"captions[{position}].id is empty")


def _noise(noise: Any, where: str, position: int) -> tuple[str, ...]:
    if type(noise) is not list or not all(type(kind) is str for kind in noise):
        _fail(where, f"captions[{position}].noise must be a list of words, got {noise!r}")
    return tuple(noise)


def _quality(quality: Any, where: str, position: int) -> tuple[tuple[str, float | str], ...]:
    place = f"captions[{position}].quality"
    if type(quality) is not dict:
        _fail(where, f"{place} must be names with numbers or words, got {_kind(quality)}")
    for name, value in quality.items():
        kind = type(value)
        if kind is float:
            if not isfinite(value):
                _fail(where, f"{place}.{name} is {value}, which is no number that JSON knows or a "
                      "bound can be set for; leave the signal out")  # fmt: skip
        elif kind is not int and kind is not str:
            _fail(where, f"{place} must be names with numbers or words, got {_kind(quality)}")
    return tuple(quality.items())


def _relevant(ids: Any, where: str, position: int, owner: str) -> tuple[str, ...]:
    place = f"captions[{position}].relevant"
    if type(ids) is not list or not all(type(one) is str and one for one in ids):
        _fail(where, f"{place} must be a list of ids of items, got {_kind(ids)}")
    if len({owner, *ids}) <= len(ids):
        twice = next(one for n, one in enumerate([owner, *ids]) if one in [owner, *ids][:n])
        _fail(where, f"{place} names {twice!r} " + ("twice" if twice != owner else
              "itself, the item that the caption stands at: leave it out"))  # fmt: skip
    return tuple(ids)


def refuse_halves(row: Any, where: str) -> None:
    """Refuse text with one half of a surrogate pair, which UTF-8 has no bytes for.

    Args:
        row: what a line holds, all of it or a part.
        where: `file:line`, for the message.

    Raises:
        DataError: naming `where` and the key.
    """
    todo = [("", row)]
    while todo:
        key, value = todo.pop()
        if type(value) is dict:
            for name, inner in value.items():
                inside = f"{key}.{name}" if key else name
                todo += [(inside, inner), (f"the name {inside}", name)]
        elif type(value) is list:
            todo += [(f"{key}[{n}]", inner) for n, inner in enumerate(value)]
        elif type(value) is str:
            try:
                value.encode()
            except UnicodeEncodeError as error:
                half = f"U+{ord(value[error.start]):04X}"
                _fail(where, f"{ascii(key)[1:-1]} has {half} at {error.start}, half of a "
                      "character, which UTF-8 can't hold; write the text anew",
                      "lone_surrogate")  # fmt: skip


def _unknown(row: dict[str, Any], known: frozenset[str], where: str, inside: str) -> NoReturn:
    key = sorted(row.keys() - known)[0]
    hint = nearest(key, sorted(known)) or f"; known: {', '.join(sorted(known))}"
    _fail(where, f"unknown key {inside + key!r}{hint}")


def _fail(where: str, what: str, kind: str = "bad_line") -> NoReturn:
    raise DataError(f"{where}: {what}", kind=kind) from None


def _kind(value: Any) -> str:
    words = {dict: "an object", list: "a list", str: "text", bool: "true or false",
             int: "a number", float: "a number", type(None): "null"}  # fmt: skip
    shown = json.dumps(value, ensure_ascii=False)
    return f"{words[type(value)]}: {shown if len(shown) < 60 else shown[:57] + '...'}"


# -- writing ------------------------------------------------------------------------------------


def to_line(item: Item, where: str = "") -> bytes:
    """Return the manifest line of an item, newline included.

    Raises:
        DataError: if no reader would accept it.
    """
    row: dict[str, Any] = {"id": item.id, "split": item.split}
    row.update(
        {k: v for k in ("image", "video", "features") if (v := getattr(item, k)) is not None}
    )
    if item.segment is not None:
        row["segment"] = list(item.segment)
    row["captions"] = [
        {
            "id": caption.id, "lang": caption.lang, "text": caption.text, "origin": caption.origin,
            **{k: v for k in ("of", "engine") if (v := getattr(caption, k)) is not None},
            **({"noise": list(caption.noise)} if caption.noise else {}),
            **({"quality": dict(caption.quality)} if caption.quality else {}),
            **({"relevant": list(caption.relevant)} if caption.relevant else {}),
        }
        for caption in item.captions
    ]  # fmt: skip
    try:
        line = json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        refuse_halves(row, f"{where}: item {item.id!r} can't be written")
        raise
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: item {item.id!r} can't be written: {error}") from error
    parse_item(line, where)
    return line + b"\n"
