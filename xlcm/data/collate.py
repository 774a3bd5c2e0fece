"""Rows -> one batch of tensors, made in the loader's workers; captions are tokenised together."""

from __future__ import annotations

import atexit
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from xlcm.data.batching import Row, RowStream
from xlcm.data.dataset import Dataset
from xlcm.data.manifest import DataError
from xlcm.data.pixel_batch import pictures, stack_pixels
from xlcm.data.token_cache import RowTokenizer, TokenCache
from xlcm.data.transfer import Copies, ahead
from xlcm.data.transforms import Augment
from xlcm.data.views import Views
from xlcm.types import Batch, Caption, Item, TextBatch, Visual

Tokenise = Callable[[Sequence[str], Sequence[str]], TextBatch]


class Collator:
    """Draws captions, loads pictures or features, tokenises; a function of the rows alone.

    Args:
        dataset: where the rows' items are.
        views: which captions a row takes.
        tokenizer: of the text tower.
        transform: of the image tower: RGB picture -> uint8 `(3, H, W)`, or its pixels too,
            where it says `takes_pixels`; None: features are read.
        augment: random changes before the transform.
        seed: with it, the epoch, the row and its repeat in the epoch, every draw is fixed.
        slot_view: the view whose captions the rows' slots number; None: captions are drawn.
        only: the views that are tokenised, as a config names them; None: all.
        extra: captions of a view once more, for another tokenizer (a teacher's): name in
            `Batch.text` -> (view, tokenizer). A view of every language gives `<name>.<language>`.

    Raises:
        ConfigError: for a view that there is not.
        ValueError: if one name of `Batch.text` stands for two.
    """

    def __init__(
        self,
        dataset: Dataset,
        views: Views,
        tokenizer: Tokenise,
        transform: Callable[[Any], Tensor] | None,
        *,
        augment: Augment | None = None,
        seed: int = 0,
        slot_view: str | None = None,
        only: Sequence[str] | None = None,
        extra: Mapping[str, tuple[str, Tokenise]] | None = None,
    ) -> None:
        self.dataset = dataset
        self.views = views
        # one for all views of a tokenizer; what can't be remembered is asked each time
        caches: dict[int, Tokenise] = {}
        self.tokenizer = _remembered(tokenizer, caches)
        self.transform = transform
        self.augment = augment if augment is not None and augment.active else None
        self.seed = seed
        self.slot_view = slot_view
        asked = [single for name in only or () for single in views.names(name)]
        self.only = tuple(views.views if only is None else asked)
        # name in the batch -> the view that is drawn, and what reads it
        self.texts = {name: (name, self.tokenizer) for name in self.only}
        for name, (view, reader) in (extra or {}).items():
            for single in views.names(view):
                made = name + single.removeprefix(view)
                if made in self.texts:
                    raise ValueError(
                        f"{made!r} is the name of a view and of captions for another tokenizer; "
                        "rename the view in data.views"
                    )
                self.texts[made] = (single, _remembered(reader, caches))

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """Return the batch of these rows.

        Raises:
            DataError: naming file and line of the row that can't be had.
        """
        items = [self.dataset[row.item] for row in rows]
        draws = [self._random(row) for row in rows]
        # all captions before the first picture, whose pixels would push the code out of the caches
        drawn = [self._captions(*one) for one in zip(items, rows, draws)]
        if self.transform is not None:
            visual, fixed = Visual(self._pixels(rows, items, draws)), self.augment is None
        else:
            visual, fixed = self._features(rows, items, draws)
        return Batch(
            ids=torch.tensor([row.item for row in rows], dtype=torch.int64),
            visual=visual,
            text={name: self._tokens(drawn, *how) for name, how in self.texts.items()},
            names=tuple(item.id for item in items),
            fixed=fixed,
        )

    def _random(self, row: Row) -> np.random.Generator:
        again = [row.repeat] if row.repeat else []
        key = [self.seed, row.epoch, row.item, row.slot, *again]
        return cast(np.random.Generator, _Draws(key))

    def _tokens(self, drawn: list[dict[str, Caption]], view: str, tokenise: Tokenise) -> TextBatch:
        absent = Caption("", self.views.views[view].langs[0], "")
        captions = [row.get(view, absent) for row in drawn]
        text = tokenise([c.text for c in captions], [c.lang for c in captions])
        present = None
        if view in self.views.optional:  # also where none is absent, for processes must agree
            present = torch.tensor([view in row for row in drawn], dtype=torch.bool)
        return replace(text, keys=tuple(c.id for c in captions), present=present)

    def _captions(self, item: Item, row: Row, random: np.random.Generator) -> dict[str, Caption]:
        if self.slot_view is None:
            return self.views.draw(item, random)
        fixed = self.views.candidates(item)[self.slot_view][row.slot].id
        return self.views.draw(item, random, fixed)

    def _pixels(
        self, rows: Sequence[Row], items: Sequence[Item], draws: Sequence[np.random.Generator]
    ) -> Tensor:
        assert self.transform is not None
        found = pictures(self.dataset, [row.item for row in rows], items, self.transform)
        if self.augment is not None:
            found = map(self.augment, found, draws)
        return stack_pixels(map(self.transform, found), len(rows))

    def _features(
        self, rows: Sequence[Row], items: Sequence[Item], draws: Sequence[np.random.Generator]
    ) -> tuple[Visual, bool]:
        """Return features, and whether the data leave nothing to draw."""
        many = getattr(self.dataset, "load_feature_rows", None)  # pooled ones, all at once
        together = None if many is None else many(items)
        if together is not None:
            return Visual(features=together), True
        found = [self.dataset.load_features(row.item) for row in rows]
        fixed = all(isinstance(one, Tensor) for one in found)
        return stack_visuals([pick_view(*one) for one in zip(found, draws)], items), fixed


def _remembered(tokenizer: Tokenise, caches: dict[int, Tokenise]) -> Tokenise:
    if not isinstance(tokenizer, RowTokenizer):
        return tokenizer
    return caches.setdefault(id(tokenizer), TokenCache(tokenizer))


def pick_view(features: Tensor | Sequence[Tensor], random: np.random.Generator) -> Tensor:
    """Return one of an item's precomputed views, or the only one."""
    if isinstance(features, Tensor):
        return features
    return features[int(random.integers(len(features)))]


def stack_visuals(features: Sequence[Tensor], items: Sequence[Item] = ()) -> Visual:
    """Pad frame or region features `(T, D)` to the longest; stack pooled ones `(D,)`.

    Raises:
        DataError: for pooled and frame features, or several widths, together; naming two of
            `items`, if they are given.
    """
    first = features[0]
    for row, feature in enumerate(features):
        if feature.ndim != first.ndim or feature.shape[-1] != first.shape[-1]:
            other = f"{items[row].where}: item {items[row].id!r} has " if items else ""
            one = f" as item {items[0].id!r} has ({items[0].where})" if items else ""
            raise DataError(f"{other}features of the shape {tuple(feature.shape)}, which don't go "
                            f"into one batch with {tuple(first.shape)}{one}: use one kind and "
                            "width of features")  # fmt: skip
    if features[0].ndim == 1:
        return Visual(features=torch.stack(list(features)))
    longest = max(len(f) for f in features)
    padded = features[0].new_zeros(len(features), longest, features[0].shape[1])
    mask = torch.zeros(len(features), longest, dtype=torch.bool)
    for row, feature in enumerate(features):
        padded[row, : len(feature)] = feature
        mask[row, : len(feature)] = True
    return Visual(features=padded, mask=mask)


class _Draws:
    """A row's own generator, made at its first draw: to make one costs more than to draw."""

    def __init__(self, key: list[int]) -> None:
        self._key = key

    @cached_property
    def _made(self) -> np.random.Generator:
        return np.random.default_rng(self._key)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._made, name)


class _Fetch(TorchDataset):
    """`fetch[rows]` is a batch, or the fault that prevented it (raised in the main process)."""

    def __init__(self, collate: Collator) -> None:
        self.collate = collate

    def __getitem__(self, rows: list[Row]) -> Batch | DataError:
        try:
            return self.collate(rows)
        except DataError as error:
            return error


def _outlive_sigterm(worker: int) -> None:
    """Let the training process, which gets the same signal, end its checkpoint and its workers."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class TrainLoader:
    """Endless batches of this process, with a position that can be saved.

    Args:
        stream: which rows, in which order.
        collate: how they become a batch.
        workers: loading processes; 0 loads in this one.
        device: where batches are to go. To a GPU the next one is copied while this one is used;
            elsewhere they stay on the host.
    """

    def __init__(
        self,
        stream: RowStream,
        collate: Collator,
        *,
        workers: int = 0,
        device: torch.device | None = None,
    ) -> None:
        on_gpu = device is not None and device.type == "cuda"
        self.stream = stream
        self.collate = collate
        self.loader = DataLoader(
            _Fetch(collate),
            sampler=stream,  # type: ignore[arg-type]
            batch_size=None,
            num_workers=workers,
            pin_memory=on_gpu,
            prefetch_factor=4 if workers else None,
            generator=torch.Generator(),  # or it would draw from the generator of the towers
            worker_init_fn=_outlive_sigterm,
        )
        self.copies = Copies(device) if on_gpu and device is not None else None
        self.epoch = 0
        self.batch = 0

    @property
    def batches_per_epoch(self) -> int:
        """Global batches of an epoch."""
        return len(self.stream.batching)

    def state_dict(self) -> dict[str, int]:
        """Return the position of the next batch; what workers have prefetched does not count."""
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue with the batch after the last one that was used."""
        self.epoch, self.batch = state["epoch"], state["batch"]

    def __iter__(self) -> Iterator[Batch]:
        self.stream.start_at(self.epoch, self.batch)
        loading = iter(self.loader)
        # a traceback may keep this alive until Python exits, which sends workers SIGTERM and waits;
        # they ignore it, so they are told before
        end = getattr(loading, "_shutdown_workers", None)
        if end is not None:
            atexit.register(end)
        try:
            copies = self.copies
            there = loading if copies is None else ahead(loading, copies.send, copies.arrive)
            for fetched in there:
                if isinstance(fetched, DataError):
                    raise fetched
                self.batch += 1
                if self.batch >= len(self.stream.batching.batches(self.epoch)):
                    self.epoch, self.batch = self.epoch + 1, 0
                used = [fetched]
                del fetched  # who uses the batch may let it go before the step is over
                yield used.pop()
        finally:
            if end is not None:
                atexit.unregister(end)
                end()
