"""Signals of how good a translation is, without a reference; to be filtered by.

==============  =================================================================  =============
name            what                                                               good
==============  =================================================================  =============
back_chrf       chrF of the back-translation against the source, 0 to 100          high
back_bleu       sentence BLEU of the same, 0 to 100                                high
length_ratio    characters of the translation by those of the source               near the pair's
copied          share of the translation's words that stand in the source as well  low
script          share of its letters in a script that its language is written in   1
language        what an identifier takes it for, as a BCP 47 code, if it knows it   its language
similarity      cosine of a model's vectors of both (`xlcm translate --similarity`)  high
==============  =================================================================  =============

Sources: chrF, Popović 2015, https://aclanthology.org/W15-3049; BLEU and both in sacreBLEU, Post
2018, https://arxiv.org/abs/1804.08771; the others as in the cleaning of parallel corpora, such as
OpusFilter, https://aclanthology.org/2020.acl-demos.20.
"""

# ruff: noqa: SIM905 -- codes read better as words

from __future__ import annotations

import functools
import importlib.util
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from xlcm.config import ConfigError
from xlcm.data.languages import indistinct

UNSPACED = ("zh", "ja", "th", "lo", "km", "my", "bo", "yue", "wuu", "nan", "lzh")
SCRIPTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys("ru uk be bg mk sr mn kk ky tg tt ba cv".split(), ("CYRILLIC",)),
    **dict.fromkeys("ar fa ur ps sd ug arz ary ckb pnb".split(), ("ARABIC",)),
    **dict.fromkeys("hi mr ne sa mai bho".split(), ("DEVANAGARI",)),
    **dict.fromkeys(("zh", "yue", "wuu", "lzh"), ("CJK", "IDEOGRAPHIC")),
    **dict.fromkeys(("he", "yi"), ("HEBREW",)),
    **dict.fromkeys(("bn", "as"), ("BENGALI",)),
    **dict.fromkeys(("am", "ti"), ("ETHIOPIC",)),
    "ja": ("CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"),
    "ko": ("HANGUL", "CJK"),
    "el": ("GREEK",), "th": ("THAI",), "lo": ("LAO",), "km": ("KHMER",), "my": ("MYANMAR",),
    "ka": ("GEORGIAN",), "hy": ("ARMENIAN",), "ta": ("TAMIL",), "te": ("TELUGU",),
    "kn": ("KANNADA",), "ml": ("MALAYALAM",), "gu": ("GUJARATI",), "pa": ("GURMUKHI",),
    "or": ("ORIYA",), "si": ("SINHALA",), "bo": ("TIBETAN",), "dv": ("THAANA",),
}  # fmt: skip
"""Language -> the first words of its letters' Unicode names; a language not here: LATIN.

IDEOGRAPHIC is the mark that doubles the sign before it.
"""
_IN_TAG = {"Latn": "LATIN", "Cyrl": "CYRILLIC", "Arab": "ARABIC", "Deva": "DEVANAGARI"}
Quality = dict[str, int | float | str]


def need_packages(signals: Iterable[str]) -> None:
    """Raise `ConfigError` if a signal needs a package that is not installed."""
    for signal, package in (("back", "sacrebleu"), ("language", "py3langid")):
        if signal in signals and importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"the quality signal {signal!r} needs {package}: pip install 'xlcm[translate]', or "
                "leave it out of `quality`"
            )


def measure(
    signals: Sequence[str],
    source: str,
    source_lang: str,
    text: str,
    lang: str,
    back: str | None = None,
) -> Quality:
    """Return the signals of one translation.

    Args:
        signals: which, of `xlcm.translation.settings.Signal`.
        source: what was translated.
        source_lang: its language.
        text: the translation.
        lang: its language.
        back: the translation of `text` into `source_lang`; a blank one scores 0. None: it was not
            translated back, and has no such signals.
    """
    found: Quality = {}
    if "back" in signals and back is not None:
        chrf, bleu = _scorers(source_lang)
        found["back_chrf"] = round(chrf.sentence_score(back, [source]).score, 1)
        found["back_bleu"] = round(bleu.sentence_score(back, [source]).score, 1)
    if "length" in signals:
        found["length_ratio"] = round(len(text) / max(len(source), 1), 3)
    if "copied" in signals:
        found["copied"] = round(copied(source, text), 3)
    if "script" in signals:
        found["script"] = round(script(text, lang), 3)
    if "language" in signals and identifiable(lang):
        found["language"] = identify(text)
    return found


def tokenizer_of(lang: str) -> str:
    """Return sacreBLEU's tokenizer for a language: characters where words are not spaced."""
    base = lang.partition("-")[0]
    if base == "zh":
        return "zh"
    return "char" if base in UNSPACED or base == "ko" else "13a"


@functools.cache
def _scorers(lang: str) -> tuple[Any, Any]:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    return CHRF(), BLEU(tokenize=tokenizer_of(lang), effective_order=True)


def copied(source: str, text: str) -> float:
    """Return the share of the text's words, of three letters and more, that the source has too.

    Names and loan words are rightly copied, so a share below a half says little.
    """
    known = set(_words(source))
    words = _words(text)
    return sum(word in known for word in words) / len(words) if words else 0.0


def _words(text: str) -> list[str]:
    words = "".join(mark if mark.isalpha() else " " for mark in text.casefold()).split()
    return [word for word in words if len(word) >= 3]


def script(text: str, lang: str) -> float:
    """Return the share of letters in a script of the language; 1 for a text without letters."""
    base, *rest = lang.split("-")
    wanted = SCRIPTS.get(base, ("LATIN",))
    if base == "sr":
        wanted = ("CYRILLIC", "LATIN")
    for part in rest:
        wanted = (_IN_TAG[part],) if part in _IN_TAG else wanted
    names = [_script_of(mark) for mark in text if mark.isalpha()]
    return sum(name in wanted for name in names) / len(names) if names else 1.0


@functools.lru_cache(maxsize=1 << 16)
def _script_of(mark: str) -> str:
    return unicodedata.name(mark, "?").split()[0].removesuffix("-")


def identify(text: str) -> str:
    """Return the language that py3langid takes a text for; short texts are often mistaken."""
    import py3langid

    return str(py3langid.classify(text)[0])


def identifiable(lang: str) -> bool:
    """Return whether py3langid knows a language, or one that it can't tell from it."""
    base = lang.partition("-")[0]
    return not {base, indistinct(base)}.isdisjoint(_identified())


@functools.cache
def _identified() -> frozenset[str]:
    from py3langid import langid

    langid.classify("")  # loads the model
    return frozenset(langid.IDENTIFIER.nb_classes)
