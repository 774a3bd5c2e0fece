"""German sentences for statements: three genders, nominative, accusative and dative."""

from __future__ import annotations

from xlcm.data.scenes import grammar_en
from xlcm.data.scenes.patterns import Patterns
from xlcm.data.scenes.world import Background, Mention, Relation, Sense, Shape, Statement

# gender, nominative (and accusative), dative; then the same two in the plural
_NOUNS: dict[Shape | Sense, tuple[str, str, str, str, str]] = {
    "circle": ("m", "Kreis", "Kreis", "Kreise", "Kreisen"),
    "square": ("n", "Quadrat", "Quadrat", "Quadrate", "Quadraten"),
    "triangle": ("n", "Dreieck", "Dreieck", "Dreiecke", "Dreiecken"),
    "star": ("m", "Stern", "Stern", "Sterne", "Sternen"),
    "heart": ("n", "Herz", "Herzen", "Herzen", "Herzen"),
    "moon": ("m", "Mond", "Mond", "Monde", "Monden"),
    "house": ("n", "Haus", "Haus", "Häuser", "Häusern"),
    "tree": ("m", "Baum", "Baum", "Bäume", "Bäumen"),
    "car": ("n", "Auto", "Auto", "Autos", "Autos"),
    "fish": ("m", "Fisch", "Fisch", "Fische", "Fischen"),
    "flower": ("f", "Blume", "Blume", "Blumen", "Blumen"),
    "cup": ("f", "Tasse", "Tasse", "Tassen", "Tassen"),
    # what a machine may take them for
    "club": ("m", "Verein", "Verein", "Vereine", "Vereinen"),
    "market": ("m", "Markt", "Markt", "Märkte", "Märkten"),
    "drum": ("f", "Trommel", "Trommel", "Trommeln", "Trommeln"),
    "celebrity": ("f", "Berühmtheit", "Berühmtheit", "Berühmtheiten", "Berühmtheiten"),
    "courage": ("f", "Tapferkeit", "Tapferkeit", "Tapferkeiten", "Tapferkeiten"),
    "month": ("m", "Monat", "Monat", "Monate", "Monaten"),
    "parliament": ("n", "Parlament", "Parlament", "Parlamente", "Parlamenten"),
    "beam": ("m", "Balken", "Balken", "Balken", "Balken"),
    "wagon": ("m", "Waggon", "Waggon", "Waggons", "Waggons"),
    "angler": ("m", "Angler", "Angler", "Angler", "Anglern"),
    "flour": ("n", "Mehl", "Mehl", "Mehle", "Mehlen"),
    "trophy": ("m", "Pokal", "Pokal", "Pokale", "Pokalen"),
}
_NUMBERS = {2: "zwei", 3: "drei", 4: "vier"}

# stems; an adjective takes the ending of its case
_ADJECTIVES = {
    "red": "rot", "blue": "blau", "green": "grün", "yellow": "gelb", "orange": "orangefarben",
    "purple": "violett", "brown": "braun", "black": "schwarz", "small": "klein",
    "large": "groß", "striped": "gestreift", "dotted": "gepunktet", "chequered": "kariert",
}  # fmt: skip
_UNDECLINED = {"pink": "rosa"}

# after "ein", the article's ending and the adjective's (mixed declension)
_SINGULAR = {
    "nom": {"m": ("ein", "er"), "f": ("eine", "e"), "n": ("ein", "es")},
    "acc": {"m": ("einen", "en"), "f": ("eine", "e"), "n": ("ein", "es")},
    "dat": {"m": ("einem", "en"), "f": ("einer", "en"), "n": ("einem", "en")},
}
# after "zwei", "drei", "vier" (strong declension)
_PLURAL = {"nom": "e", "acc": "e", "dat": "en"}

# Two wordings: the even styles have the first, the odd ones the second.
_TEXTURES_AFTER = {"striped": "Streifen", "dotted": "Punkten", "chequered": "Karomuster"}
_PLACES: tuple[dict[Relation, str], ...] = (  # all with the dative
    {"left_of": "links von", "right_of": "rechts von", "above": "über", "below": "unter"},
    {"left_of": "links neben", "right_of": "rechts neben", "above": "oberhalb von",
     "below": "unterhalb von"},
)  # fmt: skip
_THERE: dict[Relation, str] = {
    "left_of": "links davon",
    "right_of": "rechts davon",
    "above": "darüber",
    "below": "darunter",
}
_BACKGROUNDS: tuple[dict[Background, str], ...] = (
    {"white": "vor weißem Hintergrund", "grey": "vor grauem Hintergrund",
     "meadow": "auf einer Wiese", "night": "bei Nacht", "sea": "auf dem Meer",
     "desert": "in der Wüste"},
    {"white": "auf weißem Grund", "grey": "auf grauem Grund", "meadow": "auf einer Wiese",
     "night": "unter dem Nachthimmel", "sea": "am Meer", "desert": "in der Wüste"},
)  # fmt: skip

# with a relation, as a list
_STYLES = (
    (
        "auf dem Bild {ist|sind:both} [{background}] {first:nom} {place} [sowie {rest:nom}]"
        " zu sehen",
        "auf dem Bild {ist|sind:all} [{background}] {all:nom} zu sehen",
    ),
    (
        "[{background} {befindet|befinden:first} sich {place}"
        " | {place} {befindet|befinden:first} sich] {first:nom} [, außerdem sieht man {rest:acc}]",
        "[{background} | hier] sieht man {all:acc}",
    ),
    (
        "das Bild zeigt [{background}] {first:acc} {place} [und dazu {rest:acc}]",
        "das Bild zeigt [{background}] {all:acc}",
    ),
    (
        "[{background} sehen wir | wir sehen] {first:acc} {place} [und außerdem {rest:acc}]",
        "[{background} sehen wir | wir sehen] {all:acc}",
    ),
    (
        "{first:nom} {place} [, dazu {rest:nom}] [, {background}]",
        "{all:nom} [, {background}]",
    ),
    (
        "[{background} | hier] gibt es {second:acc} und {there} {first:acc}"
        " [, außerdem {rest:acc}]",
        "[{background} | hier] gibt es {all:acc}",
    ),
)


def _phrase(mention: Mention, case: str, wording: int) -> list[str]:
    gender, *forms = _NOUNS[mention.shape]
    if mention.count == 1:
        article, ending = _SINGULAR[case][gender]
    else:
        article, ending = _NUMBERS[mention.count], _PLURAL[case]
    words = [article]
    textured = mention.texture is not None and mention.texture != "plain"
    for adjective in (mention.size, mention.texture if wording == 0 else None, mention.colour):
        if adjective in _UNDECLINED:
            words.append(_UNDECLINED[adjective])
        elif adjective is not None and adjective != "plain":
            words.append(_ADJECTIVES[adjective] + ending)
    if mention.untranslated:
        words.append(grammar_en.noun(mention.shape, mention.count))
    else:
        words.append(forms[2 * (mention.count > 1) + (case == "dat")])
    if textured and wording == 1:
        words += ["mit", _TEXTURES_AFTER[str(mention.texture)]]
    return words


def _place(relation: Relation, seen: Mention, wording: int) -> list[str]:
    return [*_PLACES[wording][relation].split(), *_phrase(seen, "dat", wording)]


def _there(relation: Relation, seen: Mention, wording: int) -> list[str]:
    return _THERE[relation].split()


_PATTERNS = Patterns(
    _STYLES,
    phrase=_phrase,
    place=_place,
    there=_there,
    backgrounds=_BACKGROUNDS,
    conjunction="und",
)
STYLES: int = len(_PATTERNS)


def words(statement: Statement, style: int) -> list[str]:
    """Return the pieces of the sentence in style 0 to ``STYLES - 1``."""
    return _PATTERNS.words(statement, style)
