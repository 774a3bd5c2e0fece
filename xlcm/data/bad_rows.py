"""Which rows of a dataset can't be used: looked up once before training, then remembered.

Training with `data.on_error: skip` leaves these out from the start, so that the order of the
others is the one that they would have without them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from xlcm.data.dataset import ManifestDataset, feature_key
from xlcm.data.faults import (
    WARNINGS,
    Fault,
    Identities,
    caption_faults,
    chunks,
    feature_fault,
)
from xlcm.data.looks import Looker, looker
from xlcm.data.manifest import DataError
from xlcm.types import Item

Visual: TypeAlias = Literal["image", "features", "none"]
VERSION = 3  # of the rules; a new one makes old results void
WORTH_WORKERS = 64  # pictures


def find_bad_rows(
    dataset: ManifestDataset,
    *,
    visual: Visual | None = None,
    workers: int = 1,
    remember: bool = True,
) -> list[Fault]:
    """Return every fault of a split, in the order of its lines; warnings are left out.

    Two things are kept in `$XLCM_CACHE/checks` (by default `~/.cache/xlcm/checks`) until the
    manifest changes: the faults of its text, and which pictures or features were good, with size
    and time of their files. All others are looked at each time: those that were bad, and those
    whose file has changed since.

    Args:
        dataset: whose rows and captions (of its languages) are judged.
        visual: what a run reads of each item and what is therefore opened; None: features where
            the dataset has a store, otherwise images. `none` checks the text alone.
        workers: processes that decode.
        remember: whether to use and keep an earlier result.
    """
    visual = visual or ("features" if dataset.store is not None else "image")
    faults = _known_text_faults(dataset, remember)
    if visual != "none":
        faults += _visual_faults(dataset, visual, workers, remember)
    # sorted is stable: faults of one line stay in the order of the checks
    return sorted(faults, key=lambda fault: int(fault.where.rpartition(":")[2]))


def find_overlap(dataset: ManifestDataset, *others: ManifestDataset) -> list[Fault]:
    """Return what validation or test data hold too of a split, one fault an item or caption.

    Compared are image files, videos (whole ones, whatever segments of them are taken), keys of one
    feature store and, in one manifest, ids of items and captions: two manifests may both count
    theirs from 1. Lines that are no items are passed over here: `find_bad_rows` lists them.

    Args:
        dataset: where the faults are: training data, or validation data beside test data.
        others: the data that scores are measured on.
    """
    known: dict[str, str] = {}
    for other in others:
        for number, item in _rows(other, []):
            names = [*_names(other, item), *_caption_names(other, other[number])]
            known.update((name, item.where) for name in names)
    faults = []
    for number, item in _rows(dataset, []) if known else ():
        shared = [name for name in _names(dataset, item) if name in known]
        if shared:
            said = f"{shared[0]} is also at {known[shared[0]]}, which scores are measured on"
            faults.append(Fault(item.where, item.id, None, "split_overlap", said))
            continue
        captions = dataset[number].captions
        for caption, name in zip(captions, _caption_names(dataset, dataset[number])):
            if name in known:
                said = f"caption id {caption.id!r} is also at {known[name]}, which scores are "
                said += "measured on"
                faults.append(Fault(item.where, item.id, caption.id, "duplicate_caption", said))
    return faults


def _names(dataset: ManifestDataset, item: Item) -> Iterator[str]:
    yield f"item id {item.id!r} of {Path(dataset.manifest.path).resolve()}"
    for kind, path in (("image", item.image), ("video", item.video)):
        if path is not None:
            yield f"{kind} {str(dataset.image_root.resolve() / path)!r}"
    if dataset.store is not None:
        yield f"features {feature_key(item)!r} of {dataset.store.folder.resolve()}"


def _caption_names(dataset: ManifestDataset, item: Item) -> Iterator[str]:
    manifest = Path(dataset.manifest.path).resolve()
    return (f"caption {caption.id!r} of {manifest}" for caption in item.captions)


def write_skipped(faults: Iterable[Fault], path: str | Path) -> None:
    """Write faults as JSON lines (`where`, `item`, `caption`, `kind`, `message`)."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    text = "".join(json.dumps(asdict(fault), ensure_ascii=False) + "\n" for fault in faults)
    # a lone surrogate is one of the faults that are named here
    aside.write_text(text, encoding="utf-8", errors="backslashreplace")
    os.replace(aside, path)


def _read(path: Path) -> list[Fault]:
    with open(path, encoding="utf-8") as file:
        return [Fault(**json.loads(line)) for line in file]


def _cache_file(dataset: ManifestDataset, about: list[Any], ending: str) -> Path:
    manifest = Path(dataset.manifest.path)
    status = manifest.stat()
    about = [VERSION, str(manifest.resolve()), status.st_size, status.st_mtime_ns, dataset.split,
             *about]  # fmt: skip
    digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:24]
    folder = Path(os.environ.get("XLCM_CACHE") or Path.home() / ".cache" / "xlcm") / "checks"
    return folder / f"{manifest.stem}-{dataset.split}-{digest}{ending}"


# -- text ---------------------------------------------------------------------------------------


def _known_text_faults(dataset: ManifestDataset, remember: bool) -> list[Fault]:
    langs = sorted(dataset.langs) if dataset.langs is not None else None
    kept = _cache_file(dataset, ["text", langs], ".jsonl")
    if remember and kept.is_file():
        return _read(kept)
    faults = [fault for fault in _text_faults(dataset) if fault.kind not in WARNINGS]
    if remember:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_skipped(faults, kept)
    return faults


def _text_faults(dataset: ManifestDataset) -> Iterator[Fault]:
    identities = Identities()
    unreadable: list[Fault] = []
    for number, item in _rows(dataset, unreadable):
        identities.add(item, number)
        yield from caption_faults(item, dataset[number].captions)
    yield from unreadable
    for number in sorted(identities.suspects()):
        yield from identities.judge(dataset.manifest[number])


# -- pictures and features ----------------------------------------------------------------------


def _visual_faults(
    dataset: ManifestDataset, visual: Visual, workers: int, remember: bool
) -> list[Fault]:
    """Look at the pictures or features that are not known as good; note which ones are now."""
    folder = dataset.image_root if visual == "image" or not dataset.store else dataset.store.folder
    kept = _cache_file(dataset, [visual, str(folder.resolve())], ".npy")
    # size and time of the file that was good; -1: none is known
    good = np.full((len(dataset), 2), -1, dtype=np.int64)
    if remember and kept.is_file():
        good = np.load(kept, allow_pickle=False)
    before = good.copy()
    stamps = _stamps(dataset, visual)
    suspects = np.flatnonzero((good != stamps).any(axis=1) | (good < 0).any(axis=1))
    faults = []
    # spawned processes take seconds to start
    with looker(workers if visual == "image" and len(suspects) > WORTH_WORKERS else 1) as look:
        for chunk in chunks(_rows(dataset, [], suspects.tolist())):
            for (number, _), fault in zip(chunk, _looks(dataset, visual, look, chunk)):
                good[number] = stamps[number] if fault is None else -1
                if fault is not None:
                    faults.append(fault)
    if remember and not np.array_equal(good, before):
        kept.parent.mkdir(parents=True, exist_ok=True)
        aside = kept.with_name(f".{os.getpid()}.{kept.name}")
        np.save(aside, good, allow_pickle=False)
        os.replace(aside, kept)
    return faults


def _stamps(dataset: ManifestDataset, visual: Visual) -> np.ndarray:
    """Return `(items, 2)` size and time (ns) of the file that each item is read from; -1: none."""
    stamps = np.full((len(dataset), 2), -1, dtype=np.int64)
    if visual == "features" and dataset.store is not None:
        files = ["index.json", *(shard["file"] for shard in dataset.store.index["shards"])]
        found = [_stamp(dataset.store.folder / file) for file in files]
        # of all files together: a newer file may have been replaced by an older one
        digest = hashlib.blake2b(repr(found).encode(), digest_size=8).digest()
        stamps[:] = sum(size for size, _ in found), int.from_bytes(digest, "little") >> 1
    elif visual == "image":
        for number, item in _rows(dataset, []):
            if item.image is not None:
                stamps[number] = _stamp(dataset.image_root / item.image)
    return stamps


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except (OSError, ValueError):  # such as a NUL in the name; who opens it says what is wrong
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _looks(
    dataset: ManifestDataset, visual: Visual, look: Looker, chunk: list[tuple[int, Item]]
) -> Iterator[Fault | None]:
    """Yield the fault of each item's picture or features, if it has one."""
    if visual == "features":
        yield from (feature_fault(item, dataset.store, feature_key(item)) for _, item in chunk)
        return
    tasks = [(str(dataset.image_root / i.image), i.image, False) for _, i in chunk if i.image]
    seen = iter(look(tasks))
    for _, item in chunk:
        if not item.image:
            said = f"item {item.id!r} has no image"
            yield Fault(item.where, item.id, None, "image_missing", said)
            continue
        found = next(seen)
        if found.kind is None or found.kind in WARNINGS:
            yield None
        else:
            yield Fault(item.where, item.id, None, found.kind, found.message)


def _rows(
    dataset: ManifestDataset, unreadable: list[Fault], numbers: Iterable[int] | None = None
) -> Iterator[tuple[int, Item]]:
    """Yield the items that can be read, all or those of some numbers; note the others."""
    for number in range(len(dataset)) if numbers is None else numbers:
        try:
            yield number, dataset.manifest[number]
        except DataError as error:
            where = dataset.manifest.where(number)
            message = str(error).removeprefix(f"{where}: ")
            unreadable.append(Fault(where, "", None, error.kind, message))
