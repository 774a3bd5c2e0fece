"""What every loss between images and texts promises, and the precision that it computes in."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar, get_args

import torch
from torch import Tensor, nn

Forward = TypeVar("Forward", bound=Callable[..., Any])


class PairLoss(nn.Module):
    """Base of losses over rows of pairs; `forward` takes the same arguments in all of them.

    A loss multiplies local rows with the gathered columns of all processes, so that its mean over
    processes is the loss of the global batch, and so are the gradients (docs/architecture.md).

    Attributes:
        uses_scale: whether the inverse temperature enters; if not, nothing trains it.
        uses_bias: whether the bias on the similarities enters.
        takes_present: whether `forward` takes `present`: rows that lack a text are left out.
    """

    uses_scale: ClassVar[bool] = True
    uses_bias: ClassVar[bool] = False
    takes_present: ClassVar[bool] = False

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        *,
        group: Tensor,
        scale: Tensor | float,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of this process's rows: a float32 scalar.

        Args:
            image: `(b, D)`, L2-normalised.
            text: `(b, D)`, L2-normalised; row i belongs to image i.
            group: `(b,)` int64 ids of the visual items; equal ids are never negatives.
            scale: `()`, the inverse temperature (not its logarithm), at most 100.
            bias: `()`, added to the similarities; only for losses that say `uses_bias`.

        Raises:
            ValueError: for shapes that don't fit, no rows, or a bias that would be ignored.
        """
        raise NotImplementedError

    def check(
        self,
        image: Tensor,
        text: Tensor,
        group: Tensor,
        scale: Tensor | float,
        bias: Tensor | None,
    ) -> None:
        """Raise ValueError for arguments that can't give this loss."""
        if image.ndim != 2 or image.shape != text.shape:
            raise ValueError(
                f"image {tuple(image.shape)} and text {tuple(text.shape)} must both be (batch, dim)"
            )
        if len(image) == 0:
            raise ValueError("a batch without rows has no loss; drop it before the method sees it")
        if group.shape != image.shape[:1]:
            raise ValueError(f"group {tuple(group.shape)} must have one id a row: ({len(image)},)")
        if isinstance(scale, Tensor) and scale.numel() != 1:
            raise ValueError(f"scale must be one number for all rows, got {tuple(scale.shape)}")
        if bias is not None and not self.uses_bias:
            raise ValueError(
                f"{type(self).__name__} can't use the model's bias: a constant added to every "
                "similarity changes nothing in it, so the bias would be dropped in silence. "
                "Build the model without a bias, or choose a loss that takes one (sigmoid)"
            )


def check_choice(name: str, value: str, choices: Any) -> None:
    """Raise ValueError unless an option has one of the values of a `Literal`.

    Configs are checked before; code that builds a loss is not, and would get another one.
    """
    if value not in get_args(choices):
        raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}, got {value!r}")


def full_precision(forward: Forward) -> Forward:
    """Decorate a loss, method or function: half precision in, float32 inside, autocast off.

    `tensor.float()` alone is not enough: under autocast the next matrix product rounds it again,
    which costs about 1 % of the gradient at scale 100. Float64 stays float64, for tests.
    """

    @functools.wraps(forward)
    def run(*arguments: Any, **options: Any) -> Any:
        first = next(t for t in (*arguments, *options.values()) if isinstance(t, Tensor))
        with torch.autocast(first.device.type, enabled=False):
            return forward(*map(widen, arguments), **{k: widen(v) for k, v in options.items()})

    return run  # type: ignore[return-value]


def widen(value: Any) -> Any:
    """Return half-precision tensors in float32, and everything else as it is."""
    half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if half else value
