"""A discriminator and its opponent get NRCCR's cross-entropies."""

import math

import pytest
import torch

from xlcm.losses.adversarial import discriminator_loss, fooling_loss


def logits(rows: int = 5, number: int = 2, seed: int = 0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(rows, number, dtype=torch.float64, generator=generator)).to(dtype)


def slow(values, label: int) -> float:
    """Mean of -log of the probability given to the label."""
    probabilities = [1 / (1 + math.exp(-x)) for row in values.tolist() for x in row]
    right = [p if label else 1 - p for p in probabilities]
    return sum(-math.log(p) for p in right) / len(right)


@pytest.mark.parametrize("number", [1, 2])
def test_adversarial_losses_match_slow_loops(number):
    real, fake = logits(number=number), logits(number=number, seed=1)
    wanted = (slow(real, 1) + slow(fake, 0)) / 2
    assert discriminator_loss(real, fake).item() == pytest.approx(wanted, rel=1e-12)
    assert fooling_loss(fake).item() == pytest.approx(slow(fake, 1), rel=1e-12)


def test_discriminator_with_zero_weights_gives_the_logarithm_of_2():
    zero = torch.zeros(3, 2)
    assert discriminator_loss(zero, zero).item() == pytest.approx(math.log(2), rel=1e-6)
    assert 0.001 * fooling_loss(zero).item() == pytest.approx(0.001 * math.log(2), rel=1e-6)


def test_discriminator_halves_each_side_however_many_rows_it_has():
    real, fake = logits(rows=2), logits(rows=7, seed=1)
    wanted = (slow(real, 1) + slow(fake, 0)) / 2
    assert discriminator_loss(real, fake).item() == pytest.approx(wanted, rel=1e-12)


def test_fooling_wants_the_opposite_of_the_discriminator():
    fake = logits().requires_grad_()
    caught = torch.autograd.grad(discriminator_loss(logits(seed=1), fake), fake)[0]
    fooled = torch.autograd.grad(fooling_loss(fake), fake)[0]
    assert (caught > 0).all()
    assert (fooled < 0).all()


def test_adversarial_gradients_match_finite_differences():
    real, fake = logits().requires_grad_(), logits(seed=1).requires_grad_()
    assert torch.autograd.gradcheck(discriminator_loss, (real, fake), atol=1e-6)
    assert torch.autograd.gradcheck(fooling_loss, (fake,), atol=1e-6)


def test_adversarial_losses_of_huge_logits_stay_finite():
    sure = torch.full((2, 2), 1e4)
    assert discriminator_loss(sure, -sure).item() == 0.0
    assert fooling_loss(-sure).item() == 1e4


def test_adversarial_losses_of_half_precision_are_computed_in_float32():
    real, fake = logits(dtype=torch.bfloat16), logits(seed=1, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        values = discriminator_loss(real, fake), fooling_loss(fake)
    wide = discriminator_loss(real.float(), fake.float()), fooling_loss(fake.float())
    assert all(value.dtype == torch.float32 for value in values)
    assert values == wide


def test_adversarial_losses_refuse_what_they_can_not_compute():
    with pytest.raises(ValueError, match=r"real must be logits \(batch, k\).*\(4,\)"):
        discriminator_loss(torch.zeros(4), torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"fake must be logits.*\(0, 2\)"):
        fooling_loss(torch.zeros(0, 2))
