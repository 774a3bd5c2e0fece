"""Texts -> token ids: the tokenizers of pretrained towers, and ones trained on your own captions.

Both pad on the right to the longest text of the batch, cut what exceeds `max_tokens` in front of
the closing special token and count it, and can be pickled into a loader's workers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tokenizers as hf_tokenizers
from pydantic import Field
from torch import Tensor

from xlcm.config import check_part
from xlcm.encoders.text_spec import innermost, with_tokenizer
from xlcm.encoders.tokenizer_sentencepiece import MODEL_FILE, SentencePieceTokenizer, pad
from xlcm.encoders.word_starts import word_starts
from xlcm.registry import tokenizers
from xlcm.types import TextBatch

__all__ = ["HFTokenizer", "SentencePieceTokenizer", "prepare_tokenizer"]

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
        revision: of the repository on the hub.
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
        revision: str | None = None,
        prefix: str = "",
        lowercase: bool = False,
    ) -> None:
        # Rust threads and forked workers deadlock, and tokenizers warns about it at every fork
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self.path = path
        self.max_tokens = max_tokens
        self.revision = revision
        self.prefix = prefix
        self.lowercase = lowercase
        self._backend, self.special_tokens = _open(path, revision, lowercase)
        self._backend.no_padding()
        self._backend.no_truncation()
        self._words_only()
        self.vocab_size = _largest_id(self._backend) + 1
        # an id that the mask hides, so any will do where the vocabulary has no padding token
        self.pad_id = self._id("pad_token") or 0
        self.bos_id = self._id("bos_token", "cls_token")
        self.eos_id = self._id("eos_token", "sep_token")

    def _id(self, *roles: str) -> int | None:
        named = [self.special_tokens[role] for role in roles if role in self.special_tokens]
        return self._backend.token_to_id(named[0]) if named else None

    def _words_only(self) -> None:
        self._backend.encode_special_tokens = True  # a caption that says "[SEP]" is only text

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._words_only()  # not part of what the Rust object pickles

    def __call__(self, texts: Sequence[str], langs: Sequence[str] = ()) -> TextBatch:
        """Return ids `(b, L)`, mask `(b, L)`, the languages and the number of cut texts."""
        rows, cut = self.rows(texts)
        return pad(rows, self.pad_id, langs, sum(cut))

    def rows(self, texts: Sequence[str]) -> tuple[list[list[int]], list[bool]]:
        """Return the ids of each text, special ones included, and whether it was cut."""
        encodings = self._backend.encode_batch_fast([self.prefix + text for text in texts])
        rows = [encoding.ids for encoding in encodings]
        cut = [len(row) > self.max_tokens for row in rows]
        for i, long in enumerate(cut):
            if long:
                rows[i] = self._shorten(self.prefix + texts[i])
        return rows, cut

    def _shorten(self, text: str) -> list[int]:
        bare = self._backend.encode(text, add_special_tokens=False)
        bare.truncate(self.max_tokens - self._backend.num_special_tokens_to_add(False))
        return list(self._backend.post_process(bare).ids)

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, special ones included, before any cut."""
        encodings = self._backend.encode_batch_fast([self.prefix + text for text in texts])
        return [len(encoding) for encoding in encodings]

    @property
    def special_ids(self) -> frozenset[int]:
        """Return the ids that stand for no part of a text: padding, opening, closing, mask."""
        named = [token for role, token in self.special_tokens.items() if role != "unk_token"]
        ids = [self._backend.token_to_id(token) for token in named]
        return frozenset(id_ for id_ in ids if id_ is not None)

    @property
    def word_starts(self) -> Tensor:
        """Return `(vocab_size,)` bool, true on pieces that begin a word; see `word_starts`.

        Raises:
            ValueError: if the vocabulary doesn't mark where words begin.
        """
        model = json.loads(self._backend.to_str())["model"]
        return word_starts(
            self._backend.get_vocab(with_added_tokens=True),
            self.vocab_size,
            self.special_ids,
            continuing=model["continuing_subword_prefix"]
            if model.get("type") == "WordPiece"
            else None,
        )

    def spec(self) -> dict[str, Any]:
        """Return the config that opens it again, `name` included."""
        return {
            "name": "hf",
            "path": self.path,
            "max_tokens": self.max_tokens,
            "revision": self.revision,
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
        return {**self.spec(), "path": ".", "revision": None}


def prepare_tokenizer(
    model_spec: dict[str, Any],
    texts: Callable[[], Iterable[str]],
    folder: str | Path,
    *,
    keep: bool = False,
) -> dict[str, Any]:
    """Train the text tower's tokenizer, where the config names one without a `path`.

    Call it before the model is built, on one process first; the same texts give the same file.

    Args:
        model_spec: of a model with a `text` tower.
        texts: called for the training captions, only if they are needed.
        folder: where `sentencepiece.model` is written.
        keep: open the one in `folder` instead: a model was trained on its pieces, and others
            would give every row of its embedding another meaning.

    Returns:
        The spec with the tokenizer's `path` set, or the given one.

    Raises:
        FileNotFoundError: if there is none to keep.
    """
    outer = model_spec.get("text", {})
    text = innermost(outer)
    spec = text.get("tokenizer", "sentencepiece" if text.get("name") == "bag" else None)
    spec = {"name": spec} if isinstance(spec, str) else spec or {}
    if spec.get("name") != "sentencepiece" or spec.get("path") is not None:
        return model_spec
    options = {k: v for k, v in check_part(tokenizers, spec).items() if k != "name"}
    path = str(Path(folder) / MODEL_FILE)
    if keep:
        tokenizer = SentencePieceTokenizer(**{**options, "path": path})
    else:
        tokenizer = SentencePieceTokenizer(**options).train(texts())
        tokenizer.save(folder)
    trained = {**tokenizer.spec(), "path": path}
    return {**model_spec, "text": with_tokenizer(outer, trained)}


# -- opening files ------------------------------------------------------------------------------


def _open(
    path: str, revision: str | None, lowercase: bool
) -> tuple[hf_tokenizers.Tokenizer, dict[str, str]]:
    """Return the fast tokenizer and its special tokens by role."""
    here = Path(path)
    if here.is_file() and here.suffix == ".txt":
        bert = hf_tokenizers.BertWordPieceTokenizer(str(here), lowercase=lowercase)
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
    return _open_with_transformers(path, revision)


def _open_with_transformers(
    path: str, revision: str | None
) -> tuple[hf_tokenizers.Tokenizer, dict[str, str]]:
    from transformers import AutoTokenizer

    try:
        wrapper = AutoTokenizer.from_pretrained(path, revision=revision)
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
