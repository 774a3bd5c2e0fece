"""Reads text files as owners publish them: numbered lines, JSON, tagged captions; plain or gzip.

Lines end at line feeds only: `splitlines` of Python also breaks at U+2028 and others, which stand
in real captions, and one such break shifts every caption behind it to the wrong picture.
"""

from __future__ import annotations

import glob
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from xlcm.data.json_faults import told
from xlcm.data.manifest import BOM, DataError
from xlcm.registry import nearest

GZIP = b"\x1f\x8b"
_TAGGED = re.compile(r"(?P<id>[^#\s]+)#(?:(?P<tag>[^#\s]+)#)?(?P<n>\d+)[ \t]+(?P<text>.*)", re.S)
_ENDING = re.compile(r"(?<=.)\.(?:jpe?g|png|mp4|webm|mkv|avi|mov)$", re.I)


def find(root: str | Path, path: str) -> Path:
    """Return `root/path`, or its twin with or without `.gz`, whichever is there.

    Raises:
        DataError: if neither is; the message names the nearest file of that folder.
    """
    found = find_all(root, path)
    if not found:
        wanted = Path(root) / path
        known = [p.name for p in wanted.parent.iterdir()] if wanted.parent.is_dir() else []
        raise DataError(f"{wanted}: no such file, plain or .gz" + nearest(wanted.name, known))
    return found[0]


def find_all(root: str | Path, path: str) -> list[Path]:
    """Return what `path` names below `root`, sorted: a file, a folder, or all that a glob matches.

    Of a file and its gzipped twin only the one that was asked for is returned.
    """
    bare = path.removesuffix(".gz")
    wanted = (path, bare if path.endswith(".gz") else bare + ".gz")
    exact = [p for name in wanted if (p := Path(root) / name).exists()]
    if exact or not glob.has_magic(path):
        return exact[:1]
    start = glob.escape(str(root))
    found: dict[str, Path] = {}
    for name in wanted:
        for match in glob.glob(f"{start}/{name}" if not Path(name).is_absolute() else name):
            found.setdefault(match.removesuffix(".gz"), Path(match))
    return sorted(found.values())


def raw_lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """Yield (number from 1, bytes without line end) of every line, blank ones included.

    Whether a file is gzipped is told from its first bytes, not from its name. A byte-order mark
    and the carriage returns of Windows are taken off.

    Raises:
        DataError: if there is no such file, or it is damaged or cut off.
    """
    for number, raw in _with_ends(path):
        yield number, raw.rstrip(b"\n").removesuffix(b"\r")


def _with_ends(path: str | Path) -> Iterator[tuple[int, bytes]]:
    number = 0
    try:
        with _open(path) as file:
            for number, raw in enumerate(file, 1):
                if number == 1 and raw.startswith(BOM):
                    raw = raw[len(BOM) :]
                yield number, raw
    except EOFError as error:
        raise DataError(
            f"{path}: the file is cut off, {number:,} lines could be read; get it again"
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged behind line {number} ({error}); get it again") from error
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error}") from error


def iter_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, text) of every line, one line at a time in memory.

    Raises:
        DataError: as `raw_lines`, and for a line that is not UTF-8.
    """
    for number, raw in _with_ends(path):
        try:
            yield number, raw.decode("utf-8").rstrip("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            # of a line that ends, the line feed would be what is wrong
            cut = error.reason == "unexpected end of data"
            raise DataError(
                f"{path}:{number}: not UTF-8 at byte {error.start} of the line "
                f"(0x{raw[error.start]:02x}); "
                + ("the file is cut off within a character, get it again; or " if cut else "")
                + f"convert the file, for example with `iconv -f {_guess(raw)} -t utf-8`",
                kind="not_utf8",
            ) from error


def read_lines(path: str | Path) -> list[tuple[int, str]]:
    """Return all lines with their numbers; see `iter_lines`."""
    return list(iter_lines(path))


def read_json(path: str | Path) -> Any:
    """Return the value that a JSON file holds.

    Raises:
        DataError: naming the line of the fault.
    """
    text = "\n".join(line for _, line in iter_lines(path))
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: {told(error)}") from error
    except ValueError as error:  # a number of too many digits
        raise DataError(f"{path}: not JSON: {error}") from error
    except RecursionError as error:
        raise DataError(f"{path}: too many brackets inside one another") from error


def read_jsonl(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of every line that is not blank.

    Raises:
        DataError: naming the line that is no object.
    """
    for number, line in iter_lines(path):
        if not line or line.isspace():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: {told(error)}") from error
        except (ValueError, RecursionError) as error:  # a number of too many digits
            raise DataError(f"{path}:{number}: not JSON: {error}") from error
        if type(row) is not dict:
            raise DataError(f"{path}:{number}: expected an object {{...}}, got {line[:60]}")
        yield number, row


def tagged_line(line: str, where: str = "") -> tuple[str, str, int, str]:
    """Return (id, tag, n, text) of `<id>#<tag>#<n> <text>`; the id loses .jpg, .mp4 and the like.

    A blank or tab separates. `<id>#<n> <text>` has the tag "". Text may be empty.

    Args:
        line: without its end.
        where: `file:line` for messages.

    Raises:
        DataError: if the line looks otherwise.
    """
    match = _TAGGED.fullmatch(line) or _TAGGED.fullmatch(line + " ")
    if match is None:
        raise DataError(f"{where}: expected `<id>#<tag>#<n> <text>`, got {line[:60]!r}")
    return without_ending(match["id"]), match["tag"] or "", int(match["n"]), match["text"].strip()


def without_ending(name: str) -> str:
    """Return a file's name without .jpg, .mp4 and the like, in capitals or not."""
    return _ENDING.sub("", name)


@contextmanager
def _open(path: str | Path) -> Iterator[IO[bytes]]:
    with open(path, "rb") as start:
        first = start.read(2)
        if first == GZIP[:1] or (not first and str(path).endswith(".gz")):
            raise EOFError
    if first == GZIP:
        with gzip.open(path, "rb") as unpacked:
            yield io.BufferedReader(unpacked, 1 << 20)  # type: ignore[type-var]
    else:
        with open(path, "rb", buffering=1 << 20) as file:
            yield file


def _guess(raw: bytes) -> str:
    """Return a likely encoding for the hint: UTF-16 by its mark, else one of one byte."""
    return "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "windows-1252"
