"""InfoNCE does what its paper says, in every precision."""

import math

import pytest
import torch
from pairs import pairs, slow_info_nce

from xlcm.config import ConfigError, build
from xlcm.losses.info_nce import InfoNCELoss
from xlcm.registry import losses


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
@pytest.mark.parametrize("scale", [1.0, 14.3])
def test_info_nce_matches_double_loop(smoothing, dtype, tolerance, scale):
    for seed in range(3):
        image, text, group = pairs(dtype=dtype, seed=seed)
        loss = InfoNCELoss(label_smoothing=smoothing)(image, text, group=group, scale=scale)
        slow = slow_info_nce(image, text, group, scale, smoothing)
        assert loss.item() == pytest.approx(slow, rel=tolerance)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_info_nce_of_one_pair_is_zero(smoothing):
    image, text, group = pairs(rows=1)
    loss = InfoNCELoss(label_smoothing=smoothing)(image, text, group=group, scale=100.0)
    assert loss.item() == pytest.approx(0.0, abs=1e-12)


def test_info_nce_of_equal_embeddings_is_the_logarithm_of_the_batch():
    same = pairs(rows=1)[0].expand(7, -1)
    for group in (torch.arange(7), torch.zeros(7, dtype=torch.int64), torch.arange(7) // 3):
        loss = InfoNCELoss()(same, same, group=group, scale=20.0)
        assert loss.item() == pytest.approx(math.log(7), rel=1e-12)


@pytest.mark.parametrize(
    ("similarity", "temperature", "value"),
    [
        (torch.ones(4, 4), 0.05, 2.772589),
        (torch.ones(4, 4), 1.0, 2.772589),
        (torch.eye(4), 1.0, 1.487337),
        (torch.eye(4), 0.1, 2.723810e-4),
        (torch.tensor([[0.8, 0.1], [0.3, 0.6]]), 0.1, 0.0314647575),
        (torch.tensor([[0.8, 0.1], [0.3, 0.6]]), 0.05, 0.00128365723),
    ],
)
def test_info_nce_may_sum_its_directions_as_c2kd_does(similarity, temperature, value):
    text = similarity.double().round(decimals=1)
    group = torch.arange(len(text))
    image, scale = torch.eye(len(text), dtype=torch.float64), 1 / temperature
    total = InfoNCELoss(reduction="sum")(image, text, group=group, scale=scale).item()
    assert total == pytest.approx(value, rel=1e-6)
    mean = InfoNCELoss()(image, text, group=group, scale=scale).item()
    assert total == pytest.approx(2 * mean, rel=1e-12)


def test_info_nce_of_a_perfect_batch_of_8_at_temperature_007():
    eye = torch.eye(8, dtype=torch.float64)
    loss = InfoNCELoss()(eye, eye, group=torch.arange(8), scale=1 / 0.07)
    assert loss.item() == pytest.approx(4.374e-6, rel=1e-3)


@pytest.mark.parametrize("scale", [0.5, 10.0, 100.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_info_nce_of_a_perfect_match_reaches_its_limit(scale, smoothing):
    rows = 6
    eye = torch.eye(rows, dtype=torch.float64)
    loss = InfoNCELoss(label_smoothing=smoothing)(eye, eye, group=torch.arange(rows), scale=scale)
    spread = math.log(1 + (rows - 1) * math.exp(-scale))  # of the right column
    limit = spread + smoothing * scale * (1 - 1 / rows)
    assert loss.item() == pytest.approx(limit, rel=1e-10, abs=1e-15)


def test_info_nce_does_not_push_captions_of_one_image_apart():
    image, text, group = pairs()
    image.requires_grad_()
    alone = torch.arange(len(group))
    shared = InfoNCELoss()(image, text, group=group, scale=10.0)
    apart = InfoNCELoss()(image, text, group=alone, scale=10.0)
    towards = -torch.autograd.grad(shared, image)[0][1] @ text[2]  # rows 1 and 2: one image
    away = -torch.autograd.grad(apart, image)[0][1] @ text[2]
    assert towards > away


def test_info_nce_gradients_match_finite_differences():
    image, text, group = pairs(rows=4, width=5)
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    loss = InfoNCELoss(label_smoothing=0.1)
    assert torch.autograd.gradcheck(
        lambda i, t, s: loss(i, t, group=group, scale=s),
        (image.requires_grad_(), text.requires_grad_(), scale),
        atol=1e-6,
    )


def test_info_nce_under_autocast_is_exactly_that_of_float32():
    results = []
    for enabled in (False, True):
        image, text, group = pairs(rows=32, width=16, dtype=torch.float32)
        scale = torch.tensor(100.0, requires_grad=True)
        inputs = (image.requires_grad_(), text.requires_grad_(), scale)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = InfoNCELoss()(image, text, group=group, scale=scale)
        results.append([loss, *torch.autograd.grad(loss, inputs)])
    for plain, autocast in zip(*results):
        assert autocast.dtype == torch.float32
        assert torch.equal(plain, autocast)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_info_nce_of_half_precision_is_computed_in_float32(half):
    image, text, group = pairs(rows=32, width=16, dtype=half)
    loss = InfoNCELoss()(image, text, group=group, scale=torch.tensor(100.0))
    wide = InfoNCELoss()(image.float(), text.float(), group=group, scale=torch.tensor(100.0))
    assert loss.dtype == torch.float32
    assert torch.equal(loss, wide)


def test_info_nce_refuses_what_it_can_not_compute():
    image, text, group = pairs()
    loss = InfoNCELoss()
    with pytest.raises(ValueError, match="without rows"):
        loss(image[:0], text[:0], group=group[:0], scale=1.0)
    with pytest.raises(ValueError, match=r"\(8, 5\) and text \(7, 5\)"):
        loss(image, text[:7], group=group, scale=1.0)
    with pytest.raises(ValueError, match=r"group \(7,\)"):
        loss(image, text, group=group[:7], scale=1.0)
    with pytest.raises(ValueError, match="one number"):
        loss(image, text, group=group, scale=torch.ones(8))


def test_info_nce_refuses_a_bias_instead_of_dropping_it():
    image, text, group = pairs()
    bias = torch.tensor(-10.0, requires_grad=True)
    with pytest.raises(ValueError, match="bias would be dropped"):
        InfoNCELoss()(image, text, group=group, scale=1.0, bias=bias)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_info_nce_checks_its_options_in_code_and_in_a_config(smoothing):
    with pytest.raises(ValueError, match="label_smoothing"):
        InfoNCELoss(label_smoothing=smoothing)
    with pytest.raises(ConfigError, match="label_smoothing"):
        build(losses, {"name": "info_nce", "label_smoothing": smoothing})
