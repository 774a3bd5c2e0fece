"""How fast are batched transport plans (Sinkhorn), beside POT?

Costs are 1 - cosine between random words, masses uniform, float32 unless said. Every solver does
all its iterations. POT's `solve_batch` works on torch and on all problems at once, its loop is
`ot.sinkhorn(method="sinkhorn_log")` in float64 on numpy, a problem at a time; `factors` stands for
their multiplicative form, which is left out where it gives NaN. Plans are compared with POT's
of float64: the deviation is the largest one of a row's shares, each row summing to 1.

The last table is the gradient of the transport distance: of a constant plan, as xlcm has it, beside
the same iterations on logarithms with autograd through all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import Found, compare, installed, markdown, ratios
from xlcm.losses.optimal_transport import sinkhorn, transport_distance

PEERS = ("POT",)
TARGETS = {
    "POT's solve_batch on logarithms": "at least 1.5 times as fast",
    "a loop over POT's solver on logarithms, epsilon 0.05": "at least 50 times as fast",
    "plans in float64": "shares within 1e-5 of POT's",
    "epsilon 0.001 in float32": "finite",
}
OURS, BATCH, BATCH_FACTORS = "xlcm", "POT solve_batch, logarithms", "POT solve_batch, factors"
LOOP, LOOP_FACTORS = "POT loop, logarithms", "POT loop, factors"
DETACHED, UNROLLED = "xlcm, constant plan", "unrolled"
Plans = Callable[[], Tensor]


def costs(problems: int, size: int) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    words = F.normalize(torch.randn(2, problems, size, 64, generator=draw), dim=3)
    return 1 - words[0] @ words[1].mT


# -- the ways -----------------------------------------------------------------------------------


def peers(cost: Tensor, epsilon: float, iterations: int) -> dict[str, Plans]:
    """Return POT's ways; it fits rows first, hence the transposed problems of its batches."""
    import ot

    rows, columns = (cost.new_full((len(cost), k), 1 / k) for k in cost.shape[1:])
    single = [np.full(size, 1 / size) for size in cost.shape[1:]]
    in_numpy = cost.double().numpy()

    def batch(method: str) -> Tensor:
        options = {"max_iter": iterations, "tol": 0, "method": method}
        return ot.solve_batch(cost.mT, epsilon, columns, rows, **options).plan.mT

    def loop(method: str) -> Tensor:
        options = {"method": method, "numItermax": iterations, "stopThr": 0, "warn": False}
        plans = [ot.sinkhorn(*single, one, epsilon, **options) for one in in_numpy]
        return torch.from_numpy(np.stack(plans))

    ways: dict[str, Plans] = {
        BATCH: lambda: batch("log_sinkhorn"),
        BATCH_FACTORS: lambda: batch("sinkhorn"),
        LOOP: lambda: loop("sinkhorn_log"),
        LOOP_FACTORS: lambda: loop("sinkhorn"),
    }
    with np.errstate(all="ignore"):
        return {name: way for name, way in ways.items() if way().isfinite().all()}


def unrolled(cost: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Return plans with the graph of all iterations."""
    kernel = -cost / epsilon
    rows, columns = (-torch.tensor(float(size)).log() for size in cost.shape[1:])
    across = torch.zeros_like(kernel[:, :, :1])
    for _ in range(iterations):
        along = columns - torch.logsumexp(kernel + across, dim=1, keepdim=True)
        across = rows - torch.logsumexp(kernel + along, dim=2, keepdim=True)
    return (kernel + across + along).exp()


# -- measuring ----------------------------------------------------------------------------------


def measure_plans(
    problems: int, size: int, iterations: int, epsilon: float, rounds: int
) -> dict[str, Any]:
    cost = costs(problems, size)
    options = {"epsilon": epsilon, "iterations": iterations}
    ways: dict[str, Plans] = {OURS: lambda: sinkhorn(cost, **options)}  # type: ignore[arg-type]
    found: dict[str, Any] = {"problems": problems, "size": size, **options}
    exact = unrolled(cost.double(), epsilon, iterations)
    if installed(PEERS[0]):
        ways |= peers(cost, epsilon, iterations)
        exact = ways[LOOP]()
    double = sinkhorn(cost.double(), epsilon=epsilon, iterations=iterations)
    plans = {"float32": ways[OURS](), "float64": double}
    for name, plan in plans.items():
        deviation = size * (plan - exact).abs().max().item()
        assert deviation < (1e-5 if name == "float64" else 1e-2), f"{name}: {deviation}"
        found[f"deviation_{name}"] = deviation
    slow = [name for name in (LOOP, LOOP_FACTORS) if name in ways]
    return found | {"ways": compare(ways, rounds=rounds, memory=False, once=slow)}


def measure_gradient(problems: int, size: int, iterations: int, rounds: int) -> Found:
    cost = costs(problems, size).requires_grad_()

    def distance(plan: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(transport_distance(plan, cost).sum(), cost)
        return gradient

    ways = {
        DETACHED: lambda: distance(sinkhorn(cost, epsilon=0.1, iterations=iterations)),
        UNROLLED: lambda: distance(unrolled(cost, 0.1, iterations)),
    }
    return compare(ways, rounds=rounds)


def measure(*, small: bool) -> dict[str, Any]:
    """Return figures by problem, and of the gradient."""
    if small:
        cases, gradient = [(6, 12, 20, 0.05, 2), (1, 24, 20, 0.005, 2)], (6, 12, 20, 2)
    else:
        shapes = [(1, 512, 100), (128, 32, 50)]
        cases = [(*shape, epsilon, 15) for shape in shapes for epsilon in (0.05, 0.005)]
        gradient = (1, 512, 100, 7)
    tiny = [sinkhorn(costs(*shape), epsilon=0.001, iterations=50) for shape in ((1, 64), (8, 32))]
    return {
        "cases": [measure_plans(*case) for case in cases],
        "finite": all(bool(plan.isfinite().all()) for plan in tiny),
        "gradient": measure_gradient(*gradient),
    }


def reached(found: dict[str, Any]) -> dict[str, tuple[str, bool]]:
    """Return what each case gave; a target is reached if all of them reach it."""
    double = max(case["deviation_float64"] for case in found["cases"])
    said = {
        "plans in float64": (f"{double:.0e} at most", double <= 1e-5),
        "epsilon 0.001 in float32": ("finite" if found["finite"] else "not", found["finite"]),
    }
    for (peer, asked, least), target in zip(((BATCH, 1.5, 0.0), (LOOP, 50, 0.05)), TARGETS):
        times = [
            ratios(case["ways"], OURS)[peer]["cpu"]
            for case in found["cases"]
            if peer in case["ways"] and case["epsilon"] >= least
        ]
        if times:
            shown = ", ".join(f"{one:.1f}" if one < 100 else f"{one:.0f}" for one in times)
            said[target] = (f"{shown} times", min(times) >= asked)
    return said


def table(found: dict[str, Any]) -> str:
    """Return a table for each case, and that of the gradient."""
    parts = [
        f"{case['problems']} x ({case['size']} x {case['size']}), {case['iterations']} iterations, "
        f"epsilon {case['epsilon']}; deviation {case['deviation_float32']:.0e} in float32, "
        f"{case['deviation_float64']:.0e} in float64:\n\n{markdown(case['ways'], OURS)}"
        for case in found["cases"]
    ]
    return "\n\n".join([*parts, f"Gradient:\n\n{markdown(found['gradient'], UNROLLED)}"])
