"""English sentences for statements."""

from __future__ import annotations

from xlcm.data.scenes.patterns import Patterns
from xlcm.data.scenes.world import Background, Mention, Relation, Sense, Shape, Statement

# one, several
NOUNS: dict[Shape | Sense, tuple[str, str]] = {
    "circle": ("circle", "circles"),
    "square": ("square", "squares"),
    "triangle": ("triangle", "triangles"),
    "star": ("star", "stars"),
    "heart": ("heart", "hearts"),
    "moon": ("moon", "moons"),
    "house": ("house", "houses"),
    "tree": ("tree", "trees"),
    "car": ("car", "cars"),
    "fish": ("fish", "fish"),
    "flower": ("flower", "flowers"),
    "cup": ("cup", "cups"),
    # what a machine may take them for
    "club": ("club", "clubs"),
    "market": ("market", "markets"),
    "drum": ("drum", "drums"),
    "celebrity": ("celebrity", "celebrities"),
    "courage": ("courage", "courages"),
    "month": ("month", "months"),
    "parliament": ("parliament", "parliaments"),
    "beam": ("beam", "beams"),
    "wagon": ("wagon", "wagons"),
    "angler": ("angler", "anglers"),
    "flour": ("flour", "flours"),
    "trophy": ("trophy", "trophies"),
}
_NUMBERS = {2: "two", 3: "three", 4: "four"}

# Two wordings: the even styles have the first, the odd ones the second.
_SIZES = ({"small": "small", "large": "large"}, {"small": "little", "large": "big"})
_TEXTURES_BEFORE = {"striped": "striped", "dotted": "dotted", "chequered": "chequered"}
_TEXTURES_AFTER = {"striped": "stripes", "dotted": "dots", "chequered": "checks"}  # "with ..."
_PLACES: tuple[dict[Relation, str], ...] = (
    {"left_of": "to the left of", "right_of": "to the right of", "above": "above",
     "below": "below"},
    {"left_of": "to the left of", "right_of": "to the right of", "above": "over",
     "below": "under"},
)  # fmt: skip
_BACKGROUNDS: tuple[dict[Background, str], ...] = (
    {"white": "on a white background", "grey": "on a grey background", "meadow": "in a meadow",
     "night": "at night", "sea": "on the sea", "desert": "in the desert"},
    {"white": "against a white background", "grey": "against a grey background",
     "meadow": "in a meadow", "night": "under a night sky", "sea": "by the sea",
     "desert": "in the desert"},
)  # fmt: skip

# with a relation, as a list
_STYLES = (
    (
        "there {is|are:first} {first} {place} [, as well as {rest},] [{background}]",
        "there {is|are:first} {all} [{background}]",
    ),
    (
        "[{background},] {place} there {is|are:first} {first} [, and we also see {rest}]",
        "[{background},] one can see {all}",
    ),
    (
        "the picture shows {first} {place} [, with {rest} next to them] [, {background}]",
        "the picture shows {all} [, {background}]",
    ),
    (
        "[{background},] we see {first} {place} [, and also {rest}]",
        "[{background},] we see {all}",
    ),
    (
        "{first} {place} [, plus {rest}] [, {background}]",
        "{all} [, {background}]",
    ),
    (
        "[{background},] there {is|are:second} {second} and, {there}, {first}"
        " [, and we also see {rest}]",
        "[{background},] you can see {all}",
    ),
)


def noun(shape: Shape | Sense, count: int) -> str:
    """Return the noun in the number that `count` asks for, as untranslated words stand too."""
    return NOUNS[shape][count > 1]


def _phrase(mention: Mention, case: str, wording: int) -> list[str]:
    words: list[str] = []
    if mention.size is not None:
        words.append(_SIZES[wording][mention.size])
    textured = mention.texture is not None and mention.texture != "plain"
    if textured and wording == 0:
        words.append(_TEXTURES_BEFORE[str(mention.texture)])
    if mention.colour is not None:
        words.append(mention.colour)
    words.append(noun(mention.shape, mention.count))
    if textured and wording == 1:
        words += ["with", _TEXTURES_AFTER[str(mention.texture)]]
    if mention.count == 1:
        return ["an" if words[0][0] in "aeiou" else "a", *words]
    return [_NUMBERS[mention.count], *words]


def _place(relation: Relation, seen: Mention, wording: int) -> list[str]:
    return [*_PLACES[wording][relation].split(), *_phrase(seen, "", wording)]


def _there(relation: Relation, seen: Mention, wording: int) -> list[str]:
    return [*_PLACES[wording][relation].split(), "it" if seen.count == 1 else "them"]


_PATTERNS = Patterns(
    _STYLES,
    phrase=_phrase,
    place=_place,
    there=_there,
    backgrounds=_BACKGROUNDS,
    conjunction="and",
)
STYLES: int = len(_PATTERNS)


def words(statement: Statement, style: int) -> list[str]:
    """Return the pieces of the sentence in style 0 to ``STYLES - 1``."""
    return _PATTERNS.words(statement, style)
