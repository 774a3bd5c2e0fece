"""Your own files in COCO's caption format (`images` and `annotations`), a language a file."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xlcm.data.manifest import DataError
from xlcm.data.sources.base import Need, Plan, Skipped, add_common, run_import
from xlcm.data.sources.columns import ORIGINS, add_splits, check_lang, drawn_split, shares
from xlcm.data.sources.text_lines import find, read_json
from xlcm.registry import nearest
from xlcm.types import Caption, Item, Origin


@dataclass(frozen=True)
class File:
    """One annotation file, and what its captions are."""

    path: str
    split: str
    lang: str
    origin: Origin = "human"


@dataclass
class _Image:
    where: str
    split: str
    name: str
    captions: list[Caption] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `xlcm data import coco-json`."""
    add_common(parser)
    parser.add_argument(
        "--files", nargs="+", required=True, metavar="[SPLIT[/LANG[:ORIGIN]]=]FILE",
        help="below --root, such as train=en.json train/de:mt=de.json; one picture's captions may "
        "be spread over files",
    )  # fmt: skip
    parser.add_argument("--lang", metavar="CODE", help="language of files that name none")
    parser.add_argument("--engine", metavar="NAME", help="the machine that made mt and back")
    parser.add_argument("--id", choices=["id", "file_name"], default="id",
                        help="what names an item (default: id)")  # fmt: skip
    add_splits(parser)


def run(args: argparse.Namespace) -> int:
    """Import; exit code as of `run_import`."""
    files = [read_file(word, args.split or ("train" if args.hold_out else None), args.lang)
             for word in args.files]  # fmt: skip
    hold_out = shares(args.hold_out)
    skipped = Skipped()

    def items() -> Iterator[Item]:
        for item in read_coco(
            args.root, files, by_name=args.id == "file_name", engine=args.engine, skipped=skipped
        ):
            drawn = drawn_split(item.id, hold_out) if item.split == "train" else None
            yield Item(item.id, drawn or item.split, item.captions, item.image, where=item.where)

    plan = Plan(
        name="coco-json", title="your captions in COCO's format",
        get="they are your own: check --root and the names.",
        terms="Yours.", cite="-", items=items, skipped=skipped,
        needs=tuple(Need(f.path, f"{f.split}, {f.lang} {f.origin}") for f in files),
    )  # fmt: skip
    return run_import(plan, args)


def read_file(word: str, split: str | None, lang: str | None, *, option: str = "--files") -> File:
    """Return what `[SPLIT[/LANG[:ORIGIN]]=]FILE` says.

    Raises:
        DataError: naming what is missing or wrong.
    """
    before, equals, path = word.partition("=")
    option = f"{option} {word}"
    if not equals:
        before, path = "", word
    named, _, rest = before.partition("/")
    code, _, origin = rest.partition(":")
    split, lang, origin = named or split or "", code or lang or "", origin or "human"
    if not split:
        raise DataError(f"{option}: which split? Write SPLIT/LANG={path}")
    if not lang:
        raise DataError(f"{option}: which language? Write {split}/LANG={path}")
    check_lang(lang, option)
    if origin not in ORIGINS:
        raise DataError(f"{option}: an origin is one of {', '.join(ORIGINS)}, not {origin!r}"
                        + nearest(origin, ORIGINS))  # fmt: skip
    return File(path, split, lang, origin)


def read_coco(
    root: str | Path,
    files: Sequence[File],
    *,
    by_name: bool = False,
    engine: str | None = None,
    skipped: Skipped,
) -> Iterator[Item]:
    """Yield the pictures in the order of the files, with the captions of all files.

    Args:
        root: what the paths start from.
        files: in COCO's format.
        by_name: items are called by `file_name` without ending, else by `id`.
        engine: of captions that are not human.
        skipped: told of captions without text.

    Raises:
        DataError: naming file and entry.
    """
    found: dict[str, _Image] = {}
    for file in files:
        path = find(root, file.path)
        tree = read_json(path)
        images, annotations = (_list(tree, key, path) for key in ("images", "annotations"))
        here: dict[Any, str] = {}
        for number, row in enumerate(images):
            where = f"{path}: images[{number}]"
            identity, name = (_value(row, key, where) for key in ("id", "file_name"))
            name = str(name)
            key = os.path.splitext(name)[0] if by_name else str(identity)
            if identity in here:
                raise DataError(f"{where}: id {identity} is there twice")
            here[identity] = key
            image = found.setdefault(key, _Image(where, file.split, name))
            if (image.split, image.name) != (file.split, name):
                raise DataError(f"{where}: picture {key} is {name} in split {file.split!r} here, "
                                f"{image.name} in {image.split!r} at {image.where}")  # fmt: skip
        kind = file.lang if file.origin == "human" else f"{file.lang}.{file.origin}"
        made_by = engine if file.origin != "human" else None
        for number, row in enumerate(annotations):
            where = f"{path}: annotations[{number}]"
            identity, text = (_value(row, key, where) for key in ("image_id", "caption"))
            if identity not in here:
                raise DataError(f"{where}: image_id {identity} is none of the {len(here):,} images "
                                "of this file")  # fmt: skip
            if not str(text).strip():
                skipped.add(where)
                continue
            key = here[identity]
            n, image = found[key].counts[kind], found[key]
            image.counts[kind] += 1
            image.captions.append(Caption(f"{key}#{kind}.{n}", file.lang, str(text).strip(),
                                          file.origin, None, made_by))  # fmt: skip
    for key, image in found.items():
        yield Item(key, image.split, tuple(image.captions), image.name, where=image.where)


def _list(tree: Any, key: str, path: Path) -> list[Any]:
    if not isinstance(tree, dict) or not isinstance(tree.get(key), list):
        known = f"; there are {', '.join(tree)}" if isinstance(tree, dict) else ""
        raise DataError(f"{path}: expected an object with the lists images and annotations, no "
                        f"list {key!r}{known}")  # fmt: skip
    return tree[key]


def _value(row: Any, key: str, where: str) -> Any:
    if not isinstance(row, dict) or not isinstance(row.get(key), str | int):
        raise DataError(f"{where}: {key!r} is missing or no text or number, got {row!r:.80}")
    return row[key]
