"""Scenes, the built-in benchmark: pictures drawn on the fly, captions in seven languages."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xlcm.data.scenes.dataset import Scenes
    from xlcm.data.scenes.grammar import LANGS
    from xlcm.data.scenes.noise import NOISE_KINDS

__all__ = ["LANGS", "NOISE_KINDS", "Scenes"]
_WHERE = {"Scenes": "dataset", "LANGS": "grammar", "NOISE_KINDS": "noise"}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
