"""Which column of a user's rows holds what: the options that the general readers share."""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from xlcm.data.languages import language_fault
from xlcm.data.manifest import DataError
from xlcm.data.sources.text_lines import find_all
from xlcm.registry import nearest
from xlcm.types import Origin

ROW = "@row"  # in place of the column of ids: each row is an item, called after its file and number
ORIGINS: tuple[Origin, ...] = get_args(Origin)


@dataclass(frozen=True)
class File:
    """A file of rows, with the split and the language of its captions, where they are named."""

    path: str
    split: str | None = None
    lang: str | None = None


@dataclass(frozen=True)
class TextColumn:
    """One column of captions.

    Args:
        column: its name; `a.b` is the value `b` inside the object `a`.
        lang: BCP 47; None where the value's own keys, the row or the file says it.
        origin: None where the row or `Layout.mt_from` says it.
        made_from: the column that holds what these captions were translated from.
    """

    column: str
    lang: str | None = None
    origin: Origin | None = None
    made_from: str | None = None


@dataclass(frozen=True)
class Layout:
    """How rows become items; each field is an option of the command."""

    texts: tuple[TextColumn, ...]
    id: str | None = None
    image: str | None = None
    video: str | None = None
    start: str | None = None
    end: str | None = None
    features: str | None = None
    picture: str | None = None
    split: str | None = None
    lang: str | None = None
    origin: str | None = None
    one_split: str | None = None
    one_lang: str | None = None
    mt_from: str | None = None
    engine: str | None = None
    separator: str | None = None
    strip: str = ""
    lang_names: Mapping[str, str] = field(default_factory=dict)
    split_names: Mapping[str, str] = field(default_factory=dict)
    hold_out: Mapping[str, float] = field(default_factory=dict)
    query: str | None = None
    only: tuple[str, str] | None = None

    @property
    def single(self) -> list[str]:
        """Columns other than captions that were named."""
        named = (None if self.id == ROW else self.id, self.image, self.video, self.start,
                 self.end, self.features, self.picture, self.split, self.lang, self.origin,
                 self.query, self.only and self.only[0])  # fmt: skip
        return [name for name in named if name is not None]


def add_columns(parser: argparse.ArgumentParser, *, pictures: bool = False) -> None:
    """Declare the options that say which column holds what, with `pictures` even pictures."""
    parser.add_argument(
        "--captions", nargs="+", required=True, metavar="SPEC",
        help="columns of captions, each as COLUMN, LANG=COLUMN, LANG:ORIGIN=COLUMN or "
        "LANG:ORIGIN:FROM=COLUMN, where ORIGIN is human, mt or back, and FROM the column that it "
        "was translated from",
    )  # fmt: skip
    parser.add_argument(
        "--id", metavar="COLUMN", help="rows with one id are one item; @row: each row is one "
        "(default: the path of the image or video without its ending, and @<start>-<end>)",
    )  # fmt: skip
    parser.add_argument("--image", metavar="COLUMN", help="path of the picture below --images")
    parser.add_argument("--video", metavar="COLUMN", help="path of the video")
    parser.add_argument("--start", metavar="COLUMN", help="the item is a part of its video: the "
                        "second at which it begins")  # fmt: skip
    parser.add_argument("--end", metavar="COLUMN", help="the second at which it ends")
    parser.add_argument("--key", metavar="COLUMN", help="key into a feature store, if not the id")
    if pictures:
        parser.add_argument(
            "--picture-data", metavar="COLUMN", help="the pictures themselves (bytes or base64); "
            "they are written to a folder beside the manifest",
        )  # fmt: skip
        add_bad_pictures(parser)
    parser.add_argument("--lang", metavar="CODE", help="language of captions that name none")
    parser.add_argument("--lang-column", metavar="COLUMN", help="where each row says its language")
    parser.add_argument("--origin-column", metavar="COLUMN",
                        help="where each row says human, mt or back")  # fmt: skip
    parser.add_argument("--lang-names", nargs="+", default=[], metavar="THEIRS=CODE",
                        help="codes that are not BCP 47, such as jp=ja english=en")  # fmt: skip
    parser.add_argument("--mt-from", metavar="CODE", help="captions in other languages are machine "
                        "translations of this one in the same row")  # fmt: skip
    parser.add_argument("--engine", metavar="NAME", help="the machine that made them")
    parser.add_argument("--separator", metavar="TEXT",
                        help="what stands between several captions in one value")  # fmt: skip
    parser.add_argument("--strip-path", default="", metavar="PREFIX",
                        help="taken off the front of image paths")  # fmt: skip
    add_splits(parser, column=True)


def add_joining(parser: argparse.ArgumentParser) -> None:
    """Declare which rows are read, and which of them are one query."""
    parser.add_argument("--only", metavar="COLUMN=VALUE",
                        help="rows with another value there are left out")  # fmt: skip
    parser.add_argument("--query", metavar="COLUMN", help="rows with one value are one query: "
                        "outside train one caption with several right pictures")  # fmt: skip


def add_bad_pictures(parser: argparse.ArgumentParser) -> None:
    """Declare what is done with data that should be a picture and is none."""
    parser.add_argument("--bad-pictures", choices=["error", "drop"], default="error",
                        help="data that is no picture, with its item (default: error)")  # fmt: skip


def add_splits(parser: argparse.ArgumentParser, *, column: bool = False) -> None:
    """Declare the options that say which split an item is in."""
    parser.add_argument("--split", metavar="NAME", help="the split of files that name none")
    if column:
        parser.add_argument("--split-column", metavar="COLUMN", help="where each row says it")
        parser.add_argument("--split-names", nargs="+", default=[], metavar="THEIRS=NAME",
                            help="such as dev=val validation=val")  # fmt: skip
    parser.add_argument("--hold-out", nargs="+", default=[], metavar="SPLIT=SHARE",
                        help="draw splits by id, such as val=0.05 test=0.05; the rest is train; "
                        "the same ids fall alike in every import")  # fmt: skip


def read_layout(args: argparse.Namespace) -> Layout:
    """Return what the options say.

    Raises:
        DataError: naming the option.
    """
    lang_names = pairs(args.lang_names, "--lang-names")
    for theirs, code in lang_names.items():
        check_lang(code, f"--lang-names {theirs}={code}")
    texts = read_texts(args.captions, lang_names)
    for option in ("lang", "mt_from"):
        if (code := getattr(args, option)) is not None:
            check_lang(code, f"--{option.replace('_', '-')}")
    picture = getattr(args, "picture_data", None)
    if args.id is None and args.image is None and args.video is None:
        raise DataError("name the column that tells the items apart: --id, --image or --video; "
                        "--id @row makes each row an item")  # fmt: skip
    if (args.start is None) != (args.end is None) or (args.start is not None and not args.video):
        raise DataError("--start, --end and --video go together: a part of a video has a file, a "
                        "beginning and an end")  # fmt: skip
    if args.image is not None and picture is not None:
        raise DataError("--image and --picture-data: pictures are files, or they are in the rows")
    if picture is not None and args.images is not None:
        raise DataError("--images and --picture-data: pictures are files, or they are in the rows")
    if args.lang is not None and args.lang_column is not None:
        raise DataError("--lang and --lang-column: one language, or one a row")
    query, only = getattr(args, "query", None), getattr(args, "only", None)
    if query is not None and args.id == ROW:
        raise DataError("--query joins rows, --id @row keeps them apart: name the column of ids")
    named = next(iter(pairs([only], "--only").items())) if only else None
    split = args.split or ("train" if args.hold_out else None)
    return Layout(
        texts=texts, id=args.id, image=args.image, video=args.video, start=args.start,
        end=args.end, features=args.key, picture=picture, split=args.split_column,
        lang=args.lang_column, origin=args.origin_column,
        one_split=split, one_lang=args.lang, mt_from=args.mt_from, engine=args.engine,
        separator=args.separator, strip=args.strip_path, lang_names=lang_names,
        split_names=pairs(args.split_names, "--split-names"), hold_out=shares(args.hold_out),
        query=query, only=named,
    )  # fmt: skip


def read_texts(specs: Sequence[str], lang_names: Mapping[str, str]) -> tuple[TextColumn, ...]:
    """Return the columns that `--captions` names.

    Raises:
        DataError: naming the part that can't be understood.
    """
    texts: list[TextColumn] = []
    for spec in specs:
        before, given, column = spec.rpartition("=")
        option = f"--captions {spec}"
        lang, origin, made_from = (*before.split(":", 2), "", "")[:3]
        if not column or (given and not lang):
            raise DataError(f"{option}: expected COLUMN or LANG[:ORIGIN[:FROM]]=COLUMN")
        lang = lang_names.get(lang, lang)
        if lang:
            check_lang(lang, option)
        if origin and origin not in ORIGINS:
            raise DataError(f"{option}: an origin is one of {', '.join(ORIGINS)}, not {origin!r}"
                            + nearest(origin, ORIGINS))  # fmt: skip
        if made_from and made_from not in {text.column for text in texts}:
            raise DataError(f"{option}: {made_from!r} is none of the columns before it; name the "
                            "captions that a translation was made from first")  # fmt: skip
        if column in {text.column for text in texts}:
            raise DataError(f"{option}: the column is named twice")
        known: Origin | None = origin or None
        texts.append(TextColumn(column, lang or None, known, made_from or None))
    return tuple(texts)


def check_lang(lang: str, where: str) -> None:
    """Refuse what is no BCP 47 code.

    Raises:
        DataError: with the nearest code.
    """
    if fault := language_fault(lang):
        raise DataError(f"{where}: {fault}", kind="unknown_language")


def pairs(words: Sequence[str], option: str) -> dict[str, str]:
    """Return `a=b c=d` as a mapping.

    Raises:
        DataError: for a word without `=`.
    """
    made = {}
    for word in words:
        left, equals, right = word.partition("=")
        if not (left and equals and right):
            raise DataError(f"{option} {word}: expected A=B")
        made[left] = right
    return made


def shares(words: Sequence[str]) -> dict[str, float]:
    """Return `val=0.05 test=0.05` as numbers, each in (0, 1), together less than 1.

    Raises:
        DataError: for anything else.
    """
    made = {}
    for split, word in pairs(words, "--hold-out").items():
        try:
            made[split] = float(word)
        except ValueError as error:
            raise DataError(f"--hold-out {split}={word}: {word!r} is no number") from error
        if not 0 < made[split] < 1:
            raise DataError(f"--hold-out {split}={word}: a share is between 0 and 1")
    if sum(made.values()) >= 1:
        raise DataError(f"--hold-out: shares of {sum(made.values()):g} leave nothing to train on")
    return made


def read_files(words: Sequence[str], root: str | Path) -> list[File]:
    """Return the files of `train=a.csv test/de=b.csv c.csv`; globs are spelt out.

    Raises:
        DataError: for a glob that finds nothing, or a wrong language.
    """
    files: list[File] = []
    for option in words:
        before, equals, path = option.partition("=")
        if not equals:
            before, path = "", option
        split, _, lang = before.partition("/")
        if lang:
            check_lang(lang, f"--files {option}")
        names = [path]
        if any(mark in path for mark in "*?["):
            names = [os.path.relpath(found, root) for found in find_all(root, path)]
        if not names:
            raise DataError(f"{Path(root) / path}: no file is called so")
        files += [File(name, split or None, lang or None) for name in names]
    return files


def lookup(values: Mapping[str, Any], column: str) -> Any:
    """Return a value by its name, or by a path `a.b` into objects; `KeyError` if it isn't there."""
    if column in values:
        return values[column]
    at: Any = values
    for part in column.split("."):
        if not isinstance(at, Mapping) or part not in at:
            raise KeyError(column)
        at = at[part]
    return at


def drawn_split(key: str, shares: Mapping[str, float]) -> str | None:
    """Return the split that an id falls into, by its SHA-256; None for what is left over."""
    at = int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / 2**48
    for split, share in shares.items():
        if at < share:
            return split
        at -= share
    return None
