"""How fast are captions encoded, beside sentence-transformers and the usual ways of padding?

Captions of Multi30K's test of 2016, a quarter each in English, German, French and Czech, through a
random tower as wide as XLM-R base (768 wide, 12 heads) with mean pooling and vectors of length 1,
in float32. It has 3 of XLM-R's 12 layers, for time on a CPU, and the vocabulary of multilingual
BERT. All ways start from text and use the same weights. xlcm's own way sorts captions by tokens and
fills batches up to a budget of tokens; sentence-transformers sorts by characters and takes batches
of 32, its default, or 128. The loops take captions as they come, 32 at a time, padded to the
longest, or to 77 tokens as CLIP does; or one by one. Before anything is timed, all ways must give
the vectors of one by one.
"""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import Found, compare, installed, markdown, ratios
from xlcm.encoders.features import FeatureEncoder
from xlcm.encoders.heads import IdentityHead
from xlcm.encoders.pooling import MeanPooling
from xlcm.encoders.text_hf import HFTextEncoder
from xlcm.encoders.tokenizer import HFTokenizer
from xlcm.models.dual_encoder import DualEncoder
from xlcm.models.encoding import inference
from xlcm.models.lengths import CPU_PADDING, CPU_TOKENS, by_length
from xlcm.types import TextBatch

PEERS = ("sentence-transformers",)
TARGETS = {
    "beside sentence-transformers' default": "at least 1.35 x as fast",
    "beside dynamic padding in random order": "at least 1.6 x as fast",
    "beside 77 tokens": "at least 3 x as fast",
    "largest difference of a number to one by one": "at most 1e-6",
}
SHARED = Path(__file__).resolve().parents[2] / "shared"
VOCABULARY = SHARED / "weights/text/bert-base-multilingual-cased.vocab.txt"
CAPTIONS = SHARED / "data/captions/multi30k/task1/raw"
LANGS = ("en", "de", "fr", "cs")
FIXED, ROWS = 77, 32
BUDGETS = (512, 2048)
OURS, PEER, PEER_128 = "xlcm", "sentence-transformers, 32", "sentence-transformers, 128"
DYNAMIC, LONG, SINGLE = "loop, padded to the longest", "loop, padded to 77", "one by one"
Way = Callable[[], Tensor]


def captions(count: int) -> list[str]:
    """Return captions of all languages in random order.

    Raises:
        FileNotFoundError: if the files of Multi30K are not where they are looked for.
    """
    found = []
    for place, lang in enumerate(LANGS):
        file = CAPTIONS / f"test_2016_flickr.{lang}.gz"
        if not file.is_file():
            raise FileNotFoundError(f"expected captions of Multi30K, gzipped, at {file}")
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            rows = [line.strip() for line in lines]
        found += rows[place :: len(LANGS)][: count // len(LANGS)]
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))
    return [found[i] for i in order.tolist()]


def model_of(layers: int, width: int) -> DualEncoder:
    """Return a model whose text vectors are the normalised means of a random tower's tokens."""
    torch.manual_seed(0)
    architecture = {
        "model_type": "xlm-roberta", "hidden_size": width, "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // 64), "intermediate_size": 4 * width,
        "max_position_embeddings": 514,
    }  # fmt: skip
    text = HFTextEncoder(
        architecture=architecture, pooling=MeanPooling,
        tokenizer=HFTokenizer(path=str(VOCABULARY), max_tokens=FIXED),
    )  # fmt: skip
    return DualEncoder(
        image=FeatureEncoder(width=width), text=text, width=width, image_head=IdentityHead,
        text_head=IdentityHead,
    ).eval()  # fmt: skip


def peer_of(model: DualEncoder, folder: str) -> Any:
    """Return sentence-transformers around the same weights and tokenizer."""
    from sentence_transformers import SentenceTransformer, models

    text = model.text
    assert isinstance(text, HFTextEncoder)
    text.model.save_pretrained(folder)
    text.tokenizer.save(folder)
    parts = [
        models.Transformer(folder, max_seq_length=FIXED),
        models.Pooling(text.width, "mean"),
        models.Normalize(),
    ]
    return SentenceTransformer(modules=parts, device="cpu")


def loop(model: DualEncoder, texts: list[str], rows: int, fixed: int = 0) -> Way:
    """Return the usual loop: batches as they come, padded to the longest or to a length."""

    def run() -> Tensor:
        found = []
        with inference(model):
            for start in range(0, len(texts), rows):
                tokens = model.text.tokenizer(texts[start : start + rows])
                room = (0, max(0, fixed - tokens.ids.shape[1]))
                padded = TextBatch(F.pad(tokens.ids, room), F.pad(tokens.mask, room))
                found.append(model.embed_text(padded))
        return torch.cat(found)

    return run


def ways_of(model: DualEncoder, texts: list[str], folder: str) -> dict[str, Way]:
    """Return every way of encoding the texts."""
    ways: dict[str, Way] = {OURS: lambda: model.encode_text(texts, progress=False)}
    for budget in BUDGETS:
        ways[f"xlcm, {budget:,} tokens"] = lambda budget=budget: model.encode_text(
            texts, max_batch_tokens=budget, progress=False
        )
    if installed(PEERS[0]):
        peer = peer_of(model, folder)
        for name, rows in ((PEER, 32), (PEER_128, 128)):
            ways[name] = lambda rows=rows: peer.encode(
                texts, batch_size=rows, convert_to_tensor=True, show_progress_bar=False
            )
    ways[DYNAMIC] = loop(model, texts, ROWS)
    ways[LONG] = loop(model, texts, ROWS, FIXED)
    ways[SINGLE] = loop(model, texts, 1)
    return ways


def positions(model: DualEncoder, texts: list[str]) -> dict[str, int]:
    """Return the tokens of all texts, and with the padding of xlcm and of the peer's default."""
    tokens = model.text.tokenizer(texts)
    ours = by_length(tokens, budget=CPU_TOKENS, padding=CPU_PADDING)
    counts = tokens.mask.sum(dim=1)
    longest = torch.tensor([-len(text) for text in texts]).argsort(stable=True)
    batches = [counts[rows] for rows in longest.split(ROWS)]
    return {
        "tokens": int(counts.sum()), OURS: sum(batch.ids.numel() for _, batch in ours),
        PEER: sum(len(batch) * int(batch.max()) for batch in batches),
    }  # fmt: skip


def measure(*, small: bool) -> dict[str, Any]:
    """Return CPU time and memory of every way, and how far its vectors are from one by one."""
    layers, width, count = (1, 64, 64) if small else (3, 768, 384)
    texts, model = captions(count), model_of(layers, width)
    lengths = model.text.tokenizer(texts).mask.sum(dim=1).float()
    with tempfile.TemporaryDirectory() as folder:
        ways = ways_of(model, texts, folder)
        exact = ways[SINGLE]()
        gaps = {name: (way().cpu() - exact).abs().max().item() for name, way in ways.items()}
        assert max(gaps.values()) < 1e-5, gaps
        found = compare(ways, rounds=1 if small else 3)
    return {
        "captions": len(texts), "layers": layers, "width": width,
        "tokens": {"mean": round(lengths.mean().item(), 1), "most": int(lengths.max())},
        "gap": gaps, "ways": found, "positions": positions(model, texts),
    }  # fmt: skip


def table(found: dict[str, Any]) -> str:
    """Return the table of ways."""
    base = PEER if PEER in found["ways"] else DYNAMIC
    tokens = found["tokens"]
    told = (
        f"{found['captions']} captions of {tokens['mean']} tokens on average, {tokens['most']} at "
        f"most; {found['layers']} layers, {found['width']} wide.\n\n"
        + markdown(found["ways"], base)
    )
    if count := found.get("positions"):
        theirs, mine, least = count[PEER], count[OURS], count["tokens"]
        told += (
            f"\n\nThe captions have {least:,} tokens; with padding, xlcm computes {mine:,} "
            f"positions and sentence-transformers {theirs:,}. So in float32 xlcm can be about "
            f"{theirs / mine:.2f} x as fast, and {theirs / least:.2f} x without padding."
        )
    return told


def reached(found: dict[str, Any]) -> dict[str, tuple[str, bool | None]]:
    """Return what was measured for each target, and whether that reaches it."""
    ways: Found = found["ways"]
    out: dict[str, tuple[str, bool | None]] = {}
    for name, (other, least) in zip(TARGETS, ((PEER, 1.35), (DYNAMIC, 1.6), (LONG, 3.0))):
        if other in ways:
            times = 1 / ratios(ways, other)[OURS]["cpu"]
            out[name] = (f"{times:.2f} x", times >= least)
    gap = max(found["gap"].values())
    out["largest difference of a number to one by one"] = (f"{gap:.1e}", gap <= 1e-6)
    return out
