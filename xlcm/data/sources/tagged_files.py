"""Files of `<id>#<tag>#<n> <text>` lines, joined to items; ids of a split; keys of videos."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from xlcm.data.manifest import DataError
from xlcm.data.sources.base import Skipped
from xlcm.data.sources.image_paths import ANY_VIDEO
from xlcm.data.sources.text_lines import (
    find,
    find_all,
    iter_lines,
    tagged_line,
    without_ending,
)
from xlcm.types import Caption, Item, Origin


@dataclass(frozen=True)
class TagFile:
    """One file of captions.

    Args:
        path: from the root.
        split: that its lines are in.
        lang: BCP 47.
        tags: that its lines may carry; any other is refused.
        kind: what its captions' ids have behind the language: `mt`, `back`, either with a language
            behind a hyphen; "" or another word for people's.
        of: the captions that these were made from, as `<lang>` or `<lang>.<kind>`; "" for none.
        required: whether the import can't do without it.
    """

    path: str
    split: str
    lang: str
    tags: tuple[str, ...]
    kind: str = ""
    of: str = ""
    required: bool = True

    @property
    def origin(self) -> Origin:
        """Who made the captions."""
        made: dict[str, Origin] = {"mt": "mt", "back": "back"}
        return made.get(self.kind.partition("-")[0], "human")

    @property
    def label(self) -> str:
        """What other files call it in `of`."""
        return f"{self.lang}.{self.kind}" if self.kind else self.lang

    @property
    def what(self) -> str:
        """What it is, for people."""
        made = {
            "human": "written by people",
            "mt": "machine translation",
            "back": "translated back",
        }
        return f"captions of {self.split}, {self.lang}, {made[self.origin]}"


Lines = dict[str, dict[int, tuple[str, str]]]
"""Id -> number -> (`file:line`, text), in the order of the file."""


def read_tagged(path: Path, tags: Sequence[str]) -> Lines:
    """Return the lines of one file by id and number; texts may be empty.

    Raises:
        DataError: for a line of another form or tag, and for one that is there twice.
    """
    found: Lines = {}
    for number, line in iter_lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        identity, tag, n, text = tagged_line(line, where)
        if tag not in tags:
            raise DataError(f"{where}: expected the tag {' or '.join(tags)}, got {tag!r}; is this "
                            "the file that its name says?")  # fmt: skip
        own = found.setdefault(identity, {})
        if n in own:
            first = own[n][0].rpartition(":")[2]
            raise DataError(f"{where}: {identity}#{tag}#{n} is also at line {first}")
        own[n] = where, text
    return found


def join(
    root: str | Path,
    files: Sequence[TagFile],
    skipped: Skipped,
    *,
    engine: str | None = None,
    videos: bool = False,
    skip_unpaired: bool = False,
) -> Iterator[Item]:
    """Yield the items of one split; order and ids are those of people's captions.

    Args:
        root: what paths start from.
        files: of the split, each behind the one that it was made from.
        skipped: told of empty lines, and of what has no partner.
        engine: the machine of all translations.
        videos: whether the items are videos (`<id>.mp4` and the like), else pictures (`<id>.jpg`).
        skip_unpaired: leave out translations without a source and say how many sources have no
            translation, instead of refusing them.

    Raises:
        DataError: for a translation without source or a source without translation.
    """
    read: list[tuple[TagFile, Lines]] = []
    by_label: dict[str, tuple[TagFile, Lines]] = {}
    for file in files:
        if not file.required and not find_all(root, file.path):
            continue
        lines = read_tagged(find(root, file.path), file.tags)
        if file.of:
            _check_pairs(file, lines, *by_label[file.of], skipped, skip_unpaired)
        read.append((file, lines))
        by_label[file.label] = file, lines
    ids: dict[str, str] = {}
    for file, lines in read:
        if not file.of:
            for identity, own in lines.items():
                ids.setdefault(identity, next(iter(own.values()))[0])
    for identity, where in ids.items():
        captions: list[Caption] = []
        names: dict[tuple[str, int], str] = {}  # file's label and number -> caption
        for file, lines in read:
            # a sentence that two files of people's captions share is one caption
            before = {} if file.of else {c.text: c.id for c in captions if c.lang == file.lang
                                         and c.origin == "human"}  # fmt: skip
            for n, (place, text) in lines.get(identity, {}).items():
                if not text:
                    skipped.add(place)
                    continue
                names[file.label, n] = name = before.get(text, f"{identity}#{file.label}.{n}")
                if text in before:
                    continue
                captions.append(
                    Caption(name, file.lang, text, file.origin, names.get((file.of, n)),
                            engine if file.origin != "human" else None)
                )  # fmt: skip
        image, video = (None, identity + ANY_VIDEO) if videos else (f"{identity}.jpg", None)
        yield Item(identity, files[0].split, tuple(captions), image, video, where=where)


def _check_pairs(
    file: TagFile, lines: Lines, source: TagFile, made_from: Lines, skipped: Skipped, skip: bool
) -> None:
    """Compare a translation with its source, line by line; with `skip` what is alone is noted."""
    way_out = "get both files again, or leave it out with --unpaired skip"
    for identity, own in lines.items():
        sources = made_from.get(identity, {})
        for n in [n for n in own if n not in sources]:
            if not skip:
                raise DataError(f"{own[n][0]}: it was made from {identity}#{source.tags[0]}#{n}, "
                                f"which {source.path} doesn't have; {way_out}")  # fmt: skip
            skipped.add(own.pop(n)[0], "translations without their source")
        if file.origin == "back":  # of a translation that is left out it would stand alone
            for n in [n for n in own if own[n][1] and not sources[n][1]]:
                skipped.add(own.pop(n)[0], "ways back of translations without text")
    for identity, own in made_from.items():
        for n, (where, text) in own.items():
            if text and n not in lines.get(identity, {}):
                if not skip:
                    raise DataError(f"{where}: {file.path} has no translation of it; {way_out}")
                skipped.add(where, f"translations into {file.lang} that don't exist")


# -- ids ----------------------------------------------------------------------------------------


def read_split_ids(path: str | Path) -> list[str]:
    """Return the ids that a file lists, in order, each once.

    Takes .npy of names (HGR), .csv with a column `video_id`, files of captions
    (`<id>#<tag>#<n> ...`), and one id a line; all but .npy plain or gzipped.

    Raises:
        DataError: if it lists nothing.
    """
    path = Path(path)
    kind = Path(path.name.removesuffix(".gz")).suffix
    if kind == ".npy" and path.suffix == ".gz":
        raise DataError(f"{path}: unpack it first, with `gunzip {path.name}`")
    if kind == ".npy":
        from xlcm.data.feature_formats.ids import read_ids

        names = read_ids(path)
    elif kind == ".csv":
        names = [identity for _, identity, _ in read_sentences(path, sentence=False)]
    else:
        names = [line.split()[0].partition("#")[0] for _, line in iter_lines(path) if line.strip()]
    ids = list(dict.fromkeys(without_ending(n) for n in names if n))
    if not ids:
        raise DataError(f"{path}: it lists no ids")
    return ids


def read_sentences(path: Path, *, sentence: bool = True) -> Iterator[tuple[str, str, str]]:
    """Yield (`file:line`, video id, sentence) of a CSV with `video_id` and `sentence`.

    Args:
        path: with a header; further columns are allowed.
        sentence: whether the second column is needed.

    Raises:
        DataError: naming the missing column, or the line without a video or with a cell too many.
    """
    numbers: list[int] = []

    def rows() -> Iterator[str]:
        for number, line in iter_lines(path):
            numbers.append(number)
            yield line + "\n"

    reader = csv.DictReader(rows(), strict=True)
    needed = ("video_id", "sentence") if sentence else ("video_id",)
    try:
        for name in needed:
            if name not in (reader.fieldnames or ()):
                raise DataError(f"{path}:1: no column {name!r}; its columns are "
                                f"{', '.join(reader.fieldnames or ()) or 'none'}")  # fmt: skip
        for row in reader:
            where = f"{path}:{numbers[-1]}"
            if None in row:
                raise DataError(f"{where}: more cells than the {len(reader.fieldnames or ())} "
                                "columns; a sentence with commas must stand in quotes")  # fmt: skip
            if not row["video_id"] or (sentence and row["sentence"] is None):
                raise DataError(f"{where}: expected {', '.join(needed)}, got {row!r}")
            yield (
                where,
                row["video_id"].strip(),
                (row["sentence"] or "").strip() if sentence else "",
            )
    except csv.Error as error:
        cut = "; was the file cut off?" if "end of data" in str(error) else ""
        where = f"{path}:{numbers[-1] if numbers else 1}"
        raise DataError(f"{where}: no CSV: {error}{cut}") from error


def youtube_key(item: Item) -> str:
    """Return `youtube:<id>` of a clip `<youtube id>_<start>_<end>`; the id may hold `_` and `-`."""
    name, _, times = item.id.partition("@")
    if times:
        return f"youtube:{name}"
    parts = name.rsplit("_", 2)
    clip = len(parts) == 3 and parts[0] and parts[1].isdecimal() and parts[2].isdecimal()
    return f"youtube:{parts[0] if clip else name}"
