"""Which pieces of a vocabulary begin a word, for those who want words and not pieces."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

import torch
from torch import Tensor

BLANK = "\u2581"  # sentencepiece's mark of a blank, in front of the word
BYTE = re.compile("<0x([0-9A-F]{2})>")
# scripts written without blanks: Thai, Lao, Tibetan, Burmese, Khmer, kana, Chinese characters
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
CHINESE_OR_KANA = range(0xE3, 0xEA)  # first bytes, in UTF-8, of U+3000 to U+9FFF


def word_starts(
    pieces: Mapping[str, int],
    size: int,
    special: frozenset[int],
    *,
    continuing: str | None = None,
) -> Tensor:
    """Return `(size,)` bool, true on the ids of pieces that begin a word.

    In a text without blanks (Chinese, Japanese, Thai) every piece begins one, and so does every
    Chinese character that is spelt in bytes; a blank that is a piece of its own is then a word by
    itself. A text's first piece begins one too, whatever stands here: not every tokenizer puts a
    blank in front. Special tokens begin none.

    Args:
        pieces: id by piece.
        size: number of ids.
        special: ids that stand for no part of a text.
        continuing: what opens a piece inside a word, as `##` of WordPiece; None: the pieces that
            begin one are marked, by sentencepiece's blank or that of byte-level BPE.

    Raises:
        ValueError: if nothing marks where words begin.
    """
    if continuing is not None:
        begins = {id_: _continuing(piece, continuing) for piece, id_ in pieces.items()}
    elif any(piece.startswith(BLANK) for piece in pieces):
        begins = {id_: _blank(piece) for piece, id_ in pieces.items()}
    elif any(piece.startswith(BLANK_BYTE) for piece in pieces):
        begins = {id_: _byte_level(piece) for piece, id_ in pieces.items()}
    else:
        raise ValueError(
            f"this vocabulary of {size} pieces does not mark where words begin (with "
            f"{BLANK!r}, {BLANK_BYTE!r} or WordPiece's '##'; CLIP's marks where they end): use "
            "word pieces, or another tokenizer"
        )
    starts = torch.zeros(size, dtype=torch.bool)
    starts[[id_ for id_, begin in begins.items() if begin and id_ not in special]] = True
    return starts


def _continuing(piece: str, mark: str) -> bool:
    return not piece.startswith(mark) or _unspaced(piece[len(mark) :])


def _blank(piece: str) -> bool:
    if byte := BYTE.fullmatch(piece):
        return int(byte[1], 16) in CHINESE_OR_KANA
    return piece.startswith(BLANK) or _unspaced(piece)


def _byte_level(piece: str) -> bool:
    if piece.startswith(BLANK_BYTE):
        return True
    spelt = bytes(BYTES[mark] for mark in piece if mark in BYTES)
    text = spelt.decode("utf-8", errors="ignore")
    return _unspaced(text) if _whole(spelt) else spelt[:1] != b"" and spelt[0] in CHINESE_OR_KANA


def _whole(spelt: bytes) -> bool:
    """Whether bytes open with a whole character."""
    return any(_decodes(spelt[:length]) for length in range(1, min(len(spelt), 4) + 1))


def _decodes(spelt: bytes) -> bool:
    try:
        return bool(spelt.decode("utf-8"))
    except UnicodeDecodeError:
        return False


def _unspaced(piece: str) -> bool:
    """Whether a piece opens with a letter of a script without blanks, and no mark upon another."""
    return bool(UNSPACED.match(piece)) and not unicodedata.category(piece[0]).startswith("M")


def _byte_alphabet() -> dict[str, int]:
    """Return the characters by which byte-level BPE writes bytes.

    Printable ones stand for themselves, the others for the code points from 256 on, in order
    (Radford et al. 2019, GPT-2, its released encoder).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + place): byte for place, byte in enumerate(others)}


BYTES = _byte_alphabet()
BLANK_BYTE = next(mark for mark, byte in BYTES.items() if byte == ord(" "))
