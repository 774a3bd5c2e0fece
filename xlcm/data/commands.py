"""`xlcm data ...`: bring data into a manifest, check it, count it, train a tokenizer on it."""

from __future__ import annotations

import argparse
import importlib

from xlcm.data.sources import SOURCES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-commands of `xlcm data`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add_import(actions)


def run(args: argparse.Namespace) -> int:
    """Run the sub-command that was asked for; return its exit code."""
    return args.run(args)


def _add_import(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = actions.add_parser("import", help="write the manifest of a known data set")
    sources = parser.add_subparsers(dest="source", metavar="SOURCE", required=True)
    for name, module in SOURCES.items():
        source = importlib.import_module(module)
        text = (source.__doc__ or "").partition("\n")[0]
        one = sources.add_parser(name, help=text, description=text)
        source.add_arguments(one)
        one.set_defaults(run=source.run)
