"""Which scene is item i of a split: splits never share a meaning, by construction."""

from __future__ import annotations

import hashlib
import zlib
from functools import lru_cache
from typing import Literal, TypeAlias

import numpy as np

from xlcm.data.scenes.world import Scene, random_scene

Split: TypeAlias = Literal["train", "val", "test"]
SHARES: dict[Split, tuple[int, ...]] = {"train": tuple(range(8)), "val": (8,), "test": (9,)}
"""Split -> the tenths of all meanings, by their hash, that belong to it."""
DISTINCT = 10_000
"""So many first items of `val` and of `test` are of pairwise different meaning."""


def generator(
    purpose: str, seed: int, split: Split, index: int, lang: str = "", number: int = 0
) -> np.random.Generator:
    """Return the generator that belongs to one draw alone, whatever was drawn before."""
    key = f"{purpose} {seed} {split} {index} {lang} {number}".encode()
    # one number is seeded from in half the time that a list of them takes
    return np.random.default_rng(
        int.from_bytes(hashlib.blake2b(key, digest_size=16).digest(), "big")
    )


def scene_at(seed: int, split: Split, index: int) -> Scene:
    """Return the scene of an item; it does not depend on the size of the split.

    Scenes are drawn until one falls into the split's share. In `val` and `test`, the first
    `DISTINCT` items also avoid the meanings of the items before them, so that no query has two
    equal pictures in the gallery; those before are drawn too, once a process.
    """
    if split == "train" or index >= DISTINCT:
        return _draw(seed, split, index, frozenset())
    scenes, taken = _distinct(seed, split)
    while len(scenes) <= index:
        scene = _draw(seed, split, len(scenes), taken)
        scenes.append(scene)
        taken.add(meaning(scene))
    return scenes[index]


def meaning(scene: Scene) -> str:
    """Return what two scenes share if they show the same; one group has no axis."""
    axis = scene.axis if len(scene.groups) > 1 else "alone"
    groups = (f"{g.count} {g.size} {g.colour} {g.texture} {g.shape}" for g in scene.groups)
    return "; ".join([axis, scene.background, *groups])


def tenth(scene: Scene) -> int:
    """Return which tenth of all meanings a scene belongs to, 0 to 9."""
    return zlib.crc32(meaning(scene).encode()) % 10


@lru_cache(maxsize=16)
def _distinct(seed: int, split: Split) -> tuple[list[Scene], set[str]]:
    return [], set()


def _draw(seed: int, split: Split, index: int, taken: frozenset[str] | set[str]) -> Scene:
    random = generator("scene", seed, split, index)
    share = SHARES[split]
    while True:
        scene = random_scene(random)
        if tenth(scene) in share and meaning(scene) not in taken:
            return scene
