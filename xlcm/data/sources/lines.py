"""Your own line-aligned text: one caption a line, line n of every file for the same picture."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from xlcm.data.manifest import DataError
from xlcm.data.sources.base import Need, Plan, Skipped, add_common, run_import
from xlcm.data.sources.coco_json import File, read_file
from xlcm.data.sources.columns import check_lang
from xlcm.data.sources.folder import ENDINGS
from xlcm.data.sources.image_paths import VIDEOS
from xlcm.data.sources.text_lines import find, read_lines
from xlcm.types import Caption, Item

BLANK = "blank lines at the end of a file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `xlcm data import lines`."""
    add_common(parser)
    parser.add_argument(
        "--captions", nargs="+", required=True, metavar="SPLIT/LANG[:ORIGIN]=FILE",
        help="below --root, plain or .gz, such as train/en=train.en train/de:mt=train.de",
    )  # fmt: skip
    parser.add_argument("--ids", nargs="+", default=[], metavar="SPLIT=FILE",
                        help="line n names the n-th picture (default: items are called "
                        "<split>-<n>, from 0)")  # fmt: skip
    parser.add_argument("--per-image", type=int, default=1, metavar="K", help="line n belongs to "
                        "picture n // K, counted from 0 (default: 1)")  # fmt: skip
    parser.add_argument("--mt-from", metavar="CODE", help="line n of an mt file is the translation "
                        "of line n in this language")  # fmt: skip
    parser.add_argument("--engine", metavar="NAME", help="the machine that made mt and back")


def run(args: argparse.Namespace) -> int:
    """Import; exit code as of `run_import`."""
    if args.per_image < 1:
        raise DataError(f"--per-image {args.per_image}: at least 1")
    if args.mt_from is not None:
        check_lang(args.mt_from, "--mt-from")
    files = [read_file(word, None, None, option="--captions") for word in args.captions]
    ids: dict[str, str] = {}
    for word in args.ids:
        split, equals, path = word.partition("=")
        if not equals or split not in {file.split for file in files}:
            raise DataError(f"--ids {word}: expected SPLIT=FILE, with a split of --captions")
        if split in ids:
            raise DataError(f"--ids {word}: the pictures of {split} are named by {ids[split]} too")
        ids[split] = path
    lines = Lines(Path(args.root), files, ids, args.per_image, args.mt_from, args.engine)
    needs = [Need(path, f"pictures of {split}") for split, path in ids.items()]
    needs += [Need(f.path, f"{f.split}, {f.lang} {f.origin}") for f in files]
    plan = Plan(
        name="lines", title="your lines", get="they are your own: check --root and the names.",
        terms="Yours.", cite="-", needs=tuple(needs), items=lines.items, skipped=lines.skipped,
    )  # fmt: skip
    return run_import(plan, args)


class Lines:
    """Reads files whose lines belong together.

    Args:
        root: what the paths start from.
        files: captions.
        ids: split -> file with a picture's name a line.
        per_image: captions of each picture, which follow one another.
        mt_from: language that mt captions are linked to, line by line.
        engine: of captions that are not human.
    """

    def __init__(
        self,
        root: Path,
        files: Sequence[File],
        ids: dict[str, str],
        per_image: int = 1,
        mt_from: str | None = None,
        engine: str | None = None,
    ) -> None:
        self.root, self.files, self.ids = root, files, ids
        self.per_image, self.mt_from, self.engine = per_image, mt_from, engine
        self.skipped = Skipped()

    def items(self) -> Iterator[Item]:
        """Yield the pictures of each split, in the order of the lines.

        Blank lines at the end of a file are no captions where no picture, or no other file, has a
        line for them: they are left out and reported.

        Raises:
            DataError: if files of a split have different numbers of lines, or a picture is named
                twice.
        """
        for split in dict.fromkeys(file.split for file in self.files):
            yield from self._split(split, [file for file in self.files if file.split == split])

    def _split(self, split: str, files: list[File]) -> Iterator[Item]:
        # what others were translated from comes first, so that they can name it
        files.sort(key=lambda file: (file.lang != self.mt_from, file.origin != "human"))
        texts = [read_lines(find(self.root, file.path)) for file in files]
        names = self._names(split, max(_filled(lines) for lines in texts))
        for file, lines in zip(files, texts):
            while len(lines) > self.per_image * len(names) and not lines[-1][1].strip():
                number, _ = lines.pop()
                self.skipped.add(f"{find(self.root, file.path)}:{number}", BLANK)
            if len(lines) != self.per_image * len(names):
                first = self.ids.get(split, files[0].path)
                raise DataError(
                    f"{find(self.root, file.path)}: {len(lines):,} lines, expected "
                    f"{self.per_image * len(names):,}: {first} has {len(names):,} pictures with "
                    f"{self.per_image} captions each (--per-image)"
                )
        for number, (identity, name, where) in enumerate(names):
            captions: list[Caption] = []
            counts: Counter[str] = Counter()
            sources: dict[int, str] = {}
            for file, lines in zip(files, texts):
                kind = file.lang if file.origin == "human" else f"{file.lang}.{file.origin}"
                for at in range(number * self.per_image, (number + 1) * self.per_image):
                    line, text = lines[at]
                    n = counts[kind]
                    counts[kind] += 1
                    if not text.strip():
                        self.skipped.add(f"{find(self.root, file.path)}:{line}")
                        continue
                    caption_id = f"{identity}#{kind}.{n}"
                    if file.lang == self.mt_from and file.origin == "human":
                        sources.setdefault(at, caption_id)
                    of = sources.get(at) if file.origin == "mt" else None
                    engine = self.engine if file.origin != "human" else None
                    captions.append(
                        Caption(caption_id, file.lang, text.strip(), file.origin, of, engine)
                    )
            is_video = name is not None and name.lower().endswith(VIDEOS)
            image, video = (None, name) if is_video else (name, None)
            yield Item(identity, split, tuple(captions), image, video, where=where)

    def _names(self, split: str, lines: int) -> list[tuple[str, str | None, str]]:
        """Return (item id, file or None, `file:line`) of each picture.

        Args:
            split: theirs.
            lines: up to the last caption, where no file names the pictures.
        """
        if split not in self.ids:
            return [(f"{split}-{n}", None, "") for n in range(-(-lines // self.per_image))]
        path = find(self.root, self.ids[split])
        names: list[tuple[str, str | None, str]] = []
        seen: dict[str, int] = {}
        rows = read_lines(path)
        while rows and not rows[-1][1].strip():
            self.skipped.add(f"{path}:{rows.pop()[0]}", BLANK)
        for number, line in rows:
            name = line.strip()
            if not name:
                raise DataError(f"{path}:{number}: no picture is named on this line")
            stem, ending = os.path.splitext(name)
            identity = stem if ending.lower() in (*ENDINGS, *VIDEOS) else name
            if identity in seen:
                raise DataError(f"{path}:{number}: {identity} is also at line {seen[identity]}; of "
                                "several captions a picture say --per-image")  # fmt: skip
            seen[identity] = number
            names.append((identity, name, f"{path}:{number}"))
        return names


def _filled(lines: list[tuple[int, str]]) -> int:
    """Return how many lines there are up to the last one with text."""
    return next((n for n in range(len(lines), 0, -1) if lines[n - 1][1].strip()), 0)
