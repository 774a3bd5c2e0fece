"""COCO-CN: 20,341 pictures of COCO with Chinese captions written, or translated, by people."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from xlcm.data.manifest import DataError
from xlcm.data.sources.base import Expected, Need, Plan, Skipped, add_common, run_import
from xlcm.data.sources.coco_names import (
    PictureIndex,
    coco_file,
    coco_number,
    image_folders,
    picture_key,
)
from xlcm.data.sources.joining import captions_of
from xlcm.data.sources.karpathy import read_karpathy
from xlcm.data.sources.text_lines import find, find_all, iter_lines, tagged_line
from xlcm.types import Caption, Item

__all__ = ["add_arguments", "picture_key", "plan", "run"]

COUNTS = {"train": 18_341, "val": 1_000, "test": 1_000}
WRITTEN = "imageid.human-written-caption.txt"
TRANSLATED = "imageid.manually-translated-caption.txt"
EXTENSION = "coco-cn_ext.icap2020.txt"
Texts = dict[str, list[Caption]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `xlcm data import coco-cn`."""
    add_common(parser)
    parser.add_argument(
        "--part", choices=["1805", "icap2020", "both"], default="1805",
        help="version 2018-05 with its splits, its open extension of 4,573 pictures (all of them "
        "training), or both (default: 1805)",
    )  # fmt: skip
    parser.add_argument(
        "--test-captions", choices=["written", "translated", "both"], default="written",
        help="Chinese of the test pictures: about one written from the picture, as papers use it, "
        "or five translated by people; their figures differ (default: written)",
    )  # fmt: skip
    parser.add_argument("--english", metavar="FILE", help="Karpathy's dataset_coco.json: add the "
                        "first five English captions")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Import; exit code as of `run_import`."""
    made = plan(args.root, args.part, test_captions=args.test_captions, english=args.english,
                images=image_folders(args))  # fmt: skip
    return run_import(made, args)


def plan(
    root: str | Path,
    part: str = "1805",
    *,
    test_captions: str = "written",
    english: str | None = None,
    images: Sequence[str] = (),
) -> Plan:
    """Return what is read of COCO-CN.

    Args:
        root: `coco-cn-version1805v1.1`, and for the extension the folder of its file, or `data/`
            below.
        part: `1805`, `icap2020` or `both`.
        test_captions: `written`, `translated` or `both`, of the test pictures.
        english: Karpathy's file.
        images: folders of pictures, in any layout that `PictureIndex` knows.
    """
    skipped = Skipped()
    old, new = part in ("1805", "both"), part in ("icap2020", "both")
    extension = next((p for p in (EXTENSION, f"data/{EXTENSION}") if find_all(root, p)), EXTENSION)
    here = "" if new or not find_all(root, extension) else (
        f"{extension} is here: `--part icap2020` reads it, `--part both` adds it. "
    )  # fmt: skip

    def items() -> Iterator[Item]:
        index = PictureIndex(images)
        source = _english(english, skipped)
        if old:
            yield from _version_1805(root, test_captions, source, index, skipped)
        if new:
            path = find(root, extension)
            for identity, made in _sentences(path, "", None, skipped).items():
                yield _item(identity, "train", made, source, index, str(path))

    needs = []
    if old:
        needs += [Need(f"coco-cn_{split}.txt", f"pictures of {split}") for split in COUNTS]
        needs += [Need(WRITTEN, "captions written from the picture")]
        if test_captions != "written":
            needs += [Need(TRANSLATED, "translated captions of the test pictures")]
    if new:
        needs += [Need(extension, "the extension's captions")]
    if english is not None:
        needs += [Need(str(Path(english).absolute()), "English captions, Karpathy's file")]
    return Plan(
        name="coco-cn",
        title={"1805": "COCO-CN, version 2018-05", "icap2020": "COCO-CN, extension of 2020",
               "both": "COCO-CN, version 2018-05 and extension"}[part],
        get=here + "Version 2018-05 is given out on request, "
        "https://github.com/li-xirong/coco-cn; the "
        f"extension is data/{EXTENSION} there. Pictures: train2014.zip and val2014.zip of "
        "https://cocodataset.org/#download.",
        terms="Version 2018-05: as its owners write to you, research; extension: MIT repository; "
        "pictures under Flickr's terms.",
        cite="Li et al. 2019, https://arxiv.org/abs/1805.08661",
        needs=tuple(needs),
        items=items,
        expected=_expected(part, test_captions, english is not None),
        key=picture_key,
        notes=(
            "COCO-CN's splits cut across Karpathy's: a model trained on the English of his "
            "training pictures has seen test pictures of COCO-CN; count them with --against.",
        ),
        skipped=skipped,
    )  # fmt: skip


def _expected(part: str, test_captions: str, english: bool) -> Mapping[str, Expected]:
    counts = dict(COUNTS) if part != "icap2020" else {"train": 0}
    counts["train"] += 4_573 if part != "1805" else 0
    zh = {"train": 4_712} if part == "icap2020" else {}
    if test_captions == "translated" and part != "icap2020":
        zh["test"] = 5_000
    told = {}
    for split, n in counts.items():
        captions = {"en": 5 * n} if english else {}
        if split in zh:
            captions["zh"] = zh[split]
        told[split] = Expected(n, captions)
    return told


def _version_1805(
    root: str | Path,
    test_captions: str,
    english: Callable[[str], list[Caption]],
    index: PictureIndex,
    skipped: Skipped,
) -> Iterator[Item]:
    listed: dict[str, tuple[str, str]] = {}
    for split in COUNTS:
        path = find(root, f"coco-cn_{split}.txt")
        for number, line in iter_lines(path):
            identity, where = line.strip().removesuffix(".jpg"), f"{path}:{number}"
            if not identity:
                continue
            if coco_number(identity) is None:
                raise DataError(f"{where}: expected an id such as COCO_val2014_000000123456, got "
                                f"{identity[:60]!r}")  # fmt: skip
            if identity in listed:
                raise DataError(f"{where}: picture {identity!r} is listed at "
                                f"{listed[identity][1]} before")  # fmt: skip
            listed[identity] = (split, where)
    written = _sentences(find(root, WRITTEN), "", listed, skipped)
    translated: Texts = {}
    if test_captions != "written":
        translated = _sentences(find(root, TRANSLATED), ".translated", listed, skipped)
    for identity, (split, where) in listed.items():
        made = written.get(identity, [])
        if split == "test" and test_captions != "written":
            made = translated.get(identity, []) + (made if test_captions == "both" else [])
        yield _item(identity, split, made, english, index, where)


def _sentences(
    path: Path, kind: str, listed: Mapping[str, object] | None, skipped: Skipped
) -> Texts:
    """Return the captions of one file by picture; `kind` goes into their ids."""
    found: Texts = {}
    places: dict[str, str] = {}
    for number, line in iter_lines(path):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        identity, _, n, text = tagged_line(line, where)
        if listed is not None and identity not in listed:
            raise DataError(f"{where}: picture {identity!r} is in none of coco-cn_train.txt, "
                            "coco-cn_val.txt and coco-cn_test.txt; take the line out, or get the "
                            "lists again")  # fmt: skip
        if coco_number(identity) is None:
            raise DataError(f"{where}: {identity!r} is no picture of COCO 2014, such as "
                            "COCO_val2014_000000123456")  # fmt: skip
        caption = f"{identity}#zh{kind}.{n}"
        if caption in places:
            raise DataError(f"{where}: caption {n} of {identity!r} was at {places[caption]} before")
        places[caption] = where
        if not text:
            skipped.add(where)
            continue
        found.setdefault(identity, []).append(Caption(caption, "zh", text))
    return found


def _english(path: str | None, skipped: Skipped) -> Callable[[str], list[Caption]]:
    if path is None:
        return lambda identity: []
    entries = {entry.id: entry for entry in read_karpathy(path)}

    def captions(identity: str) -> list[Caption]:
        if identity not in entries:
            raise DataError(f"{path}: no picture {identity!r}; is it Karpathy's dataset_coco.json?")
        entry = entries[identity]
        return captions_of(identity, "en", entry.texts[:5], entry.where, skipped)

    return captions


def _item(
    identity: str,
    split: str,
    made: list[Caption],
    english: Callable[[str], list[Caption]],
    index: PictureIndex,
    where: str,
) -> Item:
    file = index.find(identity, coco_file(identity))
    return Item(identity, split, (*english(identity), *made), file, where=where)
