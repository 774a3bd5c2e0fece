"""The files of one item in a tar shard."""

from __future__ import annotations

import io
from collections.abc import Container, Iterator, Sequence
from pathlib import Path

import numpy as np
from msgspec.structs import replace
from torch import Tensor

from xlcm.data.dataset import ManifestDataset
from xlcm.data.images import load_image
from xlcm.data.manifest import DataError, to_line
from xlcm.data.tar_index import IMAGE_ENDINGS
from xlcm.types import Item

Part = tuple[str, bytes]  # ending of the name, content


def item_parts(
    dataset: ManifestDataset,
    index: int,
    images: bool,
    check: bool,
    lost: Container[str] = (),
) -> Iterator[Part]:
    """Yield the files of an item.

    Args:
        dataset: with its pictures, and features if it has a store.
        index: of the item.
        images: whether to yield its picture.
        check: decode it first.
        lost: ids that are taken out of the captions' `relevant`.

    Raises:
        DataError: naming the manifest's line, if one can't be had.
    """
    item = dataset[index]
    if lost and any(caption.relevant for caption in item.captions):
        item = _without(item, lost)
    yield json_part(item)
    if images:
        yield _picture(dataset, index, check)
    if dataset.store is not None:
        found = dataset.load_features(index)
        if isinstance(found, Tensor):
            yield f"{'pooled' if found.ndim == 1 else 'tokens'}.npy", _npy([found])
        else:
            yield "views.npy", _npy(found, stack=True)


def json_part(item: Item) -> Part:
    """Return the manifest line of an item, without the paths that a shard has no use for."""
    return "json", to_line(replace(item, image=None, video=None, segment=None), item.where)


def _without(item: Item, lost: Container[str]) -> Item:
    captions = [
        replace(caption, relevant=tuple(name for name in caption.relevant if name not in lost))
        for caption in item.captions
    ]
    return replace(item, captions=tuple(captions))


def _picture(dataset: ManifestDataset, index: int, check: bool) -> Part:
    item = dataset[index]
    if item.image is None:
        raise DataError(f"{item.where}: item {item.id!r} has no image; --no-images writes "
                        "captions and features alone", kind="image_missing")  # fmt: skip
    try:
        data = (dataset.image_root / item.image).read_bytes()
        if check:
            load_image(data, name=item.image)
    except OSError as error:
        raise DataError(f"{item.where}: image {item.image!r}: {error.strerror}",
                        kind="image_missing") from error  # fmt: skip
    except DataError as error:
        raise DataError(f"{item.where}: {error}", kind=error.kind) from error
    ending = Path(item.image).suffix[1:].lower()
    return ending if ending in IMAGE_ENDINGS else "img", data


def _npy(values: Sequence[Tensor], stack: bool = False) -> bytes:
    out = io.BytesIO()
    arrays = [value.numpy() for value in values]
    np.save(out, np.stack(arrays) if stack else arrays[0], allow_pickle=False)
    return out.getvalue()
