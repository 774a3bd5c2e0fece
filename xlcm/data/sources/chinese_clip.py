"""Chinese-CLIP's packing (pictures in base64, texts in JSON lines): MUGE, Flickr30k-CN, COCO-CN."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xlcm.data.manifest import DataError
from xlcm.data.sources.base import Expected, Need, Plan, Skipped, add_common, run_import
from xlcm.data.sources.coco_names import coco_number
from xlcm.data.sources.own import add_pictures, pictures_folder
from xlcm.data.sources.pictures import PictureFolder, safe_name
from xlcm.data.sources.text_lines import find, find_all, iter_lines, read_jsonl
from xlcm.types import Caption, Item, Origin

SPLITS = {"train": "train", "valid": "val", "test": "test"}
NAMES = (  # of pictures and texts, as packed for Chinese-CLIP and as MUGE gives them out
    ("{split}_imgs.tsv", "{split}_texts.jsonl"),
    ("MR_{split}_imgs.tsv", "MR_{split}_queries.jsonl"),
)
TEXT_KEYS = (("text_id", "text", "image_ids"), ("query_id", "query_text", "item_ids"))


@dataclass(frozen=True)
class Known:
    """What is known of one data set in this packing."""

    title: str
    get: str
    terms: str
    cite: str
    expected: Mapping[str, Expected] = field(default_factory=dict)
    machine: Mapping[str, str] = field(default_factory=dict)  # split -> engine
    prefix: str = ""  # of the key that tells pictures apart over data sets
    notes: tuple[str, ...] = ()

    def key(self, item: Item) -> str:
        """Return which picture it is over data sets."""
        identity = item.id.partition("@")[0]
        number = coco_number(identity)
        return self.prefix + identity if number is None else f"coco:{number}"


KNOWN = {
    "muge": Known(
        title="MUGE multimodal retrieval",
        get="Register at https://tianchi.aliyun.com/muge and download Multimodal_Retrieval.",
        terms="For research, after registration.",
        cite="Lin et al. 2021, https://arxiv.org/abs/2103.00823",
        prefix="muge:",
        notes=(
            "about 129,000, 30,000 and 30,000 pictures and 250,000 training pairs; the labels of "
            "test are hidden, papers report valid (val here).",
        ),
    ),
    "flickr30k-cn": Known(
        title="Flickr30k-CN, as packed for Chinese-CLIP",
        get="See https://github.com/OFA-Sys/Chinese-CLIP, section on data sets.",
        terms="Pictures under Flickr's terms, non-commercial research and education only.",
        cite="Lan et al. 2017, https://arxiv.org/abs/1708.04390",
        expected={
            "train": Expected(29_783, {"zh mt": 148_915}),
            "val": Expected(1_000, {"zh mt": 5_000}),
            "test": Expected(1_000, {"zh human": 5_000}),
        },
        machine={"train": "baidu", "val": "baidu"},
        prefix="flickr:",
        notes=(
            "its splits are not Karpathy's and not Multi30K's: 905 of its test pictures are in "
            "Multi30K's train (--against shows it).",
        ),
    ),
    "coco-cn": Known(
        title="COCO-CN, as packed for Chinese-CLIP",
        get="See https://github.com/OFA-Sys/Chinese-CLIP, or ask the owners: "
        "https://github.com/li-xirong/coco-cn.",
        terms="Text on request, for research; pictures under Flickr's terms.",
        cite="Li et al. 2019, https://arxiv.org/abs/1805.08661",
        expected={"train": Expected(18_341), "val": Expected(1_000), "test": Expected(1_000)},
        prefix="coco-cn:",
        notes=(
            "its split cuts across Karpathy's: do not mix the two.",
            "pictures that are not called COCO_val2014_... are compared by --against with those of "
            "this packing only; the source coco-cn knows COCO's numbers.",
        ),
    ),
    "other": Known(
        title="a data set in Chinese-CLIP's packing",
        get="These are your own files.",
        terms="Yours.",
        cite="-",
    ),
}


def key_of_title(title: str) -> Callable[[Item], str]:
    """Return the key of the pictures of the set that a report's title names."""
    known = {one.title: one for one in KNOWN.values()}
    return known.get(title, KNOWN["other"]).key


MANY = (
    "a text with several right pictures stands at each of them as a caption of its own, "
    "<picture>#<lang>.<text id>; recall from text then asks for that one picture, which is "
    "stricter than the published 'any of them'."
)


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
        # MUGE's own names where they are there, else Chinese-CLIP's
        self.muge = any(find_all(root, NAMES[1][0].format(split=split)) for split in splits)
        self.skipped = Skipped()
        self._saved: dict[tuple[str, str], str | None] | None = None

    def files(self, split: str) -> tuple[str, str]:
        """Return the names of the pictures' and the texts' file of a split."""
        pictures, texts = NAMES[self.muge]
        return pictures.format(split=split), texts.format(split=split)

    def check(self) -> None:
        """Refuse to unpack while a file is missing.

        Raises:
            DataError: naming it, and where it comes from.
        """
        names = [name for split in self.splits for name in self.files(split)]
        missing = [name for name in names if not find_all(self.root, name)]
        if missing:
            raise DataError(f"{self.root}: {', '.join(missing)} missing; --splits takes those that "
                            f"are there. {self.known.get} Terms: {self.known.terms}")  # fmt: skip

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
            get=self.known.get,
            terms=self.known.terms,
            cite=self.known.cite,
            needs=tuple(needs),
            items=self.items,
            expected={s: e for s, e in self.known.expected.items() if s in wanted},
            key=self.known.key,
            skipped=self.skipped,
            notes=(*self.known.notes, MANY),
        )

    def items(self) -> Iterator[Item]:
        """Yield the pictures of each split in the order of their file, with their texts.

        Raises:
            DataError: naming file and line.
        """
        taken: set[str] = set()
        for split in self.splits:
            pictures, texts = (find(self.root, name) for name in self.files(split))
            by_picture = self._texts(texts, SPLITS[split])
            for where, number, _ in read_pictures(pictures):
                image: str | None = f"{number}.jpg"
                if self._saved is not None:
                    image = self._saved[split, number]
                if image is None:
                    self.skipped.add(where, "pictures that can't be read")
                    by_picture.pop(number, None)
                    continue
                # a picture of two splits is told as a leak, by its key
                identity = number if number not in taken else f"{number}@{SPLITS[split]}"
                taken.add(identity)
                captions = tuple(
                    Caption(f"{identity}#{self.lang}.{n}", self.lang, text, origin, None, engine)
                    for n, text, origin, engine in by_picture.pop(number, ())
                )
                yield Item(identity, SPLITS[split], captions, image, where=where)
            for number, rows in by_picture.items():
                raise DataError(f"{texts}: text {rows[0][0]} belongs to picture {number}, which "
                                f"{pictures.name} doesn't have")  # fmt: skip

    def _texts(
        self, path: Path, split: str
    ) -> dict[str, list[tuple[str, str, Origin, str | None]]]:
        engine = self.known.machine.get(split)
        origin: Origin = "human" if engine is None else "mt"
        found: dict[str, list[tuple[str, str, Origin, str | None]]] = {}
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
            for picture in dict.fromkeys(pictures):
                found.setdefault(picture, []).append((number, text.strip(), origin, engine))
        return found


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


def read_pictures(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (`file:line`, id, base64) of a pictures' file, one line in memory.

    Raises:
        DataError: for a line without tab, or an id that was there before.
    """
    seen: dict[str, int] = {}
    for number, line in iter_lines(path):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        identity, tab, data = line.partition("\t")
        if not tab or not identity.strip():
            raise DataError(f"{where}: expected <id><tab><base64>, got {line[:40]!r}")
        identity = identity.strip()
        if identity in seen:
            raise DataError(f"{where}: picture {identity} is also at line {seen[identity]}")
        seen[identity] = number
        yield where, identity, data
