"""VATEX: ten English and ten Chinese captions a clip, from the official JSON or NRCCR's files.

    vatex_training_v1.0.json      [{"videoID": ..., "enCap": [10], "chCap": [10]}, ...]
    vatex_validation_v1.0.json    halved by lists of ids into the val and test of retrieval

Source: Wang et al. 2019, https://arxiv.org/abs/1904.03493; the halves are those of HGR.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from xlcm.data.manifest import DataError
from xlcm.data.sources.base import Expected, Need, Plan, Skipped, add_common, run_import
from xlcm.data.sources.image_paths import ANY_VIDEO
from xlcm.data.sources.nrccr import add_request, nrccr_plan, request_of
from xlcm.data.sources.tagged_files import read_split_ids, youtube_key
from xlcm.data.sources.text_lines import find_all, read_json
from xlcm.types import Caption, Item

FILES = {"train": "vatex_training*.json", "val": "vatex_validation*.json"}
KEYS = {"en": "enCap", "zh": "chCap"}

GET = (
    "captions: https://eric-xw.github.io/vatex-website/download.html; clips: from YouTube by their "
    "ids, or the I3D features of the same page. The id lists of the retrieval halves: the caption "
    "files of NRCCR or MLCMR, or tst_names.npy and val_names.npy of HGR."
)
TERMS = "see the owners' page; the clips are under YouTube's terms and their makers' licences."
CITE = "Wang et al. 2019, https://arxiv.org/abs/1904.03493"
HALVES = (
    "figures of retrieval are on halves of the official validation part, 1,500 clips to validate "
    "and 1,500 to test: without --val-ids and --test-ids all of it is val and there is no test."
)
NOT_PAIRED = (
    "English caption n and Chinese caption n were written apart unless the owners translated them; "
    "no caption is linked to another here."
)
TEN = "C2KD measures with one caption a clip, the NRCCR family with ten: not for one table."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `xlcm data import vatex`."""
    add_common(parser)
    parser.add_argument(
        "--packing", choices=["official", "nrccr"],
        help="whose files (default: NRCCR's if there are *.caption.txt, else the official ones)",
    )  # fmt: skip
    parser.add_argument("--langs", nargs="+", choices=list(KEYS), default=list(KEYS),
                        help="of the official files (default: both)")  # fmt: skip
    for split in ("val", "test"):
        parser.add_argument(
            f"--{split}-ids", metavar="FILE",
            help=f"clips of {split} within the official validation part: .npy, caption file or "
            "an id a line",
        )  # fmt: skip
    add_request(parser)


def run(args: argparse.Namespace) -> int:
    """Import; exit code as of `run_import`."""
    return run_import(plan(args), args)


def plan(args: argparse.Namespace) -> Plan:
    """Return what the options ask for.

    Raises:
        DataError: for a half without the other one, or a test without halves.
    """
    request = request_of(argparse.Namespace(**{**vars(args), "langs": ()}), "vatex")
    packing = args.packing
    if packing is None:
        tagged = find_all(request.folder, "vatex*.caption.txt")
        packing = "nrccr" if tagged and not find_all(args.root, FILES["train"]) else "official"
    if packing == "nrccr":
        return nrccr_plan(request, "vatex", (TEN,))
    halves = {s: getattr(args, f"{s}_ids") for s in ("val", "test") if getattr(args, f"{s}_ids")}
    if len(halves) == 1:
        raise DataError("--val-ids and --test-ids go together: they halve the validation part")
    skipped = Skipped()
    parts = [part for part in FILES if part in args.splits or (part == "val" and halves)]
    if not parts:
        raise DataError("--splits test: the official files have no test of retrieval; it is a half "
                        "of validation, --val-ids and --test-ids")  # fmt: skip

    for part in parts:
        if len(found := find_all(args.root, FILES[part])) > 1:
            raise DataError(f"{args.root}: two files of {part}: {' and '.join(map(str, found))}; "
                            "move the one away that you don't mean")  # fmt: skip

    def items() -> Iterator[Item]:
        named = {split: read_split_ids(path) for split, path in halves.items()}
        for part in parts:
            for path in find_all(args.root, FILES[part]):
                read = read_part(path, part, args.langs, skipped)
                yield from (
                    halve(read, named, path, args.splits) if part == "val" and named else read
                )

    count = 1_500 if halves else 3_000
    splits = [s for s in (halves or ("val",)) if s in args.splits]
    return Plan(
        name="vatex", title="VATEX", get=GET, terms=TERMS, cite=CITE,
        needs=tuple(Need(FILES[part], f"captions of {part}") for part in parts), items=items,
        expected={s: Expected(count, dict.fromkeys(args.langs, count * 10)) for s in splits},
        key=youtube_key, clips=True, notes=(HALVES, NOT_PAIRED, TEN), skipped=skipped,
    )  # fmt: skip


def picture_key(item: Item) -> str:
    """Return `youtube:<id>` of a clip."""
    return youtube_key(item)


def read_part(path: Path, split: str, langs: list[str], skipped: Skipped) -> Iterator[Item]:
    """Yield the clips of an official file in its order.

    Raises:
        DataError: naming file, clip and key.
    """
    rows = read_json(path)
    if not isinstance(rows, list):
        raise DataError(f"{path}: expected a list of clips, got a {type(rows).__name__}")
    seen: dict[str, int] = {}
    for position, row in enumerate(rows):
        where = f"{path}: clip {position}"
        if not isinstance(row, dict) or not isinstance(row.get("videoID"), str):
            raise DataError(f"{where}: expected an object with 'videoID'")
        identity = row["videoID"]
        if identity in seen:
            raise DataError(f"{where}: {identity!r} is also clip {seen[identity]}")
        seen[identity] = position
        captions = tuple(_captions(row, identity, langs, f"{where} ({identity})", skipped))
        yield Item(identity, split, captions, video=identity + ANY_VIDEO, where=where)


def _captions(
    row: Mapping[str, Any], identity: str, langs: list[str], where: str, skipped: Skipped
) -> Iterator[Caption]:
    for lang in langs:
        texts = row.get(KEYS[lang])
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise DataError(f"{where}: {KEYS[lang]!r} must be a list of captions; the official "
                            f"test parts have English only, `--langs en`")  # fmt: skip
        for n, text in enumerate(texts):
            if text.strip():
                yield Caption(f"{identity}#{lang}.{n}", lang, text.strip())
            else:
                skipped.add(f"{where} {KEYS[lang]}[{n}]")


def halve(
    items: Iterator[Item], ids: Mapping[str, list[str]], path: Path, splits: list[str]
) -> Iterator[Item]:
    """Yield the clips of both lists with their split, in the order of the file.

    Raises:
        DataError: for a clip in both lists, and for listed clips that the file lacks.
    """
    split_of: dict[str, str] = {}
    for split, own in ids.items():
        for identity in own:
            if identity in split_of:
                raise DataError(f"clip {identity!r} is in --val-ids and in --test-ids")
            split_of[identity] = split
    for item in items:
        half = split_of.pop(item.id, "")
        if half in splits:
            yield Item(item.id, half, item.captions, video=item.video, where=item.where)
    if split_of:
        first = ", ".join(list(split_of)[:5])
        raise DataError(f"{path}: {len(split_of):,} clips of --val-ids and --test-ids are not in "
                        f"it, such as {first}")  # fmt: skip
