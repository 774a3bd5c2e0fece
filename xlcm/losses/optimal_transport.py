"""Optimal transport of many small problems at once: entropic plans, nearly exact plans, distances.

Each problem moves the masses of its rows to its columns where that costs least. Padded rows and
columns are masked out and get exactly 0. Plans are constants: no gradient passes through a solver.
By the envelope theorem the gradient of a least cost with respect to the costs is the plan itself,
so `transport_distance(plan, cost)` has it without an unrolled loop in memory.
"""

from __future__ import annotations

import math
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from xlcm.losses.base import full_precision

SUM_TOLERANCE = 1e-4
"""Relative; sums of float32 masses differ by rounding."""
ROUNDING = 0.2
"""Most that rounding may come to in the logarithm of a plan, before it means nothing."""


@full_precision
def sinkhorn(
    cost: Tensor,
    row_mask: Tensor | None = None,
    column_mask: Tensor | None = None,
    *,
    row_mass: Tensor | None = None,
    column_mass: Tensor | None = None,
    epsilon: float = 0.1,
    iterations: int = 50,
) -> Tensor:
    r"""Return the plans P that minimise $\sum P C + \epsilon \sum P (\log P - 1)$.

    Each iteration fits the columns and then the rows, so that the row sums of the result are
    exact and the column sums are as good as it has converged. The iteration works on logarithms
    wherever the range of the costs over `epsilon` would leave that of floats, and else on the same
    potentials as factors, which saves the exponentials; the two differ by rounding.

    Args:
        cost: `(p, n, m)`, or `(n, m)` for one problem; what it holds in masked cells is ignored.
        row_mask: `(p, n)`, true on real rows; None: all are.
        column_mask: `(p, m)`, likewise.
        row_mass: `(p, n)`, above 0; None: the real rows share 1 alike. Masked rows' is ignored.
        column_mass: `(p, m)`, likewise; each problem's two sums must be equal.
        epsilon: in units of the cost; the smaller, the nearer to the cheapest plan and the more
            iterations it needs.
        iterations: always all of them, so that no result depends on the other problems.

    Returns:
        `(p, n, m)` plans (`(n, m)` for one problem) without gradient, in float32, or float64 for
        such costs; masked cells are exactly 0.

    Raises:
        ValueError: for a cost that is not finite, a problem without rows or columns, masses that
            are not above 0 or don't sum alike, each with problem and place; for costs too far apart
            for `epsilon`, shapes that don't fit, and options out of range.

    Source: Cuturi 2013, https://arxiv.org/abs/1306.0895, algorithm 1; on logarithms: Peyré and
    Cuturi 2019, https://arxiv.org/abs/1803.00567, section 4.4.
    """
    _check_options(epsilon=epsilon, iterations=iterations)
    with torch.no_grad():
        problems = _prepare(cost, row_mask, column_mask, row_mass, column_mass, epsilon)
        kernel = problems.gain.div_(epsilon)
        if _within_floats(problems, epsilon):
            plan = _fit_factors(kernel.exp_(), problems.rows, problems.columns, iterations)
        else:
            plan = _fit_logarithms(kernel, problems.rows, problems.columns, iterations)
        return plan[0] if cost.ndim == 2 else plan


@full_precision
def ipot(
    cost: Tensor,
    row_mask: Tensor | None = None,
    column_mask: Tensor | None = None,
    *,
    row_mass: Tensor | None = None,
    column_mass: Tensor | None = None,
    proximal: float = 0.5,
    iterations: int = 50,
    inner: int = 1,
) -> Tensor:
    r"""Return plans that come close to the cheapest ones, by inexact proximal steps.

    Each step looks for the cheapest plan not far from the one before:
    $\min \sum P C + \beta KL(P, P_t)$, solved by `inner` fits of rows and then columns. After t
    steps that is an entropic plan with $\epsilon = \beta / t$; column sums are exact, row sums as
    good as it has converged.

    On logarithms, with f and g the potentials of $\exp(f + g - t C / \beta)$, a fit is one of
    Sinkhorn's for the kernel of step t; the published algorithm's factors, which live on from
    step to step, make g start at $2 g_t - g_{t-1}$.

    Args:
        cost: as all tensors, in `sinkhorn`.
        row_mask: `(p, n)`.
        column_mask: `(p, m)`.
        row_mass: `(p, n)`.
        column_mass: `(p, m)`.
        proximal: beta, in units of the cost.
        iterations: outer steps, t.
        inner: fits a step.

    Returns:
        As `sinkhorn`.

    Raises:
        ValueError: as `sinkhorn`.

    Source: Xie et al. 2018, https://arxiv.org/abs/1802.04307, algorithm 1.
    """
    _check_options(proximal=proximal, iterations=iterations, inner=inner)
    with torch.no_grad():
        reached = proximal / iterations  # the epsilon of the last step
        problems = _prepare(cost, row_mask, column_mask, row_mass, column_mass, reached)
        kernel = problems.gain.div_(proximal)
        buffer = torch.empty_like(kernel)
        rows, columns = problems.rows.log()[:, :, None], problems.columns.log()[:, None, :]
        unused = columns == -torch.inf
        before = after = torch.zeros_like(columns).masked_fill_(unused, -torch.inf)
        for step in range(1, iterations + 1):
            # -inf + inf at unused columns is no number
            fitted = (2 * after - before).masked_fill_(unused, -torch.inf)
            before = after
            for _ in range(inner):
                across = rows - _logsumexp(kernel, fitted, 2, buffer, step)
                after = columns - _logsumexp(kernel, across, 1, buffer, step)
                fitted = after
        plan = torch.add(across + after, kernel, alpha=iterations, out=buffer).exp_()
        return plan[0] if cost.ndim == 2 else plan


def transport_distance(plan: Tensor, cost: Tensor) -> Tensor:
    """Return what each plan costs: `(p,)`, or `()` for one problem.

    Args:
        plan: `(p, n, m)` or `(n, m)`; 0 in cells that do not count.
        cost: the same shape, with gradient if it is to be learnt; ignored where the plan is 0.

    Raises:
        ValueError: if the shapes differ.
    """
    if plan.shape != cost.shape:
        raise ValueError(f"plan {tuple(plan.shape)} and cost {tuple(cost.shape)} must be equal")
    return (plan * cost.masked_fill(plan == 0, 0.0)).sum(dim=(-2, -1))


# -- solvers ------------------------------------------------------------------------------------


def _within_floats(problems: _Problems, epsilon: float) -> bool:
    """Whether no factor can leave the range of floats, for any number of iterations.

    For costs centred on 0 whose range is R epsilons, the potentials' range at the optimum is at
    most R plus that of the logarithms of the masses. Sinkhorn's step brings no two potentials
    further apart in the maximum norm, so from 0 none goes further than twice as far as the nearest
    optimum is from 0; what the other side adds to it is at most R / 2, masses and a count.
    """
    if len(problems.gain) == 0:
        return True
    masses = problems.rows, problems.columns
    logarithms = sum(mass.log().nan_to_num_(neginf=0.0).abs().max() for mass in masses)
    count = math.log(max(problems.gain.shape[1:]))
    reached = 1.5 * problems.range / epsilon + 2 * logarithms + count
    return bool(reached < 0.9 * math.log(torch.finfo(problems.gain.dtype).max))


def _fit_factors(kernel: Tensor, rows: Tensor, columns: Tensor, iterations: int) -> Tensor:
    # Unused rows and columns have factors of 0; the kernel's cells there are 1, so nothing is 0/0.
    # As rows of a product the factors are twice as fast as as its columns.
    rows, columns = rows[:, None, :], columns[:, None, :]
    across, along = (rows > 0).to(kernel.dtype), torch.empty_like(columns)
    back = kernel.transpose(1, 2)
    for _ in range(iterations):
        torch.div(columns, torch.bmm(across, kernel, out=along), out=along)
        torch.div(rows, torch.bmm(along, back, out=across), out=across)
    return kernel.mul_(across.transpose(1, 2)).mul_(along)


def _fit_logarithms(kernel: Tensor, rows: Tensor, columns: Tensor, iterations: int) -> Tensor:
    # Unused rows and columns have potentials of -inf; every row and column meets a finite one.
    rows, columns = rows.log()[:, :, None], columns.log()[:, None, :]
    across = torch.zeros_like(rows).masked_fill_(rows == -torch.inf, -torch.inf)
    buffer = torch.empty_like(kernel)
    for _ in range(iterations):
        along = columns - _logsumexp(kernel, across, 1, buffer)
        across = rows - _logsumexp(kernel, along, 2, buffer)
    return kernel.add_(across).add_(along).exp_()


def _logsumexp(kernel: Tensor, added: Tensor, dim: int, buffer: Tensor, times: int = 1) -> Tensor:
    """Return the logarithms of the sums of exp(times * kernel + added); `buffer` is overwritten."""
    torch.add(added, kernel, alpha=times, out=buffer)
    top = buffer.amax(dim, keepdim=True)
    # What is added to 1 may as well be 1e-34 as 0; exponentials below that are denormal and slow.
    buffer.sub_(top).clamp_(min=-80.0 if buffer.dtype == torch.float32 else -700.0).exp_()
    return buffer.sum(dim, keepdim=True).log_().add_(top)


# -- problems -----------------------------------------------------------------------------------


class _Problems(NamedTuple):
    """Checked problems.

    Attributes:
        gain: `(p, n, m)`: the middle of a problem's costs less the cost; 0 in cells not used.
        rows: `(p, n)` masses, 0 on unused rows.
        columns: `(p, m)`, likewise.
        range: `()`, between the highest and the lowest cost, of the problem where it is widest.
    """

    gain: Tensor
    rows: Tensor
    columns: Tensor
    range: Tensor


def _prepare(
    cost: Tensor,
    row_mask: Tensor | None,
    column_mask: Tensor | None,
    row_mass: Tensor | None,
    column_mass: Tensor | None,
    smoothness: float,
) -> _Problems:
    if cost.ndim not in (2, 3) or not cost.is_floating_point():
        raise ValueError(
            "cost must be (problems, rows, columns) of floats, got "
            f"{tuple(cost.shape)} {cost.dtype}"
        )
    if cost.ndim == 2:
        cost = cost[None]
        row_mask, column_mask, row_mass, column_mass = (
            None if side is None else side[None]
            for side in (row_mask, column_mask, row_mass, column_mass)
        )
    row_mask = _mask("row", row_mask, cost, 1)
    column_mask = _mask("column", column_mask, cost, 2)
    rows = _mass("row", row_mass, row_mask, cost)
    columns = _mass("column", column_mass, column_mask, cost)
    if row_mass is not None or column_mass is not None:
        columns = _equal_sums(rows, columns)
    if len(cost) == 0:
        return _Problems(cost.clone(), rows, columns, cost.new_zeros(()))
    unused = ~(row_mask[:, :, None] & column_mask[:, None, :])
    high = cost.masked_fill(unused, -torch.inf).amax(dim=(1, 2), keepdim=True)
    low = cost.masked_fill(unused, torch.inf).amin(dim=(1, 2), keepdim=True)
    widest = (high - low).max()
    if not widest / smoothness * torch.finfo(cost.dtype).eps < ROUNDING:
        _refuse(cost, ~unused, widest, smoothness)
    gain = (high / 2 + low / 2 - cost).masked_fill_(unused, 0.0)
    return _Problems(gain, rows, columns, widest)


def _refuse(cost: Tensor, used: Tensor, widest: Tensor, smoothness: float) -> NoReturn:
    wrong = (~cost.isfinite() & used).nonzero()
    if len(wrong):
        problem, row, column = wrong[0].tolist()
        raise ValueError(
            f"cost of problem {problem} is {cost[problem, row, column].item()} at row {row}, "
            f"column {column}: mask what must not be used, and look for what made it"
        )
    raise ValueError(
        f"costs lie {widest.item():.3g} apart, too far for a smoothness of {smoothness:.3g} "
        f"(epsilon, or proximal / iterations) in {cost.dtype}: raise it, scale the costs, or use "
        "float64"
    )


def _mask(side: str, mask: Tensor | None, cost: Tensor, dim: int) -> Tensor:
    shape = (len(cost), cost.shape[dim])
    if mask is None:
        mask = torch.ones(shape, dtype=torch.bool, device=cost.device)
    if mask.shape != shape or mask.is_floating_point():
        raise ValueError(
            f"{side}_mask must be {shape} booleans, true on real {side}s, for cost "
            f"{tuple(cost.shape)}; got {tuple(mask.shape)} {mask.dtype}"
        )
    mask = mask.bool()
    empty = ~mask.any(dim=1)
    if empty.any():
        problem = int(empty.nonzero()[0])
        raise ValueError(
            f"problem {problem} has no {side} to move mass between: all its {shape[1]} {side}s are "
            "masked; leave it out before the plans are made"
        )
    return mask


def _mass(side: str, mass: Tensor | None, mask: Tensor, cost: Tensor) -> Tensor:
    if mass is None:
        real = mask.to(cost.dtype)
        return real / real.sum(dim=1, keepdim=True)
    if mass.shape != mask.shape:
        raise ValueError(f"{side}_mass must be {tuple(mask.shape)}, got {tuple(mass.shape)}")
    mass = mass.to(cost.dtype)
    wrong = mask & ~((mass > 0) & mass.isfinite())
    if wrong.any():
        problem, place = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"{side}_mass of problem {problem} is {mass[problem, place].item()} at {side} {place}; "
            f"it must be above 0 and finite: mask a {side} without mass"
        )
    return mass.masked_fill(~mask, 0.0)


def _equal_sums(rows: Tensor, columns: Tensor) -> Tensor:
    """Return the columns' masses with exactly the rows' sum."""
    totals, others = rows.sum(dim=1), columns.sum(dim=1)
    apart = (totals - others).abs() > SUM_TOLERANCE * totals
    if apart.any():
        problem = int(apart.nonzero()[0])
        raise ValueError(
            f"row_mass of problem {problem} sums to {totals[problem].item():.6g} and column_mass "
            f"to {others[problem].item():.6g}: they must be equal (a side without masses sums to 1)"
        )
    return columns * (totals / others)[:, None]


def _check_options(iterations: int, **positive: float) -> None:
    for name, value in {"iterations": iterations, **positive}.items():
        if not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}")
