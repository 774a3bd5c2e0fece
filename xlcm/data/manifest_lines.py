"""One line of a manifest: from JSON to an item with every check, and back.

msgspec reads the usual line, since a manifest of millions is read once an epoch; a line that it
refuses is looked at again slowly, to say what is wrong with it.
"""

from __future__ import annotations

import json
from math import isfinite
from typing import Any, NoReturn

from msgspec import ValidationError, convert
from msgspec.json import Decoder
from msgspec.structs import force_setattr

from xlcm.data.json_faults import told
from xlcm.registry import nearest
from xlcm.types import Item

REQUIRED_ITEM = ("id", "split", "captions")
ITEM_KEYS = frozenset({*REQUIRED_ITEM, "image", "video", "segment", "features"})
REQUIRED_CAPTION = ("id", "lang", "text")
CAPTION_KEYS = frozenset(
    {*REQUIRED_CAPTION, "origin", "of", "engine", "noise", "quality", "relevant"}
)
ORIGINS = frozenset({"human", "mt", "back"})

_decode = json.JSONDecoder().decode
_decode_item = Decoder(Item).decode
_text_or_none = frozenset({str, type(None)})


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
        item = _decode_item(raw)
    except (ValueError, RecursionError):  # of msgspec's own, which knows no file and few reasons
        item = _slowly(raw, where)
    for position, caption in enumerate(item.captions):
        if caption.relevant:
            _check_relevant(caption.relevant, f"{where}: captions[{position}]", item.id)
    if item.segment is not None:
        _check_segment(item, where)
    force_setattr(item, "where", where)  # nobody else has the item yet
    return item


def _slowly(raw: bytes, where: str) -> Item:
    """Say what is wrong with a line; read it, if it only has keys that are null."""
    row = _row(raw, where)
    refuse_halves(row, where)
    _check_item(row, where)
    row = {key: value for key, value in row.items() if value is not None}
    row["captions"] = [
        {key: value for key, value in caption.items() if value is not None}
        for caption in row["captions"]
    ]
    try:
        return convert(row, Item)
    except ValidationError as error:  # nothing is known that comes here
        _fail(where, str(error))


def _check_item(row: Any, where: str) -> None:
    if type(row) is not dict:
        _fail(where, f"expected an object {{...}}, got {_kind(row)}")
    if not row.keys() <= ITEM_KEYS:
        _unknown(row, ITEM_KEYS, where, "")
    for name in REQUIRED_ITEM:
        if name not in row:
            needs = ", ".join(REQUIRED_ITEM)
            _fail(where, f"key {name!r} is missing; an item needs {needs}")
    for name in ("id", "split"):
        if type(row[name]) is not str or not row[name]:
            _fail(where, f"{name!r} must be text that is not empty, got {_kind(row[name])}")
    for name in ("image", "video", "features"):
        if type(row.get(name)) not in _text_or_none:
            _fail(where, f"{name!r} must be text, got {_kind(row[name])}")
    times = row.get("segment")
    if times is not None and not (
        type(times) is list and [type(t) in (int, float) for t in times] == [True, True]
    ):
        _refuse_segment(times, where)
    if type(row["captions"]) is not list:
        _fail(where, f"'captions' must be a list, got {_kind(row['captions'])}")
    for position, caption in enumerate(row["captions"]):
        _check_caption(caption, where, f"captions[{position}]")


def _check_caption(row: Any, where: str, place: str) -> None:
    if type(row) is not dict:
        _fail(where, f"{place} must be an object {{...}}, got {_kind(row)}")
    if not row.keys() <= CAPTION_KEYS:
        _unknown(row, CAPTION_KEYS, where, f"{place}.")
    for name in REQUIRED_CAPTION:
        if name not in row:
            needs = ", ".join(REQUIRED_CAPTION)
            _fail(where, f"{place}: key {name!r} is missing; a caption needs {needs}")
    for name in ("id", "lang", "text", "of", "engine"):
        optional = name in ("of", "engine")
        if type(row.get(name)) not in (_text_or_none if optional else (str,)):
            _fail(where, f"{place}.{name} must be text, got {_kind(row.get(name))}")
    if not row["id"]:
        _fail(where, f"{place}.id is empty")
    origin = row.get("origin", "human")
    if type(origin) is not str or origin not in ORIGINS:
        _fail(where, f"{place}.origin must be one of human, mt, back, got "
              f"{origin!r}" + nearest(str(origin), ORIGINS))  # fmt: skip
    noise = row.get("noise")
    if noise is not None and not (type(noise) is list and all(type(kind) is str for kind in noise)):
        _fail(where, f"{place}.noise must be a list of words, got {noise!r}")
    quality = row.get("quality")
    if quality is not None:
        _check_quality(quality, where, f"{place}.quality")
    ids = row.get("relevant")
    if ids is not None and not (type(ids) is list and all(type(one) is str and one for one in ids)):
        _fail(where, f"{place}.relevant must be a list of ids of items, got {_kind(ids)}")


def _check_quality(quality: Any, where: str, place: str) -> None:
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


def _check_relevant(ids: tuple[str, ...], place: str, owner: str) -> None:
    if len({owner, *ids}) <= len(ids):
        twice = next(one for n, one in enumerate([owner, *ids]) if one in [owner, *ids][:n])
        raise DataError(f"{place}.relevant names {twice!r} " + ("twice" if twice != owner else
              "itself, the item that the caption stands at: leave it out"))  # fmt: skip


def _check_segment(item: Item, where: str) -> None:
    start, end = item.segment or (0.0, 0.0)
    if not 0 <= start < end or not isfinite(end):
        _refuse_segment([start, end], where)
    if item.video is None:
        _fail(where, "'segment' is a part of a `video`, and the item has none")


def _refuse_segment(times: Any, where: str) -> NoReturn:
    _fail(where, "'segment' must be [start, end] in seconds, 0 <= start < end, got "
          f"{_kind(times)}")  # fmt: skip


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
            **({"quality": caption.quality} if caption.quality else {}),
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
