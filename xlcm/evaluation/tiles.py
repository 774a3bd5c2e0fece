"""The sweep over the score matrix: how many wrong answers come before each right one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from xlcm.evaluation import shares
from xlcm.evaluation.best import Best, TopK
from xlcm.evaluation.blocks import Hits, Tile
from xlcm.evaluation.scores import Scores, Side

READ_SHARE = 1 / 8  # more of a tile to read for each right answer: all of it is compared
READ_MOST = 1 / 2  # the same, for any number of right answers
DENSE_SHARE = 1 / 128  # more undecided pairs than this: the whole tile again in float64


@dataclass(frozen=True)
class Ahead:
    """Wrong answers before each right pair; equal ones count half, or as `count_ahead` was told.

    Args:
        images: `(P,)` float64, wrong images before the image, for the pair's caption.
        captions: `(P,)` float64, wrong captions before the caption, for the pair's image.
    """

    images: Tensor
    captions: Tensor
    top_images: TopK | None
    top_captions: TopK | None


# images x captions: 16 MB, in the last cache of a CPU; a GPU wants more at once
TILE, GPU_TILE = (2048, 2048), (4096, 16384)


def tile_size(device: torch.device) -> tuple[int, int]:
    """Return of how many images and captions a device makes the scores at one time."""
    return TILE if device.type == "cpu" else GPU_TILE


@contextmanager
def exact_products() -> Iterator[None]:
    """Keep TF32 and bfloat16 short cuts out of the products; their error exceeds the blur."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@torch.no_grad()
def count_ahead(
    scores: Scores,
    *,
    tile: tuple[int, int],
    top_k: int = 0,
    equal: float = 0.5,
    shared: bool = False,
) -> Ahead:
    """Sweep all tiles once and count in both directions.

    Args:
        scores: what to rank.
        tile: images x captions at one time.
        top_k: how many of the best answers to keep for each query.
        equal: what a wrong answer counts whose score equals the right one's.
        shared: every process holds the same scores and sweeps its share of the tiles; all get
            the whole.
    """
    image, text = scores.image, scores.text
    height, width = min(tile[0], len(image)), min(tile[1], len(text))
    sweep = _Sweep(scores, equal)
    images = Best(len(text), min(top_k, len(image)), 0, image.device)
    captions = Best(len(image), min(top_k, len(text)), 1, image.device)
    flat = torch.empty(height * width, device=image.device)
    number = -1
    with exact_products():
        for top in range(0, len(image), height):
            rows = image[top : top + height]
            inside = _Inside(scores, top, len(rows))
            for left in range(0, len(text), width):
                number += 1
                if shared and not shares.mine(number):
                    continue
                columns = text[left : left + width]
                product = flat[: len(rows) * len(columns)].view(len(rows), len(columns))
                torch.mm(rows, columns.T, out=product)
                part = inside.tile(product, left)
                images.add(part)
                captions.add(part)
                sweep.add(part)
    before = [sweep.ahead(dim) for dim in (0, 1)]
    if shared:
        before = [shares.summed(one) for one in before]
    return Ahead(before[0], before[1], images.result(shared=shared), captions.result(shared=shared))


class _Inside:
    """The right pairs of some images, of which each tile gets those inside it."""

    def __init__(self, scores: Scores, top: int, height: int) -> None:
        side = scores.by_image
        first, last = side.offset[top], side.offset[top + height]
        self.top = top
        self.rows = side.query[first:last] - top
        self.columns = scores.pair_caption[side.pair[first:last]]

    def tile(self, product: Tensor, left: int) -> Tile:
        inside = (self.columns >= left) & (self.columns < left + product.shape[1])
        rows, columns = self.rows[inside], self.columns[inside] - left
        return Tile(product, self.top, left, rows=rows, columns=columns)


class _Sweep:
    """Counts that grow tile by tile."""

    def __init__(self, scores: Scores, equal: float) -> None:
        self.scores, self.equal = scores, equal
        self.counts = {
            dim: torch.zeros_like(scores.pair_image, dtype=torch.float64) for dim in (0, 1)
        }
        self.mask = torch.empty(0, device=scores.image.device)
        self.exact: Tensor | None = None

    def ahead(self, dim: int) -> Tensor:
        """Return the counts of the answers along a dimension in the order of the pairs."""
        out = torch.empty_like(self.counts[dim])
        out[self.scores.side(dim).pair] = self.counts[dim]
        return out

    def add(self, tile: Tile) -> None:
        """Count one tile in both directions."""
        self.exact = None
        for dim in (0, 1):
            side, at = self.scores.side(dim), tile.queries(dim)
            pairs = slice(int(side.offset[at.start]), int(side.offset[at.stop]))
            slots = (pairs.stop - pairs.start) / (at.stop - at.start)  # right answers a query
            most = min(READ_SHARE * slots, READ_MOST) * tile.scores.numel()
            hits = tile.reach(side.lowest[at], dim, most=most)
            if hits is None or not self._sparse(tile, dim, side, pairs, hits):
                self._dense(tile, dim, side, pairs)

    def _sparse(self, tile: Tile, dim: int, side: Side, pairs: slice, hits: Hits) -> bool:
        """Count the hits that pass each right answer; False if too many are undecided."""
        start = tile.queries(dim).start
        pair = side.offset.index_select(0, hits.query + start)
        answer, value = hits.answer, hits.value
        count = torch.zeros(pairs.stop - pairs.start, dtype=torch.int64, device=pair.device)
        undecided: list[tuple[Tensor, Tensor]] = []
        while len(pair):  # the lowest right answer of each query, the next one, ...
            count += torch.bincount(pair - pairs.start, minlength=len(count))
            near = (value <= side.high.index_select(0, pair)).nonzero().squeeze(1)
            if len(near):
                undecided.append((pair[near], answer[near]))
            on = (value >= side.next_low.index_select(0, pair)).nonzero().squeeze(1)
            pair, answer, value = (one.index_select(0, on) for one in (pair, answer, value))
            pair += 1
        if sum(len(one) for one, _ in undecided) > DENSE_SHARE * tile.scores.numel():
            return False
        self.counts[dim][pairs] += count
        for pair, answer in undecided:
            self.counts[dim].index_add_(0, pair, self._won(tile, dim, side, pair, answer) - 1)
        return True

    def _won(self, tile: Tile, dim: int, side: Side, pair: Tensor, answer: Tensor) -> Tensor:
        """Return for answers that float32 can't place what each counts, `(answers,)` float64."""
        answer = answer + tile.first(dim)
        images, captions = (side.query[pair], answer) if dim else (answer, side.query[pair])
        gap = self.scores.exact(images, captions) - self._right(side, pair)
        tie = self.scores.tie
        return (gap > tie).double() + self.equal * (gap.abs() <= tie).double()

    def _right(self, side: Side, pair: Tensor) -> Tensor:
        """Return the float64 scores of right pairs, `(pairs,)`."""
        pair = side.pair[pair]
        return self.scores.exact(self.scores.pair_image[pair], self.scores.pair_caption[pair])

    def _dense(self, tile: Tile, dim: int, side: Side, pairs: slice) -> None:
        """Compare every score of the tile with each right answer of its query."""
        at = tile.queries(dim)
        scores = tile.scores if dim else tile.scores.T
        number = side.offset[at]
        last = side.offset[at.start + 1 : at.stop + 1]
        rows = (number < last).nonzero().squeeze(1)
        while len(rows):
            pair = number[rows]
            part = scores if len(rows) == len(scores) else scores[rows]
            self.counts[dim][pair] += self._compared(tile, dim, side, part, rows, pair)
            number = number + 1
            rows = rows[number[rows] < last[rows]]

    def _compared(
        self, tile: Tile, dim: int, side: Side, part: Tensor, rows: Tensor, pair: Tensor
    ) -> Tensor:
        """Return how many scores of each row of `part` come before its pair, `(rows,)`."""
        high, low = side.high[pair, None], side.low[pair, None]
        ahead = self._total(part, high, torch.gt)
        near = self._total(part, low, torch.ge) - ahead
        undecided = int(near.sum())
        if undecided > DENSE_SHARE * part.numel():  # a collapsed model, or many duplicates
            exact, right = self._exact(tile, dim), self._right(side, pair).unsqueeze(1)
            tie = self.scores.tie
            exact = exact if len(rows) == len(exact) else exact[rows]
            most = self._total(exact, right - tie, torch.ge)
            greater = self._total(exact, right + tie, torch.gt)
            return greater + self.equal * (most - greater)
        if undecided:
            hit = near.nonzero().squeeze(1)
            strip = part[hit]
            row, answer = ((strip >= low[hit]) & (strip <= high[hit])).nonzero().unbind(1)
            row = hit[row]
            ahead.index_add_(0, row, self._won(tile, dim, side, pair[row], answer))
        return ahead

    def _exact(self, tile: Tile, dim: int) -> Tensor:
        """Return the tile in float64, which is made when first needed, answers along the rows."""
        if self.exact is None:
            images, captions = tile.queries(1), tile.queries(0)
            rows = self.scores.image[images].double()
            columns = self.scores.text[captions].split(1024)
            self.exact = torch.cat([rows @ part.double().T for part in columns], dim=1)
            right = tile.right[1]
            self.exact[right.query, right.answer] = -torch.inf
        return self.exact if dim else self.exact.T

    def _total(self, scores: Tensor, border: Tensor, compare: Callable[..., Tensor]) -> Tensor:
        # A float mask summed by a matrix-vector product: 5 to 10 times faster than a bool sum,
        # and exact, as a tile's side is far below 2^24.
        if len(self.mask) < scores.numel():
            self.mask = torch.empty(scores.numel(), device=scores.device)
        mask = self.mask[: scores.numel()]
        mask = mask.view(scores.shape) if scores.is_contiguous() else mask.view(scores.T.shape).T
        compare(scores, border, out=mask)
        return torch.mv(mask, self.mask.new_ones(scores.shape[1])).double()
