"""`xlcm data ...`: bring data into a manifest, check it, count it, train a tokenizer on it."""

from __future__ import annotations

import argparse
import importlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlcm.data.feature_commands import add_convert_features
from xlcm.data.filter_commands import add_filter
from xlcm.data.shard_commands import add_shard, add_shard_hf
from xlcm.data.sources import SOURCES

if TYPE_CHECKING:
    from xlcm.data.check import CheckReport
    from xlcm.data.stats import Stats

Actions = argparse._SubParsersAction


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-commands of `xlcm data`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add_check(actions)
    _add_stats(actions)
    _add_import(actions)
    _add_train_tokenizer(actions)
    add_convert_features(actions)
    add_filter(actions)
    add_shard(actions)
    add_shard_hf(actions)


def run(args: argparse.Namespace) -> int:
    """Run the sub-command that was asked for; return its exit code."""
    return args.run(args)


# -- check --------------------------------------------------------------------------------------


def _add_check(actions: Actions[argparse.ArgumentParser]) -> None:
    text = "find every fault of a manifest, its pictures and features; exit code 1 if there is one"
    parser = actions.add_parser("check", help=text, description=text)
    parser.add_argument("path", help="the manifest, or a folder or pattern of tar shards")
    parser.add_argument("--no-images", action="store_true",
                        help="don't open the pictures and videos")  # fmt: skip
    parser.add_argument("--image-root", help="what image paths start from (default: its folder)")
    parser.add_argument("--features", metavar="PATH", help="features to check as well")
    parser.add_argument(
        "--tokenizer", metavar="FILE",
        help="a sentencepiece .model, or a tokenizer's folder, file or hub id: count what it cuts",
    )  # fmt: skip
    parser.add_argument("--max-tokens", type=int, default=64, help="cut behind (default: 64)")
    parser.add_argument("--max-length", type=int, default=2000, metavar="CHARACTERS",
                        help="longest caption (default: 2000)")  # fmt: skip
    parser.add_argument("--hash", action="store_true",
                        help="compare the pictures' bytes, over splits too")  # fmt: skip
    parser.add_argument("--decoder", action="store_true", help="decode JPEGs as training does too, "
                        "and name those of which libjpeg complains")  # fmt: skip
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1,
                        help="processes that decode (default: one a core)")  # fmt: skip
    parser.add_argument("--against", nargs="+", default=[], metavar="MANIFEST", help="of shards: "
                        "find items that these have in another split")  # fmt: skip
    parser.add_argument("--txt-lang", metavar="CODE", help="of shards: captions are in .txt")
    parser.add_argument("--json", metavar="OUT", help="write the report here as well")
    parser.set_defaults(run=_check)


def _check(args: argparse.Namespace) -> int:
    from xlcm.data.check import check_manifest
    from xlcm.data.manifest import DataError
    from xlcm.data.shard_check import check_shards, is_shards

    common = {
        "images": not args.no_images,
        "tokenizer": _tokenizer(args.tokenizer, args.max_tokens) if args.tokenizer else None,
        "max_length": args.max_length,
        "contents": args.hash,
        "decoder": args.decoder,
    }
    if is_shards(args.path):
        if args.features or args.image_root:
            raise DataError("--features and --image-root go with manifests: shards have their own")
        report = check_shards(args.path, txt_lang=args.txt_lang, against=args.against, **common)
    elif args.against or args.txt_lang:
        raise DataError("--against and --txt-lang go with shards; manifests are compared with "
                        "others by `xlcm data import SOURCE --against`")  # fmt: skip
    else:
        with _progress(args.path) as on_progress:
            report = check_manifest(
                args.path,
                image_root=args.image_root,
                features=args.features,
                workers=args.workers,
                on_progress=on_progress,
                **common,
            )
    _show_report(report, args.max_tokens)
    _write_json(args.json, report.to_dict())
    return 1 if report.faults else 0


def _tokenizer(path: str, max_tokens: int) -> Any:
    from xlcm.encoders.tokenizer import HFTokenizer, SentencePieceTokenizer

    here = Path(path)
    if here.suffix == ".model" or (here.is_dir() and list(here.glob("*.model"))):
        return SentencePieceTokenizer(path=path, max_tokens=max_tokens)
    return HFTokenizer(path=path, max_tokens=max_tokens)


def _show_report(report: CheckReport, max_tokens: int) -> None:
    from xlcm.data.faults import KINDS, WARNINGS
    from xlcm.data.tables import say, table

    splits = ", ".join(f"{n:,} {split}" for split, n in report.splits.items())
    say(f"{report.path}: {report.items:,} items ({splits}), {report.captions:,} captions")
    rows = [
        [kind, "warning" if kind in WARNINGS else "fault", report.counts[kind], words,
         "\n".join(report.examples[kind])]
        for kind, words in KINDS.items()
        if report.counts[kind]
    ]  # fmt: skip
    if rows:
        table("Findings", ["kind", "", "count", "what", "first of them"], rows)
    if report.cut:
        cut = [[lang, n["captions"], n["cut"], f"{100 * n['cut'] / n['captions']:.2f} %",
                n["longest"]] for lang, n in sorted(report.cut.items())]  # fmt: skip
        title = f"Cut by the tokenizer at {max_tokens} tokens"
        table(title, ["language", "captions", "cut", "share", "longest, tokens"], cut)
    say(f"{report.faults:,} faults, {report.warnings:,} warnings")


# -- stats --------------------------------------------------------------------------------------


def _add_stats(actions: Actions[argparse.ArgumentParser]) -> None:
    text = "count items, captions by language and origin, and lengths"
    parser = actions.add_parser("stats", help=text, description=text)
    parser.add_argument("path", help="the manifest")
    parser.add_argument("--json", metavar="OUT", help="write the numbers here as well")
    parser.set_defaults(run=_stats)


def _stats(args: argparse.Namespace) -> int:
    from xlcm.data.stats import manifest_stats

    with _progress(args.path) as on_progress:
        stats = manifest_stats(args.path, on_progress=on_progress)
    _show_stats(stats)
    _write_json(args.json, stats.to_dict())
    return 0


def _show_stats(stats: Stats) -> None:
    from xlcm.data.languages import language_name
    from xlcm.data.stats import QUANTILES, quantiles
    from xlcm.data.tables import table

    items = [[split, n, stats.without_captions[split]] for split, n in stats.items.items()]
    table("Items", ["split", "items", "without captions"], items)
    splits = list(stats.items)
    sources = sorted({(lang, origin) for _, lang, origin in stats.captions})
    table(
        "Captions (items that have one in the language)",
        ["language", "", "origin", *splits],
        [[lang, language_name(lang), origin,
          *(f"{stats.captions[s, lang, origin]:,} ({stats.pictured[s, lang]:,})" for s in splits)]
         for lang, origin in sources],
    )  # fmt: skip
    rows = []
    for lang in sorted(stats.characters):
        for unit, lengths in (("characters", stats.characters), ("words", stats.words)):
            rows.append([lang, unit, *quantiles(lengths[lang]).values()])
    table("Lengths", ["language", "in", *QUANTILES], rows)


# -- import -------------------------------------------------------------------------------------


def _add_import(actions: Actions[argparse.ArgumentParser]) -> None:
    text = "write the manifest of a known data set"
    parser = actions.add_parser("import", help=text, description=text)
    sources = parser.add_subparsers(dest="source", metavar="SOURCE", required=True)
    for name, module in SOURCES.items():
        source = importlib.import_module(module)
        text = (source.__doc__ or "").partition("\n")[0]
        one = sources.add_parser(name, help=text, description=text)
        source.add_arguments(one)
        one.set_defaults(run=source.run)


# -- train-tokenizer ----------------------------------------------------------------------------


def _add_train_tokenizer(actions: Actions[argparse.ArgumentParser]) -> None:
    text = "train a sentencepiece tokenizer on a manifest's captions"
    parser = actions.add_parser("train-tokenizer", help=text, description=text)
    parser.add_argument("path", help="the manifest")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the model is put")
    parser.add_argument("--vocab-size", type=int, default=8000, help="pieces (default: 8000)")
    parser.add_argument("--langs", nargs="+", help="only these languages (default: all)")
    parser.add_argument("--split", default="train", help="only this split (default: train)")
    parser.add_argument("--kind", choices=["unigram", "bpe"], default="unigram",
                        help="how pieces are found (default: unigram)")  # fmt: skip
    parser.set_defaults(run=_train_tokenizer)


def _train_tokenizer(args: argparse.Namespace) -> int:
    from xlcm.data.dataset import ManifestDataset
    from xlcm.data.manifest import DataError
    from xlcm.data.tables import say
    from xlcm.encoders.tokenizer import SentencePieceTokenizer

    try:
        data = ManifestDataset(path=args.path, split=args.split, langs=args.langs)
        texts = [c.text for i in range(len(data)) for c in data[i].captions]
        tokenizer = SentencePieceTokenizer(vocab_size=args.vocab_size, kind=args.kind)
        spec = tokenizer.train(texts).save(args.out)
    except DataError:
        raise
    except ValueError as error:  # a wrong language, too few pieces, no text
        raise DataError(f"{args.path}: {error}") from error
    file = Path(args.out) / spec["path"]
    say(f"{file}: {tokenizer.vocab_size:,} pieces from {len(texts):,} captions; in a config: "
        f"tokenizer: {{name: sentencepiece, path: {file}}}")  # fmt: skip
    return 0


# -- screen and files ---------------------------------------------------------------------------


@contextmanager
def _progress(path: str) -> Iterator[Callable[[int], None]]:
    """Show how much of a manifest is done, with speed and time left; nothing in a pipe."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    total = Path(path).stat().st_size if Path(path).is_file() else None
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    errors = Console(stderr=True)
    bar = Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal)
    with bar:
        task = bar.add_task(path, total=total)
        yield lambda done: bar.update(task, completed=done)


def _write_json(path: str | None, tree: dict[str, Any]) -> None:
    if path is None:
        return
    aside = Path(path).with_name(f".{Path(path).name}.{os.getpid()}")
    aside.write_text(json.dumps(tree, ensure_ascii=False, indent=1) + "\n", encoding="utf-8",
                     errors="backslashreplace")  # fmt: skip
    os.replace(aside, path)
