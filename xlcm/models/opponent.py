"""A module that trains itself against the model: its weights are buffers, its optimiser inside."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call

from xlcm.distributed import world


class Opponent(nn.Module):
    """Holds a module whose weights no outer optimiser sees, and takes Adam steps of its own.

    All parameters of the module become buffers of the same names. So the optimiser of the model,
    DDP and FSDP leave them alone, the training loop takes them back with a step that was not
    finite, and checkpoints hold them, as they hold moments and the count of steps, which are
    buffers too: a resumed run goes on exactly.

    Everything here computes in the precision of the weights, whatever autocast says: the network
    is small, and float16 would lose gradients that no scaler looks after.

    Under fp16 a scaler multiplies the model's loss, and where only the gradients scaled so overflow
    it passes over the model's step and lowers its factor. Loss and buffers were good, so the
    training loop takes nothing back, and the opponent keeps its step: it learnt from states that
    were finite, unscaled, and is one step ahead of the model. With a loss that is not finite both
    stay where they were.

    Args:
        module: of any parameters; they are turned into buffers in place.
        lr: of Adam.
        betas: decay of the two moments, each in [0, 1).
        eps: added to the root of the second one.

    Raises:
        ValueError: if the module has no parameters, or shares one between two places.

    Source: Kingma and Ba 2015, https://arxiv.org/abs/1412.6980, algorithm 1; rates as in the
    released code of NRCCR, Wang et al. 2022, https://arxiv.org/abs/2208.12526.
    """

    first_moment: Tensor
    second_moment: Tensor
    steps: Tensor

    def __init__(
        self,
        module: nn.Module,
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__()
        self.module = module
        self.lr, self.betas, self.eps = lr, betas, eps
        self.names = _to_buffers(module)
        flat = _flatten(self._weights().values())
        self.register_buffer("first_moment", torch.zeros_like(flat))
        self.register_buffer("second_moment", torch.zeros_like(flat))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=flat.device))

    def forward(self, *arguments: Any) -> Any:
        """Return the module's output; gradients reach the arguments and not the weights."""
        with torch.autocast(self.first_moment.device.type, enabled=False):
            return self.module(*self._same_type(arguments))

    def step(self, loss: Callable[[Callable[..., Tensor]], Tensor]) -> Tensor:
        """Take one step of Adam down the mean of the loss over processes.

        Call it before the `forward` whose gradient you want, never between that and its backward
        pass: weights change in place. Every process must call it. Where the mean of loss or
        gradient is not finite nothing changes.

        Args:
            loss: given `run`, the module with weights that learn (its arguments get no gradient),
                returns a scalar: `lambda run: discriminator_loss(run(real), run(fake))`.

        Returns:
            This process's loss, `()`, detached.
        """
        with torch.enable_grad(), torch.autocast(self.first_moment.device.type, enabled=False):
            weights = {n: w.detach().requires_grad_() for n, w in self._weights().items()}

            def run(*arguments: Any) -> Tensor:
                inputs = tuple(
                    a.detach() if isinstance(a, Tensor) else a for a in self._same_type(arguments)
                )
                return cast(Tensor, functional_call(self.module, weights, inputs))

            value = loss(run)
            gradients = torch.autograd.grad(value, list(weights.values()))
        self._adam(gradients, value.detach())
        return value.detach()

    @torch.no_grad()
    def _adam(self, gradients: Iterable[Tensor], value: Tensor) -> None:
        flat = _flatten(gradients)
        both = torch.cat([flat, value.reshape(1).to(flat.dtype)])
        if world() > 1:
            dist.all_reduce(both)
            both /= world()
        if not both.isfinite().all():  # the same sums everywhere, so all processes agree
            return
        gradient, (beta1, beta2) = both[:-1], self.betas
        self.steps += 1
        count = int(self.steps)
        self.first_moment.lerp_(gradient, 1 - beta1)
        self.second_moment.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = (self.second_moment / (1 - beta2**count)).sqrt_().add_(self.eps)
        change = self.first_moment / root * (-self.lr / (1 - beta1**count))
        weights = self._weights()
        pieces = change.split([weight.numel() for weight in weights.values()])
        for weight, piece in zip(weights.values(), pieces):
            weight.add_(piece.view_as(weight))

    def _weights(self) -> dict[str, Tensor]:
        return {name: self.module.get_buffer(name) for name in self.names}

    def _same_type(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        dtype = self.first_moment.dtype
        return tuple(
            a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments
        )


def _to_buffers(module: nn.Module) -> tuple[str, ...]:
    """Turn every parameter into a buffer of the same name and value; return the names."""
    names = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    if not names:
        raise ValueError(f"{type(module).__name__} has no parameters: nothing of it could learn")
    if len(names) != len(list(module.parameters())):
        raise ValueError(
            f"{type(module).__name__} uses one parameter at several places ({', '.join(names)}), "
            "which buffers can't: give each place its own"
        )
    for name in names:
        path, _, last = name.rpartition(".")
        owner = module.get_submodule(path)
        value = owner.get_parameter(last).detach().clone()
        delattr(owner, last)
        owner.register_buffer(last, value)
    return tuple(names)


def _flatten(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
