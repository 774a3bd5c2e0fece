"""NRCCR's and MLCMR's files: English, machine translations and back-translations, tagged lines.

The root is a collection's folder (`VisualSearch/multi30k`), its `TextData`, or `VisualSearch`.
Training has English, its translation and the way back; val and test have people's target captions
and their translation into English. Both can be fused when a model is evaluated.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from xlcm.data.manifest import DataError
from xlcm.data.sources.base import Expected, Need, Plan, Skipped, add_common, run_import
from xlcm.data.sources.tagged_files import TagFile, join, youtube_key
from xlcm.data.sources.text_lines import find_all
from xlcm.types import Item

MSRVTT_NAMES = ("msrvttcn", "msrvtt10kcn", "msrvtt10kyu")
COLLECTIONS = ("multi30k", "mscoco", "vatex", "msrvttcn")
SPLITS = ("train", "val", "test")
LANGS = {"multi30k": ("de", "fr", "cs"), "mscoco": ("ja", "zh"), "vatex": ("zh",),
         "msrvttcn": ("zh",)}  # fmt: skip

GET = (
    "the links to cloud drives in https://github.com/HuiGuanLab/nrccr (MLCMR: in the repository of "
    "its paper); captions lie in <collection>/TextData, features in <collection>/FeatureData."
)
TERMS = "the code is Apache-2.0, for the data the terms of each data set hold."
CITE = "Wang et al. 2022 (NRCCR), https://arxiv.org/abs/2208.12526"
FUSED = (
    "the published figures fuse two scores, of people's target caption and of its machine "
    "translation into English (origin mt in val and test); a model that is asked with the target "
    "caption alone is measured otherwise."
)
FEATURES = (
    "features: FeatureData/<feature> is read in place as `features:` of a data set (BigFile "
    "folders of videos, .npy with *_id.txt of pictures); nothing here depends on its order."
)


@dataclass(frozen=True)
class Layout:
    """What a collection's files are called.

    Args:
        collection: of `COLLECTIONS`.
        lang: the target.
        task: of Multi30K, 1 or 2.
        prefix: of file names: `vatex`, `msrvtt10kcn`, ...
        everything: also what the protocol leaves out, where it is there.
    """

    collection: str
    lang: str
    task: str = "1"
    prefix: str = ""
    everything: bool = False

    def files(self, split: str, root: Path) -> list[TagFile]:
        """Return the files of a split, each behind the one that it was made from."""
        lang = self.lang
        english = TagFile(self._name(split, "enc", root), split, "en", ("enc",))
        target = TagFile(self._name(split, lang, root), split, lang, (lang,))
        # MLCMR calls the way from Chinese into English zhc2en
        into = (f"{lang}2enc", f"{lang}c2en")
        to_english = TagFile(self._name(split, into[0], root), split, "en", into, "mt", lang)
        to_target = TagFile(self._name(split, f"enc2{lang}", root), split, lang,
                            (f"enc2{lang}",), "mt", "en")  # fmt: skip
        if split == "train":
            back = TagFile(self._name(split, f"enc2{lang}2enc", root), split, "en",
                           (f"enc2{lang}2enc",), "back", f"{lang}.mt")  # fmt: skip
            needed, other = [english, to_target, back], [target, to_english]
        else:
            needed, other = [target, to_english], [english, to_target]
        if not self.everything:
            return needed
        there = {file.label for file in other if find_all(root, file.path)}
        more = [file for file in other if file.label in there and (not file.of or file.of in there)]
        return needed + [replace(file, required=False) for file in more]

    def _name(self, split: str, tag: str, root: Path) -> str:
        """Return the name that is there, else the first that it may have."""
        names = self._names(split, tag)
        return next((name for name in names if find_all(root, name)), names[0])

    def _names(self, split: str, tag: str) -> list[str]:
        machine = "google_" if "2" in tag else ""
        if self.collection == "multi30k":
            start = "Flickr30k" if self.task == "2" and split == "train" else "multi30k"
            if split == "train":
                return [f"{start}train_{machine}{tag}.caption.txt"]
            year = "_2016" if split == "test" else ""
            # only German has two tasks; French and Czech share their files
            task = "_task1" if self.lang == "de" and self.task == "1" else ""
            return [f"multi30k{split}_{machine}{tag}{year}{task}.caption.txt"]
        start = f"{self.prefix or self.collection}{split}"
        names = [f"{start}_{machine}{tag}.caption.txt"]
        if tag == "enc" and self.collection != "mscoco":
            return [f"{start}.caption.txt", *names]
        if tag == f"{self.lang}2enc":
            names += [f"{start}_google_{self.lang}c2en.caption.txt"]
        return names


@dataclass(frozen=True)
class Request:
    """Which files of which collection are read, from where.

    Args:
        root: as given; `folder` finds the texts below it.
        collection: of `COLLECTIONS`.
        langs: the targets.
        splits: of `SPLITS`.
        task: of Multi30K.
        everything: see `Layout`.
        engine: that made the translations.
        skip_unpaired: see `join`.
    """

    root: Path
    collection: str
    langs: tuple[str, ...] = ()
    splits: tuple[str, ...] = SPLITS
    task: str = "1"
    everything: bool = False
    engine: str = "google"
    skip_unpaired: bool = False
    skipped: Skipped = field(default_factory=Skipped)

    @property
    def folder(self) -> Path:
        """Where the caption files lie."""
        names = MSRVTT_NAMES if self.collection == "msrvttcn" else (self.collection,)
        inside = [self.root / name / "TextData" for name in names]
        found = [self.root / "TextData", *inside, *(self.root / name for name in names)]
        return next((path for path in found if path.is_dir()), self.root)

    @property
    def prefix(self) -> str:
        """How the names of the files begin."""
        if self.collection != "msrvttcn":
            return self.collection
        there = [name for name in MSRVTT_NAMES if find_all(self.folder, f"{name}t*.caption.txt")]
        return there[0] if there else MSRVTT_NAMES[0]

    def files(self, split: str) -> list[TagFile]:
        """Return the files of a split; what several targets share is there once."""
        files: dict[str, TagFile] = {}
        labels: dict[str, str] = {}  # of people's captions -> their file
        for lang in self.langs or LANGS[self.collection]:
            layout = Layout(self.collection, lang, self.task, self.prefix, self.everything)
            renamed: dict[str, str] = {}
            for file in layout.files(split, self.folder):
                if len(self.langs or LANGS[self.collection]) > 1 and file.lang == "en" and file.of:
                    # one caption's ways back over several languages need names of their own
                    file = replace(file, kind=f"{file.kind}-{lang}")
                if not file.of and labels.setdefault(file.label, file.path) != file.path:
                    # the English of German task 1 and that of French are two files
                    renamed[file.label] = f"{file.lang}.{lang}"
                    file = replace(file, kind=lang)
                file = replace(file, of=renamed.get(file.of, file.of))
                files.setdefault(file.path, file)
        return list(files.values())

    def items(self) -> Iterator[Item]:
        """Yield the items of all splits.

        Raises:
            DataError: naming file and line.
        """
        for split in self.splits:
            yield from join(
                self.folder, self.files(split), self.skipped, engine=self.engine,
                videos=self.collection in ("vatex", "msrvttcn"), skip_unpaired=self.skip_unpaired,
            )  # fmt: skip


def nrccr_plan(request: Request, name: str = "nrccr", notes: Sequence[str] = ()) -> Plan:
    """Return what is read for a request.

    Raises:
        DataError: for a language that the collection lacks.
    """
    known = LANGS[request.collection]
    if unknown := [lang for lang in request.langs if lang not in known]:
        raise DataError(f"--langs {unknown[0]}: {request.collection} has {', '.join(known)}")
    if request.collection == "mscoco" and len(request.langs) != 1:
        raise DataError("--langs: say ja or zh. In val and test the Japanese captions are of other "
                        "pictures (STAIR) than the Chinese ones (COCO-CN), and a picture of one "
                        "test may be in the other's val; make a manifest of each")  # fmt: skip
    needs = [
        Need(str(request.folder.absolute() / file.path), file.what, file.required)
        for split in request.splits for file in request.files(split)
    ]  # fmt: skip
    return Plan(
        name=name, title=f"{request.collection} in NRCCR's files", get=GET, terms=TERMS, cite=CITE,
        needs=tuple(needs), items=request.items, expected=expected(request), key=picture_key,
        clips=request.collection == "vatex", notes=(*notes, FUSED, FEATURES),
        skipped=request.skipped,
    )  # fmt: skip


def expected(request: Request) -> dict[str, Expected]:
    """Return the published counts: those that were counted in the owners' files."""
    counts: dict[str, Expected] = {}
    if request.collection == "multi30k":
        images = {"train": 29_000, "val": 1_014, "test": 1_000}
        counts = {split: Expected(n) for split, n in images.items()}
    if request.collection == "vatex":
        both = {"zh human": 15_000, "en mt": 15_000}
        counts = {split: Expected(1_500, both) for split in ("val", "test")}
    if request.collection == "msrvttcn":
        counts = {"test": Expected(1_000, {"zh human": 1_000})}
    return {split: n for split, n in counts.items() if split in request.splits}


def picture_key(item: Item) -> str:
    """Return `coco:`, `msrvtt:`, `flickr:` or `youtube:` and the picture's or video's own id."""
    identity = item.id
    if identity.startswith("COCO_"):
        return f"coco:{int(identity.rpartition('_')[2])}"
    if identity.startswith("video") and identity[5:].isdecimal():
        return f"msrvtt:{identity}"
    if identity.isdecimal():
        return f"flickr:{identity}"
    return youtube_key(item)


def add_request(parser: argparse.ArgumentParser) -> None:
    """Declare the options of every command that reads these files."""
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=list(SPLITS),
                        help="default: all three")  # fmt: skip
    parser.add_argument(
        "--everything", action="store_true",
        help="also read what the protocol leaves out, where it is there: people's target captions "
        "in training, English in val and test, and their translations",
    )  # fmt: skip
    parser.add_argument("--engine", default="google", metavar="NAME",
                        help="what made the translations (default: google)")  # fmt: skip
    parser.add_argument(
        "--unpaired", choices=["error", "skip"], default="error",
        help="what to do with a translation without its source, or without it (default: error)",
    )  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `xlcm data import nrccr`."""
    add_common(parser)
    parser.add_argument("--collection", required=True, choices=COLLECTIONS)
    parser.add_argument("--langs", nargs="+", default=[], metavar="CODE",
                        help="target languages (default: all of the collection)")  # fmt: skip
    parser.add_argument("--task", choices=["1", "2"], default="1", help="of Multi30K (default: 1)")
    add_request(parser)


def request_of(args: argparse.Namespace, collection: str) -> Request:
    """Return what the options ask for."""
    return Request(
        root=Path(args.root), collection=collection, splits=tuple(args.splits),
        langs=tuple(dict.fromkeys(getattr(args, "langs", ()))), task=getattr(args, "task", "1"),
        everything=args.everything, engine=args.engine, skip_unpaired=args.unpaired == "skip",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Import; exit code as of `run_import`."""
    return run_import(nrccr_plan(request_of(args, args.collection)), args)
