"""Flickr8k with captions in eleven languages, as one folder of a tar and tables.

The folder holds `images.tar`, `images.jsonl` (image, split), `captions/<lang>.<source>.tsv.gz`
(image, idx, text) and `sources.tsv` (what each caption file is and how much is in it).
"""

from __future__ import annotations

import argparse
import os
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from xlcm.data.manifest import DataError, ManifestWriter
from xlcm.data.sources.text_lines import iter_lines, read_jsonl
from xlcm.registry import nearest
from xlcm.types import Caption, Item, Origin

DEFAULT = ("en.human", "de.multi30k_task2", "zh.human", "pt.human")
SPLITS = ("train", "val", "test")
ORIGINS: dict[str, Origin] = {
    "human": "human", "human-translation": "human", "post-edited": "human", "machine": "mt",
}  # fmt: skip
TASK1 = "en.multi30k_task1"
# what each file was made from (same image, same idx), and by which machine
PARENTS = {
    "zh.human_translation": "en.human", "zh.mt_baidu": "en.human", "zh.mt_google": "en.human",
    "hi.mt": "en.human",
    **{f"{lang}.multi30k_task1": TASK1 for lang in ("de", "fr", "cs", "pt")},
    **{f"{lang}.mt_nllb": TASK1 for lang in ("es", "uk", "zh", "ar")},
}  # fmt: skip
ENGINES = {
    "zh.mt_baidu": "baidu-2016", "zh.mt_google": "google-2016", "hi.mt": "unknown",
    "ar.post_edited": "unknown, post-edited by translators",
    **{f"{lang}.mt_nllb": "nllb-200-3.3b" for lang in ("es", "uk", "zh", "ar")},
}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """One caption file, with the counts that `sources.tsv` promises."""

    name: str
    lang: str
    kind: str
    captions: int
    images: dict[str, int]  # by split


@dataclass
class Imported:
    """What was read of one caption file, beside what was promised.

    Args:
        captions: read, over all splits.
        images: with a caption, by split.
        written: captions in the manifest.
        linked: of these, how many name the caption that they were made from.
    """

    source: Source
    captions: int
    images: Counter[str]
    written: int = 0
    linked: int = 0

    @property
    def agrees(self) -> bool:
        """Whether the file holds what `sources.tsv` says."""
        images = {split: self.images[split] for split in SPLITS}
        return self.captions == self.source.captions and images == self.source.images


def import_photos(
    root: str | Path,
    out: str | Path,
    *,
    captions: Iterable[str] = DEFAULT,
    splits: Iterable[str] = SPLITS,
) -> list[Imported]:
    """Write the manifest and unpack the pictures into `images/` beside it.

    Args:
        root: the source folder.
        out: the manifest.
        captions: which files, as `<lang>.<source>`.
        splits: of the published ones; `none` holds 91 pictures that no split uses.

    Raises:
        DataError: for a name that is not there, or a damaged file.
    """
    root, out = Path(root), Path(out)
    known = read_sources(root / "sources.tsv")
    chosen = list(dict.fromkeys(captions))
    for name in chosen:
        if name not in known:
            hint = nearest(name, known)
            raise DataError(f"{root}: no caption file {name!r}{hint}; there are {', '.join(known)}")
    split_of = dict(read_images(root / "images.jsonl"))
    results, texts = {}, {}
    for name in chosen:
        path = root / "captions" / f"{name}.tsv.gz"
        rows = texts[name] = list(read_captions(path, split_of))
        images = Counter(split_of[image] for image in {image for image, _, _ in rows})
        results[name] = Imported(known[name], len(rows), images)
    kept = {image: split for image, split in split_of.items() if split in set(splits)}
    extract(root / "images.tar", out.parent / "images", kept)
    by_image: dict[str, list[Caption]] = {image: [] for image in kept}
    made: set[str] = {
        caption_id(image, name, idx) for name in chosen for image, idx, _ in texts[name]
    }
    for name in chosen:
        for image, idx, text in texts[name]:
            if image in kept:
                caption = _caption(image, idx, text, known[name], made)
                by_image[image].append(caption)
                results[name].written += 1
                results[name].linked += caption.of is not None
    with ManifestWriter(out) as writer:
        for image, split in kept.items():
            item = Item(_stem(image), split, tuple(by_image[image]), image=f"images/{image}")
            writer.write(item)
    return list(results.values())


def _stem(image: str) -> str:
    return image.rpartition(".")[0]


def caption_id(image: str, name: str, idx: int) -> str:
    """Return the id of a caption: `<image>#<file>.<idx>`."""
    return f"{_stem(image)}#{name}.{idx}"


def _caption(image: str, idx: int, text: str, source: Source, made: set[str]) -> Caption:
    name = source.name
    parent = caption_id(image, PARENTS[name], idx) if name in PARENTS else None
    return Caption(
        caption_id(image, name, idx),
        source.lang,
        text,
        ORIGINS[source.kind],
        parent if parent in made else None,
        ENGINES.get(name),
    )


def read_sources(path: Path) -> dict[str, Source]:
    """Return the caption files that `sources.tsv` lists, by name."""
    found = {}
    for number, row in _table(path, ("file", "lang", "kind", "captions")):
        try:
            name = row["file"].removesuffix(".tsv.gz")
            images = {split: int(row[f"{split}_images"]) for split in SPLITS}
            kind = row["kind"]
            ORIGINS[kind]
            found[name] = Source(name, row["lang"], kind, int(row["captions"]), images)
        except (KeyError, ValueError) as error:
            raise DataError(f"{path}:{number}: unexpected or missing {error}") from error
    return found


def read_images(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (file name, split) of every picture.

    Raises:
        DataError: for a damaged file, or a picture that is listed twice.
    """
    met: dict[str, int] = {}
    for number, row in read_jsonl(path):
        image, split = row.get("image"), row.get("split")
        if not isinstance(image, str) or not isinstance(split, str):
            raise DataError(f"{path}:{number}: 'image' and 'split' must be text, got {row!r:.60}")
        if met.setdefault(image, number) != number:
            raise DataError(f"{path}:{number}: picture {image!r} is in line {met[image]} before")
        yield image, split


def read_captions(path: Path, known: dict[str, str]) -> Iterator[tuple[str, int, str]]:
    """Yield (image, idx, text) of one caption file.

    Raises:
        DataError: for a damaged file, or a picture that `images.jsonl` doesn't list.
    """
    for number, row in _table(path, ("image", "idx", "text")):
        if row["image"] not in known:
            raise DataError(f"{path}:{number}: unknown image {row['image']!r}")
        if not row["idx"].isdecimal():
            raise DataError(f"{path}:{number}: 'idx' must be a number, got {row['idx']!r:.60}")
        yield row["image"], int(row["idx"]), row["text"]


def _table(path: Path, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line, values by column) of a file with a header."""
    header: list[str] = []
    for number, line in iter_lines(path):
        cells = line.split("\t")
        if number == 1:
            header = cells
            if missing := [name for name in needed if name not in header]:
                raise DataError(f"{path}:1: the header has no {missing[0]!r}; it has "
                                f"{', '.join(header)}")  # fmt: skip
        elif len(cells) != len(header):
            raise DataError(f"{path}:{number}: {len(cells)} columns, expected {len(header)}")
        else:
            yield number, dict(zip(header, cells))


def extract(tar: Path, folder: Path, wanted: Iterable[str]) -> int:
    """Unpack the wanted files of a tar; return how many were not there already.

    Only plain files whose name is in `wanted` are written, and `wanted` has bare file names, so
    nothing can land outside `folder`.

    Raises:
        DataError: if the tar is damaged, or a wanted file is not in it.
    """
    missing, written = set(wanted), 0
    for name in missing:
        if Path(name).name != name or name in ("", ".", ".."):
            raise DataError(f"{tar}: {name!r} is not a bare file name")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(tar) as archive:
            for member in archive:
                if member.name not in missing or not member.isfile():
                    continue
                missing.discard(member.name)
                target = folder / member.name
                if target.is_file() and target.stat().st_size == member.size:
                    continue
                source = archive.extractfile(member)
                assert source is not None
                aside = folder / f".{member.name}.{os.getpid()}"
                aside.write_bytes(source.read())
                os.replace(aside, target)
                written += 1
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{tar}: can't be unpacked: {error}") from error
    if missing:
        raise DataError(f"{tar}: {len(missing)} pictures are missing, such as {min(missing)}")
    return written


# -- command ------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `xlcm data import photos`."""
    parser.add_argument("--root", required=True, help="the source folder")
    parser.add_argument("--out", required=True, help="the manifest; images/ is put beside it")
    parser.add_argument(
        "--captions", nargs="+", default=list(DEFAULT), metavar="LANG.SOURCE",
        help=f"caption files (default: {' '.join(DEFAULT)}); `all` takes every one",
    )  # fmt: skip
    parser.add_argument(
        "--splits", nargs="+", default=list(SPLITS), choices=[*SPLITS, "none"],
        help="published splits (default: train val test)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Import, print the counts beside those of `sources.tsv`; 1 if they differ."""
    from xlcm.data.tables import table

    names = args.captions
    if names == ["all"]:
        names = list(read_sources(Path(args.root) / "sources.tsv"))
    results = import_photos(args.root, args.out, captions=names, splits=args.splits)
    rows = []
    for done in results:
        images = " / ".join(str(done.images[split]) for split in SPLITS)
        verdict = (
            "as published"
            if done.agrees
            else f"expected {done.source.captions} captions, "
            + (" / ".join(str(n) for n in done.source.images.values()) + " images")
        )
        rows.append([done.source.name, done.source.kind, done.captions, images, done.written,
                     done.linked, verdict])  # fmt: skip
    header = ["captions", "kind", "read", "images train / val / test", "written", "linked", ""]
    table(f"{args.out}", header, rows)
    return 0 if all(done.agrees for done in results) else 1
