"""CC3M: 3.3 million pictures with English alt text, and machine translations line by line (UC2)."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from xlcm.data.manifest import DataError
from xlcm.data.sources.base import Expected, Need, Plan, Skipped, add_common, run_import
from xlcm.data.sources.columns import check_lang
from xlcm.data.sources.downloads import BY_ROW, REPEATED, Downloads, Urls, add_downloads
from xlcm.data.sources.text_lines import find, iter_lines, raw_lines
from xlcm.types import Caption, Item

FILES = {"train": "Train_GCC-training.tsv", "val": "Validation_GCC-1.1.0-Validation.tsv"}
ROWS = {"train": 3_318_333, "val": 15_840}
Translations = Mapping[str, Mapping[str, str]]
"""Split -> language -> path from the root."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `xlcm data import cc3m`."""
    add_common(parser)
    parser.add_argument("--splits", nargs="+", choices=list(FILES), default=list(FILES),
                        help="default: both")  # fmt: skip
    parser.add_argument(
        "--translations", nargs="+", default=[], metavar="[SPLIT/]LANG=FILE",
        help="below --root, line n for line n of the split's TSV (default split: train)",
    )  # fmt: skip
    parser.add_argument("--engine", default="uc2", metavar="NAME",
                        help="the machine that made them (default: uc2)")  # fmt: skip
    parser.add_argument("--drop-duplicates", action="store_true",
                        help="leave out rows whose URL was there before, and training rows with "
                        "the URL of a validation row")  # fmt: skip
    add_downloads(parser, default="{row:09d}.jpg", fields="{split} and {row}, from 1")


def run(args: argparse.Namespace) -> int:
    """Import; exit code as of `run_import`."""
    translations = read_translations(args.translations, args.splits)
    downloads = Downloads(args.image_name, args.downloaded, {"split": "train", "row": 1})
    plan = make_plan(args.root, args.splits, translations, downloads, engine=args.engine,
                     drop_duplicates=args.drop_duplicates)  # fmt: skip
    return run_import(plan, args)


def read_translations(words: Sequence[str], splits: Sequence[str]) -> Translations:
    """Return what `[SPLIT/]LANG=FILE` says.

    Raises:
        DataError: naming the word.
    """
    found: dict[str, dict[str, str]] = {split: {} for split in splits}
    for word in words:
        option = f"--translations {word}"
        before, equals, path = word.partition("=")
        if not (before and equals and path):
            raise DataError(f"{option}: expected [SPLIT/]LANG=FILE")
        split, slash, lang = before.partition("/")
        split, lang = (split, lang) if slash else ("train", split)
        if split not in found:
            raise DataError(f"{option}: the splits are {', '.join(splits)}")
        check_lang(lang, option)
        if lang == "en" or lang in found[split]:
            raise DataError(f"{option}: {split} has captions in {lang!r} already")
        found[split][lang] = path
    return found


def make_plan(
    root: str | Path,
    splits: Sequence[str],
    translations: Translations,
    downloads: Downloads,
    *,
    engine: str = "uc2",
    drop_duplicates: bool = False,
) -> Plan:
    """Return what is read of CC3M.

    Args:
        root: the folder of the two TSV files.
        splits: of `FILES`.
        translations: see `read_translations`.
        downloads: how the pictures are called.
        engine: that made the translations.
        drop_duplicates: leave out rows whose URL was there before; those of val come first.
    """
    skipped, urls = Skipped(), Urls(drop=drop_duplicates)

    def items() -> Iterator[Item]:
        if len(splits) > 1:
            for number, _, _, url in read_rows(find(root, FILES["val"])):
                urls.hold(url, f"val-{number}")
        for split in splits:
            yield from read_split(
                root, split, translations[split], downloads, urls=urls, engine=engine,
                skipped=skipped,
            )  # fmt: skip

    needs = [Need(FILES[split], f"English captions and URLs, {split}") for split in splits]
    for split in splits:
        needs += [Need(path, f"{lang}, {split}") for lang, path in translations[split].items()]
    return Plan(
        name="cc3m",
        title="Conceptual Captions 3M",
        get="Captions: https://ai.google.com/research/ConceptualCaptions/download. Translations "
        "into de, fr, cs, ja, zh: the Google Drive folder that https://github.com/zmykevin/UC2 "
        "links. Pictures: fetch the URLs yourself (img2dataset); 10-20 % are gone.",
        terms="Captions free for any use with attribution, as is; pictures belong to their sites.",
        cite="Sharma et al. 2018, https://aclanthology.org/P18-1238; translations: Zhou et al. "
        "2021, https://arxiv.org/abs/2104.00332",
        needs=tuple(needs),
        items=items,
        expected={split: Expected(ROWS[split], {"en human": ROWS[split]}) for split in splits},
        key=lambda item: f"cc3m:{urls.picture(item)}",
        skipped=skipped,
        notes=(
            "the line number is the only key: never take lines out of one language's file alone.",
            "alt text and its translations are noisy: dates, names, # for digits.",
            BY_ROW,
        ),
    )


def picture_key(item: Item) -> str:
    """Return `cc3m:<split>-<row>`; that two rows show one picture is told by URLs alone."""
    return f"cc3m:{item.id}"


def read_split(
    root: str | Path,
    split: str,
    translations: Mapping[str, str],
    downloads: Downloads,
    *,
    urls: Urls,
    engine: str,
    skipped: Skipped,
) -> Iterator[Item]:
    """Yield one item a line.

    Raises:
        DataError: if a translation's file has more or fewer lines, before the first item; for a
            line that isn't `caption<tab>url`, as `file:line`.
    """
    path = find(root, FILES[split])
    files = {lang: find(root, name) for lang, name in translations.items()}
    _same_length(path, files)
    others = {lang: iter_lines(file) for lang, file in files.items()}
    for number, where, text, url in read_rows(path):
        identity = f"{split}-{number}"
        rows = {lang: next(lines)[1] for lang, lines in others.items()}
        if urls.repeats(url, identity):
            skipped.add(where, REPEATED)
            continue
        captions = []
        if text:
            captions.append(Caption(f"{identity}#en.0", "en", text))
        else:
            skipped.add(where)
        for lang, row in rows.items():
            translated = _text(row, url, files[lang], number)
            if not translated:
                skipped.add(f"{files[lang]}:{number}")
                continue
            of = captions[0].id if text else None
            captions.append(Caption(f"{identity}#{lang}.mt.0", lang, translated, "mt", of, engine))
        image = downloads.name(url, split=split, row=number)
        yield Item(identity, split, tuple(captions), image, where=where)


def read_rows(path: Path) -> Iterator[tuple[int, str, str, str]]:
    """Yield (number from 1, `file:line`, caption, URL) of every line; captions may be empty.

    Raises:
        DataError: for a line that isn't `caption<tab>url`, as `file:line`.
    """
    for number, line in iter_lines(path):
        where = f"{path}:{number}"
        text, tab, url = line.partition("\t")
        if not tab or not url.strip():
            raise DataError(f"{where}: expected <caption><tab><url>, got {line[:60]!r}")
        yield number, where, text.strip(), url.strip()


def _text(line: str, url: str, path: Path, number: int) -> str:
    """Return the caption of a line, which may repeat the URL as a proof of its place."""
    text, tab, behind = line.partition("\t")
    if tab and behind.strip() != url:
        raise DataError(f"{path}:{number}: behind the tab is {behind[:60]!r}, in the English file "
                        f"{url[:60]!r}: the lines don't belong together")  # fmt: skip
    return text.strip()


def _same_length(path: Path, files: Mapping[str, Path]) -> None:
    if not files:
        return
    wanted = sum(1 for _ in raw_lines(path))
    for lang, file in files.items():
        if (found := sum(1 for _ in raw_lines(file))) != wanted:
            raise DataError(
                f"{file}: {found:,} lines in {lang}, but {path} has {wanted:,}: line n must "
                "belong to line n, so all files need all lines"
            )
