"""Divergence of a student's in-batch softmaxes from a teacher's, without either's score matrix.

As in `xlcm/losses/tiled.py`, one sweep over tiles gives the sums that the value is made of, and a
second one the gradients of student and teacher. With U the cost of one product it takes 4 U for the
student, and 2 U for the teacher or, where it gets a gradient, 4 U.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
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


def fits(student: Pair, teacher: Pair, *, scales: tuple[float, float]) -> bool:
    """Return whether no score is so large that its exponential might leave float32.

    Unit vectors fit up to scales of 50.
    """
    bounds = (Scores(*pair, scale).bound() for pair, scale in zip((student, teacher), scales))
    return all(bound <= STEEPEST for bound in bounds)


def divergences(
    student: tuple[Pair, Pair],
    teacher: tuple[Pair, Pair],
    *,
    scales: tuple[float, float],
    kl: bool,
    counted: tuple[int, ...],
) -> Tensor:
    """Return the sum over rows and counted directions: 0 and 1, those of the two pairs.

    On one process the second pair must be the first one the other way round: the same tiles serve
    both. Scores that do not fit (`fits`) are computed plainly.
    """
    if not all(fits(student[i], teacher[i], scales=scales) for i in counted):
        return torch.stack([_plain(student[i], teacher[i], scales, kl) for i in counted]).sum()
    if world() == 1:
        ways = 0 in counted, 1 in counted
        return divergence(
            student[0], teacher[0], scales=scales, kl=kl, by_rows=ways[0], by_columns=ways[1]
        )
    each = [divergence(student[i], teacher[i], scales=scales, kl=kl) for i in counted]
    return torch.stack(each).sum()


def _plain(student: Pair, teacher: Pair, scales: tuple[float, float], kl: bool) -> Tensor:
    given, wanted = (
        F.log_softmax(scale * rows @ columns.T, dim=1)
        for scale, (rows, columns) in zip(scales, (student, teacher))
    )
    if kl:
        return F.kl_div(given, wanted, reduction="sum", log_target=True)
    return -(wanted.exp() * given).sum()


def divergence(
    student: Pair,
    teacher: Pair,
    *,
    scales: tuple[float, float],
    kl: bool,
    by_rows: bool = True,
    by_columns: bool = False,
) -> Tensor:
    """Return the sum over rows of the divergence from the teacher's softmax to the student's.

    It can't be differentiated twice. Sums from tile to tile are float64.

    Args:
        student: its rows and columns, float32 or float64.
        teacher: its rows and columns, in the same order; another width is welcome.
        scales: factors of the student's and the teacher's products.
        kl: the Kullback-Leibler divergence; if not, the cross-entropy.
        by_rows: count the softmaxes along rows.
        by_columns: add those along columns, with a sum over columns.
    """
    return _Divergence.apply(  # type: ignore[no-any-return, no-untyped-call]
        *student, *teacher, scales, kl, by_rows, by_columns
    )


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
        taught_rows: Tensor,
        taught_columns: Tensor,
        scales: tuple[float, float],
        kl: bool,
        by_rows: bool,
        by_columns: bool,
    ) -> Tensor:
        inputs = [x.contiguous() for x in (rows, columns, taught_rows, taught_columns)]
        student = Scores(inputs[0], inputs[1], scales[0])
        teacher = Scores(inputs[2], inputs[3], scales[1])
        cut = Cut(len(rows), len(columns))
        along, down = _Sums(1, len(rows), rows), _Sums(0, len(columns), rows)
        first, second, third = (cut.scratch(rows) for _ in range(3))
        kept: list[Tensor] = []
        budget = KEPT if any(ctx.needs_input_grad) else 0
        for row, column in cut:
            scored, taught, gap = (shaped(one, row, column) for one in (first, second, third))
            student.tile(row, column, scored)
            teacher.tile(row, column, taught)
            budget -= 2 * scored.numel()
            if budget >= 0:  # the first ones, without a gap
                kept += [scored.clone(), taught.clone()]
            _gap(scored, taught, gap, kl)
            scored.exp_()
            gap.mul_(taught.exp_())
            if by_rows:
                along.add(row, scored, taught, gap)
            if by_columns:
                down.add(column, scored, taught, gap)
        value = widened(rows.new_zeros(()))
        counted = [sums for sums, asked in ((along, by_rows), (down, by_columns)) if asked]
        for sums in counted:
            value = value + sums.value(kl)
        ctx.save_for_backward(*inputs, *kept)
        ctx.scales, ctx.kl = scales, kl
        ctx.sums = (along if by_rows else None, down if by_columns else None)
        return value.to(rows.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        refuse_second_derivative()
        inputs, kept = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
        needs, like = ctx.needs_input_grad, inputs[0]
        with torch.autocast(like.device.type, enabled=False):
            student = Scores(inputs[0], inputs[1], ctx.scales[0])
            teacher = Scores(inputs[2], inputs[3], ctx.scales[1])
            cut = Cut(len(inputs[0]), len(inputs[1]))
            of_student = Gradients(student, (needs[0], needs[1], False))
            of_teacher = Gradients(teacher, (needs[2], needs[3], False))
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
                counts = [(a[row, None], b[None, column]) for a, b in zip(along, down)]
                if needs[2] or needs[3]:
                    _gap(scored, taught, gap, ctx.kl)
                taught.exp_()
                torch.add(*counts[1], out=out)
                if needs[2] or needs[3]:
                    gap.mul_(out).mul_(taught)
                out.mul_(taught)
                if needs[0] or needs[1]:
                    scored.exp_().mul_(torch.add(*counts[0]))
                    of_student.add(row, column, scored.sub_(out))
                if needs[2] or needs[3]:
                    torch.add(*counts[2], out=out).mul_(taught)
                    of_teacher.add(row, column, gap.sub_(out))
        ones = like.new_ones(())
        found = (*of_student.finish(ones)[:2], *of_teacher.finish(ones)[:2])
        return (*found, None, None, None, None)


def _gap(scored: Tensor, taught: Tensor, out: Tensor, kl: bool) -> None:
    """Write what the teacher's probabilities are multiplied with, before the student's sum."""
    if kl:
        torch.sub(taught, scored, out=out)
    else:
        torch.neg(scored, out=out)
