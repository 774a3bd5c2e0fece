"""Items that two datasets share, where files and line numbers can't tell: in tar shards, in a mix.

An item is the same in both if it has the same id and, word for word, a caption in common. Ids
alone would not do, as two data sets may both count from 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from xlcm.data.dataset import Dataset, ManifestDataset
from xlcm.data.faults import Fault
from xlcm.data.manifest import DataError
from xlcm.data.shards import Shards
from xlcm.data.subset import Subset
from xlcm.types import Item

COMPARED = 2_000_000  # items of a mix; more take minutes to read


def names(item: Item) -> Iterator[str]:
    """Yield what an item is known by: one name for each caption."""
    for caption in item.captions:
        yield f"{item.id}\0{caption.lang}\0{caption.text}"


def whole_items(dataset: Dataset) -> Iterator[Item]:
    """Yield the items that can be read, with their captions in all languages."""
    inner, numbers = dataset, range(len(dataset))
    if isinstance(dataset, Subset):
        inner, numbers = dataset.dataset, dataset.indices.tolist()
    for number in numbers:
        try:
            if isinstance(inner, Shards):
                yield inner.whole(number)
            elif isinstance(inner, ManifestDataset):
                yield inner.manifest[number]
            else:
                yield inner[number]
        except DataError:  # who looks for faults names it
            continue


def known_names(items: Iterable[Item]) -> dict[str, str]:
    """Return where each name of items is."""
    return {name: item.where for item in items for name in names(item)}


def shared_faults(items: Iterable[Item], known: Mapping[str, str]) -> Iterator[Fault]:
    """Yield a fault for each item that has one of the known names."""
    for item in items if known else ():
        found = next((name for name in names(item) if name in known), None)
        if found is not None:
            text = found.rpartition("\0")[2]
            said = f"item id {item.id!r} with the caption {text!r:.80} is also at {known[found]}, "
            said += "which scores are measured on"
            yield Fault(item.where, item.id, None, "split_overlap", said)


def find_shared(dataset: Dataset, others: Sequence[Dataset]) -> list[Fault]:
    """Return the items of a dataset that others hold too, one fault each.

    Args:
        dataset: training data, or validation data beside test data.
        others: the data that scores are measured on.
    """
    known = known_names(item for other in others for item in whole_items(other))
    return list(shared_faults(whole_items(dataset), known))


def shared_by_parts(parts: Mapping[str, Dataset]) -> dict[tuple[str, str], list[str]]:
    """Return the ids of items that two parts of a mix share: pictures that are their own negatives.

    In manifests an item is also the same if its picture or video is the same file. Nothing is
    compared where that would take minutes, nor rows of a stream, which have no ids of their own.

    Args:
        parts: by name.

    Returns:
        By the names of the two parts; an item of three parts counts with the first of them.
    """
    readable = {n: p for n, p in parts.items() if isinstance(_inner(p), ManifestDataset | Shards)}
    if len(readable) < 2 or sum(map(len, readable.values())) > COMPARED:
        return {}
    known: dict[int, str] = {}  # by a digest, as names take too much memory
    found: dict[tuple[str, str], list[str]] = {}
    for name, part in readable.items():
        own: dict[int, str] = {}
        for item in whole_items(part):
            digests = [hash(one) for one in (*names(item), *_files(_inner(part), item))]
            first = next((known[one] for one in digests if one in known), None)
            if first is not None:
                found.setdefault((first, name), []).append(item.id)
            own.update(dict.fromkeys(digests, name))
        known = {**own, **known}
    return found


def _inner(dataset: Dataset) -> Dataset:
    return dataset.dataset if isinstance(dataset, Subset) else dataset


def _files(dataset: Dataset, item: Item) -> Iterator[str]:
    if isinstance(dataset, ManifestDataset):
        for path in (item.image, item.video):
            if path is not None:
                yield str(dataset.image_root.resolve() / path)
