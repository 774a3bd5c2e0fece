"""Flickr8k with captions in eleven languages, as one folder of a tar and tables.

The folder holds `images.tar`, `images.jsonl` (image, split), `captions/<lang>.<source>.tsv.gz`
(image, idx, text) and `sources.tsv` (what each caption file is and how much is in it). The keys of
features are the pictures' file names.
"""

from __future__ import annotations

import argparse
import os
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from xlcm.data.aside import aside, remove_left_in
from xlcm.data.manifest import DataError
from xlcm.data.sources.base import Expected, Need, Plan, Skipped, add_common, run_import
from xlcm.data.sources.flickr_cn import picture_key
from xlcm.data.sources.text_lines import find, find_all, iter_lines, read_jsonl
from xlcm.registry import nearest
from xlcm.types import Caption, Item, Origin

__all__ = ["add_arguments", "extract", "picture_key", "plan", "read_sources", "run"]

DEFAULT = ("en.human", "de.multi30k_task2", "zh.human", "pt.human")
SPLITS = ("train", "val", "test")
UNUSED = "none"
IMAGES = "images.jsonl"
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
NOTES = (
    "zh.human, ar.post_edited, de.multi30k_task2 and pt.human don't follow the numbers of English "
    "captions, so they have no links.",
    "All pictures are in Flickr30k: 871 of the 1,000 test pictures are training pictures of "
    "Multi30K. Check with --against before you train on one and test on the other.",
)


@dataclass(frozen=True)
class Source:
    """One caption file, with the counts that `sources.tsv` promises.

    Args:
        images: with a caption, by split; those that no split uses are `none`.
    """

    name: str
    lang: str
    kind: str
    captions: int
    images: Mapping[str, int]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `xlcm data import photos`."""
    add_common(parser)
    parser.add_argument(
        "--captions", nargs="+", default=list(DEFAULT), metavar="LANG.SOURCE",
        help=f"caption files (default: {' '.join(DEFAULT)}); `all` takes every one",
    )  # fmt: skip
    parser.add_argument(
        "--splits", nargs="+", default=list(SPLITS), choices=[*SPLITS, UNUSED],
        help=f"published splits (default: train val test); `{UNUSED}` holds the pictures of none",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Import; 1 if counts differ from those of `sources.tsv`.

    Without `--images` the pictures are unpacked into `images/` beside the manifest.
    """
    return run_import(plan(args), args)


def plan(args: argparse.Namespace) -> Plan:
    """Return what the options ask for.

    Raises:
        DataError: for a name that is not there.
    """
    root = Path(args.root)
    listed = find_all(root, "sources.tsv")
    known = read_sources(listed[0]) if listed else {}
    chosen = list(dict.fromkeys(known if args.captions == ["all"] else args.captions))
    for name in chosen if known else ():
        if name not in known:
            hint = nearest(name, known)
            raise DataError(f"{root}: no caption file {name!r}{hint}; there are {', '.join(known)}")
    needs = [Need("sources.tsv", "what the caption files are"),
             Need("images.jsonl", "pictures with their splits")]  # fmt: skip
    needs += [Need(f"captions/{name}.tsv.gz", f"captions {name}") for name in chosen]
    if not args.images:
        needs.append(Need("images.tar", "pictures"))
    skipped = Skipped()
    return Plan(
        name="photos", title="Flickr8k at 128 pixels, in eleven languages",
        get="pictures: Flickr8k, by the form at https://forms.illinois.edu/sec/1713398; captions: "
        "https://github.com/li-xirong/flickr8kcn, https://github.com/multi30k/dataset, "
        "https://github.com/FrameNetBrasil/framed-multi30k, "
        "https://github.com/ObeidaElJundi/Arabic-Image-Captioning; put into tables of image, idx "
        "and text.",
        terms="pictures under Flickr's terms, non-commercial research and education only; no "
        "licence of the captions is stated.",
        cite="Hodosh et al. 2013, https://doi.org/10.1613/jair.3994; Li et al. 2016, "
        "https://doi.org/10.1145/2911996.2912049; Elliott et al. 2016, "
        "https://aclanthology.org/W16-3210; ElJundi et al. 2020; Viridiano et al. 2024",
        needs=tuple(needs), items=lambda: _items(args, known, chosen, skipped),
        expected={split: _expected(split, known, chosen) for split in args.splits},
        key=picture_key, notes=NOTES, skipped=skipped,
    )  # fmt: skip


def _expected(split: str, known: Mapping[str, Source], chosen: Sequence[str]) -> Expected:
    """Return what `sources.tsv` promises; each of its files has equally many captions an image."""
    counts: Counter[str] = Counter()
    for name in chosen if known else ():
        source = known[name]
        each, rest = divmod(source.captions, sum(source.images.values()) or 1)
        if rest:  # not known by split
            return Expected(max(one.images[split] for one in known.values()))
        if source.images[split]:
            counts[f"{source.lang} {ORIGINS[source.kind]}"] += each * source.images[split]
    items = max((one.images[split] for one in known.values()), default=None)
    return Expected(items, counts)


def _items(
    args: argparse.Namespace, known: Mapping[str, Source], chosen: Sequence[str], skipped: Skipped
) -> Iterator[Item]:
    root = Path(args.root)
    images = {image: (split, where) for image, split, where in read_images(find(root, IMAGES))}
    kept = [image for image, (split, _) in images.items() if split in args.splits]
    made: dict[str, dict[str, Caption]] = {image: {} for image in kept}
    for name in chosen:
        for image, idx, text, where in read_captions(find(root, f"captions/{name}.tsv"), images):
            if not text.strip():
                skipped.add(where)
            elif image in made:
                caption = _caption(image, idx, text.strip(), known[name])
                if caption.id in made[image]:
                    raise DataError(f"{where}: caption {idx} of {image!r} was there before")
                made[image][caption.id] = caption
    folder = ""
    if not args.images:
        folder = os.path.abspath(Path(args.out).parent / "images")
        extract(root / "images.tar", Path(folder), kept, partly=args.missing_images != "error")
    for image in kept:
        own = made[image]
        captions = tuple(
            c if c.of is None or c.of in own else replace(c, of=None) for c in own.values()
        )
        split, where = images[image]
        yield Item(_stem(image), split, captions, image=os.path.join(folder, image),
                   features=image, where=where)  # fmt: skip


def _stem(image: str) -> str:
    return image.rpartition(".")[0]


def _caption(image: str, idx: int, text: str, source: Source) -> Caption:
    """Return one, with what it was made from, whether that is there or not."""
    name, stem = source.name, _stem(image)
    parent = f"{stem}#{PARENTS[name]}.{idx}" if name in PARENTS else None
    return Caption(f"{stem}#{name}.{idx}", source.lang, text, ORIGINS[source.kind], parent,
                   ENGINES.get(name))  # fmt: skip


# -- files --------------------------------------------------------------------------------------


def read_sources(path: Path) -> dict[str, Source]:
    """Return the caption files that `sources.tsv` lists, by name."""
    found = {}
    for row, where in _table(path, ("file", "lang", "kind", "captions", "images")):
        try:
            name = row["file"].removesuffix(".tsv.gz")
            images = {split: int(row[f"{split}_images"]) for split in SPLITS}
            images[UNUSED] = int(row["images"]) - sum(images.values())
            kind = row["kind"]
            ORIGINS[kind]
            if name in found:
                raise DataError(f"{where}: {row['file']} was listed before")
            found[name] = Source(name, row["lang"], kind, int(row["captions"]), images)
        except (KeyError, ValueError) as error:
            raise DataError(f"{where}: unexpected or missing {error}") from error
    if not found:
        raise DataError(f"{path}: there are no rows in it; get it again")
    return found


def read_images(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (file name, split, `file:line`) of every picture.

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
        yield image, split, f"{path}:{number}"


def read_captions(path: Path, known: Iterable[str]) -> Iterator[tuple[str, int, str, str]]:
    """Yield (image, idx, text, `file:line`) of one caption file.

    Raises:
        DataError: for a damaged file, or a picture that `images.jsonl` doesn't list.
    """
    for row, where in _table(path, ("image", "idx", "text")):
        if row["image"] not in known:
            raise DataError(f"{where}: unknown image {row['image']!r}")
        if not row["idx"].isdecimal():
            raise DataError(f"{where}: 'idx' must be a number, got {row['idx']!r:.60}")
        yield row["image"], int(row["idx"]), row["text"], where


def _table(path: Path, needed: Sequence[str]) -> Iterator[tuple[dict[str, str], str]]:
    """Yield (values by column, `file:line`) of a file with a header."""
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
            yield dict(zip(header, cells)), f"{path}:{number}"


def extract(tar: Path, folder: Path, wanted: Iterable[str], *, partly: bool = False) -> int:
    """Unpack the wanted files of a tar; return how many were not there already.

    Only plain files whose name is in `wanted` are written, and `wanted` has bare file names, so
    nothing can land outside `folder`.

    Args:
        tar: not packed.
        folder: is made if it isn't there; what a killed process left aside in it is removed.
        wanted: names of files.
        partly: whether some may be missing.

    Raises:
        DataError: if the tar is damaged, or a wanted file is not in it.
    """
    missing, written = set(wanted), 0
    for name in missing:
        if Path(name).name != name or name in ("", ".", ".."):
            raise DataError(f"{tar}: {name!r} is not a bare file name")
    folder.mkdir(parents=True, exist_ok=True)
    remove_left_in(folder, {Path(name).suffix for name in missing})
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
                aside(target).write_bytes(source.read())
                os.replace(aside(target), target)
                written += 1
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{tar}: can't be unpacked: {error}; get it again") from error
    if missing and not partly:
        raise DataError(
            f"{tar}: {len(missing)} pictures are missing, such as {min(missing)}; "
            "`--missing-images drop` leaves their items out, `--missing-images keep` keeps them",
            kind="image_missing",
        )
    return written
