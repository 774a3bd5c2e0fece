"""CCLM's packing of CC3M and others: JSON lines with the picture in base64, or its path."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from xlcm.data.sources.base import Need, add_common
from xlcm.data.sources.columns import (
    ROW,
    Layout,
    TextColumn,
    add_bad_pictures,
    check_lang,
    pairs,
    read_files,
)
from xlcm.data.sources.jsonl import read_objects
from xlcm.data.sources.row_captions import Row
from xlcm.data.sources.text_lines import find


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `xlcm data import cclm`."""
    add_common(parser)
    parser.add_argument(
        "--files", nargs="+", default=["train=*.json*"], metavar="[SPLIT=]FILE",
        help="below --root; * stands for any name (default: train=*.json*)",
    )  # fmt: skip
    parser.add_argument("--image-key", default="binary", metavar="KEY",
                        help="of the picture (default: binary)")  # fmt: skip
    parser.add_argument("--paths", action="store_true",
                        help="it is a path below --images, not base64")  # fmt: skip
    parser.add_argument("--caption-key", default="caption", metavar="KEY",
                        help="of the captions by language (default: caption)")  # fmt: skip
    parser.add_argument("--source-lang", default="en", metavar="CODE",
                        help="the others are translations of it (default: en)")  # fmt: skip
    parser.add_argument("--engine", default="uc2", metavar="NAME",
                        help="the machine that made them (default: uc2)")  # fmt: skip
    parser.add_argument("--lang-names", nargs="+", default=["jp=ja", "cz=cs"],
                        metavar="THEIRS=CODE", help="default: jp=ja cz=cs")  # fmt: skip
    add_bad_pictures(parser)


def run(args: argparse.Namespace) -> int:
    """Import; exit code as of `run_import`."""
    from xlcm.data.sources.own import run_rows

    check_lang(args.source_lang, "--source-lang")
    layout = Layout(
        texts=(TextColumn(args.caption_key),),
        id=ROW,
        image=args.image_key if args.paths else None,
        picture=None if args.paths else args.image_key,
        one_split="train",
        one_lang=args.source_lang,
        mt_from=args.source_lang,
        engine=args.engine,
        lang_names=pairs(args.lang_names, "--lang-names"),
    )
    files = read_files(args.files, args.root)

    def rows() -> Iterator[Row]:
        for file in files:
            yield from read_objects(find(args.root, file.path), file.split)

    needs = tuple(Need(file.path, file.split or "train") for file in files)
    return run_rows(args, rows, layout, title="files in CCLM's packing", needs=needs)
