"""`xlcm translate`: captions in further languages, by machine, on one process."""

from __future__ import annotations

import argparse
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `xlcm translate`."""
    parser.add_argument("manifest", help="whose captions are translated")
    parser.add_argument("--out", required=True, help="the manifest with the translations added")
    parser.add_argument(
        "--to", nargs="+", required=True, metavar="LANG", help="into which languages"
    )
    parser.add_argument("--from", dest="source", default="en", metavar="LANG",
                        help="of the captions that are translated (default: en)")  # fmt: skip
    engine = parser.add_mutually_exclusive_group(required=True)
    engine.add_argument("--model", help="folder or hub id of a seq2seq model of transformers; "
                        "{source} and {target} in it become the codes")  # fmt: skip
    engine.add_argument("--command", dest="line", metavar="LINE",
                        help="a command that reads lines and writes their translations; {source} "
                        "and {target} in it become the codes")  # fmt: skip
    engine.add_argument("--scenes-table", action="store_true",
                        help="word for word, for captions of scenes")  # fmt: skip
    parser.add_argument("--label", help="what is written as the captions' engine (with --command)")
    parser.add_argument("--beams", type=int, default=4, help="1: greedy (default: 4, with --model)")
    parser.add_argument("--no-back", action="store_true", help="don't translate back")
    parser.add_argument("--splits", nargs="+", help="only these splits (default: all)")
    parser.add_argument("--origins", nargs="+", default=["human"],
                        help="which captions are translated (default: human)")  # fmt: skip
    parser.add_argument("--quality", nargs="*", help="signals: back length copied script language "
                        "(default: the first four)")  # fmt: skip
    parser.add_argument("--similarity", metavar="MODEL",
                        help="a saved model: add the cosine of source and translation")  # fmt: skip
    parser.add_argument("--keep-paths", action="store_true",
                        help="write image paths as they are, for use with `image_root` (default: "
                        "they start from the folder of --out)")  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=64, help="lines at once (default: 64)")


def run(args: argparse.Namespace) -> int:
    """Translate; return the exit code."""
    from accelerate import Accelerator

    from xlcm.config import ConfigError, check
    from xlcm.data.tables import say
    from xlcm.translation.settings import TranslateConfig
    from xlcm.translation.translate import translate

    if args.line and not args.label:
        raise ConfigError("--command needs --label, which is written as the captions' engine")
    tree: dict[str, Any] = {
        "manifest": args.manifest, "output": args.out, "engine": _engine(args),
        "source": args.source, "targets": args.to, "origins": args.origins,
        "splits": args.splits, "back": not args.no_back, "batch_size": args.batch_size,
        "similarity": args.similarity, "keep_paths": args.keep_paths,
    }  # fmt: skip
    if args.quality is not None:
        tree["quality"] = args.quality
    counts = translate(check(TranslateConfig, tree, "arguments"), Accelerator())
    say(f"{args.out}: " + ", ".join(f"{n:,} {what}" for what, n in counts.items() if n))
    return 0


def _engine(args: argparse.Namespace) -> dict[str, Any]:
    if args.model:
        return {"name": "seq2seq", "model": args.model, "beams": args.beams}
    if args.line:
        return {"name": "command", "command": args.line, "label": args.label}
    return {"name": "scenes_table"}
