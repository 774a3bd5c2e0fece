"""YouCook2: cooking clips with English; in nine languages from C2KD's files.

The root is a folder of converted C2KD files (`train.jsonl`, `val.jsonl`), or holds the owners'
`youcookii_annotations_trainval.json`, which is English only:

    {"database": {"<youtube id>": {"subset": "training", "annotations":
        [{"id": 0, "segment": [47, 60], "sentence": "..."}]}}}

Source: Zhou et al. 2018, https://arxiv.org/abs/1703.09788; translations: Rouditchenko et al. 2022,
https://arxiv.org/abs/2210.03625.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

from xlcm.data.manifest import DataError
from xlcm.data.sources.base import Expected, Need, Plan, Skipped, add_common, run_import
from xlcm.data.sources.c2kd import DENOMINATOR, add_options, converted
from xlcm.data.sources.image_paths import ANY_VIDEO
from xlcm.data.sources.tagged_files import youtube_key
from xlcm.data.sources.text_lines import find_all, read_json
from xlcm.types import Caption, Item

OFFICIAL = "youcookii_annotations*.json"
SUBSETS = {"training": "train", "validation": "val"}

GET = (
    "annotations: http://youcook2.eecs.umich.edu/download; videos: from YouTube by their ids. "
    "Other languages: the pickles of https://github.com/roudimit/c2kd, converted by "
    "recipes/convert_c2kd.py."
)
TERMS = "see the owners' page; the videos are under YouTube's terms and their makers' licences."
CITE = "Zhou et al. 2018, https://arxiv.org/abs/1703.09788; translations: C2KD, " \
       "https://arxiv.org/abs/2210.03625"  # fmt: skip
VAL_IS_TEST = "no test part is public: retrieval is measured on val, so choose nothing by it."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `xlcm data import youcook2`."""
    add_common(parser)
    add_options(parser)


def run(args: argparse.Namespace) -> int:
    """Import; exit code as of `run_import`."""
    return run_import(plan(args), args)


def picture_key(item: Item) -> str:
    """Return `youtube:<id>` of a clip's video."""
    return youtube_key(item)


def plan(args: argparse.Namespace) -> Plan:
    """Return what the root asks for."""
    skipped = Skipped()
    if not find_all(args.root, OFFICIAL):
        made = converted(args, "youcook2", "youcook2")
        if not find_all(args.root, "*.jsonl"):
            either = Need(OFFICIAL, "the owners' English file; or *.jsonl, C2KD's files converted")
            made = replace(made, needs=(either,))
        return replace(made, get=GET, terms=TERMS, cite=CITE, notes=(*made.notes, VAL_IS_TEST))
    if args.langs and args.langs != ["en"]:
        raise DataError(f"--langs {' '.join(args.langs)}: {OFFICIAL} is English only; "
                        "others come from C2KD's files, converted, in another folder")  # fmt: skip

    def items() -> Iterator[Item]:
        read = [
            item for path in find_all(args.root, OFFICIAL) for item in read_database(path, skipped)
        ]
        for split in SUBSETS.values():
            yield from (item for item in read if item.split == split)

    return Plan(
        name="youcook2", title="YouCook2", get=GET, terms=TERMS, cite=CITE, items=items,
        needs=(Need(OFFICIAL, "segments and their English sentences"),), key=picture_key,
        expected={"val": Expected(3_350, {"en": 3_350})},
        clips=True, notes=(VAL_IS_TEST, DENOMINATOR), skipped=skipped,
    )  # fmt: skip


def read_database(path: Path, skipped: Skipped) -> Iterator[Item]:
    """Yield a clip `<youtube id>@<start>-<end>` (seconds) for each segment.

    Raises:
        DataError: naming file, video and segment.
    """
    data = read_json(path)
    videos = data.get("database") if isinstance(data, dict) else None
    if not isinstance(videos, dict):
        raise DataError(f"{path}: expected {{'database': {{video: ...}}}}")
    for video, row in videos.items():
        where = f"{path}: {video}"
        if isinstance(row, dict) and row.get("subset") == "testing":
            skipped.add(where, "videos of the owners' test part, which has no sentences,")
            continue
        split = SUBSETS.get(str(row.get("subset"))) if isinstance(row, dict) else None
        if split is None:
            raise DataError(f"{where}: 'subset' must be {' or '.join(SUBSETS)}")
        segments = row.get("annotations")
        if not isinstance(segments, list):
            raise DataError(f"{where}: 'annotations' must be a list")
        seen: set[str] = set()
        for n, segment in enumerate(segments):
            start, end, text = _segment(segment, f"{where}: segment {n}")
            identity = f"{video}@{start:.10g}-{end:.10g}"
            if identity in seen:
                skipped.add(f"{where}: segment {n}", "segments at the same times as another")
                continue
            seen.add(identity)
            if not text:
                skipped.add(f"{where}: segment {n}")
            captions = (Caption(f"{identity}#en.0", "en", text),) if text else ()
            yield Item(
                identity, split, captions, video=video + ANY_VIDEO, segment=(start, end),
                where=f"{where}: segment {n}",
            )  # fmt: skip


def _segment(found: Any, where: str) -> tuple[float, float, str]:
    row = found if isinstance(found, dict) else {}
    times, text = row.get("segment"), row.get("sentence")
    pair = isinstance(times, list) and [type(t) in (int, float) for t in times] == [True, True]
    if not pair or not isinstance(times, list) or not isinstance(text, str):
        raise DataError(f"{where}: expected 'segment': [start, end] and 'sentence'")
    if not 0 <= times[0] < times[1] < inf:
        raise DataError(f"{where}: it begins at {times[0]:g} s and ends at {times[1]:g} s")
    return times[0], times[1], text.strip()
