"""XTD10: a test of 1,000 pictures of COCO, one caption in each of eleven languages."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from xlcm.data.manifest import DataError
from xlcm.data.sources.base import Expected, Need, Plan, Skipped, add_common, run_import
from xlcm.data.sources.coco_names import (
    PictureIndex,
    coco_file,
    coco_number,
    image_folders,
    picture_key,
)
from xlcm.data.sources.image_paths import SHOWN
from xlcm.data.sources.joining import add_langs, chosen_langs
from xlcm.data.sources.text_lines import find, read_lines
from xlcm.types import Caption, Item

__all__ = ["add_arguments", "picture_key", "plan", "run"]

NAMES = "XTD10/test_image_names.txt"
TRANSLATED = ("es", "it", "ko", "pl", "ru", "tr", "zh")
FILES = {
    "en": "XTD10/test_1kcaptions_en.txt",
    **{lang: f"XTD10/test_1kcaptions_{lang}.txt" for lang in TRANSLATED},
    **{lang: f"MIC/test_1kcaptions_{lang}.txt" for lang in ("de", "fr")},
    "ja": "STAIR/test_1kcaptions_jp.txt",
}
NOT_TRANSLATED = {"en", "ja"}
PICTURES = 1_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `xlcm data import xtd10`."""
    add_common(parser)
    add_langs(parser, FILES)


def run(args: argparse.Namespace) -> int:
    """Import, and name the pictures of COCO's training part; exit code as of `run_import`."""
    from xlcm.data.tables import say

    made = plan(args.root, args.langs, images=image_folders(args))
    code = run_import(made, args)
    seen = made.more()["coco_train2014"]["ids"]
    say(f"{len(seen):,} of the pictures are of COCO train2014, and most models trained on COCO "
        f"have seen them: {', '.join(seen[:SHOWN])}, ...; all are named under "
        f'"coco_train2014" in {args.out}.report.json')  # fmt: skip
    return code


def plan(
    root: str | Path,
    langs: Sequence[str] | None = None,
    *,
    images: Sequence[str] = (),
) -> Plan:
    """Return what is read of XTD10.

    Args:
        root: the repository of its owners, with `XTD10/`, `MIC/` and `STAIR/`.
        langs: some of `FILES`; None: all.
        images: folders of pictures, in any layout that `PictureIndex` knows.

    Raises:
        DataError: for a language that it does not have.
    """
    skipped, chosen = Skipped(), chosen_langs(langs, list(FILES))
    seen: list[str] = []  # pictures of train2014

    def items() -> Iterator[Item]:
        seen.clear()
        index = PictureIndex(images)
        names_file = find(root, NAMES)
        names = _trimmed(names_file)
        texts = {lang: _aligned(root, lang, names_file, len(names)) for lang in chosen}
        for position, (number, line) in enumerate(names):
            name, where = line.strip(), f"{names_file}:{number}"
            identity = name.removesuffix(".jpg")
            if coco_number(identity) is None:
                raise DataError(f"{where}: expected a name such as COCO_val2014_000000123456.jpg, "
                                f"got {name[:60]!r}")  # fmt: skip
            if "_train2014_" in identity:
                seen.append(identity)
            captions = _captions(identity, position, texts, skipped)
            yield Item(identity, "test", captions, index.find(identity, coco_file(identity)),
                       where=where)  # fmt: skip

    return Plan(
        name="xtd10",
        title="XTD10",
        get="The repository https://github.com/adobe-research/Cross-lingual-Test-Dataset-XTD10. "
        "Pictures: train2014.zip and val2014.zip of https://cocodataset.org/#download.",
        terms="Adobe Research License, non-commercial research; keep it with copies.",
        cite="Aggarwal and Kale 2020, https://arxiv.org/abs/2012.05107",
        needs=(
            Need(NAMES, "names of the pictures"),
            *(Need(FILES[lang], f"captions in {lang}, a line a picture") for lang in chosen),
        ),
        items=items,
        expected={"test": Expected(PICTURES, dict.fromkeys(chosen, PICTURES))},
        key=picture_key,
        notes=(
            "Japanese (its file says jp) is one STAIR caption, written from the picture: its lower "
            "figures are partly due to that. The other languages are translated from English.",
            "The 200 pictures of val2014 may be training pictures too (Karpathy's restval): count "
            "with --against the manifest of your training data.",
        ),
        skipped=skipped,
        more=lambda: {"coco_train2014": {"pictures": len(seen), "ids": seen}},
    )


def _captions(
    identity: str, position: int, texts: dict[str, list[tuple[str, str]]], skipped: Skipped
) -> tuple[Caption, ...]:
    made = []
    source = f"{identity}#en.0"
    for lang, rows in texts.items():
        where, text = rows[position]
        if not text:
            skipped.add(where)
            continue
        there = "en" in texts and texts["en"][position][1]
        of = source if there and lang not in NOT_TRANSLATED else None
        made.append(Caption(f"{identity}#{lang}.0", lang, text, of=of))
    return tuple(made)


def _aligned(root: str | Path, lang: str, names: Path, n: int) -> list[tuple[str, str]]:
    """Return (place, text) by line of a file that belongs to the list of names line by line."""
    path = find(root, FILES[lang])
    rows = [(f"{path}:{number}", line.strip()) for number, line in read_lines(path)]
    if len(rows) > n and not any(text for _, text in rows[n:]):
        rows = rows[:n]  # blank lines at the end
    if len(rows) != n:
        raise DataError(f"{path}: {len(rows):,} lines, but {names} has {n:,} pictures; line i "
                        "belongs to picture i, so a file is not whole: get it again")  # fmt: skip
    return rows


def _trimmed(path: Path) -> list[tuple[int, str]]:
    rows = read_lines(path)
    while rows and not rows[-1][1].strip():
        rows.pop()
    return rows
