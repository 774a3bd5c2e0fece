"""Before the first step: open the splits, find what can't be used, count the rows."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from xlcm.config import ConfigError, build
from xlcm.data.bad_rows import find_bad_rows, find_overlap
from xlcm.data.dataset import Dataset, ManifestDataset
from xlcm.data.faults import Fault
from xlcm.data.hf_stream import HfStream
from xlcm.data.manifest import DataError
from xlcm.data.mixing import Mix
from xlcm.data.shards import Shards
from xlcm.data.shared_items import find_shared, shared_by_parts, tell_alike
from xlcm.data.subset import Subset
from xlcm.data.views import View, Views
from xlcm.registry import datasets
from xlcm.types import Caption

TOKENIZER_ITEMS = 50_000  # that a tokenizer is trained on: more bring it nothing


def open_splits(
    specs: Sequence[dict[str, Any]],
    *,
    visual: Literal["image", "features"],
    on_error: Literal["raise", "skip"] = "raise",
    max_skipped: float = 0.01,
    workers: int = 1,
) -> tuple[list[Dataset], list[Fault]]:
    """Open datasets and see to their faults; the first is the training split.

    `raise` looks at text, ids and overlap now and at pictures when they are loaded; `skip` opens
    every picture or feature once, and leaves bad items and captions out from the start, so that
    the others train as if the bad ones were absent. Of tar shards only the truncated ones, and
    items that scores are measured on, are faults: pictures are looked at when shards are written.
    Of streamed rows only the latter are.

    An item that two splits share is a fault of the earlier one: scores stay comparable.

    Args:
        specs: of the `datasets` registry: training, then what scores are measured on.
        visual: what will be read.
        on_error: what to do with faults.
        max_skipped: share of items with a fault, of any split, above which `skip` stops too.
        workers: processes that decode.

    Returns:
        The datasets, and the faults of what was left out.

    Raises:
        DataError: for faults, each with file and line.
    """
    opened: list[Dataset] = [build(datasets, spec) for spec in specs]
    whole = list(opened)  # `opened` loses its faults one by one
    skipped: list[Fault] = []
    for position, dataset in enumerate(whole):
        later = [part for other in whole[position + 1 :] for part in _parts(other).values()]
        for name, part in _parts(dataset).items():
            faults = _faults(part, later, visual if on_error == "skip" else "none", workers)
            tell_alike(part, later)
            if not faults:
                continue
            if on_error == "raise":
                raise DataError(_listed(part, faults) + "; data.on_error=skip leaves them out")
            bad = len({fault.where for fault in faults})
            total = len(part)
            if isinstance(part, Shards):
                overlaps = [fault for fault in faults if fault.kind != "shard_truncated"]
                bad, total = part.lost + len(overlaps), total + part.lost
            share = bad / max(total, 1)
            if share > max_skipped:
                raise DataError(
                    f"{_listed(part, faults)}: {bad:,} of {total:,}, {share:.1%} of its items, "
                    f"more than data.max_skipped={max_skipped:.1%}"
                )
            skipped += faults
            if not isinstance(part, Shards) or overlaps:
                assert isinstance(part, ManifestDataset | Shards | HfStream)  # others have no fault
                usable = _without(part, faults)
                if isinstance(dataset, Mix):
                    dataset.replace(name, usable)
                else:
                    opened[position] = usable
    if opened and isinstance(opened[0], Mix):
        _tell_shared(opened[0])
    # a line too broken to tell its split is met in each
    return opened, list(dict.fromkeys(skipped))


def _tell_shared(mix: Mix) -> None:
    for (one, other), ids in shared_by_parts(mix.parts).items():
        warnings.warn(
            f"{mix.name}: {len(ids)} items of {other!r} are in {one!r} too, such as {ids[0]!r}: "
            "where both come in one batch, each counts as wrong for the other's captions; take "
            "them out of one part",
            stacklevel=3,
        )


def _parts(dataset: Dataset) -> dict[str, Dataset]:
    """Return the corpora of a mix by name, or the one dataset."""
    return dict(dataset.parts) if isinstance(dataset, Mix) else {dataset.name: dataset}


def _faults(
    dataset: Dataset,
    later: Sequence[Dataset],
    visual: Literal["image", "features", "none"],
    workers: int,
) -> list[Fault]:
    comparable = [d for d in later if isinstance(d, ManifestDataset | Shards | HfStream)]
    if isinstance(dataset, Shards | HfStream):
        broken = dataset.faults if isinstance(dataset, Shards) else []
        return broken + find_shared(dataset, comparable)
    if not isinstance(dataset, ManifestDataset):
        return []
    faults = find_bad_rows(dataset, visual=visual, workers=workers)
    faults += find_overlap(dataset, *(d for d in later if isinstance(d, ManifestDataset)))
    streamed = [d for d in comparable if not isinstance(d, ManifestDataset)]
    return faults + find_shared(dataset, streamed)


def _without(dataset: ManifestDataset | Shards | HfStream, faults: Sequence[Fault]) -> Subset:
    where = dataset.manifest.where if isinstance(dataset, ManifestDataset) else dataset.where
    by_line: dict[str, list[Fault]] = {}
    for fault in faults:
        if fault.kind != "shard_truncated":  # of no item that is there
            by_line.setdefault(fault.where, []).append(fault)
    kept: list[int] = []
    without: dict[int, set[int]] = {}
    for index in range(len(dataset)):
        found = by_line.get(where(index), [])
        if any(fault.caption is None for fault in found):
            continue
        kept.append(index)
        if found:
            without[index] = _places(dataset[index].captions, found)
    return Subset(dataset, kept, without)


def _places(captions: Sequence[Caption], faults: Sequence[Fault]) -> set[int]:
    """Return where the captions with faults stand; of one id used twice only the later are bad."""
    kinds: dict[str | None, list[str]] = {}
    for fault in faults:
        kinds.setdefault(fault.caption, []).append(fault.kind)
    places: set[int] = set()
    for identity, found in kinds.items():
        here = [place for place, caption in enumerate(captions) if caption.id == identity]
        repeated_only = set(found) == {"duplicate_caption"}
        places.update(here[-len(found) :] if repeated_only else here)
    return places


def _listed(dataset: Dataset, faults: Sequence[Fault]) -> str:
    shown = "\n  ".join(f"{fault.where}: {fault.message}" for fault in faults[:5])
    more = f"\n  and {len(faults) - 5} more" if len(faults) > 5 else ""
    way = "" if isinstance(dataset, HfStream) else " (`xlcm data check` lists all)"
    found = f"{len(faults)} fault(s) in {dataset.name}, split {dataset.split!r}{way}"
    return f"{found}:\n  {shown}{more}"


@dataclass
class Rows:
    """What an epoch goes over.

    Args:
        dataset: without items that lack a view, if those are to be dropped.
        views: knows how common each language is.
        slots: `(items,)` rows of each item in an epoch.
        lengths: `(items,)` mean characters of its captions of the first view that all items have,
            or of all captions where there is no such view; None if not asked.
        dropped: ids of items without a caption for some view.
        slot_view: the view that slots count; None: one row an item.
        langs_seen: languages that captions of some view were found in, in the order of the config.
    """

    dataset: Dataset
    views: Views
    slots: np.ndarray
    lengths: np.ndarray | None
    dropped: list[str]
    slot_view: str | None
    langs_seen: list[str]


def survey(
    dataset: Dataset,
    views: dict[str, View],
    *,
    rows: Literal["item", "caption"] = "item",
    incomplete: Literal["error", "drop"] = "error",
    lengths: bool = False,
) -> Rows:
    """Look once at every item's captions; at one only where a dataset says that all are alike.

    Args:
        dataset: the training split.
        views: of the method.
        rows: one row an item, or one for each caption of the first view.
        incomplete: what to do with items that lack a view. Those that lack it because
            `data.on_error=skip` left out a caption are dropped in any case.
        lengths: measure captions, for length buckets.

    Raises:
        DataError: naming view, item and the way out; if nothing is left; or if a language of a
            view has no caption.
        ConfigError: for rows over captions of a view that items may lack.
    """
    draw = Views(views)
    if draw.first is None and rows == "caption":
        raise ConfigError(
            "data.rows=caption goes over the captions of a view that every item has, but "
            f"{', '.join(views)} may be lacking (optional): add a view, or set data.rows=item"
        )
    first = draw.first or next(iter(draw.views))
    alike = getattr(dataset, "uniform", False) and not lengths
    counts: dict[str, Counter[str]] = {name: Counter() for name in draw.views}
    slots, sizes, kept, dropped = [], [], [], []
    for index in range(1 if alike else len(dataset)):
        item = dataset[index]
        fitting = draw.candidates(item)
        if draw.lacking(fitting):
            spoilt = isinstance(dataset, Subset | Mix) and dataset.lost_captions(index)
            if incomplete == "error" and not spoilt:
                raise DataError(draw.lacks(item))
            dropped.append(item.id)
            continue
        kept.append(index)
        slots.append(len(fitting[first]) if rows == "caption" else 1)
        measured = fitting[first] or [c for captions in fitting.values() for c in captions]
        sizes.append(float(np.mean([len(c.text) for c in measured])))
        for name, captions in fitting.items():
            counts[name].update(caption.lang for caption in captions)
    if not kept:
        raise DataError(
            f"{dataset.name}, split {dataset.split!r}: no item has captions for all of the views "
            f"{', '.join(views)}"
        )
    silent = [(n, lang) for n, v in draw.views.items() for lang in v.langs if not counts[n][lang]]
    if silent:
        raise DataError(_silent(dataset, draw, silent))
    if alike:
        slots = slots * len(dataset)
    return Rows(
        dataset=Subset(dataset, kept) if dropped else dataset,
        views=Views(views, counts),
        slots=np.array(slots, dtype=np.int32),
        lengths=np.array(sizes) if lengths else None,
        dropped=dropped,
        slot_view=first if rows == "caption" else None,
        langs_seen=[lang for lang in draw.langs if any(count[lang] for count in counts.values())],
    )


def _silent(dataset: Dataset, views: Views, silent: list[tuple[str, str]]) -> str:
    """Return the sentence for languages of a view that no caption is in."""
    found = Counter(
        (c.lang, c.origin) for index in range(len(dataset)) for c in dataset[index].captions
    )
    listed = ", ".join(f"{n:,} x {lang} {origin}" for (lang, origin), n in sorted(found.items()))
    name, lang = silent[0]
    more = "".join(
        f", data.views.{views.written(other)}.langs: {one!r}" for other, one in silent[1:]
    )
    return (
        f"{dataset.name}, split {dataset.split!r}: data.views.{views.written(name)}.langs: no "
        f"caption in {lang!r}{views.wanted(name)}{more}; the split has {listed}. Take the language "
        "out of the view, or bring captions in it (`xlcm translate`)"
    )


def training_texts(dataset: Dataset, views: Views) -> Iterator[str]:
    """Yield the captions that training may see, of at most 50,000 items spread over the data."""
    step = max(1, math.ceil(len(dataset) / TOKENIZER_ITEMS))
    for index in range(0, len(dataset), step):
        for captions in views.candidates(dataset[index]).values():
            for caption in captions:
                yield caption.text
