"""Pictures of every kind found in the wild -> RGB, or an error that says what is wrong.

Pillow opens all of them. What it would only decode, a plain upright JPEG, `load_pixels` hands to
torchvision, which gives the same numbers sooner and without a detour to a tensor.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from xlcm.data.manifest import DataError

if TYPE_CHECKING:
    from torch import Tensor

Opened = TypeVar("Opened", Image.Image, "Tensor", bytes)
"""What `load_image`, `load_pixels` and `read_file` return."""

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


def load_pixels(source: str | Path | bytes, *, name: str | None = None) -> Tensor:
    """Return the pixels of the picture that `load_image` gives, uint8 `(3, H, W)`.

    Args:
        source: a path, or the bytes of the file.
        name: what to call it in messages; the path by default.

    Raises:
        DataError: naming the picture and the reason.
    """
    name = _named(source, name)
    data = source if isinstance(source, bytes) else read_file(source, name=name)
    found = _plain_jpeg(data, name)
    return to_pixels(decode(data, name=name)[0]) if found is None else found


def read_file(source: str | Path, *, name: str | None = None) -> bytes:
    """Return the bytes of a picture's file.

    Raises:
        DataError: naming the picture, if there is no such file or it can't be read.
    """
    name = name or str(source)
    try:
        return Path(source).read_bytes()
    except FileNotFoundError as error:
        _fail(name, "no such file", error, "image_missing")
    except OSError as error:
        _fail(name, f"can't be read: {error.strerror or error}", error, "image_missing")


def to_pixels(image: Image.Image) -> Tensor:
    """Return the pixels of an RGB picture, uint8 `(3, H, W)`."""
    import torch

    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _plain_jpeg(data: bytes, name: str) -> Tensor | None:
    """Return the pixels of an upright grey or colour JPEG; None: let Pillow do it, or refuse it."""
    if data[:2] != b"\xff\xd8":
        return None
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    try:
        if not _plain_header(data):
            image = _open(data, name)
            plain = image.format == "JPEG" and image.mode in ("RGB", "L")
            if not plain or _orientation(image) != 1:
                return None
        pixels: Tensor = decode_jpeg(
            torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB
        )
    except MemoryError:
        raise
    # damaged, which Pillow may bear or puts into words; or a torchvision without a decoder
    except Exception:
        return None
    return pixels


def decode(
    source: str | Path | bytes, *, name: str | None = None
) -> tuple[Image.Image, str | None]:
    """Return the picture as `load_image` does, and how it was converted, if its mode is unusual.

    Raises:
        DataError: naming the picture and the reason.
    """
    name = _named(source, name)
    data = source if isinstance(source, bytes) else read_file(source, name=name)
    try:
        image = _open(data, name)
        image.load()
        return to_rgb(_upright(image))
    except DataError:
        raise
    except MemoryError:
        raise
    # Pillow's decoders raise a dozen types on broken files, struct.error and KeyError among them
    except Exception as error:
        _fail(name, f"can't be decoded: {error or type(error).__name__}", error)


def _plain_header(data: bytes) -> bool:
    """Say whether the header of a JPEG alone tells that it is upright, 8-bit grey or colour.

    Pillow's look at the whole header takes longer; what has more to say is left to it.
    """
    at = 2
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in (0xC0, 0xC1, 0xC2):  # the usual kinds of frame: baseline to progressive
            high, wide = data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
            plain = data[at + 4] == 8 and data[at + 9] in (1, 3)
            return plain and 0 < high * wide <= MAX_PIXELS
        # E1 may turn the picture (EXIF, XMP), E2 may announce further ones
        ours = 0xC4 <= marker <= 0xFE and marker not in (0xE1, 0xE2)
        if not ours or 0xC5 <= marker <= 0xDA:
            return False
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    return False


def _named(source: str | Path | bytes, name: str | None) -> str:
    return name or (f"{len(source)} bytes" if isinstance(source, bytes) else str(source))


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
    return image


def _upright(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image) if _orientation(image) != 1 else image


def _orientation(image: Image.Image) -> int:
    """Return how the picture is turned, 1 to 8; 1: it is upright."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF hides no picture: viewers show it as it is stored, and so do we
        return 1
    return orientation if orientation in range(2, 9) else 1


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
