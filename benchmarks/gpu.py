"""On a GPU: how many pairs a second does a training step do, beside open_clip's?

    python -m benchmarks.gpu                        # all of it; some minutes on one GPU
    python -m benchmarks.gpu --batches 1024 4096
    python -m benchmarks.gpu --small                # tiny towers on a CPU: does the script run?

ViT-B/16 at 224 pixels and a tower of XLM-R base's size on captions of 64 tokens, random weights,
bf16 autocast, InfoNCE, clipping, fused AdamW. Batches that don't fit are encoded in pieces: by
gradient caching here, by `--accum-freq` in open_clip, whose step is written here of its towers and
its ClipLoss, as its trainer does it. Then the loss alone at 32,768 rows. Writes
docs/benchmarks/gpu.json.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from benchmarks.measure import installed, machine
from benchmarks.run import write
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

RESULTS = Path(__file__).parents[1] / "docs" / "benchmarks" / "gpu.json"
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


def timed(run: Callable[[], None], device: torch.device, rounds: int) -> tuple[float, float]:
    """Return median seconds of a call, after a first one, and the GB that it held beside the rest.

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
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else float("nan")
    return statistics.median(taken), (peak - held) / 2**30


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

    found = {}
    for name, way in {"xlcm": tiled, "plain": plain}.items():
        seconds, memory = timed(way, device, 3)
        found[name] = {"ms": 1000 * seconds, "peak_gb": memory}
    return found


def main() -> None:
    """Measure, print, and write what was measured on a GPU."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1024, 4096, 16_384, 32_768])
    parser.add_argument("--micro-batch", type=int, default=512)
    parser.add_argument("--eager", action="store_true", help="without torch.compile, both sides")
    parser.add_argument("--small", action="store_true", help="tiny towers; nothing is written")
    args = parser.parse_args()
    if not (torch.cuda.is_available() or args.small):
        raise SystemExit("no GPU here; --small tries the script on a CPU")
    size, rounds = ("small", 1) if args.small else ("full", 3)
    batches, micro = ([32], 8) if args.small else (args.batches, args.micro_batch)
    compiled = not (args.eager or args.small)
    accelerator = Accelerator(mixed_precision="no" if args.small else "bf16")
    device = accelerator.device
    torch.backends.cuda.matmul.allow_tf32 = True
    best, source = peak(device, "fp32" if args.small else "bf16")

    method, step = ours(size, device, accelerator)
    pixels, ids = rows_of(size, max(8, min(batches)), device)
    captions = TextBatch(ids[:8], torch.ones_like(ids[:8], dtype=torch.bool))
    few = Batch(torch.arange(8, device=device), Visual(pixels[:8]), {"source": captions})
    flops = flops_of_row(method, few)
    if compiled:
        compile_towers(method)
    steps: dict[str, Any] = {"xlcm": step}
    if installed("open_clip_torch"):
        steps["open_clip"] = theirs(size, device, accelerator, compiled)
    found: list[dict[str, Any]] = []
    for rows in batches:
        pixels, ids = rows_of(size, rows, device)
        for name, one in steps.items():
            seconds, memory = timed(lambda: one(pixels, ids, micro), device, rounds)  # noqa: B023
            found.append({"way": name, "batch": rows, "micro_batch": min(micro, rows),
                          "pairs_per_s": rows / seconds, "mfu": rows * flops / seconds / best,
                          "peak_gb": memory})  # fmt: skip
            print(json.dumps(found[-1]), flush=True)
    losses = loss_alone(256 if args.small else LOSS_ROWS, device)
    print(json.dumps(losses))
    if not args.small:
        told = {
            "device": torch.cuda.get_device_name(), "peak": source, "compiled": compiled,
            "gflop_per_pair": flops / 1e9, "machine": machine(("open_clip_torch",)),
            "steps": found, "loss": {"rows": LOSS_ROWS, "width": WIDTH, **losses},
        }  # fmt: skip
        write(RESULTS, json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
