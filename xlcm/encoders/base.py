"""What every tower promises: width, layers from bottom to top, freezing by words, two-step weights.

A tower neither normalises nor projects its output (`models/dual_encoder.py` does). It is built
offline with random weights; `load_weights` is the second step. It carries its own preprocessing,
so that text and tokenizer, image and mean/std can't be mismatched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from xlcm.types import Encoded, TextBatch, Visual


class KeepLast(BaseModel):
    """`{keep_last: n}`: freeze all but the last n layers.

    Args:
        keep_last: layers that are trained, counted from the output.
    """

    model_config = ConfigDict(extra="forbid")
    keep_last: int = Field(ge=0)


Freeze: TypeAlias = Literal["all", "none"] | KeepLast


class Tower(nn.Module):
    """Common ground of image and text encoders.

    Attributes:
        width: size of the pooled vector.
    """

    width: int
    _frozen: tuple[nn.Module, ...] = ()

    def layers(self) -> list[nn.Module]:
        """Return the trained parts from input to output; together they hold every parameter."""
        raise NotImplementedError

    def load_weights(self) -> None:
        """Replace random weights by the pretrained ones that the config names.

        Raises:
            FileNotFoundError: naming the file that was expected and where.
        """

    def spec(self) -> dict[str, Any]:
        """Return the config (with `name`) that rebuilds this tower offline, without weights."""
        raise NotImplementedError

    def freeze(self, how: Freeze | dict[str, int]) -> None:
        """Stop training of `all`, `none`, or all but the last n `layers()`.

        Frozen layers also stay in evaluation mode: no dropout, no moving batch-norm statistics.

        Raises:
            ValueError: if more layers are to be kept than there are.
        """
        layers = self.layers()
        if isinstance(how, dict):
            how = KeepLast(**how)
        if how == "none":
            frozen: list[nn.Module] = []
        elif how == "all":
            frozen = [self]
        elif how.keep_last > len(layers):
            raise ValueError(f"keep_last: {how.keep_last}, but the tower has {len(layers)} layers")
        else:
            frozen = layers[: len(layers) - how.keep_last]
        self.requires_grad_(True)
        for layer in frozen:
            layer.requires_grad_(False)
        self._frozen = tuple(frozen)
        self.train(self.training)

    def frozen_at_random(self) -> bool:
        """Return whether layers are frozen though the option `weights` names none for them."""
        return bool(self._frozen) and getattr(self, "weights", "") is None

    @property
    def frozen(self) -> bool:
        """Whether nothing of the tower is trained."""
        return not any(p.requires_grad for p in self.parameters())

    def train(self, mode: bool = True) -> Tower:
        """Set training mode, except for frozen layers."""
        super().train(mode)
        for layer in self._frozen:
            if layer is self:
                super().train(False)
            else:
                layer.train(False)
        return self


class ImageEncoder(Tower):
    """Pixels or features of images -> vectors.

    Attributes:
        reads_features: whether it reads vectors of a feature store in place of pixels; asked of
            the class before any is built.
        feature_width: for those that do, the size of a vector that it reads.
        transform: PIL image -> uint8 `(3, H, W)` on the CPU, run in the loader's workers; None
            where the encoder reads features. One that takes pixels `(3, H, W)` as well says so by
            an attribute `takes_pixels`: they are there sooner.
    """

    reads_features: ClassVar[bool] = False
    feature_width: int
    transform: Callable[[Any], Tensor] | None

    def forward(self, visual: Visual) -> Encoded:
        """Return `pooled (b, width)`, and `tokens (b, L, D)` where the backbone has them."""
        raise NotImplementedError


class Tokenizer(Protocol):
    """Texts -> token ids, padded to the longest of the batch, cut at `max_tokens` and counted."""

    max_tokens: int
    vocab_size: int
    pad_id: int

    def __call__(self, texts: Sequence[str], langs: Sequence[str] = ()) -> TextBatch:
        """Return ids `(b, L)`, mask `(b, L)`, the languages and the number of cut texts."""
        ...

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, special ones included, before any cut."""
        ...

    @property
    def special_ids(self) -> frozenset[int]:
        """Return the ids that stand for no part of a text: padding, opening, closing, mask."""
        ...

    @property
    def word_starts(self) -> Tensor:
        """Return `(vocab_size,)` bool, true on pieces that begin a word."""
        ...

    def spec(self) -> dict[str, Any]:
        """Return the config (with `name`) that opens it again."""
        ...

    def save(self, folder: str) -> dict[str, Any]:
        """Write all files into `folder`; return the spec that reads them (paths from `folder`)."""
        ...


class TextEncoder(Tower):
    """Token ids -> vectors.

    Attributes:
        tokenizer: the only tokenizer that fits this tower.
    """

    tokenizer: Tokenizer

    @property
    def max_tokens(self) -> int:
        """Tokens a text may have; longer ones are cut and counted, never silently."""
        return self.tokenizer.max_tokens

    def forward(self, text: TextBatch) -> Encoded:
        """Return `tokens (b, L, width)`, `mask (b, L)` and `pooled (b, width)`."""
        raise NotImplementedError


def masked(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Return `(b, L)` bool, all true where there is no mask."""
    if mask is None:
        return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    return mask.bool()
