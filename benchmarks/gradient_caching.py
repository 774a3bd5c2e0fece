"""What does a contrastive batch in the memory of an eighth of it cost?

One step of pairs of captions through a transformer of four layers (256 wide, dropout 0.1, 32
tokens a caption): the whole batch in one graph, xlcm's gradient caching (`run.micro_batch`), the
cached loss of sentence-transformers around the same tower, and GradCache: the procedure as it was
published (all pieces twice, with the same dropout), in plain PyTorch. sentence-transformers embeds
all sources and then all targets, so that its 64 are 64 captions; xlcm's 64 rows are pairs, 128
captions, and its 32 rows hold as many captions at a time as the peer's 64. Before anything is
timed, all ways must give the same loss and gradients without dropout.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from benchmarks.measure import Found, compare, installed, markdown, peak_is_known, ratios
from xlcm.encoders.features import FeatureEncoder
from xlcm.encoders.heads import LinearHead
from xlcm.encoders.pooling import MeanPooling
from xlcm.encoders.text_hf import HFTextEncoder
from xlcm.methods.contrastive import Contrastive
from xlcm.models.dual_encoder import DualEncoder
from xlcm.pieces import cut
from xlcm.training.caching import cached_step, random_state, set_random_state
from xlcm.types import Batch, TextBatch

PEERS = ("sentence-transformers",)
TARGETS = {
    "time of 8 micro-batches of 64": "at most 1.15 x the full batch",
    "memory of 8 micro-batches of 64": "at most 0.15 x the full batch",
    "time beside sentence-transformers, 64 captions at a time": "below 1 x",
    "memory beside sentence-transformers, 64 captions at a time": "below 1 x",
}
SCALE, VOCABULARY, LENGTH, DROPOUT = 20.0, 8_000, 32, 0.1
FULL, OURS, HALF, PEER = "full batch", "xlcm, 64 rows", "xlcm, 32 rows", "sentence-transformers, 64"
GRADCACHE = "GradCache, 64 rows"
ONCE, FORWARD = "pieces of 64, once", "pieces of 64, no graph"
PIECES = 8


class Ids:
    """Stands in for a tokenizer: the benchmark draws token ids."""

    vocab_size, pad_id, max_tokens = VOCABULARY, 0, 128
    special_ids = frozenset({0})

    def spec(self) -> dict[str, Any]:
        """Return something: nothing here is saved."""
        return {"name": "ids"}


def tower(layers: int, width: int, **options: Any) -> HFTextEncoder:
    """Return a random BERT with mean pooling."""
    architecture = {
        "model_type": "bert", "hidden_size": width, "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // 64), "intermediate_size": 4 * width,
        "vocab_size": VOCABULARY, "pad_token_id": 0, **options,
    }  # fmt: skip
    return HFTextEncoder(
        architecture=architecture, weights=None, tokenizer=Ids(), pooling=MeanPooling,  # type: ignore[arg-type]
        dropout=DROPOUT,
    )  # fmt: skip


def method_of(text: HFTextEncoder) -> Contrastive:
    """Return the symmetric InfoNCE between source and target captions."""
    model = DualEncoder(
        image=FeatureEncoder(width=8), text=text, width=text.width, image_head=LinearHead,
        text_head=LinearHead, temperature=1 / SCALE, learn_temperature=False,
    )  # fmt: skip
    return Contrastive(model, source_weight=0.0, target_weight=0.0, text_weight=1.0)


def pairs(rows: int) -> Batch:
    """Return pairs of captions of full length."""
    draw = torch.Generator().manual_seed(1)
    text = {}
    for view in ("source", "target"):
        ids = torch.randint(1, VOCABULARY, (rows, LENGTH), generator=draw)
        text[view] = TextBatch(ids, torch.ones_like(ids, dtype=torch.bool))
    return Batch(ids=torch.arange(rows), text=text)


def ways_of(method: Contrastive, batch: Batch, size: int) -> dict[str, Callable[[], float]]:
    """Return each way as a function that leaves gradients and returns the loss."""
    accelerator = Accelerator(cpu=True)

    def full() -> float:
        method.zero_grad()
        loss = method.total(method(batch))
        loss.backward()
        return loss.item()

    def cached(rows: int) -> Callable[[], float]:
        def step() -> float:
            method.zero_grad()
            return cached_step(accelerator, method, method, cut(batch, rows))[1].item()

        return step

    ways = {FULL: full, OURS: cached(size), HALF: cached(size // 2)}
    ways[GRADCACHE] = gradcache(method, batch, size)
    if installed(PEERS[0]):
        ways[PEER] = peer(method, batch, size)
    return ways


def chunks(batch: Batch, size: int) -> list[Batch]:
    """Return the batch in pieces, as it comes."""
    return [batch.select(rows) for rows in torch.arange(len(batch.ids)).split(size)]


def gradcache(method: Contrastive, batch: Batch, size: int) -> Callable[[], float]:
    """Return the published procedure: embed all, gradients of the embeddings, embed all again."""
    device = torch.device("cpu")

    def step() -> float:
        method.zero_grad()
        states, parts, pieces = [], [], chunks(batch, size)
        with torch.no_grad():
            for piece in pieces:
                states.append(random_state(device))
                parts.append(method(piece, only_encode=True))
        whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        leaves = {name: x.requires_grad_() for name, x in whole.items() if x.is_floating_point()}
        loss = method.total(method.losses(whole))
        cached = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()))))
        for number, (piece, state) in enumerate(zip(pieces, states)):
            set_random_state(state, device)
            again, rows = method(piece, only_encode=True), slice(number * size, (number + 1) * size)
            pulls = [(again[name] * gradient[rows]).sum() for name, gradient in cached.items()]
            torch.stack(pulls).sum().backward()
        return loss.item()

    return step


def floors(method: Contrastive, batch: Batch, size: int) -> dict[str, Callable[[], None]]:
    """Return what the tower alone costs in pieces: with its gradients, and without a graph."""

    def once() -> None:
        method.zero_grad()
        for piece in chunks(batch, size):
            found = method(piece, only_encode=True).values()
            torch.stack([x.sum() for x in found if x.requires_grad]).sum().backward()

    @torch.no_grad()
    def forward() -> None:
        for piece in chunks(batch, size):
            method(piece, only_encode=True)

    return {ONCE: once, FORWARD: forward}


def peer(method: Contrastive, batch: Batch, size: int) -> Callable[[], float]:
    """Return sentence-transformers' cached loss, both directions, around the same tower."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.losses import CachedMultipleNegativesRankingLoss

    class Tower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = method.retriever

        def forward(self, features: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
            text = TextBatch(features["input_ids"], features["attention_mask"].bool())
            return {**features, "sentence_embedding": self.model.embed_text(text)}

    loss = CachedMultipleNegativesRankingLoss(
        SentenceTransformer(modules=[Tower()], device="cpu"), scale=SCALE, mini_batch_size=size,
        directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction",
    )  # fmt: skip
    loss.train(method.training)
    features = [
        {"input_ids": text.ids, "attention_mask": text.mask.long()} for text in batch.text.values()
    ]

    def step() -> float:
        method.zero_grad()
        value = loss([dict(one) for one in features], None)
        value.backward()
        return value.item()

    return step


def check(method: Contrastive, batch: Batch, size: int) -> None:
    """See that all ways give the same loss and gradients where nothing is drawn."""
    method.eval()
    wanted: tuple[float, Tensor] | None = None
    for name, way in ways_of(method, batch, size).items():
        loss = way()
        gradients = [p.grad.flatten() for p in method.parameters() if p.grad is not None]
        found = loss, torch.cat(gradients)
        wanted = wanted or found
        gap = ((found[1] - wanted[1]).norm() / wanted[1].norm()).item()
        assert abs(loss / wanted[0] - 1) < 1e-5, (name, loss, wanted[0])
        assert gap < 1e-5, (name, gap)
    method.train()


def setting(small: bool) -> tuple[Contrastive, Batch, int]:
    """Return method, batch and rows of a piece."""
    torch.manual_seed(0)
    size, layers, width = (8, 2, 64) if small else (64, 4, 256)
    return method_of(tower(layers, width)), pairs(PIECES * size), size


def measure(*, small: bool) -> dict[str, Any]:
    """Return CPU time, wall time and memory of a step each way."""
    method, batch, size = setting(small)
    check(method, batch.select(torch.arange(4 * size)), size)
    ways: dict[str, Callable[[], object]] = dict(ways_of(method, batch, size))
    found = compare(ways | floors(method, batch, size), rounds=1 if small else 3)
    width, layers = method.retriever.text.width, 2 if small else 4
    return {
        "rows": PIECES * size, "tokens": LENGTH, "layers": layers, "width": width, "ways": found,
        "in_use": in_use(small) if peak_is_known() else {},
    }  # fmt: skip


def in_use(small: bool) -> dict[str, float]:
    """Return the peaks in MB of a process whose C library keeps no freed block."""
    code = f"from benchmarks.gradient_caching import peaks; peaks({small})"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def peaks(small: bool) -> None:
    """Print the peaks of this process, as JSON."""
    ways = ways_of(*setting(small))
    found = compare(ways, rounds=1, once=tuple(ways))
    print(json.dumps({name: one["peak_mb"] for name, one in found.items()}))


def parts(ways: Found) -> float:
    """Return what the parts cost beside the full batch: all pieces once, all but one again."""
    again = (1 - 1 / PIECES) * ways[FORWARD]["cpu_ms"]
    return (ways[ONCE]["cpu_ms"] + again) / ways[FULL]["cpu_ms"]


def table(found: dict[str, Any]) -> str:
    """Return the ways with their ratios to the full batch, and the floors."""
    ways = found["ways"]
    about = (
        f"{found['rows']} pairs of captions of {found['tokens']} tokens, {found['layers']} layers "
        f"of {found['width']}, dropout {DROPOUT}, forward and backward:"
    )
    told = (
        "The pieces but one are encoded twice. With a third of the arithmetic in the forward pass "
        f"that makes {1 + 7 / 8 / 3:.2f} x the full batch with 8 pieces; only a cache that holds a "
        "piece and not a batch brings it below. "
    )
    if ONCE in ways:
        told += (
            f"The tower alone, measured in parts, each piece with its gradients (`{ONCE}`) and 7 "
            f"of 8 once more without (`{FORWARD}`), takes {parts(ways):.2f} x the full batch. "
        )
    told += (
        f"The memory can't be less than one piece's graph, {1 / PIECES:.3f} x. Of that of pieces, "
        "part is freed blocks that the C library keeps (those below 32 MB); no GPU has that."
    )
    if used := found.get("in_use"):
        each = (f"{name} {mb:,.0f} MB ({mb / used[FULL]:.3f} x)" for name, mb in used.items())
        told += f" Where it keeps none: {', '.join(each)}."
    return f"{about}\n\n{markdown(ways, FULL)}\n\n{told}"


def reached(found: dict[str, Any]) -> dict[str, tuple[str, bool]]:
    """Return what the targets ask for."""
    ways: Found = found["ways"]
    by, used = ratios(ways, FULL)[OURS], found.get("in_use")
    time = f"{by['cpu']:.2f}" + (f"; its parts alone {parts(ways):.2f}" if ONCE in ways else "")
    out = {"time of 8 micro-batches of 64": (time, by["cpu"] <= 1.15)}
    if "memory" in by:
        told = f"{by['memory']:.2f}"
        if used:
            told += f"; in use {used[OURS] / used[FULL]:.3f}, floor {1 / PIECES:.3f}"
        out["memory of 8 micro-batches of 64"] = told, by["memory"] <= 0.15
    if PEER in ways:
        beside = ratios(ways, PEER)[HALF]
        for key, what in (("cpu", "time"), ("memory", "memory")):
            if key in beside:
                line = f"{what} beside sentence-transformers, 64 captions at a time"
                out[line] = f"{beside[key]:.2f}", beside[key] < 1
    return out
