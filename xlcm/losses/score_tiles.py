"""Score matrices in tiles: what losses need to see each score without holding all of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

ROWS, COLUMNS = 1024, 2048
"""Of a tile at most: 2 M numbers stay in a cache; with fewer the products get slower."""
PAYS = 1024 * 1024
"""Numbers of a score matrix from which on tiles are faster than the plain form."""

NO_FLOAT64 = ("mps",)
"""Types of device without float64."""

Tiled = Literal["auto", "always", "never"]


def widened(values: Tensor) -> Tensor:
    """Return the values as sums from tile to tile are carried on: in float64, where there is one.

    Apple's GPUs have none; there they stay what they are.
    """
    return values if values.device.type in NO_FLOAT64 else values.double()


def refuse_second_derivative() -> None:
    """Raise RuntimeError inside a backward pass that shall be differentiated again.

    Torch's `once_differentiable` would hand out the gradient as a constant.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            "a loss in tiles can't be differentiated twice (create_graph=True): build it with "
            "tiled='never'"
        )


def in_tiles(tiled: Tiled, rows: int, columns: int) -> bool:
    """Return whether a loss of `rows` x `columns` scores is to be computed in tiles."""
    return tiled == "always" or (tiled == "auto" and rows * columns >= PAYS)


class Cut:
    """The tiles of a matrix, as pairs of slices, all columns of a block of rows first.

    Attributes:
        rows: slices of at most `ROWS` rows, as even as they can be.
        columns: slices of at most `COLUMNS` columns.
    """

    def __init__(self, rows: int, columns: int) -> None:
        self.rows, self.columns = _even(rows, ROWS), _even(columns, COLUMNS)

    def __iter__(self) -> Iterator[tuple[slice, slice]]:
        return ((row, column) for row in self.rows for column in self.columns)

    def scratch(self, like: Tensor) -> Tensor:
        """Return memory for one tile; `shaped` gives it the shape of each."""
        sizes = [_size(row) * _size(column) for row, column in self]
        return like.new_empty(max(sizes, default=0))


def _even(size: int, most: int) -> list[slice]:
    step = math.ceil(size / math.ceil(size / most)) if size else 1
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def _size(part: slice) -> int:
    return int(part.stop - part.start)


def shaped(scratch: Tensor, row: slice, column: slice) -> Tensor:
    """Return scratch memory as the tile of these rows and columns; what is in it is left over."""
    return scratch[: _size(row) * _size(column)].view(_size(row), _size(column))


class Scores:
    """`scale * rows @ columns.T` by tiles.

    Args:
        rows: `(b, D)`.
        columns: `(B, D)`.
        scale: factor of the products.
    """

    def __init__(self, rows: Tensor, columns: Tensor, scale: float) -> None:
        self.rows, self.columns, self.scale = rows, columns, scale

    def tile(self, row: slice, column: slice, out: Tensor) -> Tensor:
        """Return one tile, written to `out`."""
        right = self.columns[column].T
        return torch.addmm(out, self.rows[row], right, beta=0, alpha=self.scale, out=out)

    @torch.no_grad()
    def bound(self) -> float:
        """Return what no score exceeds: the scale times the largest norms of both sides."""
        if not len(self.rows) or not len(self.columns):
            return 0.0
        norms = [torch.linalg.vector_norm(side, dim=1).amax() for side in (self.rows, self.columns)]
        return abs(self.scale) * float(norms[0] * norms[1])


class Gradients:
    """Sums what the gradients at the scores' tiles say of rows, columns and scale.

    Args:
        scores: the scores.
        wanted: whether rows, columns and scale get a gradient.
    """

    def __init__(self, scores: Scores, wanted: tuple[bool, bool, bool]) -> None:
        rows, columns, self._wants_scale = wanted
        self.scores = scores
        self._wants_rows = rows
        self.rows = torch.zeros_like(scores.rows) if rows or self._wants_scale else None
        self.columns = torch.zeros_like(scores.columns) if columns else None

    def add(self, row: slice, column: slice, tile: Tensor) -> None:
        """Count the gradient at the scores of a tile."""
        scores = self.scores
        if self.rows is not None:
            self.rows[row].addmm_(tile, scores.columns[column])
        if self.columns is not None:
            self.columns[column].addmm_(tile.T, scores.rows[row], alpha=scores.scale)

    def finish(self, scale: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the gradients of rows, columns and scale; call it once, at the end."""
        of_scale = None
        if self.rows is not None:
            total = widened(self.rows.new_zeros(()))
            for part in _even(len(self.rows), ROWS):
                here = self.rows[part]
                if self._wants_scale:
                    total += widened((here * self.scores.rows[part]).sum(dim=1)).sum()
                here.mul_(self.scores.scale)
            if self._wants_scale:
                of_scale = total.to(scale.dtype).expand_as(scale)
        return self.rows if self._wants_rows else None, self.columns, of_scale


class Right:
    """Where rows and columns have the same group: by tiles, without a mask of all of them.

    Args:
        row_group: `(b,)` int64.
        column_group: `(B,)` int64.
        cut: the tiles.

    Attributes:
        counts: `(b,)`, right columns of each row.
    """

    def __init__(self, row_group: Tensor, column_group: Tensor, cut: Cut) -> None:
        self._group = row_group
        self._sorted = {part.start: torch.sort(column_group[part]) for part in cut.columns}
        self.counts = _span(torch.sort(column_group).values, row_group)[1]
        # how many a tile has is read for all at once: at each tile a GPU would have to wait
        tiles, totals = [], []
        for start, (values, _) in self._sorted.items():
            counts = _span(values, row_group)[1]
            tiles += [(row.start, start) for row in cut.rows]
            totals += [counts[row].sum() for row in cut.rows]
        numbers = torch.stack(totals).tolist() if totals else []
        self._numbers = dict(zip(tiles, numbers))

    def __call__(self, row: slice, column: slice) -> tuple[Tensor, Tensor]:
        """Return rows and columns `(n,)` of the right answers, as places in this tile."""
        values, order = self._sorted[column.start]
        first, counts = _span(values, self._group[row])
        number = self._numbers[row.start, column.start]
        rows = torch.repeat_interleave(counts, output_size=number)
        before = counts.cumsum(0) - counts
        places = torch.arange(number, device=rows.device) + (first - before)[rows]
        return rows, order[places]


def _span(values: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return where each wanted number begins in sorted values, and how often it is there."""
    first = torch.searchsorted(values, wanted)
    return first, torch.searchsorted(values, wanted, right=True) - first
