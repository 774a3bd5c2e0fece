"""Work that processes share: which part is whose, and the parts together again."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from xlcm.distributed import gather, rank, world


def mine(number: int) -> bool:
    """Say whether this process does this part of the work."""
    return number % world() == rank()


def summed(part: Tensor) -> Tensor:
    """Return the sum over all processes, where `part` was; every process calls it."""
    if world() == 1:
        return part
    total = part.to(_speaking(part))
    dist.all_reduce(total)
    return total.to(part.device)


def extremes(least: float, most: float, device: torch.device) -> tuple[float, float]:
    """Return the least and the greatest number of all processes; every process calls it."""
    if world() == 1:
        return least, most
    low, high = stacked(torch.tensor([[least], [most]], device=device))
    return float(low.min()), float(high.max())


def stacked(part: Tensor) -> Tensor:
    """Return the rows of all processes side by side, `(rows, processes * columns)`."""
    if world() == 1:
        return part
    whole = gather(part.to(_speaking(part))).to(part.device)
    return torch.cat(whole.chunk(world()), dim=1)


def _speaking(part: Tensor) -> torch.device:
    """Return where the processes can exchange a tensor: nccl knows only GPUs."""
    if part.device.type == "cpu" and dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return part.device
