"""Speed of NRCCR's loss terms and of batched transport plans, beside straightforward code.

    OMP_NUM_THREADS=1 python benchmarks/losses.py --write docs/benchmarks/losses.json
    OMP_NUM_THREADS=1 python benchmarks/losses.py --small

Times are CPU milliseconds of this process, medians of rounds in which every way runs once, so that
a busy machine slows all alike. Ways that are compared give the same values and gradients, or the
benchmark fails. POT (`pip install POT`) is measured if it is installed.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from xlcm.losses.feature_distillation import FeatureDistillationLoss
from xlcm.losses.optimal_transport import sinkhorn
from xlcm.losses.similarity_distillation import SimilarityDistillationLoss
from xlcm.losses.triplet import TripletLoss

Sides = dict[str, Tensor]
MARGIN, TEMPERATURE, BETA = 0.2, 0.07, 4.0
EPSILON, ITERATIONS = 0.1, 50


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


def measure_terms(rows: int, width: int, rounds: int) -> dict[str, object]:
    sides = embeddings(rows, width)
    found = {}
    for label, terms in {"all": list(TERMS), **{term: [term] for term in TERMS}}.items():
        # atol: the feature term's gradients are of the order of 1e-7
        wanted, given = step(sides, terms, PLAIN), step(sides, terms, OURS)
        torch.testing.assert_close(given, wanted, rtol=1e-3, atol=1e-6)
        ways = {
            "xlcm": lambda terms=terms: step(sides, terms, OURS),
            "plain": lambda terms=terms: step(sides, terms, PLAIN),
        }
        found[label] = measure(ways, rounds)
    return {"batch": rows, "width": width, "rounds": rounds, "terms": found}


# -- transport ----------------------------------------------------------------------------------


def plain_sinkhorn(cost: Tensor) -> Tensor:
    """The batched loop on logarithms as one writes it down."""
    kernel = -cost / EPSILON
    rows, columns = (-torch.tensor(float(size)).log() for size in cost.shape[1:])
    across = torch.zeros_like(kernel[:, :, :1])
    for _ in range(ITERATIONS):
        along = columns - torch.logsumexp(kernel + across, dim=1, keepdim=True)
        across = rows - torch.logsumexp(kernel + along, dim=2, keepdim=True)
    return (kernel + across + along).exp()


def transport_ways(cost: Tensor) -> dict[str, Callable[[], Tensor]]:
    options = {"epsilon": EPSILON, "iterations": ITERATIONS}
    ways = {
        "xlcm": lambda: sinkhorn(cost, **options),
        "xlcm_in_a_loop": lambda: torch.stack([sinkhorn(one, **options) for one in cost]),
        "plain_batched": lambda: plain_sinkhorn(cost),
        "plain_in_a_loop": lambda: torch.cat([plain_sinkhorn(one) for one in cost.split(1)]),
    }
    if importlib.util.find_spec("ot") is None:
        return ways
    import ot

    rows, columns = (cost.new_full((len(cost), k), 1 / k) for k in cost.shape[1:])
    single = [side[0].double().numpy() for side in (rows, columns)]
    numpy = cost.double().numpy()
    settings = {"numItermax": ITERATIONS, "stopThr": 0, "warn": False}

    def pot_in_a_loop(method: str) -> Tensor:
        plans = [ot.sinkhorn(*single, one, EPSILON, method=method, **settings) for one in numpy]
        return torch.from_numpy(np.stack(plans)).float()

    def pot_batched() -> Tensor:
        # fits rows first, hence the transposed problem
        found = ot.solve_batch(
            cost.mT, EPSILON, columns, rows, max_iter=ITERATIONS, tol=0, method="log_sinkhorn"
        )
        return found.plan.mT

    return ways | {
        "pot_solve_batch": pot_batched,
        "pot_in_a_loop": lambda: pot_in_a_loop("sinkhorn_log"),
    }


def measure_transport(problems: int, size: int, rounds: int) -> dict[str, object]:
    draw = torch.Generator().manual_seed(0)
    words = F.normalize(torch.randn(2, problems, size, 64, generator=draw), dim=3)
    cost = 1 - words[0] @ words[1].mT
    ways = transport_ways(cost)
    plans = {way: run() for way, run in ways.items()}
    for way, plan in plans.items():
        torch.testing.assert_close(
            plan, plans["xlcm"], rtol=0, atol=1e-5, msg=lambda m, way=way: f"{way}: {m}"
        )
    return {
        "problems": problems,
        "size": [size, size],
        "epsilon": EPSILON,
        "iterations": ITERATIONS,
        "rounds": rounds,
        **measure(ways, rounds),
    }


# -- measuring ----------------------------------------------------------------------------------


def measure(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, object]:
    """Return the median of each way and how many times the first one's it is."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    for count in range(rounds + 1):
        for way, run in ways.items():
            start = time.process_time()
            run()
            if count:  # the first round warms up
                times[way].append(1000 * (time.process_time() - start))
    median = {way: statistics.median(taken) for way, taken in times.items()}
    first = next(iter(median.values()))
    return {
        "cpu_ms": {way: round(value, 2) for way, value in median.items()},
        "times_xlcm": {way: round(value / first, 2) for way, value in median.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--small", action="store_true", help="small cases, seconds")
    parser.add_argument("--write", type=Path, help="file for the figures, JSON")
    parser.add_argument("--rounds", type=int, default=15, help="of each way")
    options = parser.parse_args()
    cpu = Path("/proc/cpuinfo").read_text() if platform.system() == "Linux" else ""
    names = [line.split(": ")[1] for line in cpu.splitlines() if line.startswith("model name")]
    model = names[0] if names else platform.processor()
    pot = importlib.metadata.version("POT") if importlib.util.find_spec("ot") else None
    machine = {"cpu": model, "threads": torch.get_num_threads(), "torch": torch.__version__}
    found = {
        "command": "OMP_NUM_THREADS=1 python benchmarks/losses.py",
        "machine": {**machine, "pot": pot},
        "nrccr": measure_terms(*((64, 128) if options.small else (512, 1024)), options.rounds),
        "sinkhorn": measure_transport(*((8, 16) if options.small else (128, 32)), options.rounds),
    }
    print(json.dumps(found, indent=2))
    if options.write:
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
