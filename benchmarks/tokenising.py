"""What does it cost to tokenise captions in the loader, beside one call for each of them?

Batches of 256 captions of Multi30K in four languages (of drawn scenes where those are not here). A
WordPiece vocabulary of 20,000 and a SentencePiece model of 8,000, both trained on them here. One
call a caption, padded to 64 tokens and stacked, is what many repositories do in `__getitem__`.
*met before*: as in any epoch but the first, when a loading process remembers the captions.
"""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import BertWordPieceTokenizer
from torch import Tensor

from benchmarks.measure import Found, compare, number
from xlcm.data.scenes import Scenes
from xlcm.data.token_cache import TokenCache
from xlcm.encoders.tokenizer import HFTokenizer, SentencePieceTokenizer

PEERS = ("transformers", "tokenizers", "sentencepiece")
SINGLE, SINGLE_SP = "transformers, one call a caption", "xlcm, SentencePiece, one call a caption"
BATCHED, MET = "xlcm, WordPiece", "xlcm, WordPiece, met before"
BATCHED_SP, MET_SP = "xlcm, SentencePiece", "xlcm, SentencePiece, met before"
TARGETS = {
    "WordPiece, met before, beside one call a caption": "at least 5 x",
    "WordPiece, the first time": "at least 5 x",
    "SentencePiece, met before, beside one call a caption": "at least 5 x",
    "SentencePiece, the first time": "at least 5 x",
}
PAIRS = [(MET, SINGLE), (BATCHED, SINGLE), (MET_SP, SINGLE_SP), (BATCHED_SP, SINGLE_SP)]
BATCH, LONGEST = 256, 64
ROOT = Path(__file__).resolve().parents[2] / "shared" / "data" / "captions" / "multi30k"


def captions(count: int) -> tuple[list[str], str]:
    """Return captions of four languages in turn, and where they are from."""
    files = [ROOT / f"task1/raw/train.{lang}.gz" for lang in ("en", "de", "fr", "cs")]
    if not all(file.is_file() for file in files):
        scenes = Scenes(size=count // 4, target_langs=("de", "fr"), cache=None)
        drawn = [caption.text for i in range(len(scenes)) for caption in scenes[i].captions]
        return drawn[:count], "drawn scenes; ../shared/data/captions/multi30k is not here"
    read = [gzip.decompress(file.read_bytes()).decode().splitlines() for file in files]
    return [text for row in zip(*read) for text in row][:count], "Multi30K"


def single(tokenizer: Any) -> Callable[[list[str]], Tensor]:
    """Return what many repositories do in `__getitem__`, and the stacking of the batch."""

    def run(texts: list[str]) -> Tensor:
        rows = [tokenizer(text, padding="max_length", truncation=True, max_length=LONGEST,
                          return_tensors="pt").input_ids[0] for text in texts]  # fmt: skip
        return torch.stack(rows)

    return run


def measure(*, small: bool) -> dict[str, Any]:
    """Return the figures of all ways for one batch each."""
    from transformers import PreTrainedTokenizerFast

    count, rounds = (512, 2) if small else (16_000, 31)
    texts, source = captions(count)
    with tempfile.TemporaryDirectory() as folder:
        words = BertWordPieceTokenizer(lowercase=False)
        words.train_from_iterator(texts, vocab_size=20_000, min_frequency=2, show_progress=False)
        words.save_model(folder)
        hf = HFTokenizer(path=f"{folder}/vocab.txt", max_tokens=LONGEST)
        hf.save(f"{folder}/hf")
        peer = PreTrainedTokenizerFast.from_pretrained(f"{folder}/hf")
    pieces = SentencePieceTokenizer(vocab_size=400 if small else 8000, max_tokens=LONGEST)
    pieces.train(texts)
    met, met_pieces = TokenCache(hf), TokenCache(pieces)
    met(texts), met_pieces(texts)
    ways: dict[str, Callable[[list[str]], Tensor]] = {
        SINGLE: single(peer),
        "transformers, one call a batch": lambda some: (
            peer(
                some, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt"
            ).input_ids
        ),
        BATCHED: lambda some: hf(some).ids,
        MET: lambda some: met(some).ids,
        SINGLE_SP: lambda some: torch.cat(
            [
                torch.nn.functional.pad(row := pieces([text]).ids, (0, LONGEST - row.shape[1]))
                for text in some
            ]
        ),
        BATCHED_SP: lambda some: pieces(some).ids,
        MET_SP: lambda some: met_pieces(some).ids,
    }
    for start in range(0, count, BATCH):
        same = {way: read(texts[start : start + BATCH]) for way, read in ways.items()}
        for way, ids in same.items():
            base = same[SINGLE_SP if "SentencePiece" in way else SINGLE]
            shared = ids.shape[1]
            if not torch.equal(base[:, :shared], ids) or bool(base[:, shared:].any()):
                raise AssertionError(f"{way!r} gives other tokens")
    draw = np.random.default_rng(0)

    def one(read: Callable[[list[str]], Tensor]) -> Callable[[], Tensor]:
        drawn = iter([[texts[i] for i in draw.integers(0, count, BATCH)]
                      for _ in range(rounds + 1)])  # fmt: skip
        return lambda: read(next(drawn))

    made = {way: one(read) for way, read in ways.items()}
    found = compare(made, rounds=rounds, memory=False)
    return {"captions": count, "source": source, "batch": BATCH, "ways": found}


def reached(found: dict[str, Any]) -> dict[str, tuple[str, bool]]:
    """Return what was measured for each target, and whether that reaches it."""
    ways: Found = found["ways"]
    times = [ways[base]["cpu_ms"] / ways[ours]["cpu_ms"] for ours, base in PAIRS]
    return {name: (f"{ratio:.1f} x", ratio >= 5) for name, ratio in zip(TARGETS, times)}


def table(found: dict[str, Any]) -> str:
    """Return captions a second by way."""
    ways: Found = found["ways"]
    said = f"{found['captions']:,} captions of {found['source']}, batches of {found['batch']}."
    lines = [said, "",
             "| way | CPU ms a batch | captions in a CPU second | times one call a caption |",
             "|---|--:|--:|--:|"]  # fmt: skip
    for way, one in ways.items():
        base = ways[SINGLE_SP if "SentencePiece" in way else SINGLE]["cpu_ms"]
        speed = number(1000 * found["batch"] / one["cpu_ms"])
        lines.append(f"| {way} | {number(one['cpu_ms'])} | {speed} | {base / one['cpu_ms']:.1f} |")
    return "\n".join(lines)
