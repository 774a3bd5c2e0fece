"""The mistakes of machine translation, one at a time and on purpose.

All kinds but one change the meaning (a `Statement`) before any word is chosen, so a wrong caption
is as grammatical as a right one and only its content gives it away; a back-translation carries
the same mistake because it says the same wrong statement. `word_order` alone works on the words:
`corrupt` leaves its statement as it is and `shuffle_words` does the work.

==================  ==================================================  =============
kind                what happens                                        meaning wrong
==================  ==================================================  =============
``wrong_sense``     a noun in another sense: star becomes celebrity     yes
``omission``        a mention is lost, or a detail of the only one      yes
``attribute_swap``  colours, sizes, counts change owner, or sides swap  yes
``untranslated``    a noun stays in English                             no
``word_order``      words change their places                           no
``hallucination``   something is said that is not in the picture        yes
``wrong_sentence``  the caption of another picture                      yes
==================  ==================================================  =============
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import numpy as np

from xlcm.data.scenes.world import (
    COLOURS,
    OPPOSITE,
    SENSES,
    SHAPES,
    WRONG_SENSE,
    Mention,
    Shape,
    Statement,
)

NoiseKind: TypeAlias = Literal[
    "wrong_sense",
    "omission",
    "attribute_swap",
    "untranslated",
    "word_order",
    "hallucination",
    "wrong_sentence",
]
NOISE_KINDS: tuple[NoiseKind, ...] = get_args(NoiseKind)
HARMLESS: frozenset[NoiseKind] = frozenset({"untranslated", "word_order"})
"""Kinds that spoil the sentence but leave its meaning."""

MARKS = ",;:.、，；：。"
ATTEMPTS = 100
_ATTRIBUTES = ("colour", "size", "texture", "count")
_RIGHT_SHAPE: dict[str, str] = {sense: shape for shape, sense in WRONG_SENSE.items()}
_T = TypeVar("_T")


def is_wrong(kind: NoiseKind) -> bool:
    """Return whether a caption of this kind says something else than the right one.

    An omission counts: what is left may be true, but it fits more pictures than it should.
    """
    return kind not in HARMLESS


def meaning(statement: Statement) -> object:
    """Return a value that is equal for two statements if, and only if, they say the same.

    The order of a mere list does not matter; "A left of B" is "B right of A"; whether a noun was
    translated does not matter either.
    """
    said = [replace(mention, untranslated=False) for mention in statement.mentions]
    if statement.relation is None:
        return None, frozenset(Counter(said).items()), statement.background
    related, rest = said[:2], said[2:]
    relation = statement.relation
    if relation in ("right_of", "below"):
        related, relation = related[::-1], OPPOSITE[relation]
    return (relation, *related), frozenset(Counter(rest).items()), statement.background


def corrupt(
    statement: Statement,
    kind: NoiseKind,
    random: np.random.Generator,
    other: Callable[[], Statement],
) -> Statement:
    """Return the statement with one mistake in it.

    Args:
        statement: the right meaning, of one mention or more; it is not changed.
        kind: the mistake; its result has another `meaning` unless the kind is in `HARMLESS`.
        random: equal states give equal mistakes.
        other: draws the statement of another picture, for `wrong_sentence` alone.

    Raises:
        ValueError: if the kind is unknown, or if `other` keeps on saying the same as `statement`.
    """
    if kind == "word_order":
        return statement
    if kind == "wrong_sentence":
        return _wrong_sentence(statement, other)
    if kind not in _CORRUPTIONS:
        raise ValueError(f"unknown kind of noise {kind!r}; there are {', '.join(NOISE_KINDS)}")
    return _CORRUPTIONS[kind](statement, random)


def shuffle_words(pieces: Sequence[str], random: np.random.Generator) -> list[str]:
    """Return the words in another order: about one in four is moved somewhere else.

    Marks such as commas keep their places in the sentence, so none stands at the start.

    Args:
        pieces: words in order, each with the mark that follows it, if any.
        random: equal states give equal orders.

    Returns:
        As many pieces, never the same sequence, unless there are no two different words.
    """
    words = [piece.rstrip(MARKS) for piece in pieces]
    marks = [piece[len(word) :] for piece, word in zip(pieces, words)]
    moved = list(words)
    for _ in range(max(1, len(words) // 4) if words else 0):
        word = moved.pop(int(random.integers(len(moved))))
        moved.insert(int(random.integers(len(moved) + 1)), word)
    if moved == words:
        unequal = [i for i in range(len(words) - 1) if words[i] != words[i + 1]]
        if unequal:
            i = _pick(unequal, random)
            moved[i], moved[i + 1] = moved[i + 1], moved[i]
    return [word + mark for word, mark in zip(moved, marks)]


def _wrong_sense(statement: Statement, random: np.random.Generator) -> Statement:
    places = [i for i, mention in enumerate(statement.mentions) if mention.shape in WRONG_SENSE]
    if places:
        i = _pick(places, random)
        return _change(statement, i, shape=WRONG_SENSE[statement.mentions[i].shape])
    i = int(random.integers(len(statement.mentions)))
    senses = [sense for sense in SENSES if sense != statement.mentions[i].shape]
    return _change(statement, i, shape=_pick(senses, random))


def _omission(statement: Statement, random: np.random.Generator) -> Statement:
    mentions = statement.mentions
    if len(mentions) > 1:
        i = int(random.integers(len(mentions)))
        relation = statement.relation if i > 1 else None
        return replace(statement, mentions=mentions[:i] + mentions[i + 1 :], relation=relation)
    said = [name for name in ("colour", "size", "texture") if getattr(mentions[0], name)]
    if said:
        return _change(statement, 0, **{_pick(said, random): None})
    if statement.background is not None:
        return replace(statement, background=None)
    if mentions[0].count > 1:
        return _change(statement, 0, count=1)
    return _wrong_sense(statement, random)  # "a star": no word of it can be missing


def _attribute_swap(statement: Statement, random: np.random.Generator) -> Statement:
    right = meaning(statement)
    found = []  # by attribute, so that three mentions make no attribute likelier than another
    for name in _ATTRIBUTES:
        swaps = [
            _exchange(statement, i, j, name)
            for i, j in combinations(range(len(statement.mentions)), 2)
            if None
            not in (getattr(statement.mentions[i], name), getattr(statement.mentions[j], name))
        ]  # "a small star and a house" may be as true as "a star and a small house"
        # red and blue stars in a list say the same when they exchange colours
        if swaps := [swap for swap in swaps if meaning(swap) != right]:
            found.append(swaps)
    if statement.relation is not None:
        turned = replace(statement, relation=OPPOSITE[statement.relation])
        if meaning(turned) != right:
            found.append([turned])
    return _pick(_pick(found, random), random) if found else _another_value(statement, random)


def _another_value(statement: Statement, random: np.random.Generator) -> Statement:
    """Where no two mentions can exchange anything, one takes a value that none has."""
    i = int(random.integers(len(statement.mentions)))
    mention = statement.mentions[i]
    if mention.colour is not None:
        return _change(
            statement, i, colour=_pick([c for c in COLOURS if c != mention.colour], random)
        )
    if mention.size is not None:
        return _change(statement, i, size="small" if mention.size == "large" else "large")
    return _change(
        statement, i, count=_pick([n for n in range(1, 5) if n != mention.count], random)
    )


def _untranslated(statement: Statement, random: np.random.Generator) -> Statement:
    places = [i for i, mention in enumerate(statement.mentions) if not mention.untranslated]
    return _change(statement, _pick(places, random), untranslated=True) if places else statement


def _hallucination(statement: Statement, random: np.random.Generator) -> Statement:
    said = {_RIGHT_SHAPE.get(mention.shape, mention.shape) for mention in statement.mentions}
    shapes: list[Shape] = [shape for shape in SHAPES if shape not in said]
    seen = Mention(_pick(shapes, random), int(random.integers(1, 5)), _pick(COLOURS, random))
    return replace(statement, mentions=(*statement.mentions, seen))


def _wrong_sentence(statement: Statement, other: Callable[[], Statement]) -> Statement:
    right = meaning(statement)
    for _ in range(ATTEMPTS):
        if meaning(drawn := other()) != right:
            return drawn
    raise ValueError(
        f"wrong_sentence: `other` said the same as the right caption {ATTEMPTS} times; "
        "it must draw from other pictures"
    )


_CORRUPTIONS: dict[str, Callable[[Statement, np.random.Generator], Statement]] = {
    "wrong_sense": _wrong_sense,
    "omission": _omission,
    "attribute_swap": _attribute_swap,
    "untranslated": _untranslated,
    "hallucination": _hallucination,
}


def _pick(values: Sequence[_T], random: np.random.Generator) -> _T:
    return values[int(random.integers(len(values)))]


def _change(statement: Statement, place: int, **values: Any) -> Statement:
    mentions = list(statement.mentions)
    mentions[place] = replace(mentions[place], **values)
    return replace(statement, mentions=tuple(mentions))


def _exchange(statement: Statement, first: int, second: int, name: str) -> Statement:
    one, two = statement.mentions[first], statement.mentions[second]
    changed = _change(statement, first, **{name: getattr(two, name)})
    return _change(changed, second, **{name: getattr(one, name)})
