"""The seq2seq engine: what the model itself would write, in the languages that were asked for."""

import pytest
import torch
from small_translators import m2m, madlad, marian, nllb

from xlcm.config import ConfigError, build
from xlcm.translation.codes import model_code
from xlcm.translation.engines import engines
from xlcm.translation.seq2seq import Seq2Seq

TEXTS = ["a red dog stands here", "two blue house", "a red dog in the garden stands here a dog"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return m2m(tmp_path_factory.mktemp("m2m") / "small")


def by_hand(folder, texts, source, target, beams):
    """Translate one text at a time, as the model's documentation says."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    tokenizer.src_lang = source
    out = []
    for text in texts:
        made = network.generate(
            **tokenizer(text, return_tensors="pt"), num_beams=beams, max_new_tokens=12,
            forced_bos_token_id=tokenizer.get_lang_id(target),
        )  # fmt: skip
        out.append(tokenizer.batch_decode(made, skip_special_tokens=True)[0])
    return out


@pytest.mark.parametrize("beams", [1, 3])
def test_a_batch_is_translated_as_each_text_by_hand(model, beams):
    engine = Seq2Seq(model=str(model), beams=beams, max_new_tokens=12)
    found = engine.translate(TEXTS, "en", "de")
    assert found == by_hand(model, TEXTS, "en", "de", beams)
    assert len(set(found)) > 1
    assert all(found)


def test_the_target_language_reaches_the_model(model):
    engine = Seq2Seq(model=str(model), beams=1, max_new_tokens=12)
    assert engine.translate(TEXTS, "en", "de") != engine.translate(TEXTS, "en", "fr")


def test_where_memory_runs_out_the_batch_is_halved(model, monkeypatch):
    engine = Seq2Seq(model=str(model), beams=1, max_new_tokens=12)
    expected = engine.translate(TEXTS, "en", "de")
    generate, sizes = Seq2Seq._generate_at_once, []

    def small(self, texts, forced):
        sizes.append(len(texts))
        if len(texts) > 1:
            raise torch.OutOfMemoryError
        return generate(self, texts, forced)

    monkeypatch.setattr(Seq2Seq, "_generate_at_once", small)
    assert engine.translate(TEXTS, "en", "de") == expected
    assert sizes == [3, 1, 2, 1, 1]


def test_texts_that_are_too_long_are_counted(model):
    engine = Seq2Seq(model=str(model), beams=1, max_new_tokens=4)
    engine.translate(["a red dog " * 40, "a dog"], "en", "de")
    assert engine.cut == 1


def test_texts_of_a_batch_that_is_halved_are_counted_once(model, monkeypatch):
    engine = Seq2Seq(model=str(model), beams=1, max_new_tokens=2)
    engine.translate(["a dog"], "en", "de")
    generate = engine._network.generate

    def small(**given):
        if len(given["input_ids"]) > 1:
            raise torch.OutOfMemoryError
        return generate(**given)

    monkeypatch.setattr(engine._network, "generate", small)
    engine.translate(["a red dog " * 40, "a dog"], "en", "de")
    assert engine.cut == 1


def test_marian_has_a_model_for_each_pair(tmp_path):
    marian(tmp_path / "en-de", seed=1), marian(tmp_path / "de-en", seed=2)
    pattern = str(tmp_path / "{source}-{target}" / "model")
    engine = build(engines, {"name": "seq2seq", "model": pattern, "beams": 1, "max_new_tokens": 8})
    engine.check("en", "de")
    there, back = (engine.translate(TEXTS, *pair) for pair in (("en", "de"), ("de", "en")))
    assert there != back
    assert engine.translate(TEXTS, "en", "de") == there
    with pytest.raises(
        ConfigError,
        match=r"model '.*en-fr/model': there is no such folder; a model is a folder .* or an id",
    ):
        engine.check("en", "fr")
    (tmp_path / "en-fr" / "model").mkdir(parents=True)
    with pytest.raises(ConfigError, match="can't be opened"):
        engine.check("en", "fr")


def test_marian_with_several_targets_is_told_by_a_mark(tmp_path):
    folder = marian(tmp_path / "many", marks=(">>deu<<", ">>fr<<", ">>pt_br<<"))
    engine = Seq2Seq(model=str(folder), beams=1, max_new_tokens=8)
    marks = {lang: engine_mark(engine, lang) for lang in ("de", "fr", "pt")}
    assert marks == {"de": ">>deu<<", "fr": ">>fr<<", "pt": ">>pt_br<<"}
    both = marian(tmp_path / "both", marks=(">>pt<<", ">>pt_br<<"))
    engine_of_both = Seq2Seq(model=str(both), beams=1, max_new_tokens=8)
    assert engine_mark(engine_of_both, "pt-BR") == ">>pt_br<<"
    assert engine_mark(engine_of_both, "pt") == ">>pt<<"
    with pytest.raises(ConfigError, match=r"no target 'ja'.*>>deu<<.*codes"):
        engine.check("en", "ja")


def test_codes_name_the_mark_and_names_the_model(tmp_path):
    marian(tmp_path / "en-zh", marks=(">>cmn_Hans<<", ">>yue<<")), marian(tmp_path / "en-jap")
    pattern = str(tmp_path / "{source}-{target}" / "model")
    engine = Seq2Seq(model=pattern, codes={"zh": "cmn_Hans"}, names={"ja": "jap"})
    assert engine_mark(engine, "zh") == ">>cmn_Hans<<"
    engine.check("en", "ja")
    assert engine._opened == pattern.format(source="en", target="jap")


def engine_mark(engine, lang):
    """Return the first token that the model sees of a text for a target."""
    engine.check("en", lang)
    prefix, _ = engine._languages("en", lang)
    ids = engine._tokenizer(prefix + "a dog")["input_ids"]
    return engine._tokenizer.convert_ids_to_tokens(ids)[0]


def test_nllb_is_told_both_languages_by_its_own_codes(tmp_path):
    engine = Seq2Seq(model=str(nllb(tmp_path)), beams=1, max_new_tokens=8)
    engine.check("en", "de")
    prefix, forced = engine._languages("en", "de")
    number = engine._tokenizer.convert_tokens_to_ids
    assert (prefix, forced) == ("", number("deu_Latn"))
    assert engine._tokenizer("a dog")["input_ids"][0] == number("eng_Latn")
    assert engine._languages("de", "zh-Hant")[1] == number("zho_Hant")
    assert len(engine.translate(TEXTS, "en", "de")) == 3


def test_madlad_is_told_the_target_by_a_first_token(tmp_path):
    engine = Seq2Seq(model=str(madlad(tmp_path)), beams=1, max_new_tokens=8)
    engine.check("en", "de")
    prefix, forced = engine._languages("en", "de")
    assert forced is None
    first = engine._tokenizer(prefix + "a dog")["input_ids"][0]
    assert first == engine._tokenizer.convert_tokens_to_ids("<2de>")
    assert len(engine.translate(TEXTS, "en", "fr")) == 3
    with pytest.raises(ConfigError, match=r"no token '<2ja>' for 'ja'"):
        engine.check("en", "ja")


def test_a_model_that_is_not_told_gets_the_prefix_of_the_config(tmp_path):
    folder = str(madlad(tmp_path))
    engine = Seq2Seq(model=folder, family="plain", prefix="{source} to {target}: ", beams=1)
    assert engine.model == folder
    engine.check("en", "ja")
    assert engine._languages("en", "ja") == ("English to Japanese: ", None)


def test_a_language_that_the_model_lacks_is_named(model):
    engine = Seq2Seq(model=str(model))
    with pytest.raises(ConfigError, match=r"no 'zh-Hant'.*codes"):
        engine.check("en", "zh-Hant")
    with pytest.raises(ConfigError, match=r"no token '__xx__' for 'de'"):
        Seq2Seq(model=str(model), codes={"de": "xx"}).check("en", "de")


@pytest.mark.parametrize(
    ("lang", "family", "code"),
    [("zh", "nllb", "zho_Hans"), ("zh-Hant", "nllb", "zho_Hant"), ("sw", "nllb", "swh_Latn"),
     ("nb", "m2m", "no"), ("ja", "mbart50", "ja_XX"), ("pt-BR", "mbart50", "pt_XX"),
     ("zh-Hant", "madlad", "zh_Hant"), ("de", "marian", "de")],
)  # fmt: skip
def test_languages_have_the_codes_of_the_families(lang, family, code):
    assert model_code(lang, family) == code


def test_the_table_agrees_with_the_tokenizers_of_transformers():
    from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES as M2M
    from transformers.models.mbart50.tokenization_mbart50 import FAIRSEQ_LANGUAGE_CODES as MBART
    from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES as NLLB

    from xlcm.data.languages import language_fault
    from xlcm.translation.codes import CODES

    assert [lang for lang in CODES if language_fault(lang)] == []
    for column, known in ((1, NLLB), (2, M2M["m2m100"]), (3, MBART)):
        used = {row[column] for row in CODES.values()} - {"-"}
        assert sorted(used - set(known)) == []
