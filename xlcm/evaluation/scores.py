"""Scores of images and captions: the right pairs exactly, and their order from either side."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

ROWS = 64  # pairs whose scores are made at one time: two blocks that stay in the cache
SAFE = (1e-15, 1e18)  # lengths whose squares float32 can sum


@dataclass(frozen=True)
class Side:
    """The right pairs as one side of the matrix sees them: by query, the lowest score first.

    Args:
        pair: `(P,)` the number of each pair.
        query: `(P,)` whose right answer it is.
        offset: `(queries + 1,)` where the pairs of each query begin.
        low: `(P,)` float32: below it a score is surely less than the right one.
        high: `(P,)` float32: above it a score is surely greater.
        next_low: `(P,)` the `low` of the same query's next pair; infinite at its last one.
        lowest: `(queries,)` the smallest `low` of each; infinite without a right answer.
    """

    pair: Tensor
    query: Tensor
    offset: Tensor
    low: Tensor
    high: Tensor
    next_low: Tensor
    lowest: Tensor

    @classmethod
    def of(cls, query: Tensor, queries: int, right: Tensor, blur: float) -> Side:
        """Sort pairs by query and score `(P,)`; `blur` is half the width of the undecided band."""
        pair = torch.argsort(right, stable=True)
        pair = pair[torch.argsort(query[pair], stable=True)]
        count = torch.bincount(query, minlength=queries)
        offset = torch.cat([count.new_zeros(1), count.cumsum(0)])
        right, query = right[pair], query[pair]
        low, high = right - blur, right + blur
        next_low = torch.full_like(low, torch.inf)
        same = query[1:] == query[:-1]
        next_low[:-1][same] = low[1:][same]
        lowest = torch.full((queries,), torch.inf, device=low.device)
        lowest[count > 0] = low[offset[:-1][count > 0]]
        return cls(pair, query, offset, low, high, next_low, lowest)


class Scores:
    """Inner products of images and captions, and the right pairs.

    Args:
        image: `(N, d)` float32.
        text: `(M, d)` float32, on the same device.
        pair_image: `(P,)` int64, the image of each right pair; no pair twice.
        pair_caption: `(P,)` its caption.
        norms: the greatest length of an image's row and of a caption's.

    Attributes:
        blur: half width of the band in which a float32 product decides nothing.
        tie: two scores this close in float64 are equal; far above its rounding error and far
            below any difference that float32 embeddings show.
        by_image: the pairs as images see them.
        by_caption: as captions see them.

    Raises:
        ValueError: for scores beyond float32.
    """

    def __init__(
        self,
        image: Tensor,
        text: Tensor,
        pair_image: Tensor,
        pair_caption: Tensor,
        norms: tuple[float, float],
    ) -> None:
        self.image, self.text = image, text
        self.pair_image, self.pair_caption = pair_image, pair_caption
        scale = norms[0] * norms[1]
        if scale > 1e37:
            raise ValueError(
                f"scores reach {scale:.1e}, beyond float32; divide the embeddings by their norms"
            )
        # Rounding errors of d products add up like a random walk: sqrt(d) units in the last
        # place of |image| |text|; 4 more for the rounding of the borders themselves. Twice, as
        # the right score is a float32 sum too.
        self.blur = 2 * (math.sqrt(image.shape[1]) + 4) * 2.0**-24 * scale
        self.tie = 2.0**-40 * scale
        right = self._rough(pair_image, pair_caption)
        self.by_image = Side.of(pair_image, len(image), right, self.blur)
        self.by_caption = Side.of(pair_caption, len(text), right, self.blur)

    def side(self, dim: int) -> Side:
        """Return the side whose gallery lies along this dimension of the matrix."""
        return self.by_image if dim else self.by_caption

    def _rough(self, images: Tensor, captions: Tensor) -> Tensor:
        """Return the float32 scores of pairs, `(pairs,)`."""
        out = torch.empty(len(images), device=self.image.device)
        step = ROWS if out.device.type == "cpu" else 4096
        for at in range(0, len(images), step):
            rows = self.image.index_select(0, images[at : at + step])
            rows *= self.text.index_select(0, captions[at : at + step])
            torch.sum(rows, dim=1, out=out[at : at + step])
        return out

    def exact(self, images: Tensor, captions: Tensor) -> Tensor:
        """Return the float64 scores of pairs, `(pairs,)`."""
        out = torch.empty(len(images), dtype=torch.float64, device=self.image.device)
        step = ROWS if out.device.type == "cpu" else 4096
        for at in range(0, len(images), step):
            rows = self.image.index_select(0, images[at : at + step]).double()
            rows *= self.text.index_select(0, captions[at : at + step])
            torch.sum(rows, dim=1, out=out[at : at + step])
        return out


def largest_norm(rows: Tensor) -> float:
    """Return the greatest length of a row; NaN or infinite where one holds such a number."""
    if rows.dtype != torch.float64:
        norm = float(torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32).max())
        if SAFE[0] < norm < SAFE[1]:
            return norm
    norms = [torch.linalg.vector_norm(chunk.double(), dim=1).max() for chunk in rows.split(4096)]
    return float(torch.stack(norms).max())
