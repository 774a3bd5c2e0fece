"""Statements as sentences, in every language of Scenes.

The grammar of each language stands in ``grammar_<lang>.py``, which has

- ``STYLES: int``, the number of its sentence patterns;
- ``words(statement, style) -> list[str]``, the sentence in pieces, about one word each, with
  punctuation at the end of the piece before it, no capital at the start and no full stop.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from typing import Protocol, cast

from xlcm.data.scenes.world import Statement
from xlcm.registry import nearest

LANGS: tuple[str, ...] = ("en", "de", "fr", "cs", "zh", "ja", "sw")
_UNSPACED = ("zh", "ja")


class _Grammar(Protocol):
    STYLES: int

    def words(self, statement: Statement, style: int) -> list[str]: ...


@cache
def _grammar(lang: str) -> _Grammar:
    if lang not in LANGS:
        hint = nearest(lang.lower().partition("-")[0], LANGS)  # "cs-CZ" and "CS" mean "cs"
        raise ValueError(f"Scenes has no grammar for {lang!r}{hint}; known: {', '.join(LANGS)}")
    return cast(_Grammar, import_module(f"xlcm.data.scenes.grammar_{lang}"))


class _Styles(Mapping[str, int]):
    """Looks a language up when it is asked for, so that importing one doesn't import all."""

    def __getitem__(self, lang: str) -> int:
        return _grammar(lang).STYLES

    def __contains__(self, lang: object) -> bool:
        return lang in LANGS

    def __iter__(self) -> Iterator[str]:
        return iter(LANGS)

    def __len__(self) -> int:
        return len(LANGS)


STYLES: Mapping[str, int] = _Styles()
"""The number of sentence patterns of each language."""


def pieces(lang: str, statement: Statement, style: int) -> list[str]:
    """Return the sentence in pieces, about one word each, without capital and full stop.

    Args:
        lang: one of `LANGS`.
        statement: the meaning.
        style: the sentence pattern, 0 to ``STYLES[lang] - 1``.

    Raises:
        ValueError: if there is no such language or style, or the statement has a relation and
            only one mention.
    """
    grammar = _grammar(lang)
    if not 0 <= style < grammar.STYLES:
        raise ValueError(f"{lang!r} has the styles 0 to {grammar.STYLES - 1}, got {style}")
    return grammar.words(statement, style)


def join(lang: str, pieces: Sequence[str]) -> str:
    """Return a sentence made of pieces: spaces, capital and full stop as the language has them.

    Raises:
        ValueError: if there is no such language, or no piece.
    """
    _grammar(lang)
    if not pieces:
        raise ValueError(f"a sentence in {lang!r} needs at least one piece, got none")
    if lang in _UNSPACED:
        return "".join(pieces) + "。"
    text = " ".join(pieces).rstrip(",;")
    return text[0].upper() + text[1:] + "."


def sentence(lang: str, statement: Statement, style: int) -> str:
    """Return the statement as a sentence; arguments and errors as in `pieces`."""
    return join(lang, pieces(lang, statement, style))
