"""Swahili: numbers, adjectives, -a, -enye and -ko agree with the class of the noun.

To correct a form, change the tables: `NOUNS`, `AGREEMENT`, `COLOUR`, `TEXTURE`, `SIDE`,
`BACKDROP`, `PLACE`. Order: noun, number, size, colour, texture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from xlcm.data.scenes.world import Background, Mention, Relation, Statement

NOUNS: dict[str, tuple[str, int, str, int]] = {
    # one, its class; several, their class (the usual numbers of Bantu classes)
    "circle": ("duara", 5, "maduara", 6),
    "square": ("mraba", 3, "miraba", 4),
    "triangle": ("pembetatu", 9, "pembetatu", 10),
    "star": ("nyota", 9, "nyota", 10),
    "heart": ("moyo", 3, "mioyo", 4),
    "moon": ("mwezi", 3, "miezi", 4),
    "house": ("nyumba", 9, "nyumba", 10),
    "tree": ("mti", 3, "miti", 4),
    "car": ("gari", 5, "magari", 6),
    "fish": ("samaki", 1, "samaki", 2),  # a noun of class 9, but animals agree as people do
    "flower": ("ua", 5, "maua", 6),
    "cup": ("kikombe", 7, "vikombe", 8),
    # what a machine may take them for
    "club": ("klabu", 9, "klabu", 10),
    "market": ("soko", 5, "masoko", 6),
    "drum": ("ngoma", 9, "ngoma", 10),
    "celebrity": ("mtu mashuhuri", 1, "watu mashuhuri", 2),
    "courage": ("ujasiri", 14, "ujasiri", 10),
    "month": ("mwezi wa kalenda", 3, "miezi ya kalenda", 4),
    "parliament": ("bunge", 5, "mabunge", 6),
    "beam": ("boriti", 9, "boriti", 10),
    "wagon": ("behewa", 5, "mabehewa", 6),
    "angler": ("mvuvi", 1, "wavuvi", 2),
    "flour": ("unga", 14, "unga", 10),
    "trophy": ("kombe", 5, "makombe", 6),
}
ENGLISH_PLURAL = {
    "fish": "fish", "celebrity": "celebrities", "courage": "courage", "flour": "flour"
}  # fmt: skip


class Agreement(NamedTuple):
    """What the words around a noun of one class look like."""

    numbers: tuple[str, ...]  # one, or two to four
    small: str
    large: str
    red: str
    black: str
    of: str  # -a
    having: str  # -enye
    is_at: str  # -ko


def _agreement(numbers: str, others: str) -> Agreement:
    return Agreement(tuple(numbers.split()), *others.split())


AGREEMENT: dict[int, Agreement] = {
    1: _agreement("mmoja", "mdogo mkubwa mwekundu mweusi wa mwenye yuko"),
    2: _agreement("wawili watatu wanne", "wadogo wakubwa wekundu weusi wa wenye wako"),
    3: _agreement("mmoja", "mdogo mkubwa mwekundu mweusi wa wenye uko"),
    4: _agreement("miwili mitatu minne", "midogo mikubwa myekundu myeusi ya yenye iko"),
    5: _agreement("moja", "dogo kubwa jekundu jeusi la lenye liko"),
    6: _agreement("mawili matatu manne", "madogo makubwa mekundu meusi ya yenye yako"),
    7: _agreement("kimoja", "kidogo kikubwa chekundu cheusi cha chenye kiko"),
    8: _agreement("viwili vitatu vinne", "vidogo vikubwa vyekundu vyeusi vya vyenye viko"),
    9: _agreement("moja", "ndogo kubwa nyekundu nyeusi ya yenye iko"),
    10: _agreement("mbili tatu nne", "ndogo kubwa nyekundu nyeusi za zenye ziko"),
    14: _agreement("mmoja", "mdogo mkubwa mwekundu mweusi wa wenye uko"),
}
COLOUR = {
    # after -a; red and black are adjectives
    "blue": "buluu", "green": "kijani", "yellow": "njano", "orange": "rangi ya machungwa",
    "purple": "zambarau", "pink": "rangi ya waridi", "brown": "kahawia",
}  # fmt: skip
TEXTURE = {"striped": "mistari", "dotted": "madoadoa"}  # after -enye
CLOTH = {"plain": "rangi moja", "chequered": "drafti"}  # after -a
SIDE: dict[Relation, tuple[str, str]] = {
    # short, long
    "left_of": ("kushoto kwa", "upande wa kushoto wa"),
    "right_of": ("kulia kwa", "upande wa kulia wa"),
    "above": ("juu ya", "juu ya"),
    "below": ("chini ya", "chini ya"),
}
BACKDROP: dict[Background, str] = {
    # after mandharinyuma, of class 9
    "white": "nyeupe",
    "grey": "ya kijivu",
    "meadow": "ya nyasi",
    "night": "ya usiku",
    "sea": "ya bahari",
    "desert": "ya jangwa",
}
PLACE: dict[Background, str] = {
    "white": "kwenye mandharinyuma nyeupe",
    "grey": "kwenye mandharinyuma ya kijivu",
    "meadow": "kwenye nyasi",
    "night": "usiku",
    "sea": "baharini",
    "desert": "jangwani",
}
Clauses: TypeAlias = list[list[str]]


def words(statement: Statement, style: int) -> list[str]:
    """Return the sentence in words, without a full stop or a first capital.

    Args:
        statement: the meaning, of one mention or more.
        style: the pattern, from 0 to `STYLES` - 1.
    """
    clauses = [clause for clause in _PATTERNS[style](statement) if clause]
    for clause in clauses[:-1]:
        clause[-1] += ","
    return [piece for clause in clauses for piece in clause]


def _existence(said: Statement) -> Clauses:
    """Kuna nyota moja kushoto kwa nyumba moja, na pia mti mmoja, kwenye mandharinyuma nyeupe."""
    backdrop = f"kwenye mandharinyuma {BACKDROP[said.background]}" if said.background else ""
    if said.relation is None:
        return [["kuna", *_list(said.mentions)], backdrop.split()]
    first = ["kuna", *_one(said.mentions[0]), *_beside_second(said)]
    return [first, _rest(said, "na pia"), backdrop.split()]


def _place_first(said: Statement) -> Clauses:
    """Baharini, kushoto kwa nyumba moja kuna nyota moja, na pia kuna mti mmoja."""
    place = PLACE[said.background].split() if said.background else []
    if said.relation is None:
        return [[*(place or ["hapa"]), "kuna", *_list(said.mentions)]]
    first = [*_beside_second(said), "kuna", *_one(said.mentions[0])]
    return [place, first, _rest(said, "na pia kuna")]


def _picture_shows(said: Statement) -> Clauses:
    """Picha inaonyesha nyota moja kushoto kwa …, pamoja na mti mmoja, na mandharinyuma ni …."""
    backdrop = f"na mandharinyuma ni {BACKDROP[said.background]}" if said.background else ""
    start = ["picha", "inaonyesha"]
    if said.relation is None:
        return [start + _list(said.mentions), backdrop.split()]
    first = [*start, *_one(said.mentions[0]), *_beside_second(said)]
    return [first, _rest(said, "pamoja na"), backdrop.split()]


def _title(said: Statement) -> Clauses:
    """Nyota moja kushoto kwa nyumba moja, pamoja na mti mmoja, mandharinyuma ya bahari."""
    backdrop = f"mandharinyuma {BACKDROP[said.background]}" if said.background else ""
    if said.relation is None:
        return [_list(said.mentions), backdrop.split()]
    first = [*_one(said.mentions[0]), *_beside_second(said)]
    return [first, _rest(said, "pamoja na"), backdrop.split()]


def _is_at(said: Statement) -> Clauses:
    """Nyota moja iko kushoto kwa …, na pia kuna mti mmoja, na mandharinyuma ni …."""
    backdrop = f"na mandharinyuma ni {BACKDROP[said.background]}" if said.background else ""
    if said.relation is None:
        return [["tunaona", *_list(said.mentions)], backdrop.split()]
    subject = said.mentions[0]
    first = [*_one(subject), _class_of(subject).is_at, *_beside_second(said)]
    return [first, _rest(said, "na pia kuna"), backdrop.split()]


def _in_a_picture(said: Statement) -> Clauses:
    """Kwenye picha yenye mandharinyuma … tunaona nyota moja upande wa kushoto wa …, na pia …."""
    start = ["kwenye", "picha"]
    if said.background:
        start += ["yenye", "mandharinyuma", *BACKDROP[said.background].split()]
    start.append("tunaona")
    if said.relation is None:
        return [start + _list(said.mentions)]
    first = [*start, *_one(said.mentions[0]), *_beside_second(said, long=True)]
    return [first, _rest(said, "na pia")]


_PATTERNS: tuple[Callable[[Statement], Clauses], ...] = (
    _existence,
    _place_first,
    _picture_shows,
    _title,
    _is_at,
    _in_a_picture,
)
STYLES = len(_PATTERNS)


def _class_of(mention: Mention) -> Agreement:
    """English nouns agree as loanwords do: class 9 and 10, if they don't live."""
    _, one, _, several = NOUNS[mention.shape]
    if mention.untranslated and one != 1:
        one, several = 9, 10
    return AGREEMENT[one if mention.count == 1 else several]


def _one(mention: Mention) -> list[str]:
    """Magari mawili madogo ya kijani yenye mistari."""
    agreement = _class_of(mention)
    of = agreement.of
    pieces = _noun(mention)
    pieces.append(agreement.numbers[max(0, mention.count - 2)])
    if mention.size is not None:
        pieces.append(agreement.small if mention.size == "small" else agreement.large)
    if mention.colour == "red":
        pieces.append(agreement.red)
    elif mention.colour == "black":
        pieces.append(agreement.black)
    elif mention.colour is not None:
        pieces += [of, *COLOUR[mention.colour].split()]
    if mention.texture in TEXTURE:
        pieces += [agreement.having, TEXTURE[mention.texture]]
    elif mention.texture is not None:
        pieces += [of, *CLOTH[mention.texture].split()]
    return pieces


def _noun(mention: Mention) -> list[str]:
    if mention.untranslated:
        english = mention.shape
        if mention.count > 1:
            return [ENGLISH_PLURAL.get(english, english + "s")]
        return [english]
    one, _, several, _ = NOUNS[mention.shape]
    return (one if mention.count == 1 else several).split()


def _list(mentions: Sequence[Mention]) -> list[str]:
    """Nyota moja, nyumba moja na mti mmoja."""
    groups = [_one(mention) for mention in mentions]
    for group in groups[:-2]:
        group[-1] += ","
    if len(groups) > 1:
        groups.insert(-1, ["na"])
    return [piece for group in groups for piece in group]


def _beside_second(said: Statement, *, long: bool = False) -> list[str]:
    """Kushoto kwa nyumba moja, the long way upande wa kushoto wa nyumba moja."""
    assert said.relation is not None
    return [*SIDE[said.relation][long].split(), *_one(said.mentions[1])]


def _rest(said: Statement, link: str) -> list[str]:
    """Na pia mti mmoja, if there are more mentions than the two in relation."""
    return [*link.split(), *_list(said.mentions[2:])] if said.mentions[2:] else []
