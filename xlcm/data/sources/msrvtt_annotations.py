"""MSR-VTT's annotation files, translations by sentence number, and the clips of each split."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xlcm.data.manifest import DataError
from xlcm.data.sources.base import Skipped
from xlcm.data.sources.image_paths import ANY_VIDEO
from xlcm.data.sources.tagged_files import read_sentences, read_split_ids
from xlcm.data.sources.text_lines import find, read_json
from xlcm.types import Caption, Item

OFFICIAL = {"train": "train", "validate": "val", "val": "val", "test": "test"}


@dataclass
class Annotations:
    """All clips with their captions, and the sentences of a test.

    Args:
        skipped: told of captions without text, and of translations that don't exist.

    Attributes:
        parts: official part by clip, in the order of the files.
        captions: by clip; every one of English before its translations.
        tests: translations of one-sentence tests, by clip.
    """

    skipped: Skipped
    parts: dict[str, str] = field(default_factory=dict)
    where: dict[str, str] = field(default_factory=dict)
    captions: dict[str, list[Caption]] = field(default_factory=dict)
    tests: dict[str, list[Caption]] = field(default_factory=dict)
    _clip_of: dict[Any, tuple[str, str]] = field(default_factory=dict)  # sen_id -> clip, caption
    _langs: dict[str, None] = field(default_factory=dict)  # of translations
    _empty: set[tuple[str, str]] = field(default_factory=set)  # lang, caption: translated as ""

    def add(self, path: Path) -> None:
        """Read an annotation file.

        Raises:
            DataError: naming file and sentence.
        """
        videos, sentences = _official(path)
        for i, row in enumerate(videos):
            where = f"{path}: videos[{i}]"
            clip, part = row.get("video_id"), OFFICIAL.get(str(row.get("split")))
            if not isinstance(clip, str) or part is None:
                raise DataError(
                    f"{where}: expected a 'video_id' and a 'split' of train, validate or test, got "
                    f"{clip!r}, {row.get('split')!r}"
                )
            if clip in self.parts:
                raise DataError(f"{where}: clip {clip!r} is also {self.where[clip]}")
            self.parts[clip], self.where[clip] = part, where
            self.captions[clip] = []
        for i, row in enumerate(sentences):
            where = f"{path}: sentences[{i}]"
            clip, text = _sentence(row, self.parts, where)
            if not text:
                self.skipped.add(where)
                continue
            number = row.get("sen_id")
            if number is not None and type(number) not in (int, str):
                raise DataError(f"{where}: sen_id must be a number, got {number!r}")
            if number is not None and number in self._clip_of:
                raise DataError(f"{where}: sen_id {number} is there twice")
            made = Caption(f"{clip}#en.{len(self.captions[clip])}", "en", text)
            self._clip_of[number] = clip, made.id
            self.captions[clip].append(made)

    def translate(self, path: Path, lang: str, engine: str | None) -> None:
        """Read translations that carry the sentences' numbers.

        Raises:
            DataError: for a number that no sentence or another clip has, or that is there twice.
        """
        self._langs[lang] = None
        done: set[str] = set()
        for i, row in enumerate(_official(path)[1]):
            where = f"{path}: sentences[{i}]"
            clip, text = _sentence(row, self.parts, where)
            number = row.get("sen_id")
            hashable = type(number) in (int, str)
            owner, of = self._clip_of.get(number, ("", "")) if hashable else ("", "")
            if owner != clip:
                raise DataError(f"{where}: sen_id {number} of {clip} is not there in English; the "
                                "files don't belong together")  # fmt: skip
            if not text:
                self.skipped.add(where)
                self._empty.add((lang, of))
                continue
            identity = f"{clip}#{lang}.mt.{of.rpartition('.')[2]}"
            if identity in done:
                raise DataError(f"{where}: sen_id {number} is there twice")
            done.add(identity)
            self.captions[clip].append(Caption(identity, lang, text, "mt", of, engine))

    def add_test(self, path: Path, lang: str, engine: str | None) -> None:
        """Read translations of the test of 1k-A."""
        self._langs[lang] = None
        for clip, (where, text) in read_test(path).items():
            if text:
                made = Caption(
                    f"{clip}#{lang}.mt.test", lang, text, "mt", f"{clip}#en.test", engine
                )
                self.tests.setdefault(clip, []).append(made)
            else:
                self.skipped.add(where)
                self._empty.add((lang, f"{clip}#en.test"))

    def items(self, args: argparse.Namespace) -> Iterator[Item]:
        """Yield the clips of the split that the options name; a listed test keeps its order.

        Raises:
            DataError: for a listed clip that has no annotations, or is in two lists.
        """
        if args.split == "full":
            self._refuse_tests("--split full")
            for split in ("train", "val", "test"):
                yield from self._some([c for c, part in self.parts.items() if part == split], split)
            return
        if args.split == "1k-B":
            path = Path(args.test_ids)
            train = read_split_ids(args.train_ids)
            test = dict.fromkeys(read_split_ids(path), ("", ""))
            if path.suffix == ".csv":
                test = read_test(path)
        else:
            path = find(args.root, args.test_csv)
            test = read_test(path)
            parts = ("train", "val") if args.split.endswith("7k") else ("train", "val", "test")
            train = [c for c, part in self.parts.items() if part in parts and c not in test]
        for clip in [*train, *test]:
            if clip not in self.parts:
                raise DataError(f"{path}: clip {clip!r} has no annotations; lists and annotations "
                                "don't belong together")  # fmt: skip
        if both := [clip for clip in train if clip in test]:
            raise DataError(f"{path}: clip {both[0]!r} is in the training list too")
        sentences = test if any(where for where, _ in test.values()) else None
        if sentences is None:
            self._refuse_tests(f"{path} has no sentences")
        yield from self._some(train, "train")
        yield from self._some(list(test), "test", sentences)
        if strange := [clip for clip in self.tests if clip not in test]:
            raise DataError(f"--translations: clip {strange[0]!r} is not in the test {path}")

    def _refuse_tests(self, why: str) -> None:
        """Refuse translations of one-sentence tests where the test has all its sentences."""
        if self.tests:
            raise DataError(f"--translations: a .csv translates a test of one sentence a clip, but "
                            f"{why}; give a .json with sen_id")  # fmt: skip

    def _some(
        self, clips: list[str], split: str, test: Mapping[str, tuple[str, str]] | None = None
    ) -> Iterator[Item]:
        for clip in clips:
            captions, where = self.captions[clip], self.where[clip]
            if test is not None:
                where, text = test[clip]
                if text:
                    captions = [Caption(f"{clip}#en.test", "en", text), *self.tests.get(clip, ())]
                else:
                    captions = []
                    self.skipped.add(where)
            self._tell_gaps(captions, where)
            yield Item(clip, split, tuple(captions), video=clip + ANY_VIDEO, where=where)

    def _tell_gaps(self, captions: Sequence[Caption], where: str) -> None:
        """Count English captions without a translation, in each language that some have one in."""
        there = {(caption.lang, caption.of) for caption in captions} if self._langs else set()
        for lang in self._langs:
            for caption in captions:
                pair = lang, caption.id
                if caption.lang == "en" and pair not in there and pair not in self._empty:
                    why = f"translations into {lang} that don't exist"
                    self.skipped.add(f"{where} ({caption.id})", why)


def read_test(path: Path) -> dict[str, tuple[str, str]]:
    """Return (`file:line`, sentence) of each clip, in order.

    Raises:
        DataError: for a clip that is there twice.
    """
    found: dict[str, tuple[str, str]] = {}
    for where, clip, text in read_sentences(path):
        if clip in found:
            raise DataError(f"{where}: clip {clip!r} is also at {found[clip][0]}")
        found[clip] = where, text
    return found


def _official(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    data = read_json(path)
    if not isinstance(data, dict) or not isinstance(data.get("sentences"), list):
        raise DataError(f"{path}: expected {{'videos': [...], 'sentences': [...]}}")
    rows = data.get("videos", []), data["sentences"]
    for name, own in zip(("videos", "sentences"), rows, strict=True):
        if not isinstance(own, list) or not all(isinstance(row, dict) for row in own):
            raise DataError(f"{path}: {name!r} must be a list of objects")
    return rows


def _sentence(row: Mapping[str, Any], known: Mapping[str, str], where: str) -> tuple[str, str]:
    clip, text = row.get("video_id"), row.get("caption")
    if not isinstance(clip, str) or not isinstance(text, str):
        raise DataError(f"{where}: expected 'video_id' and 'caption', got {', '.join(row)}")
    if clip not in known:
        raise DataError(f"{where}: clip {clip!r} is not under 'videos'")
    return clip, text.strip()
