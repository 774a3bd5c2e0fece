"""How fast is a manifest read and written, and what do the checks cost beside bare JSON?

Without pictures; items of one, of five, and of five captions of which four are translations with
their signals. Bare JSON is `json.loads` of each line, which checks nothing and builds no item.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measure import Found, compare, markdown, number
from xlcm.data.manifest import Manifest, ManifestWriter, read_manifest
from xlcm.types import Caption, Item

PEERS: tuple[str, ...] = ()
TARGETS = {
    "items read in a second, one caption each": "at least 100,000",
    "items read in a second, five captions each": "at least 100,000",
    "items read in a second, four translations with signals each": "at least 100,000",
}
WANTED = 100_000
KINDS = {"one caption": (1, False), "five captions": (5, False), "four translations": (5, True)}
TEXT = "Two dogs run over the wet sand by the sea ."


def item(number: int, captions: int, translated: bool) -> Item:
    """Return an item; its first caption is by people, the others too or translations of it."""
    first = f"{number}#0"
    made = [Caption(first, "en", TEXT)]
    signals = {"back_chrf": 71.3, "length_ratio": 1.12, "copied": 0.0, "script": 1.0}
    for n in range(1, captions):
        if translated:
            made.append(Caption(f"{first}.{n}", "de", TEXT, "mt", first, "nllb", (), signals))
        else:
            made.append(Caption(f"{number}#{n}", "en", TEXT))
    return Item(str(number), "train", tuple(made), image=f"images/{number}.jpg")


def write(path: Path, items: int, captions: int, translated: bool) -> int:
    """Write a manifest; return the number of its captions."""
    with ManifestWriter(path) as writer:
        for n in range(items):
            writer.write(item(n, captions, translated))
    return writer.captions


def read(path: Path) -> int:
    """Read all items; return the number of their captions."""
    return sum(len(one.captions) for one in read_manifest(path))


def bare(path: Path) -> int:
    """Read the same lines as JSON and nothing more."""
    with open(path, "rb") as file:
        return sum(len(json.loads(line)["captions"]) for line in file)


def index(path: Path) -> int:
    """Index the file for random access, and read every tenth item."""
    manifest = Manifest(path, "train")
    return sum(len(manifest[n].captions) for n in range(0, len(manifest), 10))


def measure(*, small: bool) -> dict[str, Any]:
    """Return for each kind of items the figures of all ways, and items a CPU second."""
    items, rounds = (2_000, 2) if small else (100_000, 7)
    found: dict[str, Any] = {"items": items, "kinds": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name, (captions, translated) in KINDS.items():
            path = Path(folder) / "manifest.jsonl"
            expected = items * captions
            if write(path, items, captions, translated) != expected:
                raise AssertionError("the writer counts otherwise")
            if not read(path) == bare(path) == expected or index(path) * 10 != expected:
                raise AssertionError("the ways read different captions")
            if [one.captions for one in read_manifest(path)][-1] != item(
                items - 1, captions, translated
            ).captions:
                raise AssertionError("what is read is not what was written")
            found["kinds"][name] = compare(_ways(path, items, captions, translated), rounds=rounds)
    return found


def _ways(
    path: Path, items: int, captions: int, translated: bool
) -> dict[str, Callable[[], object]]:
    other = path.with_name("written.jsonl")
    return {
        "bare JSON": lambda: bare(path),
        "read_manifest": lambda: read(path),
        "Manifest, every tenth item": lambda: index(path),
        "ManifestWriter": lambda: write(other, items, captions, translated),
    }


def _per_second(found: dict[str, Any], kind: str, way: str) -> float:
    return 1000 * found["items"] / found["kinds"][kind][way]["cpu_ms"]


def reached(found: dict[str, Any]) -> dict[str, tuple[str, bool]]:
    """Return what was measured for each target, and whether that reaches it."""
    told = {}
    for target, kind in zip(TARGETS, KINDS, strict=True):
        speed, floor = (_per_second(found, kind, way) for way in ("read_manifest", "bare JSON"))
        said = number(speed) if speed >= WANTED else f"{number(speed)}; bare JSON {number(floor)}"
        told[target] = (said, speed >= WANTED)
    return told


def table(found: dict[str, Any]) -> str:
    """Return a table for each kind of items."""
    parts = []
    for kind, ways in found["kinds"].items():
        figures: Found = ways
        speed = number(_per_second(found, kind, "read_manifest"))
        parts.append(
            f"{found['items']:,} items, {kind} each; {speed} of them are read in a CPU second.\n\n"
            + markdown(figures, "bare JSON")
        )
    return "\n\n".join(parts)
