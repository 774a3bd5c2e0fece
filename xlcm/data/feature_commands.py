"""`xlcm data convert-features`: features of any known format into a feature store."""

from __future__ import annotations

import argparse
from typing import Any


def add_convert_features(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare `xlcm data convert-features`."""
    text = (
        "write features of another format (npy, npz, HDF5, BigFile, LMDB, safetensors) as a store"
    )
    parser = actions.add_parser("convert-features", help=text, description=text)
    parser.add_argument("path", nargs="+", help="files or folders; all go into one store")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="of the feature store")
    parser.add_argument("--ids", nargs="+", metavar="FILE", default=[],
                        help="names of the rows, a file for each path")  # fmt: skip
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float16",
                        help="of the numbers on disk (default: float16)")  # fmt: skip
    parser.add_argument("--shard-items", type=int, default=8192, help="a shard (default: 8192)")
    parser.set_defaults(run=_convert)


def _convert(args: argparse.Namespace) -> int:
    from xlcm.data.convert_features import convert_features
    from xlcm.data.tables import say
    from xlcm.models.encoding import bar

    def progress(total: int) -> Any:
        return bar(total, "items")

    store = convert_features(
        args.path, args.out, ids=args.ids, dtype=args.dtype, shard_items=args.shard_items,
        progress=progress,
    )  # fmt: skip
    boxes = ", with boxes" if store.has_boxes else ""
    say(f"{store.folder}: {len(store):,} items, {store.kind} of width {store.dim}{boxes}; "
        "count and checksums are right")  # fmt: skip
    return 0
