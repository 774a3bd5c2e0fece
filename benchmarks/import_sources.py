"""How long does it take to import Multi30K with four languages, and what do the checks cost?

`xlcm` is the whole command in a fresh process, from start to exit: every check, the digests, the
report. `bare` is a loop without a single check: read lines, join by number, `json.dumps`, write.
The files are those of https://github.com/multi30k/dataset in `../shared/data/captions/multi30k`.
"""

from __future__ import annotations

import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.measure import number
from xlcm.data.manifest import read_manifest
from xlcm.data.sources.multi30k import IMAGES, TASK1

PEERS: tuple[str, ...] = ()
TARGETS = {
    "importing Multi30K with four languages": "under 10 s",
    "items of that manifest read in a CPU second": "at least 100,000",
}
LANGS = ("en", "de", "fr", "cs")
ROOT = Path(__file__).resolve().parents[2] / "shared" / "data" / "captions" / "multi30k"
COMMAND = [sys.executable, "-c", "from xlcm.cli import main; raise SystemExit(main())",
           "data", "import", "multi30k", "--langs", *LANGS]  # fmt: skip


def imported(out: Path) -> None:
    """Run the command."""
    command = [*COMMAND, "--root", str(ROOT), "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def bare(out: Path) -> None:
    """Join and write without checks."""
    with open(out, "w", encoding="utf-8") as file:
        for split in IMAGES:
            texts = {lang: lines(ROOT / f"task1/raw/{split}.{lang}")
                     for lang in LANGS if split in TASK1[lang]}  # fmt: skip
            names = lines(ROOT / f"task1/image_splits/{split}.txt")
            for name, *captions in zip(names, *texts.values()):
                key = name.partition(".")[0]
                row = {"id": key, "split": split, "captions": [
                    {"id": f"{key}#{lang}", "lang": lang, "text": text, "origin": "human"}
                    for lang, text in zip(texts, captions)]}  # fmt: skip
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file or of its gzipped twin."""
    plain = path.is_file()
    with (
        open(path, encoding="utf-8", newline="\n")
        if plain
        else gzip.open(f"{path}.gz", "rt", encoding="utf-8", newline="\n") as file
    ):
        for line in file:
            yield line.rstrip("\n")


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return CPU seconds, those of child processes included, and seconds on the clock."""
    cpu, wall = sum(os.times()[:4]), time.perf_counter()
    work()
    return sum(os.times()[:4]) - cpu, time.perf_counter() - wall


def texts_of(path: Path) -> list[list[str]]:
    """Return the captions of each item of a manifest; xlcm takes blanks off their ends."""
    return [[caption.text.strip() for caption in item.captions] for item in read_manifest(path)]


def measure(*, small: bool) -> dict[str, Any]:
    """Return seconds, medians of rounds in which each way runs once."""
    if not ROOT.is_dir():
        return {"missing": "../shared/data/captions/multi30k is not here"}
    taken: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        out, plain = Path(folder) / "m.jsonl", Path(folder) / "bare.jsonl"
        ways: dict[str, Callable[[], object]] = {
            "xlcm": lambda: imported(out),
            "bare": lambda: bare(plain),
            "reading it back": lambda: sum(1 for _ in read_manifest(out)),
        }
        for _ in range(1 if small else 5):
            for name, work in ways.items():
                taken.setdefault(name, []).append(timed(work))
        found = texts_of(out)
        if sorted(found) != sorted(texts_of(plain)):
            raise AssertionError("the ways write different captions")
    seconds = {
        name: [round(statistics.median(values), 3) for values in zip(*pairs)]
        for name, pairs in taken.items()
    }
    return {"items": len(found), "captions": sum(map(len, found)), "langs": list(LANGS),
            "rounds": len(taken["xlcm"]), "cpu_and_wall_s": seconds}  # fmt: skip


def reached(found: dict[str, Any]) -> dict[str, tuple[str, bool]]:
    """Return what was measured for each target, and whether that reaches it."""
    if "missing" in found:
        return {}
    wall = found["cpu_and_wall_s"]["xlcm"][1]
    speed = found["items"] / found["cpu_and_wall_s"]["reading it back"][0]
    return dict(zip(TARGETS, [(f"{wall:.1f} s", wall < 10), (number(speed), speed >= 100_000)]))


def table(found: dict[str, Any]) -> str:
    """Return seconds by way."""
    if "missing" in found:
        return f"Not measured: {found['missing']}."
    rows = [f"| {name} | {cpu:.2f} | {wall:.2f} |"
            for name, (cpu, wall) in found["cpu_and_wall_s"].items()]  # fmt: skip
    speed = number(found["items"] / found["cpu_and_wall_s"]["reading it back"][0])
    return "\n".join([
        f"{found['items']:,} items with {found['captions']:,} captions in "
        f"{', '.join(found['langs'])}; reading back is {speed} items a CPU second.", "",
        "| way | CPU s, child processes included | s on the clock |", "|---|--:|--:|", *rows,
    ])  # fmt: skip
