"""The order of rows where some lie in tar shards, or come of several corpora.

As in `batching.py` it is a function of the seed and the epoch, known whole to every process: so a
run on any number of processes and workers sees the same global batches, none sees a row of
another, and the place in it is two numbers.

A pass over a corpus in shards goes through them in an order of its own, `open_shards` at a time,
and shuffles the rows of those together: reading stays in a few files.
"""

from __future__ import annotations

import numpy as np

from xlcm.config import ConfigError
from xlcm.data.batching import Batching, SameImage
from xlcm.data.lanes import lane_of_place, lane_order
from xlcm.data.mixing import Layout, quotas


class StreamBatching(Batching):
    """Global batches of corpora by their shares, each corpus in the order of its shards.

    Args:
        slots: see `Batching`.
        global_batch: see `Batching`.
        layout: which corpus and shard each item is in.
        seed: of the order.
        same_image: see `Batching`; `together` goes with one corpus only.
        lengths: see `Batching`.
        bucket_batches: see `Batching`.

    Attributes:
        rows: of each corpus in the data.
        quotas: of each corpus in an epoch.

    Raises:
        ConfigError: as `Batching`; for a corpus that no row is left of.
    """

    def __init__(
        self,
        slots: np.ndarray,
        global_batch: int,
        layout: Layout,
        *,
        seed: int = 0,
        same_image: SameImage = "any",
        lengths: np.ndarray | None = None,
        bucket_batches: int = 0,
    ) -> None:
        if same_image == "together" and len(layout.names) > 1:
            raise ConfigError("data.same_image=together can't be kept where rows of several "
                              "corpora are mixed; set it to any or separate")  # fmt: skip
        slots = np.asarray(slots, dtype=np.int32)
        self.layout = layout
        self.items = [
            np.flatnonzero(layout.corpus == number).astype(np.int32)
            for number in range(len(layout.names))
        ]
        self.rows = [int(slots[items].sum()) for items in self.items]
        for name, rows in zip(layout.names, self.rows):
            if rows == 0:
                raise ConfigError(f"data.train.parts.{name}: no row of it can be used; take it out")
        self.quotas = quotas(self.rows, layout.temperature)
        for name, quota in zip(layout.names, self.quotas):
            if quota == 0:
                raise ConfigError(
                    f"data.train.parts.{name}: it gets no row of an epoch at temperature "
                    f"{layout.temperature}: choose a higher one, or take the part out"
                )
        super().__init__(
            slots,
            global_batch,
            seed=seed,
            same_image=same_image,
            lengths=lengths,
            bucket_batches=bucket_batches,
        )

    def repeats(self, epoch: int) -> np.ndarray | None:
        """Return `(batches, global_batch)` `Row.repeat`; None where each row comes once at most."""
        if self.quotas == self.rows:  # an epoch is one pass over each corpus
            return None
        batches = self.batches(epoch)
        rows = batches.reshape(-1, 2).astype(np.int64)
        named = rows[:, 0] * (int(self.slots.max()) + 1) + rows[:, 1]
        order = np.argsort(named, kind="stable")
        first = np.flatnonzero(np.diff(named[order], prepend=-1))
        counted = np.arange(len(rows)) - np.repeat(first, np.diff(first, append=len(rows)))
        found = np.empty(len(rows), dtype=np.int32)
        found[order] = counted
        return found.reshape(batches.shape[:2])

    def _order(self, epoch: int, random: np.random.Generator) -> np.ndarray:
        of = np.repeat(np.arange(len(self.items)), self.quotas)
        if len(self.items) > 1:
            of = random.permutation(of)
        rows = np.empty((len(of), 2), dtype=np.int32)
        for corpus, quota in enumerate(self.quotas):
            rows[of == corpus] = self._stretch(corpus, epoch * quota, quota)
        return rows

    def _stretch(self, corpus: int, start: int, count: int) -> np.ndarray:
        """Return `count` rows of the endless passes over a corpus, `(count, 2)`."""
        size = self.rows[corpus]
        first, last = start // size, (start + count - 1) // size if count else start // size
        passes = [self._pass(corpus, number) for number in range(first, last + 1)]
        return np.concatenate(passes)[start - first * size :][:count]

    def _pass(self, corpus: int, number: int) -> np.ndarray:
        """Return all rows of a corpus in the order of one pass over it."""
        random = np.random.default_rng([self.seed, number, corpus, 0x57EA4])
        items = self.items[corpus]
        shard = self.layout.shard[items]
        repeats = self.slots[items]
        at = np.repeat(np.arange(len(items), dtype=np.int32), repeats)
        first = np.cumsum(repeats) - repeats
        slots = np.arange(len(at), dtype=np.int32) - np.repeat(first, repeats).astype(np.int32)
        together = self.same_image == "together"
        lanes = self.layout.streamed(corpus)
        if lanes is not None:
            whole = len(at) // self.global_batch  # batches of the passes before this one
            served = lane_of_place(
                lanes, self.global_batch, number * whole * self.global_batch, len(at)
            )
            mixed = lane_order(lanes, shard, at, served, random, together=together)
            return np.stack([items[at[mixed]], slots[mixed]], axis=1)
        known, shard = np.unique(shard, return_inverse=True)
        window = random.permutation(len(known))[shard] // self.layout.open_shards[corpus]
        if together:
            mixed = np.argsort(random.permutation(len(items))[at], kind="stable")
        else:
            mixed = random.permutation(len(at))
        mixed = mixed[np.argsort(window[at[mixed]], kind="stable")]
        return np.stack([items[at[mixed]], slots[mixed]], axis=1)


def enough_shards(layout: Layout, processes: int, workers: int) -> None:
    """Refuse a corpus with fewer shards than there are processes that load.

    Raises:
        ConfigError: saying how many are needed.
    """
    need = processes * max(workers, 1)
    for number, name in enumerate(layout.names):
        found = layout.shards(number)
        if not 0 < found < need:
            continue
        fewer = found // processes
        lower = f", or lower data.workers to {fewer}" if fewer else ""
        command = f"`xlcm data shard --shards {need}`"
        if layout.streamed(number) is not None:
            command = "`xlcm data shard-hf` makes as many of it as you like, for `name: shards`"
        raise ConfigError(
            f"{name}: {found} shard(s), but {processes} process(es) with data.workers={workers} "
            f"load, which need at least {need}: write {need} or more ({command}){lower}"
        )
