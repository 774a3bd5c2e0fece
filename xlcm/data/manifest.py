"""The manifest: JSON lines, one visual item a line; the only format the library reads.

{"id": "17", "split": "train", "image": "images/17.jpg", "captions": [
  {"id": "17#0", "lang": "en", "text": "Two dogs ...", "origin": "human"},
  {"id": "17#0.de", "lang": "de", "text": "Zwei ...", "origin": "mt", "of": "17#0"}]}
"""

from __future__ import annotations

import io
import json
import os
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import numpy as np

from xlcm.registry import nearest
from xlcm.types import Caption, Item

REQUIRED_ITEM = ("id", "split", "captions")
ITEM_KEYS = frozenset({*REQUIRED_ITEM, "image", "video", "features"})
REQUIRED_CAPTION = ("id", "lang", "text")
CAPTION_KEYS = frozenset({*REQUIRED_CAPTION, "origin", "of", "engine", "noise", "quality"})
ORIGINS = frozenset({"human", "mt", "back"})
BOM = b"\xef\xbb\xbf"

_decode = json.JSONDecoder().decode
_text_or_none = frozenset({str, type(None)})
# quotes inside a JSON string are escaped, so this can only be a key
_SPLIT = re.compile(rb'"split"\s*:\s*"([^"\\]*)"')


class DataError(ValueError):
    """Data that can't be used; the message names the file and line, the reason, the way out.

    Args:
        kind: which fault of `xlcm.data.faults.KINDS` it is, for counting.
    """

    def __init__(self, message: str, *, kind: str = "bad_line") -> None:
        super().__init__(message)
        self.kind = kind


# -- reading ------------------------------------------------------------------------------------


def read_manifest(path: str | Path) -> Iterator[Item]:
    """Yield the items of a manifest in order, holding one line at a time.

    A byte-order mark, Windows line ends and blank lines are tolerated.

    Raises:
        DataError: at the first line that is no item, as `file:line: what is wrong`.
        FileNotFoundError: if there is no such file.
    """
    for number, _, raw in lines(path):
        yield parse_item(raw, f"{path}:{number}")


def lines(path: str | Path) -> Iterator[tuple[int, int, bytes]]:
    """Yield (line number from 1, byte offset, bytes) of every line that is not blank."""
    offset = 0
    with open(_there(path), "rb", buffering=1 << 20) as file:
        for number, raw in enumerate(file, 1):
            start, offset = offset, offset + len(raw)
            if number == 1 and raw.startswith(BOM):
                start, raw = len(BOM), raw[len(BOM) :]
            if not raw.isspace() and raw:
                yield number, start, raw


def parse_item(raw: bytes, where: str = "") -> Item:
    """Return the item that one line describes, its types and keys checked.

    Args:
        raw: the line in UTF-8.
        where: `file:line`, for messages.

    Raises:
        DataError: naming `where`, the key, what came and what was expected.
    """
    try:
        row = _decode(raw.decode("utf-8").strip())
    except UnicodeDecodeError as error:
        _fail(where, f"not UTF-8 at byte {error.start} of the line (0x{raw[error.start]:02x}); "
              "convert the file, for example with `iconv -t utf-8`", "not_utf8")  # fmt: skip
    except json.JSONDecodeError as error:
        _fail(where, f"not JSON: {error.msg} at column {error.colno}")
    except RecursionError:
        _fail(where, "not a manifest line: too many brackets inside one another")
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
    if not {type(image), type(video), type(features)} <= _text_or_none:
        name = next(n for n in ("image", "video", "features")
                    if type(row.get(n)) not in _text_or_none)  # fmt: skip
        _fail(where, f"{name!r} must be text, got {_kind(row[name])}")
    made = tuple([_caption(caption, where, i) for i, caption in enumerate(captions)])
    return Item(identity, split, made, image, video, features, where)


def _caption(row: Any, where: str, position: int) -> Caption:
    if type(row) is not dict:
        _fail(where, f"captions[{position}] must be an object {{...}}, got {_kind(row)}")
    if not row.keys() <= CAPTION_KEYS:
        _unknown(row, CAPTION_KEYS, where, f"captions[{position}].")
    try:
        identity, lang, text = row["id"], row["lang"], row["text"]
    except KeyError as error:
        needs = ", ".join(REQUIRED_CAPTION)
        _fail(where, f"captions[{position}]: key {error} is missing; a caption needs {needs}")
    get = row.get
    origin, of, engine, noise = get("origin", "human"), get("of"), get("engine"), get("noise")
    if not (
        type(identity) is str and identity and type(lang) is str and type(text) is str
        and type(of) in _text_or_none and type(engine) in _text_or_none
    ):  # fmt: skip
        for name in ("id", "lang", "text", "of", "engine"):
            optional = name in ("of", "engine")
            if type(row.get(name)) not in (_text_or_none if optional else (str,)):
                got = _kind(row.get(name))
                _fail(where, f"captions[{position}].{name} must be text, got {got}")
        _fail(where, f"captions[{position}].id is empty")
    if type(origin) is not str or origin not in ORIGINS:
        _fail(where, f"captions[{position}].origin must be one of human, mt, back, got {origin!r}"
              + nearest(str(origin), ORIGINS))  # fmt: skip
    quality = get("quality")
    if noise is None and quality is None:
        return Caption(identity, lang, text, origin, of, engine)  # type: ignore[arg-type]
    if noise is not None and (
        type(noise) is not list or not all(type(kind) is str for kind in noise)
    ):
        _fail(where, f"captions[{position}].noise must be a list of words, got {noise!r}")
    if quality is not None and (
        type(quality) is not dict
        or not all(type(value) in (int, float, str) for value in quality.values())
    ):
        got = _kind(quality)
        _fail(where, f"captions[{position}].quality must be names with numbers or words, got {got}")
    signals = tuple((quality or {}).items())
    return Caption(identity, lang, text, origin, of, engine, tuple(noise or ()), signals)  # type: ignore[arg-type]


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


def _there(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        known = [p.name for p in path.parent.glob("*.jsonl")] if path.parent.is_dir() else []
        raise FileNotFoundError(f"no manifest {path}" + nearest(path.name, sorted(known)))
    return path


# -- random access ------------------------------------------------------------------------------


class Manifest:
    """The items of a manifest by number; rows stay on disk and are parsed when asked for.

    Holds 16 bytes a line. Copies travel into loader processes and open the file again there.

    Args:
        path: the JSON lines.
        split: only the items of this split, and lines too broken to tell theirs; None: all.

    Attributes:
        line_numbers: `(items,)` int32, from 1.

    Raises:
        DataError: if the split has no items; the message names the splits that exist.
        FileNotFoundError: if there is no such file.
    """

    def __init__(self, path: str | Path, split: str | None = None) -> None:
        self.path = str(path)
        self.split = split
        self._stamp = _stamp(_there(path))
        wanted = None if split is None else split.encode()
        offsets, sizes, numbers, seen = array("q"), array("i"), array("i"), set()
        for number, offset, raw in lines(path):
            if wanted is not None:
                found = _split_of(raw)
                if found is not None and found != wanted:
                    seen.add(found)
                    continue
            offsets.append(offset)
            sizes.append(len(raw))
            numbers.append(number)
        if split is not None and not offsets:
            known = sorted(name.decode("utf-8", "replace") for name in seen)
            hint = nearest(split, known)
            raise DataError(f"{path}: no item of split {split!r}{hint}; splits here: "
                            f"{', '.join(known) or 'none, the file has no items'}")  # fmt: skip
        self._offsets = np.array(offsets, dtype=np.int64)
        self._sizes = np.array(sizes, dtype=np.int32)
        self.line_numbers = np.array(numbers, dtype=np.int32)
        self._file: io.FileIO | None = None

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Item:
        """Return one item; negative numbers count from the end.

        Raises:
            DataError: if the line is no item, or the file has changed since it was indexed.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of {len(self)} in {self.path}")
        return parse_item(self.raw(index), self.where(index))

    def __iter__(self) -> Iterator[Item]:
        return (self[i] for i in range(len(self)))

    def where(self, index: int) -> str:
        """Return `file:line` of an item."""
        return f"{self.path}:{self.line_numbers[index]}"

    def raw(self, index: int) -> bytes:
        """Return the bytes of an item's line."""
        if self._file is None:
            if _stamp(_there(self.path)) != self._stamp:
                raise DataError(f"{self.path}: the manifest was changed while it was in use; "
                                "start again")  # fmt: skip
            self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115 -- stays open
        offset, size = int(self._offsets[index]), int(self._sizes[index])
        # threads and forked processes share the file's position, which pread doesn't use
        if hasattr(os, "pread"):
            return os.pread(self._file.fileno(), size, offset)
        self._file.seek(offset)
        return self._file.read(size)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def __del__(self) -> None:
        if opened := self.__dict__.get("_file"):
            opened.close()


def _split_of(raw: bytes) -> bytes | None:
    """Return the split of a line; None if it can't be told.

    Such a line counts in every split, so that it is met and its fault named.
    """
    if match := _SPLIT.search(raw):
        return match[1]
    try:
        return parse_item(raw).split.encode()
    except DataError:
        return None


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


# -- writing ------------------------------------------------------------------------------------


class ManifestWriter:
    """Writes a manifest aside and puts it in place when all of it is there.

    Use it as `with ManifestWriter("data/photos.jsonl") as writer: writer.write(item)`.

    Args:
        path: the finished file; an older one is replaced at the end, or kept if writing fails.

    Attributes:
        items: written so far.
        captions: written so far.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.items = self.captions = 0
        self._ids: set[str] = set()
        self._caption_ids: set[str] = set()

    def __enter__(self) -> ManifestWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._aside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        self._out = open(self._aside, "wb")
        return self

    def write(self, item: Item) -> None:
        """Add one item.

        Raises:
            DataError: for an id that was written before, or an item that could not be read back.
        """
        where = f"{self.path}:{self.items + 1}"
        if item.id in self._ids:
            _fail(where, f"item id {item.id!r} was written before; ids must be unique")
        ids = [caption.id for caption in item.captions]
        for i, identity in enumerate(ids):
            if identity in self._caption_ids or identity in ids[:i]:
                _fail(where, f"caption id {identity!r} was written before; ids must be unique")
        line = to_line(item, where)
        self._ids.add(item.id)
        self._caption_ids.update(ids)
        self._out.write(line)
        self.items += 1
        self.captions += len(ids)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._out.flush()
            os.fsync(self._out.fileno())
            self._out.close()
            os.replace(self._aside, self.path)
        else:
            self._out.close()
            self._aside.unlink()


def to_line(item: Item, where: str = "") -> bytes:
    """Return the manifest line of an item, newline included.

    Raises:
        DataError: if no reader would accept it.
    """
    row: dict[str, Any] = {"id": item.id, "split": item.split}
    row.update(
        {k: v for k in ("image", "video", "features") if (v := getattr(item, k)) is not None}
    )
    row["captions"] = [
        {
            "id": caption.id, "lang": caption.lang, "text": caption.text, "origin": caption.origin,
            **{k: v for k in ("of", "engine") if (v := getattr(caption, k)) is not None},
            **({"noise": list(caption.noise)} if caption.noise else {}),
            **({"quality": dict(caption.quality)} if caption.quality else {}),
        }
        for caption in item.captions
    ]  # fmt: skip
    try:
        line = json.dumps(row, ensure_ascii=False).encode("utf-8")
    except (UnicodeEncodeError, TypeError) as error:
        raise DataError(f"{where}: item {item.id!r} can't be written: {error}") from error
    parse_item(line, where)
    return line + b"\n"
