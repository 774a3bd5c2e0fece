"""Counts a manifest: items by split, captions by language and origin, lengths by language."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xlcm.data.manifest import lines, parse_item

QUANTILES = {"min": 0.0, "p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}


@dataclass
class Stats:
    """What is in a manifest.

    Args:
        items: by split.
        without_captions: items that have none, by split.
        captions: by (split, language, origin).
        pictured: items with a caption in a language, by (split, language).
        characters: by language, captions of each length in characters.
        words: by language, captions of each length in words between blanks; Chinese, Japanese
            and Thai put none, so a caption there counts as one or a few.
    """

    items: Counter[str] = field(default_factory=Counter)
    without_captions: Counter[str] = field(default_factory=Counter)
    captions: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    pictured: Counter[tuple[str, str]] = field(default_factory=Counter)
    characters: dict[str, Counter[int]] = field(default_factory=dict)
    words: dict[str, Counter[int]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain data, lengths as quantiles."""
        return {
            "items": dict(self.items),
            "without_captions": dict(self.without_captions),
            "captions": [
                {"split": split, "lang": lang, "origin": origin, "captions": number,
                 "items": self.pictured[split, lang]}
                for (split, lang, origin), number in sorted(self.captions.items())
            ],
            "characters": {k: quantiles(v) for k, v in sorted(self.characters.items())},
            "words": {k: quantiles(v) for k, v in sorted(self.words.items())},
        }  # fmt: skip


def manifest_stats(path: str | Path, *, on_progress: Callable[[int], None] | None = None) -> Stats:
    """Count a manifest in one pass; memory does not grow with it.

    Args:
        path: the manifest.
        on_progress: called with the bytes that are done.

    Raises:
        DataError: at the first line that is no item.
    """
    stats = Stats()
    for number, offset, raw in lines(path):
        item = parse_item(raw, f"{path}:{number}")
        stats.items[item.split] += 1
        if not item.captions:
            stats.without_captions[item.split] += 1
        for lang in {caption.lang for caption in item.captions}:
            stats.pictured[item.split, lang] += 1
        for caption in item.captions:
            lang = caption.lang
            stats.captions[item.split, lang, caption.origin] += 1
            stats.characters.setdefault(lang, Counter())[len(caption.text)] += 1
            stats.words.setdefault(lang, Counter())[len(caption.text.split())] += 1
        if on_progress is not None and number % 1000 == 0:
            on_progress(offset)
    return stats


def quantiles(lengths: Counter[int]) -> dict[str, int]:
    """Return lengths at `QUANTILES`, each one that occurs: the least that so many don't exceed."""
    values = np.array(sorted(lengths), dtype=np.int64)
    reached = np.cumsum([lengths[value] for value in values.tolist()])
    at = {name: np.searchsorted(reached, share * reached[-1]) for name, share in QUANTILES.items()}
    return {name: int(values[i]) for name, i in at.items()}
