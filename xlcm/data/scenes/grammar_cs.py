"""Czech sentences for statements: four genders, four cases, adjectives that agree in both."""

from __future__ import annotations

from xlcm.data.scenes import grammar_en
from xlcm.data.scenes.patterns import Patterns
from xlcm.data.scenes.world import Background, Mention, Relation, Sense, Shape, Statement

# Gender (ma: masculine animate, mi: inanimate, f, n), then nominative, genitive, accusative and
# instrumental; a second line with the same of the plural.
_TABLE: dict[Shape | Sense, tuple[str, str, str]] = {
    "circle": ("mi", "kruh kruhu kruh kruhem", "kruhy kruhů kruhy kruhy"),
    "square": ("mi", "čtverec čtverce čtverec čtvercem", "čtverce čtverců čtverce čtverci"),
    "triangle": ("mi", "trojúhelník trojúhelníku trojúhelník trojúhelníkem",
                 "trojúhelníky trojúhelníků trojúhelníky trojúhelníky"),
    "star": ("f", "hvězda hvězdy hvězdu hvězdou", "hvězdy hvězd hvězdy hvězdami"),
    "heart": ("n", "srdce srdce srdce srdcem", "srdce srdcí srdce srdci"),
    "moon": ("mi", "půlměsíc půlměsíce půlměsíc půlměsícem",
             "půlměsíce půlměsíců půlměsíce půlměsíci"),
    "house": ("mi", "dům domu dům domem", "domy domů domy domy"),
    "tree": ("mi", "strom stromu strom stromem", "stromy stromů stromy stromy"),
    "car": ("n", "auto auta auto autem", "auta aut auta auty"),
    "fish": ("f", "ryba ryby rybu rybou", "ryby ryb ryby rybami"),
    "flower": ("f", "květina květiny květinu květinou", "květiny květin květiny květinami"),
    "cup": ("mi", "hrnek hrnku hrnek hrnkem", "hrnky hrnků hrnky hrnky"),
    # what a machine may take them for
    "club": ("mi", "spolek spolku spolek spolkem", "spolky spolků spolky spolky"),
    "market": ("mi", "trh trhu trh trhem", "trhy trhů trhy trhy"),
    "drum": ("mi", "buben bubnu buben bubnem", "bubny bubnů bubny bubny"),
    "celebrity": ("f", "celebrita celebrity celebritu celebritou",
                  "celebrity celebrit celebrity celebritami"),
    "courage": ("f", "odvaha odvahy odvahu odvahou", "odvahy odvah odvahy odvahami"),
    "month": ("mi", "měsíc měsíce měsíc měsícem", "měsíce měsíců měsíce měsíci"),
    "parliament": ("mi", "parlament parlamentu parlament parlamentem",
                   "parlamenty parlamentů parlamenty parlamenty"),
    "beam": ("mi", "trám trámu trám trámem", "trámy trámů trámy trámy"),
    "wagon": ("mi", "vagon vagonu vagon vagonem", "vagony vagonů vagony vagony"),
    "angler": ("ma", "rybář rybáře rybáře rybářem", "rybáři rybářů rybáře rybáři"),
    "flour": ("f", "mouka mouky mouku moukou", "mouky mouk mouky moukami"),
    "trophy": ("f", "trofej trofeje trofej trofejí", "trofeje trofejí trofeje trofejemi"),
}  # fmt: skip
_CASES = ("nom", "gen", "acc", "ins")
_NOUNS = {
    shape: (gender, tuple(dict(zip(_CASES, forms.split())) for forms in table))
    for shape, (gender, *table) in _TABLE.items()
}
_TEXTURES_AFTER = {"striped": "s pruhy", "dotted": "s puntíky", "chequered": "s kostkovaným vzorem"}

# nominative, genitive, accusative, instrumental; "dva" is masculine, "dvě" feminine and neuter
_NUMBERS = {
    2: dict(zip(_CASES, ("dva", "dvou", "dva", "dvěma"))),
    3: dict(zip(_CASES, ("tři", "tří", "tři", "třemi"))),
    4: dict(zip(_CASES, ("čtyři", "čtyř", "čtyři", "čtyřmi"))),
}

# all hard: the masculine nominative ends in -ý
_ADJECTIVES = {
    "red": "červený", "blue": "modrý", "green": "zelený", "yellow": "žlutý",
    "orange": "oranžový", "purple": "fialový", "pink": "růžový", "brown": "hnědý",
    "black": "černý", "small": "malý", "large": "velký", "striped": "pruhovaný",
    "dotted": "puntíkovaný", "chequered": "kostkovaný",
}  # fmt: skip
# endings: nominative, genitive, accusative, instrumental
_ENDINGS = {
    ("ma", False): ("ý", "ého", "ého", "ým"),
    ("mi", False): ("ý", "ého", "ý", "ým"),
    ("f", False): ("á", "é", "ou", "ou"),
    ("n", False): ("é", "ého", "é", "ým"),
    ("ma", True): ("í", "ých", "é", "ými"),
    ("mi", True): ("é", "ých", "é", "ými"),
    ("f", True): ("é", "ých", "é", "ými"),
    ("n", True): ("á", "ých", "á", "ými"),
}
_SOFTENED = {"r": "ř", "k": "c"}  # before the -í of the animate plural: modří, velcí

# Two wordings: the even styles have the first, the odd ones the second. The case follows.
_PLACES: tuple[dict[Relation, tuple[str, str]], ...] = (
    {"left_of": ("vlevo od", "gen"), "right_of": ("vpravo od", "gen"),
     "above": ("nad", "ins"), "below": ("pod", "ins")},
    {"left_of": ("nalevo od", "gen"), "right_of": ("napravo od", "gen"),
     "above": ("nad", "ins"), "below": ("pod", "ins")},
)  # fmt: skip
# after a preposition; feminine, other singular, plural
_PRONOUNS = {"gen": ("ní", "něj", "nich"), "ins": ("ní", "ním", "nimi")}
_BACKGROUNDS: tuple[dict[Background, str], ...] = (
    {"white": "na bílém pozadí", "grey": "na šedém pozadí", "meadow": "na louce",
     "night": "v noci", "sea": "na moři", "desert": "v poušti"},
    {"white": "na bílém podkladu", "grey": "na šedém podkladu", "meadow": "na louce",
     "night": "pod noční oblohou", "sea": "u moře", "desert": "na poušti"},
)  # fmt: skip

# with a relation, as a list
_STYLES = (
    (
        "na obrázku {je|jsou:first} [{background}] {first:nom} {place} [a také {rest:nom}]",
        "na obrázku {je|jsou:first} [{background}] {all:nom}",
    ),
    (
        "[{background} {je|jsou:first} {place} | {place} {je|jsou:first}] {first:nom}"
        " [, dále vidíme {rest:acc}]",
        "[{background} | zde] {je|jsou:first} {all:nom}",
    ),
    (
        "obrázek ukazuje [{background}] {first:acc} {place} [a kromě toho {rest:acc}]",
        "obrázek ukazuje [{background}] {all:acc}",
    ),
    (
        "[{background}] vidíme {first:acc} {place} [a také {rest:acc}]",
        "[{background}] vidíme {all:acc}",
    ),
    (
        "{first:nom} {place} [, k tomu {rest:nom}] [, {background}]",
        "{all:nom} [, {background}]",
    ),
    (
        "[{background} {je|jsou:second} | {je|jsou:second} tu] {second:nom} a {there} {first:nom}"
        " [, k tomu {rest:nom}]",
        "[{background} {je|jsou:first} | {je|jsou:first} tu] vidět {all:nom}",
    ),
)


def _decline(adjective: str, gender: str, several: bool) -> dict[str, str]:
    """Return the four cases of an adjective, given as its masculine nominative."""
    stem = adjective[:-1]
    forms = {c: stem + e for c, e in zip(_CASES, _ENDINGS[gender, several])}
    if gender == "ma" and several:
        forms["nom"] = stem[:-1] + _SOFTENED.get(stem[-1], stem[-1]) + "í"
    return forms


_DECLINED = {
    (name, gender, several): _decline(adjective, gender, several)
    for name, adjective in _ADJECTIVES.items()
    for gender, several in _ENDINGS
}


def _phrase(mention: Mention, case: str, wording: int) -> list[str]:
    gender, forms = _NOUNS[mention.shape]
    several = mention.count > 1
    words: list[str] = []
    if several:  # one needs no word: Czech has no article
        number = _NUMBERS[mention.count][case]
        words.append("dvě" if number == "dva" and gender in "fn" else number)
    textured = mention.texture is not None and mention.texture != "plain"
    for adjective in (mention.size, mention.colour, mention.texture if wording == 0 else None):
        if adjective is not None and adjective != "plain":
            words.append(_DECLINED[adjective, gender, several][case])
    if mention.untranslated:
        words.append(grammar_en.noun(mention.shape, mention.count))
    else:
        words.append(forms[several][case])
    if textured and wording == 1:
        words += _TEXTURES_AFTER[str(mention.texture)].split()
    return words


def _place(relation: Relation, seen: Mention, wording: int) -> list[str]:
    place, case = _PLACES[wording][relation]
    return [*place.split(), *_phrase(seen, case, wording)]


def _there(relation: Relation, seen: Mention, wording: int) -> list[str]:
    place, case = _PLACES[wording][relation]
    feminine, other, plural = _PRONOUNS[case]
    pronoun = feminine if _NOUNS[seen.shape][0] == "f" else other
    return [*place.split(), plural if seen.count > 1 else pronoun]


_PATTERNS = Patterns(
    _STYLES,
    phrase=_phrase,
    place=_place,
    there=_there,
    backgrounds=_BACKGROUNDS,
    conjunction="a",
)
STYLES: int = len(_PATTERNS)


def words(statement: Statement, style: int) -> list[str]:
    """Return the pieces of the sentence in style 0 to ``STYLES - 1``."""
    return _PATTERNS.words(statement, style)
