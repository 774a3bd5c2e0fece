"""A student's embeddings are pulled to a teacher's, entry by entry."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from xlcm.losses.base import check_choice, full_precision
from xlcm.losses.similarities import Reduction, check_pairs


class FeatureDistillationLoss(nn.Module):
    """Smooth L1 between two embeddings: d^2 / (2 beta) for |d| < beta, else |d| - beta / 2.

    Unit vectors never leave the quadratic part of beta 4: there the mean over entries is
    $|s - t|^2 / (8 D)$, at most 1 / (2 D). Next to losses of order 1 it is all but nothing, and
    the more so the wider the embedding; `sum` takes the width out.

    Args:
        beta: where the square goes over into the absolute value.
        reduction: `mean`: over all b x D entries; `sum`: over D, then the mean over rows.
        detach_teacher: whether the teacher is taken as given; if not, both move.

    Source: NRCCR, Wang et al. 2022, https://arxiv.org/abs/2208.12526, feature-view distillation;
    beta 4, the mean and the gradient into both sides are the released code's.
    """

    def __init__(
        self,
        *,
        beta: Annotated[float, Field(gt=0)] = 4.0,
        reduction: Reduction = "mean",
        detach_teacher: bool = False,
    ) -> None:
        super().__init__()
        if beta <= 0:
            raise ValueError(f"beta must be above 0, got {beta}")
        check_choice("reduction", reduction, Reduction)
        self.beta = beta
        self.reduction = reduction
        self.detach_teacher = detach_teacher

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of this process's rows: a float32 scalar.

        Args:
            student: `(b, D)`.
            teacher: `(b, D)`; row i for row i.

        Raises:
            ValueError: for no rows or shapes that differ.
        """
        check_pairs(student=student, teacher=teacher)
        if self.detach_teacher:
            teacher = teacher.detach()
        loss = F.smooth_l1_loss(student, teacher, beta=self.beta)
        return loss * student.shape[1] if self.reduction == "sum" else loss
