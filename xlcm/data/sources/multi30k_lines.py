"""Sentences and pictures that are matched by line number, as in Multi30K -> items."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from xlcm.data.languages import language_name
from xlcm.data.manifest import DataError
from xlcm.data.sources.base import Skipped
from xlcm.data.sources.text_lines import find, read_lines
from xlcm.types import Caption, Item

ENDING = ".jpg"


@dataclass(frozen=True)
class Sentences:
    """One file of sentences.

    Args:
        path: from the root, or absolute.
        split: that its lines are in.
        lang: BCP 47.
        kind: what its captions' ids have behind the language, such as `.mt`.
        index: the number of its captions.
        engine: of a machine translation.
        source: whether its captions were made from the English of task 1.
    """

    path: str
    split: str
    lang: str
    kind: str = ""
    index: int = 0
    engine: str | None = None
    source: bool = False

    @property
    def what(self) -> str:
        """What it is, for people."""
        name = language_name(self.lang)
        return f"captions of {self.split}, {name}" + (f" by {self.engine}" if self.engine else "")


def read_split(
    root: Path, split: str, image_list: str, files: Sequence[Sentences], skipped: Skipped
) -> Iterator[Item]:
    """Yield the items of one split in the order of its image list.

    Args:
        root: what paths start from.
        split: of the items.
        image_list: file with a picture's name on each line.
        files: of the captions, in their order within an item.
        skipped: told of empty lines.

    Raises:
        DataError: if a file has more or fewer lines than there are pictures.
    """
    path = find(root, image_list)
    names = _names(path)
    read = [(file, *_sentences(root, file, len(names), path)) for file in files]
    english = _english(root, split, image_list, files, len(names), path)
    for i, name in enumerate(names):
        key = name[: -len(ENDING)]
        captions: list[Caption] = []
        written = set()
        for file, there, texts in read:
            identity = f"{key}#{file.lang}{file.kind}.{file.index}"
            if not texts[i]:
                skipped.add(f"{there}:{i + 1}")
                continue
            written.add(identity)
            of = english[i] if file.source and english else None
            captions.append(
                Caption(identity, file.lang, texts[i], "mt" if file.engine else "human",
                        f"{key}#en.{of}" if of is not None else None, file.engine)
            )  # fmt: skip
        # an empty English line has no caption that a translation could name
        captions = [c if c.of in written else replace(c, of=None) for c in captions]
        yield Item(key, split, tuple(captions), image=name, where=f"{path}:{i + 1}")


def _names(path: Path) -> list[str]:
    """Return the pictures' names; behind `#` a COCO caption's number may stand."""
    names = []
    lines = read_lines(path)
    while lines and not lines[-1][1].strip():
        lines.pop()
    for number, line in lines:
        name = line.partition("#")[0].strip()
        if not name:
            raise DataError(f"{path}:{number}: no image name on this line; sentences are matched "
                            "by line number, so get the file again")  # fmt: skip
        if not name.lower().endswith(ENDING):
            raise DataError(f"{path}:{number}: expected an image name such as 1234567890.jpg, got "
                            f"{name[:60]!r}; if the file is cut off, get it again")  # fmt: skip
        names.append(name)
    return names


def _sentences(root: Path, file: Sentences, count: int, images: Path) -> tuple[Path, list[str]]:
    path = find(root, file.path)
    texts = [text.strip() for _, text in read_lines(path)]
    while len(texts) > count and not texts[-1]:
        texts.pop()
    if len(texts) != count:
        more = "more" if len(texts) > count else "fewer"
        raise DataError(
            f"{path}:{min(len(texts), count) + 1}: {len(texts):,} lines, {more} than the "
            f"{count:,} pictures of {images}; lines are matched by number, so one line too many "
            "or too few moves all captions behind it to wrong pictures. Get the file again"
        )
    return path, texts


def _english(
    root: Path, split: str, image_list: str, files: Sequence[Sentences], count: int, images: Path
) -> list[int | None] | None:
    """Return which English caption of each item is the one of task 1; None without English.

    Beside the five captions of task 2 it is the one with the same text.
    """
    own = [file for file in files if file.lang == "en" and not file.engine]
    if len(own) <= 1 or not any(file.source for file in files):
        return [0] * count if own else None
    task1 = Sentences(str(Path(image_list).parents[1] / f"raw/{split}.en"), split, "en")
    first = _sentences(root, task1, count, images)[1]
    written = [_sentences(root, file, count, images)[1] for file in own]
    return [
        next((k for k, texts in enumerate(written) if texts[i] == first[i]), None)
        for i in range(count)
    ]
