"""MSR-VTT-CN: Chinese for MSR-VTT, translated by machine in training, by people in val and test.

Its files are NRCCR's: `msrvtt10kcn{train,val,test}...caption.txt` (also `msrvttcn`, `msrvtt10kyu`).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from xlcm.data.manifest import DataError
from xlcm.data.sources.base import Plan, add_common, run_import
from xlcm.data.sources.nrccr import add_request, nrccr_plan, request_of
from xlcm.data.sources.nrccr import picture_key as nrccr_key
from xlcm.data.sources.tagged_files import read_split_ids
from xlcm.types import Item

SAME_TEST = (
    "the test clips are the 1,000 of 1k-A (JSFusion), with Chinese that people wrote; the Chinese "
    "of Multi-MSRVTT is a machine's, on the same clips: not for one table."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `xlcm data import msrvtt-cn`."""
    add_common(parser)
    add_request(parser)
    parser.add_argument("--test-list", metavar="FILE",
                        help="the 1k-A list (JSFusion's .csv): refuse another test")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Import; exit code as of `run_import`."""
    return run_import(plan(args), args)


def plan(args: argparse.Namespace) -> Plan:
    """Return what the options ask for."""
    made = nrccr_plan(request_of(args, "msrvttcn"), "msrvtt-cn", (SAME_TEST,))
    if args.test_list is None:
        return made

    def items() -> Iterator[Item]:
        return check_test(made.items(), Path(args.test_list))

    return replace(made, items=items)


def picture_key(item: Item) -> str:
    """Return `msrvtt:video<number>`."""
    return nrccr_key(item)


def check_test(items: Iterator[Item], path: Path) -> Iterator[Item]:
    """Pass items on; at the end the test clips must be those of the list, in any order.

    Raises:
        DataError: naming the first clips that only one of the two has.
    """
    listed, seen = set(read_split_ids(path)), set()
    for item in items:
        if item.split == "test":
            seen.add(item.id)
        yield item
    if seen != listed:
        raise DataError(
            f"{path}: {len(listed - seen):,} of its {len(listed):,} clips are not in the test "
            f"files ({', '.join(sorted(listed - seen)[:5]) or '-'}), and {len(seen - listed):,} "
            f"test clips are not in it ({', '.join(sorted(seen - listed)[:5]) or '-'})"
        )
