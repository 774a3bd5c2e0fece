"""`xlcm data check` on tar shards: every member is read, and all that is wrong is counted."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from xlcm.data.check import CheckReport, Measures, check_captions
from xlcm.data.faults import MAX_LENGTH, Fault, Identities
from xlcm.data.looks import decoder_says
from xlcm.data.manifest import DataError, parse_item, read_manifest
from xlcm.data.shards import INDEX, Shards
from xlcm.data.shared_items import known_names, shared_faults
from xlcm.data.tar_index import KINDS
from xlcm.types import Item


def is_shards(path: str | Path) -> bool:
    """Return whether a path names tar shards: a folder, a pattern of tars, or one of them."""
    return Path(path).is_dir() or str(path).endswith(".tar")


def check_shards(
    path: str | Path,
    *,
    txt_lang: str | None = None,
    images: bool = True,
    tokenizer: Measures | None = None,
    max_length: int = MAX_LENGTH,
    contents: bool = False,
    decoder: bool = False,
    against: Sequence[str | Path] = (),
) -> CheckReport:
    """Check every sample, caption, picture and feature; go on after each fault.

    Args:
        path: a folder of shards, or a pattern.
        txt_lang: see `Shards`.
        images: whether to decode the pictures.
        tokenizer: to count the captions that it would cut.
        max_length: of a caption, in characters.
        contents: whether to compare the pictures' bytes, also with those of `against`.
        decoder: whether to decode JPEGs as training does too; needs `images`.
        against: manifests; items of another split that are in the shards too are faults.

    Raises:
        DataError: if there are no shards, or one is no tar.
    """
    with warnings.catch_warnings():  # truncated ones are in the report
        warnings.simplefilter("ignore")
        split = _listed_split(path)
        shards = Shards(path=str(path), split=split or "train", txt_lang=txt_lang)
        if split is None:
            shards.split = _first_split(shards) or shards.split
    report = CheckReport(str(path))
    for fault in shards.faults:
        report.add(fault)
    for fault in _repeated_keys(shards):
        report.add(fault)
    known, pictures = _of_others(shards.split, against, contents)
    identities = Identities()
    digests: dict[int, str] = {}
    for number in range(len(shards)):
        try:
            item = shards.whole(number)
        except DataError as error:
            report.add(_fault(shards.where(number), "", error))
            continue
        report.items += 1
        report.captions += len(item.captions)
        report.splits[item.split] += 1
        check_captions(report, [item], tokenizer, max_length)
        for fault in _members(shards, number, item, images):
            report.add(fault)
        if decoder and images and (said := decoder_says(shards.picture_file(number) or b"")):
            report.add(Fault(item.where, item.id, None, "image_damaged", said))
        data = shards.picture_file(number) if contents else None
        if data is not None:
            digests[number] = hashlib.blake2b(data, digest_size=12).hexdigest()
            if (there := pictures.get(digests[number])) is not None:
                said = f"item {item.id!r}: the same picture is at {there}"
                report.add(Fault(item.where, item.id, None, "split_overlap", said))
        for fault in shared_faults([item], known):
            report.add(fault)
        identities.add(item, number, digests.get(number))
    for number in sorted(identities.suspects()):
        for fault in identities.judge(shards.whole(number), digests.get(number)):
            report.add(fault)
    return report


def _listed_split(path: str | Path) -> str | None:
    index = Path(path) / INDEX
    try:
        return str(json.loads(index.read_text(encoding="utf-8"))["split"])
    except (OSError, ValueError, KeyError, TypeError):  # none, or one that `Shards` will refuse
        return None


def _first_split(shards: Shards) -> str | None:
    """Return the split of the first item that says one: nothing lists it."""
    for file, index in zip(shards.files, shards.indices):
        with open(file, "rb") as tar:
            for number in range(len(index)):
                if (place := index.place(number, "json")) is None:
                    continue
                tar.seek(place.offset)
                try:
                    return parse_item(tar.read(place.size), "").split
                except DataError:  # it is named when its turn comes
                    continue
    return None


def _members(shards: Shards, number: int, item: Item, images: bool) -> Iterator[Fault]:
    pictured = shards.has(number, "image")
    if pictured and images:
        try:
            shards.load_image(number)
        except DataError as error:
            yield _fault(item.where, item.id, error)
    featured = any(shards.has(number, kind) for kind in KINDS)
    if featured:
        try:
            shards.load_features(number)
        except DataError as error:
            yield _fault(item.where, item.id, error)
    if not pictured and not featured:
        said = f"item {item.id!r} has neither picture nor features"
        yield Fault(item.where, item.id, None, "no_visual", said)


def _fault(where: str, item: str, error: DataError) -> Fault:
    return Fault(where, item, None, error.kind, str(error).removeprefix(f"{where}: "))


def _repeated_keys(shards: Shards) -> Iterator[Fault]:
    """Yield the samples whose name another one has, in the same shard or in another."""
    first: dict[bytes, int] = {}
    place = 0
    for index in shards.indices:
        for key in index.keys.tolist():
            there = first.setdefault(key, place)
            if there != place:
                said = f"a sample of the same key is at {shards.where(there)}"
                yield Fault(shards.where(place), "", None, "duplicate_item", said)
            place += 1


def _of_others(
    split: str, against: Sequence[str | Path], contents: bool
) -> tuple[dict[str, str], dict[str, str]]:
    """Return where the items of other splits are, by their names and by their pictures."""
    known: dict[str, str] = {}
    pictures: dict[str, str] = {}
    for path in against:
        items = [item for item in read_manifest(path) if item.split != split]
        known.update(known_names(items))
        for item in items if contents else ():
            file = Path(path).parent / (item.image or "")
            if item.image is not None and file.is_file():
                digest = hashlib.blake2b(file.read_bytes(), digest_size=12).hexdigest()
                pictures[digest] = item.where
    return known, pictures
