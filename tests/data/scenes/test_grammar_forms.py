"""Every case, gender and number of German, French and Czech words, written out by hand."""

from __future__ import annotations

from itertools import product

import pytest

from xlcm.data.scenes import grammar
from xlcm.data.scenes.world import COLOURS, RELATIONS, TEXTURES, Mention, Statement

LANGS = ("en", "de", "fr", "cs")
TREE = Mention("tree", 1, "yellow")


def only(shape: str, count: int, colour: str | None = None, **rest: object) -> tuple[Mention, ...]:
    return (Mention(shape, count, colour, **rest),)  # type: ignore[arg-type]


def declined(lang: str, mention: Mention) -> dict[str, str]:
    """The mention in each case that the language has, cut out of sentences that ask for it."""
    asked: dict[str, tuple[str, Statement, int]] = {
        "nom": ("", Statement((mention,)), 4),
        "acc": (
            {"de": "Das Bild zeigt ", "cs": "Obrázek ukazuje "}[lang],
            Statement((mention,)),
            2,
        ),
        "dat" if lang == "de" else "ins": (
            {"de": "Ein gelber Baum über ", "cs": "Žlutý strom nad "}[lang],
            Statement((TREE, mention), "above"),
            4,
        ),
    }
    if lang == "cs":
        start = "Žlutý strom vlevo od "
        asked["gen"] = (start, Statement((TREE, mention), "left_of"), 4)
    forms = {}
    for case, (start, statement, style) in asked.items():
        text = grammar.sentence(lang, statement, style)
        assert text.startswith(start)
        forms[case] = text[len(start) : -1].lower() if case == "nom" else text[len(start) : -1]
    return forms


# nominative, accusative, dative
GERMAN = {
    ("star", 1): "ein roter stern, einen roten Stern, einem roten Stern",
    ("flower", 1): "eine rote blume, eine rote Blume, einer roten Blume",
    ("house", 1): "ein rotes haus, ein rotes Haus, einem roten Haus",
    ("tree", 2): "zwei rote bäume, zwei rote Bäume, zwei roten Bäumen",
    ("cup", 3): "drei rote tassen, drei rote Tassen, drei roten Tassen",
    ("car", 4): "vier rote autos, vier rote Autos, vier roten Autos",
    ("wagon", 2): "zwei rote waggons, zwei rote Waggons, zwei roten Waggons",
    ("beam", 2): "zwei rote balken, zwei rote Balken, zwei roten Balken",
}
# nominative, genitive, accusative, instrumental
CZECH = {
    ("angler", 1): "malý rybář, malého rybáře, malého rybáře, malým rybářem",
    ("angler", 2): "dva malí rybáři, dvou malých rybářů, dva malé rybáře, dvěma malými rybáři",
    ("tree", 1): "malý strom, malého stromu, malý strom, malým stromem",
    ("tree", 3): "tři malé stromy, tří malých stromů, tři malé stromy, třemi malými stromy",
    ("square", 1): "malý čtverec, malého čtverce, malý čtverec, malým čtvercem",
    ("square", 2): "dva malé čtverce, dvou malých čtverců, dva malé čtverce, dvěma malými čtverci",
    ("drum", 1): "malý buben, malého bubnu, malý buben, malým bubnem",
    ("star", 1): "malá hvězda, malé hvězdy, malou hvězdu, malou hvězdou",
    ("star", 4): "čtyři malé hvězdy, čtyř malých hvězd, čtyři malé hvězdy, čtyřmi malými hvězdami",
    ("trophy", 1): "malá trofej, malé trofeje, malou trofej, malou trofejí",
    (
        "trophy",
        2,
    ): "dvě malé trofeje, dvou malých trofejí, dvě malé trofeje, dvěma malými trofejemi",
    ("car", 1): "malé auto, malého auta, malé auto, malým autem",
    ("car", 2): "dvě malá auta, dvou malých aut, dvě malá auta, dvěma malými auty",
    ("heart", 1): "malé srdce, malého srdce, malé srdce, malým srdcem",
    ("heart", 2): "dvě malá srdce, dvou malých srdcí, dvě malá srdce, dvěma malými srdci",
}
# a heart, a moon, two hearts, two moons
FRENCH = {
    "red": "rouge rouge rouges rouges",
    "blue": "bleu bleue bleus bleues",
    "green": "vert verte verts vertes",
    "yellow": "jaune jaune jaunes jaunes",
    "orange": "orange orange orange orange",
    "purple": "violet violette violets violettes",
    "pink": "rose rose roses roses",
    "brown": "marron marron marron marron",
    "black": "noir noire noirs noires",
}


@pytest.mark.parametrize(("shape", "count"), GERMAN)
def test_german_cases(shape: str, count: int) -> None:
    forms = declined("de", *only(shape, count, "red"))
    assert ", ".join(forms[c] for c in ("nom", "acc", "dat")) == GERMAN[shape, count]


@pytest.mark.parametrize(("shape", "count"), CZECH)
def test_czech_cases(shape: str, count: int) -> None:
    forms = declined("cs", *only(shape, count, size="small"))
    assert ", ".join(forms[c] for c in ("nom", "gen", "acc", "ins")) == CZECH[shape, count]


@pytest.mark.parametrize("colour", COLOURS)
def test_french_colours_agree_or_are_invariable(colour: str) -> None:
    nouns = [("heart", 1), ("moon", 1), ("heart", 2), ("moon", 2)]
    forms = [grammar.pieces("fr", Statement(only(s, n, colour)), 4)[-1] for s, n in nouns]
    assert forms == FRENCH[colour].split()


@pytest.mark.parametrize(
    ("lang", "before", "after"),
    [
        ("en", "{} cup: striped, dotted, chequered", "cup with {}: stripes, dots, checks"),
        ("de", "{} Tasse: gestreifte, gepunktete, karierte", "Tasse mit {}: Streifen, Punkten, Karomuster"),
        ("fr", "tasse à {}: rayures, pois, carreaux", "tasse {}: avec des rayures, avec des pois, à damier"),
        ("cs", "{} hrnek: pruhovaný, puntíkovaný, kostkovaný", "hrnek s {}: pruhy, puntíky, kostkovaným vzorem"),
    ],
)  # fmt: skip
def test_textures_in_both_wordings(lang: str, before: str, after: str) -> None:
    for style, written in ((4, before), (3, after)):
        frame, _, words = written.partition(": ")
        for texture, word in zip(TEXTURES[1:], words.split(", ")):
            text = grammar.sentence(lang, Statement(only("cup", 1, texture=texture)), style)
            assert f" {frame.format(word)} ".lower() in f" {text[:-1]} ".lower(), text


THERE = {
    "en": ("to the left of it", "to the right of it", "over it", "under it",
           "to the left of them", "to the right of them", "over them", "under them"),
    "de": ("links davon", "rechts davon", "darüber", "darunter") * 2,
    "fr": ("à sa gauche", "à sa droite", "au-dessus", "au-dessous",
           "à leur gauche", "à leur droite", "au-dessus", "au-dessous"),
    "cs": ("nalevo od ní", "napravo od ní", "nad ní", "pod ní",
           "nalevo od nich", "napravo od nich", "nad nimi", "pod nimi"),
}  # fmt: skip


@pytest.mark.parametrize("lang", LANGS)
def test_pronouns_of_what_a_mention_is_seen_from(lang: str) -> None:
    for (count, relation), there in zip(product((1, 2), RELATIONS), THERE[lang]):
        text = grammar.sentence(lang, Statement((TREE, *only("star", count)), relation), 5)
        assert f" {there} " in text.replace(",", ""), text
