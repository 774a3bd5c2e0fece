"""Chinese-CLIP's packing (pictures in base64, texts in JSON lines): MUGE, Flickr30k-CN, COCO-CN."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlcm.data.manifest import DataError
from xlcm.data.sources.base import Need, Plan, Skipped, add_common, run_import
from xlcm.data.sources.chinese_clip_lmdb import read_lmdb
from xlcm.data.sources.chinese_clip_sets import KNOWN as KNOWN
from xlcm.data.sources.chinese_clip_sets import key_of_title as key_of_title
from xlcm.data.sources.image_paths import Pictures
from xlcm.data.sources.own import add_pictures, pictures_folder
from xlcm.data.sources.pictures import PictureFolder, safe_name
from xlcm.data.sources.text_lines import find, find_all, iter_lines, read_jsonl
from xlcm.types import Caption, Item, Origin

SPLITS = {"train": "train", "valid": "val", "test": "test"}
NAMES = (  # of pictures and texts, as packed for Chinese-CLIP and as MUGE gives them out
    ("{split}_imgs.tsv", "{split}_texts.jsonl"),
    ("MR_{split}_imgs.tsv", "MR_{split}_queries.jsonl"),
)
LMDB = "lmdb/{split}/imgs"
PAIRS = "lmdb/{split}/pairs"
TEXT_KEYS = (("text_id", "text", "image_ids"), ("query_id", "query_text", "item_ids"))

MANY = (
    "a text of val or test with several right pictures is one caption, which names the others in "
    "`relevant`: any of them is a hit, as published.",
    "a text of train stands at each of its pictures as <picture>#<lang>.<text id>: training looks "
    "at pairs.",
)


@dataclass(frozen=True)
class Text:
    """One line of texts: its id, its words, and the further pictures that it is right for."""

    id: str
    text: str
    further: tuple[str, ...] = ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `xlcm data import chinese-clip`."""
    add_common(parser)
    parser.add_argument("--dataset", choices=list(KNOWN), default="other",
                        help="which one it is: counts and origins (default: other)")  # fmt: skip
    parser.add_argument("--splits", nargs="+", choices=list(SPLITS), default=list(SPLITS),
                        help="default: all three")  # fmt: skip
    parser.add_argument("--lang", default="zh", metavar="CODE",
                        help="language of the texts (default: zh)")  # fmt: skip
    add_pictures(parser)


def run(args: argparse.Namespace) -> int:
    """Import; exit code as of `run_import`."""
    from xlcm.data.sources.columns import check_lang

    check_lang(args.lang, "--lang")
    packing = Packing(Path(args.root), args.dataset, tuple(args.splits), args.lang)
    if args.images is None and not args.no_pictures:
        packing.check()
        folder = PictureFolder(pictures_folder(args.out), drop=args.bad_pictures == "drop")
        packing.unpack(folder)
        args.images = str(folder.folder)
    elif args.images is not None and args.missing_images == "drop":
        packing.shown = Pictures(args.images, args.out, "drop", more=args.more_images)
    return run_import(packing.plan(), args)


class Packing:
    """One data set in this packing.

    Args:
        root: the folder with the files.
        dataset: a key of `KNOWN`.
        splits: as the files call them.
        lang: of all texts.
    """

    def __init__(
        self, root: Path, dataset: str, splits: tuple[str, ...] = tuple(SPLITS), lang: str = "zh"
    ) -> None:
        self.known, self.name = KNOWN[dataset], dataset
        self.splits, self.lang, self.root = splits, lang, root
        muges = [name.format(split=split) for name in NAMES[1] for split in splits]
        self.muge = any(find_all(root, name) for name in muges)
        self.skipped = Skipped()
        self.shown: Pictures | None = None
        self._saved: dict[tuple[str, str], str | None] | None = None

    def files(self, split: str) -> tuple[str, str]:
        """Return the names of the pictures' and the texts' file of a split.

        Whichever is there is taken, MUGE's own names first, an LMDB of pictures last.
        """
        order = reversed(NAMES) if self.muge else NAMES
        pictures, texts = zip(*order)
        return self._first((*pictures, LMDB), split), self._first(texts, split)

    def _first(self, names: Sequence[str], split: str) -> str:
        """Return the first name that is there; if none is, the first one is missed."""
        named = [name.format(split=split) for name in names]
        return next((name for name in named if find_all(self.root, name)), named[0])

    def check(self) -> None:
        """Refuse to unpack while a file is missing.

        Raises:
            DataError: naming it, and where it comes from.
        """
        names = [name for split in self.splits for name in self.files(split)]
        missing = [name for name in names if not find_all(self.root, name)]
        if missing:
            raise DataError(f"{self.root}: {', '.join(missing)} missing; --splits takes those that "
                            f"are there. {self._of_pairs()}{self.known.get} "
                            f"Terms: {self.known.terms}")  # fmt: skip

    def _of_pairs(self) -> str:
        """Return the sentence on texts that are missing as lines and there as pickles."""
        lost = [split for split in self.splits if not find_all(self.root, self.files(split)[1])]
        pairs = [PAIRS.format(split=split) for split in lost]
        there = [name for name in pairs if find_all(self.root, name)]
        told = (
            "pickled texts, and reading a pickle runs code; the .jsonl they were made from is read"
        )
        return f"{', '.join(there)}: {told}. " if there else ""

    def unpack(self, folder: PictureFolder) -> None:
        """Write all pictures to files.

        Raises:
            DataError: naming file and line of what is no picture.
        """
        from xlcm.data.tables import say

        self._saved = {}
        for split in self.splits:
            for where, identity, data in read_pictures(find(self.root, self.files(split)[0])):
                name = f"{split}/{safe_name(identity)}"
                self._saved[split, identity] = folder.save(name, data, where)
        say(folder.tell())

    def plan(self) -> Plan:
        """Return what is read."""
        needs = []
        for split in self.splits:
            pictures, texts = self.files(split)
            needs += [Need(pictures, f"pictures of {split}"), Need(texts, f"texts of {split}")]
        wanted = {SPLITS[split] for split in self.splits}
        return Plan(
            name="chinese-clip",
            title=self.known.title,
            get=self._of_pairs() + self.known.get,
            terms=self.known.terms,
            cite=self.known.cite,
            needs=tuple(needs),
            items=self.items,
            expected={s: e for s, e in self.known.expected.items() if s in wanted},
            key=self.known.key,
            skipped=self.skipped,
            notes=(*self.known.notes, *MANY),
        )

    def items(self) -> Iterator[Item]:
        """Yield the pictures of each split in the order of their file, with their texts.

        Raises:
            DataError: naming file and line.
        """
        taken: set[str] = set()
        for split in self.splits:
            pictures, texts = (find(self.root, name) for name in self.files(split))
            by_picture, named = self._texts(texts, split)
            # a picture of two splits is told as a leak, by its key
            earlier, part = frozenset(taken), SPLITS[split]

            def identity(number: str, earlier: frozenset[str] = earlier, part: str = part) -> str:
                return number if number not in earlier else f"{number}@{part}"

            for where, number, _ in read_pictures(pictures, data=False):
                named.pop(number, None)
                image: str | None = f"{number}.jpg"
                if self._saved is not None:
                    image = self._saved[split, number]
                if image is None:
                    self.skipped.add(where, "pictures that can't be read")
                    continue
                owner = identity(number)
                taken.add(owner)
                rows = by_picture.pop(number, ())
                captions = tuple(self._caption(row, owner, part, identity) for row in rows)
                yield Item(owner, part, captions, image, where=where)
            for number, text in named.items():
                raise DataError(f"{texts}: text {text} belongs to picture {number}, which "
                                f"{pictures.name} doesn't have")  # fmt: skip

    def _caption(self, row: Text, owner: str, part: str, identity: Callable[[str], str]) -> Caption:
        engine = self.known.machine.get(part)
        origin: Origin = "human" if engine is None else "mt"
        further = tuple(identity(number) for number in row.further)
        name = f"{owner}#{self.lang}.{row.id}"
        return Caption(name, self.lang, row.text, origin, engine=engine, relevant=further)

    def _texts(self, path: Path, split: str) -> tuple[dict[str, list[Text]], dict[str, str]]:
        """Return the texts by the picture that they stand at, and a text of each picture named."""
        found: dict[str, list[Text]] = {}
        named: dict[str, str] = {}
        seen: dict[str, int] = {}
        for line, row in read_jsonl(path):
            where = f"{path}:{line}"
            number, text, pictures = text_row(row, where)
            if number in seen:
                raise DataError(f"{where}: text id {number} is also at line {seen[number]}")
            seen[number] = line
            if not text.strip() or not pictures:
                hidden = "texts that name no picture (hidden labels)"
                self.skipped.add(where, hidden if text.strip() else "texts that are empty")
                continue
            for picture in pictures:
                named.setdefault(picture, number)
            there = [one for one in dict.fromkeys(pictures) if self._there(split, one)]
            if not there:
                self.skipped.add(where, "texts whose pictures can't be had")
            at = there if split == "train" else there[:1]
            for one in at:
                further = () if split == "train" else tuple(there[1:])
                found.setdefault(one, []).append(Text(number, text.strip(), further))
        return found, named

    def _there(self, split: str, number: str) -> bool:
        """Return whether a picture will be in the manifest, if the pictures' file has it at all."""
        if self._saved is not None:
            return self._saved.get((split, number), number) is not None
        image = Item(number, split, (), f"{number}.jpg")
        return self.shown is None or self.shown.place(image) is not None


def text_row(row: Mapping[str, Any], where: str) -> tuple[str, str, list[str]]:
    """Return (text id, text, picture ids) of one line, in either naming.

    Raises:
        DataError: naming the key.
    """
    for number, text, pictures in TEXT_KEYS:
        if number in row and text in row:
            ids = row.get(pictures) or []
            if not isinstance(ids, list) or not isinstance(row[text], str):
                raise DataError(f"{where}: {text} must be text and {pictures} a list of ids")
            return str(row[number]), row[text], [str(one) for one in ids]
    raise DataError(f"{where}: expected {' or '.join(', '.join(keys) for keys in TEXT_KEYS)}; got "
                    f"{', '.join(row)}")  # fmt: skip


def read_pictures(path: Path, *, data: bool = True) -> Iterator[tuple[str, str, str]]:
    """Yield (`file:line`, id, base64) of a pictures' file or LMDB, one picture in memory.

    Args:
        path: a file of lines, or the folder of an LMDB.
        data: False: ids alone are wanted, so that an LMDB's pictures need not be read.

    Raises:
        DataError: for a line without tab, or an id that was there before; as of `read_lmdb`.
    """
    if path.is_dir():
        yield from read_lmdb(path, data=data)
        return
    seen: dict[str, int] = {}
    for number, line in iter_lines(path):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        identity, tab, encoded = line.partition("\t")
        if not tab or not identity.strip():
            raise DataError(f"{where}: expected <id><tab><base64>, got {line[:40]!r}")
        identity = identity.strip()
        if identity in seen:
            raise DataError(f"{where}: picture {identity} is also at line {seen[identity]}")
        seen[identity] = number
        yield where, identity, encoded
