"""The best answers to each query, kept while the tiles of the score matrix pass by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xlcm.evaluation.blocks import Hits, Tile
from xlcm.evaluation.shares import stacked

READ_SHARE = 1 / 4  # more of a tile to read than this: all of it is sorted


@dataclass(frozen=True)
class TopK:
    """The best answers to each query, best first; the order of equal ones is unspecified.

    Args:
        index: `(queries, k)` int64 into the gallery.
        score: `(queries, k)` float32.
    """

    index: Tensor
    score: Tensor


class Best:
    """The k best answers of each query so far.

    Args:
        queries: how many there are.
        k: answers to keep; 0 for none.
        dim: dimension of the score matrix along which the answers lie.
        device: where the scores are.
    """

    def __init__(self, queries: int, k: int, dim: int, device: torch.device) -> None:
        self.k, self.dim = k, dim
        self.score = torch.full((queries, k), -torch.inf, device=device)
        self.index = torch.zeros((queries, k), dtype=torch.int64, device=device)

    def add(self, tile: Tile) -> None:
        """Take in what a tile has that is better."""
        if not self.k:
            return
        at = tile.queries(self.dim)
        hits = self._better(tile, at)
        if hits is None:
            scores = tile.scores if self.dim else tile.scores.T
            score, index = scores.topk(min(self.k, scores.shape[1]), dim=1)
            self._keep(torch.arange(at.start, at.stop, device=score.device), index, score, tile)
        for found in (hits, tile.right[self.dim]):
            if found is not None and len(found.query):
                query, answer, value = _table(found.query, found.answer, found.value)
                self._keep(query + at.start, answer, value, tile)

    def _better(self, tile: Tile, at: slice) -> Hits | None:
        """Return what may be among the best; None if most of the tile may."""
        kept, most = self.score[at, -1], READ_SHARE * tile.scores.numel()
        border = torch.nextafter(kept, torch.full_like(kept, torch.inf))
        if bool(kept.isfinite().all()):  # later tiles have few that are new
            hits = tile.reach(border, self.dim, most=most / 4)
            if hits is not None:
                return hits
        best = tile.groups(self.dim)[0][1]
        if self.k <= best.shape[self.dim]:  # k groups reach it, so k scores do
            border = torch.maximum(border, best.topk(self.k, self.dim).values.amin(self.dim))
        return tile.reach(border, self.dim, most=most)

    def _keep(self, query: Tensor, answer: Tensor, value: Tensor, tile: Tile) -> None:
        """Merge the answers `(q, some)` of these queries, counted from the tile's first."""
        score = torch.cat([self.score[query], value], dim=1)
        index = torch.cat([self.index[query], answer + tile.first(self.dim)], dim=1)
        self.score[query], chosen = score.topk(self.k, dim=1)
        self.index[query] = index.gather(1, chosen)

    def result(self, *, shared: bool) -> TopK | None:
        """Return what was kept, on the CPU; None if nothing was to be kept.

        Args:
            shared: every process has what its tiles gave, and all get the whole.
        """
        if not self.k:
            return None
        score, index = self.score, self.index
        if shared:
            score, index = stacked(score), stacked(index)
            score, chosen = score.topk(self.k, dim=1)
            index = index.gather(1, chosen)
        return TopK(index.cpu(), score.cpu())


def _table(query: Tensor, answer: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the queries once, with their answers and scores as rows, minus infinity added."""
    order = torch.argsort(query, stable=True)
    asked, count = torch.unique_consecutive(query[order], return_counts=True)
    row = torch.arange(len(asked), device=query.device).repeat_interleave(count)
    place = torch.arange(len(query), device=query.device) - (count.cumsum(0) - count)[row]
    answers = answer.new_zeros(len(asked), int(count.max()))
    values = value.new_full(answers.shape, -torch.inf)
    answers[row, place], values[row, place] = answer[order], value[order]
    return asked, answers, values
