"""The six backgrounds, each different in every picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xlcm.data.scenes.world import Background

Canvas = NDArray[np.float32]


def background(kind: Background, random: np.random.Generator, size: int) -> Canvas:
    """Return a background with noise, `(size, size, 3)` RGB in about 0..255."""
    canvas = _PAINTERS[kind](random, size)
    canvas += random.uniform(-7, 7)
    grain = 5 if kind in ("white", "night") else 8
    canvas += random.integers(-grain, grain + 1, (size, size, 1), np.int8)
    return canvas


def _fill(colour: tuple[int, int, int], size: int) -> Canvas:
    return np.full((size, size, 3), colour, np.float32)


def _fade(top: tuple[int, int, int], bottom: tuple[int, int, int], size: int) -> Canvas:
    share = np.linspace(0, 1, size, dtype=np.float32)[:, None, None]
    ends = np.array([top, bottom], np.float32)
    return np.repeat(ends[0] + (ends[1] - ends[0]) * share, size, axis=1)


def _white(random: np.random.Generator, size: int) -> Canvas:
    return _fill((247, 247, 247), size)


def _grey(random: np.random.Generator, size: int) -> Canvas:
    return _fill((160, 160, 162), size)


def _meadow(random: np.random.Generator, size: int) -> Canvas:
    canvas = _fade((188, 222, 248), (222, 238, 250), size)
    horizon = int(random.uniform(0.3, 0.5) * size)
    blades = random.integers(-22, 23, (1, size, 1)) + random.integers(-12, 13, (size, size, 1))
    canvas[horizon:] = np.array((140, 200, 96), np.float32) + blades[:, :, :][horizon:]
    return canvas


def _night(random: np.random.Generator, size: int) -> Canvas:
    canvas = _fade((8, 10, 34), (24, 26, 62), size)
    stars = random.integers(0, size, (2, int(random.integers(14, 30))))
    canvas[stars[0], stars[1]] = random.uniform(150, 255)
    return canvas


def _sea(random: np.random.Generator, size: int) -> Canvas:
    canvas = _fade((96, 176, 226), (44, 122, 196), size)
    x, y = np.arange(size, dtype=np.float32) / size, np.arange(size, dtype=np.float32) / size
    waves, shift = random.integers(5, 8), random.uniform(0, 1, 2)
    bend = 0.16 * np.sin(2 * np.pi * (3 * x + shift[0]))
    crest = np.sin(2 * np.pi * (waves * y[:, None] + bend + shift[1]))
    canvas += (np.maximum(crest - 0.55, 0) * 110)[..., None]
    return canvas


def _desert(random: np.random.Generator, size: int) -> Canvas:
    canvas = _fade((250, 236, 206), (252, 244, 226), size)
    x = np.arange(size, dtype=np.float32) / size
    y = np.arange(size)[:, None]
    for level, colour in ((0.42, (232, 198, 140)), (0.62, (218, 176, 112))):
        shift, height = random.uniform(0, 1), random.uniform(0.04, 0.08)
        dune = (level + height * np.sin(2 * np.pi * (x * 1.3 + shift))) * size
        canvas[y >= dune] = colour
    return canvas


_PAINTERS = {
    "white": _white, "grey": _grey, "meadow": _meadow,
    "night": _night, "sea": _sea, "desert": _desert,
}  # fmt: skip
