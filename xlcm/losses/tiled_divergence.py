"""Divergence of a student's in-batch softmaxes from a teacher's, without either's score matrix.

As in `xlcm/losses/tiled.py`, one sweep over tiles gives the sums that the value is made of, and a
second one the gradients of student and teacher. With U the cost of one product it takes 4 U for the
student, and 2 U for the teacher or, where it gets a gradient, 4 U; of several teachers that are
pooled, for each. Exponentials are those of the scores as they are. Where they might leave float32,
each direction is a sweep of its own over scores less the largest of their row, found in one more:
1 U more for student and teacher, and nothing shared between the directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from xlcm.distributed import world
from xlcm.losses.score_tiles import (
    Cut,
    Gradients,
    Scores,
    refuse_second_derivative,
    shaped,
    widened,
)
from xlcm.losses.tiled import KEPT, STEEPEST

Pair = tuple[Tensor, Tensor]
"""Rows `(b, D)` and columns `(B, D)`."""


Teachers = Sequence[Pair]
"""One pair for each of several teachers."""
Pool = Literal["max", "min"]


def divergences(
    student: tuple[Pair, Pair],
    teachers: tuple[Teachers, Teachers],
    *,
    scales: tuple[float, float],
    kl: bool,
    counted: tuple[int, ...],
    pool: Pool = "max",
) -> Tensor:
    """Return the sum over rows and counted directions: 0 and 1, those of the two pairs.

    On one process the second pair must be the first one the other way round: the same tiles serve
    both, as long as scores fit as they are (unit vectors: up to scales of 50).
    """
    options: dict[str, Any] = {"scales": scales, "kl": kl, "pool": pool}
    small = all(
        side.bound() <= STEEPEST
        for i in counted
        for side in (Scores(*student[i], scales[0]), _Pooled(teachers[i], scales[1], pool))
    )
    if small and world() == 1:
        options |= {"by_rows": 0 in counted, "by_columns": 1 in counted}
        return divergence(student[0], teachers[0], **options)
    each = [divergence(student[i], teachers[i], steep=not small, **options) for i in counted]
    return torch.stack(each).sum()


def divergence(
    student: Pair,
    teachers: Teachers,
    *,
    scales: tuple[float, float],
    kl: bool,
    by_rows: bool = True,
    by_columns: bool = False,
    steep: bool = False,
    pool: Pool = "max",
) -> Tensor:
    """Return the sum over rows of the divergence from the teacher's softmax to the student's.

    It can't be differentiated twice. Sums from tile to tile are float64.

    Args:
        student: its rows and columns, float32 or float64.
        teachers: rows and columns of each, in the same order; other widths are welcome.
        scales: factors of the student's and of the teachers' products.
        kl: the Kullback-Leibler divergence; if not, the cross-entropy.
        by_rows: count the softmaxes along rows.
        by_columns: add those along columns, with a sum over columns.
        steep: take off each row's largest score first; along rows only.
        pool: of several teachers' scores, entry by entry.
    """
    rows, columns = zip(*teachers)
    return _Divergence.apply(  # type: ignore[no-any-return, no-untyped-call]
        *student, scales, kl, by_rows, by_columns, steep, pool, *rows, *columns
    )


class _Pooled:
    """Scores of one teacher, or of several pooled entry by entry, by tiles."""

    def __init__(self, teachers: Teachers, scale: float, pool: Pool) -> None:
        self.each = [Scores(rows, columns, scale) for rows, columns in teachers]
        self.join = torch.maximum if pool == "max" else torch.minimum

    def tile(self, row: slice, column: slice, out: Tensor) -> Tensor:
        """Return one tile, written to `out`."""
        self.each[0].tile(row, column, out)
        for one in self.each[1:]:
            self.join(out, one.tile(row, column, torch.empty_like(out)), out=out)
        return out

    def bound(self) -> float:
        """Return what no score exceeds; NaN where embeddings hold one."""
        bounds = torch.tensor([one.bound() for one in self.each])
        return float(bounds.max())


class _PooledGradients:
    """Gradients of each teacher: a score's go to the teacher whose score it is.

    Equal ones share it.
    """

    def __init__(self, scores: _Pooled, wanted: Sequence[bool]) -> None:
        self.scores = scores
        number = len(scores.each)
        self.each = [
            Gradients(one, (wanted[i], wanted[number + i], False))
            for i, one in enumerate(scores.each)
        ]

    def add(self, row: slice, column: slice, tile: Tensor) -> None:
        """Count the gradient at the pooled scores of a tile."""
        if len(self.each) == 1:
            self.each[0].add(row, column, tile)
            return
        found = [one.tile(row, column, torch.empty_like(tile)) for one in self.scores.each]
        pooled = found[0].clone()
        for one in found[1:]:
            self.scores.join(pooled, one, out=pooled)
        for one in found:
            torch.eq(one, pooled, out=one)
        number = torch.stack(found).sum(dim=0) if len(found) > 2 else found[0] + found[1]
        for one, gradients in zip(found, self.each):
            gradients.add(row, column, one.mul_(tile).div_(number))

    def finish(self, ones: Tensor) -> list[Tensor | None]:
        """Return the gradients of all rows, then those of all columns."""
        found = [one.finish(ones) for one in self.each]
        return [one[0] for one in found] + [one[1] for one in found]


def _largest(scores: Scores | _Pooled, cut: Cut, scratch: Tensor, rows: int) -> Tensor:
    """Return the largest score of each row, `(rows, 1)`."""
    out = scratch.new_full((rows, 1), -torch.inf)
    for row, column in cut:
        tile = scores.tile(row, column, shaped(scratch, row, column))
        out[row] = torch.maximum(out[row], tile.amax(dim=1, keepdim=True))
    return out


class _Sums:
    """Of exponentials, and of teacher's exponentials times the gap to the student, by direction.

    Args:
        dim: 1: along rows, one sum a row; 0: along columns.
        size: rows or columns.
        like: a tensor on the device.
    """

    def __init__(self, dim: int, size: int, like: Tensor) -> None:
        self.dim = dim
        self.student, self.teacher, self.gap = widened(like.new_zeros(3, size))

    def add(self, part: slice, student: Tensor, teacher: Tensor, gap: Tensor) -> None:
        self.student[part] += student.sum(dim=self.dim)
        self.teacher[part] += teacher.sum(dim=self.dim)
        self.gap[part] += gap.sum(dim=self.dim)

    def value(self, kl: bool) -> Tensor:
        """Return the sum of the divergences."""
        each = self.gap / self.teacher + self.student.log()
        return (each - self.teacher.log()).sum() if kl else each.sum()

    def factors(self, weight: float) -> Tensor:
        """Return what exponentials of student and teacher, and the teacher's gap, count: `(3, n)`.

        They are the weight over the sum; the third one times the teacher's mean gap.
        """
        taught = weight / self.teacher
        return torch.stack([weight / self.student, taught, taught * self.gap / self.teacher])


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        columns: Tensor,
        scales: tuple[float, float],
        kl: bool,
        by_rows: bool,
        by_columns: bool,
        steep: bool,
        pool: Pool,
        *taught: Tensor,
    ) -> Tensor:
        inputs = [x.contiguous() for x in (rows, columns, *taught)]
        student = Scores(inputs[0], inputs[1], scales[0])
        teacher = _Pooled(_paired(inputs[2:]), scales[1], pool)
        cut = Cut(len(rows), len(columns))
        along, down = _Sums(1, len(rows), rows), _Sums(0, len(columns), rows)
        first, second, third = (cut.scratch(rows) for _ in range(3))
        kept: list[Tensor] = []
        off = [_largest(side, cut, first, len(rows)) for side in (student, teacher) if steep]
        budget = KEPT if any(ctx.needs_input_grad) else 0
        for row, column in cut:
            scored, learnt, gap = (shaped(one, row, column) for one in (first, second, third))
            student.tile(row, column, scored)
            teacher.tile(row, column, learnt)
            for tile, largest in zip((scored, learnt), off):
                tile.sub_(largest[row])
            budget -= 2 * scored.numel()
            if budget >= 0:  # the first ones, without a gap
                kept += [scored.clone(), learnt.clone()]
            _gap(scored, learnt, gap, kl)
            scored.exp_()
            gap.mul_(learnt.exp_())
            if by_rows:
                along.add(row, scored, learnt, gap)
            if by_columns:
                down.add(column, scored, learnt, gap)
        value = widened(rows.new_zeros(()))
        counted = [sums for sums, asked in ((along, by_rows), (down, by_columns)) if asked]
        for sums in counted:
            value = value + sums.value(kl)
        ctx.save_for_backward(*inputs, *off, *kept)
        ctx.numbers = len(inputs), len(off)
        ctx.scales, ctx.kl, ctx.pool = scales, kl, pool
        ctx.sums = (along if by_rows else None, down if by_columns else None)
        return value.to(rows.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        refuse_second_derivative()
        number, others = ctx.numbers
        inputs, off = ctx.saved_tensors[:number], ctx.saved_tensors[number : number + others]
        kept = ctx.saved_tensors[number + others :]
        like, learns = inputs[0], any(ctx.needs_input_grad[:2])
        teaches = any(ctx.needs_input_grad[8:])
        with torch.autocast(like.device.type, enabled=False):
            student = Scores(inputs[0], inputs[1], ctx.scales[0])
            teacher = _Pooled(_paired(inputs[2:]), ctx.scales[1], ctx.pool)
            cut = Cut(len(inputs[0]), len(inputs[1]))
            of_student = Gradients(student, (*ctx.needs_input_grad[:2], False))
            of_teacher = _PooledGradients(teacher, ctx.needs_input_grad[8:])
            along, down = (
                like.new_zeros(3, size) if sums is None else sums.factors(float(gradient)).to(like)
                for sums, size in zip(ctx.sums, (len(inputs[0]), len(inputs[1])))
            )
            scratch = [cut.scratch(like) for _ in range(4)]
            for number, (row, column) in enumerate(cut):
                scored, taught, gap, out = (shaped(one, row, column) for one in scratch)
                if 2 * number < len(kept):
                    scored.copy_(kept[2 * number])
                    taught.copy_(kept[2 * number + 1])
                else:
                    student.tile(row, column, scored)
                    teacher.tile(row, column, taught)
                    for tile, largest in zip((scored, taught), off):
                        tile.sub_(largest[row])
                counts = [(a[row, None], b[None, column]) for a, b in zip(along, down)]
                if teaches:
                    _gap(scored, taught, gap, ctx.kl)
                taught.exp_()
                torch.add(*counts[1], out=out)
                if teaches:
                    gap.mul_(out).mul_(taught)
                out.mul_(taught)
                if learns:
                    scored.exp_().mul_(torch.add(*counts[0]))
                    of_student.add(row, column, scored.sub_(out))
                if teaches:
                    torch.add(*counts[2], out=out).mul_(taught)
                    of_teacher.add(row, column, gap.sub_(out))
        ones = like.new_ones(())
        return (*of_student.finish(ones)[:2], *[None] * 6, *of_teacher.finish(ones))


def _paired(taught: Sequence[Tensor]) -> list[Pair]:
    """Return rows and columns of each teacher, of all rows and then all columns."""
    half = len(taught) // 2
    return list(zip(taught[:half], taught[half:]))


def _gap(scored: Tensor, taught: Tensor, out: Tensor, kl: bool) -> None:
    """Write what the teacher's probabilities are multiplied with, before the student's sum."""
    if kl:
        torch.sub(taught, scored, out=out)
    else:
        torch.neg(scored, out=out)
