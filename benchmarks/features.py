"""Speed of reading features by key, beside a plain memory-mapped numpy read of the same rows.

    OMP_NUM_THREADS=1 python benchmarks/features.py --write docs/benchmarks/features.json
    OMP_NUM_THREADS=1 python benchmarks/features.py --small

30,000 vectors of 2,048 numbers in float32, random batches of 128, pages of the files in memory.
Times are CPU seconds of this process; in each round every way reads once, so that a busy machine
slows all alike, and the median over rounds is told. Ways that give other numbers than the plain
read fail.
"""

from __future__ import annotations

import argparse
import array
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from xlcm.data.feature_formats import open_features
from xlcm.data.features import FeatureStore, FeatureWriter

Reader = Callable[[list[str]], Tensor]
BATCH = 128


def bigfile(folder: Path, values: np.ndarray, names: list[str]) -> Path:
    """Write NRCCR's format."""
    folder.mkdir()
    values.astype("<f4").tofile(folder / "feature.bin")
    (folder / "shape.txt").write_text(f"{len(values)} {values.shape[1]}\n")
    (folder / "id.txt").write_text(" ".join(names))
    return folder


def store(folder: Path, values: np.ndarray, names: list[str], dtype: str) -> FeatureStore:
    """Write our format, in shards of the default size."""
    with FeatureWriter(folder, kind="pooled", dim=values.shape[1], dtype=dtype) as writer:  # type: ignore[arg-type]
        for name, value in zip(names, torch.from_numpy(values)):
            writer.add(name, value)
    return FeatureStore(folder)


def plain_read(file: Path, rows: dict[str, int], shape: tuple[int, int], dtype: str) -> Reader:
    """Return what anyone would write: a memory map, indexed by row numbers."""
    mapped = np.memmap(file, dtype=dtype, mode="r", shape=shape)

    def read(keys: list[str]) -> Tensor:
        return torch.from_numpy(mapped[[rows[key] for key in keys]]).float()

    return read


def nrccr_read(file: Path, rows: dict[str, int], dim: int) -> Reader:
    """Return the way of NRCCR's bigfile.py: seek, read, list, tensor, one row after the other."""
    opened = open(file, "rb")  # noqa: SIM115

    def read(keys: list[str]) -> Tensor:
        out = []
        for key in keys:
            opened.seek(rows[key] * dim * 4)
            found = array.array("f")
            found.fromfile(opened, dim)
            out.append(torch.Tensor(found.tolist()))
        return torch.stack(out)

    return read


def one_by_one(found: FeatureStore) -> Reader:
    """Return how a loader that takes items singly reads."""
    return lambda keys: torch.stack([found[key] for key in keys])


def measure(ways: dict[str, Reader], names: list[str], rounds: int) -> dict[str, float]:
    """Return vectors a CPU second, median over rounds."""
    random = np.random.default_rng(1)
    times: dict[str, list[float]] = {way: [] for way in ways}
    for read in ways.values():  # every page is mapped before the clock runs
        for start in range(0, len(names), BATCH):
            read(names[start : start + BATCH])
    for _ in range(rounds):
        batches = [[names[i] for i in random.integers(0, len(names), BATCH)] for _ in range(20)]
        for way, read in ways.items():
            start = time.process_time()
            for keys in batches:
                read(keys)
            times[way].append((time.process_time() - start) / (20 * BATCH))
    return {way: 1 / statistics.median(found) for way, found in times.items()}


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="fewer vectors, to see that it runs")
    parser.add_argument("--write", metavar="FILE", help="write the figures here as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    count, dim, rounds = (600, 64, 3) if args.small else (30_000, 2048, 21)
    values = np.random.default_rng(0).normal(size=(count, dim)).astype(np.float32)
    names = [f"{i:08d}.jpg" for i in range(count)]
    rows = {name: i for i, name in enumerate(names)}
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        big = bigfile(at / "bigfile", values, names)
        np.save(at / "x.npy", values)
        (at / "x.ids.txt").write_text("\n".join(names) + "\n")
        values.astype(np.float16).tofile(at / "half.bin")
        ours, half = (store(at / name, values, names, name) for name in ("float32", "float16"))
        shape = values.shape[0], values.shape[1]
        ways: dict[str, Reader] = {
            "plain memory map, float32": plain_read(big / "feature.bin", rows, shape, "<f4"),
            "plain memory map, float16": plain_read(at / "half.bin", rows, shape, "<f2"),
            "store, float32, rows": ours.rows,
            "store, float16, rows": half.rows,
            "store, float32, one by one": one_by_one(ours),
            "BigFile in place, rows": open_features(big).rows,
            "npy in place, rows": open_features(at / "x.npy").rows,
            "BigFile, as NRCCR reads it": nrccr_read(big / "feature.bin", rows, dim),
        }
        for way, read in ways.items():
            expected = torch.from_numpy(values[:BATCH])
            close = 1e-3 if "16" in way else 0.0
            torch.testing.assert_close(read(names[:BATCH]), expected, rtol=close, atol=close)
        found = measure(ways, names, rounds)
    for way, speed in found.items():
        base = found["plain memory map, float16" if "16" in way else "plain memory map, float32"]
        print(f"{way:30} {speed:12,.0f} vectors/s {speed / base:6.2f} of the plain read")
    if args.write:
        told = {
            "vectors_per_cpu_second": {way: round(speed) for way, speed in found.items()},
            "count": count, "dim": dim, "batch": BATCH, "rounds": rounds,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores", "numpy": np.__version__,
            "torch": torch.__version__,
        }  # fmt: skip
        Path(args.write).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
