"""Rows that lack a text are left out as if they had never been in the batch."""

import pytest
import torch
from pairs import pairs

from xlcm.losses.info_nce import InfoNCELoss
from xlcm.losses.present import Present
from xlcm.losses.similarity_distillation import SimilarityDistillationLoss

PRESENT = torch.tensor([True, False, True, True, False, True, True, False])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_info_nce_of_present_rows_is_that_of_a_batch_without_the_others(reduction, smoothing):
    image, text, group = pairs()
    loss = InfoNCELoss(label_smoothing=smoothing, reduction=reduction)
    image, text = image.requires_grad_(), text.requires_grad_()
    some = loss(image, text, group=group, scale=5.0, present=PRESENT)
    kept = loss(image[PRESENT], text[PRESENT], group=group[PRESENT], scale=5.0)
    assert some.item() == pytest.approx(kept.item(), rel=1e-12)
    for one, other in zip(*(torch.autograd.grad(x, (image, text)) for x in (some, kept))):
        torch.testing.assert_close(one, other)
        assert not one[~PRESENT].any()


@pytest.mark.parametrize("divergence", ["kl", "cross_entropy", "smooth_l1"])
@pytest.mark.parametrize("direction", ["both", "text_to_image", "image_to_text"])
def test_distillation_of_present_rows_is_that_of_a_batch_without_the_others(divergence, direction):
    image, text, _ = pairs()
    teachers = [pairs(width=7, seed=seed)[:2] for seed in (1, 2)]
    loss = SimilarityDistillationLoss(
        divergence=divergence, direction=direction, pool="max", reduction="sum", temperature=0.2
    )
    image, text = image.requires_grad_(), text.requires_grad_()
    some = loss(text, image, loss.targets([(t, v) for v, t in teachers]), PRESENT)
    fewer = loss.targets([(t[PRESENT], v[PRESENT]) for v, t in teachers])
    kept = loss(text[PRESENT], image[PRESENT], fewer)
    assert some.item() == pytest.approx(kept.item(), rel=1e-12)
    for one, other in zip(*(torch.autograd.grad(x, (image, text)) for x in (some, kept))):
        torch.testing.assert_close(one, other)


def test_all_present_is_the_plain_loss():
    image, text, group = pairs()
    everyone = torch.ones(8, dtype=torch.bool)
    nce = InfoNCELoss()
    assert nce(image, text, group=group, scale=5.0, present=everyone).item() == pytest.approx(
        nce(image, text, group=group, scale=5.0).item(), rel=1e-12
    )
    kd = SimilarityDistillationLoss()
    targets = kd.targets([pairs(seed=1)[:2]])
    assert kd(text, image, targets, everyone).item() == pytest.approx(
        kd(text, image, targets).item(), rel=1e-12
    )


@pytest.mark.parametrize("divergence", ["kl", "cross_entropy", "smooth_l1"])
def test_a_batch_without_any_present_row_costs_nothing_and_has_a_gradient_of_zeros(divergence):
    image, text, group = pairs()
    image.requires_grad_()
    nobody = torch.zeros(8, dtype=torch.bool)
    kd = SimilarityDistillationLoss(divergence=divergence)
    total = InfoNCELoss()(image, text, group=group, scale=5.0, present=nobody) + kd(
        text, image, kd.targets([pairs(seed=1)[:2]]), nobody
    )
    total.backward()
    assert total.item() == 0.0
    assert not image.grad.any()
    assert image.grad.isfinite().all()


def test_present_is_one_bool_a_row():
    image, text, group = pairs()
    for wrong in (PRESENT[:5], PRESENT.float()):
        with pytest.raises(ValueError, match=r"one bool a row, \(8,\)"):
            InfoNCELoss()(image, text, group=group, scale=1.0, present=wrong)
    with pytest.raises(ValueError, match="one bool a row"):
        Present(PRESENT, 3)
