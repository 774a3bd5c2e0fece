"""Pictures that come inside a table (bytes or base64) -> files beside the manifest."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import re
import sys
import time
import warnings
from pathlib import Path

from xlcm.data.aside import aside, remove_left_in
from xlcm.data.manifest import DataError

SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif",
            "BMP": ".bmp", "TIFF": ".tif"}  # fmt: skip
SHOWN = 5
EVERY_S = 10.0  # between two lines of progress


class PictureFolder:
    """Writes pictures aside and renames them; what is there already, byte for byte, is kept.

    So an import that was stopped goes on where it was; what a killed one left aside is removed.

    Args:
        folder: made if it isn't there.
        drop: leave out what is no picture, and list it, instead of stopping.

    Attributes:
        written: files that were not there before.
        kept: files that were.
        bad: messages of what was left out.
    """

    def __init__(self, folder: str | Path, *, drop: bool = False) -> None:
        self.folder = Path(folder)
        self.drop = drop
        self.written = self.kept = 0
        self.bad: list[str] = []
        self._made: set[Path] = set()
        self._began = self._shown = time.monotonic()

    def save(self, name: str, data: bytes | str, where: str) -> str | None:
        """Return the path below the folder of a picture with the ending of its format.

        Args:
            name: without ending; may have folders.
            data: the bytes of the file, or base64 of them.
            where: `file:line` for messages.

        Returns:
            The path; None if it was no picture and `drop` is set.

        Raises:
            DataError: for data that is no whole picture, unless `drop` is set.
        """
        self._progress()
        try:
            raw = data if isinstance(data, bytes) else decode_base64(data)
            path = name + _suffix(raw)
            target = self.folder / path
            if _holds(target, raw):
                self.kept += 1
                return path
            _decodes(raw)
        except ValueError as error:
            if not self.drop:
                raise DataError(f"{where}: picture {name!r}: {error}; --bad-pictures drop leaves "
                                "such out", kind="image_undecodable") from error  # fmt: skip
            self.bad.append(f"{where}: picture {name!r}: {error}")
            return None
        if target.parent not in self._made:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._made.add(target.parent)
            remove_left_in(target.parent, SUFFIXES.values())
        try:
            aside(target).write_bytes(raw)
            os.replace(aside(target), target)
        finally:
            aside(target).unlink(missing_ok=True)
        self.written += 1
        return path

    def _progress(self) -> None:
        now = time.monotonic()
        if now - self._shown > EVERY_S:
            self._shown = now
            done = self.written + self.kept
            print(f"{done:,} pictures, {done / (now - self._began):,.0f} a second", file=sys.stderr)

    def tell(self) -> str:
        """Return the sentence on what was written and what was left out."""
        text = f"{self.folder}: {self.written:,} pictures written, {self.kept:,} were there"
        if self.bad:
            more = f"\n  and {len(self.bad) - SHOWN} more" if len(self.bad) > SHOWN else ""
            listed = "".join(f"\n  {fault}" for fault in self.bad[:SHOWN])
            text += f", {len(self.bad):,} are no pictures and were dropped:{listed}{more}"
        return text


def decode_base64(text: str) -> bytes:
    """Return the bytes of base64, with or without `data:image/...;base64,` before it.

    Both alphabets are read (`+/` and `-_`), and padding may be missing.

    Raises:
        ValueError: saying what is wrong.
    """
    if text.startswith("data:"):
        text = text.partition(",")[2]
    text = text.strip().replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"no base64 (cut off?): {error}") from error


def safe_name(identity: str) -> str:
    """Return a file name for an id: the id itself where it is one, else with a checksum."""
    if re.fullmatch(r"[\w-][\w.-]{0,99}", identity, re.ASCII):
        return identity
    kept = re.sub(r"[^A-Za-z0-9_-]+", "-", identity)[:60].strip("-")
    return f"{kept}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


def _suffix(raw: bytes) -> str:
    from PIL import Image, UnidentifiedImageError

    if not raw:
        raise ValueError("empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a large picture is judged by `decode`
            with Image.open(io.BytesIO(raw)) as image:
                kind = image.format or ""
    except UnidentifiedImageError as error:
        raise ValueError(f"not a picture that Pillow knows; it starts with {raw[:8]!r}") from error
    except Exception as error:  # Pillow raises a dozen types on broken files
        raise ValueError(f"can't be opened: {error or type(error).__name__}") from error
    return SUFFIXES.get(kind, f".{kind.lower()}")


def _decodes(raw: bytes) -> None:
    """Refuse what the loader would refuse; a truncated picture has a sound beginning."""
    from xlcm.data.images import decode

    try:
        decode(raw, name="it")
    except DataError as error:
        raise ValueError(str(error).removeprefix("image 'it': ")) from error


def _holds(path: Path, raw: bytes) -> bool:
    try:
        return path.stat().st_size == len(raw) and path.read_bytes() == raw
    except FileNotFoundError:
        return False
