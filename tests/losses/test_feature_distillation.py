"""Distillation of features is NRCCR's smooth L1, with its switches."""

import math

import pytest
import torch
from pairs import pairs

from xlcm.losses.feature_distillation import FeatureDistillationLoss


def slow(student, teacher, beta: float, reduction: str) -> float:
    """Entry by entry."""
    rows = [
        [
            d * d / (2 * beta) if d < beta else d - beta / 2
            for d in (abs(a - b) for a, b in zip(one, other))
        ]
        for one, other in zip(student.tolist(), teacher.tolist())
    ]
    total = sum(sum(row) for row in rows) / len(rows)
    return total / len(rows[0]) if reduction == "mean" else total


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("beta", [0.3, 4.0])
def test_feature_distillation_matches_slow_loops(reduction, beta):
    student, teacher, _ = pairs()
    loss = FeatureDistillationLoss(beta=beta, reduction=reduction)
    wanted = slow(student, teacher, beta, reduction)
    assert loss(student, teacher).item() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize(("gap", "value"), [(4.0, 2.0), (1.0, 0.125), (100.0, 98.0), (0.0, 0.0)])
def test_feature_distillation_of_one_difference(gap, value):
    assert FeatureDistillationLoss()(torch.tensor([[gap]]), torch.zeros(1, 1)).item() == value


def test_feature_distillation_of_unit_vectors_is_their_squared_distance_over_8_widths():
    student, teacher, _ = pairs(rows=1, width=64)
    value = FeatureDistillationLoss()(student, teacher).item()
    assert value == pytest.approx((student - teacher).square().sum().item() / (8 * 64), rel=1e-12)
    opposite = FeatureDistillationLoss()(student, -student).item()
    assert opposite == pytest.approx(4 / (8 * 64), rel=1e-12)


@pytest.mark.parametrize("detach", [False, True])
def test_feature_distillation_moves_the_teacher_unless_it_is_detached(detach):
    student, teacher, _ = pairs()
    loss = FeatureDistillationLoss(detach_teacher=detach)
    loss(student.requires_grad_(), teacher.requires_grad_()).backward()
    assert student.grad.norm() > 0
    if detach:
        assert teacher.grad is None
    else:
        assert torch.equal(teacher.grad, -student.grad)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_feature_distillation_gradients_match_finite_differences(reduction):
    student, teacher, _ = pairs(rows=4)
    loss = FeatureDistillationLoss(beta=0.4, reduction=reduction)
    assert torch.autograd.gradcheck(
        loss, (student.requires_grad_(), teacher.requires_grad_()), atol=1e-6
    )


def test_feature_distillation_of_half_precision_is_computed_in_float32():
    student, teacher, _ = pairs(dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        value = FeatureDistillationLoss()(student, teacher)
    assert value.dtype == torch.float32
    assert torch.equal(value, FeatureDistillationLoss()(student.float(), teacher.float()))


def test_feature_distillation_shows_a_nan_instead_of_passing_over_it():
    student, teacher, _ = pairs()
    student[0, 0] = math.nan
    assert math.isnan(FeatureDistillationLoss()(student, teacher).item())


def test_feature_distillation_refuses_what_it_can_not_compute():
    student, teacher, _ = pairs()
    with pytest.raises(ValueError, match=r"student \(8, 5\), teacher \(8, 4\).*widths"):
        FeatureDistillationLoss()(student, teacher[:, :4])
    with pytest.raises(ValueError, match="one batch"):
        FeatureDistillationLoss()(student, teacher[:1])  # would be spread over all rows
    with pytest.raises(ValueError, match="without rows"):
        FeatureDistillationLoss()(student[:0], teacher[:0])
    with pytest.raises(ValueError, match="beta must be above 0, got 0"):
        FeatureDistillationLoss(beta=0.0)
