"""Symmetric InfoNCE between images and texts, with several right answers a row."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from xlcm.distributed import gather
from xlcm.losses.base import PairLoss, check_choice, full_precision
from xlcm.losses.present import Present
from xlcm.losses.similarities import Reduction


class InfoNCELoss(PairLoss):
    """Cross-entropy from each image to the texts of all processes, and from each text back.

    Rows that share a `group` (captions of one image, in any language) share the target mass: they
    are right answers and not false negatives. The value is the mean over local rows, in [0, inf);
    ln(columns) a direction when all similarities are equal.

    Args:
        label_smoothing: share of the target mass that is spread over all columns alike.
        reduction: of the two directions; `sum` is twice the `mean`, as some papers have it.

    Source: Radford et al. 2021, https://arxiv.org/abs/2103.00020, figure 3; several right answers
    as in L_out of Khosla et al. 2020, https://arxiv.org/abs/2004.11362, equation 2.
    """

    takes_present: ClassVar[bool] = True

    def __init__(
        self,
        *,
        label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
        check_choice("reduction", reduction, Reduction)
        self.label_smoothing = label_smoothing
        self.reduction = reduction

    @full_precision
    def forward(
        self,
        image: Tensor,
        text: Tensor,
        *,
        group: Tensor,
        scale: Tensor | float,
        bias: Tensor | None = None,
        present: Tensor | None = None,
    ) -> Tensor:
        """Return the mean loss of this process's rows; other arguments as in `PairLoss.forward`.

        `present (b,)` bool says which rows have a text; the others, images too, are left out of
        rows, columns and mean (see `Present`). None: all have one.
        """
        self.check(image, text, group, scale, bias)
        some = None if present is None else Present(present, len(group))
        right = (group[:, None] == gather(group)).to(image.dtype)
        to_text = self._cross_entropy(scale * image, gather(text), right, some)
        to_image = self._cross_entropy(scale * text, gather(image), right, some)
        both = to_text + to_image
        return both if self.reduction == "sum" else both / 2

    def _cross_entropy(
        self, rows: Tensor, columns: Tensor, right: Tensor, some: Present | None
    ) -> Tensor:
        logits = rows @ columns.T
        if some is not None:
            logits, right = some.matrix(logits), some.matrix(right)
        target = right / right.sum(dim=1, keepdim=True)  # each row finds itself: never 0 / 0
        if some is None:
            return F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)
        each = F.cross_entropy(
            logits, target, label_smoothing=self.label_smoothing, reduction="none"
        )
        return some.mean(each)
