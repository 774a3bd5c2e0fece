"""C2KD's files, converted: MSR-VTT, VATEX, YouCook2 and RUDDER in several languages.

The owners give out pickles, which are programs and are refused. `recipes/convert_c2kd.py` turns one
into `<split>.jsonl` and `<split>.<array>.npz`, and this reads the folder of those.

Source: Rouditchenko et al. 2022, https://arxiv.org/abs/2210.03625.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlcm.data.languages import language_fault
from xlcm.data.manifest import DataError
from xlcm.data.sources.base import Expected, Need, Plan, Skipped, add_common, run_import
from xlcm.data.sources.image_paths import ANY_VIDEO
from xlcm.data.sources.tagged_files import youtube_key
from xlcm.data.sources.text_lines import find_all, read_jsonl
from xlcm.types import Caption, Item, Origin

GET = (
    "pickles linked from https://github.com/roudimit/c2kd; turn each into JSON lines and .npz "
    "once, `python recipes/convert_c2kd.py FILE.pkl --split train --out FOLDER`; then --root "
    "FOLDER."
)
TERMS = "the code is BSD-3; for the data the terms of each data set hold."
CITE = "Rouditchenko et al. 2022 (C2KD), https://arxiv.org/abs/2210.03625"
ONE = "one caption a video and language is asked with in test, text-to-video only."


@dataclass(frozen=True)
class Known:
    """What is known of one data set in this packing.

    Args:
        test: the split that is measured on.
        human: languages that people wrote; others are machine translations of English.
        expected: published counts by split.
        notes: traps.
    """

    test: str = "test"
    human: tuple[str, ...] = ("en",)
    expected: Mapping[str, Expected] | None = None
    notes: tuple[str, ...] = ()


DENOMINATOR = (
    "recalls are shares of the official 3,350 clips, also where fewer can be had: set "
    "`official_queries: 3350` when you evaluate."
)
CLIPS = (
    "--videos: a clip is a file `<id>.mp4`; whole videos are not taken, as these files don't say "
    "when a clip begins and ends. The owners' annotations do: --root with youcookii_annotations*."
)
GAPS = (
    "not every video has every language. Here a gap is a gap and its language has one query fewer; "
    "the owners' reader fills it with another language's caption."
)
KNOWN = {
    "msrvtt": Known(
        expected={"test": Expected(1_000)},
        notes=("with audio it is 968 test clips; test captions that are not English are a "
               "machine's.",),
    ),
    "vatex": Known(
        human=("en", "zh"), notes=("one caption a clip in test: not the VATEX of NRCCR, with ten.",)
    ),
    "youcook2": Known(
        test="val", expected={"val": Expected(3_350)}, notes=(DENOMINATOR, CLIPS)
    ),
    "rudder": Known(human=("en", "hi", "mr", "kn", "ta", "te", "ml"), notes=(GAPS,)),
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `xlcm data import c2kd`."""
    add_common(parser)
    parser.add_argument("--dataset", required=True, choices=list(KNOWN))
    add_options(parser)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of every command that reads converted files."""
    parser.add_argument("--langs", nargs="+", metavar="CODE", help="default: all that are there")
    parser.add_argument("--engine", metavar="NAME", help="what made the machine translations")
    parser.add_argument("--pair", action="store_true", help="people's captions too are of the "
                        "English one at the same place, as C2KD's code takes them")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Import; exit code as of `run_import`."""
    return run_import(converted(args, args.dataset, "c2kd"), args)


def picture_key(item: Item) -> str:
    """Return `msrvtt:video<number>` or `youtube:<id>`."""
    if item.id.startswith("video") and item.id[5:].isdecimal():
        return f"msrvtt:{item.id}"
    return youtube_key(item)


def converted(
    args: argparse.Namespace, dataset: str, name: str, human: Sequence[str] | None = None
) -> Plan:
    """Return what a folder of converted files holds.

    Args:
        args: with `root` and what `add_options` declares.
        dataset: a key of `KNOWN`.
        name: of the source.
        human: languages that people wrote; None: as known.

    Raises:
        DataError: if the folder holds pickles and nothing converted.
    """
    known, root = KNOWN[dataset], Path(args.root)
    files = find_all(root, "*.jsonl")
    refuse_pickles(root, bool(files))
    splits = {file.name.removesuffix(".gz").removesuffix(".jsonl"): file for file in files}
    for lang in args.langs or ():
        if fault := language_fault(lang):
            raise DataError(f"--langs {lang}: {fault}", kind="unknown_language")
    skipped = Skipped()
    written = known.human if human is None else human

    def items() -> Iterator[Item]:
        for split, path in splits.items():
            yield from read_rows(
                path, split, written, args.langs, args.engine, skipped, pair=args.pair
            )

    needs = [Need(path.name, f"captions of {split}") for split, path in splits.items()]
    needs += [
        Need(f"{split}.jsonl", f"captions of {split}, converted", required=False)
        for split in ("train", known.test) if splits and split not in splits
    ]  # fmt: skip
    key: Callable[[Item], str] = _rudder_key if dataset == "rudder" else picture_key
    return Plan(
        name=name, title=f"{dataset} in C2KD's files, converted", get=GET, terms=TERMS, cite=CITE,
        needs=tuple(needs) or (Need("*.jsonl", "converted files, one a split"),), items=items,
        expected=known.expected or {}, key=key, clips=key is picture_key,
        notes=(*known.notes, ONE), skipped=skipped,
    )  # fmt: skip


def _rudder_key(item: Item) -> str:
    return f"rudder:{item.id}"


def refuse_pickles(root: Path, converted_too: bool) -> None:
    """Refuse a folder that holds pickles only.

    Raises:
        DataError: naming the first one and the way out.
    """
    pickles = sorted(p for end in ("pkl", "pickle") for p in root.glob(f"*.{end}"))
    if root.suffix in (".pkl", ".pickle") and root.is_file():
        pickles = [root]
    if pickles and not converted_too:
        raise DataError(
            f"{pickles[0]}: a pickle is a program, and loading it runs it, so it is refused. Turn "
            "it into JSON lines and .npz once, with a reader that allows numpy arrays and plain "
            f"values only: `python recipes/convert_c2kd.py {pickles[0].name} --split train "
            "--out FOLDER`, then --root FOLDER"
        )


def read_rows(
    path: Path,
    split: str,
    human: Sequence[str],
    langs: Sequence[str] | None,
    engine: str | None,
    skipped: Skipped,
    *,
    pair: bool = False,
) -> Iterator[Item]:
    """Yield the items of one converted file.

    Captions of one index are one sentence in all languages: a translation names its English one,
    and with `pair` so do people's captions.

    Raises:
        DataError: naming file, line and key.
    """
    rows = list(read_jsonl(path))
    seen: dict[str, int] = {}
    read = []
    for number, row in rows:
        where = f"{path}:{number}"
        identity = row.get("id")
        if not isinstance(identity, str) or not identity:
            raise DataError(f"{where}: 'id' must be text that is not empty, got {identity!r}")
        if identity in seen:
            raise DataError(f"{where}: id {identity!r} is also at line {seen[identity]}")
        seen[identity] = number
        name = "eval_captions" if split != "train" and row.get("eval_captions") else "captions"
        read.append((where, identity, _texts(row.get(name), f"{where}: {name!r}")))
    every = dict.fromkeys(lang for _, _, texts in read for lang in texts)
    wanted = list(langs or every)
    if unknown := [lang for lang in wanted if lang not in every]:
        raise DataError(f"{path}: no captions in {unknown[0]!r}, only in {', '.join(every)}")
    for where, identity, texts in read:
        captions = []
        english = texts.get("en", []) if "en" in wanted else []
        for lang in sorted(wanted, key=lambda lang: lang != "en"):
            own = texts.get(lang, [])
            origin: Origin = "human" if lang in human else "mt"
            linked = lang != "en" and (pair or origin == "mt")
            if linked and english and own and len(own) != len(english):
                raise DataError(f"{where}: {len(own)} captions in {lang}, {len(english)} in en; "
                                "those of one index must be one sentence")  # fmt: skip
            if not own:
                skipped.add(where, f"captions in {lang} that a video doesn't have")
            for n, text in enumerate(own):
                if not text.strip():
                    skipped.add(where, f"captions in {lang} without text")
                    continue
                made = linked and n < len(english) and english[n].strip()
                captions.append(
                    Caption(f"{identity}#{lang}{'' if origin == 'human' else '.mt'}.{n}", lang,
                            text.strip(), origin, f"{identity}#en.{n}" if made else None,
                            engine if origin == "mt" else None)
                )  # fmt: skip
        yield Item(identity, split, tuple(captions), video=identity + ANY_VIDEO, where=where)


def _texts(found: Any, where: str) -> dict[str, list[str]]:
    if not isinstance(found, dict):
        raise DataError(f"{where}: expected {{lang: [captions]}}, got {found!r}"[:300])
    texts: dict[str, list[str]] = {}
    for code, own in found.items():
        lang = "cs" if code == "cz" else code
        own = [own] if isinstance(own, str) else [] if own is None else own
        if not isinstance(own, list) or not all(isinstance(text, str) for text in own):
            raise DataError(f"{where}: captions in {code} must be a list of texts")
        if fault := language_fault(lang):
            raise DataError(f"{where}: {code}: {fault}", kind="unknown_language")
        texts[lang] = own
    return texts
