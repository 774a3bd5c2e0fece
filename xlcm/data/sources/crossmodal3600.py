"""Crossmodal-3600: a test of 3,600 pictures of Open Images, captions in 36 languages."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from xlcm.data.manifest import DataError
from xlcm.data.sources.base import Expected, Need, Plan, Skipped, add_common, run_import
from xlcm.data.sources.coco_names import PictureIndex, image_folders
from xlcm.data.sources.joining import add_langs, captions_of, chosen_langs
from xlcm.data.sources.text_lines import find, read_jsonl
from xlcm.types import Caption, Item

LANGS = (
    "ar", "bn", "cs", "da", "de", "el", "en", "es", "fa", "fi", "fil", "fr", "he", "hi", "hr",
    "hu", "id", "it", "ja", "ko", "mi", "nl", "no", "pl", "pt", "quz", "ro", "ru", "sv", "sw",
    "te", "th", "tr", "uk", "vi", "zh",
)  # fmt: skip
NAMES = {"he": "iw", "fil": "tl"}  # older codes that some copies have
FILE = "captions.jsonl"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `xlcm data import crossmodal3600`."""
    add_common(parser)
    add_langs(parser, LANGS)


def run(args: argparse.Namespace) -> int:
    """Import; exit code as of `run_import`."""
    return run_import(plan(args.root, args.langs, images=image_folders(args)), args)


def picture_key(item: Item) -> str:
    """Return `openimages:0123456789abcdef`."""
    return f"openimages:{item.id}"


def plan(
    root: str | Path, langs: Sequence[str] | None = None, *, images: Sequence[str] = ()
) -> Plan:
    """Return what is read of Crossmodal-3600.

    Args:
        root: the folder of `captions.jsonl`.
        langs: some of `LANGS`; None: all.
        images: folders of pictures, `<image key>.jpg`.

    Raises:
        DataError: for a language that it does not have; later, for one of `langs` that no picture
            has captions in.
    """
    chosen, skipped = chosen_langs(langs, LANGS), Skipped()

    def items() -> Iterator[Item]:
        index, met, silent = PictureIndex(images), dict[str, str](), set(chosen)
        path = find(root, FILE)
        for number, row in read_jsonl(path):
            where, identity = f"{path}:{number}", row.get("image/key")
            if not isinstance(identity, str) or not identity:
                raise DataError(f"{where}: 'image/key' must be text, got {identity!r:.60}")
            if identity in met:
                raise DataError(f"{where}: picture {identity!r} is at {met[identity]} before")
            met[identity] = where
            captions: list[Caption] = []
            for lang in chosen:
                part = row.get(lang, row.get(NAMES.get(lang, lang)))
                if part is None:
                    skipped.add(where, f"captions in {lang} that a picture doesn't have")
                    continue
                silent.discard(lang)
                if not isinstance(part, dict) or not isinstance(part.get("caption"), list):
                    raise DataError(f"{where}: {lang!r} must be an object with a list 'caption', "
                                    f"got {part!r:.60}")  # fmt: skip
                captions += captions_of(identity, lang, part["caption"], where, skipped)
            file = index.find(identity, f"{identity}.jpg")
            yield Item(identity, "test", tuple(captions), file, where=where)
        if langs and silent and met:
            first = next(lang for lang in chosen if lang in silent)
            raise DataError(f"{path}: no picture has captions in {first!r}; take it out of "
                            "--langs, or get the file again")  # fmt: skip

    return Plan(
        name="crossmodal3600",
        title="Crossmodal-3600",
        get="captions.zip (unpacked: captions.jsonl) and images.tgz of "
        "https://google.github.io/crossmodal-3600/.",
        terms="Captions CC BY 4.0; pictures CC BY 2.0, name their authors "
        "(image_attributions.csv).",
        cite="Thapliyal et al. 2022, https://arxiv.org/abs/2205.12522",
        needs=(
            Need(FILE, "captions in 36 languages"),
            Need("image_attributions.csv", "authors and licences of the pictures", False),
        ),
        items=items,
        expected={"test": Expected(3_600)},
        key=picture_key,
        notes=(
            "The number of captions a picture and language varies: 261,375 in all (paper). Each is "
            "a query, and a picture is a hit for any of its own.",
        ),
        skipped=skipped,
    )
