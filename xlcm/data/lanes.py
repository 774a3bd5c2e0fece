"""The order of a pass over shards that can only be read from their beginning on.

All rows lie in a line, shard after shard in the order of the pass. The line is cut into lanes, and
each lane is shuffled in blocks of `buffer` rows. Which lane serves which place of which batch is
fixed, so that a process and each of its workers keep to lanes of their own: a lane is read once,
in order, by one of them, who holds no more than a block.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Lanes(NamedTuple):
    """How a corpus of streamed shards is laid out.

    Args:
        number: of lanes; a multiple of `turns`.
        turns: batches in a row that have lanes of their own: one for each worker of a process.
        buffer: rows that are shuffled together in a lane, and held in memory.
    """

    number: int
    turns: int
    buffer: int


def lanes_of(shards: int, *, at_once: int, turns: int, buffer: int) -> Lanes:
    """Return lanes for a number of shards, of which `at_once` are read at a time at most."""
    turns = min(turns, shards)
    return Lanes(max(min(at_once, shards) // turns, 1) * turns, turns, buffer)


def lane_of_place(lanes: Lanes, global_batch: int, first: int, count: int) -> np.ndarray:
    """Return the lane that serves each place of `count` rows behind row `first` of all, int64.

    Process r of W has the places from r/W to (r+1)/W of each batch, and so its share of the lanes
    of that turn, if W divides them.
    """
    batch, place = np.divmod(np.arange(count) + first, global_batch)
    each = lanes.number // lanes.turns
    found: np.ndarray = (batch % lanes.turns) * each + place * each // global_batch
    return found


def lane_order(
    lanes: Lanes,
    shard: np.ndarray,
    rows: np.ndarray,
    lane: np.ndarray,
    random: np.random.Generator,
    *,
    together: bool = False,
) -> np.ndarray:
    """Return a permutation of rows, `(rows,)` int64: each of them once.

    Args:
        lanes: see `Lanes`.
        shard: `(items,)` of each item, the items in the order in which the shards hold them.
        rows: `(rows,)` the item of each row, ascending.
        lane: `(rows,)` which lane serves each place of the result.
        random: draws the order of the shards and of each block.
        together: keep rows of one item next to one another.
    """
    known, place = np.unique(shard, return_inverse=True)
    rank = random.permutation(len(known))[place]
    line = np.argsort(rank[rows], kind="stable")
    sizes = np.bincount(lane, minlength=lanes.number)
    of = np.repeat(np.arange(lanes.number), sizes)
    within = np.arange(len(line)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    # blocks don't begin at the same row in each pass: neighbours change
    block = (within + random.integers(lanes.buffer, size=lanes.number)[of]) // lanes.buffer
    drawn = random.random(len(shard))[rows[line]] if together else random.random(len(line))
    mixed = line[np.lexsort((drawn, block, of))]
    order = np.empty(len(line), dtype=np.int64)
    order[np.argsort(lane, kind="stable")] = mixed
    return order
