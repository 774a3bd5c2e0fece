"""What does it cost to get JPEG files into a batch, beside the bare decoder and the usual pipeline?

Photographs of `../shared/data/photos`, as they are (128 x 128) and pieced together to 500 x 375,
the usual size; drawn scenes where those are not here. *bare*: torchvision's decoder and resize,
nothing else: no manifest, no look at headers, no batch. *usual*: what CLIP's and timm's users run:
Pillow decodes and resizes (bicubic), `CenterCrop`, `ToTensor`, `Normalize`, on the host. xlcm's
batch is uint8, and is normalised where the model is. With two workers, time is that of both, from
their start to their end; what takes the batches does nothing with them. Memory that two processes
see comes in fresh pages, which the kernel clears: *written to memory that another process sees* is
the bare decoder with that and nothing else, so what a loader with workers can reach.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import multiprocessing
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.io import ImageReadMode, decode_jpeg

from benchmarks.measure import Found, compare, number
from xlcm.data.batching import Row
from xlcm.data.collate import Collator
from xlcm.data.dataset import ManifestDataset
from xlcm.data.scenes import Scenes
from xlcm.data.views import View, Views
from xlcm.encoders.transform import ImageTransform
from xlcm.types import Batch, TextBatch

PEERS = ("torchvision", "pillow")
BARE, OURS, PILLOW = "bare decode and resize", "xlcm", "xlcm, resizer: pillow"
SHARED = "bare, written to memory that another process sees"
USUAL = "usual: Pillow, floats normalised on the host"
TARGETS = {
    "one process, 500 x 375, beside the bare decoder": "at least 90 %",
    "two workers, 500 x 375, beside the bare decoder": "at least 90 %",
    "500 x 375, beside the usual pipeline": "at least 2 x",
}
SIZE, BATCH, LARGE, SMALL = 224, 64, "500 x 375", "128 x 128"
PASSES = 4
ROOT = Path(__file__).resolve().parents[2] / "shared" / "data" / "photos" / "images.tar"
MEAN, STD = (0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)
TRANSFORM = ImageTransform(SIZE)
VIEWS = Views({"source": View(langs=["en"])})


def photographs(count: int) -> tuple[list[bytes], str]:
    """Return JPEG files, and what they are."""
    if not ROOT.is_file():
        scenes = Scenes(size=count, image_size=128, cache=None)
        return [jpeg(scenes.load_image(i)) for i in range(count)], (
            "drawn scenes; ../shared/data/photos is not here"
        )
    with tarfile.open(ROOT) as tar:
        names = itertools.islice((m for m in tar if m.name.endswith(".jpg")), count)
        return [file.read() for m in names if (file := tar.extractfile(m))], "photographs"


def jpeg(image: Image.Image) -> bytes:
    """Return it as a JPEG of quality 92."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=92)
    return out.getvalue()


def pieced(files: Sequence[bytes], count: int) -> list[bytes]:
    """Return pictures of 500 x 375, of twelve others each."""
    made = []
    for first in range(count):
        whole = Image.new("RGB", (512, 384))
        for place in range(12):
            part = Image.open(io.BytesIO(files[(first * 12 + place) % len(files)])).convert("RGB")
            whole.paste(part.resize((128, 128)), (place % 4 * 128, place // 4 * 128))
        made.append(jpeg(whole.crop((0, 0, 500, 375))))
    return made


def write(folder: Path, files: Sequence[bytes]) -> ManifestDataset:
    """Write pictures and their manifest."""
    folder.mkdir()
    lines = []
    for i, data in enumerate(files):
        (folder / f"{i:05d}.jpg").write_bytes(data)
        caption = {"id": f"{i}#en", "lang": "en", "text": "a picture"}
        lines.append(
            {"id": str(i), "split": "train", "image": f"{i:05d}.jpg", "captions": [caption]}
        )
    path = folder / "m.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return ManifestDataset(path=str(path), split="train")


def no_tokens(texts: Sequence[str], langs: Sequence[str]) -> TextBatch:
    """Return one token a caption: tokenising is measured elsewhere."""
    ids = torch.ones(len(texts), 1, dtype=torch.int64)
    return TextBatch(ids, ids.bool(), tuple(langs))


def bare(path: Path) -> Tensor:
    """Decode, resize, crop."""
    data = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
    pixels = decode_jpeg(data, mode=ImageReadMode.RGB)
    short = SIZE / min(pixels.shape[1:])
    high, wide = (int(side * short + 1e-9) for side in pixels.shape[1:])
    pixels = F.interpolate(pixels[None], (high, wide), mode="bicubic", antialias=True)[0]
    top, left = round((high - SIZE) / 2), round((wide - SIZE) / 2)
    return pixels[:, top : top + SIZE, left : left + SIZE]


usual = transforms.Compose([
    transforms.Resize(SIZE, interpolation=transforms.InterpolationMode.BICUBIC),
    transforms.CenterCrop(SIZE),
    transforms.ToTensor(),
    transforms.Normalize(MEAN, STD),
])  # fmt: skip


def usual_batch(paths: Sequence[Path]) -> Tensor:
    """Return `(b, 3, SIZE, SIZE)`, normalised."""
    return torch.stack([usual(Image.open(path).convert("RGB")) for path in paths])


def gaps(dataset: ManifestDataset, count: int) -> dict[str, float]:
    """Return mean and largest difference of torch's pixels from Pillow's, in grey levels."""
    slow = replace(TRANSFORM, resizer="pillow")
    found = [
        (TRANSFORM(dataset.load_pixels(i)).int() - slow(dataset.load_image(i)).int()).abs()
        for i in range(count)
    ]
    mean = statistics.fmean(float(gap.float().mean()) for gap in found)
    return {"mean": round(mean, 5), "largest": max(int(gap.max()) for gap in found)}


def check(dataset: ManifestDataset, paths: Sequence[Path]) -> None:
    """Fail if the ways see other pictures."""
    rows = [Row(i, 0, 0) for i in range(len(paths))]
    ours = Collator(dataset, VIEWS, no_tokens, TRANSFORM)(rows).visual
    assert ours is not None
    assert ours.pixels is not None
    torch.testing.assert_close(
        ours.pixels, torch.stack([bare(path) for path in paths]), rtol=0, atol=0
    )
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    back = (usual_batch(paths) * std + mean) * 255
    torch.testing.assert_close(ours.pixels.float(), back, rtol=0, atol=2.01)


def endless(count: int, size: int) -> Iterator[list[int]]:
    """Yield batches of numbers, all of them in turn, without end."""
    numbers = itertools.cycle(range(count))
    while True:
        yield list(itertools.islice(numbers, size))


def one_process(dataset: ManifestDataset, paths: Sequence[Path], rounds: int) -> Found:
    """Return the figures of a batch in each way."""
    fast = Collator(dataset, VIEWS, no_tokens, TRANSFORM)
    slow = Collator(dataset, VIEWS, no_tokens, replace(TRANSFORM, resizer="pillow"))
    size = min(BATCH, len(paths))
    made: dict[str, Callable[[list[int]], object]] = {
        BARE: lambda some: [bare(paths[i]) for i in some],
        OURS: lambda some: fast([Row(i, 0, 0) for i in some]),
        PILLOW: lambda some: slow([Row(i, 0, 0) for i in some]),
        USUAL: lambda some: usual_batch([paths[i] for i in some]),
    }
    drawn = {name: endless(len(paths), size) for name in made}
    ways = {name: lambda n=name: made[n](next(drawn[n])) for name in made}
    return compare(ways, rounds=rounds, memory=False)


class Batches(Dataset):
    """`batches[rows]`: what a training loader's workers make."""

    def __init__(self, collate: Collator) -> None:
        self.collate = collate

    def __getitem__(self, rows: list[Row]) -> Batch:
        """Return the batch of these rows."""
        return self.collate(rows)


def _decode_all(paths: Sequence[Path], shared: bool) -> None:
    """Decode each, and where they are to reach another process, write them to memory for it."""
    torch.set_num_threads(1)
    for start in range(0, len(paths), BATCH):
        batch = paths[start : start + BATCH]
        shape = (len(batch), 3, SIZE, SIZE)
        if not shared:
            for path in batch:
                bare(path)
            continue
        memory = torch.UntypedStorage._new_shared(math.prod(shape))
        out = torch.empty(0, dtype=torch.uint8).set_(memory, 0, shape)  # type: ignore[call-overload]
        for row, path in enumerate(batch):
            out[row] = bare(path)


def two_workers(dataset: ManifestDataset, paths: Sequence[Path], rounds: int) -> dict[str, Any]:
    """Return CPU seconds of the workers, and seconds on the clock, for all pictures once.

    They go through them `PASSES` times, so that starting the processes counts little.
    """
    fork = multiprocessing.get_context("fork")

    def decoders(shared: bool) -> None:
        shares = [paths[i::2] * PASSES for i in range(2)]
        workers = [fork.Process(target=_decode_all, args=(some, shared)) for some in shares]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    def loader() -> None:
        # a fixed number: a TrainLoader's workers go on into the next epoch
        rows = [Row(i, 0, 0) for i in range(len(paths))] * PASSES
        parts = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
        collate = Collator(dataset, VIEWS, no_tokens, TRANSFORM)
        for _ in DataLoader(Batches(collate), sampler=parts, batch_size=None, num_workers=2):
            pass

    ways = {BARE: lambda: decoders(False), SHARED: lambda: decoders(True), OURS: loader}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            cpu, wall = sum(os.times()[2:4]), time.perf_counter()
            way()
            spent = sum(os.times()[2:4]) - cpu, time.perf_counter() - wall
            taken[name].append((spent[0] / PASSES, spent[1] / PASSES))
    return {
        name: dict(zip(("cpu_s", "wall_s"), (round(statistics.median(v), 4) for v in zip(*pairs))))
        for name, pairs in taken.items()
    }


def measure(*, small: bool) -> dict[str, Any]:
    """Return the figures for both sizes of pictures."""
    counts = {LARGE: 8, SMALL: 16} if small else {LARGE: 768, SMALL: 1920}
    files, source = photographs(max(counts.values()))
    sets = {LARGE: pieced(files, counts[LARGE]), SMALL: files[: counts[SMALL]]}
    found: dict[str, Any] = {"source": source, "batch": BATCH, "sizes": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name, pictures in sets.items():
            dataset = write(Path(folder) / name, pictures)
            paths = sorted((Path(folder) / name).glob("*.jpg"))
            check(dataset, paths[:BATCH])
            found["sizes"][name] = {
                "pictures": len(paths),
                "kilobytes": round(statistics.fmean(map(len, pictures)) / 1000, 1),
                "gap": gaps(dataset, min(len(paths), 200)),
                "one": one_process(dataset, paths, 2 if small else 21),
                "two": two_workers(dataset, paths, 1 if small else 5),
            }
    return found


def reached(found: dict[str, Any]) -> dict[str, tuple[str, bool]]:
    """Return what was measured for each target, and whether that reaches it."""
    large = found["sizes"][LARGE]
    one, two = large["one"], large["two"]
    times = one[USUAL]["cpu_ms"] / one[OURS]["cpu_ms"]
    shares = [
        one[BARE]["cpu_ms"] / one[OURS]["cpu_ms"],
        two[BARE]["cpu_s"] / two[OURS]["cpu_s"],
    ]
    values = [(f"{100 * share:.0f} %", share >= 0.9) for share in shares]
    if not values[1][1]:
        floor = 100 * two[BARE]["cpu_s"] / two[SHARED]["cpu_s"]
        values[1] = (
            f"{values[1][0]}; written to shared memory, the bare decoder {floor:.0f} %",
            False,
        )
    return dict(zip(TARGETS, [*values, (f"{times:.2f} x", times >= 2)]))


def table(found: dict[str, Any]) -> str:
    """Return pictures a second by way, for both sizes."""
    parts = []
    for name, one in found["sizes"].items():
        ways, gap = one["one"], one["gap"]
        lines = [
            f"{one['pictures']:,} {found['source']}, {name}, {one['kilobytes']:g} kB on average, "
            f"to {SIZE} x {SIZE}. Torch's pixels differ from Pillow's by {gap['mean']:.4f} grey "
            f"levels on average, by {gap['largest']} at most.", "",
            "| way, one process | pictures a CPU second | of the bare decoder | times the usual |",
            "|---|--:|--:|--:|",
        ]  # fmt: skip
        for way, figures in ways.items():
            speed = number(1000 * min(found["batch"], one["pictures"]) / figures["cpu_ms"])
            share = 100 * ways[BARE]["cpu_ms"] / figures["cpu_ms"]
            times = ways[USUAL]["cpu_ms"] / figures["cpu_ms"]
            lines.append(f"| {way} | {speed} | {share:.0f} % | {times:.2f} |")
        lines += ["", "| way, two workers | CPU ms a picture | of the bare decoder | wall ms |",
                  "|---|--:|--:|--:|"]  # fmt: skip
        for way, figures in one["two"].items():
            cpu, wall = (1000 * figures[key] / one["pictures"] for key in ("cpu_s", "wall_s"))
            share = 100 * one["two"][BARE]["cpu_s"] / figures["cpu_s"]
            lines.append(f"| {way} | {number(cpu)} | {share:.0f} % | {number(wall)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)
