"""Speed and memory of the evaluation, beside the usual research code and the bare product.

    OMP_NUM_THREADS=1 python benchmarks/evaluation.py --write docs/benchmarks/evaluation.json
    OMP_NUM_THREADS=1 python benchmarks/evaluation.py --small

Times are CPU seconds of this process, medians of rounds in which every way runs once, so that a
busy machine slows all alike. Memory is the peak of a fresh process above what it held with the
embeddings in memory (`VmHWM`, reset through `/proc/self/clear_refs`; Linux only).
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize

from xlcm.evaluation.metrics import figures, image_to_text, text_to_image
from xlcm.evaluation.ranks import retrieval_ranks
from xlcm.evaluation.retrieval import evaluate_embeddings

Data = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
CAPTIONS = 5


def embeddings(images: int, width: int) -> Data:
    """Return captions at a cosine that makes the right picture neither sure nor hopeless."""
    draw = torch.Generator().manual_seed(0)
    image = normalize(torch.randn(images, width, generator=draw))
    owner = torch.arange(images).repeat_interleave(CAPTIONS)
    text = torch.randn(len(owner), width, generator=draw)
    text *= 8 * (width / 1024) ** 0.5 / text.norm(dim=1, keepdim=True)
    text += image[owner]
    text /= text.norm(dim=1, keepdim=True)
    return image, text, owner


def product(image: torch.Tensor, text: torch.Tensor, owner: torch.Tensor) -> None:
    """Multiply all pairs once, in tiles: no evaluation can be faster."""
    for rows in image.split(512):
        for columns in text.split(4096):
            rows @ columns.T


def ranks(image: torch.Tensor, text: torch.Tensor, owner: torch.Tensor) -> tuple[float, float]:
    """Return R@1 of both directions by xlcm's counting."""
    found = retrieval_ranks(image, text, owner)
    return figures(text_to_image(found))["r1"], figures(image_to_text(found))["r1"]


def report(image: torch.Tensor, text: torch.Tensor, owner: torch.Tensor) -> tuple[float, float]:
    """Return the same from a whole report: every metric, 1,000 resamples, no answers kept."""
    out = evaluate_embeddings(image, {"en": (text, owner)}, dataset="-", split="-")
    return out.result("en").r1, out.result("en", "image_to_text").r1


def argsort(image: torch.Tensor, text: torch.Tensor, owner: torch.Tensor) -> tuple[float, float]:
    """Return the same as research code finds it: the whole matrix, each row and column sorted."""
    scores = image.numpy() @ text.numpy().T
    owners = owner.numpy()
    best = np.empty(len(scores))
    for i, row in enumerate(scores):
        best[i] = np.where(owners[np.argsort(row)[::-1]] == i)[0][0]
    place = np.empty(len(owners))
    for j, column in enumerate(scores.T):
        place[j] = np.where(np.argsort(column)[::-1] == owners[j])[0][0]
    return 100 * float(np.mean(place < 1)), 100 * float(np.mean(best < 1))


WAYS: dict[str, Callable[..., object]] = {
    "product": product,
    "ranks": ranks,
    "report": report,
    "argsort": argsort,
}


def status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def peak(way: str, images: int, width: int) -> float:
    """Return the peak in MiB above the embeddings, in this process."""
    WAYS[way](*embeddings(40, 16))  # libraries and their buffers
    data = embeddings(images, width)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    WAYS[way](*data)
    return status("VmHWM") - before


def measure(images: int, width: int, rounds: int) -> dict[str, object]:
    data = embeddings(images, width)
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    values: dict[str, object] = {}
    for _ in range(rounds):
        for way, run in WAYS.items():
            start = time.process_time()
            values[way] = run(*data)
            times[way].append(time.process_time() - start)
    np.testing.assert_allclose(values["ranks"], values["argsort"], atol=0.02)
    assert values["ranks"] == values["report"]
    median = {way: statistics.median(taken) for way, taken in times.items()}
    memory = {}
    for way in WAYS:
        command = [sys.executable, __file__, "--peak", way, str(images), str(width)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        memory[way] = float(done.stdout)
    found = {
        "images": images,
        "captions": images * CAPTIONS,
        "width": width,
        "rounds": rounds,
        "r1": values["ranks"],
        "cpu_s": {way: round(value, 3) for way, value in median.items()},
        "times_the_product": {w: round(v / median["product"], 2) for w, v in median.items()},
        "peak_mib_beyond_embeddings": {way: round(value, 1) for way, value in memory.items()},
    }
    print(json.dumps(found, indent=2), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--small", action="store_true", help="one small case, seconds")
    parser.add_argument("--write", type=Path, help="file for the figures, JSON")
    parser.add_argument("--rounds", type=int, default=5, help="of each way")
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(peak(options.peak[0], *map(int, options.peak[1:])))
        return
    cases = [(500, 256)] if options.small else [(1000, 512), (5000, 512), (5000, 1024)]
    cpu = Path("/proc/cpuinfo").read_text() if platform.system() == "Linux" else ""
    names = [line.split(": ")[1] for line in cpu.splitlines() if line.startswith("model name")]
    model = names[0] if names else platform.processor()
    found = {
        "command": "OMP_NUM_THREADS=1 python benchmarks/evaluation.py",
        "machine": {"cpu": model, "threads": torch.get_num_threads(), "torch": torch.__version__},
        "cases": [measure(images, width, options.rounds) for images, width in cases],
    }
    if options.write:
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
