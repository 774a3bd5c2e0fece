"""AIC-ICC: 240,000 pictures of people, five Chinese captions each (AI Challenger 2017)."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from xlcm.data.manifest import DataError
from xlcm.data.sources.base import Expected, Need, Plan, Skipped, add_common, run_import
from xlcm.data.sources.text_lines import find, find_all, read_json
from xlcm.types import Caption, Item

FILES = {
    "train": "caption_train_annotations_20170902.json",
    "val": "caption_validation_annotations_20170910.json",
}
FOLDERS = {"train": "caption_train_images_20170902", "val": "caption_validation_images_20170910"}
ARCHIVES = {
    "train": "ai_challenger_caption_train_20170902",
    "val": "ai_challenger_caption_validation_20170910",
}
TRAIN, VALIDATION = 210_000, 30_000  # pictures, with five captions each
TEST = 10_000  # first pictures of the validation file that papers test on


def picture_key(item: Item) -> str:
    """Return `aic:<picture>`."""
    return f"aic:{item.id}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `xlcm data import aic-icc`."""
    add_common(parser)
    parser.add_argument(
        "--test-images", type=int, default=TEST, metavar="N",
        help="the first N pictures of the validation file are the split test, as in BriVL and "
        f"Wukong; 0: none (default: {TEST:,})",
    )  # fmt: skip
    parser.add_argument("--flat", action="store_true", help="the pictures of both folders lie in "
                        "--images itself")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Import; exit code as of `run_import`."""
    if args.test_images < 0:
        raise DataError(f"--test-images {args.test_images}: a number of pictures is expected")
    return run_import(plan(args.root, test_images=args.test_images, flat=args.flat), args)


def plan(root: str | Path, *, test_images: int = TEST, flat: bool = False) -> Plan:
    """Return what is read of AIC-ICC.

    Args:
        root: the folder with the two JSON files, or with the folders of the owners' two archives.
        test_images: the first pictures of the validation file that become the split test.
        flat: image names without the owners' two folders.
    """
    skipped = Skipped()
    inside = {
        split: "" if find_all(root, name) or not find_all(root, f"{ARCHIVES[split]}/{name}")
        else f"{ARCHIVES[split]}/"
        for split, name in FILES.items()
    }  # fmt: skip

    def items() -> Iterator[Item]:
        for split, name in FILES.items():
            yield from read_annotations(
                find(root, inside[split] + name),
                split,
                folder="" if flat else f"{inside[split]}{FOLDERS[split]}/",
                test_images=test_images if split == "val" else 0,
                skipped=skipped,
            )

    expected = {"train": Expected(TRAIN, {"zh": 5 * TRAIN})}
    for split, number in (("val", VALIDATION - test_images), ("test", test_images)):
        if number > 0:
            expected[split] = Expected(number, {"zh": 5 * number})
    return Plan(
        name="aic-icc",
        title="AIC-ICC, the Chinese captions of AI Challenger 2017",
        get="The official site (challenger.ai) is gone; ask those who hold the two archives "
        f"{ARCHIVES['train']} and {ARCHIVES['val']}.",
        terms="Given out after registration, for research.",
        cite="Wu et al. 2017, https://arxiv.org/abs/1711.06475",
        needs=(
            Need(inside["train"] + FILES["train"], "captions of the training pictures"),
            Need(inside["val"] + FILES["val"], "captions of the validation pictures"),
        ),
        items=items,
        expected=expected,
        key=picture_key,
        skipped=skipped,
        notes=(
            f"test is the first {test_images:,} pictures of the validation file, in its order "
            "(BriVL, Wukong), and val the others; the two hidden test sets have no captions."
            if test_images
            else "all 30,000 validation pictures are the split val; the hidden test sets have no "
            "captions.",
        ),
    )


def read_annotations(
    path: Path, split: str, *, folder: str, test_images: int, skipped: Skipped
) -> Iterator[Item]:
    """Yield the pictures of one annotation file in its order.

    Raises:
        DataError: naming the file and the number of the entry.
    """
    rows = read_json(path)
    if not isinstance(rows, list):
        raise DataError(f"{path}: expected a list of pictures, got {type(rows).__name__}")
    for number, row in enumerate(rows):
        where = f"{path}: entry {number}"
        try:
            name, texts = row["image_id"], row["caption"]
        except (KeyError, TypeError) as error:
            raise DataError(f"{where}: expected image_id and caption, got {row!r:.80}") from error
        if not isinstance(name, str) or not isinstance(texts, list):
            raise DataError(f"{where}: image_id must be text and caption a list, got {row!r:.80}")
        identity = name.rpartition(".")[0] or name
        captions = []
        for n, text in enumerate(texts):
            if not isinstance(text, str):
                raise DataError(f"{where}: caption {n} is no text but {text!r:.60}")
            if not text.strip():
                skipped.add(where)
                continue
            captions.append(Caption(f"{identity}#zh.{n}", "zh", text.strip()))
        part = "test" if number < test_images else split
        yield Item(identity, part, tuple(captions), f"{folder}{name}", where=where)
