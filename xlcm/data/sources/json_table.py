"""A JSON object that is too large for memory, read a value at a time."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

from xlcm.data.manifest import BOM, DataError
from xlcm.data.sources.text_lines import GZIP

CHUNK = 1 << 22  # bytes read at once
LIMIT = 1 << 28  # bytes of one value; more is a damaged file
_BEHIND = frozenset(" \t\r\n:,}")  # what may stand behind a value
_BLANK = re.compile(r"[ \t\r\n]*")
_decode = json.JSONDecoder().raw_decode


class JsonTable:
    """The values of one object by key; keys and places are held in memory.

    Args:
        path: plain or gzipped; what is gzipped is unpacked into a temporary file, since it is read
            at any place.

    Attributes:
        places: (offset, bytes) of each value by key, in the order of the file.

    Raises:
        DataError: if it is no object, is cut off, or has a key twice; with the place in bytes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        self._file: IO[bytes] = open(path, "rb")  # noqa: SIM115 -- stays open
        if self._file.read(2) == GZIP:
            self._file.close()
            self._file = _unpacked(path)
        self.places: dict[str, tuple[int, int]] = {}
        for key, offset, size in _pairs(_Scanner(path, self._file)):
            if key in self.places:
                raise DataError(f"{path}: {key!r} is there twice, at bytes "
                                f"{self.places[key][0]} and {offset}")  # fmt: skip
            self.places[key] = offset, size

    def __del__(self) -> None:
        if opened := self.__dict__.get("_file"):
            opened.close()

    def __getitem__(self, key: str) -> Any:
        offset, size = self.places[key]
        self._file.seek(offset)
        raw = self._file.read(size)
        try:
            return json.loads(raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.path}: {key}: not UTF-8 at byte {offset + error.start}; convert the file "
                "with `iconv -t utf-8`", kind="not_utf8",
            ) from error  # fmt: skip


def _unpacked(path: Path) -> IO[bytes]:
    """Return a temporary file, gone when it is closed, with what the gzipped one holds."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 -- stays open
    try:
        with gzip.open(path, "rb") as packed:
            shutil.copyfileobj(packed, file, CHUNK)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        file.close()
        what = "the file is cut off" if isinstance(error, EOFError) else f"damaged ({error})"
        raise DataError(f"{path}: {what}; get it again") from error
    return file


def _pairs(scanner: _Scanner) -> Iterator[tuple[str, int, int]]:
    scanner.take("{")
    if scanner.mark() == "}":
        scanner.take("}")
        scanner.end()
        return
    while True:
        key, at, _ = scanner.value()
        if not isinstance(key, str):
            raise DataError(f"{scanner.path}: byte {at}: a key must be text, got {key!r}")
        scanner.take(":")
        _, offset, size = scanner.value()
        yield key, offset, size
        if scanner.take(",}") == "}":
            scanner.end()
            return


class _Scanner:
    """Reads on as far as the next value needs.

    Bytes are read as Latin-1, one character each, so that places in the text are places in the
    file; what stands between quotes is decoded later.
    """

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path, self.file = path, file
        self.text, self.at, self.done = "", 0, False
        file.seek(0)
        self.start = len(BOM) if file.read(len(BOM)) == BOM else 0  # place of text[0] in the file
        file.seek(self.start)

    def mark(self) -> str:
        """Return the next character that is not blank, and stay before it; "" at the end."""
        while True:
            blank = _BLANK.match(self.text, self.at)
            self.at = blank.end() if blank else self.at
            if self.at < len(self.text) or self.done:
                return self.text[self.at : self.at + 1]
            self._more()

    def take(self, allowed: str) -> str:
        """Return the next character that is not blank, and go past it."""
        mark = self.mark()
        if not mark:
            self._fail("the file is cut off; get it again", self.at)
        if mark not in allowed:
            self._fail(f"expected {' or '.join(allowed)}, got {mark!r}", self.at)
        self.at += 1
        return mark

    def end(self) -> None:
        """Refuse what stands behind the object: it would be lost."""
        if self.mark():
            self._fail("something stands behind the end of the object; get the file again", self.at)

    def value(self) -> tuple[Any, int, int]:
        """Return the next value, its place in the file and its bytes."""
        self.mark()
        while True:
            try:
                value, end = _decode(self.text, self.at)
            except (json.JSONDecodeError, RecursionError) as error:
                if self.done:
                    self._fail(f"not JSON, or cut off: {error}", self.at)
            else:
                # a number at the end of what was read may go on
                if (mark := self.text[end : end + 1]) in _BEHIND or self.done:
                    if mark and mark not in _BEHIND:  # such as the point of `1.`
                        self._fail("not JSON, or cut off", end)
                    place = self.start + self.at, end - self.at
                    self.at = end
                    return value, *place
            if len(self.text) - self.at > LIMIT:
                self._fail("a value without end; the file is damaged", self.at)
            self._more()

    def _more(self) -> None:
        self.text, self.start, self.at = self.text[self.at :], self.start + self.at, 0
        read = self.file.read(CHUNK)
        self.done = not read
        self.text += read.decode("latin-1")

    def _fail(self, what: str, at: int) -> NoReturn:
        raise DataError(f"{self.path}: byte {self.start + at}: {what}")
