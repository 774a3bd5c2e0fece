"""Cross-entropy of score matrices that are never held: value and gradients, tile by tile.

A score matrix of b local rows and B columns costs `2 b B D` operations, U. Autograd holds it five
to six times. Here one sweep over its tiles gives the log-sum-exp of rows and columns at once, and a
second one makes each tile again for the gradients of both sides: 4 U and memory for the gradients
and a few tiles. The first tiles are kept until the second sweep, `KEPT` numbers at most, so that
small matrices cost 3 U like the plain form.

On several processes the local rows' tiles serve both directions as well. A column's log-sum-exp
over the rows of all processes is that of what each process found, B numbers each; with it every
process has the whole gradient at its own scores. So W processes do together what one would do
alone, and gather one side only.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from xlcm.distributed import gather, rank
from xlcm.losses.score_tiles import (
    Cut,
    Gradients,
    Right,
    Scores,
    refuse_second_derivative,
    shaped,
    widened,
)

KEPT = 2**23
"""Numbers of tiles kept for the second sweep at most: 32 MB in float32."""
SLICE = 128
"""Rows of a tile whose probabilities are made at once: what they take beside it is small."""
STEEPEST, FAINTEST = 50.0, -60.0
"""Exponents up to the one, and sums of exponentials from `exp` of the other on, are safe: neither
they nor the weights over them come near the bounds of float32."""


class _LogSumExp:
    """Of all rows, and of all columns if there is more than one direction, in one sweep.

    Exponentials are summed up as they are, of scores less one `shift` for all of them, in float64
    from tile to tile. That is exact as long as no row's sum gets lost in float32, for which all its
    scores would have to lie far below the largest possible one. Where that is so (`finish` tells),
    the sweep is made again with the log-sum-exp of each tile; in all it then takes 5 U.
    """

    def __init__(self, scores: Scores, both: bool, shift: float | None) -> None:
        self.shift = shift
        start = 0.0 if shift is not None else -math.inf
        b, columns = len(scores.rows), len(scores.columns)
        like = widened(scores.rows.new_zeros(()))
        self.rows = like.new_full((b,), start)
        self.columns = like.new_full((columns,), start) if both else None

    def add(self, row: slice, column: slice, tile: Tensor) -> None:
        """Count a tile of scores; with a shift it holds exponentials afterwards."""
        if self.shift is None:
            self.rows[row] = torch.logaddexp(self.rows[row], widened(tile.logsumexp(1)))
            if self.columns is not None:
                of = self.columns[column]
                self.columns[column] = torch.logaddexp(of, widened(tile.logsumexp(0)))
            return
        if self.shift:
            tile.sub_(self.shift)
        tile.exp_()
        self.rows[row] += tile.sum(dim=1)
        if self.columns is not None:
            self.columns[column] += tile.sum(dim=0)

    def finish(self) -> bool:
        """Make logarithms of the sums; return whether they can be trusted."""
        sides = [side for side in (self.rows, self.columns) if side is not None and len(side)]
        if self.shift is None or not sides:
            return True
        fits = bool(torch.cat(sides).amin() >= math.exp(FAINTEST))
        for side in sides:
            side.log_().add_(self.shift)
        return fits


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        columns: Tensor,
        scale: Tensor,
        row_group: Tensor,
        column_group: Tensor,
        smoothing: float,
        both: bool,
    ) -> Tensor:
        rows, columns = rows.contiguous(), columns.contiguous()
        scores = Scores(rows, columns, float(scale))
        cut = Cut(len(rows), len(columns))
        right = Right(row_group, column_group, cut)
        budget = KEPT if any(ctx.needs_input_grad) else 0
        shift = _shift(scores)
        sums = _LogSumExp(scores, both, shift)
        kept, pairs = _first_sweep(scores, cut, sums, right, budget)
        if not sums.finish():
            del kept
            sums = _LogSumExp(scores, both, None)
            kept, pairs = _first_sweep(scores, cut, sums, right, 0)
        sizes = gather(torch.tensor([len(rows)], device=rows.device)) if both else None
        # before the sum over rows: where that is float32, their difference would be lost in it
        value = (sums.rows - (1 - smoothing) * pairs[0]).sum()
        if sizes is not None and sums.columns is not None:
            start = int(sizes[: rank()].sum())
            own = slice(start, start + len(rows))
            found = gather(torch.stack([sums.columns, pairs[1]])[None])  # (W, 2, B)
            sums.columns = found[:, 0].logsumexp(dim=0)
            value = value + (sums.columns - (1 - smoothing) * found[:, 1].sum(dim=0))[own].sum()
        if smoothing and len(columns):
            alike = widened(rows.sum(dim=0)) @ widened(columns.sum(dim=0))
            if both:
                everyone = gather(widened(rows.sum(dim=0))[None]).sum(dim=0)
                alike = alike + everyone @ widened(columns[own].sum(dim=0))
            value = value - smoothing * scores.scale * alike / len(columns)
        ctx.save_for_backward(
            rows, columns, scale, row_group, column_group, sums.rows, sums.columns, sizes, *kept
        )
        ctx.shift, ctx.smoothing = sums.shift, smoothing
        return value.clamp(min=0).to(rows.dtype)  # rounding may leave -1e-8

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        refuse_second_derivative()
        rows, columns, scale, row_group, column_group, of_rows, of_columns, sizes, *kept = (
            ctx.saved_tensors
        )
        with torch.autocast(rows.device.type, enabled=False):
            scores = Scores(rows, columns, float(scale))
            cut = Cut(len(rows), len(columns))
            right = Right(row_group, column_group, cut)
            found = Gradients(scores, ctx.needs_input_grad[:3])
            weight = widened(gradient).expand(len(columns))  # of local rows, in each column
            owners = None
            if sizes is not None:  # a column counts as its own process weighs it
                owners = gather(widened(gradient)[None])
                owners = owners.repeat_interleave(sizes, output_size=len(columns))
            both = weight if owners is None else weight + owners
            wrong = (both * ctx.smoothing / max(1, len(columns))).to(rows.dtype)
            of_pairs = both * (ctx.smoothing - 1)
            softmax = _Softmax(ctx.shift, gradient, owners, of_rows, of_columns, rows.dtype)
            scratch = cut.scratch(rows)
            for number, (row, column) in enumerate(cut):
                tile = shaped(scratch, row, column)
                if number < len(kept):
                    softmax.write(row, column, tile, of=kept[number])
                else:
                    softmax.write(row, column, scores.tile(row, column, tile))
                if ctx.smoothing:
                    tile.sub_(wrong[column])
                at, to = right(row, column)
                share = (of_pairs[column][to] / right.counts[row][at]).to(rows.dtype)
                tile.view(-1).index_add_(0, at * tile.shape[1] + to, share)
                found.add(row, column, tile)
            return (*found.finish(scale), None, None, None, None)


def _shift(scores: Scores) -> float:
    """Return what to take off all scores, so that exponentials stay below that of `STEEPEST`.

    It is a whole number: tiles of float32 take off what sums of float64 add again. Of another one
    they would take off the nearest float32, which is up to 2e-6 beside it at a scale of 100, and
    each row's loss would be so far off on the same side.
    """
    shift = max(0.0, scores.bound() - STEEPEST)
    return float(math.ceil(shift)) if math.isfinite(shift) else shift


def _first_sweep(
    scores: Scores, cut: Cut, sums: _LogSumExp, right: Right, budget: int
) -> tuple[list[Tensor], tuple[Tensor, Tensor]]:
    """Return the first tiles of exponentials, and what rows and columns have of right scores.

    These are the mean of each row `(b,)`, and of each column `(B,)` the part from local rows.
    """
    scratch = cut.scratch(scores.rows)
    kept: list[Tensor] = []
    like = widened(scores.rows.new_zeros(()))
    pairs = like.new_zeros(len(scores.rows)), like.new_zeros(len(scores.columns))
    for row, column in cut:
        tile = shaped(scratch, row, column)
        if tile.numel() <= budget:
            budget -= tile.numel()
            tile = torch.empty_like(tile)
            kept.append(tile)
        else:
            budget = 0  # only the first ones, without a gap
        scores.tile(row, column, tile)
        at, to = right(row, column)
        if len(at):
            share = widened(tile[at, to]) / right.counts[row][at]
            pairs[0][row].index_add_(0, at, share)
            pairs[1][column].index_add_(0, to, share)
        sums.add(row, column, tile)
    return kept, pairs


class _Softmax:
    """Weighted probabilities along rows, plus those along columns, of tiles of scores."""

    def __init__(
        self,
        shift: float | None,
        weight: Tensor,
        owners: Tensor | None,
        of_rows: Tensor,
        of_columns: Tensor | None,
        dtype: torch.dtype,
    ) -> None:
        self.shift, self.weight = shift, weight.to(dtype)
        self.rows = self._side(of_rows, weight).to(dtype)[:, None]
        self.owners = self.columns = None
        if of_columns is not None and owners is not None:
            self.owners = owners.to(dtype)
            self.columns = self._side(of_columns, owners).to(dtype)[None, :]

    def _side(self, logarithms: Tensor, weight: Tensor) -> Tensor:
        """Return factors of exponentials, with the weight in them; without a shift what came."""
        if self.shift is None:
            return logarithms
        return weight * (self.shift - logarithms).exp()

    def write(self, row: slice, column: slice, tile: Tensor, of: Tensor | None = None) -> None:
        """Write them to a tile of scores, or to one of leftovers from kept exponentials `of`."""
        columns = None if self.columns is None else self.columns[:, column]
        if of is not None:
            self._weigh(of, self.rows[row], columns, tile)
            return
        for part in range(0, len(tile), SLICE):
            rows, scored = self.rows[row][part : part + SLICE], tile[part : part + SLICE]
            if self.shift is None:
                along = None
                if columns is not None and self.owners is not None:
                    along = (scored - columns).exp_().mul_(self.owners[column])
                scored.sub_(rows).exp_().mul_(self.weight)
                if along is not None:
                    scored.add_(along)
                continue
            if self.shift:
                scored.sub_(self.shift)
            self._weigh(scored.exp_(), rows, columns, scored)

    def _weigh(self, of: Tensor, rows: Tensor, columns: Tensor | None, out: Tensor) -> None:
        if columns is None:
            torch.mul(of, rows, out=out)
        elif out is of:
            out.mul_(rows + columns)
        else:
            torch.add(rows, columns, out=out).mul_(of)


def cross_entropy(
    rows: Tensor,
    columns: Tensor,
    *,
    scale: Tensor | float,
    row_group: Tensor,
    column_group: Tensor,
    smoothing: float = 0.0,
    both: bool = False,
) -> Tensor:
    """Return the sum over rows of the cross-entropy with right answers of the same group.

    The value is that of `F.cross_entropy(scale * rows @ columns.T, target, reduction="sum")`, where
    `target` shares the mass of a row among the columns of its group. It can't be differentiated
    twice. The sums are carried on in float64 (float32 on devices without it).

    Args:
        rows: `(b, D)` float32 or float64.
        columns: `(B, D)`.
        scale: `()`, gets a gradient if it wants one.
        row_group: `(b,)` int64; each is among the columns.
        column_group: `(B,)` int64.
        smoothing: share of the mass that is spread over all columns.
        both: add the cross-entropies of the columns that are this process's own, with the rows of
            all processes as answers. The columns are then those of all processes in the order of
            their ranks, each has as many rows as columns, and row and column i of a process are of
            one group. Every process calls it.
    """
    if not isinstance(scale, Tensor):
        scale = torch.tensor(scale, dtype=torch.float64)
    return _CrossEntropy.apply(  # type: ignore[no-any-return, no-untyped-call]
        rows, columns, scale, row_group, column_group, smoothing, both
    )
