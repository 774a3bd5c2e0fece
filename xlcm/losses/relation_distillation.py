"""Relations between one pair of sides are learnt from those between another pair of sides."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from xlcm.distributed import gather, local_rows, world
from xlcm.losses.base import check_choice, full_precision
from xlcm.losses.score_tiles import Tiled, in_tiles
from xlcm.losses.similarities import (
    Reduction,
    both_ways,
    check_pairs,
    check_rows,
    own_columns,
    reduce,
)
from xlcm.losses.tiled_divergence import divergences

Direction = Literal["both", "left_to_right", "right_to_left"]


class RelationDistillationLoss(nn.Module):
    """How `left` relates to `right` inside the batch learns how a teacher's two sides relate.

    With a, b the teacher's sides and v, t the student's,
    $p_{i} = softmax_j(a_i b_j / T)$, $q_{i} = softmax_j(v_i t_j / T)$: the mean over rows of
    $KL(p_i || q_i)$, and the same with the sides exchanged. In [0, inf), 0 when the relations are
    equal. No gradient reaches the teacher, unless asked for.

    The sides may be of any kind: source and target captions teach images and target captions;
    with one side given twice it is a relation inside one kind.

    Large batches are computed in tiles (`xlcm/losses/tiled_divergence.py`), without any score
    matrix; that form can't be differentiated twice. A `teacher_mix` and a bonus are computed
    plainly at any size.

    Args:
        temperature: T, of the student, and of the teacher where it has none of its own.
        teacher_temperature: of the teacher's distribution; None: `temperature`. With another one
            equal similarities no longer have a loss of 0.
        direction: `left_to_right`: the distributions of each left row over all right ones;
            `right_to_left`: the other way.
        teacher_mix: mu in (1 - mu) p + mu I: mass moved from the teacher's distribution to
            the row's own column; 1 trusts the pairs alone.
        detach_teacher: whether the teacher is taken as given; if not, both move, and equal
            distributions that say nothing are a way out.
        reduction: of the two directions; one direction alone is itself.
        tiled: `auto`: in tiles from 1,024 x 1,024 scores a process on; `always` from the first.

    Source: a reconstruction. CL2CM, Wang et al. 2024, https://arxiv.org/abs/2312.08984, transfers
    relations of a cross-lingual network to a cross-modal one; this form, the temperatures and the
    mix are ours.
    """

    def __init__(
        self,
        *,
        temperature: Annotated[float, Field(gt=0)] = 0.07,
        teacher_temperature: Annotated[float, Field(gt=0)] | None = None,
        direction: Direction = "both",
        teacher_mix: Annotated[float, Field(ge=0, le=1)] = 0.0,
        detach_teacher: bool = True,
        reduction: Reduction = "mean",
        tiled: Tiled = "auto",
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        if teacher_temperature is not None and teacher_temperature <= 0:
            raise ValueError(f"teacher_temperature must be above 0, got {teacher_temperature}")
        if not 0 <= teacher_mix <= 1:
            raise ValueError(f"teacher_mix must be in [0, 1], got {teacher_mix}")
        check_choice("direction", direction, Direction)
        check_choice("reduction", reduction, Reduction)
        check_choice("tiled", tiled, Tiled)
        if teacher_mix == 1 and not detach_teacher:
            raise ValueError(
                "teacher_mix=1 leaves nothing of the teacher that a gradient could reach: set "
                "detach_teacher=true, or a smaller teacher_mix"
            )
        if teacher_mix > 0 and tiled == "always":
            raise ValueError(
                f"teacher_mix={teacher_mix} holds whole score matrices, tiled='always' can't be "
                "had: leave `tiled` out, or set teacher_mix=0"
            )
        self.temperature = temperature
        self.teacher_temperature = teacher_temperature or temperature
        self.direction = direction
        self.teacher_mix = teacher_mix
        self.detach_teacher = detach_teacher
        self.reduction = reduction
        self.tiled: Tiled = tiled

    @full_precision
    def forward(
        self,
        left: Tensor,
        right: Tensor,
        teacher_left: Tensor,
        teacher_right: Tensor,
        bonus: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of this process's rows: a float32 scalar.

        Its mean over processes is the loss of the global batch.

        Args:
            left: `(b, D)`, the student's, L2-normalised.
            right: `(b, D)`, the student's, L2-normalised; row i belongs to left row i.
            teacher_left: `(b, E)`, L2-normalised; stands for `left`.
            teacher_right: `(b, E)`, L2-normalised; stands for `right`.
            bonus: `(b, B)`, added to the teacher's similarities of local left rows to all right
                ones, before its temperature; without gradient.

        Raises:
            ValueError: for no rows or shapes that don't fit.
        """
        check_pairs(left=left, right=right)
        check_pairs(teacher_left=teacher_left, teacher_right=teacher_right)
        check_rows(left=left, teacher_left=teacher_left)
        if bonus is not None and self.tiled == "always":
            raise ValueError(
                "a bonus is a whole matrix of scores, tiled='always' can't be had with it: leave "
                "`tiled` out"
            )
        plain = bonus is not None or self.teacher_mix > 0
        if not plain and in_tiles(self.tiled, len(left), world() * len(left)):
            return self._in_tiles(left, right, teacher_left, teacher_right)
        scale = 1.0 / self.teacher_temperature
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detach_teacher):
            taught = both_ways(teacher_left, teacher_right, scale=scale)
            if bonus is not None:
                bonus = _checked(bonus, taught[0])
                taught = taught[0] + scale * bonus, taught[1] + scale * _turned(bonus)
        sides = both_ways(left, right, scale=1.0 / self.temperature)
        return reduce([self._diverge(taught[i], sides[i]) for i in self._counted], self.reduction)

    @property
    def _counted(self) -> tuple[int, ...]:
        return {"left_to_right": (0,), "right_to_left": (1,)}.get(self.direction, (0, 1))

    def _in_tiles(
        self, left: Tensor, right: Tensor, teacher_left: Tensor, teacher_right: Tensor
    ) -> Tensor:
        taught = [side.to(left.dtype) for side in (teacher_left, teacher_right)]
        if self.detach_teacher:
            taught = [side.detach() for side in taught]
        total = divergences(
            ((left, gather(right)), (right, gather(left))),
            ([(taught[0], gather(taught[1]))], [(taught[1], gather(taught[0]))]),
            scales=(1.0 / self.temperature, 1.0 / self.teacher_temperature),
            kl=True,
            counted=self._counted,
        )
        directions = len(self._counted) if self.reduction == "mean" else 1
        return total / (len(left) * directions)

    def _diverge(self, teacher: Tensor, student: Tensor) -> Tensor:
        given = F.log_softmax(student, dim=1)
        if not self.detach_teacher:  # a probability of 0 would have no gradient: of logarithms
            wanted = self._mixed_logarithms(F.log_softmax(teacher, dim=1))
            return F.kl_div(given, wanted, reduction="batchmean", log_target=True)
        wanted = teacher.softmax(dim=1)
        if self.teacher_mix > 0:
            wanted = torch.lerp(wanted, own_columns(wanted), self.teacher_mix)
        # Of probabilities and not of their logarithms: a mix of 1 has zeros, and 0 ln 0 counts 0.
        return F.kl_div(given, wanted, reduction="batchmean")

    def _mixed_logarithms(self, teacher: Tensor) -> Tensor:
        if self.teacher_mix == 0:
            return teacher
        rest = teacher + math.log1p(-self.teacher_mix)
        own = own_columns(teacher).bool()
        return torch.where(
            own, torch.logaddexp(rest, rest.new_tensor(math.log(self.teacher_mix))), rest
        )


def _checked(bonus: Tensor, similarity: Tensor) -> Tensor:
    if bonus.shape != similarity.shape:
        raise ValueError(
            f"bonus {tuple(bonus.shape)} must be (local rows, rows of all processes): "
            f"{tuple(similarity.shape)}"
        )
    return bonus.detach()


def _turned(matrix: Tensor) -> Tensor:
    """Return `(b, B)`, local right rows by all left ones, of `(b, B)` the other way round."""
    return gather(matrix)[:, local_rows(len(matrix), matrix.device)].T
