"""Transport problems, checked: costs, masks and masses that a plan can be made for."""

from __future__ import annotations

from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

SUM_TOLERANCE = 1e-4
"""Relative; sums of float32 masses differ by rounding."""
ROUNDING = 0.2
"""Most that rounding may come to in the logarithm of a plan, before it means nothing."""


class Problems(NamedTuple):
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


def prepare(
    cost: Tensor,
    row_mask: Tensor | None,
    column_mask: Tensor | None,
    row_mass: Tensor | None,
    column_mass: Tensor | None,
    smoothness: float,
) -> Problems:
    """Return checked problems; `smoothness` is the least epsilon that a plan is made with.

    Raises:
        ValueError: as `xlcm.losses.optimal_transport.sinkhorn`.
    """
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
        return Problems(cost.clone(), rows, columns, cost.new_zeros(()))
    unused = ~(row_mask[:, :, None] & column_mask[:, None, :])
    high = cost.masked_fill(unused, -torch.inf).amax(dim=(1, 2), keepdim=True)
    low = cost.masked_fill(unused, torch.inf).amin(dim=(1, 2), keepdim=True)
    widest = (high - low).max()
    if not widest / smoothness * torch.finfo(cost.dtype).eps < ROUNDING:
        _refuse(cost, ~unused, widest, smoothness)
    gain = (high / 2 + low / 2 - cost).masked_fill_(unused, 0.0)
    return Problems(gain, rows, columns, widest)


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
