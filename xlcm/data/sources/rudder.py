"""RUDDER: English and Indian languages, from C2KD's files; gaps stay gaps."""

from __future__ import annotations

import argparse
from dataclasses import replace

from xlcm.data.sources.base import add_common, run_import
from xlcm.data.sources.c2kd import add_options, converted
from xlcm.types import Item

CITE = "Dabral et al. 2021 (RUDDER), https://arxiv.org/abs/2103.05457"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `xlcm data import rudder`."""
    add_common(parser)
    add_options(parser)
    parser.add_argument(
        "--origin", choices=["human", "mt"], default="human",
        help="of captions that are not English; not known for sure (default: human)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Import; exit code as of `run_import`."""
    human = None if args.origin == "human" else ("en",)
    plan = converted(args, "rudder", "rudder", human)
    return run_import(replace(plan, title="RUDDER, converted from C2KD's files", cite=CITE), args)


def picture_key(item: Item) -> str:
    """Return `rudder:<id>`."""
    return f"rudder:{item.id}"
