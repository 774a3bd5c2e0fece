"""STAIR captions: five Japanese sentences for each picture of COCO 2014, written from it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from xlcm.data.manifest import DataError
from xlcm.data.sources.base import Expected, Need, Plan, Skipped, add_common, run_import
from xlcm.data.sources.coco_names import (
    PictureIndex,
    coco_file,
    coco_id,
    image_folders,
    picture_key,
)
from xlcm.data.sources.joining import captions_of
from xlcm.data.sources.karpathy import Entry, read_karpathy
from xlcm.data.sources.text_lines import find, read_json
from xlcm.types import Caption, Item

__all__ = ["add_arguments", "picture_key", "plan", "run"]

OWN = {"train": 82_783, "val": 40_504}
KARPATHY = {"train": 113_287, "val": 5_000, "test": 5_000}
EACH = 5  # captions a picture


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `xlcm data import stair`."""
    add_common(parser)
    parser.add_argument(
        "--karpathy", metavar="FILE", help="dataset_coco.json: his splits, as papers use them "
        "(default: STAIR's own, whose val holds pictures that he trains on)",
    )  # fmt: skip
    parser.add_argument("--english", action="store_true",
                        help="add the first five English captions of --karpathy")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Import; exit code as of `run_import`."""
    made = plan(args.root, karpathy=args.karpathy, english=args.english, images=image_folders(args))
    return run_import(made, args)


def plan(
    root: str | Path,
    *,
    karpathy: str | None = None,
    english: bool = False,
    images: Sequence[str] = (),
) -> Plan:
    """Return what is read of STAIR.

    Args:
        root: the folder of `stair_captions_v1.2_{train,val}.json`.
        karpathy: his `dataset_coco.json`, for his splits (`restval` joins train).
        english: add its English captions.
        images: folders of pictures, in any layout that `PictureIndex` knows.

    Raises:
        DataError: if English is asked for without the file that has it.
    """
    if english and karpathy is None:
        raise DataError("--english takes the sentences of --karpathy FILE, which is not given")
    skipped = Skipped()
    files = {split: f"stair_captions_v1.2_{split}.json" for split in OWN}

    def items() -> Iterator[Item]:
        index = PictureIndex(images)
        pictures: dict[str, tuple[str, list[Any], str]] = {}  # split, texts, where
        for split, name in files.items():
            pictures.update(_read(find(root, name), split))
        splits = _splits(karpathy)
        order = pictures if splits is None else splits
        for identity in order:
            split, texts, where = pictures.get(identity, ("", [], f"{karpathy}"))
            made: list[Caption] = []
            if splits is not None:
                entry = splits[identity]
                split = entry.split
                if english:
                    made = captions_of(identity, "en", entry.texts[:EACH], entry.where, skipped)
            made += captions_of(identity, "ja", texts, where, skipped)
            file = index.find(identity, coco_file(identity))
            yield Item(identity, split, tuple(made), file, where=where)
        if splits is not None and (lost := [i for i in pictures if i not in splits]):
            raise DataError(f"{pictures[lost[0]][2]}: {len(lost):,} pictures are not in "
                            f"{karpathy}, such as {lost[0]}; is it whole?")  # fmt: skip

    needs = [Need(name, f"Japanese captions of {split}2014") for split, name in files.items()]
    if karpathy is not None:
        needs += [Need(str(Path(karpathy).absolute()), "Karpathy's splits")]
    counts = OWN if karpathy is None else KARPATHY
    langs = ("en", "ja") if english else ("ja",)
    return Plan(
        name="stair",
        title="STAIR captions v1.2" + (", Karpathy's split" if karpathy else ", own split"),
        get="stair_captions_v1.2.tar.gz of https://github.com/STAIR-Lab-CIT/STAIR-captions, "
        "unpacked. Pictures: train2014.zip and val2014.zip of https://cocodataset.org/#download.",
        terms="Captions CC BY 4.0; pictures under Flickr's terms.",
        cite="Yoshikawa et al. 2017, https://arxiv.org/abs/1705.00823",
        needs=tuple(needs),
        items=items,
        expected={
            split: Expected(n, dict.fromkeys(langs, EACH * n)) for split, n in counts.items()
        },
        key=picture_key,
        notes=(
            "The sentences are written from the picture: none is a translation of an English one.",
            *(
                ()
                if karpathy
                else (
                    "STAIR's own val is COCO val2014: 30,504 of its pictures are Karpathy's "
                    "training pictures (restval). Papers test on his split: --karpathy.",
                )
            ),
        ),
        skipped=skipped,
    )


def _read(path: Path, split: str) -> dict[str, tuple[str, list[Any], str]]:
    """Return split, sentences and place of each picture of one file in COCO's format."""
    data = read_json(path)
    if not isinstance(data, dict) or not isinstance(data.get("annotations"), list):
        raise DataError(f"{path}: expected an object with a list 'annotations', as COCO has it")
    found: dict[str, tuple[str, list[Any], str]] = {}
    for number, row in enumerate(data.get("images") or ()):
        where = f"{path}: images[{number}]"
        identity = _identity(row, "id", split, where)
        if identity in found:
            raise DataError(f"{where}: picture {identity!r} is at {found[identity][2]} before")
        found[identity] = (split, [], where)
    listed = bool(found)
    met: dict[object, str] = {}
    for number, row in enumerate(data["annotations"]):
        where = f"{path}: annotations[{number}]"
        identity = _identity(row, "image_id", split, where)
        if listed and identity not in found:
            raise DataError(f"{where}: a caption of picture {identity!r}, which 'images' lacks")
        if (own := row.get("id")) in met and own is not None:
            raise DataError(f"{where}: caption id {own!r} is at {met[own]} before")
        met[own] = where
        found.setdefault(identity, (split, [], where))[1].append(row.get("caption"))
    return found


def _identity(row: Any, key: str, split: str, where: str) -> str:
    if not isinstance(row, dict) or not isinstance(row.get(key), int):
        raise DataError(f"{where}: expected an object with a whole number {key!r}, got {row!r:.80}")
    return coco_id(row[key], split)


def _splits(karpathy: str | None) -> dict[str, Entry] | None:
    if karpathy is None:
        return None
    return {entry.id: entry for entry in read_karpathy(karpathy)}
