"""Ways in which a published file arrives damaged; each changes one file in place."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

GZIP = b"\x1f\x8b"


def text_of(path: Path) -> bytes:
    """Return a file's contents, unpacked if it is gzipped."""
    data = path.read_bytes()
    return gzip.decompress(data) if data.startswith(GZIP) else data


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> Path:
    """Change a file's text; it stays gzipped if it was."""
    packed = path.read_bytes().startswith(GZIP)
    data = change(text_of(path))
    path.write_bytes(gzip.compress(data) if packed else data)
    return path


def bad_encoding(path: Path, line: int = 1) -> Path:
    """Put a byte into a line (from 1) that is not UTF-8."""
    return rewrite(path, lambda data: _at(data, line, lambda text: text + b"\xe9x"))


def crlf(path: Path) -> Path:
    """End the lines as Windows does."""
    return rewrite(path, lambda data: data.replace(b"\n", b"\r\n"))


def bom(path: Path) -> Path:
    """Put a byte-order mark in front."""
    return rewrite(path, lambda data: b"\xef\xbb\xbf" + data)


def truncated(path: Path, drop: int = 9) -> Path:
    """Cut bytes off the end of the file as it lies there, gzipped or not."""
    path.write_bytes(path.read_bytes()[:-drop])
    return path


def packed(path: Path) -> Path:
    """Gzip a file: `x` becomes `x.gz`; returns the new path."""
    new = path.with_name(path.name + ".gz")
    new.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    return new


def line_more(path: Path, text: str | None = None) -> Path:
    """Add a line at the end: the text given, or the last line again."""

    def add(data: bytes) -> bytes:
        body = data.removesuffix(b"\n")
        extra = body.split(b"\n")[-1] if text is None else text.encode()
        return body + b"\n" + extra + b"\n"

    return rewrite(path, add)


def line_less(path: Path) -> Path:
    """Take the last line away."""

    def cut(data: bytes) -> bytes:
        return data.removesuffix(b"\n").rpartition(b"\n")[0] + b"\n"

    return rewrite(path, cut)


def line_set(path: Path, line: int, text: str) -> Path:
    """Put another text on a line (from 1)."""
    return rewrite(path, lambda data: _at(data, line, lambda _: text.encode()))


def _at(data: bytes, line: int, change: Callable[[bytes], bytes]) -> bytes:
    rows = data.split(b"\n")
    rows[line - 1] = change(rows[line - 1])
    return b"\n".join(rows)
