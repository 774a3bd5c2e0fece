"""Multi30K: Flickr30k with translated (task 1) or five written captions (task 2); en de fr cs pt.

The root is a copy of the repository multi30k/dataset, or its folder `data`. Sentences and pictures
are matched by line number: `task1/raw/train.de` and `task1/image_splits/train.txt`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from xlcm.data.languages import language_fault
from xlcm.data.manifest import DataError
from xlcm.data.sources.base import Expected, Need, Plan, Skipped, add_common, run_import
from xlcm.data.sources.multi30k_lines import Sentences, read_split
from xlcm.data.sources.text_lines import find_all
from xlcm.registry import nearest
from xlcm.types import Item

IMAGES = {
    "train": 29_000, "val": 1_014, "test_2016_flickr": 1_000, "test_2017_flickr": 1_000,
    "test_2017_mscoco": 461, "test_2018_flickr": 1_071,
}  # fmt: skip
"""Pictures of each split."""
TESTS = tuple(split for split in IMAGES if split.startswith("test"))
TASK1 = {
    "en": tuple(IMAGES), "de": tuple(IMAGES), "fr": tuple(IMAGES),
    "cs": ("train", "val", "test_2016_flickr", "test_2018_flickr"),
    "pt": ("train", "val", "test_2016_flickr"),
}  # fmt: skip
"""Published splits of task 1 by language; Portuguese comes from another repository."""
TASK2 = {"train": "train", "val": "val", "test_2016_flickr": "test_2016"}
"""Splits that task 2 has -> what its files call them."""
FIVE = range(1, 6)

GET = (
    "git clone https://github.com/multi30k/dataset; Portuguese: "
    "https://github.com/FrameNetBrasil/framed-multi30k (data/multi30k/task1/raw); NLLB "
    "translations: https://github.com/ufdatastudio/multi30k-extension. Pictures: the form of "
    "Flickr30k, https://shannon.cs.illinois.edu/DenotationGraph/, and the separate form named in "
    "the repository for the tests of 2017 and 2018; test_2017_mscoco is COCO 2014."
)
TERMS = (
    "pictures under Flickr's terms, non-commercial research and education only; the repository "
    "states no further licence of the text; NLLB-200 is for non-commercial use."
)
CITE = (
    "Elliott et al. 2016, https://aclanthology.org/W16-3210; Elliott et al. 2017, "
    "https://aclanthology.org/W17-4718; Barrault et al. 2018, https://aclanthology.org/W18-6402"
)
WRITTEN_APART = (
    "The German captions of task 2 are no translations of its English ones, and the files sort "
    "them by length, English from long to short, German from short to long: never pair .k.en "
    "with .k.de, and use all five or draw at random."
)
SAME_ENGLISH = (
    "Every English caption of task 1 is one of the five of task 2: don't mix the two as if they "
    "were two corpora."
)
KARPATHY = (
    "train, val and test_2016_flickr hold the pictures of Karpathy's Flickr30k split. Flickr8k-CN "
    "and Flickr30k-CN split the same pictures otherwise: check with --against before you train on "
    "one and test on the other."
)


def picture_key(item: Item) -> str:
    """Return `coco:<number>` or `flickr:<photo id>`, which Flickr8k and Flickr30k share."""
    if item.id.startswith("COCO_"):
        return f"coco:{int(item.id.rpartition('_')[2])}"
    return f"flickr:{item.id.partition('_')[0]}"


# -- command ------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `xlcm data import multi30k`."""
    add_common(parser)
    parser.add_argument(
        "--task", choices=["1", "2", "both"], default="1",
        help="1: one English caption and its translations; 2: five written captions in English "
        "and German; both: English and German of task 2 with the other languages of task 1, as "
        "in multilingual pre-training papers (default: 1)",
    )  # fmt: skip
    parser.add_argument("--langs", nargs="+", metavar="CODE",
                        help="default: en de fr cs, for task 2 en de")  # fmt: skip
    parser.add_argument("--tests", nargs="*", choices=TESTS, metavar="SPLIT",
                        help=f"of {', '.join(TESTS)} (default: all of the task)")  # fmt: skip
    parser.add_argument(
        "--more", nargs="+", default=[], metavar="FOLDER",
        help="further human translations of task 1 as <split>.<lang>, such as Portuguese",
    )  # fmt: skip
    parser.add_argument("--mt", metavar="FOLDER",
                        help="machine translations of task 1 as <split>.en2<lang>")  # fmt: skip
    parser.add_argument("--mt-langs", nargs="+", metavar="CODE", help="default: all in --mt")
    parser.add_argument("--mt-engine", default="nllb-200-3.3b", metavar="NAME",
                        help="what made them (default: nllb-200-3.3b)")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Import; 1 if counts differ from the published ones."""
    return run_import(plan(args), args)


def plan(args: argparse.Namespace) -> Plan:
    """Return what the options ask for.

    Raises:
        DataError: for a language or split that the task lacks.
    """
    langs = _langs(args)
    tests = TESTS if args.tests is None else tuple(dict.fromkeys(args.tests))
    root = Path(args.root)
    inside = "" if any((root / f"task{n}").is_dir() for n in (1, 2)) else "data/"
    wanted = [split for split in IMAGES if split in ("train", "val", *tests)]
    if args.task == "2":
        if unknown := [split for split in args.tests or () if split not in TASK2]:
            raise DataError(f"--tests {unknown[0]}: task 2 has only test_2016_flickr")
        wanted = [split for split in wanted if split in TASK2]
    files = [file for split in wanted for file in _files(args, inside, split, langs)]
    if args.mt and not any(file.engine for file in files):
        raise DataError(f"--mt {args.mt}: no file there is called <split>.en2<lang>, such as "
                        f"{wanted[0]}.en2es")  # fmt: skip
    splits = [split for split in wanted if any(f.split == split for f in files)]
    for lang in langs:
        if not any(file.lang == lang for file in files):
            raise DataError(f"--langs {lang}: no file train.{lang}, val.{lang} or test in --more")
    if bare := [split for split in args.tests or () if split not in splits]:
        raise DataError(f"--tests {bare[0]}: not published in {', '.join(langs)}")
    lists = {split: _image_list(inside, args.task, split) for split in splits}
    listed = tuple(Need(path, f"images of {split}") for split, path in lists.items())
    needs = tuple(Need(f.path, f.what) for f in files)
    skipped = Skipped()
    notes = {"1": (), "2": (WRITTEN_APART,), "both": (WRITTEN_APART,)}[args.task]

    def items() -> Iterator[Item]:
        for split in splits:
            own = [file for file in files if file.split == split]
            yield from read_split(root, split, lists[split], own, skipped)

    return Plan(
        name="multi30k", title=f"Multi30K task {args.task}".replace("task both", "tasks 1 and 2"),
        get=GET, terms=TERMS, cite=CITE, needs=listed + needs, items=items,
        expected={split: _expected(split, files) for split in splits}, key=picture_key,
        notes=(*notes, SAME_ENGLISH, KARPATHY, *_without_machine(files, splits)), skipped=skipped,
    )  # fmt: skip


def _langs(args: argparse.Namespace) -> list[str]:
    langs = args.langs or (["en", "de"] if args.task == "2" else ["en", "de", "fr", "cs"])
    for lang in (*langs, *(args.mt_langs or ())):
        if fault := language_fault(lang):
            raise DataError(f"--langs {lang}: {fault}", kind="unknown_language")
    unknown = [lang for lang in langs if lang not in TASK1]
    if args.task == "2" and (strange := [lang for lang in langs if lang not in ("en", "de")]):
        raise DataError(f"--langs {strange[0]}: task 2 has only en and de; `--task both` adds the "
                        "other languages of task 1")  # fmt: skip
    if unknown and not args.more:
        raise DataError(f"--langs {unknown[0]}: task 1 has {', '.join(TASK1)}; other languages "
                        "need their folder, `--more FOLDER`, or --mt for machine translations"
                        + nearest(unknown[0], TASK1))  # fmt: skip
    if args.task == "2" and (args.mt or args.more):
        raise DataError("--mt and --more go with the English of task 1; use --task 1 or both")
    return list(dict.fromkeys(langs))


# -- files --------------------------------------------------------------------------------------


def _image_list(inside: str, task: str, split: str) -> str:
    if task == "2":
        return f"{inside}task2/image_splits/{TASK2[split]}_images.txt"
    return f"{inside}task1/image_splits/{split}.txt"


def _files(
    args: argparse.Namespace, inside: str, split: str, langs: Sequence[str]
) -> list[Sentences]:
    """Return the files of one split, in the order of the captions in an item."""
    five = () if args.task == "1" or split not in TASK2 else ("en", "de")
    files: list[Sentences] = []
    for lang in langs:
        if lang in five:
            for k in FIVE:
                path = f"{inside}task2/raw/{TASK2[split]}.{k}.{lang}"
                files.append(Sentences(path, split, lang, index=k - 1))
        elif path := _translation(args, inside, split, lang):
            files.append(Sentences(path, split, lang, source=lang != "en"))
    if args.mt:
        files += _machine(args, split)
    return files


def _translation(args: argparse.Namespace, inside: str, split: str, lang: str) -> str:
    """Return where a human translation is or should be; "" where nothing was published."""
    folders = [f"{inside}task1/raw", *(str(Path(folder).absolute()) for folder in args.more)]
    for folder in folders:
        if find_all(args.root, f"{folder}/{split}.{lang}"):
            return f"{folder}/{split}.{lang}"
    folder = folders[-1] if lang == "pt" else folders[0]
    return f"{folder}/{split}.{lang}" if split in TASK1.get(lang, ()) else ""


def _machine(args: argparse.Namespace, split: str) -> list[Sentences]:
    folder = Path(args.mt).absolute()
    if not folder.is_dir():
        raise DataError(f"--mt {args.mt}: no such folder")
    start = f"{split}.en2"
    there = {path.name.removesuffix(".gz")[len(start) :] for path in find_all(folder, start + "*")}
    for lang in there:
        if fault := language_fault(lang):
            raise DataError(f"{folder / start}{lang}: {fault}", kind="unknown_language")
    return [
        Sentences(str(folder / f"{start}{lang}"), split, lang, ".mt", 0, args.mt_engine, True)
        for lang in args.mt_langs or sorted(there)
    ]


def _without_machine(files: Sequence[Sentences], splits: Sequence[str]) -> Iterator[str]:
    """Yield a note for each language whose machine translation some splits lack."""
    there: dict[str, set[str]] = {}
    for file in files:
        if file.engine:
            there.setdefault(file.lang, set()).add(file.split)
    for lang, found in there.items():
        if lacking := [split for split in splits if split not in found]:
            yield (f"--mt has no translation into {lang} of {', '.join(lacking)}: items there have "
                   "none")  # fmt: skip


def _expected(split: str, files: Sequence[Sentences]) -> Expected:
    counts: dict[str, int] = {}
    for file in files:
        if file.split == split:
            label = f"{file.lang} {'mt' if file.engine else 'human'}"
            counts[label] = counts.get(label, 0) + IMAGES[split]
    return Expected(IMAGES[split], counts)
