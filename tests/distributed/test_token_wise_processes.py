"""The token-wise loss: value and gradients of one process on two and three, lengths that differ."""

from unittest import mock

import pytest
import torch
from torch import nn

import xlcm.losses.token_wise
from xlcm.distributed import gather, local_rows, world
from xlcm.losses.token_wise import TokenWiseLoss

ROWS = 6  # divisible by 1, 2 and 3
GROUPS = [0, 1, 0, 2, 1, 3]
TEXT_LENGTHS = [3, 2, 4, 1, 6, 5]  # the longest of each process differs
IMAGE_LENGTHS = [4, 4, 4, 4, 3, 4]  # only the last process has padding


def step(options: dict) -> dict:
    """Loss and averaged gradients of linear towers and the scale on this process's rows."""
    torch.manual_seed(0)
    towers = nn.ModuleDict({side: nn.Linear(6, 3) for side in ("image", "text")}).double()
    scale = nn.Parameter(torch.tensor(2.5, dtype=torch.float64))
    mine = local_rows(ROWS // world())
    given = []
    masks = []
    for side, lengths in (("image", IMAGE_LENGTHS), ("text", TEXT_LENGTHS)):
        data = torch.randn(ROWS, 6, 6, dtype=torch.float64)
        length = torch.tensor(lengths)[mine]
        most = int(length.max())  # as a collator pads: to the longest of this process
        given.append(nn.functional.normalize(towers[side](data[mine, :most]), dim=2))
        mask = torch.arange(most) < length[:, None]
        masks.append(None if mask.all() else mask)
    loss = TokenWiseLoss(**options)
    value = loss(*given, *masks, group=torch.tensor(GROUPS)[mine], scale=scale)
    value.backward()
    gradients = {}
    for key, parameter in [*towers.named_parameters(), ("scale", scale)]:
        gradients[key] = gather(parameter.grad[None]).mean(dim=0).tolist()
    return {"loss": gather(value.detach()[None]).mean().item(), "gradients": gradients}


def step_without_gradient_through_the_gather(options: dict) -> dict:
    """The usual mistake: the right value, wrong gradients."""
    with mock.patch.object(xlcm.losses.token_wise, "gather", lambda x: gather(x.detach())):
        return step(options)


def gap(wanted: dict, found: dict) -> float:
    """Largest relative distance between gradients."""
    gaps = []
    for key in wanted:
        one, other = (torch.tensor(g[key], dtype=torch.float64) for g in (wanted, found))
        assert one.norm() > 0, key
        gaps.append(((one - other).norm() / one.norm()).item())
    return max(gaps)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "padding": "zero"}], ids=str)
@pytest.mark.parametrize("number", [2, 3])
def test_the_token_wise_loss_has_the_gradients_of_one_process(processes, number, options):
    wanted = step(options)
    for found in processes.run(number, step, options):
        assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-12)
        assert gap(wanted["gradients"], found["gradients"]) < 1e-12


def test_a_token_gather_without_gradient_is_seen(processes):
    wanted = step({})
    found = processes.run(2, step_without_gradient_through_the_gather, {})[0]
    assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-12)
    assert gap(wanted["gradients"], found["gradients"]) > 1e-2
