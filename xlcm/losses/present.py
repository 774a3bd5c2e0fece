"""Losses of a batch of which some rows lack what is compared: as if those were not there."""

from __future__ import annotations

import torch
from torch import Tensor

from xlcm.distributed import gather


class Present:
    r"""Which rows of the global batch count; the others are neither rows nor columns.

    Let process r of W hold b rows, of which those present have losses that sum to $s_r$, and let N
    of all $B = W b$ rows be present. The loss of the global batch is $\sum_r s_r / N$. The mean
    over processes of shares $x_r$ is $\sum_r x_r / W$, hence $x_r = W s_r / N = (s_r / b)(B / N)$:
    the mean over local rows, with 0 for absent ones, over the share of rows that are present in
    the global batch. The factor undoes that absent rows count in the mean; no gather is repaired.
    A process without a present row has the share 0, and so have all if there is none anywhere.

    Args:
        present: `(b,)` bool.
        rows: b, to check it.

    Attributes:
        here: `(b,)` bool, of the local rows.
        everywhere: `(B,)` bool, of the columns of all processes.

    Raises:
        ValueError: for another shape or type.
    """

    def __init__(self, present: Tensor, rows: int) -> None:
        if present.shape != (rows,) or present.dtype != torch.bool:
            raise ValueError(
                f"present must be one bool a row, ({rows},), got {tuple(present.shape)} "
                f"{present.dtype}"
            )
        self.here = present
        self.everywhere = gather(present)

    def matrix(self, entries: Tensor) -> Tensor:
        """Return of `(b, B)` the rows and columns that count."""
        return entries[self.here][:, self.everywhere]

    def pair(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Return of `(b, ...)` local and `(B, ...)` gathered rows those that count."""
        return rows[self.here], columns[self.everywhere]

    def mean(self, losses: Tensor) -> Tensor:
        """Return this process's share `()` of the mean over all present rows.

        Args:
            losses: one of each present local row.
        """
        each = len(self.here) / len(self.everywhere)  # local rows as a share of all: 1 / W
        return losses.sum() / (self.everywhere.sum().clamp(min=1) * each)
