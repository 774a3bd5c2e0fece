"""Plans are those of slow loops, exact where a formula is known, and never touched by padding."""

import math
from itertools import permutations

import pytest
import torch
from transport import slow_ipot, slow_sinkhorn

from xlcm.losses import optimal_transport, transport_problems
from xlcm.losses.optimal_transport import ipot, sinkhorn, transport_distance

SOLVERS = {"sinkhorn": sinkhorn, "ipot": ipot}


def costs(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Costs in [0, 2), as of cosines."""
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(shape, dtype=torch.float64, generator=generator).to(dtype)


def ragged(problems: int, places: int, seed: int) -> torch.Tensor:
    """Masks with real entries anywhere, at least one a problem."""
    mask = torch.rand(problems, places, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask[torch.arange(problems), torch.arange(problems) % places] = True
    return mask


def slowly(solve, cost, row_mask, column_mask, row_mass, column_mass, *options):
    """Each problem's real cells by loops, put back into their places."""
    plan = torch.zeros_like(cost)
    for p in range(len(cost)):
        i, j = row_mask[p].nonzero()[:, 0], column_mask[p].nonzero()[:, 0]
        rows, columns = row_mass[p, i].tolist(), column_mass[p, j].tolist()
        found = solve(cost[p][i][:, j].tolist(), rows, columns, *options)
        plan[p, i[:, None], j] = torch.tensor(found, dtype=cost.dtype)
    return plan


def shares(mask: torch.Tensor, seed: int | None) -> torch.Tensor:
    if seed is None:
        mass = mask.double()
    else:
        generator = torch.Generator().manual_seed(seed)
        mass = (0.1 + torch.rand(mask.shape, dtype=torch.float64, generator=generator)) * mask
    return mass / mass.sum(dim=1, keepdim=True)


# -- against loops ------------------------------------------------------------------------------


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("epsilon", [1.0, 0.1, 0.002])
def test_sinkhorn_is_the_slow_loop(epsilon, uneven):
    cost, row_mask, column_mask = costs(4, 5, 6), ragged(4, 5, 1), ragged(4, 6, 2)
    masses = [
        shares(mask, seed if uneven else None) for mask, seed in ((row_mask, 3), (column_mask, 4))
    ]
    wanted = slowly(slow_sinkhorn, cost, row_mask, column_mask, *masses, epsilon, 20)
    given = {"row_mass": masses[0], "column_mass": masses[1]} if uneven else {}
    found = sinkhorn(cost, row_mask, column_mask, **given, epsilon=epsilon, iterations=20)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("inner", [1, 3])
@pytest.mark.parametrize("proximal", [0.5, 0.1])
def test_ipot_is_the_published_algorithm(proximal, inner):
    cost, row_mask, column_mask = costs(3, 5, 4), ragged(3, 5, 1), ragged(3, 4, 2)
    masses = shares(row_mask, 3), shares(column_mask, 4)
    wanted = slowly(slow_ipot, cost, row_mask, column_mask, *masses, proximal, 12, inner)
    found = ipot(
        cost, row_mask, column_mask, row_mass=masses[0], column_mass=masses[1],
        proximal=proximal, iterations=12, inner=inner,
    )  # fmt: skip
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_ipot_costs_less_than_sinkhorn_and_no_less_than_the_cheapest_matching():
    cost = costs(6, 5, 5)
    matchings = [
        min(sum(c[i][j] for i, j in enumerate(order)) / 5 for order in permutations(range(5)))
        for c in cost.tolist()
    ]
    cheapest = torch.tensor(matchings, dtype=torch.float64)
    smooth = transport_distance(sinkhorn(cost, epsilon=0.1, iterations=500), cost)
    near = transport_distance(ipot(cost, iterations=500), cost)
    assert (near >= cheapest - 1e-9).all()
    assert (near - cheapest < 0.05 * (smooth - cheapest)).all()


@pytest.mark.parametrize("epsilon", [0.1, 0.01])
def test_sinkhorn_is_that_of_pot(epsilon):
    ot = pytest.importorskip("ot")
    cost = costs(4, 7, 5)
    rows, columns = (torch.full((k,), 1 / k, dtype=torch.float64) for k in (7, 5))
    options = {"method": "sinkhorn_log", "numItermax": 40, "stopThr": 0, "warn": False}
    wanted = torch.stack([ot.sinkhorn(rows, columns, c, epsilon, **options) for c in cost])
    options = {"epsilon": epsilon, "iterations": 40}
    torch.testing.assert_close(sinkhorn(cost, **options), wanted, rtol=1e-10, atol=1e-13)
    single = sinkhorn(cost.float(), **options).double()
    torch.testing.assert_close(single, wanted, rtol=0, atol=1e-5)


# -- known plans --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_orthonormal_sentences_plan_is_the_formula(dtype):
    plan = sinkhorn(1 - torch.eye(5, dtype=dtype), epsilon=0.1)
    own = 1 / (1 + 4 * math.exp(-10))
    assert (5 * plan.diagonal()).tolist() == pytest.approx([own] * 5, rel=1e-6)
    assert round(own, 5) == 0.99982


def test_an_extra_target_word_is_shared_equally():
    cost = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    plan = sinkhorn(cost, epsilon=0.05)
    wanted = torch.tensor([[1 / 3, 0, 1 / 6], [0, 1 / 3, 1 / 6]])
    torch.testing.assert_close(plan, wanted, rtol=0, atol=1e-6)
    assert transport_distance(plan, cost).item() == pytest.approx(1 / 3, abs=1e-6)
    assert 3 * plan[:, 2].max().item() == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize(("epsilon", "figure"), [(1.0, 0.268941), (0.1, 4.5398e-5)])
def test_two_by_two_distance_is_the_formula(epsilon, figure):
    cost = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    distance = transport_distance(sinkhorn(cost, epsilon=epsilon), cost).item()
    weight = math.exp(-1 / epsilon)
    assert distance == pytest.approx(weight / (1 + weight), rel=1e-5)
    assert distance == pytest.approx(figure, rel=1e-5)


@pytest.mark.parametrize("solve", SOLVERS.values(), ids=SOLVERS)
def test_equal_costs_give_the_product_of_the_masses(solve):
    row_mass, column_mass = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([0.9, 0.1])
    plan = solve(torch.full((3, 2), 0.7), row_mass=row_mass, column_mass=column_mass)
    torch.testing.assert_close(plan, row_mass[:, None] * column_mass)


def test_sinkhorn_rows_are_exact_and_columns_converge():
    cost, masks = costs(3, 6, 8), (ragged(3, 6, 1), ragged(3, 8, 2))
    rows, columns = (shares(mask, None) for mask in masks)
    off = []
    for iterations in (2, 10, 200):
        plan = sinkhorn(cost, *masks, epsilon=0.2, iterations=iterations)
        torch.testing.assert_close(plan.sum(dim=2), rows)
        off.append((plan.sum(dim=1) - columns).abs().max().item())
    assert off[0] > off[1] > off[2]
    assert off[2] < 1e-6


# -- padding, order, batches --------------------------------------------------------------------


@pytest.mark.parametrize("filled", [0.0, 1e6, math.nan, -math.inf])
@pytest.mark.parametrize("solve", SOLVERS.values(), ids=SOLVERS)
def test_appended_padding_changes_no_plan_and_gets_exactly_nothing(solve, filled):
    cost = costs(3, 4, 5)
    padded = torch.full((3, 6, 8), filled, dtype=torch.float64)
    padded[:, :4, :5] = cost
    masks = (torch.arange(6) < 4).expand(3, 6), (torch.arange(8) < 5).expand(3, 8)
    plan = solve(padded, *masks)
    torch.testing.assert_close(plan[:, :4, :5], solve(cost), rtol=1e-12, atol=1e-15)
    assert plan[:, 4:].count_nonzero() == 0
    assert plan[:, :, 5:].count_nonzero() == 0
    distance = transport_distance(plan, padded)
    torch.testing.assert_close(distance, transport_distance(solve(cost), cost))


@pytest.mark.parametrize("solve", SOLVERS.values(), ids=SOLVERS)
def test_permuted_words_permute_the_plan(solve):
    cost, order = costs(2, 5, 4), torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(solve(cost[:, order]), solve(cost)[:, order], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("solve", SOLVERS.values(), ids=SOLVERS)
def test_one_call_gives_the_plans_of_each_problem_alone(solve):
    cost, masks = costs(5, 4, 6), (ragged(5, 4, 1), ragged(5, 6, 2))
    cost[3] *= 400  # alone it is the only one that needs logarithms
    together = solve(cost, *masks)
    for problem in range(5):
        alone = solve(cost[problem], masks[0][problem], masks[1][problem])
        assert alone.shape == (4, 6)
        torch.testing.assert_close(together[problem], alone, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("solve", SOLVERS.values(), ids=SOLVERS)
def test_masks_of_integers_are_masks_and_no_problems_have_no_plans(solve):
    cost, mask = costs(2, 3, 3), torch.tensor([[1, 1, 0], [1, 1, 1]])
    torch.testing.assert_close(solve(cost, mask), solve(cost, mask.bool()))
    assert solve(cost[:0]).shape == (0, 3, 3)


# -- numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.1, 0.05, 0.01, 0.001])
def test_sinkhorn_in_float32_is_finite_and_right_for_small_epsilon(epsilon):
    cost = costs(8, 12, 12, dtype=torch.float32)
    plan, exact = (sinkhorn(c, epsilon=epsilon) for c in (cost, cost.double()))
    assert plan.dtype == torch.float32
    torch.testing.assert_close(plan.double(), exact, rtol=0, atol=1e-5)


def test_factors_stay_within_floats_wherever_they_are_used():
    """The widest costs that pass the bound, of shapes that drive potentials far apart."""
    taken = 0
    for seed in range(20):
        high_or_low = (costs(4, 3, 9, seed=seed, dtype=torch.float32) > 1).float()
        for reach in (30.0, 40.0, 44.0, 50.0, 60.0):
            cost = reach * high_or_low
            problems = transport_problems.prepare(cost, None, None, None, None, 1.0)
            if optimal_transport._within_floats(problems, 1.0):
                taken += 1
                kernel, masses = problems.gain, (problems.rows, problems.columns)
                fast = optimal_transport._fit_factors(kernel.exp(), *masses, 100)
                slow = optimal_transport._fit_logarithms(kernel.double(), *masses, 100).float()
                torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-6)
    assert 20 <= taken < 100


@pytest.mark.parametrize("epsilon", [0.05, 0.01, 0.001])
@pytest.mark.parametrize("uneven", [False, True])
def test_potentials_that_take_up_factors_give_the_plan_of_logarithms(monkeypatch, epsilon, uneven):
    """And most iterations are on factors, none of which grows beyond what is allowed."""
    cost, masks = costs(4, 9, 12, seed=7) / 2, (ragged(4, 9, 1), ragged(4, 12, 2))
    masses = [shares(mask, seed if uneven else None) for mask, seed in zip(masks, (3, 4))]
    problems = transport_problems.prepare(cost, *masks, *masses, epsilon)
    turn, turns, reached = optimal_transport._turn, [], []

    def watched(kernel, rows, columns, count):
        found = turn(kernel, rows, columns, count)
        turns.append(count)
        logarithms = [factor.log() for factor in found]
        reached.append(max(one[one.isfinite()].abs().max().item() for one in logarithms))
        return found

    monkeypatch.setattr(optimal_transport, "_turn", watched)
    for iterations in (1, 2, 3, 50, 200):
        turns.clear()
        kernel, given = problems.gain / epsilon, (problems.rows, problems.columns, iterations)
        found = optimal_transport._fit_absorbing(kernel.clone(), *given)
        wanted = optimal_transport._fit_logarithms(kernel.clone(), *given)
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-13)
    assert sum(turns) > 100
    assert 0 < max(reached) < optimal_transport.DRIFT + 1e-6


def test_masses_too_far_from_one_for_factors_are_fitted_on_logarithms(monkeypatch):
    monkeypatch.setattr(optimal_transport, "_turn", None)
    cost = costs(2, 3, 4, dtype=torch.float32)
    rows = torch.tensor([1.0, 1e-20, 1e-3]).expand(2, 3)
    columns = rows.sum(dim=1, keepdim=True).expand(2, 4) / 4
    masses = {"row_mass": rows, "column_mass": columns}
    found, wanted = (sinkhorn(c, **masses, epsilon=0.01) for c in (cost, cost.double()))
    torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=1e-24)


@pytest.mark.parametrize("solve", SOLVERS.values(), ids=SOLVERS)
def test_sums_that_differ_by_rounding_are_made_equal(solve):
    cost, masks = costs(2, 3, 4), (torch.ones(2, 3).bool(), torch.ones(2, 4).bool())
    rows, columns = (shares(mask, seed) for seed, mask in enumerate(masks))
    wanted = solve(cost, row_mass=rows, column_mass=columns)
    found = solve(cost, row_mass=rows, column_mass=columns * (1 + 5e-5))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("shift", [100.0, -3.0])
@pytest.mark.parametrize("solve", SOLVERS.values(), ids=SOLVERS)
def test_a_constant_added_to_all_costs_changes_nothing(solve, shift):
    cost = costs(2, 4, 4)
    torch.testing.assert_close(solve(cost + shift), solve(cost), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("solve", SOLVERS.values(), ids=SOLVERS)
def test_half_precision_is_widened_also_under_autocast(solve):
    cost = costs(2, 4, 4, dtype=torch.bfloat16)
    wanted = solve(cost.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for given in (cost, cost.float()):
            found = solve(given)
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, wanted, rtol=0, atol=0)


# -- gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("solve", SOLVERS.values(), ids=SOLVERS)
def test_plans_carry_no_gradient_and_the_distance_has_the_plan_as_its_own(solve):
    cost = costs(2, 3, 4).requires_grad_()
    plan = solve(cost)
    assert not plan.requires_grad
    transport_distance(plan, cost).sum().backward()
    torch.testing.assert_close(cost.grad, plan, rtol=0, atol=0)


def test_the_plan_is_the_gradient_of_the_least_regularised_cost():
    cost, epsilon, step = costs(3, 4), 0.3, 1e-5

    def least(cost):
        plan = sinkhorn(cost, epsilon=epsilon, iterations=2000)
        return (plan * cost + epsilon * plan * (plan.log() - 1)).sum().item()

    plan = sinkhorn(cost, epsilon=epsilon, iterations=2000)
    for i in range(3):
        for j in range(4):
            moved = torch.zeros_like(cost)
            moved[i, j] = step
            slope = (least(cost + moved) - least(cost - moved)) / (2 * step)
            assert slope == pytest.approx(plan[i, j].item(), abs=1e-8)


def test_solvers_leave_their_arguments_alone():
    cost, mass = costs(2, 3, 3), torch.full((2, 3), 1 / 3, dtype=torch.float64)
    before = cost.clone(), mass.clone()
    for solve in SOLVERS.values():
        solve(cost, row_mass=mass, column_mass=mass)
    assert torch.equal(cost, before[0])
    assert torch.equal(mass, before[1])


# -- refusals -----------------------------------------------------------------------------------

CELL = (1, 2, 0)
THIRDS = torch.full((2, 3), 1 / 3)
ROWLESS = torch.tensor([[True] * 3, [False] * 3])


def spoilt(value: float) -> torch.Tensor:
    cost = costs(2, 3, 3)
    cost[CELL] = value
    return cost


def changed(value: float) -> torch.Tensor:
    mass = THIRDS.clone()
    mass[1, 2] = value
    return mass


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ([spoilt(math.nan)], {}, "cost of problem 1 is nan at row 2, column 0"),
        ([spoilt(math.inf)], {}, "cost of problem 1 is inf at row 2, column 0"),
        ([spoilt(-math.inf)], {}, "cost of problem 1 is -inf at row 2, column 0"),
        ([costs(2, 3, 3), ROWLESS], {}, "problem 1 has no row"),
        ([costs(2, 3, 3), None, ~ROWLESS], {}, "problem 0 has no column"),
        ([costs(2, 0, 3)], {}, "problem 0 has no row"),
        ([costs(2, 3, 3)], {"row_mass": changed(0.0)}, "row_mass of problem 1 is 0.0 at row 2"),
        ([costs(2, 3, 3)], {"column_mass": changed(-0.5)}, r"problem 1 is -0.5 at column 2"),
        ([costs(2, 3, 3)], {"row_mass": changed(math.nan)}, "problem 1 is nan at row 2"),
        ([costs(2, 3, 3)], {"row_mass": changed(0.5)}, "problem 1 sums to 1.16667 .* to 1:"),
        ([costs(2, 3, 3), THIRDS], {}, r"row_mask must be \(2, 3\) booleans"),
        ([costs(2, 3, 3), None, THIRDS[:1] > 0], {}, r"column_mask must be \(2, 3\)"),
        ([costs(2, 3, 3)], {"row_mass": THIRDS[0]}, r"row_mass must be \(2, 3\), got \(3,\)"),
        ([costs(2, 2, 3, 3)], {}, r"\(problems, rows, columns\) of floats, got \(2, 2, 3, 3\)"),
        ([torch.ones(2, 3, 3).long()], {}, "of floats, got .*int64"),
        ([costs(2, 3, 3)], {"iterations": 0}, "iterations must be above 0, got 0"),
    ],
)
@pytest.mark.parametrize("solve", SOLVERS.values(), ids=SOLVERS)
def test_impossible_problems_are_refused_by_number_and_place(solve, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        solve(*arguments, **options)


@pytest.mark.parametrize("factor", [1e9, 1e30, 3e38])
@pytest.mark.parametrize("solve", SOLVERS.values(), ids=SOLVERS)
def test_costs_too_far_apart_for_floats_are_refused_rather_than_nan(solve, factor):
    cost = factor * torch.tensor([[1.0, -1.0], [0.5, 0.0]])
    with pytest.raises(ValueError, match=r"apart, too far for .*float32"):
        solve(cost)
    if factor == 1e9:
        assert solve(cost.double()).isfinite().all()


def test_an_epsilon_too_small_for_floats_is_refused_rather_than_nan():
    for epsilon in (1e-12, 1e-39):
        with pytest.raises(ValueError, match="raise it"):
            sinkhorn(costs(2, 2).float(), epsilon=epsilon)


def test_options_out_of_range_are_refused():
    for solve, options in (
        (sinkhorn, {"epsilon": 0.0}),
        (ipot, {"proximal": -1}),
        (ipot, {"inner": 0}),
    ):
        with pytest.raises(ValueError, match=f"{next(iter(options))} must be above 0"):
            solve(costs(2, 2), **options)
    with pytest.raises(ValueError, match="must be equal"):
        transport_distance(costs(2, 2), costs(2, 3))
