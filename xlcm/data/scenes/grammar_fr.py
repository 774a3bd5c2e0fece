"""French sentences for statements: two genders, number, elision of "de"."""

from __future__ import annotations

from xlcm.data.scenes import grammar_en
from xlcm.data.scenes.patterns import Patterns
from xlcm.data.scenes.world import Background, Mention, Relation, Sense, Shape, Statement

# gender, one, several
_NOUNS: dict[Shape | Sense, tuple[str, str, str]] = {
    "circle": ("m", "cercle", "cercles"),
    "square": ("m", "carré", "carrés"),
    "triangle": ("m", "triangle", "triangles"),
    "star": ("f", "étoile", "étoiles"),
    "heart": ("m", "cœur", "cœurs"),
    "moon": ("f", "lune", "lunes"),
    "house": ("f", "maison", "maisons"),
    "tree": ("m", "arbre", "arbres"),
    "car": ("f", "voiture", "voitures"),
    "fish": ("m", "poisson", "poissons"),
    "flower": ("f", "fleur", "fleurs"),
    "cup": ("f", "tasse", "tasses"),
    # what a machine may take them for
    "club": ("f", "association", "associations"),
    "market": ("m", "marché", "marchés"),
    "drum": ("m", "tambour", "tambours"),
    "celebrity": ("f", "vedette", "vedettes"),
    "courage": ("f", "bravoure", "bravoures"),
    "month": ("m", "mois", "mois"),
    "parliament": ("m", "parlement", "parlements"),
    "beam": ("f", "poutre", "poutres"),
    "wagon": ("f", "charrette", "charrettes"),
    "angler": ("m", "pêcheur", "pêcheurs"),
    "flour": ("f", "farine", "farines"),
    "trophy": ("m", "trophée", "trophées"),
}
_NUMBERS = {2: "deux", 3: "trois", 4: "quatre"}

# masculine and feminine, one; then several
_ADJECTIVES: dict[str, tuple[str, str, str, str]] = {
    "red": ("rouge", "rouge", "rouges", "rouges"),
    "blue": ("bleu", "bleue", "bleus", "bleues"),
    "green": ("vert", "verte", "verts", "vertes"),
    "yellow": ("jaune", "jaune", "jaunes", "jaunes"),
    "orange": ("orange", "orange", "orange", "orange"),  # nouns as colours don't agree
    "purple": ("violet", "violette", "violets", "violettes"),
    "pink": ("rose", "rose", "roses", "roses"),  # but this one does
    "brown": ("marron", "marron", "marron", "marron"),
    "black": ("noir", "noire", "noirs", "noires"),
    "small": ("petit", "petite", "petits", "petites"),
    "large": ("grand", "grande", "grands", "grandes"),
}

# Two wordings: the even styles have the first, the odd ones the second.
_TEXTURES = (
    {"striped": "à rayures", "dotted": "à pois", "chequered": "à carreaux"},
    {"striped": "avec des rayures", "dotted": "avec des pois", "chequered": "à damier"},
)
# what ends in "de" is elided before "un" and "une"
_PLACES: tuple[dict[Relation, str], ...] = (
    {"left_of": "à gauche de", "right_of": "à droite de", "above": "au-dessus de",
     "below": "sous"},
    {"left_of": "à gauche de", "right_of": "à droite de", "above": "au-dessus de",
     "below": "au-dessous de"},
)  # fmt: skip
# of one, of several
_THERE: dict[Relation, tuple[str, str]] = {
    "left_of": ("à sa gauche", "à leur gauche"),
    "right_of": ("à sa droite", "à leur droite"),
    "above": ("au-dessus", "au-dessus"),
    "below": ("au-dessous", "au-dessous"),
}
_BACKGROUNDS: tuple[dict[Background, str], ...] = (
    {"white": "sur fond blanc", "grey": "sur fond gris", "meadow": "dans un pré",
     "night": "de nuit", "sea": "sur la mer", "desert": "dans le désert"},
    {"white": "sur un fond blanc", "grey": "sur un fond gris", "meadow": "dans une prairie",
     "night": "sous un ciel nocturne", "sea": "au bord de la mer", "desert": "dans le désert"},
)  # fmt: skip

# with a relation, as a list
_STYLES = (
    (
        "il y a {first} {place} [, sans oublier {rest}] [, {background}]",
        "il y a {all} [, {background}]",
    ),
    (
        "[{background},] {place} se {trouve|trouvent:first} {first} [, et on voit aussi {rest}]",
        "[{background},] on peut voir {all}",
    ),
    (
        "l'image montre {first} {place} [, avec {rest} à côté] [, {background}]",
        "l'image montre {all} [, {background}]",
    ),
    (
        "[{background},] on voit {first} {place} [, et aussi {rest}]",
        "[{background},] on voit {all}",
    ),
    (
        "{first} {place} [, plus {rest}] [, {background}]",
        "{all} [, {background}]",
    ),
    (
        "[{background},] nous voyons {second} et, {there}, {first} [, et on voit aussi {rest}]",
        "[{background},] nous voyons {all}",
    ),
)


def _phrase(mention: Mention, case: str, wording: int) -> list[str]:
    """Return the mention; `case` is "de" where that word stands before it, else empty."""
    gender, *forms = _NOUNS[mention.shape]
    several = mention.count > 1
    form = 2 * several + (gender == "f")
    if several:
        words = ["de", _NUMBERS[mention.count]] if case == "de" else [_NUMBERS[mention.count]]
    else:
        article = "une" if gender == "f" else "un"
        words = [f"d'{article}" if case == "de" else article]
    if mention.size is not None:
        words.append(_ADJECTIVES[mention.size][form])
    if mention.untranslated:
        words.append(grammar_en.noun(mention.shape, mention.count))
    else:
        words.append(forms[several])
    if mention.colour is not None:
        words.append(_ADJECTIVES[mention.colour][form])
    if mention.texture is not None and mention.texture != "plain":
        words += _TEXTURES[wording][mention.texture].split()
    return words


def _place(relation: Relation, seen: Mention, wording: int) -> list[str]:
    *place, last = _PLACES[wording][relation].split()
    if last == "de":
        return [*place, *_phrase(seen, "de", wording)]
    return [*place, last, *_phrase(seen, "", wording)]


def _there(relation: Relation, seen: Mention, wording: int) -> list[str]:
    return _THERE[relation][seen.count > 1].split()


_PATTERNS = Patterns(
    _STYLES,
    phrase=_phrase,
    place=_place,
    there=_there,
    backgrounds=_BACKGROUNDS,
    conjunction="et",
)
STYLES: int = len(_PATTERNS)


def words(statement: Statement, style: int) -> list[str]:
    """Return the pieces of the sentence in style 0 to ``STYLES - 1``."""
    return _PATTERNS.words(statement, style)
