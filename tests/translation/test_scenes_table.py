"""The table engine says of scenes what their captions say, word for word."""

import pytest

from xlcm.config import ConfigError
from xlcm.data.scenes import LANGS, Scenes, grammar_de, grammar_en
from xlcm.data.scenes.world import SHAPES
from xlcm.translation.quality import measure
from xlcm.translation.scenes_table import ScenesTable, table


def test_every_shape_finds_its_word():
    found = table("en", "de")
    for shape in SHAPES:
        assert found[grammar_en.noun(shape, 1)] == grammar_de._NOUNS[shape][1]
        if shape != "fish":  # one word in English, whose German is taken from the singular
            assert found[grammar_en.noun(shape, 2)] in grammar_de._NOUNS[shape][3:]


def test_a_caption_is_translated_word_for_word_and_back():
    engine = ScenesTable()
    (there,) = engine.translate(["Two red stars above three yellow houses."], "en", "de")
    assert there == "Zwei roten Sterne über drei gelbe Häuser."
    assert engine.translate([there], "de", "en") == ["Two red stars over three yellow houses."]


@pytest.mark.parametrize("lang", [lang for lang in LANGS if lang != "en"])
def test_the_way_back_keeps_much_more_than_that_of_another_caption(lang):
    engine = ScenesTable()
    items = Scenes(size=20, target_langs=[], captions=1, cache=None)
    texts = [items[i].captions[0].text for i in range(20)]
    back = engine.translate(engine.translate(texts, "en", lang), lang, "en")
    own, other = (
        sum(measure(["back"], t, "en", t, lang, b)["back_chrf"] for t, b in zip(texts, rows))
        for rows in (back, [*back[1:], back[0]])
    )
    assert own > other + 20 * 20  # points of chrF a caption


def test_words_of_no_scene_stay_and_languages_without_grammar_are_refused():
    assert "Zebra" in ScenesTable().translate(["Zebra red fish."], "en", "de")[0]
    with pytest.raises(ConfigError, match=r"no grammar for 'pt'"):
        ScenesTable().check("en", "pt")
