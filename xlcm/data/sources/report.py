"""What an import counted, beside what was published, and which pictures lie in two splits."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from heapq import nsmallest
from pathlib import Path
from typing import Any

import numpy as np

from xlcm.data.import_report import report_path, write_report
from xlcm.data.manifest import DataError, lines, read_manifest
from xlcm.data.sources.base import Expected, Need, Plan
from xlcm.data.sources.image_paths import SHOWN
from xlcm.data.tables import say, table
from xlcm.types import Item

OWN = frozenset({"coco-json", "csv", "folder", "hf", "jsonl", "lines"})
"""Readers of a user's own files: only the ids can say which pictures they show."""

# quotes inside a JSON string are escaped, so these are keys; the captions come behind them
_PATHS = re.compile(rb', "(?:image|video)": "(?:[^"\\]|\\.)*"|, "segment": \[[^]]*\]')
_CAPTIONS = b', "captions": ['


class Keys:
    """Keys of pictures as 64-bit digests: 8 bytes each, where names of millions fill the memory."""

    def __init__(self) -> None:
        self._digests = array("q")
        self._unique: np.ndarray | None = None

    def add(self, key: str) -> None:
        """Note a key."""
        self._unique = None
        self._digests.append(hash(key))

    @property
    def unique(self) -> np.ndarray:
        """The digests, each once, sorted; int64."""
        if self._unique is None:
            self._unique = np.unique(np.array(self._digests, dtype=np.int64))
        return self._unique

    @property
    def repeated(self) -> int:
        """How many keys were noted that had been noted before."""
        return len(self._digests) - len(self)

    def __len__(self) -> int:
        return len(self.unique)

    def __contains__(self, key: str) -> bool:
        return bool(np.isin(hash(key), self.unique))

    def shared(self, other: Keys) -> np.ndarray:
        """Return the digests that both have, sorted."""
        return np.intersect1d(self.unique, other.unique, assume_unique=True)


class Report:
    """Counts while items pass, then shows and saves it.

    Args:
        plan: with the published counts.
        lacking: published files that are not there.
    """

    def __init__(self, plan: Plan, lacking: Sequence[Need] = ()) -> None:
        self.plan = plan
        self.lacking = lacking
        self.items: Counter[str] = Counter()  # read, by split
        self.captions: Counter[tuple[str, str, str]] = Counter()  # split, lang, origin
        self.bare: Counter[str] = Counter()  # items without captions
        self.written: Counter[str] = Counter()
        self.keys: dict[str, Keys] = {}
        self.digests: dict[str, str] = {}
        self.leaks: list[dict[str, Any]] = []
        self.against: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self._order: list[str] = []

    def read(self, item: Item) -> None:
        """Count an item as the source gave it."""
        self.items[item.split] += 1
        self.bare[item.split] += not item.captions
        for caption in item.captions:
            self.captions[item.split, caption.lang, caption.origin] += 1

    def wrote(self, item: Item) -> None:
        """Count an item that is in the manifest; call it in the manifest's order."""
        self.written[item.split] += 1
        self._order.append(item.split)
        self.keys.setdefault(item.split, Keys()).add(self._key(item))

    def _key(self, item: Item) -> str:
        return self.plan.key(item) if self.plan.key else item.id

    def finish(
        self, out: str | Path, notes: Sequence[str], against: Mapping[str, Mapping[str, Keys]]
    ) -> None:
        """Digest the manifest's lines and compare the splits with each other and with others.

        A path says where one person keeps the picture, and is left out of the digest; so is the
        segment of a video, which goes with the path and stands in the id.
        """
        digests = {split: hashlib.sha256() for split in self.written}
        for split, (_, _, raw) in zip(self._order, lines(out), strict=True):
            head, captions, rest = raw.partition(_CAPTIONS)
            digests[split].update(_PATHS.sub(b"", head) + captions + rest)
        self.digests = {split: digest.hexdigest() for split, digest in digests.items()}
        splits = list(self.keys)
        found: list[tuple[dict[str, Any], np.ndarray]] = []
        for i, one in enumerate(splits):
            for other in splits[i + 1 :]:
                found += self._compare(self.leaks, one, self.keys[other], split=other)
        for path, theirs in against.items():
            for one in splits:
                for other, keys in theirs.items():
                    found += self._compare(self.against, one, keys, manifest=path, split=other)
        if found:
            self._name(found, out)
        self.notes = [*notes, *self.plan.notes]

    def _compare(
        self, to: list[dict[str, Any]], one: str, keys: Keys, **other: str
    ) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
        shared = self.keys[one].shared(keys)
        if len(shared):
            share = {"pictures": len(shared), "of": len(self.keys[one])}
            to.append({"of_split": one, **other, **share, "first": []})
            yield to[-1], shared

    def _name(self, found: list[tuple[dict[str, Any], np.ndarray]], out: str | Path) -> None:
        """Read the manifest once more, for the names that digests stand for."""
        names: list[set[str]] = [set() for _ in found]
        for item in read_manifest(out):
            key = self._key(item)
            for (row, shared), named in zip(found, names):
                if row["of_split"] != item.split or key in named:
                    continue
                at = int(np.searchsorted(shared, hash(key)))
                if at < len(shared) and shared[at] == hash(key):
                    named.add(key)
                    if len(named) > 1000:
                        named.intersection_update(nsmallest(SHOWN, named))
        for (row, _), named in zip(found, names):
            row["first"] = nsmallest(SHOWN, named)

    @property
    def rows(self) -> list[tuple[str, str, int, int | None]]:
        """Split, what, number, published number (None: not known)."""
        made: list[tuple[str, str, int, int | None]] = []
        expected = {**dict.fromkeys(self.items, Expected()), **self.plan.expected}
        for split, published in expected.items():
            made.append((split, "items", self.items[split], published.items))
            counts: Counter[str] = Counter()
            for (name, lang, origin), n in self.captions.items():
                if name == split:
                    counts[f"{lang} {origin}"] += n
                    counts[lang] += n
            told = published.captions
            rest = {label for label in counts if " " in label and label.split()[0] not in told}
            for label in sorted({*told, *rest}):
                made.append((split, label, counts[label], told.get(label)))
        return made

    @property
    def good(self) -> bool:
        """Whether counts are as published and no picture is in two splits."""
        same = all(told is None or told == n for _, _, n, told in self.rows)
        return same and not self.leaks

    def show(self) -> None:
        """Print it."""
        shown = [
            [split, what, n, _verdict(n, told),
             f"{self.written[split]:,} written" if what == "items"
             and self.written[split] != n else ""]
            for split, what, n, told in self.rows
        ]  # fmt: skip
        table(self.plan.title, ["split", "what", "read", "published", ""], shown)
        if self.lacking:
            named = ", ".join(need.path for need in self.lacking[:SHOWN])
            more = f" and {n:,} more" if (n := len(self.lacking) - SHOWN) > 0 else ""
            say(f"MISSING: {len(self.lacking):,} published files are not there, and nothing of "
                f"them was read: {named}{more}. Get them by hand: {self.plan.get}")  # fmt: skip
        for why, n in self.plan.skipped.counts.items():
            say(f"{n:,} {why} were left out: {', '.join(self.plan.skipped.places[why])}")
        for split, n in self.bare.items():
            if n:
                say(f"{n:,} items of {split} have no captions")
        for split, keys in self.keys.items():
            if self.plan.clips and keys.repeated:
                say(f"{self.written[split]:,} items of {split} are clips of {len(keys):,} videos")
            elif n := keys.repeated:
                say(f"{n:,} items of {split} show a picture that the split holds already")
        for leak in self.leaks:
            say(f"LEAK: {_told(leak)} are in {leak['split']} too: {', '.join(leak['first'])}")
        for leak in self.against:
            say(f"{_told(leak)} are in {leak['split']} of {leak['manifest']}: "
                + ", ".join(leak["first"]))  # fmt: skip
        for note in self.notes:
            say(f"Note: {note}")
        say(f"Terms: {self.plan.terms}\nCite: {self.plan.cite}")

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        splits: dict[str, Any] = {
            split: {
                "items": self.items[split], "written": self.written[split],
                "sha256": self.digests.get(split), "without_captions": self.bare[split],
                "pictures": len(self.keys.get(split, ())),
            }
            for split in self.items
        }  # fmt: skip
        for split, what, n, told in self.rows:
            counts = splits.setdefault(split, {}).setdefault("counts", [])
            counts.append({"what": what, "read": n, "published": told})
        plan = self.plan
        return {
            "source": plan.name, "title": plan.title, "as_published": self.good,
            "splits": splits, "leaks": self.leaks, "against": self.against,
            "missing": [{"path": need.path, "what": need.what} for need in self.lacking],
            "get": plan.get,
            "left_out": {
                why: {"count": n, "first": plan.skipped.places[why]}
                for why, n in plan.skipped.counts.items()
            },
            "notes": self.notes, "terms": plan.terms, "cite": plan.cite, **plan.more(),
        }  # fmt: skip

    def save(self, manifest: str | Path) -> None:
        """Write it as JSON beside the manifest."""
        write_report(manifest, self.to_dict())


def _verdict(n: int, told: int | None) -> str:
    if told is None:
        return "not known"
    return "as published" if n == told else f"expected {told:,}"


def _told(leak: Mapping[str, Any]) -> str:
    return f"{leak['pictures']:,} of {leak['of']:,} pictures of {leak['of_split']}"


# -- other manifests ----------------------------------------------------------------------------


def overlaps(plan: Plan, paths: Sequence[str]) -> dict[str, dict[str, Keys]]:
    """Return the keys of other manifests' pictures, by manifest and split.

    A manifest whose report names its source is read by that source's `picture_key`; any other, and
    a user's own files, by this plan's key, as if it came from the same source. When this plan
    reads a user's own files, ids are compared with ids.

    Raises:
        DataError: for what is no manifest.
    """
    keys: dict[str, dict[str, Keys]] = {}
    for path in paths:
        key = plan.key or _own_id if plan.name in OWN else _key_of(path) or plan.key or _own_id
        if not Path(path).is_file():
            raise DataError(f"--against {path}: no such manifest")
        if plan.name not in OWN and not report_path(path).is_file():
            say(f"--against {path}: no report of its import lies beside it, so its ids are read "
                f"like those of {plan.title}")  # fmt: skip
        splits = keys.setdefault(path, {})
        for item in read_manifest(path):
            try:
                name = key(item)
            except (ValueError, LookupError):  # an id of another kind than this source's
                name = item.id
            splits.setdefault(item.split, Keys()).add(name)
    return keys


def _key_of(path: str) -> Callable[[Item], str] | None:
    from xlcm.data.sources import SOURCES

    report = report_path(path)
    if not report.is_file():
        return None
    try:
        told = json.loads(report.read_text(encoding="utf-8"))
        source, title = told["source"], told.get("title")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{report}: no report of an import: {error!r}") from error
    if source not in SOURCES or source in OWN:
        return None
    module = importlib.import_module(SOURCES[source])
    if hasattr(module, "key_of_title"):  # one source of several sets
        return module.key_of_title(title)
    return getattr(module, "picture_key", _own_id)


def _own_id(item: Item) -> str:
    return item.id
