"""Flickr30k-CN: Flickr30k with five Chinese captions a picture, by machine (train, val) and people.

The root holds `train.txt`, `val.txt` and `test.txt` with lines `<photo>#<tag>#<n> <text>` or
`<photo><TAB><text>`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from xlcm.data.manifest import DataError
from xlcm.data.sources.base import Expected, Need, Plan, Skipped, add_common, run_import
from xlcm.data.sources.flickr_cn import Kind, join, picture_key, read_captions
from xlcm.data.sources.text_lines import find, find_all
from xlcm.types import Caption, Item

__all__ = ["add_arguments", "picture_key", "plan", "run"]

IMAGES = {"train": 29_783, "val": 1_000, "test": 1_000}
ENGLISH = Kind("en", "human", "en")
BY_MACHINE = Kind("zh", "mt", "zh", "en", "baidu")
BY_PEOPLE = Kind("zh", "human", "zh", "en")
KINDS = {"train": BY_MACHINE, "val": BY_MACHINE, "test": BY_PEOPLE}
NOTES = (
    "The split is not Karpathy's: 905 of the 1,000 test pictures are in train of Multi30K, 36 in "
    "its test_2016_flickr. Check with --against before you train on one and test on the other.",
    "Chinese of train and val is machine translation; only test was translated by people.",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `xlcm data import flickr30k-cn`."""
    add_common(parser)
    parser.add_argument("--splits", nargs="+", choices=list(IMAGES), metavar="SPLIT",
                        help="of train, val, test (default: all; one that is not there "
                        "is told as missing)")  # fmt: skip
    for split in IMAGES:
        parser.add_argument(f"--{split}", default=f"{split}.txt", metavar="FILE",
                            help=f"captions of {split} (default: {split}.txt)")  # fmt: skip
    parser.add_argument("--cna", metavar="FILE", help="captions of train from Flickr30k-CNA, "
                        "translated by people, instead of the machine's; same lines")  # fmt: skip
    parser.add_argument("--english", metavar="FILE", help="Flickr30k's English captions, lines "
                        "`<photo>.jpg#<n><TAB><text>` (results_20130124.token)")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Import; 1 if counts differ from the published ones."""
    return run_import(plan(args), args)


def plan(args: argparse.Namespace) -> Plan:
    """Return what the options ask for."""
    files = {split: getattr(args, split) for split in IMAGES}
    if args.cna:
        files["train"] = str(Path(args.cna).absolute())
    there = [split for split, file in files.items() if find_all(args.root, file)]
    asked = [split for split in IMAGES if split in (args.splits or IMAGES)]
    named = [split for split, file in files.items() if file != f"{split}.txt"]  # by the user
    splits = [s for s in asked if args.splits or s in there or s in named or not there]
    kinds = {**KINDS, "train": BY_PEOPLE} if args.cna else KINDS
    if not args.english:
        kinds = {split: replace(kind, of=None) for split, kind in kinds.items()}
    needs = [
        Need(files[split], f"Chinese captions of {split}", required=split in splits)
        for split in asked
    ]
    english = str(Path(args.english).absolute()) if args.english else None
    needs += [Need(english, "English captions of all pictures")] if english else []
    skipped = Skipped()

    def items() -> Iterator[Item]:
        captions: dict[str, list[Caption]] = {}
        if english:
            path = find(args.root, english)
            for image, _, caption, _ in read_captions(path, ENGLISH, tag="", skipped=skipped):
                captions.setdefault(image, []).append(caption)
        split_of: dict[str, tuple[str, str]] = {}
        lists: dict[str, list[tuple[str, str]]] = {split: [] for split in splits}
        for split in splits:
            path = find(args.root, files[split])
            for image, _, caption, where in read_captions(
                path, kinds[split], tag=None, skipped=skipped
            ):
                first = split_of.setdefault(image, (split, where))
                if first[0] != split:
                    raise DataError(f"{where}: picture {image!r} is in {first[0]} too, at "
                                    f"{first[1]}; are --{first[0]} and --{split} what they "
                                    "say?")  # fmt: skip
                if first[1] == where:
                    lists[split].append((image, where))
                captions.setdefault(image, []).append(caption)
        yield from join(lists, captions)

    return Plan(
        name="flickr30k-cn", title="Flickr30k-CN",
        get="ask the authors of Flickr30k-CN (https://doi.org/10.1145/3123266.3123366), or take "
        "the copy in https://github.com/visheratin/nllb-clip, data/flickr30k-cn (val and test); "
        "in Chinese-CLIP's packing: `xlcm data import chinese-clip`. Pictures: the form of "
        "Flickr30k, https://shannon.cs.illinois.edu/DenotationGraph/",
        terms="non-commercial research only; pictures under Flickr's terms.",
        cite="Lan et al. 2017, https://doi.org/10.1145/3123266.3123366",
        needs=tuple(needs), items=items, key=picture_key, notes=NOTES, skipped=skipped,
        expected={split: _expected(split, kinds[split], args) for split in asked},
    )  # fmt: skip


def _expected(split: str, kind: Kind, args: argparse.Namespace) -> Expected:
    counts = {f"{kind.lang} {kind.origin}": 5 * IMAGES[split]}
    if split == "train" and args.cna:
        return Expected()  # nothing published was at hand to check against
    return Expected(
        IMAGES[split], counts | ({"en human": 5 * IMAGES[split]} if args.english else {})
    )
