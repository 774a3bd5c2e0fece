"""The sigmoid loss does what its paper says, in every precision."""

import math

import pytest
import torch
from pairs import pairs, slow_sigmoid

from xlcm.config import build
from xlcm.losses.sigmoid import SigmoidLoss
from xlcm.registry import losses

WAYS = ["never", "always"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize(("scale", "bias"), [(1.0, 0.0), (10.0, -10.0), (100.0, -20.0)])
def test_sigmoid_matches_double_loop(way, dtype, tolerance, scale, bias):
    for seed in range(3):
        image, text, group = pairs(dtype=dtype, seed=seed)
        loss = SigmoidLoss(tiled=way)(
            image, text, group=group, scale=scale, bias=torch.tensor(bias)
        )
        slow = slow_sigmoid(image, text, group, scale, bias)
        assert loss.item() == pytest.approx(slow, rel=tolerance)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("logit", [-300.0, -30.0, -1.0, 0.0, 2.0, 35.0, 50.0])
def test_sigmoid_of_one_pair_is_softplus_of_its_logit(way, logit):
    one = torch.ones(1, 1, dtype=torch.float64)
    loss = SigmoidLoss(tiled=way)(one, one, group=torch.zeros(1).long(), scale=logit)
    wanted = math.log1p(math.exp(-logit)) if logit > 0 else -logit + math.log1p(math.exp(logit))
    assert loss.item() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("way", WAYS)
def test_sigmoid_of_logits_of_zero_is_ln_2_a_pair(way):
    same = pairs(rows=1)[0].expand(7, -1)
    bias = torch.tensor(-20.0)  # takes the scale's cosine of 1 away
    for group in (torch.arange(7), torch.zeros(7, dtype=torch.int64)):
        loss = SigmoidLoss(tiled=way)(same, same, group=group, scale=20.0, bias=bias)
        assert loss.item() == pytest.approx(7 * math.log(2), rel=1e-12)


@pytest.mark.parametrize("way", WAYS)
def test_sigmoid_of_a_perfect_batch_has_its_closed_form(way):
    eye = torch.eye(6, dtype=torch.float64)
    loss = SigmoidLoss(tiled=way)(
        eye, eye, group=torch.arange(6), scale=30.0, bias=torch.tensor(-12.0)
    )
    right, wrong = math.log1p(math.exp(-18)), math.log1p(math.exp(-12))
    assert loss.item() == pytest.approx(right + 5 * wrong, rel=1e-12)


def test_sigmoid_pulls_all_captions_of_an_image_to_it():
    image, text, group = pairs()
    image.requires_grad_()
    shared = SigmoidLoss()(image, text, group=group, scale=10.0)
    apart = SigmoidLoss()(image, text, group=torch.arange(8), scale=10.0)
    towards = -torch.autograd.grad(shared, image)[0][1] @ text[2]  # rows 1 and 2: one image
    away = -torch.autograd.grad(apart, image)[0][1] @ text[2]
    assert towards > away


@pytest.mark.parametrize("way", WAYS)
def test_sigmoid_gradients_match_finite_differences(way):
    image, text, group = pairs(rows=8, width=3)
    numbers = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (3.0, -1.0)]
    assert torch.autograd.gradcheck(
        lambda i, t, s, b: SigmoidLoss(tiled=way)(i, t, group=group, scale=s, bias=b),
        (image.requires_grad_(), text.requires_grad_(), *numbers),
        atol=1e-6,
    )


@pytest.mark.parametrize("way", WAYS)
def test_sigmoid_under_autocast_is_exactly_that_of_float32(way):
    results = []
    for enabled in (False, True):
        image, text, group = pairs(rows=32, width=16, dtype=torch.float32)
        numbers = [torch.tensor(x, requires_grad=True) for x in (100.0, -10.0)]
        inputs = (image.requires_grad_(), text.requires_grad_(), *numbers)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = SigmoidLoss(tiled=way)(
                image, text, group=group, scale=numbers[0], bias=numbers[1]
            )
        results.append([loss, *torch.autograd.grad(loss, inputs)])
    for plain, autocast in zip(*results):
        assert autocast.dtype == torch.float32
        assert torch.equal(plain, autocast)


@pytest.mark.parametrize("way", WAYS)
def test_sigmoid_of_present_rows_is_that_of_a_batch_without_the_others(way):
    image, text, group = pairs()
    present = torch.tensor([True, False, True, True, False, True, True, False])
    image, text = image.requires_grad_(), text.requires_grad_()
    loss, options = SigmoidLoss(tiled=way), {"scale": 5.0, "bias": torch.tensor(-2.0)}
    some = loss(image, text, group=group, present=present, **options)
    kept = loss(image[present], text[present], group=group[present], **options)
    assert some.item() == pytest.approx(kept.item(), rel=1e-12)
    for one, other in zip(*(torch.autograd.grad(x, (image, text)) for x in (some, kept))):
        torch.testing.assert_close(one, other)
        assert not one[~present].any()


def test_sigmoid_refuses_what_it_can_not_compute():
    image, text, group = pairs()
    with pytest.raises(ValueError, match="without rows"):
        SigmoidLoss()(image[:0], text[:0], group=group[:0], scale=1.0)
    with pytest.raises(ValueError, match=r"bias must be one number .*\(8,\)"):
        SigmoidLoss()(image, text, group=group, scale=1.0, bias=torch.zeros(8))
    assert isinstance(build(losses, "sigmoid"), SigmoidLoss)
