"""Word pieces trained on your own captions, in any script."""

from __future__ import annotations

import io
import logging
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import sentencepiece
import torch
from pydantic import Field
from torch import Tensor

from xlcm.config import ConfigError
from xlcm.encoders.word_starts import word_starts
from xlcm.types import TextBatch

log = logging.getLogger(__name__)

MODEL_FILE = "sentencepiece.model"


BORDER = "\ue000"  # of private use; sentencepiece itself drops control characters
HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


class SentencePieceTokenizer:
    """Word pieces trained on your own captions, or a sentencepiece model that exists.

    A new model has ids 0 `<pad>`, 1 `<unk>`, 2 `<s>`, 3 `</s>`, then 256 bytes, so that a script
    that training never saw is still read.

    Args:
        path: a `.model` file, or a folder with one; None: to be trained, see `train`.
        max_tokens: longest input, special tokens included.
        vocab_size: pieces to train, bytes included; an existing model has its own number.
        kind: how the pieces are found.
        coverage: share of the characters of the text that get a piece of their own; the rest
            is spelled in bytes.
        split_han: make every Chinese character a piece of its own, as BERT does. Without word
            borders, pieces of several characters are many and each is rare: a bag of pieces
            trained from scratch on few captions does better with characters.
        bos: open every text with `<s>`, where the model has it.
        eos: close every text with `</s>`, where the model has it.

    Raises:
        FileNotFoundError: if there is no model at `path`.

    Source: Kudo 2018, https://arxiv.org/abs/1804.10959 (unigram); Kudo and Richardson 2018,
    https://arxiv.org/abs/1808.06226 (the program).
    """

    def __init__(
        self,
        *,
        path: str | None = None,
        max_tokens: Annotated[int, Field(ge=3)] = 64,
        vocab_size: Annotated[int, Field(gt=0)] = 8000,
        kind: Literal["unigram", "bpe"] = "unigram",
        coverage: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9995,
        split_han: bool = False,
        bos: bool = True,
        eos: bool = True,
    ) -> None:
        self.path = path
        self.max_tokens = max_tokens
        self.vocab_size = vocab_size
        self.pad_id = 0
        self.bos_id: int | None = None
        self.eos_id: int | None = None
        self.kind: Literal["unigram", "bpe"] = kind
        self.coverage = coverage
        self.split_han = split_han
        self.bos = bos
        self.eos = eos
        self._proto = b""
        self._read(_model_file(Path(path)).read_bytes() if path is not None else b"")

    @property
    def needs_training(self) -> bool:
        """Whether it still has no pieces: no `path` was given and `train` was not called."""
        return not self._proto

    def train(self, texts: Iterable[str]) -> SentencePieceTokenizer:
        """Find the pieces of these texts, in memory; the same texts give the same pieces.

        Where the text has fewer pieces than `vocab_size` there are fewer, with a word in the log.

        Args:
            texts: captions in all languages, read once.

        Raises:
            ConfigError: if there is no text, or more characters than pieces.
        """
        written = io.BytesIO()
        lines = (" ".join(text.split()) for text in texts)  # sentencepiece reads lines
        if self.split_han:
            lines = (HAN.sub(rf"{BORDER}\g<0>{BORDER}", line) for line in lines)
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=(line for line in lines if line),
                model_writer=written,
                vocab_size=self.vocab_size,
                model_type=self.kind,
                character_coverage=self.coverage,
                byte_fallback=True,
                hard_vocab_limit=False,
                pretokenization_delimiter=BORDER if self.split_han else "",
                max_sentence_length=65536,  # bytes; the default drops long lines in silence
                pad_id=0, unk_id=1, bos_id=2, eos_id=3,
                num_threads=1,  # several don't add up in a fixed order
                minloglevel=2,
            )  # fmt: skip
        except RuntimeError as error:
            raise ConfigError(self._explain(str(error))) from error
        wanted = self.vocab_size
        self._read(written.getvalue())
        if self.vocab_size < wanted:
            log.warning("the text has only %d of %d word pieces", self.vocab_size, wanted)
        return self

    def _explain(self, fault: str) -> str:
        if "sentences_.empty()" in fault:
            return "no text to train a tokenizer on: every caption is empty, or there is none"
        if "required_chars" in fault:
            needed = fault.partition(" vs ")[2].partition(".")[0]
            return (
                f"vocab_size={self.vocab_size} is too small for this text, whose characters and "
                f"bytes alone are {needed} pieces; raise vocab_size or lower coverage "
                f"(now {self.coverage})"
            )
        return f"sentencepiece can't be trained: {fault}"

    def _read(self, proto: bytes) -> None:
        self._proto = proto
        if not proto:
            return
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=proto)
        self.vocab_size = self._processor.get_piece_size()
        self.pad_id = max(self._processor.pad_id(), 0)  # masked, so any id will do
        opening, closing = self._processor.bos_id(), self._processor.eos_id()
        self.bos_id = opening if self.bos and opening >= 0 else None
        self.eos_id = closing if self.eos and closing >= 0 else None
        self._opening = [] if self.bos_id is None else [self.bos_id]
        self._closing = [] if self.eos_id is None else [self.eos_id]

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_processor"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._read(self._proto)

    def __call__(self, texts: Sequence[str], langs: Sequence[str] = ()) -> TextBatch:
        """Return ids `(b, L)`, mask `(b, L)`, the languages and the number of cut texts."""
        rows, cut = self.rows(texts)
        return pad(rows, self.pad_id, langs, sum(cut))

    def rows(self, texts: Sequence[str]) -> tuple[list[list[int]], list[bool]]:
        """Return the ids of each text, special ones included, and whether it was cut."""
        room = self.max_tokens - len(self._opening_and_closing())
        found = self._pieces(texts)
        rows = [[*self._opening, *pieces[:room], *self._closing] for pieces in found]
        return rows, [len(pieces) > room for pieces in found]

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, special ones included, before any cut."""
        extra = len(self._opening_and_closing())
        return [len(pieces) + extra for pieces in self._pieces(texts)]

    @property
    def special_ids(self) -> frozenset[int]:
        """Return the ids that stand for no part of a text: padding, opening, closing, mask."""
        self._opening_and_closing()  # complains where there are no pieces
        return frozenset(i for i in range(self.vocab_size) if self._is_special(i))

    def _is_special(self, id_: int) -> bool:
        return self._processor.is_control(id_) or self._processor.id_to_piece(id_) == "<mask>"

    @property
    def word_starts(self) -> Tensor:
        """Return `(vocab_size,)` bool, true on pieces that begin a word; see `word_starts`.

        Raises:
            ValueError: if there are no pieces yet, or none marks where words begin.
        """
        self._opening_and_closing()
        pieces = {self._processor.id_to_piece(i): i for i in range(self.vocab_size)}
        return word_starts(pieces, self.vocab_size, self.special_ids)

    def _opening_and_closing(self) -> list[int]:
        if self.needs_training:
            raise ValueError(
                "this sentencepiece tokenizer has no pieces yet: train it with .train(captions), "
                "make one with `xlcm data train-tokenizer`, or give the `path` of a model"
            )
        return self._opening + self._closing

    def _pieces(self, texts: Sequence[str]) -> list[list[int]]:
        pieces = self._processor.encode(list(texts), num_threads=1)
        if self._opening or self._closing:
            return pieces
        return [p or [max(self._processor.unk_id(), 0)] for p in pieces]  # never an empty row

    def spec(self) -> dict[str, Any]:
        """Return the config that opens it again, `name` included."""
        return {
            "name": "sentencepiece",
            "path": self.path,
            "max_tokens": self.max_tokens,
            "vocab_size": self.vocab_size,
            "kind": self.kind,
            "coverage": self.coverage,
            "split_han": self.split_han,
            "bos": self.bos,
            "eos": self.eos,
        }

    def save(self, folder: str | Path) -> dict[str, Any]:
        """Write `sentencepiece.model`; return the spec that reads it, `path` from `folder`."""
        self._opening_and_closing()  # complains where there is nothing to save
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        aside = folder / f".{MODEL_FILE}.{os.getpid()}"  # several processes may save the same
        aside.write_bytes(self._proto)
        os.replace(aside, folder / MODEL_FILE)
        return {**self.spec(), "path": MODEL_FILE}


def _model_file(path: Path) -> Path:
    if path.is_file():
        return path
    found = sorted(path.glob("*.model")) if path.is_dir() else []
    named = [p for p in found if p.name == MODEL_FILE]
    if named or len(found) == 1:
        return (named or found)[0]
    what = f"{len(found)} .model files in" if path.is_dir() else "no sentencepiece model at"
    raise FileNotFoundError(
        f"{what} {path}; expected a .model file, or a folder with {MODEL_FILE} in it. Leave "
        "`path` out to have one trained on the training captions"
    )


def pad(rows: Sequence[Sequence[int]], pad_id: int, langs: Sequence[str], cut: int) -> TextBatch:
    """Return rows of ids as one batch, padded on the right to the longest."""
    counts = np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))
    mask = np.arange(counts.max(initial=0)) < counts[:, None]
    ids = np.full(mask.shape, pad_id, dtype=np.int64)
    ids[mask] = np.fromiter((i for row in rows for i in row), dtype=np.int64, count=counts.sum())
    return TextBatch(torch.from_numpy(ids), torch.from_numpy(mask), tuple(langs), cut)
