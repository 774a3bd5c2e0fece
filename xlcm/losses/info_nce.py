"""Symmetric InfoNCE between images and texts, with several right answers a row."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from xlcm.distributed import gather, world
from xlcm.losses.base import PairLoss, check_choice, full_precision
from xlcm.losses.present import Present
from xlcm.losses.score_tiles import Tiled, in_tiles
from xlcm.losses.similarities import Reduction
from xlcm.losses.tiled import cross_entropy


class InfoNCELoss(PairLoss):
    """Cross-entropy from each image to the texts of all processes, and from each text back.

    Rows that share a `group` (captions of one image, in any language) share the target mass: they
    are right answers and not false negatives. The value is the mean over local rows, in [0, inf);
    ln(columns) a direction when all similarities are equal.

    Large batches are computed in tiles (`xlcm/losses/tiled.py`): the same value and gradients
    without the score matrix, in memory that grows with the batch and not with its square. Only
    the plain form can be differentiated twice.

    Args:
        label_smoothing: share of the target mass that is spread over all columns alike.
        reduction: of the two directions; `sum` is twice the `mean`, as some papers have it.
        tiled: `auto`: in tiles from 1,024 x 1,024 scores a process on; measured faster.

    Source: Radford et al. 2021, https://arxiv.org/abs/2103.00020, figure 3; several right answers
    as in L_out of Khosla et al. 2020, https://arxiv.org/abs/2004.11362, equation 2.
    """

    takes_present: ClassVar[bool] = True

    def __init__(
        self,
        *,
        label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        reduction: Reduction = "mean",
        tiled: Tiled = "auto",
    ) -> None:
        super().__init__()
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
        check_choice("reduction", reduction, Reduction)
        check_choice("tiled", tiled, Tiled)
        self.label_smoothing = label_smoothing
        self.reduction = reduction
        self.tiled: Tiled = tiled

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
        everyone = gather(group)
        compute = self._in_tiles if in_tiles(self.tiled, len(group), len(everyone)) else self._plain
        both = compute(image, text, scale, group, everyone, some)
        return both if self.reduction == "sum" else both / 2

    def _in_tiles(
        self,
        image: Tensor,
        text: Tensor,
        scale: Tensor | float,
        group: Tensor,
        everyone: Tensor,
        some: Present | None,
    ) -> Tensor:
        """Return both directions; the tiles of local images and all texts serve the two."""
        sides, rows = (image, gather(text)), len(group)
        if some is not None:
            group, everyone = some.pair(group, everyone)
            sides = some.pair(*sides)
        total = cross_entropy(
            *sides,
            scale=scale,
            row_group=group,
            column_group=everyone,
            smoothing=self.label_smoothing,
            both=True,
        )
        return total / rows if some is None else some.mean(total)

    def _plain(
        self,
        image: Tensor,
        text: Tensor,
        scale: Tensor | float,
        group: Tensor,
        everyone: Tensor,
        some: Present | None,
    ) -> Tensor:
        """Return both directions; on one process one product serves the two."""
        right = (group[:, None] == everyone).to(image.dtype)
        forth = scale * image @ gather(text).T
        back = forth.T if world() == 1 else scale * text @ gather(image).T
        return self._cross_entropy(forth, right, some) + self._cross_entropy(back, right, some)

    def _cross_entropy(self, logits: Tensor, right: Tensor, some: Present | None) -> Tensor:
        if some is not None:
            logits, right = some.matrix(logits), some.matrix(right)
        target = right / right.sum(dim=1, keepdim=True)  # each row finds itself: never 0 / 0
        if some is None:
            return F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)
        each = F.cross_entropy(
            logits, target, label_smoothing=self.label_smoothing, reduction="none"
        )
        return some.mean(each)
