"""Captions reduced to letters or words before they are tokenised, as some methods were published.

Neither is needed for anything but a comparison with those methods: tokenizers read raw text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import Literal, TypeAlias

Cleaning: TypeAlias = Literal["none", "letters", "words"]

NOT_LATIN = re.compile("[^A-Za-z0-9]+")
APOSTROPHES = "'\u2019"
JOINERS = "\u200c\u200d"  # between letters of one word, in Persian and in Indic scripts


def letters_only(text: str) -> str:
    """Return the unaccented Latin letters and digits of a sentence, in sentence case with a stop.

    Everything else becomes a blank, so that an accented letter is lost and breaks its word, and a
    sentence in another script is lost altogether. For English.

    Source: NRCCR, Wang et al. 2022, https://arxiv.org/abs/2208.12526, its source captions as in the
    released code.
    """
    kept = NOT_LATIN.sub(" ", text).strip().lower()
    return f"{kept[0].upper()}{kept[1:]}." if kept else ""


def words_only(text: str) -> str:
    """Return the words of a sentence with their apostrophes, joined by single blanks.

    Words are letters, digits and underscores of any script.

    Source: C2KD, Rouditchenko et al. 2023, https://arxiv.org/abs/2210.03625, the teachers' English
    captions as in the released code. Combining marks (the vowel signs of Hindi), the joiners
    between letters and the typographic apostrophe also stay, which is our addition.
    """
    return " ".join("".join(mark if _in_word(mark) else " " for mark in text).split())


def _in_word(mark: str) -> bool:
    return (
        mark.isalnum()
        or mark == "_"
        or mark in APOSTROPHES
        or mark in JOINERS
        or unicodedata.category(mark).startswith("M")
    )


CLEANINGS: dict[Cleaning, Callable[[str], str]] = {
    "none": str,
    "letters": letters_only,
    "words": words_only,
}
"""What `View.clean` names."""
