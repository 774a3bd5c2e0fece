"""Tells the language of a caption from its tokens: the opponent of language-agnostic features."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from xlcm.encoders.attention_block import blank, summary
from xlcm.encoders.pooling import MeanPooling

CHANNELS, KERNEL, BLOCKS = 128, 5, 3


class Discriminator(nn.Module):
    """Token states of a caption -> logits that say "source language".

    `weak` is one linear layer on the mean of the tokens, `not_so_weak` a network of 256 and 128
    channels on it, and `strong` convolves the tokens before it averages.

    Args:
        width: size of a token.
        strength: `weak`, `not_so_weak` or `strong`.
        logits: outputs, which all get the same label; 2 as released, and 1 says the same.
        legacy_padding: average, and convolve, over padding too, as the released code does.

    Attributes:
        needs_tokens: whether `forward` takes tokens with their mask (`strong`) rather than means.

    Source: NRCCR, Wang et al. 2022, https://arxiv.org/abs/2208.12526; sizes as in the released
    code (strong for VATEX, else not so weak). The masks that keep padding out are ours.
    """

    def __init__(
        self,
        width: int,
        *,
        strength: Literal["weak", "not_so_weak", "strong"] = "not_so_weak",
        logits: Annotated[int, Field(gt=0)] = 2,
        legacy_padding: bool = False,
    ) -> None:
        super().__init__()
        self.width = width
        self.needs_tokens = strength == "strong"
        self.legacy_padding = legacy_padding
        self.pooling = MeanPooling(width)
        self.blocks = nn.ModuleList()
        if strength == "strong":
            self.narrow = nn.Conv1d(width, CHANNELS, 1)
            self.blocks.extend(_ResidualBlock() for _ in range(BLOCKS))
            self.classify: nn.Module = nn.Linear(CHANNELS, logits)
        elif strength == "weak":
            self.classify = nn.Linear(width, logits)
        elif strength == "not_so_weak":
            self.classify = nn.Sequential(
                nn.Linear(width, 256), nn.Tanh(), nn.Linear(256, 128), nn.Tanh(),
                nn.Linear(128, logits),
            )  # fmt: skip
        else:
            raise ValueError(f"strength must be weak, not_so_weak or strong, got {strength!r}")

    def summarise(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return what `forward` reads of tokens: their mean `(b, width)`, or themselves (strong).

        Args:
            tokens: `(b, L, width)`.
            mask: `(b, L)` bool, true on real tokens.
        """
        if self.needs_tokens:
            return tokens
        return summary(self.pooling, tokens, mask, legacy_padding=self.legacy_padding)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return `(b, logits)`.

        Args:
            features: `(b, width)` means, or `(b, L, width)` tokens for `strong`.
            mask: `(b, L)` bool for the latter, true on real tokens; None: all are real.

        Raises:
            ValueError: for features of another shape.
        """
        wanted = "(batch, tokens, width)" if self.needs_tokens else "(batch, width)"
        if features.ndim != 2 + self.needs_tokens or features.shape[-1] != self.width:
            raise ValueError(
                f"expected {wanted} of width {self.width}, got {tuple(features.shape)}; "
                "`summarise(tokens, mask)` makes the features that this strength reads"
            )
        if self.needs_tokens:
            features = self._convolve(features, mask)
        return self.classify(features)  # type: ignore[no-any-return]

    def _convolve(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Return the mean `(b, CHANNELS)` of the tokens after all convolutions.

        Where a mask counts, padding is 0 in front of each convolution, so that a caption's end
        looks like the end of the batch.
        """
        if mask is None or self.legacy_padding:
            mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        tokens = blank(tokens, mask)
        mixed = blank(self.narrow(tokens.transpose(1, 2)).transpose(1, 2), mask)
        for block in self.blocks:
            mixed = block(mixed, mask)
        return self.pooling(mixed, mask)  # type: ignore[no-any-return]


class _ResidualBlock(nn.Module):
    """`r + 0.3 conv(relu(conv(r)))` with `r = relu(x)`, `(b, L, CHANNELS)`.

    The skip carries the rectified input: the released ReLU works in place.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(CHANNELS, CHANNELS, KERNEL, padding=KERNEL // 2)
        self.second = nn.Conv1d(CHANNELS, CHANNELS, KERNEL, padding=KERNEL // 2)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        rectified = torch.relu(tokens)
        mixed = self.first(rectified.transpose(1, 2)).transpose(1, 2)
        mixed = blank(torch.relu(mixed), mask)
        mixed = self.second(mixed.transpose(1, 2)).transpose(1, 2)
        return rectified + 0.3 * blank(mixed, mask)
