"""Real towers of a few numbers, and batches for them: whole methods in milliseconds.

Captions are numbers in words ("7 3 12"), so that no tokenizer has to be trained or read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from xlcm.encoders.features import FeatureEncoder
from xlcm.encoders.heads import LinearHead
from xlcm.encoders.pooling import MeanPooling
from xlcm.encoders.text_bag import BagTextEncoder
from xlcm.encoders.text_refined import RefinedTextEncoder
from xlcm.models.dual_encoder import DualEncoder
from xlcm.types import Batch, TextBatch, Visual

FEATURES = 6
VOCABULARY = 40
IDS = [0, 1, 2, 0, 3, 1, 0, 4, 5, 6, 5, 0]  # uneven: some images have several rows


class Numbers:
    """A tokenizer: 0 pads, 1 begins, 2 ends; odd pieces begin a word and even ones go on."""

    vocab_size, pad_id = VOCABULARY, 0
    special_ids = frozenset({0, 1, 2})
    word_starts = torch.arange(VOCABULARY) % 2 == 1

    def __init__(self, max_tokens: int = 16) -> None:
        self.max_tokens = max_tokens

    def __call__(self, texts: Sequence[str], langs: Sequence[str] = ()) -> TextBatch:
        rows = [[1, *map(int, text.split()), 2] for text in texts]
        cut = sum(len(row) > self.max_tokens for row in rows)
        rows = [row[: self.max_tokens] for row in rows]
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
        for row, pieces in enumerate(rows):
            ids[row, : len(pieces)] = torch.tensor(pieces)
        return TextBatch(ids, ids != 0, tuple(langs), cut)


class Exact(DualEncoder):
    """Vectors in float64, where the library's are float32: gradients compare to 1e-12."""

    @property
    def scale(self) -> torch.Tensor:
        return self.log_scale.exp()

    def map_visual(self, pooled: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(self.image_head(pooled), dim=-1)

    def map_text(self, pooled: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(self.text_head(pooled), dim=-1)


def model(text: Any = None, *, seed: int = 0, **options: Any) -> DualEncoder:
    """Return a model of a feature tower and a plain bag of words, in float64."""
    torch.manual_seed(seed)
    built = Exact(
        image=options.pop("image", None) or FeatureEncoder(width=FEATURES),
        text=text or bag(seed=seed),
        width=options.pop("width", 5),
        image_head=options.pop("image_head", LinearHead),
        text_head=options.pop("text_head", LinearHead),
        **options,
    ).double()
    built.log_scale.data.fill_(-math.log(built.temperature))  # it was rounded to float32
    return built


def bag(*, seed: int = 0, **options: Any) -> BagTextEncoder:
    """Return a text tower with tokens that see their neighbours."""
    torch.manual_seed(seed)
    chosen = {"width": 8, "context": "conv", "dropout": 0.0, "pooling": MeanPooling, **options}
    return BagTextEncoder(tokenizer=Numbers(), **chosen)


def refined(inner: dict[str, Any] | None = None, **options: Any) -> RefinedTextEncoder:
    """Return NRCCR's text tower around a bag."""
    chosen = {"width": 12, "heads": 2, "key_width": 8, "positions": 32, "dropout": 0.0, **options}
    return RefinedTextEncoder(encoder=bag(**(inner or {})), **chosen)


def captions(rows: int, seed: int, longest: int = 7) -> TextBatch:
    """Return made-up captions of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randint, generator=generator)
    texts = [
        " ".join(map(str, draw(3, VOCABULARY, (int(draw(1, longest + 1, ())),)).tolist()))
        for _ in range(rows)
    ]
    batch = Numbers()(texts)
    batch.keys = tuple(f"{seed}.{row}" for row in range(rows))
    return batch


def batch(*views: str, rows: int = 8, visual: bool = True) -> Batch:
    """Return features and captions of several rows, some of one image."""
    generator = torch.Generator().manual_seed(7)
    features = torch.randn(rows, FEATURES, generator=generator, dtype=torch.float64)
    return Batch(
        ids=torch.tensor(IDS[:rows]),
        visual=Visual(features=features) if visual else None,
        text={view: captions(rows, seed) for seed, view in enumerate(views)},
    )


def part(whole: Batch, rows: Any) -> Batch:
    """Return some rows of a batch."""
    assert whole.visual is not None
    assert whole.visual.features is not None
    keys = torch.arange(len(whole.ids))[rows].tolist()
    return Batch(
        ids=whole.ids[rows],
        visual=Visual(features=whole.visual.features[rows]),
        text={
            name: TextBatch(t.ids[rows], t.mask[rows], keys=tuple(t.keys[key] for key in keys))
            for name, t in whole.text.items()
        },
        names=whole.names,
        fixed=whole.fixed,
    )


def saved(source: str) -> DualEncoder:
    """Stand in for `DualEncoder.from_pretrained`: `small3` is a model of seed 3 and width 6."""
    seed = int(source.removeprefix("small"))
    return model(seed=seed, width=3 + seed)


def translations(*langs: str, teachers: int = 0, rows: int = 8) -> Batch:
    """Return captions in every language at once, and the source's once more for teachers."""
    made = batch("source", *(f"targets.{lang}" for lang in langs), rows=rows)
    made.text |= {f"teacher{number}": made.text["source"] for number in range(teachers)}
    return made
