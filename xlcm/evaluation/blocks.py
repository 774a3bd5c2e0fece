"""A tile of the score matrix, and which of its scores reach a border, found without reading all.

The maxima of groups of sixteen scores are taken in one fast pass. Only groups whose maximum reaches
the border of their query are looked into: a few in a hundred, if the model is any good.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

GROUP = 16


@dataclass(frozen=True)
class Hits:
    """Scores that reach the border of their query, by position in the tile.

    Args:
        query: `(hits,)`.
        answer: `(hits,)`.
        value: `(hits,)` the scores.
    """

    query: Tensor
    answer: Tensor
    value: Tensor


class Tile:
    """Scores of some images with some captions, right pairs taken out.

    A right answer is never ahead of another one, so right pairs become minus infinity here; what
    keeps the best answers gets them from `right`.

    Args:
        scores: `(r, c)` float32, which is overwritten.
        top: number of the first image.
        left: number of the first caption.
        rows: `(pairs,)` images of the right pairs inside, counted from `top`.
        columns: `(pairs,)` their captions, counted from `left`.
    """

    def __init__(
        self, scores: Tensor, top: int, left: int, *, rows: Tensor, columns: Tensor
    ) -> None:
        self.scores, self.top, self.left = scores, top, left
        self.right = {1: Hits(rows, columns, scores[rows, columns])}
        self.right[0] = Hits(columns, rows, self.right[1].value)
        scores[rows, columns] = -torch.inf
        self._groups: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def queries(self, dim: int) -> slice:
        """Return the numbers of the queries whose answers lie along this dimension."""
        start = self.top if dim else self.left
        return slice(start, start + self.scores.shape[1 - dim])

    def first(self, dim: int) -> int:
        """Return the number of the first answer along this dimension."""
        return self.left if dim else self.top

    def groups(self, dim: int) -> list[tuple[Tensor, Tensor]]:
        """Return scores in groups along a dimension, `(r, 16, c / 16)`, with their maxima.

        A group takes every (c / 16)-th score, which makes the maxima one fast pass. Scores that
        are left over are groups of one.
        """
        if dim not in self._groups:
            size = self.scores.shape[dim]
            main = size - size % GROUP
            rest = self.scores.narrow(dim, main, size - main)
            self._groups[dim] = [(rest.unsqueeze(dim), rest)] if main < size else []
            if main:
                part = self.scores.narrow(dim, 0, main).unflatten(dim, (GROUP, main // GROUP))
                self._groups[dim].insert(0, (part, part.amax(dim)))
        return self._groups[dim]

    def reach(self, border: Tensor, dim: int, *, most: float) -> Hits | None:
        """Return the scores of at least the border of their query.

        Args:
            border: `(queries,)` float32.
            dim: along which the answers lie: 1 for images as queries, 0 for captions.
            most: None comes back if more scores than this would have to be read.
        """
        query: list[Tensor] = []
        answer: list[Tensor] = []
        value: list[Tensor] = []
        offset = 0
        for part, best in self.groups(dim):
            one, other = (best >= border.unsqueeze(dim)).nonzero(as_tuple=True)
            most -= len(one) * part.shape[dim]
            if most < 0:
                return None
            found = part[one, :, other] if dim else part[:, one, other].T
            asked, group = (one, other) if dim else (other, one)
            which, member = (found >= border.index_select(0, asked).unsqueeze(1)).nonzero(
                as_tuple=True
            )
            query.append(asked.index_select(0, which))
            answer.append(offset + member * best.shape[dim] + group.index_select(0, which))
            value.append(found[which, member])
            offset += part.shape[dim] * best.shape[dim]
        if len(value) == 1:  # nothing was left over
            return Hits(query[0], answer[0], value[0])
        return Hits(torch.cat(query), torch.cat(answer), torch.cat(value))
