"""What do the contrastive losses of a large batch cost, beside plain PyTorch, open_clip and others?

Forward and backward pass from embeddings, to the gradients of both sides, the scale and, for the
sigmoid loss, the bias; one process. `plain` is what the papers print: CLIP's figure 3, one product
and two cross-entropies, and SigLIP's algorithm 1. `in chunks` is the sigmoid loss over blocks of
1,024 rows without checkpoints, the usual remedy, which the released open_clip doesn't have.
`SupCon` and `NT-Xent` are pytorch-metric-learning's losses of the same value, once a direction; its
NT-Xent holds each row's score with every pair, B x B x B numbers (256 GiB at 4,096), hence the
small case. `U` is one product of all rows with all columns, in tiles of the size that the losses
use: plain forms do 3 U of arithmetic, open_clip's ClipLoss 6 U, InfoNCE in tiles 3 U to 4 U, the
sigmoid loss in tiles 3 U, the distillation in tiles 4 U to 6 U.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import Found, compare, installed, number
from xlcm.losses.info_nce import InfoNCELoss
from xlcm.losses.score_tiles import Cut, Scores, shaped
from xlcm.losses.sigmoid import SigmoidLoss
from xlcm.losses.similarity_distillation import SimilarityDistillationLoss

PEERS = ("open_clip_torch", "pytorch-metric-learning")
TARGETS = {
    "InfoNCE, B = 4,096, d = 256 / 512 / 1,024": "CPU time at most 0.9 of plain and 0.8 of "
    "open_clip, memory at most 0.3",
    "InfoNCE, B = 16,384, d = 512": "CPU time at most 0.65 of plain, memory at most 0.05",
    "InfoNCE, B = 65,536, d = 256": "under 500 MB",
    "sigmoid, B = 4,096, d = 256 / 512 / 1,024": "CPU time at most 0.95 of chunks, memory "
    "at most 0.7",
    "sigmoid, B = 16,384, d = 512": "CPU time at most 0.95 of chunks, memory at most 0.7",
}
OURS, PLAIN, PEER, CHUNKS, PRODUCT = "xlcm", "plain", "open_clip", "in chunks", "U"
SUPCON, NTXENT = "SupCon", "NT-Xent"
CHUNK = 1024
FEW = 256
"""Rows up to which NT-Xent is run; SupCon holds a dozen score matrices and is run up to `SOME`."""
SOME = 4096
Sides = dict[str, Tensor]
Way = Callable[[Sides], Tensor]


def sides(rows: int, width: int) -> Sides:
    """Return embeddings whose pairs half agree, scale and bias, and a teacher's embeddings."""
    draw = torch.Generator().manual_seed(0)
    common = torch.randn(rows, width, generator=draw)
    names = ("image", "text", "teacher_image", "teacher_text")
    drawn = {name: common + 2 * torch.randn(rows, width, generator=draw) for name in names}
    found = {name: F.normalize(side).requires_grad_() for name, side in drawn.items()}
    return found | {
        "scale": torch.tensor(14.3, requires_grad=True),
        "bias": torch.tensor(-10.0, requires_grad=True),
    }


# -- the ways -----------------------------------------------------------------------------------


def ours_info_nce(of: Sides) -> Tensor:
    group = torch.arange(len(of["image"]))
    return InfoNCELoss()(of["image"], of["text"], group=group, scale=of["scale"])


def plain_info_nce(of: Sides) -> Tensor:
    logits = of["scale"] * of["image"] @ of["text"].T
    own = torch.arange(len(logits))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def peer_info_nce() -> Way:
    from open_clip.loss import ClipLoss

    loss = ClipLoss(cache_labels=True)
    return lambda of: loss(of["image"], of["text"], of["scale"])


def metric_learning(name: str) -> Way:
    """Return both directions of a loss of pytorch-metric-learning, the scale in the embeddings."""
    from pytorch_metric_learning import losses
    from pytorch_metric_learning.distances import DotProductSimilarity

    distance = DotProductSimilarity(normalize_embeddings=False)
    loss = getattr(losses, name)(temperature=1.0, distance=distance)

    def run(of: Sides) -> Tensor:
        own = torch.arange(len(of["image"]))
        same = own.clone()  # the tensor itself would mean: not with oneself
        pairs = (of["image"], of["text"]), (of["text"], of["image"])
        each = [loss(of["scale"] * q, own, ref_emb=other, ref_labels=same) for q, other in pairs]
        return (each[0] + each[1]) / 2

    return run


def ours_sigmoid(of: Sides) -> Tensor:
    group = torch.arange(len(of["image"]))
    return SigmoidLoss()(of["image"], of["text"], group=group, scale=of["scale"], bias=of["bias"])


def sigmoid_in_chunks(of: Sides, chunk: int = CHUNK) -> Tensor:
    total = of["image"].new_zeros(())
    for start in range(0, len(of["image"]), chunk):
        logits = of["scale"] * of["image"][start : start + chunk] @ of["text"].T + of["bias"]
        labels = -torch.ones_like(logits)
        labels[:, start : start + chunk].fill_diagonal_(1)
        total = total - F.logsigmoid(labels * logits).sum()
    return total / len(of["image"])


def plain_sigmoid(of: Sides) -> Tensor:
    return sigmoid_in_chunks(of, len(of["image"]))


def peer_sigmoid() -> Way:
    from open_clip.loss import SigLipLoss

    loss = SigLipLoss()
    return lambda of: loss(of["image"], of["text"], of["scale"], of["bias"])


def distillation(tiled: str) -> Way:
    loss = SimilarityDistillationLoss(tiled=tiled)  # type: ignore[arg-type]

    def run(of: Sides) -> Tensor:
        taught = loss.targets([(of["teacher_text"], of["teacher_image"])])
        return loss(of["text"], of["image"], taught)

    return run


def info_nce_ways(rows: int) -> dict[str, Way]:
    peer = {PEER: peer_info_nce()} if installed(PEERS[0]) else {}
    if installed(PEERS[1]) and rows <= SOME:
        peer[SUPCON] = metric_learning("SupConLoss")
    if installed(PEERS[1]) and rows <= FEW:
        peer[NTXENT] = metric_learning("NTXentLoss")
    return {OURS: ours_info_nce, PLAIN: plain_info_nce, **peer}


def sigmoid_ways(rows: int) -> dict[str, Way]:
    peer = {PEER: peer_sigmoid()} if installed(PEERS[0]) else {}
    return {OURS: ours_sigmoid, CHUNKS: sigmoid_in_chunks, PLAIN: plain_sigmoid, **peer}


def distillation_ways(rows: int) -> dict[str, Way]:
    return {OURS: distillation("always"), PLAIN: distillation("never")}


def product(of: Sides) -> Callable[[], None]:
    """Return what multiplies all rows with all columns once, and keeps nothing."""
    scores = Scores(of["image"].detach(), of["text"].detach(), 1.0)
    cut = Cut(len(scores.rows), len(scores.columns))

    def run() -> None:
        scratch = cut.scratch(scores.rows)
        for row, column in cut:
            scores.tile(row, column, shaped(scratch, row, column))

    return run


# -- measuring ----------------------------------------------------------------------------------

LOSSES: dict[str, tuple[Callable[[int], dict[str, Way]], str, tuple[str, ...]]] = {
    "InfoNCE": (info_nce_ways, PLAIN, ("image", "text", "scale")),
    "sigmoid": (sigmoid_ways, CHUNKS, ("image", "text", "scale", "bias")),
    "similarity distillation": (distillation_ways, PLAIN, ("image", "text")),
}
"""Ways, the one that others are compared with, and what gets a gradient."""


def measure_one(name: str, rows: int, width: int, rounds: int, *, alone: bool = False) -> Found:
    """Time all ways of a loss; one round is a single run of each, without warming up."""
    make, _, wanted = LOSSES[name]
    ways, of = make(rows), sides(rows, width)
    if alone:
        ways = {OURS: ways[OURS]}
    leaves = [of[leaf] for leaf in wanted]
    values: dict[str, float] = {}

    def run(way: str) -> tuple[Tensor, ...]:
        value = ways[way](of)
        values[way] = value.item()
        return torch.autograd.grad(value, leaves)

    if rounds > 1:
        known = run(OURS)
        for way in ways:
            for one, other in zip(run(way), known):
                assert (one - other).norm() <= 1e-5 * other.norm(), f"{name}: {way} differs"
    calls: dict[str, Callable[[], object]] = {way: lambda way=way: run(way) for way in ways}
    calls[PRODUCT] = product(of)
    found = compare(calls, rounds=rounds, once=tuple(calls) if rounds == 1 else ())
    for way, value in values.items():
        assert abs(value / values[OURS] - 1) < 1e-5, f"{name}: {way} gives {value}"
    return found


def measure(*, small: bool) -> dict[str, Any]:
    """Measure all losses and sizes."""
    if small:
        cases = [("InfoNCE", 64, 32, 2)] + [(name, 1024, 32, 2) for name in LOSSES]
    else:
        cases = [("InfoNCE", FEW, 512, 3)]
        cases += [
            (name, 4096, width, 3) for name in ("InfoNCE", "sigmoid") for width in (256, 512, 1024)
        ]
        cases += [("InfoNCE", 16384, width, 1) for width in (256, 512, 1024)]
        cases += [("sigmoid", 16384, 512, 1), ("similarity distillation", 4096, 512, 3)]
    found = [
        {"loss": case[0], "rows": case[1], "width": case[2], "ways": measure_one(*case)}
        for case in cases
    ]
    if not small:
        ways = measure_one("InfoNCE", 65536, 256, 1, alone=True)
        found.append({"loss": "InfoNCE", "rows": 65536, "width": 256, "ways": ways})
    return {"cases": found}


def table(found: dict[str, Any]) -> str:
    """Return one table a loss."""
    parts = [__doc__.partition("\n\n")[2].strip()] if __doc__ else []
    for name, (_, base, _) in LOSSES.items():
        lines = [
            f"**{name}**\n",
            f"| B | d | way | CPU ms | wall ms | in U | memory MB | CPU, times *{base}* | "
            f"memory, times *{base}* |",
            "|--:|--:|---|--:|--:|--:|--:|--:|--:|",
        ]
        for case in found["cases"]:
            if case["loss"] == name:
                lines += _rows(case, base)
        if len(lines) > 3:
            parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _rows(case: dict[str, Any], base: str) -> list[str]:
    ways: Found = case["ways"]
    lines = []
    for way, one in ways.items():
        once = " *(once)*" if one["rounds"] == 1 else ""
        shown = [number(one[key]) for key in ("cpu_ms", "wall_ms")]
        shown.append(f"{one['cpu_ms'] / ways[PRODUCT]['cpu_ms']:.1f}")
        shown.append(f"{one['peak_mb']:,.0f}" if "peak_mb" in one else "")
        shown += [_times(ways, way, base, key) for key in ("cpu_ms", "peak_mb")]
        size = f"{case['rows']:,} | {case['width']:,}"
        lines.append(f"| {size} | {way}{once} | {' | '.join(shown)} |")
    return lines


def _times(ways: Found, way: str, base: str, key: str) -> str:
    known = way != PRODUCT and base in ways and ways[base].get(key)
    return f"{ways[way][key] / ways[base][key]:.2f}" if known else ""


def reached(found: dict[str, Any]) -> dict[str, tuple[str, bool]]:
    """Return for each target what was measured, and whether that reaches it."""
    by = {(case["loss"], case["rows"], case["width"]): case["ways"] for case in found["cases"]}
    limits = {
        "InfoNCE, B = 4,096, d = 256 / 512 / 1,024": (
            "InfoNCE",
            4096,
            (256, 512, 1024),
            PLAIN,
            0.9,
            0.3,
        ),
        "InfoNCE, B = 16,384, d = 512": ("InfoNCE", 16384, (512,), PLAIN, 0.65, 0.05),
        "sigmoid, B = 4,096, d = 256 / 512 / 1,024": (
            "sigmoid",
            4096,
            (256, 512, 1024),
            CHUNKS,
            0.95,
            0.7,
        ),
        "sigmoid, B = 16,384, d = 512": ("sigmoid", 16384, (512,), CHUNKS, 0.95, 0.7),
    }
    out = {}
    for target, (loss, rows, widths, base, time, memory) in limits.items():
        cases = [by[loss, rows, width] for width in widths if (loss, rows, width) in by]
        if not cases:
            continue
        times = [case[OURS]["cpu_ms"] / case[base]["cpu_ms"] for case in cases]
        told, good = f"{base}: {_listed(times)}", max(times) <= time
        if loss == "InfoNCE" and all(PEER in case for case in cases):
            others = [case[OURS]["cpu_ms"] / case[PEER]["cpu_ms"] for case in cases]
            told, good = f"{told}; {PEER}: {_listed(others)}", good and max(others) <= 0.8
        if all(case[base].get("peak_mb") for case in cases):
            shares = [case[OURS]["peak_mb"] / case[base]["peak_mb"] for case in cases]
            told, good = f"{told}; memory: {_listed(shares)}", good and max(shares) <= memory
            if max(shares) > memory:  # the gradients of both sides are results, whoever makes them
                held = [2 * rows * case_width * 4 / 2**20 for case_width in widths]
                least = [m / case[base]["peak_mb"] for m, case in zip(held, cases)]
                told += f" (gradients alone: {_listed(least)})"
        out[target] = (told, good)
    largest = by.get(("InfoNCE", 65536, 256), {}).get(OURS, {})
    if "peak_mb" in largest:
        held = largest["peak_mb"]
        out["InfoNCE, B = 65,536, d = 256"] = (f"{held:,.0f} MB", held < 500)
    return out


def _listed(values: list[float]) -> str:
    return " / ".join(f"{value:.2f}" for value in values)
