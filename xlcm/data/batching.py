"""Which rows a step sees: a global order that knows nothing of processes or workers.

The order is a function of the seed and the epoch alone. Process r of W takes rows
r*b ... (r+1)*b of each global batch, so any number of processes sees the same global batches,
and the whole state is two numbers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from xlcm.config import ConfigError

SameImage: TypeAlias = Literal["any", "separate", "together"]


class Row(NamedTuple):
    """One training row: the item, its caption where rows go over captions, and the epoch.

    `repeat` counts how often the row came before in this epoch, as those of a small corpus of a mix
    do: captions and changes of the picture are drawn anew each time.
    """

    item: int
    slot: int
    epoch: int
    repeat: int = 0


class Batching:
    """An endless sequence of global batches, epoch after epoch.

    Args:
        slots: `(items,)` rows that each item has in an epoch: 1, or the number of its captions.
            An item with 0 never comes.
        global_batch: rows a step over all processes.
        seed: of the order.
        same_image: what happens to rows of one item: `any` (chance decides), `separate` (never
            in one batch) or `together` (next to one another; only the border of a batch may
            part them).
        lengths: `(items,)` caption lengths for length buckets.
        bucket_batches: pools of so many batches are sorted by length before they are cut into
            batches, which are then shuffled; 0: no buckets. It changes which negatives meet.

    Raises:
        ConfigError: if there are fewer rows than one batch needs, or options that contradict.
    """

    def __init__(
        self,
        slots: np.ndarray,
        global_batch: int,
        *,
        seed: int = 0,
        same_image: SameImage = "any",
        lengths: np.ndarray | None = None,
        bucket_batches: int = 0,
    ) -> None:
        if bucket_batches and same_image != "any":
            raise ConfigError(
                f"data.length_buckets={bucket_batches} reorders rows, so it can't keep "
                f"data.same_image={same_image}; use one of the two"
            )
        if bucket_batches and lengths is None:
            raise ValueError("length buckets need the lengths of the captions")
        self.slots = np.asarray(slots, dtype=np.int32)
        self.global_batch = global_batch
        self.seed = seed
        self.same_image = same_image
        self.lengths = lengths
        self.bucket_batches = bucket_batches
        self._arranged: dict[int, np.ndarray] = {}
        rows = int(self.slots.sum())
        if self.batches(0).shape[0] == 0:
            separate = ", which data.same_image=separate lets in once each,"
            raise ConfigError(
                f"{rows} training rows of {int((self.slots > 0).sum())} items"
                f"{separate if same_image == 'separate' else ''} do not fill one "
                f"global batch of {global_batch}: lower run.global_batch or bring more data"
            )

    def __len__(self) -> int:
        """Return the batches of an epoch; rows that don't fill the last one wait for the next."""
        return int(self.batches(0).shape[0])

    def batches(self, epoch: int) -> np.ndarray:
        """Return the epoch's batches as `(batches, global_batch, 2)` int32 of (item, slot)."""
        if epoch not in self._arranged:
            arranged = self._arrange(epoch)
            # the loader reads ahead: the epoch in use and the next are asked for in turn
            self._arranged = {e: b for e, b in self._arranged.items() if e >= epoch - 1}
            self._arranged[epoch] = arranged
        return self._arranged[epoch]

    def repeats(self, epoch: int) -> np.ndarray | None:
        """Return `(batches, global_batch)` `Row.repeat`; None where each row comes once at most."""
        return None

    def _arrange(self, epoch: int) -> np.ndarray:
        random = np.random.default_rng([self.seed, epoch, 0xBA7C4])
        rows = self._order(epoch, random)
        if self.same_image == "separate":
            rows = _separated(rows, self.global_batch)
        size = self.global_batch
        whole = len(rows) // size
        if self.bucket_batches and whole:
            rows = self._bucketed(rows[: whole * size], random)
        return rows[: whole * size].reshape(whole, size, 2)

    def _order(self, epoch: int, random: np.random.Generator) -> np.ndarray:
        """Return the epoch's rows in order, `(rows, 2)` int32, not yet cut into batches."""
        items = np.repeat(np.arange(len(self.slots), dtype=np.int32), self.slots)
        first = np.cumsum(self.slots) - self.slots
        slots = np.arange(len(items), dtype=np.int32) - np.repeat(first, self.slots).astype(
            np.int32
        )
        rows = np.stack([items, slots], axis=1)
        if self.same_image == "together":
            rank = random.permutation(len(self.slots))
            return rows[np.argsort(rank[items], kind="stable")]
        return rows[random.permutation(len(rows))]

    def _bucketed(self, rows: np.ndarray, random: np.random.Generator) -> np.ndarray:
        assert self.lengths is not None
        pool = self.bucket_batches * self.global_batch
        keys = np.arange(len(rows)) // pool
        rows = rows[np.lexsort((self.lengths[rows[:, 0]], keys))]
        batches = rows.reshape(-1, self.global_batch, 2)
        return batches[random.permutation(len(batches))].reshape(-1, 2)


def _separated(rows: np.ndarray, size: int) -> np.ndarray:
    """Reorder rows so that no batch holds an item twice; rows that can't be placed are left out.

    A row whose item the batch already has waits for the next batch.
    """
    waiting: deque[tuple[int, int]] = deque()
    coming = iter(rows.tolist())
    out: list[list[int]] = []
    while True:
        batch: list[list[int]] = []
        seen: set[int] = set()
        again: deque[tuple[int, int]] = deque()
        while len(batch) < size:
            row = waiting.popleft() if waiting else next(coming, None)
            if row is None:
                break
            if row[0] in seen:
                again.append(tuple(row))  # type: ignore[arg-type]
            else:
                seen.add(row[0])
                batch.append(list(row))
        waiting = again + waiting
        if len(batch) < size:
            return np.array(out, dtype=np.int32).reshape(-1, 2)
        out += batch


def share_of(global_batch: int, world: int) -> int:
    """Return the rows of a global batch that each of `world` processes has.

    Raises:
        ConfigError: if the processes don't divide the global batch.
    """
    if global_batch % world:
        down = global_batch // world * world
        raise ConfigError(
            f"run.global_batch={global_batch} is not divisible by {world} "
            f"processes; use {f'{down} or ' if down else ''}{down + world}"
        )
    return global_batch // world


class RowStream:
    """This process's share of the batches, from any position on; what a `DataLoader` samples by.

    Args:
        batching: the global order.
        rank: this process.
        world: number of processes; must divide the global batch.

    Raises:
        ConfigError: if the processes don't divide the global batch.
    """

    def __init__(self, batching: Batching, rank: int = 0, world: int = 1) -> None:
        share_of(batching.global_batch, world)
        self.batching = batching
        self.rank, self.world = rank, world
        self.epoch = 0
        self.batch = 0

    def start_at(self, epoch: int, batch: int) -> None:
        """Make the next iteration begin with this batch of this epoch."""
        self.epoch, self.batch = epoch, batch

    def __iter__(self) -> Iterator[list[Row]]:
        epoch, batch = self.epoch, self.batch
        each = self.batching.global_batch // self.world
        while True:
            batches, repeats = self.batching.batches(epoch), self.batching.repeats(epoch)
            while batch < len(batches):
                place = batch, slice(self.rank * each, (self.rank + 1) * each)
                again = [0] * each if repeats is None else repeats[place].tolist()
                mine = batches[place].tolist()
                yield [Row(item, slot, epoch, n) for (item, slot), n in zip(mine, again)]
                batch += 1
            epoch, batch = epoch + 1, 0
