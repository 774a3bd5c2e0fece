"""Gradient caching: the batch of one loss is as large as one likes, memory that of a piece.

pieces ─► encode, no graph ─► embeddings of all rows ─► losses, once ─► a gradient for each row
   └────► encode again, same dropout ◄── backward, with the piece's rows of that gradient ◄──┘

The gradient is that of the whole batch. `encode` looks at each row alone, so the chain rule cuts at
the embeddings; what each piece drew at random is drawn again, or the second pass would
differentiate another function. It costs one more forward pass of all pieces but one.

Source: Gao et al. 2021, https://arxiv.org/abs/2101.06983, section 3; weights of the losses, the one
reduction and the piece that keeps its graph are ours.
"""

from __future__ import annotations

import contextlib
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from xlcm.methods.base import Method
from xlcm.pieces import Pieces
from xlcm.types import Terms


def cached_step(
    accelerator: Accelerator,
    method: nn.Module,
    plain: Method,
    pieces: Pieces,
    *,
    share: float = 1.0,
    reduce: bool = True,
) -> tuple[Terms, Tensor]:
    """Add the gradients of a batch to the parameters, a piece at a time.

    Losses gather once, and processes reduce gradients once, with the last piece: DDP takes part in
    the forward pass of every piece (`no_sync` for all others), and sums into one reduction what
    was there before. Weights that only the losses read, such as the temperature, get their
    gradient with that piece too, so that DDP sees each parameter once. FSDP and ZeRO keep whole
    gradients until then.

    Args:
        accelerator: knows processes, precision and the scaler of fp16.
        method: as prepared by accelerate.
        plain: the same without a wrapper.
        pieces: two or more; on the device.
        share: factor on the loss, for a mean over several batches a step.
        reduce: whether this is the step's last batch, with which processes reduce gradients.

    Returns:
        The terms of the whole batch, and their weighted sum, both without a graph.
    """
    if isinstance(method, FSDPModule):  # the losses read the temperature after a forward pass
        method.set_reshard_after_forward(False, recurse=False)
    device, (*again, kept) = accelerator.device, pieces.batches
    drawn, parts = [], []
    with _alone(accelerator, method):
        with torch.no_grad():
            for piece in again:
                drawn.append(random_state(device))
                parts.append(method(piece, only_encode=True))
        graph = method(kept, only_encode=True)  # the smallest piece: its graph is held meanwhile
    parts.append(graph)

    encoded = {
        name: _float(pieces.whole([part[name].detach() for part in parts]))
        for name in graph
    }  # fmt: skip
    leaves = {name: encoded[name].requires_grad_() for name in graph if graph[name].requires_grad}
    del parts
    with accelerator.autocast():
        terms = plain.losses(encoded)
        loss = plain.total(terms)
    weights = [parameter for parameter in plain.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(loss * share, [*leaves.values(), *weights], allow_unused=True)
    gradients = {name: g for name, g in zip(leaves, found) if g is not None}
    own = [(w, g) for w, g in zip(weights, found[len(leaves) :]) if g is not None]
    terms = {name: term.detach() for name, term in terms.items()}
    after = random_state(device)

    with _alone(accelerator, method):
        if gradients:
            accelerator.backward(_pull(graph, gradients, pieces.rows[-1]))
    del graph
    for number, (piece, rows) in enumerate(zip(again, pieces.rows)):
        last = number == len(again) - 1
        set_random_state(drawn[number], device)
        with contextlib.nullcontext() if last and reduce else _alone(accelerator, method):
            pull = _pull(method(piece, only_encode=True), gradients, rows)
            if last:
                pull = pull + sum((weight * gradient).sum() for weight, gradient in own)
            if pull.requires_grad:
                accelerator.backward(pull)
    set_random_state(after, device)
    return terms, loss.detach()


def _alone(accelerator: Accelerator, method: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Return the context of a pass after which processes reduce nothing."""
    if isinstance(method, DistributedDataParallel):  # accelerate wraps one process, and forgets it
        return cast(contextlib.AbstractContextManager[None], method.no_sync())
    return accelerator.no_sync(method)


def _float(rows: Tensor) -> Tensor:
    """Return half precision as float32: its gradients would fall out of float16's range."""
    half = rows.dtype in (torch.float16, torch.bfloat16)
    return rows.float() if half else rows


def _pull(encoded: dict[str, Tensor], gradients: dict[str, Tensor], rows: Tensor) -> Tensor:
    """Return a number whose gradient at the embeddings is the one that the losses gave."""
    pulls = [
        (_float(tensor) * gradients[name][rows]).sum()
        for name, tensor in encoded.items()
        if name in gradients and tensor.requires_grad
    ]
    if not pulls:  # only the losses have weights that are trained, such as the temperature
        return torch.zeros((), device=next(iter(encoded.values())).device)
    return torch.stack([pull.to(pulls[0].dtype) for pull in pulls]).sum()


def random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return where the generators of the processor and of the device are."""
    on_device = None if device.type == "cpu" else _module(device).get_rng_state(device)
    return torch.get_rng_state(), on_device


def set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    """Bring the generators back to where they were."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        _module(device).set_rng_state(state[1], device)


def _module(device: torch.device) -> Any:
    return torch.get_device_module(device)
