"""WIT of IGLUE: pictures of Wikipedia with their captions; test in eleven languages."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from xlcm.data.manifest import DataError
from xlcm.data.sources.base import Expected, Need, Plan, Skipped, add_common, run_import
from xlcm.data.sources.coco_names import PictureIndex, image_folders
from xlcm.data.sources.joining import Joined, add_langs, chosen_langs
from xlcm.data.sources.text_lines import find, find_all, read_jsonl
from xlcm.types import Caption, Item

# rows and empty captions of the test files
TEST = {
    "ar": (890, 0), "bg": (860, 0), "da": (891, 0), "el": (570, 1), "en": (1_000, 0),
    "et": (874, 0), "id": (901, 1), "ja": (1_000, 0), "ko": (931, 0), "tr": (721, 0),
    "vi": (946, 0),
}  # fmt: skip
VAL = 4_632
ALONE = {("ar", "wit-test_7382")}  # translated, but not in the Arabic test file
TRAIN = "wit/annotations/train_en.jsonl"
ENGINE = "google"


def picture_key(item: Item) -> str:
    """Return `wit:<wit_ix>`; that two of them show one picture is told by URLs alone."""
    return f"wit:{item.id}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `xlcm data import wit`."""
    add_common(parser)
    add_langs(parser, TEST)
    parser.add_argument("--train", action="store_true",
                        help="read the English training captions too, about 500,000")  # fmt: skip
    parser.add_argument("--translate-test", action="store_true",
                        help="add machine translations of test captions into English")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Import; exit code as of `run_import`."""
    made = plan(args.root, args.langs, train=args.train, translate_test=args.translate_test,
                images=image_folders(args))  # fmt: skip
    return run_import(made, args)


def plan(
    root: str | Path,
    langs: Sequence[str] | None = None,
    *,
    train: bool = False,
    translate_test: bool = False,
    images: Sequence[str] = (),
) -> Plan:
    """Return what is read of WIT.

    Args:
        root: the folder `datasets` of IGLUE's repository.
        langs: test languages; None: all.
        train: read `train_en.jsonl`, which lies there zipped.
        translate_test: add test captions translated into English.
        images: folders of pictures, named by `wit_ix` or as the URL ends.

    Raises:
        DataError: for a language that it does not have, or if the training file is still zipped.
    """
    chosen, skipped = chosen_langs(langs, list(TEST)), Skipped()
    if train and not find_all(root, TRAIN) and find_all(root, f"{TRAIN}.zip"):
        raise DataError(f"{Path(root) / TRAIN}.zip: unzip it first: `unzip {TRAIN}.zip`")
    files = {"train": [("en", TRAIN)]} if train else {}
    files["val"] = [("en", "wit/annotations/val_en.jsonl")]
    files["test"] = [(lang, f"wit/annotations/test_{lang}.jsonl") for lang in chosen]
    gmt = {lang: f"wit/annotations_machine-translate/test_{lang}_gmt.jsonl"
           for lang in chosen if lang != "en" and translate_test}  # fmt: skip
    first: dict[str, str] = {}  # URL -> the item that shows it first

    def key(item: Item) -> str:
        return f"wit:{first.setdefault(urls[item.id], item.id)}"

    urls: dict[str, str] = {}

    def items() -> Iterator[Item]:
        index, joined = PictureIndex(images), Joined()
        for split, parts in files.items():
            for lang, path in parts:
                captions = _read(find(root, path), lang, split, joined, urls, skipped)
                if lang in gmt and split == "test":
                    _translated(find(root, gmt[lang]), lang, captions, joined, skipped)
        return joined.items(lambda identity: _file(identity, urls[identity], index))

    return Plan(
        name="wit",
        title="WIT of IGLUE",
        get="The folder `datasets` of https://github.com/e-bug/iglue. Pictures: the link in "
        "IGLUE's README, or image_data_train.tar of Kaggle's Wikipedia competition; named by "
        "wit_ix, or as their URL ends.",
        terms="Text CC BY-SA 3.0; each picture has its own licence on Wikimedia Commons.",
        cite="Srinivasan et al. 2021, https://arxiv.org/abs/2103.01913; Bugliarello et al. 2022, "
        "https://arxiv.org/abs/2201.11732",
        needs=tuple(
            Need(path, f"{lang}, {split}") for split, parts in files.items() for lang, path in parts
        )
        + tuple(Need(path, f"{lang} put into English, test") for lang, path in gmt.items()),
        items=items,
        expected=_expected(chosen, translate_test),
        key=key,
        notes=(
            "A picture may have several captions in a language: the test needs relevance lists.",
            "Some captions are in another language than their file says, or bare names; some "
            "pictures are TIFF, SVG or GIF.",
            "--against compares ids (wit_ix) alone, as manifests have no URLs: one picture under "
            "two ids shows when both are imported together, with --train.",
            "One Greek and one Indonesian test caption are empty as published.",
        ),
        skipped=skipped,
    )


def _expected(langs: Sequence[str], translate_test: bool) -> dict[str, Expected]:
    captions = {lang: TEST[lang][0] - TEST[lang][1] for lang in langs}
    if translate_test and "en" in captions:
        captions["en human"] = captions.pop("en")
    return {"val": Expected(VAL, {"en": VAL}), "test": Expected(None, captions)}


def _read(
    path: Path, lang: str, split: str, joined: Joined, urls: dict[str, str], skipped: Skipped
) -> dict[tuple[str, int], Caption | None]:
    """Add a file's captions; return them by picture and number, None where there is no text."""
    counts: Counter[str] = Counter()
    read: dict[tuple[str, int], Caption | None] = {}
    for identity, url, text, where in _rows(path, lang):
        if urls.setdefault(identity, url) != url:
            raise DataError(f"{where}: {identity!r} has the URL {url}, but {urls[identity]} before")
        n = counts[identity]
        counts[identity] += 1
        made = None
        if text:
            made = Caption(f"{identity}#{lang}.{n}", lang, text)
        else:
            skipped.add(where)
        read[identity, n] = made
        joined.add(identity, split, [made] if made else [], where)
    return read


def _translated(
    path: Path, lang: str, of: dict[tuple[str, int], Caption | None], joined: Joined,
    skipped: Skipped,
) -> None:  # fmt: skip
    counts: Counter[str] = Counter()
    for identity, _, text, where in _rows(path, lang):
        n = counts[identity]
        counts[identity] += 1
        if (identity, n) not in of:
            if (lang, identity) in ALONE:
                skipped.add(where, "translations without a caption that they are of")
                continue
            raise DataError(f"{where}: a translation of caption {n} of {identity!r}, which the "
                            f"test file in {lang} does not have")  # fmt: skip
        source = of[identity, n]
        if not text:
            skipped.add(where)
        elif source is not None:
            made = Caption(f"{identity}#en.from-{lang}.{n}", "en", text, "mt", source.id, ENGINE)
            joined.add(identity, "test", [made], where)


def _rows(path: Path, lang: str) -> Iterator[tuple[str, str, str, str]]:
    for number, row in read_jsonl(path):
        where = f"{path}:{number}"
        identity, url = _text(row, "wit_ix", where), _text(row, "image_url", where)
        if (told := row.get("language")) != lang:
            raise DataError(f"{where}: language {told!r} in a file of {lang!r}")
        text = row.get("caption_reference_description")
        if text is not None and not isinstance(text, str):
            raise DataError(f"{where}: caption_reference_description is no text but {text!r:.60}")
        yield identity, url.partition("//")[2] or url, (text or "").strip(), where


def _text(row: dict[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value:
        raise DataError(f"{where}: {key!r} must be text, got {value!r:.60}")
    return value


def _file(identity: str, url: str, index: PictureIndex) -> str:
    default = f"{identity}.jpg"
    if (named := index.find(identity, "")) or not url:
        return named or default
    end = url.rpartition("/")[2].rpartition(".")[0]
    return index.find(end, "") or index.find(unquote(end), default)
