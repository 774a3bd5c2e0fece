"""Wukong: 100 million pictures with Chinese alt text, as 256 tables of URLs."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from xlcm.data.manifest import DataError
from xlcm.data.sources.base import Expected, Need, Plan, Skipped, add_common, run_import
from xlcm.data.sources.csv import read_table
from xlcm.data.sources.downloads import BY_ROW, REPEATED, Downloads, Urls, add_downloads
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
                        help="leave out rows whose URL was there before, and training rows with "
                        "the URL of a test row")  # fmt: skip
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
        drop_duplicates: leave out rows whose URL was there before; the test's come first.
    """
    skipped, urls = Skipped(), Urls(drop=drop_duplicates)
    inside = "wukong_release/" if find_all(root, "wukong_release") else ""
    lacking: list[tuple[str, str]] = []  # published and not there
    every = shards is None
    if shards is None:
        there = {n for n in range(SHARDS) if find_all(root, inside + SHARD.format(n))}
        lacking = [(inside + SHARD.format(n), "train") for n in range(SHARDS) if n not in there]
        shards = sorted(there)
    has_test = bool(find_all(root, inside + TEST)) or bool(find_all(root, TEST))
    test = inside + TEST if find_all(root, inside + TEST) else TEST
    files = [(inside + SHARD.format(n), "train", str(n)) for n in shards]
    if has_test or not files:
        files.append((test, "test", "test"))
    else:
        lacking.append((test, "test"))

    def items() -> Iterator[Item]:
        if has_test:
            for number, _, url, _ in read_rows(find_all(root, test)[0], "test"):
                urls.hold(url, f"test-{number}")
        for name, split, shard in files:
            path = find_all(root, name)[0]
            yield from read_shard(path, split, shard, downloads, urls=urls, skipped=skipped)

    return Plan(
        name="wukong",
        title="Wukong",
        get="https://wukong-dataset.github.io/wukong-dataset/download.html has the tables; fetch "
        "the pictures yourself by their URLs (img2dataset). Many links are dead.",
        terms="The list is CC BY-NC-SA 4.0; pictures belong to their sites.",
        cite="Gu et al. 2022, https://arxiv.org/abs/2202.06767",
        needs=(
            *(Need(name, f"URLs and captions, {split}") for name, split, _ in files),
            *(
                Need(name, f"URLs and captions, {split}", required=False)
                for name, split in lacking
                if shards
            ),
        ),
        items=items,
        expected={"test": Expected(TEST_ROWS)} if has_test or every else {},
        key=lambda item: f"wukong:{urls.picture(item)}",
        skipped=skipped,
        notes=(
            "duplicates are by URL (--drop-duplicates) and by picture (`xlcm data check --hash`).",
            "no clean test set unless it is compared with what is tested on; names of persons are "
            "replaced by a token.",
            BY_ROW,
        ),
    )


def picture_key(item: Item) -> str:
    """Return `wukong:<shard>-<row>`; that two rows show one picture is told by URLs alone."""
    return f"wukong:{item.id}"


def read_shard(
    path: Path,
    split: str,
    shard: str,
    downloads: Downloads,
    *,
    urls: Urls,
    skipped: Skipped,
) -> Iterator[Item]:
    """Yield the rows of one table, whose first columns are URL and caption.

    Args:
        path: with a header line, or without.
        split: of the items.
        shard: what the items are called by: `<shard>-<row>`.
        downloads: how the pictures are called.
        urls: of the rows so far.
        skipped: told of rows that are left out.

    Raises:
        DataError: as `file:line`.
    """
    for number, where, url, text in read_rows(path, split):
        identity = f"{shard}-{number}"
        if not text:
            skipped.add(where, "rows without caption")
            continue
        if urls.repeats(url, identity):
            skipped.add(where, REPEATED)
            continue
        captions = (Caption(f"{identity}#zh.0", "zh", text),)
        image = downloads.name(url, shard=shard, row=number)
        yield Item(identity, split, captions, image, where=where)


def read_rows(path: Path, split: str) -> Iterator[tuple[int, str, str, str]]:
    """Yield (number from 1, `file:line`, URL, caption) of every row; captions may be empty.

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
        yield number, row.where, cells[0].strip(), cells[1].strip()
