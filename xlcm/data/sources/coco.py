"""MSCOCO in Karpathy's split: 123,287 pictures, five English captions each; his Flickr sets."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from xlcm.data.manifest import DataError
from xlcm.data.sources.base import Expected, Need, Plan, Skipped, add_common, run_import
from xlcm.data.sources.coco_names import PictureIndex, image_folders, picture_key
from xlcm.data.sources.joining import captions_of
from xlcm.data.sources.karpathy import GET, read_karpathy
from xlcm.data.sources.text_lines import find
from xlcm.types import Item

__all__ = ["add_arguments", "picture_key", "plan", "run"]

FIRST = 5  # captions a picture that papers use


@dataclass(frozen=True)
class _Set:
    title: str
    pictures: dict[str, int]
    all_captions: dict[str, int]
    images: str
    terms: str


# COCO: 616,767 captions in all, of which 332 are a sixth or seventh one
SETS = {
    "coco": _Set(
        "MSCOCO, Karpathy's split",
        {"train": 113_287, "restval": 30_504, "val": 5_000, "test": 5_000},
        {"train": 566_747, "val": 25_010, "test": 25_010},
        "train2014.zip and val2014.zip of https://cocodataset.org/#download",
        "Annotations CC BY 4.0; pictures under Flickr's terms.",
    ),
    "flickr30k": _Set(
        "Flickr30k, Karpathy's split",
        {"train": 29_000, "val": 1_014, "test": 1_000},
        {"train": 145_000, "val": 5_070, "test": 5_000},
        "the form at https://shannon.cs.illinois.edu/DenotationGraph/",
        "Non-commercial research and education; pictures under Flickr's terms.",
    ),
    "flickr8k": _Set(
        "Flickr8k, Karpathy's split",
        {"train": 6_000, "val": 1_000, "test": 1_000},
        {"train": 30_000, "val": 5_000, "test": 5_000},
        "the form of the University of Illinois",
        "Non-commercial research; pictures under Flickr's terms.",
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `xlcm data import coco`."""
    add_common(parser)
    parser.add_argument("--set", choices=sorted(SETS), default="coco",
                        help="which file of the archive (default: coco)")  # fmt: skip
    parser.add_argument(
        "--restval", choices=["train", "own", "drop"], default="train",
        help="the 30,504 pictures of val2014 that are neither val nor test: join train, be a "
        "split restval, or stay out (default: train, as in papers)",
    )  # fmt: skip
    parser.add_argument(
        "--captions", type=int, default=FIRST, metavar="N",
        help="captions a picture, the first N; 0: all, some have six or seven (default: 5)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Import; exit code as of `run_import`."""
    made = plan(args.root, args.set, restval=args.restval, captions=args.captions,
                images=image_folders(args))  # fmt: skip
    return run_import(made, args)


def plan(
    root: str | Path,
    name: str = "coco",
    *,
    restval: str = "train",
    captions: int = FIRST,
    images: Sequence[str] = (),
) -> Plan:
    """Return what is read of one of Karpathy's files.

    Args:
        root: the folder with `dataset_<name>.json`.
        name: of `SETS`.
        restval: `train`, `own` or `drop`.
        captions: the first of each picture that are kept; 0: all.
        images: folders of pictures, in any layout that `PictureIndex` knows.

    Raises:
        DataError: for a negative number of captions.
    """
    if captions < 0:
        raise DataError(f"--captions {captions}: 0 (all) or a number of captions is expected")
    skipped, of, file = Skipped(), SETS[name], f"dataset_{name}.json"

    def items() -> Iterator[Item]:
        index = PictureIndex(images)
        to = {"train": "train", "own": "restval", "drop": None}[restval]
        for entry in read_karpathy(find(root, file), to):
            texts = entry.texts[: captions or None]
            made = captions_of(entry.id, "en", texts, entry.where, skipped)
            path = index.find(entry.id, entry.file)
            yield Item(entry.id, entry.split, tuple(made), path, where=entry.where)

    return Plan(
        name="coco",
        title=of.title,
        get=f"Captions and splits: {GET}. Pictures: {of.images}.",
        terms=of.terms,
        cite="Karpathy and Fei-Fei 2015, https://arxiv.org/abs/1412.2306; Lin et al. 2014, "
        "https://arxiv.org/abs/1405.0312",
        needs=(Need(file, "splits and English captions"),),
        items=items,
        expected=_expected(of, restval, captions),
        key=picture_key,
        notes=(
            "Figures on 5K use all 5,000 test pictures with 25,000 captions; 1K is the mean over "
            "five folds of 1,000, in the file's order, not one subset.",
            "XTD10, xFlickr&CO, Multi30K's test_2017_mscoco and COCO-CN show pictures of COCO: "
            "count those that training has seen with --against.",
        )
        if name == "coco"
        else (),
        skipped=skipped,
    )


def _expected(of: _Set, restval: str, captions: int) -> dict[str, Expected]:
    pictures = dict(of.pictures)
    rest = pictures.pop("restval", 0)
    if restval != "train":
        pictures["train"] -= rest
        if rest and restval == "own":
            pictures["restval"] = rest
    told = {}
    for split, n in pictures.items():
        number = n * captions if 0 < captions <= FIRST else None
        if captions == 0 and (restval == "train" or split != "train") and split != "restval":
            number = of.all_captions[split]
        told[split] = Expected(n, {"en": number} if number else {})
    return told
