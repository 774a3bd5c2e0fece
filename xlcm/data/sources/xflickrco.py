"""xFlickr&CO of IGLUE: 2,000 pictures of Flickr30k and COCO, a caption in each of 8 languages."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from xlcm.data.manifest import DataError
from xlcm.data.sources.base import Expected, Need, Plan, Skipped, add_common, run_import
from xlcm.data.sources.coco_names import PictureIndex, coco_number, image_folders, picture_key
from xlcm.data.sources.joining import Joined, add_langs, captions_of, chosen_langs
from xlcm.data.sources.text_lines import find, read_jsonl
from xlcm.types import Caption, Item

__all__ = ["add_arguments", "picture_key", "plan", "run"]

LANGS = ("de", "en", "es", "id", "ja", "ru", "tr", "zh")
EMPTY = {"de": 1, "id": 1}  # test rows whose sentence is empty as published
SHOTS = ("1", "5", "10", "25", "50", "100")
MORE_SHOTS = ("200", "500", "1000", "1500", "100x5", "200x5")  # German and Japanese only
FLICKR = {"train": ("train_ann", 29_000), "val": ("valid_ann", 1_014)}
ENGINE = "google"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `xlcm data import xflickrco`."""
    add_common(parser)
    add_langs(parser, LANGS)
    parser.add_argument("--shots", choices=[*SHOTS, *MORE_SHOTS],
                        help="few-shot pictures of each language as split train; from 200 on, and "
                        "100x5, German and Japanese only")  # fmt: skip
    parser.add_argument("--flickr30k", nargs="+", choices=sorted(FLICKR), default=[],
                        help="add Flickr30k's English, five captions a picture; val with its "
                        "machine translations")  # fmt: skip
    parser.add_argument("--translate-test", action="store_true",
                        help="add machine translations of test captions into English")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Import; exit code as of `run_import`."""
    made = plan(args.root, args.langs, shots=args.shots, flickr30k=args.flickr30k,
                translate_test=args.translate_test, images=image_folders(args))  # fmt: skip
    return run_import(made, args)


@dataclass(frozen=True)
class _File:
    path: str
    split: str
    lang: str
    kind: str  # human, first (of five was translated), to-en


def plan(
    root: str | Path,
    langs: Sequence[str] | None = None,
    *,
    shots: str | None = None,
    flickr30k: Sequence[str] = (),
    translate_test: bool = False,
    images: Sequence[str] = (),
) -> Plan:
    """Return what is read of xFlickr&CO.

    Args:
        root: the folder `datasets` of IGLUE's repository.
        langs: some of `LANGS`; None: all.
        shots: the size of the few-shot training set, as in its file's name.
        flickr30k: `train` and `val` of English Flickr30k; captions of a picture that is few-shot
            too are joined.
        translate_test: add test captions translated into English.
        images: folders with both sets of pictures anywhere in it, two folders deep at most.

    Raises:
        DataError: for a language that it does not have, or not as few-shot set.
    """
    chosen, skipped = chosen_langs(langs, LANGS), Skipped()
    taught = [lang for lang in chosen if lang in (("de", "ja") if shots in MORE_SHOTS else LANGS)
              and lang != "en"]  # fmt: skip
    if shots and not taught:
        raise DataError(f"--shots {shots}: there is no such file for {' '.join(chosen)}")
    files = [_File(f"xFlickrCO/annotations/{lang}/test.jsonl", "test", lang, "human")
             for lang in chosen]  # fmt: skip
    if translate_test:
        files += [_File(f"xFlickrCO/annotations_machine-translate/{lang}/test_gmt.jsonl", "test",
                        lang, "to-en") for lang in chosen if lang != "en"]  # fmt: skip
    for split in flickr30k:
        path = f"flickr30k/annotations/{FLICKR[split][0]}.jsonl"
        files.append(_File(path, split, "en", "human"))
    if "val" in flickr30k:
        files += [_File(f"flickr30k/annotations_machine-translate/valid-{lang}_gmt.jsonl", "val",
                        lang, "first") for lang in chosen if lang != "en"]  # fmt: skip
    if shots:
        files += [_File(f"xFlickrCO/annotations/{lang}/train_{shots}.jsonl", "train", lang, "human")
                  for lang in taught]  # fmt: skip

    def items() -> Iterator[Item]:
        index, joined, places = PictureIndex(images), Joined(), dict[str, str]()
        for file in files:
            for row in _rows(find(root, file.path)):
                places.setdefault(row.id, row.file)
                joined.add(row.id, file.split, _captions(row, file, joined, skipped), row.where)
        made = joined.items(lambda identity: index.find(identity, _place(places[identity])))
        return map(_linked, made)

    return Plan(
        name="xflickrco",
        title="xFlickr&CO of IGLUE",
        get="The folder `datasets` of https://github.com/e-bug/iglue. Pictures: val2014.zip of "
        "https://cocodataset.org/#download, and Flickr30k by the form at "
        "https://shannon.cs.illinois.edu/DenotationGraph/, both below one folder.",
        terms="MIT repository, contents under their owners' terms; pictures non-commercial "
        "research and education, under Flickr's terms.",
        cite="Bugliarello et al. 2022, https://arxiv.org/abs/2201.11732",
        needs=tuple(Need(file.path, f"{file.lang}, {file.split}") for file in files),
        items=items,
        expected=_expected(files, shots, flickr30k),
        key=picture_key,
        notes=(
            "The test pictures are Karpathy's 1,000 test pictures of Flickr30k and 1,000 of COCO "
            "val2014: most of the latter may be his training pictures (restval), see --against.",
            "One German and one Indonesian test caption are empty as published.",
        ),
        skipped=skipped,
    )


def _expected(
    files: Sequence[_File], shots: str | None, flickr30k: Sequence[str]
) -> dict[str, Expected]:
    captions: dict[str, dict[str, int]] = {}
    for file in files:
        of = captions.setdefault(file.split, {})
        if file.split == "test" and file.kind == "human":
            of[file.lang] = 2_000 - EMPTY.get(file.lang, 0)
        elif file.kind == "human" and file.lang != "en":
            shown, _, each = str(shots).partition("x")
            of[file.lang] = int(shown) * int(each or 1)
        elif file.kind == "human":
            of["en"] = 5 * FLICKR[file.split][1]
        elif file.kind == "first":
            of[file.lang] = 1_014
    # with "en" alone its label would count what was translated into English too
    if any(file.kind == "to-en" for file in files):
        if "en" in captions["test"]:
            captions["test"]["en human"] = captions["test"].pop("en")
        number = sum(2_000 - EMPTY.get(file.lang, 0) for file in files if file.kind == "to-en")
        captions["test"]["en mt"] = number
    items = {"test": 2_000, **{split: FLICKR[split][1] for split in flickr30k}}
    if shots and "train" in items:
        del items["train"]  # few-shot pictures may be among them or not
    return {split: Expected(items.get(split), of) for split, of in captions.items()}


@dataclass(frozen=True)
class _Row:
    id: str
    file: str
    texts: list[Any]
    where: str


def _rows(path: Path) -> Iterator[_Row]:
    met: dict[str, str] = {}
    for number, row in read_jsonl(path):
        where = f"{path}:{number}"
        file, texts, told = row.get("img_path"), row.get("sentences"), row.get("id")
        if not isinstance(file, str) or not file or not isinstance(texts, list):
            raise DataError(f"{where}: expected img_path and a list of sentences, got {row!r:.80}")
        identity = file.rpartition("/")[2].rpartition(".")[0] or file
        number_of = coco_number(identity)
        if str(told) != (identity if number_of is None else str(number_of)):
            raise DataError(f"{where}: id {told!r} does not belong to picture {file!r}")
        if identity in met:
            raise DataError(f"{where}: picture {identity!r} is at {met[identity]} before")
        met[identity] = where
        yield _Row(identity, file, texts, where)


def _captions(row: _Row, file: _File, joined: Joined, skipped: Skipped) -> list[Caption]:
    if file.kind == "human":
        return captions_of(row.id, file.lang, row.texts, row.where, skipped)
    if row.id not in joined:
        raise DataError(f"{row.where}: a translation for picture {row.id!r}, which no file of "
                        "captions has")  # fmt: skip
    # of valid-*_gmt only the first sentence is translated, the others are the English ones again
    made = captions_of(row.id, file.lang, row.texts[:1], row.where, skipped)
    if file.kind == "first":
        return [Caption(f"{row.id}#{file.lang}.mt.0", c.lang, c.text, "mt", f"{row.id}#en.0",
                        ENGINE) for c in made]  # fmt: skip
    return [Caption(f"{row.id}#en.from-{file.lang}.0", "en", c.text, "mt", c.id, ENGINE)
            for c in made]  # fmt: skip


def _linked(item: Item) -> Item:
    """Return an item whose translations name captions that it has; empty ones were left out."""
    ids = {c.id for c in item.captions}
    captions = tuple(c if c.of in ids else replace(c, of=None) for c in item.captions)
    return replace(item, captions=captions)


def _place(file: str) -> str:
    return f"{file.split('_')[1]}/{file}" if file.startswith("COCO_") else file
