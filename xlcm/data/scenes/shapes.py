"""The outlines of the twelve shapes, rasterised once for each size, turn and mirror image."""

from __future__ import annotations

from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from xlcm.data.scenes.world import Shape, Texture

Mask: TypeAlias = NDArray[np.float32]
Points: TypeAlias = NDArray[np.float64]
Part: TypeAlias = "tuple[Points, int]"

OVER = 4  # supersampling of masks; they are cached, so it costs nothing later


@lru_cache(maxsize=4096)
def shape_masks(
    shape: Shape, pixels: int, degrees: int, mirrored: bool, rim: int
) -> tuple[Mask, Mask, Mask]:
    """Return body, inside and detail of a shape, each `(pixels, pixels)` in 0..1.

    The inside is the body without a rim, where a texture shows; the detail (a door, wheels, an
    eye) lies on top of both.
    """
    body_parts, detail_parts = OUTLINES[shape]
    turn = np.deg2rad(degrees)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    if mirrored:
        matrix = matrix @ np.diag([-1.0, 1.0])
    turned = [(points @ matrix.T, value) for points, value in (*body_parts, *detail_parts)]
    extent = max(float(np.abs(points).max()) for points, _ in turned)
    scaled = [(points / max(1.0, extent), value) for points, value in turned]
    body = _raster(scaled[: len(body_parts)], pixels)
    detail = _raster(scaled[len(body_parts) :], pixels)
    inside = body.filter(ImageFilter.MinFilter(2 * (rim * OVER // 2) + 1))
    return _shrink(body, pixels), _shrink(inside, pixels), _shrink(detail, pixels)


@lru_cache(maxsize=1024)
def texture_mask(texture: Texture, pixels: int, unit: float, phase: int) -> Mask:
    """Return where the second colour of a texture is, `(pixels, pixels)` in 0..1.

    Args:
        texture: `plain` has none.
        pixels: side of the mask.
        unit: width of a stripe or of a field of the chequerboard, in pixels.
        phase: 0 to 3, quarters of a period by which the pattern is moved.
    """
    place = (np.arange(pixels * OVER) + 0.5) / OVER - pixels / 2 + phase * unit / 2
    y, x = np.meshgrid(place, place, indexing="ij")
    if texture == "striped":
        fine = np.floor(x / unit) % 2
    elif texture == "chequered":
        fine = (np.floor(x / unit) + np.floor(y / unit)) % 2
    elif texture == "dotted":
        period = 1.9 * unit
        row = np.floor(y / period)
        across = (x / period + 0.5 * (row % 2)) % 1 - 0.5
        fine = np.hypot(across, y / period - row - 0.5) < 0.32
    else:
        fine = np.zeros_like(x)
    blocks = fine.astype(np.float32).reshape(pixels, OVER, pixels, OVER)
    return blocks.mean(axis=(1, 3))


def _raster(parts: list[Part], pixels: int) -> Image.Image:
    side = pixels * OVER
    image = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(image)
    for points, value in parts:
        placed = (points + 1) / 2 * (side - 1)
        pen.polygon([(float(x), float(y)) for x, y in placed], fill=255 * value)
    return image


def _shrink(image: Image.Image, pixels: int) -> Mask:
    fine = np.asarray(image, np.float32).reshape(pixels, OVER, pixels, OVER)
    return fine.mean(axis=(1, 3)) / 255


def _ellipse(x: float, y: float, wide: float, high: float | None = None) -> Points:
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    return np.stack([x + wide * np.cos(angle), y + (high or wide) * np.sin(angle)], axis=1)


def _box(left: float, top: float, right: float, bottom: float) -> Points:
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def _star() -> Points:
    angle = np.arange(10) * np.pi / 5 - np.pi / 2
    radius = np.where(np.arange(10) % 2 == 0, 1.0, 0.42)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle) + 0.05], axis=1)


def _heart() -> Points:
    t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x / 16.5, (y - 2.5) / 15.5], axis=1)


def _petals() -> list[Part]:
    angle = np.arange(5) * 2 * np.pi / 5 - np.pi / 2
    return [(_ellipse(0.6 * np.cos(a), 0.6 * np.sin(a), 0.37), 1) for a in angle]


OUTLINES: dict[Shape, tuple[list[Part], list[Part]]] = {
    "circle": ([(_ellipse(0, 0, 0.92), 1)], []),
    "square": ([(_box(-0.8, -0.8, 0.8, 0.8), 1)], []),
    "triangle": ([(np.array([(0, -0.95), (1, 0.82), (-1, 0.82)]), 1)], []),
    "star": ([(_star(), 1)], []),
    "heart": ([(_heart(), 1)], []),
    "moon": ([(_ellipse(-0.05, 0, 0.95), 1), (_ellipse(0.55, -0.14, 0.74), 0)], []),
    "house": (
        [(_box(-0.72, -0.1, 0.72, 0.95), 1), (np.array([(0, -1), (1, 0), (-1, 0)]), 1)],
        [(_box(-0.2, 0.38, 0.2, 0.95), 1)],
    ),
    "tree": (
        [(_ellipse(-0.45, -0.1, 0.47), 1), (_ellipse(0.45, -0.1, 0.47), 1),
         (_ellipse(0, -0.5, 0.5), 1), (_ellipse(0, 0, 0.45), 1)],
        [(_box(-0.17, 0.3, 0.17, 1), 1)],
    ),
    "car": (
        [(_box(-1, -0.12, 1, 0.52), 1),
         (np.array([(-0.66, 0), (-0.46, -0.72), (0.4, -0.72), (0.72, 0)]), 1)],
        [(_ellipse(-0.54, 0.5, 0.26), 1), (_ellipse(0.54, 0.5, 0.26), 1),
         (np.array([(-0.3, -0.16), (-0.22, -0.5), (0.2, -0.5), (0.32, -0.16)]), 1)],
    ),
    "fish": (
        [(_ellipse(-0.22, 0, 0.76, 0.56), 1),
         (np.array([(0.3, 0), (1, -0.6), (0.82, 0), (1, 0.6)]), 1)],
        [(_ellipse(-0.6, -0.15, 0.13), 1)],
    ),
    "flower": (_petals(), [(_ellipse(0, 0, 0.3), 1)]),
    "cup": (
        [(_ellipse(0.55, -0.05, 0.43, 0.48), 1), (_ellipse(0.57, -0.05, 0.2, 0.25), 0),
         (np.array([(-0.95, -0.75), (0.5, -0.75), (0.32, 0.85), (-0.77, 0.85)]), 1)],
        [],
    ),
}  # fmt: skip
"""Shape -> polygons of the body and of its detail in -1..1, y down; value 0 cuts a hole."""
