"""Pictures of every kind found in the wild -> RGB, or an error that says what is wrong."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from xlcm.data.manifest import DataError

MAX_PIXELS = 89_478_485
"""Largest picture that is opened, in pixels: Pillow's own limit, 256 MB as RGB."""


def load_image(source: str | Path | bytes, *, name: str | None = None) -> Image.Image:
    """Return a picture as upright RGB.

    EXIF rotation is applied; transparent parts become white; 16-bit grey is scaled to 8 bits;
    CMYK, palettes and the other modes are converted; of several frames the first is taken.

    Args:
        source: a path, or the bytes of the file.
        name: what to call it in messages; the path by default.

    Raises:
        DataError: naming the picture and the reason.
    """
    return decode(source, name=name)[0]


def decode(
    source: str | Path | bytes, *, name: str | None = None
) -> tuple[Image.Image, str | None]:
    """Return the picture as `load_image` does, and how it was converted, if its mode is unusual.

    Raises:
        DataError: naming the picture and the reason.
    """
    name = name or (f"{len(source)} bytes" if isinstance(source, bytes) else str(source))
    data = source if isinstance(source, bytes) else _read(Path(source), name)
    try:
        image = _open(data, name)
        return to_rgb(_upright(image))
    except DataError:
        raise
    except MemoryError:
        raise
    # Pillow's decoders raise a dozen types on broken files, struct.error and KeyError among them
    except Exception as error:
        _fail(name, f"can't be decoded: {error or type(error).__name__}", error)


def _read(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        _fail(name, "no such file", error, "image_missing")
    except OSError as error:
        _fail(name, f"can't be read: {error.strerror or error}", error, "image_missing")


def _open(data: bytes, name: str) -> Image.Image:
    if not data:
        _fail(name, "empty (0 bytes)", kind="image_empty")
    try:
        with warnings.catch_warnings():
            # our own limit is judged below, as an error
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError as error:
        start = data[:256].lstrip()
        what = (
            "a web page, not a picture (a download that was refused?)"
            if start[:1] == b"<"
            else f"not a picture that Pillow knows; it starts with {bytes(data[:8])!r}"
        )
        _fail(name, what, error)
    except Image.DecompressionBombError as error:
        _fail(name, f"too large: {error}", error, "image_too_large")
    width, height = image.size
    if width * height > MAX_PIXELS:
        _fail(name, f"too large: {width} x {height} pixels, at most {MAX_PIXELS:,} are opened; "
              "make it smaller, or raise xlcm.data.images.MAX_PIXELS",
              kind="image_too_large")  # fmt: skip
    image.load()
    return image


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF hides no picture: viewers show it as it is stored, and so do we
        return image
    return ImageOps.exif_transpose(image) if orientation in range(2, 9) else image


def to_rgb(image: Image.Image) -> tuple[Image.Image, str | None]:
    """Return an RGB copy (or the picture itself), and a note where the mode was unusual.

    Raises:
        ValueError: if its numbers have no known range.
    """
    mode = image.mode
    transparent = mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info
    if mode == "RGB" and not transparent:
        return image, None
    if mode.startswith("I") or mode == "F":
        return _grey_from_numbers(image), f"{mode} ({_bits(mode)} grey) scaled to 8 bits"
    if transparent:
        layered = image.convert("RGBA")
        below = Image.new("RGBA", image.size, "white")
        below.alpha_composite(layered)
        return below.convert("RGB"), f"{mode} with transparency laid on white"
    note = None if mode == "L" else f"{mode} converted"
    return image.convert("RGB"), note


def _bits(mode: str) -> str:
    return "16-bit" if mode.startswith("I;16") else "32-bit"


def _grey_from_numbers(image: Image.Image) -> Image.Image:
    """Scale 16-bit values to 8 bits; Pillow's own `convert` clips them at 255 instead."""
    values = np.asarray(image)
    if image.mode == "F" or (values.size and (values.min() < 0 or values.max() > 65535)):
        raise ValueError(
            f"mode {image.mode} with values {values.min()} to {values.max()} has no agreed white; "
            "save it as 8-bit or 16-bit"
        )
    grey = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def _fail(
    name: str, what: str, cause: BaseException | None = None, kind: str = "image_undecodable"
) -> NoReturn:
    raise DataError(f"image {name!r}: {what}", kind=kind) from cause
