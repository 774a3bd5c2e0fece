"""Optimal transport of many small problems at once: entropic plans, nearly exact plans, distances.

Each problem moves the masses of its rows to its columns where that costs least. Padded rows and
columns are masked out and get exactly 0. Plans are constants: no gradient passes through a solver.
By the envelope theorem the gradient of a least cost with respect to the costs is the plan itself,
so `transport_distance(plan, cost)` has it without an unrolled loop in memory.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from xlcm.losses.base import full_precision
from xlcm.losses.transport_problems import Problems, prepare

DRIFT = 15.0
"""Most that the logarithm of a factor may come to before potentials take it up."""


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
    exact and the column sums are as good as it has converged. Where the range of the costs over
    `epsilon` stays within that of floats, the iteration works on factors, which saves the
    exponentials. Elsewhere potentials take up the factors before these leave that range, and it
    works on logarithms as long as they move too fast for that; all differ by rounding alone.

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
    Cuturi 2019, https://arxiv.org/abs/1803.00567, section 4.4; factors taken up by potentials:
    Schmitzer 2019, https://arxiv.org/abs/1610.06519.
    """
    _check_options(epsilon=epsilon, iterations=iterations)
    with torch.no_grad():
        problems = prepare(cost, row_mask, column_mask, row_mass, column_mass, epsilon)
        kernel = problems.gain.div_(epsilon)
        if _within_floats(problems, epsilon):
            plan = _fit_factors(kernel.exp_(), problems.rows, problems.columns, iterations)
        else:
            plan = _fit_absorbing(kernel, problems.rows, problems.columns, iterations)
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
        problems = prepare(cost, row_mask, column_mask, row_mass, column_mass, reached)
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


def _within_floats(problems: Problems, epsilon: float) -> bool:
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
    across, along = torch.zeros_like(rows).masked_fill_(rows == -torch.inf, -torch.inf), columns
    buffer = torch.empty_like(kernel)
    for _ in range(iterations):
        across, along = _iterate(kernel, rows, columns, across, buffer)
    return kernel.add_(across).add_(along).exp_()


def _iterate(
    kernel: Tensor, rows: Tensor, columns: Tensor, across: Tensor, buffer: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the rows' and columns' potentials after one iteration on logarithms."""
    along = columns - _logsumexp(kernel, across, 1, buffer)
    return rows - _logsumexp(kernel, along, 2, buffer), along


def _fit_absorbing(kernel: Tensor, rows: Tensor, columns: Tensor, iterations: int) -> Tensor:
    """Iterate on factors of a kernel that the potentials have been put into.

    No step of Sinkhorn's moves potentials further, in the maximum norm, than the one before. So
    after a step of s, `DRIFT / s` iterations can't bring a factor beyond `exp(DRIFT)`; they are
    done on factors, and then the potentials take these up. As long as steps are too long for two
    iterations, and for masses too far from 1, it is one iteration on logarithms.
    """
    masses = rows[:, :, None], columns[:, None, :]
    least = torch.finfo(kernel.dtype).tiny  # of a mass that is not 0
    if len(kernel) == 0 or not all(_near_one(mass, least) for mass in masses):
        return _fit_logarithms(kernel, rows, columns, iterations)
    row_logs, column_logs = (mass.log() for mass in masses)
    unused = rows[:, :, None] == 0
    across = torch.zeros_like(row_logs).masked_fill_(unused, -torch.inf)
    along = column_logs
    buffer = torch.empty_like(kernel)
    step, done = math.inf, 0
    while done < iterations:
        turns = min(iterations - done, int(DRIFT / max(step, 1e-6)))
        before = across
        if turns < 2:
            across, along = _iterate(kernel, row_logs, column_logs, across, buffer)
            turns = 1
        else:
            floor = -80.0 if kernel.dtype == torch.float32 else -700.0  # see _logsumexp
            torch.add(kernel, across, out=buffer).add_(along).clamp_(min=floor).exp_()
            buffer.masked_fill_(unused, 1.0).masked_fill_(masses[1] == 0, 1.0)  # see _fit_factors
            factors = _turn(buffer, *masses, turns)
            before = across + factors[0].log()
            across, along = across + factors[1].log(), along + factors[2].log()
        done += turns
        # -inf - -inf at unused rows is no number
        step = float((across - before).masked_fill_(unused, 0.0).abs().max())
    return kernel.add_(across).add_(along).exp_()


def _near_one(mass: Tensor, least: float) -> bool:
    """Whether the masses that are not 0 lie where sums of exponentials keep their digits."""
    logarithms = mass.clamp(min=least).log().masked_fill_(mass == 0, 0.0)
    return bool(logarithms.abs().max() < 20.0)


def _turn(kernel: Tensor, rows: Tensor, columns: Tensor, turns: int) -> tuple[Tensor, ...]:
    """Return the rows' factors before the last of these iterations and after it, the columns'."""
    rows = rows.transpose(1, 2)
    across = (rows > 0).to(kernel.dtype)
    before, along = across, torch.empty_like(columns)
    back = kernel.transpose(1, 2)
    for turn in range(turns):
        if turn == turns - 1:
            before = across.clone()
        torch.div(columns, torch.bmm(across, kernel, out=along), out=along)
        torch.div(rows, torch.bmm(along, back, out=across), out=across)
    return before.transpose(1, 2), across.transpose(1, 2), along


def _logsumexp(kernel: Tensor, added: Tensor, dim: int, buffer: Tensor, times: int = 1) -> Tensor:
    """Return the logarithms of the sums of exp(times * kernel + added); `buffer` is overwritten."""
    torch.add(added, kernel, alpha=times, out=buffer)
    top = buffer.amax(dim, keepdim=True)
    # What is added to 1 may as well be 1e-34 as 0; exponentials below that are denormal and slow.
    buffer.sub_(top).clamp_(min=-80.0 if buffer.dtype == torch.float32 else -700.0).exp_()
    return buffer.sum(dim, keepdim=True).log_().add_(top)


def _check_options(iterations: int, **positive: float) -> None:
    for name, value in {"iterations": iterations, **positive}.items():
        if not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}")
