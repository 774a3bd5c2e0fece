"""Flickr8k-CN: Flickr8k with captions in English and Chinese, written, and translated three ways.

The root is a copy of the repository li-xirong/flickr8kcn, or its folder `data`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from xlcm.data.manifest import DataError
from xlcm.data.sources.base import Expected, Need, Plan, Skipped, add_common, run_import
from xlcm.data.sources.flickr_cn import Kind, join, picture_key, read_captions, stem
from xlcm.data.sources.text_lines import find, find_all, read_lines
from xlcm.types import Caption, Item

__all__ = ["add_arguments", "picture_key", "plan", "run"]

IMAGES = {"train": 6_000, "val": 1_000, "test": 1_000}
UNUSED = "none"
FILES = {
    "enc": "flickr8kenc.caption.txt", "zhc": "flickr8kzhc.caption.txt",
    "zhb": "flickr8kzhb.caption.txt", "zhg": "flickr8kzhg.caption.txt",
    "zhm": "flickr8kzhmtest.captions.txt",
}  # fmt: skip
KINDS = {
    "enc": Kind("en", "human", "en"),
    "zhc": Kind("zh", "human", "zh"),
    "zhb": Kind("zh", "mt", "zh.zhb", "en", "baidu-2016"),
    "zhg": Kind("zh", "mt", "zh.zhg", "en", "google-2016"),
    "zhm": Kind("zh", "human", "zh.zhm", "en"),
}
WORDS = {
    "enc": "English, written", "zhc": "Chinese, written from the picture",
    "zhb": "Chinese, Baidu's translation of enc", "zhg": "Chinese, Google's translation of enc",
    "zhm": "Chinese, people's translation of enc (test only)",
}  # fmt: skip
NOTES = (
    "zhc was written from the pictures: its numbers do not follow enc, so it has no links. zhb, "
    "zhg and zhm follow enc.",
    "All pictures are in Flickr30k: 871 of the 1,000 test pictures are training pictures of "
    "Multi30K. Check with --against before you train on one and test on the other.",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `xlcm data import flickr8k-cn`."""
    add_common(parser)
    kinds = "; ".join(f"{tag}: {words}" for tag, words in WORDS.items())
    parser.add_argument("--captions", nargs="+", choices=list(FILES), default=["enc", "zhc"],
                        metavar="TAG", help=f"{kinds} (default: enc zhc)")  # fmt: skip
    parser.add_argument("--splits", nargs="+", choices=[*IMAGES, UNUSED], default=list(IMAGES),
                        metavar="SPLIT", help=f"of train, val, test; {UNUSED} holds the pictures "
                        "that no split lists (default: train val test)")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Import; 1 if counts differ from the published ones."""
    return run_import(plan(args), args)


def plan(args: argparse.Namespace) -> Plan:
    """Return what the options ask for."""
    tags = [tag for tag in FILES if tag in args.captions]
    inside = "data/" if find_all(args.root, "data/flickr8k*") else ""
    needs = [Need(f"{inside}flickr8k{split}.txt", f"pictures of {split}") for split in IMAGES]
    needs += [Need(inside + FILES[tag], WORDS[tag]) for tag in tags]
    skipped = Skipped()

    def items() -> Iterator[Item]:
        lists = _lists(Path(args.root), inside)
        split_of = {image: split for split, own in lists.items() for image, _ in own}
        captions: dict[str, list[Caption]] = {}
        for tag in tags:
            path = find(args.root, inside + FILES[tag])
            for image, _, caption, where in read_captions(
                path, KINDS[tag], tag=tag, skipped=skipped
            ):
                if image not in split_of:
                    if UNUSED not in args.splits:
                        skipped.add(where, "captions of pictures that no split lists")
                        continue
                    split_of[image] = UNUSED
                    lists.setdefault(UNUSED, []).append((image, where))
                captions.setdefault(image, []).append(caption)
        yield from join({split: lists.get(split, []) for split in args.splits}, captions)

    return Plan(
        name="flickr8k-cn", title="Flickr8k-CN",
        get="git clone https://github.com/li-xirong/flickr8kcn. Pictures: Flickr8k, 8,091 files, "
        "by the form at https://forms.illinois.edu/sec/1713398",
        terms="pictures under Flickr's terms, non-commercial research and education only; the "
        "repository states no licence of the captions.",
        cite="Li et al. 2016, https://doi.org/10.1145/2911996.2912049; Hodosh et al. 2013, "
        "https://doi.org/10.1613/jair.3994",
        needs=tuple(needs), items=items, key=picture_key, notes=NOTES, skipped=skipped,
        expected={split: _expected(split, tags) for split in args.splits if split != UNUSED},
    )  # fmt: skip


def _expected(split: str, tags: list[str]) -> Expected:
    counts: dict[str, int] = {}
    for tag in tags:
        label = f"{KINDS[tag].lang} {KINDS[tag].origin}"
        if tag != "zhm" or split == "test":
            counts[label] = counts.get(label, 0) + 5 * IMAGES[split]
    return Expected(IMAGES[split], counts)


def _lists(root: Path, inside: str) -> dict[str, list[tuple[str, str]]]:
    """Return (picture, `file:line`) by split.

    Raises:
        DataError: for a picture in two splits, or twice in one.
    """
    lists: dict[str, list[tuple[str, str]]] = {}
    first: dict[str, str] = {}
    for split in IMAGES:
        path = find(root, f"{inside}flickr8k{split}.txt")
        for number, line in read_lines(path):
            if not line.strip():
                continue
            image, where = stem(line), f"{path}:{number}"
            if image in first:
                raise DataError(f"{where}: picture {image!r} is at {first[image]} too; a split "
                                "list was edited or mixed up, get it again")  # fmt: skip
            first[image] = where
            lists.setdefault(split, []).append((image, where))
    return lists
