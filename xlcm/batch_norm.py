"""Batch norm over the rows of all processes, so that their number changes nothing of a run.

Ordinary batch norm takes mean and variance of the rows of its process. Here each process counts
its rows n_r and takes their mean m_r and their sum S_r of squared distances from m_r; these go
around once, and with n = sum n_r and m = sum n_r m_r / n the variance of the whole batch is

    v = sum_r (S_r + n_r (m_r - m)^2) / n

which, unlike E[x^2] - E[x]^2, loses no digits where the mean is large. Backwards the two sums over
rows that each row's gradient needs go around in the same way.

torch.nn.SyncBatchNorm does the like on GPUs alone. This one is the same on every device, and the
layer stays what it was: joining changes its class and nothing else, so that parameters, buffers,
hooks and names are kept, and parting gives the ordinary layer back.

Source: Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167, algorithm 1; the variance of
parts, Chan et al. 1979, http://i.stanford.edu/pub/cstr/reports/cs/tr/79/773/CS-TR-79-773.pdf.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from xlcm.config import ConfigError
from xlcm.distributed import gather, world


class JoinedBatchNorm(_BatchNorm):
    """What a batch norm becomes between `joined_batch_norms`; never built by itself.

    In evaluation mode (so in frozen layers too) and on one process it is the layer it was. In
    training on several processes, mean, variance and running averages are those of the rows
    of all of them, in float32 at least; they may hold different numbers of rows, but each must
    call the layer. Gradients of rows are those of the sum of all processes' losses, as with
    `xlcm.distributed.gather`; gradients of weight and bias are those of the own rows, since
    data-parallel training averages them.
    """

    def forward(self, rows: Tensor) -> Tensor:
        """Return the normalised rows, in their shape and precision.

        Args:
            rows: `(b, C)`, `(b, C, L)`, `(b, C, H, W)` or as the layer takes them.

        Raises:
            ValueError: in training if all processes together have one value a channel.
        """
        if not self.training or world() == 1:
            return super().forward(rows)
        self._check_input_dim(rows)
        return _joined(self, rows)


class _JoinedWithActivation(JoinedBatchNorm):
    """A norm of timm, with dropout and activation in the same layer."""

    drop: nn.Module
    act: nn.Module

    def forward(self, rows: Tensor) -> Tensor:
        normed = super().forward(rows)
        if not self.training or world() == 1:
            return normed  # the plain layer has done the rest
        return self.act(self.drop(normed))  # type: ignore[no-any-return]


def trained_batch_norms(module: nn.Module) -> dict[str, _BatchNorm]:
    """Return the batch norms that are not frozen, by name."""
    return {
        name: part
        for name, part in module.named_modules()
        if isinstance(part, _BatchNorm)
        and (part.training or any(p.requires_grad for p in part.parameters()))
    }


@contextlib.contextmanager
def joined_batch_norms(module: nn.Module) -> Iterator[None]:
    """Let trained batch norms see the rows of all processes; on one process nothing changes.

    What averages a batch without being one of torch's batch norms (timm's EvoNorm) is left alone.

    Args:
        module: a method, without or below a wrapper.

    Raises:
        ConfigError: naming a layer of a class with a forward pass of its own.
    """
    found = trained_batch_norms(module) if world() > 1 else {}
    joined = [(layer, type(layer), _kind(name, layer)) for name, layer in found.items()]
    try:
        for layer, _, kind in joined:
            layer.__class__ = kind
        yield
    finally:
        for layer, before, _ in joined:
            layer.__class__ = before


def _kind(name: str, layer: _BatchNorm) -> type[_BatchNorm]:
    own = type(layer)
    if issubclass(own, JoinedBatchNorm | nn.SyncBatchNorm):  # sees all rows already
        return own
    if own.forward is _BatchNorm.forward:
        return _subclass(JoinedBatchNorm, own)
    from timm.layers.norm_act import BatchNormAct2d

    if own.forward is BatchNormAct2d.forward:
        return _subclass(_JoinedWithActivation, own)
    raise ConfigError(
        f"{name} is a {own.__name__}, whose forward pass can't be made to see the rows of all "
        f"{world()} processes: freeze the tower that it is in, take another one, or train on one "
        "process"
    )


def _subclass(joined: type[JoinedBatchNorm], own: type[_BatchNorm]) -> type[_BatchNorm]:
    forward = torch.compiler.disable(joined.forward)  # collectives stay out of compiled graphs
    return type(f"Joined{own.__name__}", (joined, own), {"forward": forward})


def _joined(layer: JoinedBatchNorm, rows: Tensor) -> Tensor:
    with torch.autocast(rows.device.type, enabled=False):
        mean, variance, count = _statistics(rows)
        if layer.track_running_stats:
            _move_averages(layer, mean, variance * (count / (count - 1)))
        weight, bias = (None if p is None else p.to(mean.dtype) for p in (layer.weight, layer.bias))
        return _Normalise.apply(  # type: ignore[no-any-return, no-untyped-call]
            rows, weight, bias, mean, variance, count, layer.eps
        )


@torch.no_grad()
def _statistics(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean `(C,)`, biased variance `(C,)` and count `()` over all processes."""
    dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
    axes, shape = _around(rows)
    here = rows.numel() // rows.shape[1]
    own = rows.sum(axes, dtype=dtype) / max(here, 1)
    spread = (rows - own.view(shape)).square_().sum(axes)
    counts, means, spreads = gather(
        torch.cat([own.new_full((1,), here), own, spread])[None]
    ).split([1, len(own), len(own)], dim=1)  # fmt: skip
    count = counts.sum()
    if here < 2 and int(count) < 2:  # who has two rows needn't wait for the device
        raise ValueError(
            f"batch norm can't train on one value a channel, all that {world()} processes have "
            "together: use a larger batch"
        )
    mean = (counts * means).sum(0) / count
    return mean, (spreads + counts * (means - mean).square()).sum(0) / count, count


@torch.no_grad()
def _move_averages(layer: JoinedBatchNorm, mean: Tensor, variance: Tensor) -> None:
    factor = layer.momentum
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
        if factor is None:  # the mean of all batches so far
            factor = 1.0 / float(layer.num_batches_tracked)
    for average, now in ((layer.running_mean, mean), (layer.running_var, variance)):
        if average is not None:
            average.mul_(1 - (factor or 0.0)).add_(now, alpha=factor or 0.0)


class _Normalise(torch.autograd.Function):
    r"""$y = w (x - m) / \sqrt{v + \epsilon} + b$, where m and v depend on x on all processes."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        count: Tensor,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(rows, weight, mean, (variance + eps).rsqrt(), count)
        return F.batch_norm(rows, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        rows, weight, mean, inverse, count = ctx.saved_tensors
        axes, shape = _around(rows)
        centred = rows - mean.view(shape)
        sums = torch.stack([
            gradient.sum(axes, dtype=mean.dtype),
            (gradient * centred).sum(axes) * inverse,
        ])  # fmt: skip
        for_rows = None
        if ctx.needs_input_grad[0]:
            for_bias, for_weight = gather(sums[None]).sum(0) / count
            scale = inverse if weight is None else inverse * weight
            through = centred.mul_((inverse * for_weight).view(shape)).add_(for_bias.view(shape))
            for_rows = ((gradient - through) * scale.view(shape)).to(rows.dtype)
        for_bias, for_weight = sums
        return (
            for_rows,
            for_weight if ctx.needs_input_grad[1] else None,
            for_bias if ctx.needs_input_grad[2] else None,
            None, None, None, None,
        )  # fmt: skip


def _around(rows: Tensor) -> tuple[list[int], list[int]]:
    """Return the axes beside the channels, and the shape that stretches a `(C,)` over rows."""
    return [0, *range(2, rows.ndim)], [1, -1, *[1] * (rows.ndim - 2)]
