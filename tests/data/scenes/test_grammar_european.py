"""English, German, French and Czech sentences: agreement by hand-written examples, meaning by pairs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from xlcm.data.scenes import grammar
from xlcm.data.scenes.patterns import Patterns
from xlcm.data.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    OPPOSITE,
    RELATIONS,
    SENSES,
    SHAPES,
    TEXTURES,
    Mention,
    Statement,
    random_scene,
    random_statement,
)

LANGS = ("en", "de", "fr", "cs")

STAR = Mention("star", 1, "red", "small")
FISH = Mention("fish", 2, "blue", "large")
HOUSE = Mention("house", 1, "green")
FULL = Statement((STAR, FISH, HOUSE), "left_of", "meadow")


def only(shape: str, count: int, colour: str | None = None, **rest: object) -> tuple[Mention, ...]:
    return (Mention(shape, count, colour, **rest),)  # type: ignore[arg-type]


def seen_from(relation: str, shape: str, count: int, colour: str | None = None) -> Statement:
    """A yellow tree, seen from the mention that is in question."""
    mentions = (Mention("tree", 1, "yellow"), *only(shape, count, colour))
    return Statement(mentions, relation)  # type: ignore[arg-type]


# One statement with a relation, a further mention and a background, in every style.
EVERY_STYLE = {
    "en": [
        "There is a small red star to the left of two large blue fish, as well as a green house, in a meadow.",
        "In a meadow, to the left of two big blue fish there is a little red star, and we also see a green house.",
        "The picture shows a small red star to the left of two large blue fish, with a green house next to them, in a meadow.",
        "In a meadow, we see a little red star to the left of two big blue fish, and also a green house.",
        "A small red star to the left of two large blue fish, plus a green house, in a meadow.",
        "In a meadow, there are two big blue fish and, to the left of them, a little red star, and we also see a green house.",
    ],
    "de": [
        "Auf dem Bild sind auf einer Wiese ein kleiner roter Stern links von zwei großen blauen Fischen sowie ein grünes Haus zu sehen.",
        "Auf einer Wiese befindet sich links neben zwei großen blauen Fischen ein kleiner roter Stern, außerdem sieht man ein grünes Haus.",
        "Das Bild zeigt auf einer Wiese einen kleinen roten Stern links von zwei großen blauen Fischen und dazu ein grünes Haus.",
        "Auf einer Wiese sehen wir einen kleinen roten Stern links neben zwei großen blauen Fischen und außerdem ein grünes Haus.",
        "Ein kleiner roter Stern links von zwei großen blauen Fischen, dazu ein grünes Haus, auf einer Wiese.",
        "Auf einer Wiese gibt es zwei große blaue Fische und links davon einen kleinen roten Stern, außerdem ein grünes Haus.",
    ],
    "fr": [
        "Il y a une petite étoile rouge à gauche de deux grands poissons bleus, sans oublier une maison verte, dans un pré.",
        "Dans une prairie, à gauche de deux grands poissons bleus se trouve une petite étoile rouge, et on voit aussi une maison verte.",
        "L'image montre une petite étoile rouge à gauche de deux grands poissons bleus, avec une maison verte à côté, dans un pré.",
        "Dans une prairie, on voit une petite étoile rouge à gauche de deux grands poissons bleus, et aussi une maison verte.",
        "Une petite étoile rouge à gauche de deux grands poissons bleus, plus une maison verte, dans un pré.",
        "Dans une prairie, nous voyons deux grands poissons bleus et, à leur gauche, une petite étoile rouge, et on voit aussi une maison verte.",
    ],
    "cs": [
        "Na obrázku je na louce malá červená hvězda vlevo od dvou velkých modrých ryb a také zelený dům.",
        "Na louce je nalevo od dvou velkých modrých ryb malá červená hvězda, dále vidíme zelený dům.",
        "Obrázek ukazuje na louce malou červenou hvězdu vlevo od dvou velkých modrých ryb a kromě toho zelený dům.",
        "Na louce vidíme malou červenou hvězdu nalevo od dvou velkých modrých ryb a také zelený dům.",
        "Malá červená hvězda vlevo od dvou velkých modrých ryb, k tomu zelený dům, na louce.",
        "Na louce jsou dvě velké modré ryby a nalevo od nich malá červená hvězda, k tomu zelený dům.",
    ],
}

TRICKY = {
    "en": [
        (Statement(only("fish", 1, "orange")), 4, "An orange fish."),
        (Statement(only("angler", 1)), 4, "An angler."),
        (Statement(only("fish", 3)), 4, "Three fish."),
        (Statement(only("house", 4)), 4, "Four houses."),
        (Statement(only("trophy", 2, "orange")), 0, "There are two orange trophies."),
        (Statement(only("cup", 1, "orange", size="small")), 4, "A small orange cup."),
        (Statement(only("car", 1, "red", texture="chequered")), 4, "A chequered red car."),
        (Statement(only("car", 1, "red", texture="chequered")), 3, "We see a red car with checks."),
        (Statement((STAR, FISH)), 0, "There is a small red star and two large blue fish."),
        (seen_from("above", "angler", 1), 5, "There is an angler and, over it, a yellow tree."),
        (seen_from("below", "cup", 2), 1, "Under two cups there is a yellow tree."),
        (Statement((STAR, FISH, HOUSE), background="night"), 2,
         "The picture shows a small red star, two large blue fish and a green house, at night."),
    ],
    "de": [
        (Statement(only("star", 1, "red", size="small")), 2, "Das Bild zeigt einen kleinen roten Stern."),
        (Statement(only("house", 1, "green")), 2, "Das Bild zeigt ein grünes Haus."),
        (Statement(only("flower", 1, "pink")), 2, "Das Bild zeigt eine rosa Blume."),
        (Statement(only("flower", 2, "orange")), 4, "Zwei orangefarbene Blumen."),
        (seen_from("above", "flower", 1, "purple"), 4, "Ein gelber Baum über einer violetten Blume."),
        (seen_from("right_of", "house", 3, "pink"), 4, "Ein gelber Baum rechts von drei rosa Häusern."),
        (seen_from("below", "heart", 1, "black"), 4, "Ein gelber Baum unter einem schwarzen Herzen."),
        (seen_from("left_of", "car", 2, "brown"), 4, "Ein gelber Baum links von zwei braunen Autos."),
        (seen_from("above", "angler", 4), 4, "Ein gelber Baum über vier Anglern."),
        (Statement((FISH,)), 0, "Auf dem Bild sind zwei große blaue Fische zu sehen."),
        (seen_from("below", "cup", 2), 5, "Hier gibt es zwei Tassen und darunter einen gelben Baum."),
        (Statement((STAR, HOUSE)), 0, "Auf dem Bild sind ein kleiner roter Stern und ein grünes Haus zu sehen."),
        (Statement(only("star", 1, "red", texture="striped"), background="white"), 3,
         "Auf weißem Grund sehen wir einen roten Stern mit Streifen."),
        (Statement(only("star", 2, "red", untranslated=True)), 4, "Zwei rote stars."),
        (Statement(only("flower", 1, "red", untranslated=True)), 2, "Das Bild zeigt eine rote flower."),
    ],
    "fr": [
        (Statement(only("star", 1, "yellow", texture="striped")), 4, "Une étoile jaune à rayures."),
        (Statement(only("car", 2, "purple", size="small")), 4, "Deux petites voitures violettes."),
        (Statement(only("house", 3, "brown", size="large")), 4, "Trois grandes maisons marron."),
        (Statement(only("flower", 2, "orange", texture="dotted")), 4, "Deux fleurs orange à pois."),
        (Statement(only("flower", 2, "pink")), 4, "Deux fleurs roses."),
        (Statement(only("month", 2, "black")), 4, "Deux mois noirs."),
        (Statement(only("tree", 1, size="small")), 4, "Un petit arbre."),
        (Statement(only("tree", 4, size="small")), 4, "Quatre petits arbres."),
        (Statement(only("tree", 1, size="large")), 4, "Un grand arbre."),
        (Statement(only("star", 1, size="large")), 4, "Une grande étoile."),
        (seen_from("left_of", "tree", 1), 4, "Un arbre jaune à gauche d'un arbre."),
        (seen_from("above", "star", 1, "black"), 4, "Un arbre jaune au-dessus d'une étoile noire."),
        (seen_from("right_of", "cup", 2, "green"), 4, "Un arbre jaune à droite de deux tasses vertes."),
        (seen_from("below", "heart", 3, "blue"), 4, "Un arbre jaune sous trois cœurs bleus."),
        (seen_from("below", "heart", 1), 1, "Au-dessous d'un cœur se trouve un arbre jaune."),
        (seen_from("right_of", "cup", 1), 5, "Nous voyons une tasse et, à sa droite, un arbre jaune."),
        (Statement((FISH, HOUSE), "above"), 1,
         "Au-dessus d'une maison verte se trouvent deux grands poissons bleus."),
        (Statement(only("house", 2, "green", untranslated=True)), 4, "Deux houses vertes."),
    ],
    "cs": [
        (Statement(only("fish", 1, "pink")), 2, "Obrázek ukazuje růžovou rybu."),
        (Statement(only("house", 1, "brown")), 2, "Obrázek ukazuje hnědý dům."),
        (Statement(only("angler", 1, "red")), 2, "Obrázek ukazuje červeného rybáře."),
        (Statement(only("angler", 2, "blue", size="large")), 4, "Dva velcí modří rybáři."),
        (Statement(only("angler", 3, "black")), 2, "Obrázek ukazuje tři černé rybáře."),
        (Statement(only("heart", 2, "green")), 4, "Dvě zelená srdce."),
        (Statement(only("cup", 2, "green")), 4, "Dva zelené hrnky."),
        (Statement(only("car", 4, "black", size="small")), 0, "Na obrázku jsou čtyři malá černá auta."),
        (seen_from("left_of", "square", 1, "red"), 4, "Žlutý strom vlevo od červeného čtverce."),
        (seen_from("right_of", "heart", 3), 4, "Žlutý strom vpravo od tří srdcí."),
        (seen_from("above", "house", 1, "green"), 4, "Žlutý strom nad zeleným domem."),
        (seen_from("below", "flower", 1, "purple"), 4, "Žlutý strom pod fialovou květinou."),
        (seen_from("above", "flower", 2, "orange"), 4, "Žlutý strom nad dvěma oranžovými květinami."),
        (seen_from("below", "cup", 4), 4, "Žlutý strom pod čtyřmi hrnky."),
        (seen_from("above", "moon", 3), 4, "Žlutý strom nad třemi půlměsíci."),
        (seen_from("left_of", "star", 1), 5, "Je tu hvězda a nalevo od ní žlutý strom."),
        (seen_from("right_of", "house", 1), 5, "Je tu dům a napravo od něj žlutý strom."),
        (seen_from("above", "car", 1), 5, "Je tu auto a nad ním žlutý strom."),
        (Statement(only("flower", 2, "red", untranslated=True)), 2, "Obrázek ukazuje dvě červené flowers."),
    ],
}  # fmt: skip


@pytest.mark.parametrize("lang", LANGS)
def test_every_style_reads_as_written_by_hand(lang: str) -> None:
    written = [grammar.sentence(lang, FULL, style) for style in range(grammar.STYLES[lang])]
    assert written == EVERY_STYLE[lang]


@pytest.mark.parametrize(
    ("lang", "statement", "style", "expected"),
    [(lang, *case) for lang, cases in TRICKY.items() for case in cases],
)
def test_agreement_in_tricky_cases(
    lang: str, statement: Statement, style: int, expected: str
) -> None:
    assert grammar.sentence(lang, statement, style) == expected


def _everything() -> Iterator[Statement]:
    """Every noun with every colour and number, alone and where every relation puts it."""
    for shape, colour, count in product((*SHAPES, *SENSES), (None, *COLOURS), (1, 2, 3, 4)):
        for untranslated in (False, True):
            mention = Mention(shape, count, colour, "large", "striped", untranslated)
            yield Statement((mention,), None, "sea")
            for relation in RELATIONS[:: 2 if untranslated else 1]:
                yield Statement((STAR, mention), relation)
            yield Statement((mention, STAR, mention, mention), "above", "night")


@pytest.mark.parametrize("lang", LANGS)
def test_every_combination_makes_a_well_formed_sentence(lang: str) -> None:
    for i, statement in enumerate(_everything()):
        style = i // 7 % grammar.STYLES[lang]
        pieces = grammar.pieces(lang, statement, style)
        text = grammar.join(lang, pieces)
        assert all(piece and piece == piece.strip() for piece in pieces), (statement, pieces)
        assert not any(fault in text for fault in ("  ", " ,", ",,", ",.", "{", "[", "|")), text
        assert text[0].isupper(), text
        assert text.endswith("."), text


@pytest.mark.parametrize("lang", LANGS)
def test_all_nouns_differ_in_each_number(lang: str) -> None:
    for count in (1, 2):
        nouns = {grammar.sentence(lang, Statement(only(s, count)), 4) for s in (*SHAPES, *SENSES)}
        assert len(nouns) == len(SHAPES) + len(SENSES)


@pytest.mark.parametrize("lang", LANGS[1:])
def test_untranslated_nouns_are_the_english_ones_in_the_right_number(lang: str) -> None:
    for shape, count in product((*SHAPES, *SENSES), (1, 2)):
        mention = Mention(shape, count, "red", untranslated=True)
        english = grammar.pieces("en", Statement((replace(mention, colour=None),)), 4)[-1]
        assert english in grammar.pieces(lang, Statement((mention,)), 4)


def _neighbours(statement: Statement, random: np.random.Generator) -> Iterator[Statement]:
    """Statements that differ from one in a single detail."""
    mentions, relation = statement.mentions, statement.relation
    for background in (None, *BACKGROUNDS):
        yield replace(statement, background=background)
    if relation is not None:
        yield replace(statement, relation=OPPOSITE[relation])
        yield replace(statement, relation=None)
        yield replace(statement, mentions=(mentions[1], mentions[0], *mentions[2:]))
    if len(mentions) < 4:
        yield replace(statement, mentions=(*mentions, Mention("cup", 1, "pink")))
    i = int(random.integers(len(mentions)))
    changed = [replace(mentions[i], count=count) for count in (1, 2, 3, 4)]
    changed += [replace(mentions[i], colour=colour) for colour in (None, *COLOURS)]
    changed += [replace(mentions[i], size=size) for size in (None, "small", "large")]
    changed += [replace(mentions[i], texture=texture) for texture in (None, *TEXTURES)]
    changed += [replace(mentions[i], shape=shape) for shape in (*SHAPES, *SENSES)]
    changed.append(replace(mentions[i], untranslated=True))
    for mention in changed:
        yield replace(statement, mentions=(*mentions[:i], mention, *mentions[i + 1 :]))


def _meaning(lang: str, statement: Statement) -> Statement:
    """The statement without what no sentence shows: "plain", and words that are the same."""
    same = SHAPES + SENSES if lang == "en" else ("triangle",) if lang == "fr" else ()
    return replace(
        statement,
        mentions=tuple(
            replace(
                mention,
                texture=None if mention.texture == "plain" else mention.texture,
                untranslated=mention.untranslated and mention.shape not in same,
            )
            for mention in statement.mentions
        ),
    )


@pytest.mark.parametrize("lang", LANGS)
def test_equal_sentences_come_from_equal_meanings_only(lang: str) -> None:
    random = np.random.default_rng(3)
    drawn = [random_statement(random_scene(random), random) for _ in range(50)]
    sample = [near for statement in drawn for near in (statement, *_neighbours(statement, random))]
    sample += [random_statement(random_scene(random), random) for _ in range(2000)]
    for style in range(grammar.STYLES[lang]):
        meanings: dict[str, Statement] = {}
        for statement in sample:
            text = grammar.sentence(lang, statement, style)
            meaning = _meaning(lang, statement)
            assert meanings.setdefault(text, meaning) == meaning, text


@pytest.mark.parametrize("lang", LANGS)
def test_ten_thousand_sentences_a_second(lang: str) -> None:
    random = np.random.default_rng(0)
    sample = [random_statement(random_scene(random), random) for _ in range(1000)]
    seconds = []
    for _ in range(5):  # CPU time of the best round, so that a busy machine doesn't fail it
        start = time.process_time()
        for i, statement in enumerate(sample):
            grammar.sentence(lang, statement, i % grammar.STYLES[lang])
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.1


def test_unknown_language_names_the_nearest_and_all() -> None:
    message = r"no grammar for 'cs-CZ'; did you mean 'cs'\?; known: en, de, fr, cs, zh, ja, sw"
    with pytest.raises(ValueError, match=message):
        grammar.sentence("cs-CZ", FULL, 0)
    with pytest.raises(ValueError, match="known: en"):
        grammar.join("xx", ["a"])
    with pytest.raises(ValueError, match="known: en"):
        grammar.STYLES["xx"]


@pytest.mark.parametrize("style", [-1, 6])
def test_unknown_style_names_the_range(style: int) -> None:
    with pytest.raises(ValueError, match=f"'en' has the styles 0 to 5, got {style}"):
        grammar.pieces("en", FULL, style)


def test_a_relation_without_second_mention_is_refused() -> None:
    with pytest.raises(ValueError, match="'above' needs two mentions"):
        grammar.pieces("en", Statement((STAR,), "above"), 0)


def test_styles_knows_its_languages_without_loading_them() -> None:
    assert tuple(grammar.STYLES) == grammar.LANGS
    assert "de" in grammar.STYLES
    assert "xx" not in grammar.STYLES
    assert all(grammar.STYLES[lang] >= 4 for lang in LANGS)


def test_a_misspelt_slot_stops_with_the_pattern() -> None:
    def silent(*_: object) -> list[str]:
        return []

    with pytest.raises(ValueError, match=r"no slot is called 'frist' in 'here is \{frist\}'"):
        Patterns(
            [("here is {frist}", "{all}")],
            phrase=silent, place=silent, there=silent, backgrounds=[{}], conjunction="and",
        )  # fmt: skip
