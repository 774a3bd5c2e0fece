"""What every source shares: what it needs, what was published of it, and the import itself.

A source says in a `Plan` which files it reads and yields the items; `run_import` checks the files,
writes the manifest, looks after the pictures and reports counts and leaks.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xlcm.data.manifest import DataError, ManifestWriter
from xlcm.data.sources.image_paths import SHOWN, Pictures
from xlcm.data.sources.text_lines import find_all
from xlcm.types import Item


@dataclass(frozen=True)
class Need:
    """A file or folder that a source reads.

    Args:
        path: from the root, plain or gzipped; may be a glob, or absolute.
        what: for people, such as "captions of the training images, English".
        required: whether the import can't do without it. A published file that is not, and is
            not there, is told as missing and the rest is read.
    """

    path: str
    what: str
    required: bool = True


@dataclass(frozen=True)
class Expected:
    """Published counts of one split.

    Args:
        items: None where it isn't known.
        captions: by `<lang>` or `<lang> <origin>`.
    """

    items: int | None = None
    captions: Mapping[str, int] = field(default_factory=dict)


class Skipped:
    """Counts what a source left out, by reason, and keeps the first places of each.

    Attributes:
        counts: by reason.
        places: the first few `file:line` of each.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.places: dict[str, list[str]] = {}

    def add(self, where: str, why: str = "captions without text") -> None:
        """Note one; `where` is `file:line`, `why` a plural that "were left out" can follow."""
        self.counts[why] += 1
        places = self.places.setdefault(why, [])
        if len(places) < SHOWN:
            places.append(where)

    @property
    def count(self) -> int:
        """How many, for whatever reason."""
        return sum(self.counts.values())


@dataclass(frozen=True)
class Plan:
    """One import.

    Args:
        name: of the source in `SOURCES`, such as `multi30k`.
        title: for people, such as "Multi30K task 1".
        get: where a person gets the files by hand, with the URL.
        terms: of use, one sentence.
        cite: the paper.
        needs: the files that are read.
        items: yields them in the manifest's order, `where` set to `file:line`. `image` (or
            `video`) is the file's name below the folder that `--images` names, or an absolute
            path, which is kept. Raises `DataError` as `file:line: what is wrong`.
        expected: published counts by split.
        key: which picture it is over data sets (`flickr:1234567890`, `coco:123456`), from the
            item's id alone; None: the id. A source whose module has this function as
            `picture_key` (or `key_of_title`, which returns it for the report's title) is
            understood by `--against` of other sources.
        clips: whether the key names a video of which several items may be parts, and none of them
            shows what another one does.
        notes: traps that a user of this set must know.
        skipped: what the items' reader left out; read at the end.
        more: what the report says besides; asked at the end.
    """

    name: str
    title: str
    get: str
    terms: str
    cite: str
    needs: tuple[Need, ...]
    items: Callable[[], Iterator[Item]]
    expected: Mapping[str, Expected] = field(default_factory=dict)
    key: Callable[[Item], str] | None = None
    clips: bool = False
    notes: tuple[str, ...] = ()
    skipped: Skipped = field(default_factory=Skipped)
    more: Callable[[], Mapping[str, Any]] = dict


def add_common(parser: argparse.ArgumentParser) -> None:
    """Declare the options that every source has."""
    parser.add_argument("--root", required=True, help="the folder as its owners publish it")
    parser.add_argument("--out", required=True, help="the manifest; `.report.json` is put beside")
    parser.add_argument("--images", "--videos", metavar="FOLDER",
                        help="the pictures or videos (default: none, features by id)")  # fmt: skip
    parser.add_argument("--more-images", nargs="+", default=[], metavar="FOLDER",
                        help="where pictures are that --images lacks")  # fmt: skip
    parser.add_argument(
        "--missing-images", choices=["error", "drop", "keep"], default="error",
        help="what to do with items whose picture is not there (default: error)",
    )  # fmt: skip
    parser.add_argument("--against", nargs="+", default=[], metavar="MANIFEST",
                        help="count pictures that these manifests hold too, by split")  # fmt: skip


def run_import(plan: Plan, args: argparse.Namespace) -> int:
    """Import, show and write the report.

    Args:
        plan: of the source.
        args: with what `add_common` declares.

    Returns:
        0 if all is as published; 1 if counts differ, or a picture is in two splits of this
        manifest (it is written all the same).

    Raises:
        DataError: if files are missing or can't be read; nothing is written then.
    """
    from xlcm.data.sources.report import Report, overlaps

    lacking = check_needs(plan, args.root)
    against = overlaps(plan, args.against)  # read first: a wrong path should not cost an hour
    report = Report(plan, lacking)
    more = getattr(args, "more_images", ())
    pictures = Pictures(args.images, args.out, args.missing_images, more=more)
    with ManifestWriter(args.out) as writer:
        for item in plan.items():
            report.read(item)
            placed = pictures.place(item)
            if placed is not None:
                _write(writer, placed)
                report.wrote(placed)
        pictures.finish()
        if not writer.items:
            raise DataError(f"{args.root}: {plan.title} has no items here; nothing is written")
    report.finish(args.out, pictures.notes(), against)
    report.show()
    report.save(args.out)
    return 0 if report.good else 1


def _write(writer: ManifestWriter, item: Item) -> None:
    try:
        writer.write(item)
    except DataError as error:
        if not item.where:
            raise
        raise DataError(f"{item.where}: {str(error).partition(': ')[2]}") from error


# -- files --------------------------------------------------------------------------------------


def check_needs(plan: Plan, root: str | Path) -> list[Need]:
    """Print what is there and what is not; return what is not and may be.

    Raises:
        DataError: if something required is missing: what, where to get it, the terms.
    """
    from xlcm.data.tables import table

    if not Path(root).is_dir():
        raise DataError(f"{root}: no such folder. {_by_hand(plan)}")
    rows: list[list[str]] = []
    missing: list[Need] = []
    lacking: list[Need] = []
    for need in plan.needs:
        found = find_all(root, need.path)
        state = f"{len(found):,} found" if len(found) > 1 else "found"
        if not found:
            state = "MISSING" if need.required else "MISSING, not read"
            (missing if need.required else lacking).append(need)
            if len(lacking) > SHOWN and not need.required:
                continue
        shown = str(found[0]) if len(found) == 1 else str(Path(root) / need.path)
        rows.append([need.what, os.path.relpath(shown, root), state])
    if len(lacking) > SHOWN:
        rows.append([f"and {len(lacking) - SHOWN:,} more", "", "MISSING, not read"])
    if rows:
        table(f"{plan.title}: files below {root}", ["what", "path", ""], rows)
    if missing:
        paths = "\n".join(f"  {Path(root) / need.path}: {need.what}" for need in missing)
        raise DataError(f"{plan.title}: {len(missing)} of {len(plan.needs)} files are missing:\n"
                        f"{paths}\n{_by_hand(plan)}")  # fmt: skip
    return lacking


def _by_hand(plan: Plan) -> str:
    return f"Get it by hand: {plan.get}\nTerms: {plan.terms}"
