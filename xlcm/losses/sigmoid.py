"""Sigmoid loss: each image and text is asked on its own whether they belong together."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from xlcm.distributed import gather
from xlcm.losses.base import PairLoss, check_choice, full_precision
from xlcm.losses.present import Present
from xlcm.losses.score_tiles import (
    Cut,
    Gradients,
    Right,
    Scores,
    Tiled,
    in_tiles,
    refuse_second_derivative,
    shaped,
    widened,
)

FAR = 40.0
"""Logits from which on softplus is the identity, in float64 too."""


class SigmoidLoss(PairLoss):
    r"""Binary cross-entropy of all pairs of an image and a text, without a softmax over the batch.

    $-\frac{1}{B} \sum_{ij} \log \sigma(z_{ij} (s\, x_i y_j + b))$ with $z$ 1 for pairs of one
    `group` and -1 for all others; s is the scale, b the bias. The value is the sum over columns and
    the mean over local rows, in [0, inf); $B \ln 2$ where all logits are 0.

    Nearly all pairs are wrong ones. So the model needs a bias that says so from the start:
    `model.bias: -10` and a scale of 10 (`model.temperature: 0.1`) as in the paper. Without a bias
    it is 0.

    Large batches are computed in tiles (`xlcm/losses/tiled.py`), gradients in the same sweep as the
    value: 3 products instead of 3 and many passes over a score matrix that never exists. Only the
    plain form can be differentiated twice.

    Args:
        tiled: `auto`: in tiles from 1,024 x 1,024 scores a process on; measured faster.

    Source: SigLIP, Zhai et al. 2023, https://arxiv.org/abs/2303.15343, algorithm 1. Several right
    texts of one image are ours; the paper has one.
    """

    uses_bias: ClassVar[bool] = True
    takes_present: ClassVar[bool] = True

    def __init__(self, *, tiled: Tiled = "auto") -> None:
        super().__init__()
        check_choice("tiled", tiled, Tiled)
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

        `bias ()` may be None: 0. `present (b,)` bool says which rows have a text; the others,
        images too, are left out of rows, columns and mean (see `Present`). None: all have one.
        """
        self.check(image, text, group, scale, bias)
        if bias is not None and bias.numel() != 1:
            raise ValueError(f"bias must be one number for all pairs, got {tuple(bias.shape)}")
        columns, everyone, rows = gather(text), gather(group), len(image)
        some = None if present is None else Present(present, rows)
        if some is not None:
            image, columns = some.pair(image, columns)
            group, everyone = some.pair(group, everyone)
        offset = image.new_zeros(()) if bias is None else bias
        if in_tiles(self.tiled, len(image), len(columns)):
            factor = scale if isinstance(scale, Tensor) else image.new_tensor(scale)
            total: Tensor = _Sigmoid.apply(  # type: ignore[no-untyped-call]
                image, columns, factor, offset, group, everyone
            )
        else:
            logits = scale * image @ columns.T + offset
            right = group[:, None] == everyone
            total = F.softplus(torch.where(right, -logits, logits), threshold=FAR).sum()
        return total / rows if some is None else some.mean(total)


class _Sigmoid(torch.autograd.Function):
    """The sum over rows and columns. Its gradients are made beside it: no pair waits for others."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        columns: Tensor,
        scale: Tensor,
        bias: Tensor,
        row_group: Tensor,
        column_group: Tensor,
    ) -> Tensor:
        scores = Scores(rows.contiguous(), columns.contiguous(), float(scale))
        cut = Cut(len(rows), len(columns))
        right = Right(row_group, column_group, cut)
        offset = float(bias)
        total = widened(rows.new_zeros(()))
        of_bias = torch.zeros_like(total)
        found = Gradients(scores, ctx.needs_input_grad[:3])
        first, second = cut.scratch(rows), cut.scratch(rows)
        for row, column in cut:
            logits = scores.tile(row, column, shaped(first, row, column)).add_(offset)
            other = shaped(second, row, column)
            at, to = right(row, column)
            places = at * logits.shape[1] + to
            _negate(logits, places)
            torch.ops.aten.softplus.out(logits, 1, FAR, out=other)
            total += widened(other.sum(dim=1)).sum()
            if any(ctx.needs_input_grad):
                torch.sigmoid(logits, out=other)
                _negate(other, places)
                if ctx.needs_input_grad[3]:
                    of_bias += widened(other.sum(dim=1)).sum()
                found.add(row, column, other)
        of_rows, of_columns, of_scale = found.finish(scale)
        ctx.save_for_backward(of_rows, of_columns, of_scale, of_bias.to(bias.dtype).expand_as(bias))
        return total.to(rows.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        refuse_second_derivative()
        found = [None if one is None else one * gradient for one in ctx.saved_tensors]
        return (*found, None, None)


def _negate(tile: Tensor, places: Tensor) -> None:
    flat = tile.view(-1)
    flat[places] = -flat[places]
