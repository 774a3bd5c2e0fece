"""`xlcm data shard` and `shard-hf`: a manifest, or a Hugging Face stream, into tar shards."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from xlcm.data.sources.columns import ROW, add_columns, read_layout

if TYPE_CHECKING:
    from xlcm.data.shard_writer import Written


def add_shard(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare `xlcm data shard`."""
    text = "write a split as tar shards (WebDataset) with captions, pictures and features"
    parser = actions.add_parser("shard", help=text, description=text)
    parser.add_argument("path", help="the manifest")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="new, for the shards")
    parser.add_argument("--split", default="train", help="which split (default: train)")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--shards", type=_positive, metavar="N", help="how many: at least one for "
                      "each loading process")  # fmt: skip
    size.add_argument("--shard-items", type=_positive, default=1000, metavar="N",
                      help="most items a shard (default: 1000)")  # fmt: skip
    parser.add_argument("--langs", nargs="+", help="only captions in these (default: all)")
    parser.add_argument("--image-root", help="what image paths start from (default: its folder)")
    parser.add_argument("--features", metavar="PATH", help="write each item's features too")
    parser.add_argument("--no-images", action="store_true", help="leave the pictures out")
    parser.add_argument("--no-check", action="store_true", help="don't decode the pictures first")
    parser.add_argument(
        "--on-error", choices=["raise", "skip"], default="raise",
        help="a bad picture stops, or is left out and named (default: raise)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the shuffling (default: 0)")
    parser.add_argument("--in-order", action="store_true", help="don't shuffle")
    parser.set_defaults(run=_shard)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def _shard(args: argparse.Namespace) -> int:
    from xlcm.data.dataset import ManifestDataset, require_languages
    from xlcm.data.manifest import DataError
    from xlcm.data.shard_writer import write_shards
    from xlcm.models.encoding import bar

    try:
        dataset = ManifestDataset(
            path=args.path, split=args.split, langs=args.langs, image_root=args.image_root,
            features=args.features,
        )  # fmt: skip
    except DataError:
        raise
    except ValueError as error:  # a wrong language
        raise DataError(f"{args.path}: {error}") from error
    if args.langs:
        require_languages([ManifestDataset(path=args.path, split=args.split)], args.langs)
    with bar(len(dataset), "items") as advance:
        written = write_shards(
            dataset,
            args.out,
            shards=args.shards,
            shard_items=args.shard_items,
            seed=None if args.in_order else args.seed,
            images=not args.no_images,
            check=not args.no_check,
            skip=args.on_error == "skip",
            on_item=lambda: advance(1),
        )
    return _tell(written, args.split)


def _tell(written: Written, split: str) -> int:
    from xlcm.data.tables import say

    for message in [*written.skipped, *written.lacking]:
        say(f"left out: {message}")
    say(f"{written.folder}: {sum(written.items):,} items of {split} in {len(written.items)} "
        f"shards, {len(written.skipped)} left out; in a config: {{name: shards, path: "
        f"{written.folder}, split: {split}}}")  # fmt: skip
    return 1 if written.skipped else 0


def add_shard_hf(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare `xlcm data shard-hf`."""
    text = "stream a Hugging Face data set into tar shards; nothing else is kept of it"
    parser = actions.add_parser("shard-hf", help=text, description=text)
    parser.add_argument("path", help="its name on the hub, or a folder of Parquet or other files")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="new, for the shards")
    parser.add_argument("--config", metavar="NAME", help="of a data set that has several")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit on the hub")
    parser.add_argument("--take", default="train", metavar="SPLIT",
                        help="which of its splits (default: train)")  # fmt: skip
    parser.add_argument("--shard-items", type=_positive, default=1000, metavar="N",
                        help="items a shard (default: 1000)")  # fmt: skip
    parser.add_argument("--no-check", action="store_true", help="don't decode the pictures first")
    add_columns(parser, pictures=True)
    parser.set_defaults(run=_shard_hf, images=None)


def _shard_hf(args: argparse.Namespace) -> int:
    from xlcm.data.hf_rows import files_of, open_builder, rows_said, stream_of
    from xlcm.data.progress import Progress
    from xlcm.data.shard_stream import write_stream

    args.id = args.id or ROW
    layout = read_layout(args)
    called = layout.split_names.get(args.take, args.take)
    builder = open_builder(args.path, config=args.config, revision=args.revision)
    stream = stream_of(builder, args.path, args.take)
    told = Progress(rows_said(stream, args.take), f"{args.path}, {args.take}", unit="rows")
    try:
        written = write_stream(
            stream,
            args.out,
            layout,
            name=args.path,
            split=args.take,
            called=called,
            shard_items=args.shard_items,
            check=not args.no_check,
            skip=args.bad_pictures == "drop",
            about=files_of(builder, args.take),
            on_item=lambda: told.advance(1),
        )
    finally:
        told.close()
    return _tell(written, called)
