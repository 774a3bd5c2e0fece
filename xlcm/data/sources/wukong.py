"""Wukong: 100 million pictures with Chinese alt text, as 256 tables of URLs."""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from xlcm.data.manifest import DataError
from xlcm.data.sources.base import Expected, Need, Plan, Skipped, add_common, run_import
from xlcm.data.sources.csv import read_table
from xlcm.data.sources.downloads import Downloads, add_downloads
from xlcm.data.sources.text_lines import find_all, iter_lines
from xlcm.types import Caption, Item

SHARD = "wukong_100m_{}.csv"
SHARDS = 256
TEST = "wukong_test.csv"
TEST_ROWS = 33_365


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `xlcm data import wukong`."""
    add_common(parser)
    parser.add_argument("--shards", metavar="A-B,C", help="which tables are read, such as 0-15,20; "
                        "none: only the test (default: all that are there)")  # fmt: skip
    parser.add_argument("--drop-duplicates", action="store_true",
                        help="leave out rows whose URL was there before")  # fmt: skip
    add_downloads(
        parser, default="{shard}/{row:06d}.jpg", fields="{shard} (or test) and {row}, from 1"
    )


def run(args: argparse.Namespace) -> int:
    """Import; exit code as of `run_import`."""
    downloads = Downloads(args.image_name, args.downloaded, {"shard": "0", "row": 1})
    shards = None if args.shards is None else read_shards(args.shards)
    plan = make_plan(args.root, shards, downloads, drop_duplicates=args.drop_duplicates)
    return run_import(plan, args)


def read_shards(text: str) -> list[int]:
    """Return the numbers of `0-15,20`; of `none`, none.

    Raises:
        DataError: for anything else.
    """
    chosen: set[int] = set()
    for part in [] if text == "none" else text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        last = int((match[2] or match[1]) if match else -1)
        if match is None or not int(match[1]) <= last < SHARDS:
            raise DataError(f"--shards {text}: {part!r} is no part of 0-{SHARDS - 1}")
        chosen.update(range(int(match[1]), last + 1))
    return sorted(chosen)


def make_plan(
    root: str | Path,
    shards: Sequence[int] | None,
    downloads: Downloads,
    *,
    drop_duplicates: bool = False,
) -> Plan:
    """Return what is read of Wukong.

    Args:
        root: the folder of the tables, or the one that `wukong_release` lies in.
        shards: numbers of the tables; None: all that are there.
        downloads: how the pictures are called.
        drop_duplicates: leave out rows whose URL was there before.
    """
    skipped = Skipped()
    inside = "wukong_release/" if find_all(root, "wukong_release") else ""
    if shards is None:
        numbers = range(SHARDS)
        shards = [n for n in numbers if find_all(root, inside + SHARD.format(n))]
    has_test = bool(find_all(root, inside + TEST)) or bool(find_all(root, TEST))
    test = inside + TEST if find_all(root, inside + TEST) else TEST
    files = [(inside + SHARD.format(n), "train", str(n)) for n in shards]
    files += [(test, "test", "test")] if has_test or not files else []

    def items() -> Iterator[Item]:
        seen: set[bytes] | None = set() if drop_duplicates else None
        for name, split, shard in files:
            path = find_all(root, name)[0]
            yield from read_shard(path, split, shard, downloads, seen=seen, skipped=skipped)

    return Plan(
        name="wukong",
        title="Wukong",
        get="https://wukong-dataset.github.io/wukong-dataset/download.html has the tables; fetch "
        "the pictures yourself by their URLs (img2dataset). Many links are dead.",
        terms="The list is CC BY-NC-SA 4.0; pictures belong to their sites.",
        cite="Gu et al. 2022, https://arxiv.org/abs/2202.06767",
        needs=tuple(Need(name, f"URLs and captions, {split}") for name, split, _ in files),
        items=items,
        expected={"test": Expected(TEST_ROWS)} if has_test else {},
        key=picture_key,
        skipped=skipped,
        notes=(
            "duplicates are by URL (--drop-duplicates) and by picture (`xlcm data check --hash`).",
            "no clean test set unless it is compared with what is tested on; names of persons are "
            "replaced by a token.",
        ),
    )


def picture_key(item: Item) -> str:
    """Return what tells the picture apart over data sets."""
    return f"wukong:{item.id}"


def read_shard(
    path: Path,
    split: str,
    shard: str,
    downloads: Downloads,
    *,
    seen: set[bytes] | None,
    skipped: Skipped,
) -> Iterator[Item]:
    """Yield the rows of one table, whose first columns are URL and caption.

    Args:
        path: with a header line, or without.
        split: of the items.
        shard: what the items are called by: `<shard>-<row>`.
        downloads: how the pictures are called.
        seen: checksums of the URLs so far, to leave out those that come again; None: keep all.
        skipped: told of rows that are left out.

    Raises:
        DataError: as `file:line`.
    """
    first = next((line for _, line in iter_lines(path)), "")
    bare = first.lstrip('"').startswith(("http://", "https://"))
    header = ["url", "caption"] if bare else None
    for number, row in enumerate(read_table(path, split, delimiter=",", header=header), 1):
        cells = list(row.values.values())
        if len(cells) < 2:
            raise DataError(f"{row.where}: expected URL and caption, got {cells}")
        url, text = cells[0].strip(), cells[1].strip()
        if not text:
            skipped.add(row.where, "rows without caption")
            continue
        if seen is not None:
            checksum = hashlib.blake2b(url.encode(), digest_size=10).digest()
            if checksum in seen:
                skipped.add(row.where, "rows whose URL was there before")
                continue
            seen.add(checksum)
        identity = f"{shard}-{number}"
        captions = (Caption(f"{identity}#zh.0", "zh", text),)
        image = downloads.name(url, shard=shard, row=number)
        yield Item(identity, split, captions, image, where=row.where)
