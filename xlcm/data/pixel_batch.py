"""The pictures of a batch: read and decoded some at a time, written to where the batch is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info

from xlcm.data.dataset import Dataset, picture
from xlcm.types import Item

TOGETHER = 8
"""Pictures of which each step (read, decode, resize) is done before the next one begins.

One by one each step finds its code pushed out of the processor's caches by the pixels of the step
before; with many more the pixels themselves are.
"""


def pictures(
    dataset: Dataset, rows: Sequence[int], items: Sequence[Item], transform: object
) -> Iterator[Image.Image | Tensor]:
    """Yield the pictures of some rows in order, as `picture` returns them.

    Args:
        dataset: where they are.
        rows: their numbers in it.
        items: the items themselves.
        transform: what becomes of them.

    Raises:
        DataError: naming file and line of a picture that can't be had.
    """
    takes = getattr(transform, "takes_pixels", False)
    many = getattr(dataset, "load_pixel_rows", None) if takes else None
    for start in range(0, len(rows), TOGETHER):
        part = slice(start, start + TOGETHER)
        if many is not None:
            yield from many(items[part])
        else:
            yield from [picture(dataset, row, transform) for row in rows[part]]


def stack_pixels(pixels: Iterable[Tensor], count: int) -> Tensor:
    """Return `(count, ...)`, in a loader's worker in memory that the main process sees too.

    Each picture is written there as it comes: none is kept, and none copied once more.

    Args:
        pixels: `count` tensors of one shape and dtype, at least one.
        count: how many.

    Raises:
        ValueError: if they are of several shapes or dtypes.
    """
    out: Tensor | None = None
    for row, one in enumerate(pixels):
        if out is None:
            out = _room(count, one)
        elif one.shape != out.shape[1:] or one.dtype != out.dtype:
            raise ValueError(
                f"the transform makes pictures of several kinds: {one.dtype} {(*one.shape,)} "
                f"after {out.dtype} {(*out.shape[1:],)}"
            )
        out[row] = one
    if out is None:
        raise ValueError("a batch needs at least one picture")
    return out


def _room(count: int, one: Tensor) -> Tensor:
    shape = (count, *one.shape)
    if get_worker_info() is None:
        return one.new_empty(shape)
    # what torch's own collating does in a worker
    memory = torch.UntypedStorage._new_shared(count * one.numel() * one.element_size())
    return one.new_empty(0).set_(memory, 0, shape)  # type: ignore[call-overload, no-any-return]
