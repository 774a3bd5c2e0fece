"""The sweep over the score matrix: how many wrong answers come before each right one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

PAIR_BYTES = 16 << 20  # working memory for pairs decided in float64
DENSE_SHARE = 1 / 32  # more undecided pairs than this: the whole block again in float64


@dataclass(frozen=True)
class TopK:
    """The best answers to each query, best first; the order of equal ones is unspecified.

    Args:
        index: `(queries, k)` int64 into the gallery.
        score: `(queries, k)` float32.
    """

    index: Tensor
    score: Tensor


@dataclass(frozen=True)
class Ahead:
    """Wrong answers before the right one; equal ones count half, or as `count_ahead` was told.

    Args:
        images_ahead: `(M,)` float64, images before the image of each caption.
        captions_ahead: `(M,)` float64, captions of other images before each caption, in the
            order that its image gives.
    """

    images_ahead: Tensor
    captions_ahead: Tensor
    top_images: TopK | None
    top_captions: TopK | None


class Scores:
    """Inner products of images and captions, a tile at a time, and of the right pairs exactly.

    Attributes:
        right: `(M,)` float64, the score of each caption with its image.
        blur: half width of the band in which a float32 product decides nothing.
        tie: two scores this close in float64 are equal; far above its rounding error and far
            below any difference that float32 embeddings show.
    """

    def __init__(
        self, image: Tensor, text: Tensor, owner: Tensor, *, tile: tuple[int, int]
    ) -> None:
        self.image, self.text, self.owner = image, text, owner
        self.tile = (min(tile[0], len(image)), min(tile[1], len(text)))
        scale = _largest_norm(image) * _largest_norm(text)
        if scale > 1e37:
            raise ValueError(
                f"scores reach {scale:.1e}, beyond float32; divide the embeddings by their norms"
            )
        # Rounding errors of d products add up like a random walk: sqrt(d) units in the last
        # place of |image| |text|; 4 more for the rounding of the borders themselves.
        self.blur = (math.sqrt(image.shape[1]) + 4) * 2.0**-24 * scale
        self.tie = 2.0**-40 * scale
        captions = torch.arange(len(text), device=text.device)
        self.right = self.exact(owner, captions)
        # captions grouped by image: those of image i are order[start[i] : start[i] + count[i]]
        self.order = torch.argsort(owner, stable=True)
        self.count = torch.bincount(owner, minlength=len(image))
        self.start = self.count.cumsum(0) - self.count

    def exact(self, images: Tensor, captions: Tensor) -> Tensor:
        """Return the float64 scores of pairs, `(pairs,)`."""
        out = torch.empty(len(images), dtype=torch.float64, device=self.image.device)
        step = max(1, PAIR_BYTES // (16 * self.image.shape[1]))
        for at in range(0, len(images), step):
            rows = self.image[images[at : at + step]].double()
            rows *= self.text[captions[at : at + step]]
            torch.sum(rows, dim=1, out=out[at : at + step])
        return out


def _largest_norm(rows: Tensor) -> float:
    return max(float(chunk.double().norm(dim=1).max()) for chunk in rows.split(4096))


@contextmanager
def _full_precision() -> Iterator[None]:
    """Keep TF32 and bfloat16 short cuts out of the products; their error exceeds the blur."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@torch.no_grad()
def count_ahead(scores: Scores, *, top_k: int = 0, equal: float = 0.5) -> Ahead:
    """Sweep all tiles once and count in both directions.

    Args:
        scores: what to rank.
        top_k: how many of the best answers to keep for each query.
        equal: what a wrong answer counts whose score equals the right one's.
    """
    image, text = scores.image, scores.text
    height, width = scores.tile
    sweep = _Sweep(scores, equal)
    kept_images = _Best(len(text), min(top_k, len(image)), image.device)
    kept_captions = _Best(len(image), min(top_k, len(text)), image.device)
    flat = torch.empty(height * width, device=image.device)
    with _full_precision():
        for top in range(0, len(image), height):
            rows = image[top : top + height]
            for left in range(0, len(text), width):
                columns = text[left : left + width]
                tile = flat[: len(rows) * len(columns)].view(len(rows), len(columns))
                torch.mm(rows, columns.T, out=tile)
                if top_k:
                    kept_captions.add(tile, top, left)
                    kept_images.add(tile.T, left, top)
                sweep.add(tile, top, left)
    return Ahead(
        sweep.images_ahead, sweep.captions_ahead, kept_images.result(), kept_captions.result()
    )


class _Sweep:
    """Counts that grow tile by tile."""

    def __init__(self, scores: Scores, equal: float) -> None:
        self.scores = scores
        self.equal = equal
        self.images_ahead = torch.zeros_like(scores.right)
        self.captions_ahead = torch.zeros_like(scores.right)
        self.mask = torch.empty(scores.tile[0] * scores.tile[1], device=scores.image.device)
        self.ones = torch.ones(max(scores.tile), device=scores.image.device)
        self.at = (slice(0), slice(0))  # images and captions of the current tile
        self.exact: Tensor | None = None

    def add(self, tile: Tensor, top: int, left: int) -> None:
        """Count one tile `(r, c)` of float32 scores, which is overwritten."""
        scores, (height, width) = self.scores, tile.shape
        self.at, self.exact = (slice(top, top + height), slice(left, left + width)), None
        self._drop_right_pairs(tile, top, left)
        columns = torch.arange(left, left + width, device=tile.device)
        rows = torch.arange(top, top + height, device=tile.device)
        self.images_ahead[columns] += self._ahead(tile.T, columns, columns, rows, by_image=False)
        count = scores.count[rows]
        for slot in range(int(count.max())):  # the first caption of each image, the second, ...
            has = (count > slot).nonzero().squeeze(1)
            part = tile if len(has) == height else tile[has]
            rivals = scores.order[scores.start[rows[has]] + slot]
            self.captions_ahead[rivals] += self._ahead(
                part, rows[has], rivals, columns, by_image=True
            )

    def _ahead(
        self, tile: Tensor, queries: Tensor, rivals: Tensor, gallery: Tensor, *, by_image: bool
    ) -> Tensor:
        """Return how many of the gallery come before the right pair of each query, `(q,)`.

        Args:
            tile: `(q, g)` float32 scores.
            queries: `(q,)` the images or captions that the rows stand for.
            rivals: `(q,)` the caption whose right pair is to be beaten.
            gallery: `(g,)` the captions or images that the columns stand for.
            by_image: the queries are images.
        """
        right, blur = self.scores.right[rivals, None], self.scores.blur
        high, low = (right + blur).float(), (right - blur).float()
        ahead = self._total(tile, high, torch.gt)
        near = self._total(tile, low, torch.ge) - ahead
        undecided = int(near.sum())
        if undecided > DENSE_SHARE * tile.numel():  # a collapsed model, or many duplicates
            tie, exact = self.scores.tie, self._exact_of(queries, gallery, by_image)
            most = self._total(exact, right - tie, torch.ge)
            greater = self._total(exact, right + tie, torch.gt)
            return greater + self.equal * (most - greater)
        if undecided:
            hit = near.nonzero().squeeze(1)
            strip = tile[hit]
            row, column = ((strip >= low[hit]) & (strip <= high[hit])).nonzero().unbind(1)
            row = hit[row]
            pair = (queries[row], gallery[column])
            gap = self.scores.exact(*(pair if by_image else pair[::-1])) - right[row, 0]
            won = (gap > self.scores.tie).double()
            won += self.equal * (gap.abs() <= self.scores.tie).double()
            ahead.index_add_(0, row, won)
        return ahead

    def _exact_of(self, queries: Tensor, gallery: Tensor, by_image: bool) -> Tensor:
        """Return the rows of the current tile in float64, which is made when first needed."""
        if self.exact is None:
            rows = self.scores.image[self.at[0]].double()
            columns = self.scores.text[self.at[1]].split(1024)
            self.exact = torch.cat([rows @ part.double().T for part in columns], dim=1)
            self._drop_right_pairs(self.exact, self.at[0].start, self.at[1].start)
        if not by_image:
            return self.exact.T
        whole = len(queries) == len(self.exact)
        return self.exact if whole else self.exact[queries - self.at[0].start]

    def _drop_right_pairs(self, tile: Tensor, top: int, left: int) -> None:
        """Take right pairs out of the race: a right caption is never ahead of another one."""
        owner = self.scores.owner[left : left + tile.shape[1]]
        inside = ((owner >= top) & (owner < top + tile.shape[0])).nonzero().squeeze(1)
        tile[owner[inside] - top, inside] = -torch.inf

    def _total(self, tile: Tensor, border: Tensor, compare: Callable[..., Tensor]) -> Tensor:
        # A float mask summed by a matrix-vector product: 5 to 10 times faster than a bool sum,
        # and exact, as a tile's side is far below 2^24.
        mask = self.mask[: tile.numel()]
        mask = mask.view(tile.shape) if tile.is_contiguous() else mask.view(tile.T.shape).T
        compare(tile, border, out=mask)
        return (mask @ self.ones[: tile.shape[1]]).double()


class _Best:
    """The k best of each query so far."""

    def __init__(self, queries: int, k: int, device: torch.device) -> None:
        self.k = k
        self.score = torch.full((queries, k), -torch.inf, device=device)
        self.index = torch.zeros((queries, k), dtype=torch.int64, device=device)

    def add(self, tile: Tensor, query: int, offset: int) -> None:
        """Merge scores `(queries, gallery)` of a tile that starts at these two positions."""
        at = slice(query, query + tile.shape[0])
        score, index = tile.topk(min(self.k, tile.shape[1]), dim=1)
        score = torch.cat([self.score[at], score], dim=1)
        index = torch.cat([self.index[at], index + offset], dim=1)
        self.score[at], chosen = score.topk(self.k, dim=1)
        self.index[at] = index.gather(1, chosen)

    def result(self) -> TopK | None:
        """Return what was kept, on the CPU; None if nothing was to be kept."""
        return TopK(self.index.cpu(), self.score.cpu()) if self.k else None
