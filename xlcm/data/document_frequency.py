"""How rare each piece of a vocabulary is in the captions of a data set."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xlcm.data.dataset import Dataset
from xlcm.data.views import Views
from xlcm.distributed import gather, rank, world
from xlcm.encoders.base import Tokenizer
from xlcm.types import TextBatch

CHUNK = 4096


def inverse_document_frequency(
    dataset: Dataset,
    views: Views,
    names: Sequence[str],
    tokenizer: Tokenizer,
    *,
    device: torch.device | None = None,
) -> Tensor:
    r"""Return $\ln((1 + N) / \max(f, 1))$ of each piece in each view: `(views, vocab)` float32.

    N is the number of the view's captions and f that of those that hold the piece. Above 0: a
    piece that every caption holds weighs almost nothing, but may be a caption's only one. A piece
    that none holds weighs as much as one that a single caption holds. Each process counts a share
    of the items; every process must call it.

    Args:
        dataset: the training split.
        views: which of its captions count.
        names: of views; each is counted by itself, as one piece may be common in one language and
            rare in another.
        tokenizer: cuts captions as the text tower's does.
        device: that processes exchange counts on.

    Source: usual inverse document frequency of word pieces, as BERTScore, Zhang et al. 2020,
    https://arxiv.org/abs/1904.09675, section 3, takes it; the smoothing is ours.
    """
    size = tokenizer.vocab_size
    counts = torch.zeros(len(names), size + 1, dtype=torch.int64)  # the last one: captions
    waiting: dict[str, tuple[list[str], list[str]]] = {name: ([], []) for name in names}
    for index in range(rank(), len(dataset), world()):
        fitting = views.candidates(dataset[index])
        for row, name in enumerate(names):
            texts, langs = waiting[name]
            texts += [caption.text for caption in fitting[name]]
            langs += [caption.lang for caption in fitting[name]]
            if len(texts) >= CHUNK:
                counts[row] += _count(tokenizer(texts, langs), size)
                waiting[name] = [], []
    for row, name in enumerate(names):
        if waiting[name][0]:
            counts[row] += _count(tokenizer(*waiting[name]), size)
    counts = gather(counts.to(device)[None]).sum(dim=0).cpu()
    frequency, captions = counts[:, :-1].double(), counts[:, -1:].double()
    return ((1 + captions) / frequency.clamp(min=1)).log().float()


def _count(tokens: TextBatch, size: int) -> Tensor:
    """Return in how many captions each piece is, and behind them the number of captions."""
    ids = tokens.ids.masked_fill(~tokens.mask.bool(), size).sort(dim=1).values
    first = torch.ones_like(ids, dtype=torch.bool)
    first[:, 1:] = ids[:, 1:] != ids[:, :-1]
    counts = torch.bincount(ids[first], minlength=size + 1)
    counts[size] = len(ids)
    return counts
