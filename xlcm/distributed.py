"""All that losses and the loop know of other processes: gather with gradient, rank and number.

The rule of the library: a loss multiplies its *local* rows with the *gathered* columns and returns
the mean over local rows; data-parallel training then averages gradients over processes. The
average is right only if the gather's backward *sums* what all processes say about a row
(derivation in docs/architecture.md). Of the four usual short cuts three give the right loss with
wrong gradients, and one, no gather at all, a wrong loss too; tests/distributed/test_gather.py keeps
them as mutants that it must reject.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world() -> int:
    """Return the number of processes, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        out = [torch.empty_like(rows) for _ in range(world())]
        dist.all_gather(out, rows.contiguous())
        return torch.cat(out)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)  # the sum over processes; gloo has no reduce_scatter
        return gradient.chunk(world())[rank()]


def gather(rows: Tensor) -> Tensor:
    """Stack the rows of all processes in the order of their ranks, with gradient.

    Args:
        rows: `(b, ...)`, the same shape on every process (training drops the last, smaller
            batch for that reason).

    Returns:
        `(world * b, ...)`; `rows` itself on one process.
    """
    if world() == 1:
        return rows
    if rows.dtype == torch.bool:  # not every backend carries bool
        return gather(rows.to(torch.uint8)).bool()
    if rows.requires_grad:
        return _Gather.apply(rows)  # type: ignore[no-any-return, no-untyped-call]
    out = [torch.empty_like(rows) for _ in range(world())]
    dist.all_gather(out, rows.contiguous())
    return torch.cat(out)


def local_rows(size: int, device: torch.device | None = None) -> Tensor:
    """Return the positions, in the gathered batch, of this process's `size` rows: `(size,)`."""
    return torch.arange(size, device=device) + rank() * size


def gather_list(mine: list[str]) -> list[str]:
    """Return the texts of all processes, those of the first one first."""
    if world() == 1:
        return mine
    everyone: list[list[str] | None] = [None] * world()
    dist.all_gather_object(everyone, mine)
    return [text for some in everyone for text in some or ()]


def share_buffers(module: nn.Module) -> None:
    """Give every process the first one's buffers; every process calls it.

    A layer that averages the rows that its process sees has buffers of its own on each. (Batch norm
    has not: see `xlcm.batch_norm`.) DDP shares them only when a step of training begins, and FSDP
    never does: after a step each process has a model of its own, of which the checkpoint holds the
    first one's.
    """
    if world() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer.detach(), src=0)
