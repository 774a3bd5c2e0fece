"""On a GPU: how many pairs a second does a training step do, beside open_clip's?

    python -m benchmarks.gpu                  # all of it; some minutes on one GPU
    python -m benchmarks.gpu --batches 1024 4096
    python -m benchmarks.gpu --small          # tiny towers, on a CPU too: does the script run?

ViT-B/16 at 224 pixels and a tower of XLM-R base's size on captions of 64 tokens, random weights,
bf16 autocast, InfoNCE, clipping, fused AdamW. Batches that don't fit are encoded in pieces: by
gradient caching here, by `--accum-freq` in open_clip, whose step is written here of its towers and
its ClipLoss, as its trainer does it. Then the loss alone at 32,768 rows. Writes
docs/benchmarks/gpu.json and the page; `python -m benchmarks.run gpu` does the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from benchmarks.measure import installed, number
from benchmarks.run import measure_and_write
from xlcm.encoders.heads import LinearHead
from xlcm.encoders.image_timm import TimmImageEncoder
from xlcm.encoders.pooling import MeanPooling
from xlcm.encoders.text_hf import HFTextEncoder
from xlcm.losses.info_nce import InfoNCELoss
from xlcm.methods.contrastive import Contrastive
from xlcm.models.dual_encoder import DualEncoder
from xlcm.pieces import cut
from xlcm.training.caching import cached_step
from xlcm.training.flops import compile_towers, flops_of_row, peak
from xlcm.types import Batch, TextBatch, Visual

PEERS = ("open_clip_torch",)
TARGETS = {
    "share of the GPU's best (MFU)": "at least 45 %",
    "pairs a second": "at least 1.1 x open_clip",
}
OURS, THEIRS = "xlcm", "open_clip"
BATCHES, MICRO_BATCH = (1024, 4096, 16_384, 32_768), 512
WIDTH, TOKENS, LOSS_ROWS = 512, 64, 32_768
SIZES = {"small": (64, 1, 1, 1000), "full": (768, 12, 12, 250_002)}
"""Text tower: width, layers, heads, vocabulary."""


class Ids:
    """Stands in for a tokenizer: token ids are drawn."""

    pad_id, max_tokens = 1, TOKENS
    special_ids = frozenset({0, 1, 2})

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def spec(self) -> dict[str, Any]:
        """Return something: nothing here is saved."""
        return {"name": "ids"}


def architecture(size: str) -> dict[str, Any]:
    """Return the text tower's settings, those of xlm-roberta-base if it is not small."""
    width, layers, heads, vocabulary = SIZES[size]
    return {
        "model_type": "xlm-roberta", "hidden_size": width, "num_hidden_layers": layers,
        "num_attention_heads": heads, "intermediate_size": 4 * width, "vocab_size": vocabulary,
        "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5,
        "pad_token_id": 1,
    }  # fmt: skip


def rows_of(size: str, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return uint8 pixels and token ids, drawn."""
    draw = torch.Generator(device).manual_seed(0)
    side = 32 if size == "small" else 224
    pixels = torch.randint(
        256, (rows, 3, side, side), dtype=torch.uint8, device=device, generator=draw
    )
    ids = torch.randint(3, SIZES[size][3], (rows, TOKENS), device=device, generator=draw)
    return pixels, ids


def ours(size: str, device: torch.device, accelerator: Accelerator) -> tuple[Contrastive, Any]:
    """Return the method and a function `step(pixels, ids, micro_batch)`."""
    image = TimmImageEncoder(backbone="test_vit" if size == "small" else "vit_base_patch16_224",
                             image_size=32 if size == "small" else 224)  # fmt: skip
    text = HFTextEncoder(
        architecture=architecture(size), weights=None, tokenizer=Ids(SIZES[size][3]),  # type: ignore[arg-type]
        pooling=MeanPooling,
    )  # fmt: skip
    model = DualEncoder(
        image=image, text=text, width=WIDTH, image_head=LinearHead, text_head=LinearHead
    )
    method = Contrastive(model, target_weight=0.0).to(device).train()
    method = accelerator.prepare(method)  # or its forward pass would know nothing of bf16
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-5, fused=True)

    def step(pixels: Tensor, ids: Tensor, micro_batch: int) -> None:
        text = TextBatch(ids, torch.ones_like(ids, dtype=torch.bool))
        number = torch.arange(len(ids), device=device)
        batch = Batch(number, Visual(pixels), {"source": text})
        if micro_batch < len(ids):
            cached_step(accelerator, method, method, cut(batch, micro_batch))
        else:
            method.total(method(batch)).backward()
        nn.utils.clip_grad_norm_(method.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return method, step


def theirs(size: str, device: torch.device, accelerator: Accelerator, compiled: bool) -> Any:
    """Return open_clip's step: its towers, its loss, its way of accumulating."""
    from open_clip import ClipLoss
    from open_clip.hf_model import HFTextEncoder as Text
    from open_clip.transformer import VisionTransformer
    from transformers import AutoConfig

    width, layers, heads, _ = SIZES[size]
    image: nn.Module = VisionTransformer(
        32 if size == "small" else 224, 16, width, layers, heads, 4.0, output_dim=WIDTH
    )
    settings = architecture(size)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    text: nn.Module = Text("xlm-roberta-base", WIDTH, config=config, pooler_type="mean_pooler",
                           proj_type="linear", pretrained=False)  # fmt: skip
    image, text = image.to(device).train(), text.to(device).train()
    scale = nn.Parameter(torch.tensor(1 / 0.07, device=device).log())
    parameters = [*image.parameters(), *text.parameters(), scale]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
    if compiled:
        image.compile()
        text.compile()
    loss = ClipLoss()
    mean = torch.tensor([0.48, 0.46, 0.41], device=device)[:, None, None] * 255

    def encode(pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        with accelerator.autocast():
            return F.normalize(image((pixels - mean) / 70), dim=1), F.normalize(text(ids), dim=1)

    def step(pixels: Tensor, ids: Tensor, micro_batch: int) -> None:
        parts = list(zip(pixels.split(micro_batch), ids.split(micro_batch)))
        if len(parts) == 1:
            with accelerator.autocast():
                total = loss(*encode(*parts[0]), scale.exp())
            total.backward()
        else:
            with torch.no_grad():
                kept = [encode(*part) for part in parts]
            for place, part in enumerate(parts):
                sides = list(zip(*[*kept[:place], encode(*part), *kept[place + 1 :]]))
                with accelerator.autocast():
                    total = loss(torch.cat(sides[0]), torch.cat(sides[1]), scale.exp())
                total.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def timed(run: Callable[[], None], device: torch.device, rounds: int) -> dict[str, float]:
    """Return median `ms` of a call, after a first one, and on a GPU `peak_gb` beside the rest.

    The rest is what the first call left: weights and moments of both sides, batch, gradients.
    """
    wait = torch.cuda.synchronize if device.type == "cuda" else nullcontext
    run()
    wait()
    held = 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    taken = []
    for _ in range(rounds):
        begin = time.perf_counter()
        run()
        wait()
        taken.append(time.perf_counter() - begin)
    found = {"ms": 1000 * statistics.median(taken)}
    if device.type == "cuda":
        found["peak_gb"] = (torch.cuda.max_memory_allocated() - held) / 2**30
    return found


def loss_alone(rows: int, device: torch.device) -> dict[str, dict[str, float]]:
    """Return time and memory of InfoNCE forwards and backwards: ours, and as CLIP published it."""
    draw = torch.Generator(device).manual_seed(0)
    image, text = (
        F.normalize(torch.randn(rows, WIDTH, device=device, generator=draw)).requires_grad_()
        for _ in range(2)
    )
    scale, group = torch.tensor(14.3, device=device), torch.arange(rows, device=device)
    own = InfoNCELoss()

    def tiled() -> None:
        own(image, text, group=group, scale=scale).backward()

    def plain() -> None:
        logits = scale * image @ text.T
        ((F.cross_entropy(logits, group) + F.cross_entropy(logits.T, group)) / 2).backward()

    return {name: timed(way, device, 3) for name, way in {OURS: tiled, "plain": plain}.items()}


def refused() -> str | None:
    """Return why nothing can be measured here; None on a GPU."""
    if torch.cuda.is_available():
        return None
    return (
        "torch sees no CUDA device here, and figures of another would say nothing; --small tries "
        "the script with tiny towers on a CPU"
    )


def measure(
    *,
    small: bool,
    batches: Sequence[int] = BATCHES,
    micro_batch: int = MICRO_BATCH,
    eager: bool = False,
) -> dict[str, Any]:
    """Return pairs a second, MFU and memory by batch and side, then those of the loss.

    Args:
        small: tiny towers and one batch, on whatever device there is.
        batches: rows of the global batches.
        micro_batch: rows that are encoded at a time.
        eager: without torch.compile, both sides.
    """
    size, rounds = ("small", 1) if small else ("full", 3)
    if small:
        batches, micro_batch = (16,), 8
    compiled = not (eager or small)
    precision = "fp32" if small else "bf16"
    accelerator = Accelerator(mixed_precision="no" if small else "bf16")
    device = accelerator.device
    torch.backends.cuda.matmul.allow_tf32 = True
    best, source = peak(device, precision)

    method, step = ours(size, device, accelerator)
    pixels, ids = rows_of(size, 8, device)
    captions = TextBatch(ids, torch.ones_like(ids, dtype=torch.bool))
    few = Batch(torch.arange(8, device=device), Visual(pixels), {"source": captions})
    flops = flops_of_row(method, few)
    if compiled:
        compile_towers(method)
    steps: dict[str, Any] = {OURS: step}
    if installed("open_clip_torch"):
        steps[THEIRS] = theirs(size, device, accelerator, compiled)
    found: list[dict[str, Any]] = []
    for rows in batches:
        pixels, ids = rows_of(size, rows, device)
        for name, one in steps.items():
            took = timed(lambda: one(pixels, ids, micro_batch), device, rounds)  # noqa: B023
            speed = 1000 * rows / took["ms"]
            found.append({"way": name, "batch": rows, "micro_batch": min(micro_batch, rows),
                          "pairs_per_s": speed, "mfu": speed * flops / best, **took})  # fmt: skip
            print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    rows = 256 if small else LOSS_ROWS
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "a CPU",
        "peak": source, "compiled": compiled, "precision": precision, "gflop_per_pair": flops / 1e9,
        "steps": found, "loss": {"rows": rows, "width": WIDTH, "ways": loss_alone(rows, device)},
    }  # fmt: skip


def table(found: dict[str, Any]) -> str:
    """Return the tables of the steps and of the loss."""
    how = "compiled by torch" if found["compiled"] else "not compiled"
    lines = [
        f"On {found['device']}: {found['gflop_per_pair']:.4g} GFLOP a pair, towers in "
        f"{found['precision']}, {how}. MFU is the share of {found['peak']}. GB are those of the "
        "step beside weights, moments, gradients and batch.", "",
        f"| batch | rows at a time | way | pairs/s | MFU, % | GB | pairs/s, times *{THEIRS}* |",
        "|--:|--:|---|--:|--:|--:|--:|",
    ]  # fmt: skip
    for one in found["steps"]:
        peer = _of(found, THEIRS, one["batch"])
        times = f"{one['pairs_per_s'] / peer['pairs_per_s']:.2f}" if peer else ""
        lines.append(
            f"| {one['batch']:,} | {one['micro_batch']:,} | {one['way']} | "
            f"{number(one['pairs_per_s'])} | {100 * one['mfu']:.1f} | {_gb(one)} | {times} |"
        )
    loss = found["loss"]
    lines += [
        "", f"InfoNCE alone, {loss['rows']:,} rows of {loss['width']}, forwards and backwards:", "",
        "| way | ms | GB |", "|---|--:|--:|",
        *(f"| {name} | {number(one['ms'])} | {_gb(one)} |" for name, one in loss["ways"].items()),
    ]  # fmt: skip
    return "\n".join(lines)


def _of(found: dict[str, Any], way: str, batch: int) -> dict[str, Any] | None:
    return next((s for s in found["steps"] if (s["way"], s["batch"]) == (way, batch)), None)


def _gb(one: dict[str, float]) -> str:
    return f"{one['peak_gb']:.1f}" if "peak_gb" in one else ""


def reached(found: dict[str, Any]) -> dict[str, tuple[str, bool | None]]:
    """Return what was measured for each target, at every batch, and whether that reaches it."""
    share, speed = TARGETS
    own = [one for one in found["steps"] if one["way"] == OURS]
    out: dict[str, tuple[str, bool | None]] = {
        share: (
            " / ".join(f"{100 * one['mfu']:.1f} %" for one in own),
            all(one["mfu"] >= 0.45 for one in own),
        )
    }
    pairs = [(one, _of(found, THEIRS, one["batch"])) for one in own]
    times = [one["pairs_per_s"] / peer["pairs_per_s"] for one, peer in pairs if peer]
    if times:
        out[speed] = " / ".join(f"{one:.2f} x" for one in times), min(times) >= 1.1
    return out


def main() -> None:
    """Measure, print, and write what was measured on a GPU."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--micro-batch", type=int, default=MICRO_BATCH)
    parser.add_argument("--eager", action="store_true", help="without torch.compile, both sides")
    parser.add_argument("--small", action="store_true", help="tiny towers; nothing is written")
    args = parser.parse_args()
    if not args.small and (why := refused()):
        raise SystemExit(f"benchmarks.gpu: {why}")
    measure_and_write(
        "gpu", small=args.small, batches=args.batches, micro_batch=args.micro_batch,
        eager=args.eager,
    )  # fmt: skip


if __name__ == "__main__":
    main()
