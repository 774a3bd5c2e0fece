"""From a scene to pixels: places, colours and textures of its objects on a background."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xlcm.data.scenes.backgrounds import background
from xlcm.data.scenes.shapes import shape_masks, texture_mask
from xlcm.data.scenes.world import Colour, Group, Scene, Size

RGB: dict[Colour, tuple[int, int, int]] = {
    "red": (222, 28, 36), "blue": (38, 84, 228), "green": (28, 150, 48),
    "yellow": (252, 218, 30), "orange": (252, 128, 8), "purple": (134, 40, 172),
    "pink": (255, 150, 200), "brown": (124, 72, 32), "black": (24, 24, 28),
}  # fmt: skip
PIXELS: dict[Size, tuple[int, int]] = {"small": (12, 12), "large": (20, 21)}
"""Least and greatest width of an object on a picture of 64 pixels; 3 x 21 is the whole side."""
TURN = 12  # degrees to either side, in steps of 4
LIGHT: frozenset[Colour] = frozenset({"yellow", "orange", "pink"})
"""Colours whose texture and details are darker than they; those of all others are paler."""


def draw(scene: Scene, random: np.random.Generator, size: int = 64) -> NDArray[np.uint8]:
    """Return the picture of a scene, `(size, size, 3)` RGB.

    Places, turns, tints and background noise are drawn by lot, and each group keeps to its part
    of the axis, so that every relation of the scene is true of every object.

    Args:
        scene: one to three groups; large objects of three groups just fit.
        random: the same state gives the same pixels.
        size: side in pixels, at least 32.
    """
    canvas = background(scene.background, random, size)
    for group, cell in zip(scene.groups, _cells(scene, random, size)):
        _draw_group(canvas, group, cell, scene.background == "night", random, size)
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


def _cells(scene: Scene, random: np.random.Generator, size: int) -> list[tuple[int, int, int, int]]:
    """Share the axis among the groups: what the objects need, and the rest by lot.

    Returns:
        For each group left, top, width and height in pixels.
    """
    needs = [PIXELS[group.size][1] * size // 64 for group in scene.groups]
    spare = random.dirichlet([3.0] * len(needs)) * (size - sum(needs))
    ends = (np.cumsum(np.array(needs) + spare) + 1e-6).astype(int)  # 63.999... is 64
    starts = [0, *ends[:-1]]
    if scene.axis == "horizontal":
        return [(int(a), 0, int(b - a), size) for a, b in zip(starts, ends)]
    return [(0, int(a), size, int(b - a)) for a, b in zip(starts, ends)]


def _draw_group(
    canvas: NDArray[np.float32],
    group: Group,
    cell: tuple[int, int, int, int],
    dark: bool,
    random: np.random.Generator,
    size: int,
) -> None:
    left, top, width, height = cell
    least, most = (pixels * size // 64 for pixels in PIXELS[group.size])
    pixels = int(random.integers(least, most + 1))
    grids = [(columns, rows) for columns in range(1, width // pixels + 1)
             for rows in range(1, height // pixels + 1)
             if group.count <= columns * rows <= group.count + 3]  # fmt: skip
    columns, rows = grids[int(random.integers(len(grids)))]
    wide, high = width / columns, height / rows
    colour = np.array(RGB[group.colour], np.float32) * random.uniform(0.93, 1.07)
    mirrored = bool(random.random() < 0.5)
    phase = int(random.integers(4))
    for slot in random.choice(columns * rows, group.count, replace=False):
        row, column = divmod(int(slot), columns)
        x = left + int(column * wide + random.random() * (wide - pixels))
        y = top + int(row * high + random.random() * (high - pixels))
        tint = np.clip(colour + random.uniform(-9, 9, 3).astype(np.float32), 0, 255)
        degrees = 4 * int(random.integers(-TURN // 4, TURN // 4 + 1))
        _paint(canvas, group, tint, dark, (x, y, pixels), (degrees, mirrored, phase), size)


def _paint(
    canvas: NDArray[np.float32],
    group: Group,
    tint: NDArray[np.float32],
    dark: bool,
    box: tuple[int, int, int],
    look: tuple[int, bool, int],
    size: int,
) -> None:
    x, y, pixels = box
    degrees, mirrored, phase = look
    rim = max(1, round(size / 64))
    body, inside, detail = shape_masks(group.shape, pixels, degrees, mirrored, rim)
    light = group.colour in LIGHT
    face = np.broadcast_to(tint, (pixels, pixels, 3))
    if group.texture != "plain":
        unit = (2.0 if group.size == "small" else 3.0) * size / 64
        second = tint * 0.45 if light else tint * 0.2 + 255 * 0.8
        where = (texture_mask(group.texture, pixels, unit, phase) * inside)[..., None]
        face = face + (second - face) * where
    part = canvas[y : y + pixels, x : x + pixels]
    part += (face - part) * body[..., None]
    if detail.any():
        # dark parts get lost at night and on black, pale ones among pale stripes
        pale = group.colour == "black" or (dark and (light or group.texture == "plain"))
        deep = tint * 0.4 + 255 * 0.6 if pale else tint * (0.5 if dark else 0.35)
        part += (deep - part) * detail[..., None]
