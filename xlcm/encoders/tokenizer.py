"""Texts -> token ids: the tokenizers of pretrained towers, and ones trained on your own captions.

Both pad on the right to the longest text of the batch, cut what exceeds `max_tokens` in front of
the closing special token and count it, and can be pickled into a loader's workers.
"""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import sentencepiece
import tokenizers as hf_tokenizers
import torch
from pydantic import Field

from xlcm.config import check_part
from xlcm.registry import tokenizers
from xlcm.types import TextBatch

log = logging.getLogger(__name__)

MODEL_FILE = "sentencepiece.model"
# roles of special tokens and how the usual vocabularies spell them
SPELLINGS = {
    "pad_token": ("[PAD]", "<pad>", "<|pad|>"),
    "unk_token": ("[UNK]", "<unk>"),
    "cls_token": ("[CLS]", "<s>", "<|startoftext|>"),
    "sep_token": ("[SEP]", "</s>", "<|endoftext|>"),
    "mask_token": ("[MASK]", "<mask>"),
}
ROLES = (*SPELLINGS, "bos_token", "eos_token")


class HFTokenizer:
    """A tokenizer of the Hugging Face hub, in its fast form.

    Args:
        path: hub id, local folder, `tokenizer.json`, or the `vocab.txt` of a BERT.
        max_tokens: longest input, special tokens included.
        prefix: put in front of every text; multilingual E5 wants `"query: "`.
        lowercase: for a bare `vocab.txt` only; other files say it themselves.

    Raises:
        FileNotFoundError: if it is neither here nor to be had from the hub.
        ValueError: if there is no fast form of it.
    """

    needs_training = False

    def __init__(
        self,
        *,
        path: str,
        max_tokens: Annotated[int, Field(ge=3)] = 64,
        prefix: str = "",
        lowercase: bool = False,
    ) -> None:
        # Rust threads and forked workers deadlock, and tokenizers warns about it at every fork
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self.path = path
        self.max_tokens = max_tokens
        self.prefix = prefix
        self.lowercase = lowercase
        self._backend, self.special_tokens = _open(path, lowercase)
        self._backend.no_padding()
        self._backend.no_truncation()
        self._words_only()
        self.vocab_size = _largest_id(self._backend) + 1
        # an id that the mask hides, so any will do where the vocabulary has no padding token
        self.pad_id = self._backend.token_to_id(self.special_tokens.get("pad_token", "")) or 0

    def _words_only(self) -> None:
        self._backend.encode_special_tokens = True  # a caption that says "[SEP]" is only text

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._words_only()  # not part of what the Rust object pickles

    def __call__(self, texts: Sequence[str], langs: Sequence[str] = ()) -> TextBatch:
        """Return ids `(b, L)`, mask `(b, L)`, the languages and the number of cut texts."""
        encodings = self._backend.encode_batch_fast([self.prefix + text for text in texts])
        rows = [encoding.ids for encoding in encodings]
        cut = [i for i, row in enumerate(rows) if len(row) > self.max_tokens]
        for i in cut:
            rows[i] = self._shorten(self.prefix + texts[i])
        return pad(rows, self.pad_id, langs, len(cut))

    def _shorten(self, text: str) -> list[int]:
        bare = self._backend.encode(text, add_special_tokens=False)
        bare.truncate(self.max_tokens - self._backend.num_special_tokens_to_add(False))
        return list(self._backend.post_process(bare).ids)

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, special ones included, before any cut."""
        encodings = self._backend.encode_batch_fast([self.prefix + text for text in texts])
        return [len(encoding) for encoding in encodings]

    def spec(self) -> dict[str, Any]:
        """Return the config that opens it again, `name` included."""
        return {
            "name": "hf",
            "path": self.path,
            "max_tokens": self.max_tokens,
            "prefix": self.prefix,
            "lowercase": self.lowercase,
        }

    def save(self, folder: str | Path) -> dict[str, Any]:
        """Write `tokenizer.json` and its config, which transformers reads as well."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._backend.save(str(folder / "tokenizer.json"))
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": self.max_tokens,
            **self.special_tokens,
        }
        text = json.dumps(settings, ensure_ascii=False, indent=2) + "\n"
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
        return {**self.spec(), "path": "."}


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
        bos: bool = True,
        eos: bool = True,
    ) -> None:
        self.path = path
        self.max_tokens = max_tokens
        self.vocab_size = vocab_size
        self.pad_id = 0
        self.kind: Literal["unigram", "bpe"] = kind
        self.coverage = coverage
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
            ValueError: if there is no text, or more characters than pieces.
        """
        written = io.BytesIO()
        lines = (" ".join(text.split()) for text in texts)  # sentencepiece reads lines
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=(line for line in lines if line),
                model_writer=written,
                vocab_size=self.vocab_size,
                model_type=self.kind,
                character_coverage=self.coverage,
                byte_fallback=True,
                hard_vocab_limit=False,
                max_sentence_length=65536,  # bytes; the default drops long lines in silence
                pad_id=0, unk_id=1, bos_id=2, eos_id=3,
                num_threads=1,  # several don't add up in a fixed order
                minloglevel=2,
            )  # fmt: skip
        except RuntimeError as error:
            raise ValueError(self._explain(str(error))) from error
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
        self._opening = [opening] if self.bos and opening >= 0 else []
        self._closing = [closing] if self.eos and closing >= 0 else []

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_processor"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._read(self._proto)

    def __call__(self, texts: Sequence[str], langs: Sequence[str] = ()) -> TextBatch:
        """Return ids `(b, L)`, mask `(b, L)`, the languages and the number of cut texts."""
        room = self.max_tokens - len(self._opening_and_closing())
        rows, cut = [], 0
        for pieces in self._pieces(texts):
            cut += len(pieces) > room
            rows.append([*self._opening, *pieces[:room], *self._closing])
        return pad(rows, self.pad_id, langs, cut)

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, special ones included, before any cut."""
        extra = len(self._opening_and_closing())
        return [len(pieces) + extra for pieces in self._pieces(texts)]

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


def prepare_tokenizer(
    model_spec: dict[str, Any], texts: Callable[[], Iterable[str]], folder: str | Path
) -> dict[str, Any]:
    """Train the text tower's tokenizer, where the config names one without a `path`.

    Call it before the model is built, on one process first; the same texts give the same file.

    Args:
        model_spec: of a model with a `text` tower.
        texts: called for the training captions, only if they are needed.
        folder: where `sentencepiece.model` is written.

    Returns:
        The spec with the tokenizer's `path` set, or the given one.
    """
    text = model_spec.get("text", {})
    text = {"name": text} if isinstance(text, str) else text
    spec = text.get("tokenizer", "sentencepiece" if text.get("name") == "bag" else None)
    spec = {"name": spec} if isinstance(spec, str) else spec or {}
    if spec.get("name") != "sentencepiece" or spec.get("path") is not None:
        return model_spec
    options = {k: v for k, v in check_part(tokenizers, spec).items() if k != "name"}
    trained = SentencePieceTokenizer(**options).train(texts()).save(folder)
    trained["path"] = str(Path(folder) / trained["path"])
    return {**model_spec, "text": {**text, "tokenizer": trained}}


def pad(rows: Sequence[Sequence[int]], pad_id: int, langs: Sequence[str], cut: int) -> TextBatch:
    """Return rows of ids as one batch, padded on the right to the longest."""
    counts = np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))
    mask = np.arange(counts.max(initial=0)) < counts[:, None]
    ids = np.full(mask.shape, pad_id, dtype=np.int64)
    ids[mask] = np.fromiter((i for row in rows for i in row), dtype=np.int64, count=counts.sum())
    return TextBatch(torch.from_numpy(ids), torch.from_numpy(mask), tuple(langs), cut)


# -- opening files ------------------------------------------------------------------------------


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


def _open(path: str, lowercase: bool) -> tuple[hf_tokenizers.Tokenizer, dict[str, str]]:
    """Return the fast tokenizer and its special tokens by role."""
    here = Path(path)
    if here.is_file() and here.suffix == ".txt":
        bert = hf_tokenizers.BertWordPieceTokenizer(str(here), lowercase=lowercase)
        # BERT's own rule, which this class ties to lower-casing unless told
        backend = bert._tokenizer
        return backend, _roles(backend, {})
    if here.is_file():
        backend = hf_tokenizers.Tokenizer.from_file(str(here))
        return backend, _roles(backend, _settings(here.parent))
    settings = _settings(here)
    generic = settings.get("tokenizer_class") in ("PreTrainedTokenizerFast", "TokenizersBackend")
    if generic and (here / "tokenizer.json").is_file():
        backend = hf_tokenizers.Tokenizer.from_file(str(here / "tokenizer.json"))
        return backend, _roles(backend, settings)
    return _open_with_transformers(path)


def _open_with_transformers(path: str) -> tuple[hf_tokenizers.Tokenizer, dict[str, str]]:
    from transformers import AutoTokenizer

    try:
        wrapper = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise FileNotFoundError(
            f"no tokenizer to be had from {path!r}: expected a hub id, a folder with "
            f"tokenizer.json (or a sentencepiece model and a config.json), a tokenizer.json or a "
            f"vocab.txt. Without a network, put the files of the hub's repository into a folder "
            f"and name it. ({error})"
        ) from error
    backend = getattr(wrapper, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(
            f"the tokenizer of {path!r} ({type(wrapper).__name__}) has no fast form, which alone "
            "can be pickled and saved here; for a bare sentencepiece model use "
            "{name: sentencepiece, path: FILE.model}"
        )
    given = {role: getattr(wrapper, role, None) for role in ROLES}
    return backend, {role: str(token) for role, token in given.items() if token is not None}


def _settings(folder: Path) -> dict[str, Any]:
    file = folder / "tokenizer_config.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _roles(backend: hf_tokenizers.Tokenizer, settings: dict[str, Any]) -> dict[str, str]:
    """Return the special tokens that the settings name, or else those of the usual spelling."""
    roles: dict[str, str] = {}
    for role in ROLES:
        named = settings.get(role)
        named = named.get("content") if isinstance(named, dict) else named
        usual = [s for s in SPELLINGS.get(role, ()) if backend.token_to_id(s) is not None]
        if named is not None or usual:
            roles[role] = str(named) if named is not None else usual[0]
    return roles


def _largest_id(backend: hf_tokenizers.Tokenizer) -> int:
    return max(backend.get_vocab(with_added_tokens=True).values())
