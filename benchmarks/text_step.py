"""How much of a text training step is padding, and what does sorting inside the batch save?

A batch of captions in random order goes through a random tower as wide as XLM-R base (768, 12
heads), forward and backward, with an InfoNCE loss against one fixed vector each: padded to 77
tokens as CLIP does, padded to the longest caption of the batch, and in pieces of captions of like
length (`run.length_pieces`). The batch, its negatives, the loss and its gradients are the same
each way, which is checked first. The tower has 4 of XLM-R's 12 layers, for time on a CPU, and a
vocabulary of 8,000: the embedding of 250,000 pieces costs the same each way. Lengths are drawn
from the percentiles of 16,000 captions of Multi30K (en, de, fr, cs) in the pieces of multilingual
BERT: 19.7 on average, 60 at most.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gradient_caching import VOCABULARY, tower
from benchmarks.measure import Found, compare, markdown, ratios
from xlcm.encoders.features import FeatureEncoder
from xlcm.encoders.heads import LinearHead
from xlcm.methods.contrastive import Contrastive
from xlcm.models.dual_encoder import DualEncoder
from xlcm.pieces import Pieces, cut, padding
from xlcm.types import Batch, TextBatch, Visual

PEERS: tuple[str, ...] = ()
TARGETS = {
    "pieces beside padding to the longest": "at least 1.6 x as fast",
    "pieces beside 77 tokens": "at least 3 x as fast",
}
PERCENTILES = [7, 11, 13, 14, 14, 15, 16, 16, 17, 18, 19, 19, 20, 21, 22, 23, 24, 26, 28, 31, 60]
"""Token lengths at 0, 5, ... 100 %."""

FIXED = 77
LONG, DYNAMIC, SORTED = "77 tokens", "the batch's longest", "8 pieces of like length"
PIECES = 8


def captions(rows: int) -> Batch:
    """Return captions of drawn lengths, each with a vector to find."""
    draw = torch.Generator().manual_seed(2)
    place = torch.rand(rows, generator=draw) * (len(PERCENTILES) - 1)
    low, share = place.long(), place % 1
    known = torch.tensor(PERCENTILES)
    lengths = (known[low] * (1 - share) + known[low + 1] * share).round().long()
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = torch.randint(1, VOCABULARY, mask.shape, generator=draw) * mask
    features = torch.randn(rows, 32, generator=draw)
    text = {"source": TextBatch(ids, mask)}
    return Batch(ids=torch.arange(rows), visual=Visual(features=features), text=text)


def padded(batch: Batch, length: int) -> Batch:
    """Return the batch with its captions padded to a fixed length."""
    text = batch.text["source"]
    room = (0, length - text.ids.shape[1])
    return replace(batch, text={"source": TextBatch(F.pad(text.ids, room), F.pad(text.mask, room))})


def method_of(layers: int, width: int) -> Contrastive:
    """Return InfoNCE between captions and vectors."""
    text = tower(layers, width, max_position_embeddings=128)
    model = DualEncoder(
        image=FeatureEncoder(width=32), text=text, width=256, image_head=LinearHead,
        text_head=LinearHead,
    )  # fmt: skip
    return Contrastive(model, target_weight=0.0)


def check(method: Contrastive, ways: dict[str, Batch | Pieces]) -> None:
    """See that loss and gradients are the same each way where nothing is drawn."""
    method.eval()
    wanted: Tensor | None = None
    for name, batch in ways.items():
        method.zero_grad()
        loss = method.total(method(batch))
        loss.backward()
        found = torch.cat([p.grad.flatten() for p in method.parameters() if p.grad is not None])
        wanted = found if wanted is None else wanted
        gap = ((found - wanted).norm() / wanted.norm()).item()
        assert gap < 1e-4, (name, gap)
    method.train()


def measure(*, small: bool) -> dict[str, Any]:
    """Return CPU time, wall time and memory of a step each way, and the shares of padding."""
    torch.manual_seed(0)
    rows, layers, width = (32, 1, 64) if small else (256, 4, 768)
    method, batch = method_of(layers, width), captions(rows)
    pieces = cut(batch, rows // PIECES)
    seen: dict[str, Batch | Pieces] = {
        LONG: padded(batch, FIXED), DYNAMIC: batch, SORTED: pieces
    }  # fmt: skip
    check(method, seen)

    def step(which: Batch | Pieces) -> Callable[[], None]:
        def run() -> None:
            method.zero_grad()
            method.total(method(which)).backward()

        return run

    found = compare({name: step(which) for name, which in seen.items()}, rounds=1 if small else 2)
    shares = padding([pieces.counts])
    waste = {
        LONG: 1 - int(pieces.counts.tokens) / (FIXED * rows),
        DYNAMIC: shares["padding_whole"],
        SORTED: shares["padding"],
    }
    sizes = {"rows": rows, "layers": layers, "width": width}
    return {**sizes, "padding": {k: round(v, 3) for k, v in waste.items()}, "ways": found}


def table(found: dict[str, Any]) -> str:
    """Return the ways, and what of each is padding."""
    waste = ", ".join(f"{share:.0%} with {name}" for name, share in found["padding"].items())
    about = (
        f"{found['rows']} captions, {found['layers']} layers of {found['width']}, dropout 0.1, "
        f"forward and backward. Padding: {waste}."
    )
    return f"{about}\n\n{markdown(found['ways'], DYNAMIC)}"


def reached(found: dict[str, Any]) -> dict[str, tuple[str, bool]]:
    """Return what the targets ask for."""
    ways: Found = found["ways"]
    by = ratios(ways, SORTED)
    asked = {
        DYNAMIC: ("pieces beside padding to the longest", 1.6),
        LONG: ("pieces beside 77 tokens", 3),
    }
    return {
        line: (f"{by[name]['cpu']:.2f}", by[name]["cpu"] >= least)
        for name, (line, least) in asked.items()
    }
