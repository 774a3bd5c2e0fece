"""Signals of quality: high for good translations, low for the usual faults."""

import pytest

from xlcm.config import ConfigError
from xlcm.translation import quality
from xlcm.translation.quality import copied, measure, need_packages, script, tokenizer_of


def test_the_way_back_is_scored_as_sacrebleu_scores_it():
    sacrebleu = pytest.importorskip("sacrebleu")
    source, back = "A dog runs over the wet grass.", "A dog is running on wet grass."
    found = measure(["back"], source, "en", "Ein Hund.", "de", back)
    assert found["back_chrf"] == round(sacrebleu.sentence_chrf(back, [source]).score, 1)
    assert found["back_bleu"] == round(sacrebleu.sentence_bleu(back, [source]).score, 1)
    assert measure(["back"], source, "en", "Ein Hund.", "de", None) == {}
    nothing = measure(["back"], source, "en", "Ein Hund.", "de", "")
    assert nothing == {"back_chrf": 0.0, "back_bleu": 0.0}
    same = measure(["back"], source, "en", "Ein Hund.", "de", source)
    assert same == {"back_chrf": 100.0, "back_bleu": 100.0}


def test_words_that_were_not_translated_count_as_copied():
    assert copied("A dog on the beach", "Ein Hund am Strand") == 0
    assert copied("A dog on the beach", "Ein Dog am BEACH") == pytest.approx(2 / 4 * 4 / 3)
    assert copied("A dog", "一只狗") == 0


@pytest.mark.parametrize(
    ("text", "lang", "share"),
    [("Ein Hund.", "de", 1), ("Ein Hund.", "ru", 0), ("собака", "ru", 1), ("犬が走る", "ja", 1), ("人々", "ja", 1),
     ("一只狗", "zh", 1), ("一只dog", "zh", 0.4), ("123 !", "zh", 1), ("कुत्ता", "hi", 1),
     ("пас", "sr-Latn", 0), ("pas", "sr-Latn", 1), ("개가 달린다", "ko", 1), ("كلب", "ar", 1)],
)  # fmt: skip
def test_letters_are_counted_in_the_scripts_of_the_language(text, lang, share):
    assert script(text, lang) == share


def test_length_is_that_of_the_translation_by_that_of_the_source():
    assert measure(["length"], "abcd", "en", "ab", "de") == {"length_ratio": 0.5}


def test_the_language_is_identified():
    pytest.importorskip("py3langid")
    text = "Ein kleiner Junge spielt mit seinem Hund auf der Wiese hinter dem Haus."
    assert measure(["language"], "x", "en", text, "de") == {"language": "de"}
    assert "language" in measure(["language"], "x", "en", text, "nb")  # taken for `no`
    assert measure(["language"], "x", "en", text, "bo") == {}  # which it doesn't know


def test_words_are_cut_where_they_are_spaced():
    assert [tokenizer_of(lang) for lang in ("de", "zh-Hant", "ja", "ko")] == ["13a", "zh", "char", "char"]  # fmt: skip


def test_a_missing_package_is_named_with_the_way_out(monkeypatch):
    monkeypatch.setattr(quality.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs py3langid: pip install 'xlcm\[translate\]'"):
        need_packages(["language"])
    need_packages(["length", "script"])
