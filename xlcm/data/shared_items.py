"""Items that two datasets share, where files and line numbers can't tell: in tar shards, in a mix.

An item is the same in both if it has the same id and, word for word, a caption in common. Ids
alone would not do, as two data sets may both count from 1. Rows of a stream may have no ids: there
captions alone can hint at an item that is in both.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence

from xlcm.data.dataset import Dataset, ManifestDataset
from xlcm.data.faults import Fault
from xlcm.data.hf_stream import HfStream
from xlcm.data.manifest import DataError
from xlcm.data.shards import Shards
from xlcm.data.subset import Subset
from xlcm.types import Caption, Item

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
            if isinstance(inner, Shards | HfStream):
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


def has_ids(dataset: Dataset) -> bool:
    """Return whether a dataset's items have ids that mean the same elsewhere."""
    inner = _inner(dataset)
    return isinstance(inner, ManifestDataset) or _of_rows(inner, with_ids=True)


def _of_rows(dataset: Dataset, *, with_ids: bool) -> bool:
    inner = _inner(dataset)
    return isinstance(inner, HfStream | Shards) and inner.has_ids == with_ids


def tell_alike(dataset: Dataset, others: Sequence[Dataset]) -> None:
    """Warn of items that `find_alike` finds."""
    found = find_alike(dataset, others)
    if found:
        warnings.warn(
            f"{dataset.name}, split {dataset.split!r}: {len(found)} items have the captions of "
            f"items that scores are measured on, word for word, such as {found[0][0]} those of "
            f"{found[0][1]}. They are left in, as captions may be written twice: rows of a stream "
            "have no ids to compare, unless `id` of hf_stream, or `--id` of `xlcm data shard-hf`, "
            "names their column",
            stacklevel=3,
        )


def find_alike(dataset: Dataset, others: Sequence[Dataset]) -> list[tuple[str, str]]:
    """Return where items are that say, word for word, what one of others says.

    Looked at where one side is a stream, or shards of one, without ids. In each language that both
    have, all captions of the item must be captions of the other.

    Args:
        dataset: training data, or validation data beside test data.
        others: the data that scores are measured on.

    Returns:
        The place of each such item, and of the other one.
    """
    nameless = _of_rows(dataset, with_ids=False)
    theirs = [
        other
        for other in others
        if (nameless and has_ids(other))
        or (_of_rows(other, with_ids=False) and (nameless or has_ids(dataset)))
    ]
    known: dict[tuple[str, str], list[int]] = {}
    items: list[tuple[str, frozenset[str]]] = []  # place and languages
    for other in theirs:
        for item in whole_items(other):
            for caption in set(map(_words, item.captions)):
                known.setdefault(caption, []).append(len(items))
            items.append((item.where, frozenset(caption.lang for caption in item.captions)))
    found = []
    for item in whole_items(dataset) if known else ():
        said = set(map(_words, item.captions))
        for number in sorted({n for words in said for n in known.get(words, ())}):
            where, langs = items[number]
            if all(number in known.get(words, ()) for words in said if words[0] in langs):
                found.append((item.where, where))
                break
    return found


def _words(caption: Caption) -> tuple[str, str]:
    return caption.lang, caption.text


def shared_by_parts(parts: Mapping[str, Dataset]) -> dict[tuple[str, str], list[str]]:
    """Return the ids of items that two parts of a mix share: pictures that are their own negatives.

    In manifests an item is also the same if its picture or video is the same file (of
    segments: the same one). Nothing is
    compared where that would take minutes, nor rows of a stream without ids of their own.

    Args:
        parts: by name.

    Returns:
        By the names of the two parts; an item of three parts counts with the first of them.
    """
    readable = {n: p for n, p in parts.items() if has_ids(p) or isinstance(_inner(p), Shards)}
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
        for path in (item.image, item.clip):
            if path is not None:
                yield str(dataset.image_root.resolve() / path)
