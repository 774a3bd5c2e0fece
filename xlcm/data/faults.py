"""What can be wrong with an item, one kind of fault a word; used by the check and by training."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from xlcm.data.languages import language_fault
from xlcm.data.manifest import DataError
from xlcm.types import Caption, Item

if TYPE_CHECKING:
    from xlcm.data.features import FeatureStore

KINDS = {
    "bad_line": "a line is no item: JSON, keys or types",
    "not_utf8": "a line is not UTF-8",
    "duplicate_item": "two items have one id",
    "duplicate_caption": "two captions have one id",
    "split_overlap": "one id, file, key or picture in two splits",
    "of_nowhere": "`of` names no caption",
    "of_other_item": "`of` names a caption of another item",
    "relevant_nowhere": "`relevant` names no item of the caption's split",
    "unknown_language": "no BCP 47 code",
    "caption_empty": "a caption without text",
    "caption_too_long": "a caption over the length",
    "control_character": "NUL or another control character",
    "lone_surrogate": "half a character, which UTF-8 can't hold",
    "image_missing": "no image, or no such file",
    "image_empty": "a file of 0 bytes",
    "image_undecodable": "truncated, damaged, or no picture",
    "image_too_large": "over the decompression-bomb limit",
    "video_missing": "no video, or no such file",
    "video_empty": "a file of 0 bytes, or without a frame",
    "video_undecodable": "truncated, damaged, or no video",
    "duplicate_key": "two pictures under one key of a feature store",
    "feature_missing": "a key that the store lacks",
    "feature_not_finite": "NaN or infinity in features",
    "feature_unreadable": "a shard is missing or damaged",
    "shard_truncated": "a tar shard is cut, or its end is zeros",
    "image_damaged": "a JPEG that is decoded, with complaints",
    "image_converted": "a mode that the loader converts",
    "image_shared": "one file or picture in two items of a split",
    "line_break": "a tab or line break in a caption",
    "bidi_control": "a control that turns the writing direction",
    "replacement_character": "U+FFFD, the trace of a wrong decoding",
    "no_captions": "an item without captions",
    "no_visual": "an item without image, video or features",
}
"""Every kind of fault, in words."""

WARNINGS = frozenset({
    "image_damaged", "image_converted", "image_shared", "line_break", "bidi_control",
    "replacement_character", "no_captions", "no_visual",
})  # fmt: skip
"""Kinds that are noted but spoil nothing."""

MAX_LENGTH = 2000  # characters; the longest of the usual caption sets has some 600
_BLANK = " \t\r\n\v\f\u00a0\u00ad\u200b\u200c\u200d\u2060\u3000\ufeff"
_ODD = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufffd\ud800-\udfff]")


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Args:
        where: `file:line`.
        item: id of the item; empty if the line can't be read.
        caption: id of the caption, where the fault is one caption's.
        kind: of `KINDS`.
        message: for people, without `where`.
    """

    where: str
    item: str
    caption: str | None
    kind: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


def caption_faults(
    item: Item, captions: Iterable[Caption], *, max_length: int = MAX_LENGTH
) -> Iterator[Fault]:
    """Yield what is wrong with captions by themselves, each kind once a caption.

    Args:
        item: theirs.
        captions: those of interest.
        max_length: in characters.
    """
    for caption in captions:
        for kind, message in _text_faults(caption, max_length):
            said = f"caption {caption.id!r} {message}"
            yield Fault(item.where, item.id, caption.id, kind, said)


def _text_faults(caption: Caption, max_length: int) -> Iterator[tuple[str, str]]:
    text = caption.text
    if fault := language_fault(caption.lang):
        yield "unknown_language", f"has a wrong lang: {fault}"
    if not text.strip(_BLANK):
        yield "caption_empty", "is empty"
    if len(text) > max_length:
        yield "caption_too_long", f"has {len(text):,} characters, more than {max_length:,}"
    found: dict[str, str] = {}
    for match in _ODD.finditer(text):
        found.setdefault(_odd_kind(match[0]), f"has U+{ord(match[0]):04X} at {match.start()}")
    yield from found.items()


def _odd_kind(character: str) -> str:
    if character in "\t\n\r":
        return "line_break"
    if character == "\ufffd":
        return "replacement_character"
    if "\ud800" <= character <= "\udfff":
        return "lone_surrogate"
    return "bidi_control" if character >= "\u202a" else "control_character"


# -- ids ----------------------------------------------------------------------------------------


class Digests:
    """64-bit digests of names with the line of each: finds repeats in 12 bytes a name."""

    def __init__(self) -> None:
        self._digests, self._lines = array("q"), array("i")
        self._sorted: np.ndarray | None = None

    def add(self, name: str, line: int) -> None:
        """Note that `name` stands on `line`."""
        self._sorted = None
        self._digests.append(hash(name))
        self._lines.append(line)

    def repeated_on(self) -> set[int]:
        """Return the lines that hold a name which occurs more than once."""
        digests = np.array(self._digests)
        ordered = np.sort(digests)
        repeated = ordered[1:][ordered[1:] == ordered[:-1]]
        if not len(repeated):
            return set()
        return set(np.array(self._lines)[np.isin(digests, repeated)].tolist())

    def __contains__(self, name: str) -> bool:
        if self._sorted is None:
            self._sorted = np.sort(np.array(self._digests))
        at = int(np.searchsorted(self._sorted, hash(name)))
        return at < len(self._sorted) and int(self._sorted[at]) == hash(name)


class Identities:
    """Finds duplicate ids, overlapping splits and dangling `of` in two passes over the items.

    First `add` every item; then `judge`, in the same order, the items on the lines that
    `suspects` returns. Only digests are kept in between, so a million items fit in some 100 MB.
    """

    def __init__(self) -> None:
        self._items, self._captions, self._places = Digests(), Digests(), Digests()
        self._members = Digests()  # of splits
        self._wandering: set[int] = set()
        self._videos: dict[int, tuple[int, str]] = {}  # digest of the file -> first line, split
        self._suspects: set[int] = set()
        self._seen_items: dict[str, tuple[str, str]] = {}
        self._seen_captions: dict[str, str] = {}
        self._seen_places: dict[str, tuple[str, str]] = {}
        self._seen_videos: dict[str, tuple[str, str]] = {}

    def add(self, item: Item, line: int, content: str | None = None) -> None:
        """Note an item.

        Args:
            item: any.
            line: a number that grows from item to item.
            content: digest of the picture's bytes, where pictures are compared too.
        """
        self._items.add(item.id, line)
        self._members.add(f"{item.split}\0{item.id}", line)
        own = {caption.id for caption in item.captions}
        for caption in item.captions:
            self._captions.add(caption.id, line)
            if caption.relevant or (
                caption.of is not None and (caption.of not in own or caption.of == caption.id)
            ):
                self._wandering.add(line)
        for place in _places(item, content):
            self._places.add(place, line)
        if item.video is not None:
            first = self._videos.setdefault(hash(item.video), (line, item.split))
            if first[1] != item.split:  # segments of one video are in two splits
                self._wandering.update((first[0], line))

    def suspects(self) -> set[int]:
        """Return the lines that may be at fault, or that others repeat."""
        found = [d.repeated_on() for d in (self._items, self._captions, self._places)]
        return set().union(self._wandering, *found)

    def judge(self, item: Item, content: str | None = None) -> Iterator[Fault]:
        """Yield what is wrong with a suspect, the first of several equals being right."""
        overlaps = False
        first = self._seen_items.setdefault(item.id, (item.where, item.split))
        if first[0] != item.where:
            overlaps = first[1] != item.split
            kind = "split_overlap" if overlaps else "duplicate_item"
            yield Fault(item.where, item.id, None, kind,
                        f"item id {item.id!r} {_also(first, item)}")  # fmt: skip
        for place in _places(item, content):
            first = self._seen_places.setdefault(place, (item.where, item.split))
            if first[0] != item.where and not overlaps:
                overlaps = first[1] != item.split
                kind = "split_overlap" if overlaps else "image_shared"
                yield Fault(item.where, item.id, None, kind, f"{place} {_also(first, item)}")
        if item.video is not None:
            first = self._seen_videos.setdefault(item.video, (item.where, item.split))
            if first[1] != item.split and not overlaps:
                yield Fault(item.where, item.id, None, "split_overlap",
                            f"video {item.video!r} {_also(first, item)}")  # fmt: skip
        yield from self._judge_captions(item)

    def _judge_captions(self, item: Item) -> Iterator[Fault]:
        own: set[str] = set()
        for caption in item.captions:
            first = self._seen_captions.setdefault(caption.id, item.where)
            if first != item.where or caption.id in own:
                yield Fault(item.where, item.id, caption.id, "duplicate_caption",
                            f"caption id {caption.id!r} was used before, at {first}")  # fmt: skip
            own.add(caption.id)
            for other in caption.relevant:
                if f"{item.split}\0{other}" not in self._members:
                    yield Fault(item.where, item.id, caption.id, "relevant_nowhere",
                                f"caption {caption.id!r} has the relevant item {other!r}, which "
                                f"split {item.split!r} doesn't hold")  # fmt: skip
        strangers = {
            c.id: c.of
            for c in item.captions
            if c.of is not None and (c.of not in own or c.of == c.id)
        }
        for identity, of in strangers.items():
            if of == identity:
                kind, what = "of_nowhere", "is said to be made of itself"
            elif of in self._captions:
                kind, what = "of_other_item", f"is made of {of!r}, a caption of another item"
            else:
                kind, what = "of_nowhere", f"is made of {of!r}, which no caption is called"
            yield Fault(item.where, item.id, identity, kind, f"caption {identity!r} {what}")


def _places(item: Item, content: str | None) -> Iterator[str]:
    for name, value in (("image", item.image), ("video", item.clip), ("features", item.features)):
        if value is not None:
            yield f"{name} {value!r}"
    if content is not None:
        yield f"the same picture (blake2b {content})"


def _also(first: tuple[str, str], item: Item) -> str:
    other = f" in split {first[1]!r}, here in {item.split!r}" if first[1] != item.split else ""
    return f"is also at {first[0]}{other}"


# -- features and walking ------------------------------------------------------------------------


def chunks(items: Iterable[tuple[int, Item]], size: int = 2048) -> Iterator[list[tuple[int, Item]]]:
    """Yield lists of at most `size`."""
    stream = iter(items)
    while chunk := list(islice(stream, size)):
        yield chunk


def feature_fault(item: Item, store: FeatureStore | None, key: str) -> Fault | None:
    """Return what is wrong with an item's features, if anything."""
    if store is None:
        return None
    try:
        if store[key].isfinite().all():
            return None
        kind, message = "feature_not_finite", f"features {key!r} hold NaN or infinity"
    except DataError as error:
        kind, message = error.kind, str(error)
    return Fault(item.where, item.id, None, kind, message)
