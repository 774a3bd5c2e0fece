"""Losses in tiles on devices that must be waited for, and on those without float64."""

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from pairs import pairs
from torch.utils._python_dispatch import TorchDispatchMode

from xlcm.losses import score_tiles
from xlcm.losses.info_nce import InfoNCELoss
from xlcm.losses.sigmoid import SigmoidLoss
from xlcm.losses.similarity_distillation import SimilarityDistillationLoss

ROWS = 37  # ragged for tiles of 5 x 7


def half_alike(dtype: torch.dtype = torch.float64):
    image, text, group = pairs(ROWS, 6)
    return image.to(dtype), F.normalize(0.8 * image + text, dim=1).to(dtype), group


class Waits(TorchDispatchMode):
    """Counts what a GPU would have to be waited for: numbers read, and sizes that hang on them."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        aten = torch.ops.aten
        reads = op in (aten._local_scalar_dense.default, aten.nonzero.default)
        repeats = op == aten.repeat_interleave.Tensor
        self.number += reads or (repeats and (kwargs or {}).get("output_size") is None)
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", [InfoNCELoss, SigmoidLoss])
def test_no_tile_waits_for_a_gpu(kind):
    image, text, group = half_alike()
    waits = []
    for rows, columns in ((5, 7), (ROWS, ROWS)):
        with mock.patch.multiple(score_tiles, ROWS=rows, COLUMNS=columns), Waits() as mode:
            value = kind(tiled="always")(image.requires_grad_(), text, group=group, scale=3.0)
            torch.autograd.grad(value, image)
        waits.append(mode.number)
    assert waits[0] == waits[1]


class Types(TorchDispatchMode):
    """Collects the types of all results."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        result = op(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.found.add(result.dtype)
        return result


def distilled(image, text, **_):
    loss = SimilarityDistillationLoss(tiled="always")
    return loss(image, text, loss.targets([(text.detach(), image.detach())]))


LOSSES = [InfoNCELoss(tiled="always"), SigmoidLoss(tiled="always"), distilled]


@pytest.mark.parametrize("loss", LOSSES, ids=["InfoNCE", "sigmoid", "distillation"])
def test_a_device_without_float64_gets_none_and_the_same_values(loss):
    image, text, group = half_alike(torch.float32)
    scale = torch.tensor(3.0, requires_grad=True)
    found = []
    for without in (("mps",), ("mps", "cpu")):
        image = image.detach().requires_grad_()
        small = mock.patch.multiple(score_tiles, ROWS=5, COLUMNS=7, NO_FLOAT64=without)
        with small, Types() as mode:
            value = loss(image, text, group=group, scale=scale)
            found.append([value.detach(), torch.autograd.grad(value, image)[0]])
        assert (torch.float64 in mode.found) == ("cpu" not in without)
    for one, other in zip(*found):
        assert (one - other).norm() < 1e-5 * one.norm()
