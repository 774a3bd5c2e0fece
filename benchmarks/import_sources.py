"""Seconds to import Multi30K with four languages, beside the bare work, and to read the manifest.

    OMP_NUM_THREADS=1 python benchmarks/import_sources.py ../shared/data/captions/multi30k
    OMP_NUM_THREADS=1 python benchmarks/import_sources.py FOLDER --write docs/benchmarks/import.json

`xlcm` is the whole command in a fresh process, from start to exit: every check, the digests, the
report. `bare` is a loop without a single check: read lines, join by number, `json.dumps`, write.
Medians of rounds in which each runs once, so that a busy machine slows all alike.
"""

import argparse
import gzip
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from xlcm.data.manifest import read_manifest
from xlcm.data.sources.multi30k import IMAGES, TASK1

LANGS = ("en", "de", "fr", "cs")


def imported(root: Path, out: Path) -> int:
    """Run the command; return 1, the number of manifests."""
    command = [sys.executable, "-c", "from xlcm.cli import main; raise SystemExit(main())",
               "data", "import", "multi30k", "--root", str(root), "--out", str(out),
               "--langs", *LANGS]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return 1


def bare(root: Path, out: Path) -> int:
    """Join and write without checks; return the number of items."""
    count = 0
    with open(out, "w", encoding="utf-8") as file:
        for split in IMAGES:
            texts = {lang: lines(root / f"task1/raw/{split}.{lang}")
                     for lang in LANGS if split in TASK1[lang]}  # fmt: skip
            names = lines(root / f"task1/image_splits/{split}.txt")
            for name, *captions in zip(names, *texts.values()):
                key = name.partition(".")[0]
                row = {"id": key, "split": split, "captions": [
                    {"id": f"{key}#{lang}", "lang": lang, "text": text, "origin": "human"}
                    for lang, text in zip(texts, captions)]}  # fmt: skip
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1
    return count


def lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file or of its gzipped twin."""
    opener = open if path.is_file() else gzip.open
    with opener(
        path if path.is_file() else f"{path}.gz", "rt", encoding="utf-8", newline="\n"
    ) as f:
        for line in f:
            yield line.rstrip("\n")


def read(path: Path) -> int:
    """Read the manifest; return the number of items."""
    return sum(1 for _ in read_manifest(path))


def timed(work: Callable[[], int]) -> tuple[float, int]:
    """Return wall seconds and the result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def main() -> None:
    """Measure, print, and write if asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("root", type=Path, help="the folder that holds task1")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", type=Path, metavar="JSON")
    args = parser.parse_args()
    seconds: dict[str, list[float]] = {"xlcm": [], "bare": [], "read": []}
    items = 0
    with tempfile.TemporaryDirectory() as folder:
        out, plain = Path(folder) / "m.jsonl", Path(folder) / "bare.jsonl"
        for _ in range(args.rounds):
            seconds["xlcm"].append(timed(lambda: imported(args.root, out))[0])
            seconds["bare"].append(timed(lambda: bare(args.root, plain))[0])
            taken, items = timed(lambda: read(out))
            seconds["read"].append(taken)
    medians = {name: round(statistics.median(taken), 3) for name, taken in seconds.items()}
    result = {
        "command": "OMP_NUM_THREADS=1 python benchmarks/import_sources.py FOLDER",
        "machine": {"cpu": cpu(), "cores": os.cpu_count(), "python": platform.python_version()},
        "set": "multi30k task 1, all splits", "langs": list(LANGS), "items": items,
        "rounds": args.rounds, "wall_s": medians,
        "read_items_per_s": round(items / medians["read"]),
    }  # fmt: skip
    print(json.dumps(result, indent=2))
    if args.write:
        args.write.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def cpu() -> str:
    """Return the processor's name."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
