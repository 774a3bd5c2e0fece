"""A folder of pictures with text files beside them: `a.jpg`, `a.txt`, `a.de.txt`, `a.de.mt.txt`."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from xlcm.data.languages import language_fault
from xlcm.data.manifest import DataError
from xlcm.data.sources.base import Plan, Skipped, add_common, run_import
from xlcm.data.sources.columns import ORIGINS, add_splits, check_lang, drawn_split, pairs, shares
from xlcm.data.sources.text_lines import iter_lines
from xlcm.types import Caption, Item, Origin

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
TEXT = ".txt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `xlcm data import folder`."""
    add_common(parser)
    parser.add_argument("--lang", metavar="CODE", help="language of `a.txt`")
    parser.add_argument("--lang-names", nargs="+", default=[], metavar="THEIRS=CODE",
                        help="codes that are not BCP 47, such as jp=ja")  # fmt: skip
    parser.add_argument("--mt-from", metavar="CODE", help="line n of `a.LANG.mt.txt` is the "
                        "translation of line n in this language")  # fmt: skip
    parser.add_argument("--engine", metavar="NAME", help="the machine that made mt and back")
    parser.add_argument("--split-folders", action="store_true",
                        help="the folders in --root are the splits")  # fmt: skip
    add_splits(parser)


def run(args: argparse.Namespace) -> int:
    """Import; exit code as of `run_import`."""
    if args.split_folders == (args.split is not None or bool(args.hold_out)):
        raise DataError("which split? Give --split-folders, or --split or --hold-out")
    for code, option in ((args.lang, "--lang"), (args.mt_from, "--mt-from")):
        if code is not None:
            check_lang(code, option)
    reader = Folder(
        Path(args.root),
        split=None if args.split_folders else args.split or "train",
        lang=args.lang,
        lang_names=pairs(args.lang_names, "--lang-names"),
        mt_from=args.mt_from,
        engine=args.engine,
        hold_out=shares(args.hold_out),
        orphans=args.missing_images == "drop",
    )
    args.images = args.images or args.root
    plan = Plan(
        name="folder", title="your pictures with text files",
        get="they are your own: check --root and the names.",
        terms="Yours.", cite="-", needs=(), items=reader.items, skipped=reader.skipped,
        notes=reader.notes,
    )  # fmt: skip
    return run_import(plan, args)


class Folder:
    """Reads pictures and text files of one folder and all below it, in order of their names.

    Args:
        root: hidden files and folders are not looked at; linked folders, and files that are neither
            pictures nor texts, are counted as left out. Endings may be in capitals.
        split: of all; None: the name of the first folder below the root.
        lang: of text files that name none.
        lang_names: codes to rename.
        mt_from: language that machine translations are linked to, line by line.
        engine: of captions that are not human.
        hold_out: shares of the split train that become others.
        orphans: leave out text files that have no picture, and list them, instead of stopping.
    """

    def __init__(
        self,
        root: Path,
        *,
        split: str | None,
        lang: str | None = None,
        lang_names: Mapping[str, str] | None = None,
        mt_from: str | None = None,
        engine: str | None = None,
        hold_out: Mapping[str, float] | None = None,
        orphans: bool = False,
    ) -> None:
        self.root, self.split, self.lang = root, split, lang
        self.lang_names, self.hold_out = lang_names or {}, hold_out or {}
        self.mt_from, self.engine, self.orphans = mt_from, engine, orphans
        self.skipped = Skipped()
        self.notes = (
            "a picture without text file is an item without captions: it is found, not trained on.",
        )

    def items(self) -> Iterator[Item]:
        """Yield one item a picture.

        Raises:
            DataError: naming the file.
        """
        for folder, names, texts in self._walk():
            by_stem: dict[str, str] = {}
            for name in names:
                stem = os.path.splitext(name)[0]
                if stem in by_stem:
                    raise DataError(f"{folder / name}: {by_stem[stem]} has the same name but for "
                                    "its ending: their texts can't be told apart")  # fmt: skip
                by_stem[stem] = name
            of_stem: dict[str, list[tuple[str, str]]] = {stem: [] for stem in by_stem}
            for text in texts:
                stem, label = self._stem(text, by_stem)
                if stem in of_stem:
                    of_stem[stem].append((label, text))
                elif self.orphans:
                    self.skipped.add(str(folder / text), "text files without picture")
                else:
                    raise DataError(f"{folder / text}: no picture of this name; `--missing-images "
                                    "drop` leaves such files out")  # fmt: skip
            for stem, name in by_stem.items():
                yield self._item(folder, stem, name, of_stem[stem])

    def _walk(self) -> Iterator[tuple[Path, list[str], list[str]]]:
        def refuse(error: OSError) -> None:
            raise DataError(f"{error.filename}: can't be read: {error.strerror}") from error

        for folder, below, files in os.walk(self.root, onerror=refuse):
            below[:] = sorted(name for name in below if not name.startswith("."))
            for name in below:
                if os.path.islink(os.path.join(folder, name)):
                    self.skipped.add(os.path.join(folder, name), "links to folders")
            files = sorted(name for name in files if not name.startswith("."))
            pictures = [name for name in files if name.lower().endswith(ENDINGS)]
            texts = [name for name in files if name.lower().endswith(TEXT)]
            for name in files:
                if not name.lower().endswith((*ENDINGS, TEXT)):
                    self.skipped.add(os.path.join(folder, name), "files of other kinds")
            yield Path(folder), pictures, texts

    def _stem(self, text: str, stems: Mapping[str, str]) -> tuple[str, str]:
        """Return the picture's name that a text file belongs to, and what stands behind it."""
        bare = text[: -len(TEXT)]
        parts = bare.split(".")
        for behind in range(min(3, len(parts))):
            stem = ".".join(parts[: len(parts) - behind])
            if stem in stems:
                return stem, bare[len(stem) :].removeprefix(".")
        return bare, ""

    def _item(self, folder: Path, stem: str, name: str, texts: list[tuple[str, str]]) -> Item:
        path = (folder / name).relative_to(self.root)
        identity = path.with_suffix("").as_posix() if path.suffix else path.as_posix()
        split = self.split
        if split is None:
            if len(path.parts) < 2:
                raise DataError(f"{folder / name}: --split-folders, but it is in no folder")
            split = path.parts[0]
        if split == "train":
            split = drawn_split(identity, self.hold_out) or split
        captions: list[Caption] = []
        sources: dict[int, str] = {}
        labelled = [(*self._label(label, folder / text), folder / text) for label, text in texts]
        # what others were translated from comes first, so that they can name it
        labelled.sort(key=lambda one: (one[0] != self.mt_from, one[1] != "human"))
        before: Counter[str] = Counter()  # lines of files of the same kind: a.txt and a.en.txt
        for lang, origin, file in labelled:
            kind = lang if origin == "human" else f"{lang}.{origin}"
            start = before[kind]
            for number, line in iter_lines(file):
                before[kind] += 1
                if not line.strip():
                    self.skipped.add(f"{file}:{number}", "empty lines")
                    continue
                caption_id = f"{identity}#{kind}.{start + number - 1}"
                if lang == self.mt_from and origin == "human":
                    sources.setdefault(number, caption_id)
                of = sources.get(number) if origin == "mt" else None
                engine = self.engine if origin != "human" else None
                captions.append(Caption(caption_id, lang, line.strip(), origin, of, engine))
        return Item(identity, split, tuple(captions), path.as_posix(), where=str(folder / name))

    def _label(self, label: str, file: Path) -> tuple[str, Origin]:
        code, _, origin = label.partition(".")
        origin = origin or "human"
        lang = self.lang_names.get(code, code) or self.lang
        if lang is None:
            raise DataError(f"{file}: which language? Give --lang, or call it <picture>.LANG.txt")
        if fault := language_fault(lang):
            raise DataError(f"{file}: {fault} (`--lang-names {lang}=CODE` renames)",
                            kind="unknown_language")  # fmt: skip
        if origin not in ORIGINS:
            raise DataError(f"{file}: {origin!r} is none of {', '.join(ORIGINS)}")
        return lang, origin
