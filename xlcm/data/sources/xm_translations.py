"""CC3M or COCO in 34 languages by machine, and back, from the Crossmodal-3600 owners.

The one public source of English, its translation and its back-translation together.
"""

from __future__ import annotations

import argparse
import bz2
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xlcm.data.json_faults import told
from xlcm.data.manifest import DataError
from xlcm.data.sources import crossmodal3600
from xlcm.data.sources.base import Expected, Need, Plan, Skipped, add_common, run_import
from xlcm.data.sources.coco_names import PictureIndex, coco_number, image_folders
from xlcm.data.sources.joining import chosen_langs
from xlcm.data.sources.karpathy import GET, Entry, read_karpathy
from xlcm.data.sources.text_lines import find
from xlcm.types import Caption, Item

ENGINE = "crossmodal-3600"
LANGS = tuple(lang for lang in crossmodal3600.LANGS if lang != "en")
NAMES = {"iw": "he", "tl": "fil", "jp": "ja", "cz": "cs", "zh-CN": "zh", "zh-cn": "zh"}
COUNTS = {
    "coco": {"train": (113_287, 566_435), "val": (5_000, 25_000)},
    "cc3m": {"train": (3_318_270, 3_318_270), "val": (15_840, 15_840)},
}
FILES = {"train": "train", "val": "dev"}
KARPATHY = "dataset_coco.json"


def picture_key(item: Item) -> str:
    """Return `coco:123456`, or `cc3m:train-17` for row 17 of CC3M's training file."""
    number = coco_number(item.id)
    return f"cc3m:{item.id}" if number is None else f"coco:{number}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `xlcm data import xm-translations`."""
    add_common(parser)
    parser.add_argument("--set", choices=sorted(COUNTS), default="coco",
                        help="whose captions (default: coco)")  # fmt: skip
    parser.add_argument("--langs", nargs="+", required=True, metavar="LANG",
                        help=f"languages to read, of {' '.join(LANGS)}; they are held in memory: "
                        "a language of CC3M takes some GB")  # fmt: skip
    parser.add_argument("--karpathy", metavar="FILE", help=f"of coco: which picture an id is "
                        f"(default: {KARPATHY} in --root)")  # fmt: skip
    parser.add_argument("--splits", nargs="+", choices=sorted(FILES), default=sorted(FILES),
                        help="files to read (default: both)")  # fmt: skip
    parser.add_argument("--no-back", action="store_true", help="without back-translations")


def run(args: argparse.Namespace) -> int:
    """Import; exit code as of `run_import`."""
    made = plan(args.root, args.set, args.langs, karpathy=args.karpathy, splits=args.splits,
                back=not args.no_back, images=image_folders(args))  # fmt: skip
    return run_import(made, args)


def plan(
    root: str | Path,
    name: str,
    langs: Sequence[str],
    *,
    karpathy: str | None = None,
    splits: Sequence[str] = ("train", "val"),
    back: bool = True,
    images: Sequence[str] = (),
) -> Plan:
    """Return what is read.

    Args:
        root: the folder of `{coco,cc3m}_mt_{train,dev}.jsonl.bz2`.
        name: `coco` or `cc3m`.
        langs: some of `LANGS`.
        karpathy: his `dataset_coco.json`; None: the one in `root`.
        splits: of `train` and `val`.
        back: keep back-translations.
        images: folders of pictures, in any layout that `PictureIndex` knows.

    Raises:
        DataError: for a language that it can't have.
    """
    chosen, skipped = chosen_langs(langs, LANGS), Skipped()
    files = {split: f"{name}_mt_{FILES[split]}.jsonl.bz2" for split in FILES if split in splits}
    names = KARPATHY if karpathy is None else str(Path(karpathy).absolute())

    def items() -> Iterator[Item]:
        index = PictureIndex(images)
        known: dict[int, Entry] | None = None
        if name == "coco":
            entries = read_karpathy(find(root, names))
            known = {entry.number: entry for entry in entries if entry.number is not None}
        for split, file in files.items():
            found = _gather(Path(root) / file, split, chosen, known, back, skipped)
            while found:  # the oldest first; each is freed once it is written
                identity = next(iter(found))
                open_item = found.pop(identity)
                image = None
                if known is not None:
                    entry = known[coco_number(identity) or 0]
                    image = index.find(identity, entry.file)
                captions = tuple(open_item.captions)
                yield Item(identity, split, captions, image, where=open_item.where)

    needs = [Need(file, f"{split}, all languages") for split, file in files.items()]
    if name == "coco":
        needs.append(Need(names, "Karpathy's split, for the names of the pictures"))
    return Plan(
        name="xm-translations",
        title=f"Machine translations of {name.upper()} by the Crossmodal-3600 owners",
        get="The section on translations of https://google.github.io/crossmodal-3600/; don't "
        f"unpack .bz2. For coco also {GET}. Pictures of COCO: https://cocodataset.org/#download.",
        terms="CC BY 4.0; pictures under Flickr's terms (COCO), or their sites' (CC3M).",
        cite="Thapliyal et al. 2022, https://arxiv.org/abs/2205.12522",
        needs=tuple(needs),
        items=items,
        expected={split: _expected(name, split, chosen, back) for split in files},
        key=picture_key,
        notes=(
            "All text is lower-cased and tokenised, English too; digits of CC3M are #. A model "
            "that is tested on plain text should see plain text as well.",
        ),
        skipped=skipped,
    )


def _expected(name: str, split: str, langs: Sequence[str], back: bool) -> Expected:
    pictures, each = COUNTS[name][split]
    captions = {"en human": each, **{f"{lang} mt": each for lang in langs}}
    if back:
        captions["en back"] = each * len(langs)
    return Expected(pictures, captions)


@dataclass
class _Open:
    where: str
    captions: list[Caption] = field(default_factory=list)
    met: dict[str, str] = field(default_factory=dict)  # caption id -> text, of the source and mt


def _gather(
    path: Path,
    split: str,
    langs: Sequence[str],
    known: dict[int, Entry] | None,
    back: bool,
    skipped: Skipped,
) -> dict[str, _Open]:
    found: dict[str, _Open] = {}
    for number, row in _read(path):
        where = f"{path}:{number}"
        lang = NAMES.get(_text(row, "trg_lang", where), row["trg_lang"])
        if lang not in langs:
            continue
        identity, n = _which(row, split, known, where)
        item = found.setdefault(identity, _Open(where))
        source = f"{identity}#en.{n}"
        if (from_lang := row.get("src_lang")) != "en":
            raise DataError(f"{where}: src_lang is {from_lang!r}, 'en' is expected")
        english = _text(row, "caption_tokenized", where).strip()
        if source not in item.met:
            item.met[source] = english
            if english:
                item.captions.append(Caption(source, "en", english))
        elif item.met[source] != english:
            skipped.add(where, "translations of other English than a line before has")
            continue
        made = f"{identity}#{lang}.mt.{n}"
        if made in item.met:
            raise DataError(f"{where}: the {lang} translation of caption {n} of {identity!r} was "
                            "in a line before")  # fmt: skip
        item.met[made] = ""
        translated = _text(row, "translation_tokenized", where).strip()
        returned = _text(row, "backtranslation_tokenized", where).strip() if back else ""
        if not translated or not english:
            skipped.add(where)
            continue
        item.captions.append(Caption(made, lang, translated, "mt", source, ENGINE))
        if returned:
            identity_back = f"{identity}#en.back-{lang}.{n}"
            item.captions.append(Caption(identity_back, "en", returned, "back", made, ENGINE))
        elif back:
            skipped.add(where)
    return found


def _which(
    row: dict[str, Any], split: str, known: dict[int, Entry] | None, where: str
) -> tuple[str, int]:
    """Return the item and, from 0, the number of the caption that a row is about."""
    if known is None:
        line = str(row.get("rec_num"))
        if not line.isdecimal():
            raise DataError(f"{where}: rec_num must be a line number, got {row.get('rec_num')!r}")
        return f"{split}-{int(line)}", 0
    told = str(row.get("image_id"))
    picture, _, n = told.rpartition("_")
    if not picture.isdecimal() or not n.isdecimal() or n == "0":
        raise DataError(f"{where}: image_id must be like 123456_1, got {told!r}")
    if int(picture) not in known:
        raise DataError(f"{where}: Karpathy's file has no picture {picture}; is it {KARPATHY}?")
    entry = known[int(picture)]
    if entry.split != split:
        raise DataError(f"{where}: picture {picture} is in {entry.split} of Karpathy's split, "
                        f"not in {split}")  # fmt: skip
    return entry.id, int(n) - 1


def _read(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of a bzip2 file of JSON lines.

    Raises:
        DataError: naming the line of the fault.
    """
    number = 0
    try:
        with bz2.open(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                if text.isspace():
                    continue
                row = json.loads(text)
                if type(row) is not dict:
                    raise DataError(f"{path}:{number}: expected an object, got {text[:60]!r}")
                yield number, row
    except EOFError as error:
        raise DataError(
            f"{path}: the file is cut off behind line {number}; get it again"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: no bzip2 file, or damaged ({error}); get it again") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}:{number}: not UTF-8 (0x{error.object[error.start]:02x}); get the file again",
            kind="not_utf8",
        ) from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{number}: {told(error)}") from error


def _text(row: dict[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise DataError(f"{where}: {key!r} must be text, got {value!r:.60}")
    return value
