"""CPU time, wall time and memory of several ways of doing one thing, side by side.

Each way runs once a round, in one process, so that a busy machine slows all alike. CPU time is the
main figure: with one thread it hardly depends on what else the machine does; wall time does.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import torch

Found = dict[str, dict[str, float]]
QUICK = 0.2  # seconds: below, memory is measured in calls of its own, beyond the timed ones
MEMORY_CALLS = 3
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def compare(
    ways: dict[str, Callable[[], object]],
    *,
    rounds: int,
    memory: bool = True,
    once: Collection[str] = (),
) -> Found:
    """Run every way once a round and return its medians.

    Args:
        ways: what to run, by name.
        rounds: timed rounds; one more comes before, to warm up.
        memory: measure the peak above what the process held before the call (Linux only).
        once: ways too slow for that: they run a single time, without warming up.

    Returns:
        For each way `cpu_ms`, `wall_ms` and, in MB of 2^20 bytes, `peak_mb`, and `rounds`.
    """
    memory = memory and peak_is_known()
    seen: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ways}
    quick = {name: _timed(ways[name])[0] < QUICK for name in ways if name not in once}
    for turn in range(rounds):
        for name, way in ways.items():
            if name not in once or not turn:
                seen[name].append(_timed(way, memory=memory and not quick.get(name, False)))
    found = {}
    for name, taken in seen.items():
        cpu, wall, peak = (statistics.median(values) for values in zip(*taken))
        if memory and quick.get(name):
            peak = statistics.median(
                _timed(ways[name], memory=True)[2] for _ in range(MEMORY_CALLS)
            )
        found[name] = {"cpu_ms": _short(1000 * cpu), "wall_ms": _short(1000 * wall)}
        if memory:
            found[name]["peak_mb"] = round(peak, 1)
        found[name]["rounds"] = len(taken)
    return found


def _timed(way: Callable[[], object], *, memory: bool = False) -> tuple[float, float, float]:
    """Return CPU and wall seconds and the peak in MB of one call."""
    before = 0.0
    if memory:
        settle()
        before = _status("VmRSS")
        _RESET.write_text("5")  # the peak starts anew
    cpu, wall = time.process_time(), time.perf_counter()
    kept = way()
    taken = time.process_time() - cpu, time.perf_counter() - wall
    del kept
    return *taken, max(0.0, _status("VmHWM") - before) if memory else 0.0


def settle() -> None:
    """Give freed memory back to the system, or the next way would use it unseen."""
    gc.collect()
    if platform.system() == "Linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def peak_is_known() -> bool:
    """Say whether this system tells the peak of a process and can reset it."""
    return _RESET.exists() and os.access(_RESET, os.W_OK)


def _status(key: str) -> float:
    lines = _STATUS.read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def _short(value: float) -> float:
    """Keep four digits."""
    return round(value, max(0, 3 - math.floor(math.log10(value)))) if value > 0 else 0.0


def ratios(found: Found, base: str) -> Found:
    """Return `cpu`, `wall` and `memory` of each way, divided by those of `base`."""
    keys = {"cpu": "cpu_ms", "wall": "wall_ms", "memory": "peak_mb"}
    by = found[base]
    return {
        name: {out: one[key] / by[key] for out, key in keys.items() if key in one and by.get(key)}
        for name, one in found.items()
    }


def markdown(found: Found, base: str, *, first: str = "way") -> str:
    """Return a table with a row for each way and its ratios to `base`.

    Args:
        found: what `compare` gave, perhaps with more keys.
        base: the way, or peer, by which CPU time and memory are divided.
        first: heading of the first column.
    """
    by = ratios(found, base)
    lines = [
        f"| {first} | CPU ms | wall ms | memory MB | CPU, times *{base}* | "
        f"memory, times *{base}* |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, one in found.items():
        memory = f"{one['peak_mb']:,.1f}" if "peak_mb" in one else ""
        times = [f"{by[name][key]:.2f}" if key in by[name] else "" for key in ("cpu", "memory")]
        shown = f"{name} *(once)*" if one.get("rounds") == 1 else name
        figures = f"{number(one['cpu_ms'])} | {number(one['wall_ms'])} | {memory}"
        lines.append(f"| {shown} | {figures} | {times[0]} | {times[1]} |")
    return "\n".join(lines)


def number(value: float) -> str:
    """Return a figure of four digits with commas, such as `12,340` or `0.5321`."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def installed(distribution: str) -> bool:
    """Say whether a distribution of this name can be imported."""
    return version(distribution) is not None


def version(distribution: str) -> str | None:
    """Return its version, None if it isn't installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine(peers: Iterable[str] = ()) -> dict[str, object]:
    """Return what a reader must know of machine and versions."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text(encoding="utf-8").splitlines() if cpu.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "versions": {name: found for name in peers if (found := version(name))},
    }
