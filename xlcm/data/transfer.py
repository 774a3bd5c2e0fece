"""Batches on their way to a GPU: the next one is copied while the model works on this one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, is_dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

One = TypeVar("One")
Sent = TypeVar("Sent")


def ahead(
    batches: Iterable[One], send: Callable[[One], Sent], arrive: Callable[[Sent], One]
) -> Iterator[One]:
    """Yield each batch as it arrives; the next one has been sent by then. None is held for longer.

    Args:
        batches: any number of them, or values that stand for a fault.
        send: begins to move one, and doesn't wait.
        arrive: makes sure that one is there when it is used.
    """
    under_way: list[Sent] = []
    for batch in batches:
        under_way.append(send(batch))
        del batch  # the host's copy: torch keeps pinned memory until it has been read
        if len(under_way) > 1:
            yield arrive(under_way.pop(0))
    while under_way:
        yield arrive(under_way.pop(0))


def put_back(first: One, batches: Iterator[One]) -> Iterator[One]:
    """Yield a batch that was looked at, then the others; as `ahead` it holds none for longer."""
    held = [first]
    del first
    yield held.pop()
    yield from batches


class Copies:
    """Copies pinned batches on a stream of their own; what has no `to` is passed on as it is.

    Args:
        device: has streams, as GPUs have.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.module: Any = torch.get_device_module(device)

    @cached_property
    def stream(self) -> Any:
        """Made with the first batch."""
        return self.module.Stream(self.device)

    def send(self, batch: Any) -> tuple[Any, Any]:
        """Begin the copy; return the batch on the device, and what tells when it is whole."""
        if not hasattr(batch, "to"):
            return batch, None
        with self.module.stream(self.stream):
            return batch.to(self.device, non_blocking=True), self.stream.record_event()

    def arrive(self, sent: tuple[Any, Any]) -> Any:
        """Return the batch; what is asked of the device from now on finds it whole."""
        batch, copied = sent
        if copied is not None:
            now = self.module.current_stream(self.device)
            now.wait_event(copied)
            for tensor in tensors_of(batch):  # or its memory might be given away in mid-step
                tensor.record_stream(now)
        return batch


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of a batch, nested or not."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from tensors_of(inner)
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors_of(getattr(value, field.name))
