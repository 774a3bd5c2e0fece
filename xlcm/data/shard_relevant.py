"""Right answers that would not be in the shards: items that captions name in `relevant`."""

from __future__ import annotations

from xlcm.data.dataset import ManifestDataset
from xlcm.data.manifest import DataError
from xlcm.data.shard_parts import item_parts
from xlcm.types import Item


def lost_answers(
    dataset: ManifestDataset, *, images: bool, check: bool, skip: bool
) -> dict[str, str]:
    """Return the items that captions name and that can't be written.

    Where captions name any, each item named is opened once more, before the first shard: a caption
    may be written long before the item that it names turns out to be spoilt.

    Args:
        dataset: the split that is written.
        images: whether pictures are written.
        check: whether they are decoded.
        skip: whether items that can't be had are left out; otherwise they stop the writing anyway.

    Returns:
        By the id of the item where the first caption stands that names it, for messages.

    Raises:
        DataError: for an id that no item of the split has, unless `skip` is set.
    """
    named: dict[str, str] = {}
    for index in range(len(dataset)):
        if b'"relevant"' in dataset.manifest.raw(index) and (item := _read(dataset, index, skip)):
            for caption in item.captions:
                for name in caption.relevant:
                    named.setdefault(name, f"{item.where}: caption {caption.id!r}")
    if not named:
        return {}
    lost = dict(named)
    for index in range(len(dataset)):
        found = _read(dataset, index, skip)
        if found and found.id in lost and (not skip or _whole(dataset, index, images, check)):
            del lost[found.id]
    if lost and not skip:
        name, where = next(iter(lost.items()))
        raise DataError(
            f"{where} names the relevant item {name!r}, and split {dataset.split!r} has no item of "
            "this name: take it out of `relevant`, or add the item (`xlcm data check` lists all "
            "such); --on-error skip takes it out of what is written"
        )
    return lost


def _read(dataset: ManifestDataset, index: int, skip: bool) -> Item | None:
    try:
        return dataset[index]
    except DataError:
        if not skip:
            raise
        return None  # who writes it names it


def _whole(dataset: ManifestDataset, index: int, images: bool, check: bool) -> bool:
    try:
        for _ in item_parts(dataset, index, images, check):
            pass
    except DataError:
        return False
    return True


def told(lost: dict[str, str]) -> list[str]:
    """Return the sentence about them, if there are any."""
    if not lost:
        return []
    name, where = next(iter(lost.items()))
    return [f"{len(lost):,} items that captions name in `relevant`, such as {name!r} ({where}): "
            "they are no right answers in the shards"]  # fmt: skip
