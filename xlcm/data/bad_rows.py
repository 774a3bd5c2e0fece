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
from typing import Literal, TypeAlias

from xlcm.data.dataset import ManifestDataset, feature_key
from xlcm.data.faults import (
    WARNINGS,
    Fault,
    Identities,
    caption_faults,
    chunks,
    feature_fault,
)
from xlcm.data.looks import looker
from xlcm.data.manifest import DataError
from xlcm.types import Item

Visual: TypeAlias = Literal["image", "features", "none"]
VERSION = 1  # of the rules; a new one makes old results void


def find_bad_rows(
    dataset: ManifestDataset,
    *,
    visual: Visual | None = None,
    workers: int = 1,
    remember: bool = True,
) -> list[Fault]:
    """Return every fault of a split, in the order of its lines; warnings are left out.

    The result is kept in `$XLCM_CACHE/checks` (by default `~/.cache/xlcm/checks`) until the
    manifest or the feature store changes. Changes of picture files alone are not noticed.

    Args:
        dataset: whose rows and captions (of its languages) are judged.
        visual: what a run reads of each item and what is therefore opened; None: features where
            the dataset has a store, otherwise images. `none` checks the text alone.
        workers: processes that decode.
        remember: whether to use and keep an earlier result.
    """
    visual = visual or ("features" if dataset.store is not None else "image")
    kept = _cache_file(dataset, visual)
    if remember and kept.is_file():
        return _read(kept)
    # sorted is stable: faults of one line stay in the order of the checks
    faults = [f for f in _find(dataset, visual, workers) if f.kind not in WARNINGS]
    faults.sort(key=lambda fault: int(fault.where.rpartition(":")[2]))
    if remember:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_skipped(faults, kept)
    return faults


def find_overlap(train: ManifestDataset, *others: ManifestDataset) -> list[Fault]:
    """Return the training items that validation or test data hold too, one fault each.

    Compared are image files, videos, keys of one feature store and, in one manifest, ids: two
    manifests may both count their items from 1. Lines that are no items are passed over here:
    `find_bad_rows` lists them.

    Args:
        train: where the faults are.
        others: the data that scores are measured on.
    """
    known: dict[str, str] = {}
    for other in others:
        for _, item in _rows(other, []):
            known.update((name, item.where) for name in _names(other, item))
    faults = []
    for _, item in _rows(train, []) if known else ():
        shared = [name for name in _names(train, item) if name in known]
        if shared:
            said = f"{shared[0]} is also at {known[shared[0]]}, which scores are measured on"
            faults.append(Fault(item.where, item.id, None, "split_overlap", said))
    return faults


def _names(dataset: ManifestDataset, item: Item) -> Iterator[str]:
    yield f"item id {item.id!r} of {Path(dataset.manifest.path).resolve()}"
    for kind, path in (("image", item.image), ("video", item.video)):
        if path is not None:
            yield f"{kind} {str(dataset.image_root.resolve() / path)!r}"
    if dataset.store is not None:
        yield f"features {feature_key(item)!r} of {dataset.store.folder.resolve()}"


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


def _cache_file(dataset: ManifestDataset, visual: Visual) -> Path:
    manifest = Path(dataset.manifest.path)
    status = manifest.stat()
    about = [VERSION, str(manifest.resolve()), status.st_size, status.st_mtime_ns, dataset.split,
             sorted(dataset.langs) if dataset.langs is not None else None,
             str(dataset.image_root.resolve()), visual]  # fmt: skip
    if dataset.store is not None and visual == "features":
        index = dataset.store.folder / "index.json"
        about += [str(index.resolve()), index.stat().st_mtime_ns]
    digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:24]
    folder = os.environ.get("XLCM_CACHE") or Path.home() / ".cache" / "xlcm"
    return Path(folder) / "checks" / f"{manifest.stem}-{dataset.split}-{digest}.jsonl"


def _find(dataset: ManifestDataset, visual: Visual, workers: int) -> Iterator[Fault]:
    identities = Identities()
    unreadable: list[Fault] = []
    with looker(workers if visual == "image" else 1) as look:
        for chunk in chunks(_rows(dataset, unreadable)):
            for number, item in chunk:
                identities.add(item, number)
                yield from caption_faults(item, dataset[number].captions)
                if visual == "features" and (
                    fault := feature_fault(item, dataset.store, feature_key(item))
                ):
                    yield fault
            if visual == "image":
                shown = [item for _, item in chunk if item.image is not None]
                tasks = [(str(dataset.image_root / str(i.image)), str(i.image), False)
                         for i in shown]  # fmt: skip
                for item, seen in zip(shown, look(tasks)):
                    if seen.kind is not None:
                        yield Fault(item.where, item.id, None, seen.kind, seen.message)
                for _, item in chunk:
                    if item.image is None:
                        said = f"item {item.id!r} has no image"
                        yield Fault(item.where, item.id, None, "image_missing", said)
    yield from unreadable
    for number in sorted(identities.suspects()):
        yield from identities.judge(dataset.manifest[number])


def _rows(dataset: ManifestDataset, unreadable: list[Fault]) -> Iterator[tuple[int, Item]]:
    for number in range(len(dataset)):
        try:
            yield number, dataset.manifest[number]
        except DataError as error:
            where = dataset.manifest.where(number)
            message = str(error).removeprefix(f"{where}: ")
            unreadable.append(Fault(where, "", None, error.kind, message))
