"""Reads a whole manifest, with its pictures and features, and counts everything that is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from xlcm.data.bad_rows import find_bad_rows, find_overlap, write_skipped
from xlcm.data.dataset import feature_key
from xlcm.data.faults import (
    KINDS,
    MAX_LENGTH,
    WARNINGS,
    Fault,
    Identities,
    caption_faults,
    chunks,
    feature_fault,
)
from xlcm.data.feature_formats import open_features
from xlcm.data.features import FeatureStore
from xlcm.data.looks import Looker, looker
from xlcm.data.manifest import DataError, lines, parse_item
from xlcm.types import Item

__all__ = ["CheckReport", "check_manifest", "find_bad_rows", "find_overlap", "write_skipped"]

EXAMPLES = 5


class Measures(Protocol):
    """What the check needs of a tokenizer."""

    max_tokens: int

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, before any cut."""
        ...


@dataclass
class CheckReport:
    """What a check found.

    Args:
        path: the manifest.
        items: lines that are items.
        captions: in these.
        splits: items a split.
        counts: findings a kind; the kinds are `xlcm.data.faults.KINDS`.
        examples: the first findings of each kind, as `file:line: what`.
        cut: by language: captions, how many the tokenizer cuts, the longest in tokens.
    """

    path: str
    items: int = 0
    captions: int = 0
    splits: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    cut: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(self, fault: Fault) -> None:
        """Count one finding."""
        self.counts[fault.kind] += 1
        known = self.examples.setdefault(fault.kind, [])
        if len(known) < EXAMPLES:
            known.append(str(fault))

    @property
    def faults(self) -> int:
        """How much is wrong, warnings not counted."""
        return sum(n for kind, n in self.counts.items() if kind not in WARNINGS)

    @property
    def warnings(self) -> int:
        """How much is noted but spoils nothing."""
        return sum(n for kind, n in self.counts.items() if kind in WARNINGS)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        found = {
            kind: {
                "count": self.counts[kind],
                "warning": kind in WARNINGS,
                "examples": self.examples[kind],
            }
            for kind in KINDS
            if self.counts[kind]
        }
        return {
            "path": self.path, "items": self.items, "captions": self.captions,
            "splits": dict(self.splits), "faults": self.faults, "warnings": self.warnings,
            "findings": found, "cut": self.cut,
        }  # fmt: skip


def check_manifest(
    path: str | Path,
    *,
    images: bool = True,
    image_root: str | Path | None = None,
    features: str | Path | None = None,
    tokenizer: Measures | None = None,
    max_length: int = MAX_LENGTH,
    contents: bool = False,
    decoder: bool = False,
    workers: int = 1,
    on_progress: Callable[[int], None] | None = None,
) -> CheckReport:
    """Check every line, caption, picture and feature; go on after each fault.

    Args:
        path: the manifest.
        images: whether to open and decode the pictures, and to open the videos: the times of all
            their frames are read, and one frame decoded.
        image_root: what their paths start from; the manifest's folder by default.
        features: a feature store, or features of another format; its values are checked too.
            Items need no picture then.
        tokenizer: to count the captions that it would cut.
        max_length: of a caption, in characters.
        contents: whether to compare the pictures' bytes, which finds the same picture under two
            names; needs `images`.
        decoder: whether to decode JPEGs as training does too, for what the decoder complains of;
            needs `images`.
        workers: processes that decode.
        on_progress: called with the bytes of the manifest that are done.

    Raises:
        FileNotFoundError: if there is no such manifest.
        DataError: if `features` can't be opened; for videos without PyAV.
    """
    check = _Check(
        CheckReport(str(path)),
        Path(path),
        Path(image_root) if image_root is not None else Path(path).parent,
        open_features(features) if features is not None else None,
        tokenizer,
        max_length,
        images,
        contents and images,
    )
    with looker(workers if images else 1, closely=decoder and images) as look:
        check.run(look, on_progress)
    return check.report


def check_captions(
    report: CheckReport, items: Sequence[Item], tokenizer: Measures | None, max_length: int
) -> None:
    """Count what is wrong with the captions of items, and how many a tokenizer would cut."""
    texts: dict[str, list[str]] = {}
    for item in items:
        for fault in caption_faults(item, item.captions, max_length=max_length):
            report.add(fault)
        if not item.captions:
            said = f"item {item.id!r} has no captions"
            report.add(Fault(item.where, item.id, None, "no_captions", said))
        for caption in item.captions:
            texts.setdefault(caption.lang, []).append(caption.text)
    if tokenizer is None:
        return
    for lang, group in texts.items():
        lengths = tokenizer.lengths(group)
        total = report.cut.setdefault(lang, {"captions": 0, "cut": 0, "longest": 0})
        total["captions"] += len(group)
        total["cut"] += sum(length > tokenizer.max_tokens for length in lengths)
        total["longest"] = max(total["longest"], *lengths)


@dataclass
class _Check:
    report: CheckReport
    path: Path
    image_root: Path
    store: FeatureStore | None
    tokenizer: Measures | None
    max_length: int
    images: bool
    contents: bool
    identities: Identities = field(default_factory=Identities)
    contents_by_line: dict[int, str] = field(default_factory=dict)

    def run(self, look: Looker, on_progress: Callable[[int], None] | None) -> None:
        for message in self.store.verify() if self.store is not None else ():
            self.report.add(Fault(str(self.path), "", None, "feature_unreadable", message))
        for chunk in chunks(self._items(on_progress)):
            check_captions(self.report, [i for _, i in chunk], self.tokenizer, self.max_length)
            self._visuals(chunk, look)
        self._identities()
        if on_progress is not None:
            on_progress(self.path.stat().st_size)

    def _items(self, on_progress: Callable[[int], None] | None) -> Iterator[tuple[int, Item]]:
        for number, offset, raw in lines(self.path):
            where = f"{self.path}:{number}"
            try:
                item = parse_item(raw, where)
            except DataError as error:
                message = str(error).removeprefix(f"{where}: ")
                self.report.add(Fault(where, "", None, error.kind, message))
                continue
            self.report.items += 1
            self.report.captions += len(item.captions)
            self.report.splits[item.split] += 1
            yield number, item
            if on_progress is not None and number % 1000 == 0:
                on_progress(offset)

    def _visuals(self, chunk: Sequence[tuple[int, Item]], look: Looker) -> None:
        with_image = [(n, i) for n, i in chunk if self.images and i.image is not None]
        tasks = [(str(self.image_root / str(i.image)), str(i.image), self.contents)
                 for _, i in with_image]  # fmt: skip
        contents = {}
        for (number, item), seen in zip(with_image, look(tasks)):
            if seen.content is not None:
                contents[number] = seen.content
            if seen.kind is not None:
                self.report.add(Fault(item.where, item.id, None, seen.kind, seen.message))
        clips = [item for _, item in chunk if self.images and item.video is not None]
        files = [(str(self.image_root / str(item.video)), str(item.clip), item.segment)
                 for item in clips]  # fmt: skip
        for item, seen in zip(clips, look.videos(files)):
            if seen.kind is not None:
                self.report.add(Fault(item.where, item.id, None, seen.kind, seen.message))
        for number, item in chunk:
            self._other_visuals(item)
            self.identities.add(item, number, contents.get(number))
        self.contents_by_line.update(contents)

    def _other_visuals(self, item: Item) -> None:
        named = (item.image, item.video, item.features)
        if self.store is None and all(name is None for name in named):
            said = f"item {item.id!r} has neither image nor video nor features"
            self.report.add(Fault(item.where, item.id, None, "no_visual", said))
        fault = feature_fault(item, self.store, feature_key(item))
        if fault is not None:
            self.report.add(fault)

    def _identities(self) -> None:
        suspects = self.identities.suspects()
        for number, _, raw in lines(self.path) if suspects else ():
            if number in suspects:
                item = parse_item(raw, f"{self.path}:{number}")
                for fault in self.identities.judge(item, self.contents_by_line.get(number)):
                    self.report.add(fault)
