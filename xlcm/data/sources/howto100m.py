"""Multi-HowTo100M: narration of instructional videos in nine languages, for pre-training.

    how2_<lang>.json    {"<video>": {"text": [...], "start": [...], "end": [...]}}, in seconds

A segment is an item `<video>@<start>-<end>`. Files are read a video at a time.

Source: Miech et al. 2019, https://arxiv.org/abs/1906.03327; languages: Huang et al. 2021,
https://arxiv.org/abs/2103.08849.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping
from typing import Any

from xlcm.data.languages import language_fault
from xlcm.data.manifest import DataError
from xlcm.data.sources.base import Need, Plan, Skipped, add_common, run_import
from xlcm.data.sources.image_paths import ANY_VIDEO
from xlcm.data.sources.json_table import JsonTable
from xlcm.data.sources.tagged_files import read_split_ids, youtube_key
from xlcm.data.sources.text_lines import find, find_all
from xlcm.types import Caption, Item

LANGS = ("en", "de", "fr", "cs", "sw", "ru", "vi", "es", "zh")

GET = (
    "narration: https://github.com/berniebear/Multi-HT100M; videos: from YouTube by their ids, "
    "https://www.di.ens.fr/willow/research/howto100m/."
)
TERMS = "see the owners' pages; the videos are under YouTube's terms and their makers' licences."
CITE = "Miech et al. 2019, https://arxiv.org/abs/1906.03327; Huang et al. 2021 (MMP), " \
       "https://arxiv.org/abs/2103.08849"  # fmt: skip
LARGE = (
    "all of it is 1.2 million videos, and ids of all segments are held in memory: import it in "
    "parts, --ids with some of the videos each, one manifest a part."
)
WEAK = "what is said is often not what is to be seen at that time: for pre-training only."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `xlcm data import howto100m`."""
    add_common(parser)
    parser.add_argument("--langs", nargs="+", metavar="CODE",
                        help="the first one leads (default: all that are there)")  # fmt: skip
    parser.add_argument("--ids", metavar="FILE", help="only these videos, an id a line")
    parser.add_argument(
        "--origin", choices=["human", "mt"], default="mt",
        help="of languages that are not English; mt also links each segment to the English one at "
        "the same times (default: mt)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Import; exit code as of `run_import`."""
    return run_import(plan(args), args)


def picture_key(item: Item) -> str:
    """Return `youtube:<id>` of a segment's video."""
    return youtube_key(item)


def plan(args: argparse.Namespace) -> Plan:
    """Return what the options ask for.

    Raises:
        DataError: for a language code that is none.
    """
    for lang in args.langs or ():
        if fault := language_fault(lang):
            raise DataError(f"--langs {lang}: {fault}", kind="unknown_language")
    there = [lang for lang in LANGS if find_all(args.root, f"how2_{lang}.json")]
    langs = list(dict.fromkeys(args.langs or there or LANGS))
    skipped = Skipped()

    def items() -> Iterator[Item]:
        wanted = read_split_ids(args.ids) if args.ids else None
        tables = {lang: JsonTable(find(args.root, f"how2_{lang}.json")) for lang in langs}
        videos = dict.fromkeys(video for table in tables.values() for video in table.places)
        if wanted is not None and (absent := [video for video in wanted if video not in videos]):
            raise DataError(f"{args.ids}: {len(absent):,} videos have no narration, such as "
                            f"{', '.join(absent[:5])}")  # fmt: skip
        for video in wanted or videos:
            yield from segments(video, tables, args.origin, skipped)

    return Plan(
        name="howto100m", title="Multi-HowTo100M", get=GET, terms=TERMS, cite=CITE, items=items,
        needs=tuple(
            Need(f"how2_{lang}.json", f"narration, {lang}", required=lang in langs)
            for lang in (langs if args.langs else LANGS)
        ),
        key=picture_key, clips=True, notes=(WEAK, LARGE), skipped=skipped,
    )  # fmt: skip


def segments(
    video: str, tables: Mapping[str, JsonTable], origin: str, skipped: Skipped
) -> Iterator[Item]:
    """Yield the segments of one video: those of the first language, then those of other times.

    Raises:
        DataError: naming file and video, if the lists differ in length.
    """
    texts: dict[str, dict[str, str]] = {}  # segment -> language -> what is said
    times: dict[str, tuple[float, float]] = {}
    where = video
    for lang, table in tables.items():
        if video not in table.places:
            skipped.add(f"{table.path}: {video}", f"videos without narration in {lang}")
            continue
        where = f"{table.path}: {video}"
        own: set[str] = set()
        for n, (start, end, text) in enumerate(_rows(table[video], where)):
            identity = f"{video}@{start:.10g}-{end:.10g}"
            place = f"{where}: segment {n}"
            if identity in own:
                skipped.add(place, "segments at the same times as another")
                continue
            own.add(identity)
            if not 0 <= start < end:
                skipped.add(place, "segments that end before they begin")
                continue
            if not text.strip():
                skipped.add(place)
                continue
            texts.setdefault(identity, {})[lang] = text.strip()
            times[identity] = start, end
    for identity, said in texts.items():
        captions = []
        for lang, text in said.items():
            made = lang != "en" and origin == "mt"
            captions.append(
                Caption(f"{identity}#{lang}{'.mt' if made else ''}.0", lang, text,
                        "mt" if made else "human",
                        f"{identity}#en.0" if made and "en" in said else None)
            )  # fmt: skip
        yield Item(identity, "train", tuple(captions), video=video + ANY_VIDEO,
                   segment=times[identity], where=where)  # fmt: skip


def _rows(found: Any, where: str) -> list[tuple[float, float, str]]:
    if not isinstance(found, dict):
        raise DataError(f"{where}: expected {{'text': [...], 'start': [...], 'end': [...]}}")
    lists = {name: found.get(name) for name in ("start", "end", "text")}
    for name, own in lists.items():
        kinds = (str,) if name == "text" else (int, float)
        if not isinstance(own, list) or not all(type(one) in kinds for one in own):
            raise DataError(f"{where}: {name!r} must be a list of "
                            f"{'texts' if name == 'text' else 'seconds'}")  # fmt: skip
    lengths = {name: len(own) for name, own in lists.items() if isinstance(own, list)}
    if len(set(lengths.values())) != 1:
        told = ", ".join(f"{n} of {name}" for name, n in lengths.items())
        raise DataError(f"{where}: lists of different lengths: {told}")
    if not all(math.isfinite(time) for name in ("start", "end") for time in found[name]):
        raise DataError(f"{where}: a time is not finite")
    return list(zip(found["start"], found["end"], found["text"], strict=True))
