"""W processes give the gradients of one; the usual wrong gathers are seen to fail.

An equal loss proves nothing: three of the four wrong variants have it to the last digit.
"""

from contextlib import contextmanager
from unittest import mock

import pytest
import tiny
import torch
import torch.distributed as dist
from torch import Tensor, nn

import xlcm.losses.info_nce
import xlcm.losses.sigmoid
import xlcm.losses.triplet
from xlcm.distributed import gather, local_rows, rank, world
from xlcm.losses import score_tiles, tiled
from xlcm.losses.base import PairLoss
from xlcm.losses.info_nce import InfoNCELoss
from xlcm.losses.sigmoid import SigmoidLoss
from xlcm.losses.triplet import TripletLoss
from xlcm.registry import losses

ROWS = 12  # divisible by 1, 2, 3 and 4
# Uneven: one image with four rows, two with two; every cut into 2, 3 or 4 parts goes through one.
GROUPS = [0, 1, 2, 0, 3, 1, 0, 4, 5, 6, 5, 0]
LOSSES = {
    "info_nce": (InfoNCELoss, {}),
    "info_nce_smoothed": (InfoNCELoss, {"label_smoothing": 0.1}),
    "info_nce_tiled": (InfoNCELoss, {"label_smoothing": 0.1, "tiled": "always"}),
    "sigmoid": (SigmoidLoss, {}),
    "sigmoid_tiled": (SigmoidLoss, {"tiled": "always"}),
    **{
        f"triplet_{negatives}_{reduction}": (
            TripletLoss,
            {"negatives": negatives, "reduction": reduction, "margin": 0.5},
        )
        for negatives in ("hardest", "semi_hard", "all")
        for reduction in ("mean", "sum")
    },
    "triplet_image_to_text": (TripletLoss, {"direction": "image_to_text"}),
    "triplet_text_to_image": (TripletLoss, {"direction": "text_to_image"}),
}
# Relative error of gradients and of the loss, in float32 (whose neighbours are up to 1.2e-7 apart)
# and in float64.
LIMITS = {False: (1e-6, 2.4e-7), True: (1e-13, 1e-13)}


def test_no_loss_between_pairs_is_left_out():
    assert {kind for kind, _ in LOSSES.values()} == {losses.get(n) for n in tiny.built_in(losses)}


# -- the wrong ways, and a right one that costs more ---------------------------------------------


def plain(rows: Tensor) -> Tensor:
    """All rows, without gradient."""
    return gather(rows.detach())


def spliced(rows: Tensor) -> Tensor:
    """All rows, with gradient for one's own only: backward keeps just its own slice."""
    everything = list(gather(rows.detach()).chunk(world()))
    everything[rank()] = rows
    return torch.cat(everything)


def identity(rows: Tensor) -> Tensor:
    return rows


@contextmanager
def gathering(function):
    """Let the losses gather with `function`."""
    with (
        mock.patch.object(xlcm.losses.info_nce, "gather", function),
        mock.patch.object(xlcm.losses.sigmoid, "gather", function),
        mock.patch.object(xlcm.losses.triplet, "gather", function),
    ):
        yield


def local_loss(collect):
    """Local rows x collected columns."""

    def run(loss, image, text, group, scale):
        with gathering(collect):
            return loss(image, text, group=group, scale=scale)

    return run


def global_loss(collect):
    """The whole matrix on every process."""

    def run(loss, image, text, group, scale):
        with gathering(identity):
            return loss(collect(image), collect(text), group=gather(group), scale=scale)

    return run


VARIANTS = {
    "right": local_loss(gather),
    "right_but_costlier": global_loss(gather),
    "own_slice_only": local_loss(spliced),
    "no_gradient": local_loss(plain),
    "own_slice_global_loss": global_loss(spliced),
    "no_gather": local_loss(identity),
}


# -- one step ------------------------------------------------------------------------------------


def step(loss_name: str, variant: str, double: bool) -> dict:
    """One process's part of a step: towers, loss, backward, gradients averaged as DDP does."""
    torch.manual_seed(0)
    dtype = torch.float64 if double else torch.float32
    towers = nn.ModuleDict(
        {"image": nn.Linear(6, 5, bias=False), "text": nn.Linear(4, 5, bias=False)}
    ).to(dtype)
    log_scale = nn.Parameter(torch.tensor(1.5, dtype=dtype))
    data = {"image": torch.randn(ROWS, 6).to(dtype), "text": torch.randn(ROWS, 4).to(dtype)}
    mine = local_rows(ROWS // world())
    image, text = (
        nn.functional.normalize(towers[name](data[name][mine]), dim=1) for name in towers
    )
    kind, options = LOSSES[loss_name]
    group = torch.tensor(GROUPS)[mine]
    loss = VARIANTS[variant](kind(**options), image, text, group, log_scale.exp())
    loss.backward()
    out = {"loss": loss.detach().double()}  # averaging adds no rounding to it
    for name, parameter in [*towers.named_parameters(), ("log_scale", log_scale)]:
        if parameter.grad is not None:
            out[name] = parameter.grad
    for tensor in out.values():
        if world() > 1:
            dist.all_reduce(tensor)
        tensor /= world()
    return {name: tensor.tolist() for name, tensor in out.items()}


def steps(cases: list) -> list[dict]:
    """Many steps in one job."""
    return [step(*case) for case in cases]


def gaps(found: dict, wanted: dict) -> dict[str, float]:
    """Relative error of the loss and of each gradient."""
    assert found.keys() == wanted.keys()
    errors = {}
    for name in wanted:
        one = torch.tensor(wanted[name], dtype=torch.float64)
        many = torch.tensor(found[name], dtype=torch.float64)
        assert one.norm() > 0, f"{name} has no gradient to compare"
        errors[name] = ((many - one).norm() / one.norm()).item()
    return errors


def test_every_built_in_pair_loss_is_compared():
    built_in = {losses.get(name) for name in losses}
    pairwise = {kind for kind in built_in if issubclass(kind, PairLoss)}
    assert {k for k in pairwise if k.__module__.startswith("xlcm.")} == {
        kind for kind, _ in LOSSES.values()
    }


@pytest.mark.parametrize("number", [2, 3, 4])
@pytest.mark.parametrize("double", [False, True], ids=["fp32", "fp64"])
def test_every_loss_has_the_gradients_of_one_process(processes, number, double):
    cases = [(name, "right", double) for name in LOSSES]
    wanted = steps(cases)
    for found in processes.run(number, steps, cases):
        for (name, *_), many, one in zip(cases, found, wanted):
            for tensor, gap in gaps(many, one).items():
                assert gap <= LIMITS[double][tensor == "loss"], (
                    f"{name}: {tensor} is off by {gap:.1e}"
                )


@pytest.mark.parametrize("number", [2, 3, 4])
def test_the_gradient_comparison_rejects_wrong_gathers(processes, number):
    variants = [name for name in VARIANTS if name != "right"]
    cases = [("info_nce", name, True) for name in variants]
    wanted = step("info_nce", "right", True)
    found = dict(zip(variants, processes.run(number, steps, cases)[0]))
    measured = {name: gaps(result, wanted) for name, result in found.items()}
    towers = {
        name: min(gap for key, gap in errors.items() if key not in ("loss", "log_scale"))
        for name, errors in measured.items()
    }
    assert towers.pop("right_but_costlier") < 1e-13
    assert min(towers.values()) > 0.05, towers  # each mutant, each tensor of both towers
    # and why the gradients must be compared: the loss of three of them is right
    same_loss = {name for name, errors in measured.items() if errors["loss"] < 1e-13}
    assert same_loss == set(VARIANTS) - {"right", "no_gather"}


def test_the_gradient_comparison_rejects_a_wrong_gather_of_the_side_that_tiles_gather(processes):
    wanted = step("info_nce_tiled", "right", True)
    found = processes.run(2, step, "info_nce_tiled", "own_slice_only", True)[0]
    errors = gaps(found, wanted)
    assert errors.pop("text.weight") > 0.05
    assert max(errors.values()) < 1e-13


def uneven_step(tiled: str) -> list:
    """Gradients where each process weighs its own loss, at a scale that needs the safe way too."""
    out = []
    for scale in (3.0, 300.0):
        torch.manual_seed(rank())
        image, text = (nn.functional.normalize(torch.randn(4, 5).double()) for _ in range(2))
        image, text = (-text[:1].expand(4, -1) if scale > 9 else image), text
        leaves = [image.clone().requires_grad_(), text.requires_grad_()]
        loss = InfoNCELoss(tiled=tiled, label_smoothing=0.1)
        group = torch.tensor([0, 1, 0, 2 + rank()])
        value = loss(*leaves, group=group, scale=scale)
        slopes = torch.autograd.grad(value, leaves, torch.tensor(1.0 + rank()).double())
        out += [value.detach(), *slopes]
    return [one.tolist() for one in out]


def test_tiles_follow_each_process_s_own_weight_as_the_plain_form_does(processes):
    plain, tiles = (processes.run(3, uneven_step, way) for way in ("never", "always"))
    for one, other in zip(plain, tiles):
        for wanted, found in zip(one, other):
            torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted))


def scores_made(rows: int) -> int:
    """How many scores one process makes in a step; and what their gradients are multiplied with."""
    found = {"tile": 0, "add": 0}

    def counting(name, kind):
        real = getattr(kind, name)

        def run(self, row, column, tile):
            found[name] += tile.numel()
            return real(self, row, column, tile)

        return mock.patch.object(kind, name, run)

    mine = local_rows(rows // world())
    sides = nn.functional.normalize(torch.randn(2, rows, 4), dim=2)[:, mine]
    leaves = [side.clone().requires_grad_() for side in sides]
    with (
        mock.patch.object(tiled, "KEPT", 0),
        counting("tile", score_tiles.Scores),
        counting("add", score_tiles.Gradients),
    ):
        InfoNCELoss(tiled="always")(*leaves, group=mine, scale=3.0).backward()
    assert found["tile"] == 2 * found["add"]  # forward and again backward
    return found["add"]


def test_processes_share_the_scores_of_one_process_in_tiles(processes):
    assert scores_made(12) == 144
    assert processes.run(3, scores_made, 12) == [48, 48, 48]


# -- the gather itself ---------------------------------------------------------------------------


def gathered() -> dict:
    rows = torch.arange(4.0).reshape(2, 2) + 10 * rank()
    flags = torch.tensor([rank() == 0, True])
    return {
        "rows": gather(rows).tolist(),
        "transposed": gather(rows.T).tolist(),
        "ids": gather(torch.tensor([rank()])).tolist(),
        "flags": gather(flags).tolist(),
        "flags_are_bool": gather(flags).dtype == torch.bool,
        "local": local_rows(2).tolist(),
    }


def test_gather_stacks_rows_in_the_order_of_ranks(processes):
    for number, result in enumerate(processes.run(3, gathered)):
        rows = [[0, 1], [2, 3], [10, 11], [12, 13], [20, 21], [22, 23]]
        assert result["rows"] == rows
        assert result["transposed"] == [[0, 2], [1, 3], [10, 12], [11, 13], [20, 22], [21, 23]]
        assert result["ids"] == [0, 1, 2]
        assert result["flags"] == [True, True, False, True, False, True]
        assert result["flags_are_bool"]
        assert result["local"] == [2 * number, 2 * number + 1]


def counted(way: str) -> dict:
    image = torch.randn(3, 4, requires_grad=True)
    text = torch.randn(3, 4, requires_grad=True)
    with (
        mock.patch.object(dist, "all_gather", wraps=dist.all_gather) as gathers,
        mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as reduces,
    ):
        loss = InfoNCELoss(tiled=way)(image, text, group=torch.arange(3), scale=1.0)
        loss.backward()
    return {"gathers": gathers.call_count, "reduces": reduces.call_count}


def test_info_nce_gathers_each_tower_once(processes):
    for result in processes.run(2, counted, "never"):
        assert result == {"gathers": 3, "reduces": 2}  # ids, images, texts; and two ways back
    for result in processes.run(2, counted, "always"):  # ids, texts, columns, two single numbers
        assert result == {"gathers": 5, "reduces": 1}


def test_gather_on_one_process_is_the_tensor_itself():
    rows = torch.randn(3, 2)
    assert gather(rows) is rows
    assert local_rows(3).tolist() == [0, 1, 2]
