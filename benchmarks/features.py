"""How fast are features read by key, beside a plain memory-mapped numpy read of the same rows?

30,000 vectors of 2,048 numbers, random batches of 128, pages of the files in memory. Each way has
files and batches of its own, or some would find rows in the processor's cache. NRCCR's way is that
of its `basic/bigfile.py` (https://github.com/HuiGuanLab/nrccr): seek, `array`, list,
`torch.Tensor`, one vector after the other.
"""

from __future__ import annotations

import array
import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import Found, compare, number
from xlcm.data.feature_formats import open_features
from xlcm.data.features import FeatureStore, FeatureWriter

Reader = Callable[[list[str]], Tensor]
PEERS: tuple[str, ...] = ("numpy",)
PLAIN, HALF, NRCCR = "plain memory map", "plain memory map, float16", "BigFile, as NRCCR reads it"
STORE, STORE_HALF, BIGFILE = "store", "store, float16", "BigFile in place"
SHARDS = "store of 15 shards"
TARGETS = {
    "store beside a plain memory map": "at least 90 %",
    "store in 15 shards beside a plain memory map": "at least 90 %",
    "float16 store beside a plain memory map of float16": "at least 90 %",
    "BigFile in place beside NRCCR's reader": "at least 50 x",
}
BATCH = 128


def bigfile(folder: Path, values: np.ndarray, names: list[str]) -> Path:
    """Write NRCCR's format."""
    folder.mkdir()
    values.astype("<f4").tofile(folder / "feature.bin")
    (folder / "shape.txt").write_text(f"{len(values)} {values.shape[1]}\n")
    (folder / "id.txt").write_text(" ".join(names))
    return folder


def store(folder: Path, values: np.ndarray, names: list[str], **options: Any) -> FeatureStore:
    """Write our format, in shards of the default size where `options` say no other."""
    with FeatureWriter(folder, kind="pooled", dim=values.shape[1], **options) as writer:
        for name, value in zip(names, torch.from_numpy(values)):
            writer.add(name, value)
    return FeatureStore(folder)


def plain_read(file: Path, rows: dict[str, int], shape: tuple[int, int], dtype: str) -> Reader:
    """Return what anyone would write: a memory map, indexed by row numbers."""
    mapped = np.memmap(file, dtype=dtype, mode="r", shape=shape)
    return lambda keys: torch.from_numpy(mapped[[rows[key] for key in keys]]).float()


def nrccr_read(file: Path, rows: dict[str, int], dim: int) -> Reader:
    """Return the way of NRCCR's bigfile.py, one row after the other."""
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


def readers(at: Path, values: np.ndarray, names: list[str]) -> dict[str, Reader]:
    """Write the values in every format; return what reads them."""
    rows = {name: i for i, name in enumerate(names)}
    shape = values.shape[0], values.shape[1]
    big, other = (bigfile(at / name, values, names) for name in ("bigfile", "nrccr"))
    values.tofile(at / "plain.bin")
    np.save(at / "x.npy", values)
    (at / "x.ids.txt").write_text("\n".join(names) + "\n")
    values.astype(np.float16).tofile(at / "half.bin")
    ours = store(at / "float32", values, names, dtype="float32")
    many = store(at / "many", values, names, dtype="float32", shard_items=-(-len(names) // 15))
    half = store(at / "float16", values, names, dtype="float16")
    return {
        PLAIN: plain_read(at / "plain.bin", rows, shape, "<f4"),
        STORE: ours.rows,
        SHARDS: many.rows,
        "store, one by one": one_by_one(FeatureStore(many.folder)),
        BIGFILE: open_features(big).rows,
        "npy in place": open_features(at / "x.npy").rows,
        HALF: plain_read(at / "half.bin", rows, shape, "<f2"),
        STORE_HALF: half.rows,
        NRCCR: nrccr_read(other / "feature.bin", rows, shape[1]),
    }


def batches(names: list[str], seed: int, count: int) -> Iterator[list[list[str]]]:
    """Yield lists of random batches without end."""
    draw = np.random.default_rng(seed)
    while True:
        yield [[names[i] for i in draw.integers(0, len(names), BATCH)] for _ in range(count)]


def measure(*, small: bool) -> dict[str, Any]:
    """Return the figures of all ways for `batches` batches each."""
    count, dim, rounds, together = (600, 64, 2, 2) if small else (30_000, 2048, 31, 20)
    values = np.random.default_rng(0).normal(size=(count, dim)).astype(np.float32)
    names = [f"{i:08d}.jpg" for i in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        ways = readers(Path(folder), values, names)
        for way, read in ways.items():
            close = 1e-3 if "16" in way else 0.0
            for start in range(0, count, BATCH):  # maps every page before the clock runs
                expected = torch.from_numpy(values[start : start + BATCH])
                found = read(names[start : start + BATCH])
                torch.testing.assert_close(found, expected, rtol=close, atol=close)
        # drawn before the clock runs, for as many rounds as there are and one that isn't counted
        draws = {way: [*itertools.islice(batches(names, seed, together), rounds + 1)]
                 for seed, way in enumerate(ways)}  # fmt: skip

        def all_of(way: str) -> Callable[[], None]:
            drawn = iter(draws[way])

            def run() -> None:
                for keys in next(drawn):
                    ways[way](keys)

            return run

        measured = compare({way: all_of(way) for way in ways}, rounds=rounds, memory=False)
    return {"vectors": count, "dim": dim, "batch": BATCH, "batches": together, "ways": measured}


def _speed(found: dict[str, Any], way: str) -> float:
    vectors: float = found["batches"] * found["batch"] * 1000 / found["ways"][way]["cpu_ms"]
    return vectors


def reached(found: dict[str, Any]) -> dict[str, tuple[str, bool]]:
    """Return what was measured for each target, and whether that reaches it."""
    pairs = [(STORE, PLAIN), (SHARDS, PLAIN), (STORE_HALF, HALF), (BIGFILE, NRCCR)]
    shares = [_speed(found, ours) / _speed(found, base) for ours, base in pairs]
    told = {name: (f"{share:.0%}".replace("%", " %"), share >= 0.9)
            for name, share in zip(TARGETS, shares[:3])}  # fmt: skip
    bigfile = f"{shares[3]:.0f} x"
    if shares[3] < 50:  # the floor
        bigfile += f"; the plain memory map {_speed(found, PLAIN) / _speed(found, NRCCR):.0f} x"
    return {**told, list(TARGETS)[3]: (bigfile, shares[3] >= 50)}


def table(found: dict[str, Any]) -> str:
    """Return vectors a second by way."""
    ways: Found = found["ways"]
    lines = [
        f"{found['vectors']:,} vectors of {found['dim']:,} numbers, random batches of "
        f"{found['batch']}.",
        "",
        "| read | vectors in a CPU second | of the plain memory map of that type |",
        "|---|--:|--:|",
    ]
    for way in ways:
        share = _speed(found, way) / _speed(found, HALF if "16" in way else PLAIN)
        lines.append(f"| {way} | {number(_speed(found, way))} | {100 * share:.0f} % |")
    return "\n".join(lines)
