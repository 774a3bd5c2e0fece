"""Texts in batches of so many tokens: sorted by length, tokenised ahead, returned in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import Any, TypeVar

import torch
from torch import Tensor

from xlcm.encoders.base import Tokenizer
from xlcm.types import TextBatch

CHUNK = 16_384  # texts that are tokenised and sorted at a time: bounds memory on millions
CPU_TOKENS = 1024  # what stays in a core's cache; half and double of it are a little slower
DEVICE_TOKENS = 16_384  # enough rows for the matrix products of an accelerator
CPU_PADDING = 32  # tokens of padding from which on a batch more is faster on a CPU

Given = TypeVar("Given")
Made = TypeVar("Made")


def token_budget(device: torch.device, asked: int | None = None) -> int:
    """Return how many tokens, padding included, a batch may have on a device.

    Args:
        device: where the model is.
        asked: in place of the default, 1,024 on a CPU and 16,384 elsewhere.

    Raises:
        ValueError: if less than one is asked for.
    """
    if asked is not None and asked < 1:
        raise ValueError(f"max_batch_tokens must be at least 1, got {asked}")
    return asked or (CPU_TOKENS if device.type == "cpu" else DEVICE_TOKENS)


def by_length(
    tokens: TextBatch,
    batch_size: int | None = None,
    budget: int | None = None,
    padding: int | None = None,
) -> Iterator[tuple[Tensor, TextBatch]]:
    """Yield (row numbers, batch) from the longest to the shortest, with little padding.

    The longest come first, so that a lack of memory shows at once.

    Args:
        tokens: any number of texts, padded on the right.
        batch_size: texts in a batch at most; None: no bound.
        budget: tokens in a batch at most, padding included; a longer text is a batch of its own.
            None: no bound.
        padding: tokens of padding in a batch that texts of one length may need at most; if they
            need more, they begin the next one. None: no bound.
    """
    counts, order = tokens.mask.sum(dim=1).sort(descending=True, stable=True)
    lengths = counts.tolist()
    start = 0
    while start < len(lengths):
        width = max(lengths[start], 1)
        size = min(batch_size or len(lengths), max(1, (budget or width * len(lengths)) // width))
        if padding is not None:
            size = _alike(lengths[start : start + size], padding)
        rows = order[start : start + size]
        langs = tuple(tokens.langs[i] for i in rows) if tokens.langs else ()
        yield rows, TextBatch(tokens.ids[rows, :width], tokens.mask[rows, :width], langs)
        start += size


def _alike(lengths: list[int], most: int) -> int:
    """Return how many of these texts, the longest first, to take: no length needs more padding."""
    size = 0
    for length, texts in groupby(lengths):
        count = len(list(texts))
        if (lengths[0] - length) * count > most:
            break
        size += count
    return size


def tokenised(
    tokenizer: Tokenizer, texts: Sequence[str], langs: Sequence[str] = ()
) -> Iterator[tuple[int, TextBatch]]:
    """Yield (number of the first text, tokens) of one chunk of texts after the other.

    While one is used, a thread tokenises the next; there are never more tokens in memory than
    those of two chunks.

    Args:
        tokenizer: the tower's.
        texts: any number.
        langs: of each, or none.
    """

    def tokenise(start: int) -> TextBatch:
        rows = slice(start, start + CHUNK)
        return tokenizer(texts[rows], langs[rows])

    starts = range(0, len(texts), CHUNK)
    yield from zip(starts, ahead(tokenise, starts))


def batches_for(
    device: torch.device,
    tokens: TextBatch,
    batch_size: int | None = None,
    budget: int | None = None,
) -> Iterator[tuple[Tensor, TextBatch]]:
    """Yield (row numbers, batch on the device) as `by_length` cuts them for such a device.

    Args:
        device: where the tower is.
        tokens: any number of texts.
        batch_size: texts at a time at most.
        budget: see `token_budget`.
    """
    budget = token_budget(device, budget)
    padding = CPU_PADDING if device.type == "cpu" else None
    for rows, batch in by_length(tokens, batch_size, budget, padding):
        yield rows, batch.to(device)


def embed_texts(
    model: Any,
    texts: Sequence[str],
    langs: Sequence[str] = (),
    *,
    batch_size: int | None = None,
    budget: int | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> tuple[Tensor, int]:
    """Return the vectors of texts in their order, `(n, width)` float32 on the CPU, and cut texts.

    Args:
        model: has `embed_text`, `text.tokenizer`, `width` and `device`; in evaluation mode.
        texts: any number.
        langs: of each, or none.
        batch_size: texts at a time at most.
        budget: see `token_budget`.
        advance: told how many are done.
    """
    out = torch.empty(len(texts), model.width)
    cut = 0
    for start, tokens in tokenised(model.text.tokenizer, texts, langs):
        cut += tokens.cut
        numbers, found = [], []
        for rows, batch in batches_for(model.device, tokens, batch_size, budget):
            numbers.append(rows)
            found.append(model.embed_text(batch))
            advance(len(rows))
        # one copy a chunk: waiting for a device after each batch would leave it idle
        out[start + torch.cat(numbers)] = torch.cat(found).float().cpu()
    return out, cut


def ahead(make: Callable[[Given], Made], given: Sequence[Given]) -> Iterator[Made]:
    """Yield `make(one)` of each in order; the next is made in a thread while one is used."""
    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(make, one) for one in given[:1]]
        for number in range(len(given)):
            made = waiting.pop().result()
            waiting += [pool.submit(make, one) for one in given[number + 1 : number + 2]]
            yield made
