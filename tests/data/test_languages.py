import pytest

from xlcm.data.languages import NAMES, indistinct, language_fault, language_name, three_letters

FIELD = """en de fr cs zh ja sw hi es uk ar pt ru ko vi th tr pl it nl bn fa fil hu mi quz te da el fi
he hr id no ro sv et id ta yue zh-Hant zh-Hans pt-BR es-419 sr-Latn de-1996 de-CH-1996 und-x-elvish"""


@pytest.mark.parametrize("lang", FIELD.split())
def test_the_codes_of_the_field_are_valid(lang):
    assert language_fault(lang) is None


@pytest.mark.parametrize(
    ("lang", "meant"),
    [
        ("jp", "ja"), ("cz", "cs"), ("ZH", "zh"), ("zh_CN", "zh-CN"), ("zh-hant", "zh-Hant"),
        ("eng", "en"), ("ger", "de"), ("deu_Latn", "de-Latn"), ("German", "de"), ("iw", "he"),
        ("pt-br", "pt-BR"), ("mandarin", "zh"), ("ua", "uk"),
    ],
)  # fmt: skip
def test_a_wrong_spelling_names_the_right_one(lang, meant):
    assert language_fault(lang) == f"{lang!r} is no BCP 47 language code; did you mean {meant!r}?"
    assert language_fault(meant) is None


@pytest.mark.parametrize(
    "lang",
    ["", " ", "xx", "qq", "en-", "-en", "en-XX", "zh-Hxxx", "en--US", "e", "en us", "en-x", "de\n"],
)
def test_what_is_no_code_is_refused(lang):
    assert "is no BCP 47" in language_fault(lang)


def test_a_rare_language_gets_a_way_out():
    assert "write 'und-x-tlh'" in language_fault("tlh")
    assert language_fault("und-x-tlh") is None


def test_all_two_letter_codes_are_there_and_named():
    assert sum(len(code) == 2 for code in NAMES) == 184
    assert all(name and name == name.strip() for name in NAMES.values())
    assert all(language_fault(code) is None for code in NAMES)
    assert language_name("zh-Hant") == "Chinese (Hant)"
    assert language_name("de") == "German"


def test_three_letters_and_languages_that_a_sentence_does_not_tell_apart():
    assert [three_letters(code) for code in ("de", "sw", "yue", "xx")] == [
        "deu",
        "swa",
        "yue",
        "xx",
    ]
    assert indistinct("nb") == indistinct("nn") == indistinct("no")
    assert indistinct("de") == "de"
