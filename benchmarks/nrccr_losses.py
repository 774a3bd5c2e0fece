"""What do NRCCR's loss terms cost, beside the same as one writes it down?

Batch 512, d = 1,024, float32; forward and backward pass from embeddings to their gradients, of all
five terms together and of each alone. Both ways give the same values and gradients. `plain` makes
one matrix of similarities a term and no other short cuts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import Found, compare, number, ratios
from xlcm.losses.feature_distillation import FeatureDistillationLoss
from xlcm.losses.similarity_distillation import SimilarityDistillationLoss
from xlcm.losses.triplet import TripletLoss

PEERS: tuple[str, ...] = ()
TARGETS: dict[str, str] = {}
Sides = dict[str, Tensor]
MARGIN, TEMPERATURE, BETA = 0.2, 0.07, 4.0


def embeddings(rows: int, width: int) -> Sides:
    """Return images, captions, teacher and back-translations that half agree, as leaves."""
    draw = torch.Generator().manual_seed(0)
    common = torch.randn(rows, width, generator=draw)
    names = ("image", "source", "target", "teacher", "back")
    drawn = {name: common + 1.5 * torch.randn(rows, width, generator=draw) for name in names}
    return {name: F.normalize(side).requires_grad_() for name, side in drawn.items()}


# -- NRCCR's terms, xlcm's ----------------------------------------------------------------------

triplet = TripletLoss(margin=MARGIN, reduction="sum")
similarity = SimilarityDistillationLoss(
    temperature=TEMPERATURE, divergence="cross_entropy", detach_teacher=False
)
feature = FeatureDistillationLoss(beta=BETA)


def ours_triplet(left: Tensor, right: Tensor) -> Tensor:
    return triplet(left, right, group=torch.arange(len(left)))


def ours_similarity(image: Tensor, target: Tensor, teacher: Tensor) -> Tensor:
    return similarity(target, image, similarity.targets([(teacher.detach(), image)]))


# -- the same as one writes it down -------------------------------------------------------------


def plain_triplet(left: Tensor, right: Tensor) -> Tensor:
    scores = right @ left.T
    pair = scores.diag()
    own = torch.eye(len(scores), dtype=torch.bool)
    rows = (MARGIN + scores - pair[:, None]).clamp(min=0).masked_fill(own, 0)
    columns = (MARGIN + scores - pair[None, :]).clamp(min=0).masked_fill(own, 0)
    return rows.max(dim=1).values.sum() + columns.max(dim=0).values.sum()


def plain_similarity(image: Tensor, target: Tensor, teacher: Tensor) -> Tensor:
    student = image @ target.T / TEMPERATURE
    taught = image @ teacher.detach().T / TEMPERATURE
    forth = -(taught.softmax(dim=1) * student.log_softmax(dim=1)).sum(dim=1).mean()
    back = -(taught.T.softmax(dim=1) * student.T.log_softmax(dim=1)).sum(dim=1).mean()
    return (forth + back) / 2


def plain_feature(student: Tensor, teacher: Tensor) -> Tensor:
    return F.smooth_l1_loss(student, teacher, beta=BETA)


TERMS: dict[str, tuple[tuple[str, ...], Callable[..., Tensor], Callable[..., Tensor]]] = {
    "image_source": (("image", "source"), ours_triplet, plain_triplet),
    "image_target": (("image", "target"), ours_triplet, plain_triplet),
    "similarity": (("image", "target", "teacher"), ours_similarity, plain_similarity),
    "feature": (("target", "teacher"), feature, plain_feature),
    "cycle": (("back", "source"), ours_triplet, plain_triplet),
}
"""Names of the sides, xlcm's loss, the plain one."""
OURS, PLAIN = 1, 2


def step(sides: Sides, terms: list[str], way: int) -> list[Tensor]:
    """Run these terms forward and backward; return the sum and the gradients."""
    values = [TERMS[term][way](*(sides[name] for name in TERMS[term][0])) for term in terms]
    used = sorted({name for term in terms for name in TERMS[term][0]})
    total = torch.stack(values).sum()
    found = torch.autograd.grad(total, [sides[name] for name in used], allow_unused=True)
    return [total.detach(), *(gradient for gradient in found if gradient is not None)]


# -- measuring ----------------------------------------------------------------------------------


def measure_terms(sides: Sides, terms: list[str], rounds: int) -> Found:
    # atol: the feature term's gradients are of the order of 1e-7
    torch.testing.assert_close(
        step(sides, terms, OURS), step(sides, terms, PLAIN), rtol=1e-3, atol=1e-6
    )
    ways = {
        "xlcm": lambda: step(sides, terms, OURS),
        "plain": lambda: step(sides, terms, PLAIN),
    }
    return compare(ways, rounds=rounds)


def measure(*, small: bool) -> dict[str, Any]:
    """Return figures of all terms together and of each."""
    rows, width, rounds = (64, 128, 3) if small else (512, 1024, 25)
    sides = embeddings(rows, width)
    cases = {"all": list(TERMS), **{term: [term] for term in TERMS}}
    found = {label: measure_terms(sides, terms, rounds) for label, terms in cases.items()}
    return {"batch": rows, "width": width, "terms": found}


def table(found: dict[str, Any]) -> str:
    """Return one table of all terms."""
    lines = [
        "| terms | xlcm, CPU ms | plain, CPU ms | CPU, xlcm to plain | xlcm, MB | plain, MB |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for label, ways in found["terms"].items():
        times = [number(ways[way]["cpu_ms"]) for way in ways]
        memory = [f"{ways[way]['peak_mb']:.1f}" if "peak_mb" in ways[way] else "" for way in ways]
        ratio = f"{ratios(ways, 'plain')['xlcm']['cpu']:.2f}"
        lines.append(f"| {' | '.join([label, *times, ratio, *memory])} |")
    return "\n".join(lines)
