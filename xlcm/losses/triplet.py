"""Triplet ranking with a margin: hardest, semi-hard or all negatives of the global batch."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from xlcm.distributed import gather, local_rows, world
from xlcm.losses.base import PairLoss, check_choice, full_precision
from xlcm.losses.similarities import Reduction

Negatives = Literal["hardest", "semi_hard", "all"]
Direction = Literal["both", "image_to_text", "text_to_image"]


class TripletLoss(PairLoss):
    """A pair must be more similar than its negatives by a margin.

    For a row r with its own column p and a negative column n, the violation is
    `max(0, margin + s(r, n) - s(r, p))` on cosines s; the scale does not enter. Negatives are the
    columns of all processes that belong to another `group`. A row without any gives 0. On one
    process both directions read one matrix of similarities, unless negatives are semi-hard.

    Args:
        margin: between the similarities, in cosine.
        negatives: which columns count in a row: `hardest`, the most similar negative;
            `semi_hard`, the most similar one among those less similar than the pair (0 if there
            is none); `all`, every negative.
        reduction: `mean`: the mean over rows of the row's mean violation over its counted
            negatives, in [0, 2 + margin] a direction; the released code of NRCCR divides the sum
            by B for the hardest negatives, which is the same, but for all of them by B * B,
            with the pair itself in the count. `sum`: the sum of the violations over
            rows and counted negatives of the *global* batch, as the papers have it; the
            gradient grows with the batch, so a learning rate fits one batch size only.
        direction: `image_to_text` searches negative texts for each image, `text_to_image` the
            other way; `both` adds the two.
        legacy_same_image: count a row's own column alone as no negative, so that another caption
            of the same image is one, as in the released code of NRCCR.

    Source: Faghri et al. 2018, https://arxiv.org/abs/1707.05612, section 2 (sum of hinges: `all`;
    max of hinges: `hardest`; both with `sum`, margin 0.2); semi-hard negatives: Schroff et al.
    2015, https://arxiv.org/abs/1503.03832, section 3.2, whose margin on squared distances is
    twice the one on cosines. Neither paper excludes other captions of the same image. NRCCR, Wang
    et al. 2022, https://arxiv.org/abs/2208.12526: `hardest`, `sum`, margin 0.2.
    """

    uses_scale = False

    def __init__(
        self,
        *,
        margin: Annotated[float, Field(ge=0)] = 0.2,
        negatives: Negatives = "hardest",
        reduction: Reduction = "mean",
        direction: Direction = "both",
        legacy_same_image: bool = False,
    ) -> None:
        super().__init__()
        if margin < 0:
            raise ValueError(f"margin must be at least 0, got {margin}")
        check_choice("negatives", negatives, Negatives)
        check_choice("reduction", reduction, Reduction)
        check_choice("direction", direction, Direction)
        self.margin = margin
        self.negatives = negatives
        self.reduction = reduction
        self.direction = direction
        self.legacy_same_image = legacy_same_image

    @full_precision
    def forward(
        self,
        image: Tensor,
        text: Tensor,
        *,
        group: Tensor,
        scale: Tensor | float = 1.0,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Return this process's share; arguments as in `PairLoss.forward`, `scale` unused.

        Its mean over processes is the loss of the global batch, for `sum` as for `mean`.
        """
        self.check(image, text, group, scale, bias)
        same = self._never_negative(group)
        pair = (image * text).sum(dim=1)
        matrix = self._shared(image, text)
        loss = image.new_zeros(())
        if self.direction != "text_to_image":
            loss = loss + self._one_way(image, gather(text), pair, same, matrix)
        if self.direction != "image_to_text":
            back = None if matrix is None else matrix.T
            loss = loss + self._one_way(text, gather(image), pair, same, back)
        return loss

    def _never_negative(self, group: Tensor) -> Tensor:
        everyone = gather(group)
        if self.legacy_same_image:
            mine = local_rows(len(group), group.device)
            return mine[:, None] == torch.arange(len(everyone), device=group.device)
        return group[:, None] == everyone

    def _shared(self, image: Tensor, text: Tensor) -> Tensor | None:
        """Return similarities that serve both directions, if there are any.

        Several processes hold other rows than columns. Semi-hard negatives are looked for by
        crossing out what is no candidate, which differs from direction to direction.
        """
        if world() > 1 or self.negatives == "semi_hard":
            return None
        if self.negatives == "all":
            return image @ text.T
        return image.detach() @ text.detach().T

    def _one_way(
        self, rows: Tensor, columns: Tensor, pair: Tensor, same: Tensor, matrix: Tensor | None
    ) -> Tensor:
        one_a_row = self._all if self.negatives == "all" else self._chosen
        mean = one_a_row(rows, columns, pair, same, matrix).mean()
        # The mean over processes of (mean over local rows x rows of the global batch) is the sum
        # over the global batch: the factor belongs to the sum, it repairs no gather.
        return mean * len(columns) if self.reduction == "sum" else mean

    def _all(
        self, rows: Tensor, columns: Tensor, pair: Tensor, same: Tensor, matrix: Tensor | None
    ) -> Tensor:
        similarity = rows @ columns.T if matrix is None else matrix
        # The margin goes into (b,) numbers: one matrix less.
        violation = (similarity - (pair - self.margin)[:, None]).clamp(min=0)
        total = violation.masked_fill(same, 0.0).sum(dim=1)
        if self.reduction == "sum":
            return total
        return total / (len(columns) - same.sum(dim=1)).clamp(min=1)

    def _chosen(
        self, rows: Tensor, columns: Tensor, pair: Tensor, same: Tensor, matrix: Tensor | None
    ) -> Tensor:
        similarity = rows.detach() @ columns.detach().T if matrix is None else matrix
        similarity.masked_fill_(same, -torch.inf)  # of a shared matrix the same cells both times
        if self.negatives == "semi_hard":
            similarity.masked_fill_(similarity >= pair.detach()[:, None], -torch.inf)
        value, index = similarity.max(dim=1)
        found = value != -torch.inf  # a NaN counts as found, and is seen in the loss
        # Only the chosen column of each row enters the graph: (b, D) to keep instead of (b, B).
        hardest = (rows * columns[index]).sum(dim=1)
        return (hardest - pair + self.margin).clamp(min=0).masked_fill(~found, 0.0)
