"""Word for word through a table, for the captions of Scenes: a translator that needs no weights.

The table is learnt from the grammars: sentences of the same statements in both languages, and for
each word the one that comes with it most of all. So content words are right, endings those of the
most frequent case, words without a counterpart are left out, and the word order is the source's: a
poor translation, but one.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from xlcm.config import ConfigError
from xlcm.data.scenes.grammar import LANGS, STYLES, join, pieces
from xlcm.data.scenes.world import Statement, random_scene, random_statement
from xlcm.registry import nearest
from xlcm.translation.engines import engines

STATEMENTS = 3000
LEAST = 0.1  # a word without a partner at least so much more likely beside it is left out
OWN, NEAR = 0.55, 0.85
_MARKS = ",;.。、，"


@engines.register("scenes_table")
class ScenesTable:
    """Translates captions of Scenes between its languages, word for word."""

    label = "scenes-table"

    def __init__(self) -> None:
        self.cut = 0

    def check(self, source: str, target: str) -> None:
        """Raise `ConfigError` for a language that Scenes has no grammar of."""
        for lang in (source, target):
            if lang not in LANGS:
                raise ConfigError(
                    f"the engine scenes_table has no grammar for {lang!r}{nearest(lang, LANGS)}; "
                    f"known: {', '.join(LANGS)}"
                )

    def to(self, device: Any) -> None:
        """Do nothing: there is nothing to compute."""

    def translate(self, texts: Sequence[str], source: str, target: str) -> list[str]:
        """Return the texts with each word replaced; unknown words stay as they are."""
        known = table(source, target)
        return [_translate(text, source, target, known) for text in texts]


def _translate(text: str, source: str, target: str, known: dict[str, str]) -> str:
    out: list[str] = []
    for word in _split(text, source, known):
        found = known.get(word, word)
        if found and (not out or out[-1] != found):
            out.append(found)
    return join(target, out) if out else text


def _split(text: str, lang: str, known: dict[str, str]) -> list[str]:
    text = text.lower()
    for mark in _MARKS:
        text = text.replace(mark, " ")
    if lang not in ("zh", "ja"):
        return text.split()
    longest, words = max(map(len, known)), []
    for part in text.split():
        start = 0
        while start < len(part):
            sizes = range(min(longest, len(part) - start), 0, -1)
            size = next((n for n in sizes if part[start : start + n] in known), 1)
            words.append(part[start : start + size])
            start += size
    return words


@functools.cache
def table(source: str, target: str) -> dict[str, str]:
    """Return source word in lower case -> target word; empty: the word has no partner."""
    random = np.random.default_rng(0)
    of_source: Counter[str] = Counter()
    of_target: Counter[str] = Counter()
    both: dict[str, Counter[str]] = {}
    for number in range(STATEMENTS):
        statement = random_statement(random_scene(random), random)
        styles = number % STYLES[source], number // STYLES[source] % STYLES[target]
        here = {p.lower() for p in _words(source, statement, styles[0])}
        there = {p for p in _words(target, statement, styles[1]) if not _one(target, p)}
        of_source.update(here)
        of_target.update(there)
        for word in here:
            both.setdefault(word, Counter()).update(there)
    gains = {word: _gains(both[word], times, of_target) for word, times in of_source.items()}
    linked = _link(gains, of_target)
    return {word: "" if _one(source, word) else found for word, found in linked.items()}


def _one(lang: str, piece: str) -> bool:
    """Whether a piece is "one" with its measure word, which goes with the noun and says little."""
    return lang in ("zh", "ja") and piece.startswith("一")


def _words(lang: str, statement: Statement, style: int) -> set[str]:
    return {piece.strip(_MARKS) for piece in pieces(lang, statement, style)} - {""}


def _gains(beside: Counter[str], times: int, of_target: Counter[str]) -> dict[str, float]:
    """Return how much likelier each word is beside this one than in other sentences."""
    others = max(STATEMENTS - times, 1)
    return {
        word: gain
        for word, n in beside.items()
        if (gain := n / times - (of_target[word] - n) / others) > LEAST
    }


def _link(gains: dict[str, dict[str, float]], of_target: Counter[str]) -> dict[str, str]:
    """Return each word's partner: among its likeliest words the most frequent one.

    A word that belongs more to another one ("links" to "left" and not to "to") is none of them.
    """
    most: dict[str, float] = {}
    for found in gains.values():
        for word, gain in found.items():
            most[word] = max(gain, most.get(word, 0.0))
    linked: dict[str, str] = {}
    for source, found in sorted(gains.items()):
        own = {word: gain for word, gain in found.items() if gain >= OWN * most[word]}
        near = [word for word, gain in own.items() if gain >= NEAR * max(own.values())]
        linked[source] = max(sorted(near), key=lambda word: of_target[word], default="")
    return linked
