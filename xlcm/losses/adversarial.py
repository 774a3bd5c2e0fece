"""What a discriminator learns, and what fools it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from xlcm.losses.base import full_precision


@full_precision
def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return how badly a discriminator tells the two apart: a float32 scalar in [0, inf).

    Half of each side's binary cross-entropy, real as 1 and fake as 0; ln 2 for logits of 0. With
    several logits a row all of them carry the row's label.

    Args:
        real: `(b, k)` logits of what it shall call real (captions of the source language).
        fake: `(b, k)` logits of the others.

    Raises:
        ValueError: for no logits or shapes that are not `(b, k)`.

    Source: NRCCR, Wang et al. 2022, https://arxiv.org/abs/2208.12526, language-agnostic features;
    two logits with the same label are the released code's.
    """
    return (_cross_entropy("real", real, 1.0) + _cross_entropy("fake", fake, 0.0)) / 2


@full_precision
def fooling_loss(fake: Tensor) -> Tensor:
    """Return how surely a discriminator knows the fake: a float32 scalar, its mean over logits.

    Cross-entropy towards *real*: its gradient stays large while the discriminator wins, unlike that
    of the negated `discriminator_loss`.

    Args:
        fake: `(b, k)` logits of a discriminator that this loss does not train.

    Raises:
        ValueError: for no logits or another shape.

    Source: as `discriminator_loss`; the form is the non-saturating one of Goodfellow et al. 2014,
    https://arxiv.org/abs/1406.2661, section 3.
    """
    return _cross_entropy("fake", fake, 1.0)


def _cross_entropy(name: str, logits: Tensor, label: float) -> Tensor:
    if logits.ndim != 2 or logits.numel() == 0:
        raise ValueError(
            f"{name} must be logits (batch, k) of at least one, got {tuple(logits.shape)}"
        )
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))
