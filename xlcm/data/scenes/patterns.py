"""Sentence patterns: strings with slots, and the filling of them.

A pattern is plain text, one piece a word, with

- ``{first:acc}``, ``{second:acc}``: a mention, here in the accusative;
- ``{all:acc}``, ``{rest:acc}``: all mentions, or those after the second, as a list with "and";
- ``{place}``: the relation and the second mention ("to the left of two blue fish");
- ``{there}``: the relation and a pronoun for the second mention ("to the left of them");
- ``{background}``: where it all is;
- ``{is|are:first}``: a word in the singular or plural, by the number of `first`, `second`, or of
  `all`, `rest` or `both` (the first mention and the rest), which are plural if they name several;
- ``[, as well as {rest}]``: left out if there is no rest (or no background, if that stands in it);
  ``[{background} ... | ...]``: what follows the bar is said instead.

A comma joins the piece before it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, Union

from xlcm.data.scenes.world import Background, Mention, Relation, Statement

Phrase: TypeAlias = Callable[[Mention, str, int], "list[str]"]
"""A mention in a case, in a wording: ``phrase(mention, case, wording)``."""
Place: TypeAlias = Callable[[Relation, Mention, int], "list[str]"]
"""A relation and what it is seen from (or a pronoun for it): ``place(relation, seen, wording)``."""

Part: TypeAlias = Union[str, "_Slot", "_Option"]


@dataclass(frozen=True, slots=True)
class _Slot:
    name: str
    case: str


@dataclass(frozen=True, slots=True)
class _Option:
    needs: str  # "rest" or "background"
    said: tuple[Part, ...]
    instead: tuple[Part, ...]


class Patterns:
    """The sentences of one language.

    Args:
        patterns: for each style the sentence with a relation and the one that only lists.
        phrase: puts a mention into words.
        place: puts "seen from this mention" into words.
        there: the same with a pronoun.
        backgrounds: for each wording the words of each background; style i has wording
            i modulo their number, in the mentions and relations too.
        conjunction: "and".
    """

    def __init__(
        self,
        patterns: Sequence[tuple[str, str]],
        *,
        phrase: Phrase,
        place: Place,
        there: Place,
        backgrounds: Sequence[Mapping[Background, str]],
        conjunction: str,
    ) -> None:
        self.patterns = [(_parse(related), _parse(listed)) for related, listed in patterns]
        self.phrase = phrase
        self.place = place
        self.there = there
        self.backgrounds = [{k: v.split() for k, v in words.items()} for words in backgrounds]
        self.conjunction = conjunction

    def __len__(self) -> int:
        return len(self.patterns)

    def words(self, statement: Statement, style: int) -> list[str]:
        """Return the pieces of the sentence.

        Raises:
            ValueError: if there is a relation, but only one mention.
        """
        if statement.relation is not None and len(statement.mentions) < 2:
            raise ValueError(
                f"the relation {statement.relation!r} needs two mentions, got {statement.mentions}"
            )
        related, listed = self.patterns[style]
        pieces: list[str] = []
        parts = listed if statement.relation is None else related
        self._fill(parts, statement, style % len(self.backgrounds), pieces)
        return pieces

    def _fill(
        self, parts: tuple[Part, ...], statement: Statement, wording: int, pieces: list[str]
    ) -> None:
        for part in parts:
            if isinstance(part, _Option):
                missing = (
                    statement.background is None
                    if part.needs == "background"
                    else len(statement.mentions) < 3
                )
                self._fill(part.instead if missing else part.said, statement, wording, pieces)
            elif isinstance(part, _Slot):
                pieces.extend(self._slot(part, statement, wording))
            elif part == ",":
                pieces[-1] += part
            else:
                pieces.append(part)

    def _slot(self, slot: _Slot, statement: Statement, wording: int) -> list[str]:
        mentions, name = statement.mentions, slot.name
        if name == "first":
            return self.phrase(mentions[0], slot.case, wording)
        if name == "second":
            return self.phrase(mentions[1], slot.case, wording)
        if name == "all":
            return self._list(mentions, slot.case, wording)
        if name == "rest":
            return self._list(mentions[2:], slot.case, wording)
        if name == "background":
            assert statement.background is not None  # its option was left out otherwise
            return self.backgrounds[wording][statement.background]
        if "|" in name:
            one, several = name.split("|")
            counted = _counted(statement, slot.case)
            return [one if len(counted) == 1 and counted[0].count == 1 else several]
        assert statement.relation is not None  # or the listing pattern would have been taken
        words = self.place if name == "place" else self.there
        return words(statement.relation, mentions[1], wording)

    def _list(self, mentions: Sequence[Mention], case: str, wording: int) -> list[str]:
        pieces: list[str] = []
        for i, mention in enumerate(mentions):
            if i > 0 and i == len(mentions) - 1:
                pieces.append(self.conjunction)
            elif i > 0:
                pieces[-1] += ","
            pieces.extend(self.phrase(mention, case, wording))
        return pieces


def _counted(statement: Statement, name: str) -> Sequence[Mention]:
    """Return the mentions whose number a word agrees with."""
    mentions = statement.mentions
    if name == "first":
        return mentions[:1]
    if name == "second":
        return mentions[1:2]
    if name == "rest":
        return mentions[2:]
    return mentions if name == "all" else mentions[:1] + mentions[2:]


_SLOTS = {"first", "second", "all", "rest", "place", "there", "background"}


def _parse(text: str) -> tuple[Part, ...]:
    """Return the parts of a pattern; a fault in one stops the import, naming the pattern."""
    parts: list[Part] = []
    for token in re.findall(r"\[[^\]]*\]|\{[^}]*\}|,|[^\s\[\]{},]+", text):
        if token.startswith("["):
            said, _, instead = re.sub(r"(?<=\s)\|(?=\s)", "\n", token[1:-1]).partition("\n")
            needs = "background" if "{background}" in said else "rest"
            parts.append(_Option(needs, _parse(said), _parse(instead)))
        elif token.startswith("{"):
            name, _, case = token[1:-1].partition(":")
            if name not in _SLOTS and "|" not in name:
                raise ValueError(f"no slot is called {name!r} in {text!r}; slots: {sorted(_SLOTS)}")
            parts.append(_Slot(name, case))
        else:
            parts.append(token)
    return tuple(parts)
