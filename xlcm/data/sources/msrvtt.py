"""MSR-VTT: the splits full, 1k-A (9k and 7k) and 1k-B; with translations, Multi-MSRVTT.

    *.json    {"videos": [{"video_id", "split"}], "sentences": [{"video_id", "caption", "sen_id"}]}
    *.csv     columns video_id and sentence: the test of 1k-A, one sentence a clip

Source: Xu et al. 2016 (CVPR); 1k-A: Yu et al. 2018, https://arxiv.org/abs/1808.02559; 1k-B: Miech
et al. 2018, https://arxiv.org/abs/1804.02516.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from xlcm.data.languages import language_fault
from xlcm.data.manifest import DataError
from xlcm.data.sources.base import Expected, Need, Plan, Skipped, add_common, run_import
from xlcm.data.sources.msrvtt_annotations import Annotations
from xlcm.data.sources.text_lines import find, find_all
from xlcm.types import Item

ANNOTATIONS = ("MSRVTT_data.json", "*videodatainfo*.json")
TEST_1KA = "MSRVTT_JSFUSION_test.csv"
TEXTS_1KA = {"test": Expected(1_000, {"en": 1_000})}
EXPECTED = {
    "full": {"train": Expected(6_513), "val": Expected(497), "test": Expected(2_990)},
    "1k-A": {"train": Expected(9_000), **TEXTS_1KA},
    "1k-A-7k": {"train": Expected(7_010), **TEXTS_1KA},
    "1k-B": {"train": Expected(6_656), "test": Expected(1_000)},
}  # fmt: skip

GET = (
    "annotations, the JSFusion test list and the clips: the archives MSRVTT.zip and "
    "msrvtt_data.zip linked from https://github.com/ArrowLuo/CLIP4Clip; translations "
    "(Multi-MSRVTT): https://github.com/berniebear/Multi-HT100M."
)
TERMS = "research only, as the owners say; the clips are under YouTube's terms."
CITE = "Xu et al. 2016, MSR-VTT: A Large Video Description Dataset for Bridging Video and Language"
NEVER_MIX = (
    "of the 1,000 test clips of 1k-A, 453 are in the training list of 1k-B and 296 in its test: "
    "never test on one what was trained on the other. --against counts them."
)
NO_VAL = "1k-A has no validation part: hold clips of train out, never choose by the test."
TRANSLATED = (
    "translated test captions are a machine's too: figures tell how a model bears translated "
    "queries, not how it does with what people write."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `xlcm data import msrvtt`."""
    add_common(parser)
    parser.add_argument(
        "--split", choices=list(EXPECTED), default="1k-A",
        help="1k-A: all but its 1,000 test clips train (9k); 1k-A-7k: the official train and "
        "validation parts; full: the official parts; 1k-B needs lists (default: 1k-A)",
    )  # fmt: skip
    parser.add_argument("--annotations", nargs="+", metavar="FILE",
                        help=f"below --root (default: {' or '.join(ANNOTATIONS)})")  # fmt: skip
    parser.add_argument("--test-csv", default=TEST_1KA, metavar="FILE",
                        help=f"test of 1k-A (default: {TEST_1KA})")  # fmt: skip
    parser.add_argument("--train-ids", metavar="FILE", help="clips of 1k-B for training")
    parser.add_argument("--test-ids", metavar="FILE", help="clips of 1k-B to test; a .csv with "
                        "sentences gives one caption a clip")  # fmt: skip
    parser.add_argument(
        "--translations", nargs="+", default=[], metavar="LANG=FILE",
        help="machine translations as .json with the same sen_id, or for the test of 1k-A as "
        ".csv; --root is tried first",
    )  # fmt: skip
    parser.add_argument("--engine", metavar="NAME", help="what made the translations")


def run(args: argparse.Namespace) -> int:
    """Import; exit code as of `run_import`."""
    return run_import(plan(args), args)


def picture_key(item: Item) -> str:
    """Return `msrvtt:video<number>`."""
    return f"msrvtt:{item.id}"


def plan(args: argparse.Namespace) -> Plan:
    """Return what the options ask for.

    Raises:
        DataError: for a language code that is none, or 1k-B without lists.
    """
    if args.split == "1k-B" and not (args.train_ids and args.test_ids):
        raise DataError("--split 1k-B needs --train-ids and --test-ids, its owners' lists")
    names = args.annotations or next(
        ([name] for name in ANNOTATIONS if find_all(args.root, name)), [ANNOTATIONS[0]]
    )
    needs = [Need(name, "captions and parts of the clips") for name in names]
    if args.split.startswith("1k-A"):
        needs.append(Need(args.test_csv, "test of 1k-A, a sentence a clip"))
    translations: list[tuple[str, str]] = []
    for word in args.translations:
        lang, equals, path = word.partition("=")
        if not equals or (fault := language_fault(lang)):
            raise DataError(f"--translations {word}: expected LANG=FILE" +
                            (f"; {fault}" if equals else ""))  # fmt: skip
        shown = path if find_all(args.root, path) else str(Path(path).absolute())
        needs.append(Need(shown, f"machine translations, {lang}"))
        translations.append((lang, shown))
    skipped = Skipped()

    def items() -> Iterator[Item]:
        data = Annotations(skipped)
        for name in names:
            for path in find_all(args.root, name):
                data.add(path)
        for lang, name in translations:
            path = find(args.root, name)
            if path.name.removesuffix(".gz").endswith(".csv"):
                data.add_test(path, lang, args.engine)
            else:
                data.translate(path, lang, args.engine)
        return data.items(args)

    notes = [NEVER_MIX]
    notes += [NO_VAL] if args.split.startswith("1k-A") else []
    notes += [TRANSLATED] if args.translations else []
    return Plan(
        name="msrvtt", title=f"MSR-VTT {args.split}", get=GET, terms=TERMS, cite=CITE,
        needs=tuple(needs), items=items, expected=EXPECTED[args.split], key=picture_key,
        notes=tuple(notes), skipped=skipped,
    )  # fmt: skip
