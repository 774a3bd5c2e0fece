import math

import pytest
import torch

from xlcm.losses.adversarial import discriminator_loss, fooling_loss
from xlcm.models.discriminator import Discriminator

STRENGTHS = ["weak", "not_so_weak", "strong"]
WIDTH = 6


def made(strength: str, **options) -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(WIDTH, strength=strength, **options).double()


def states(length: int = 7):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(3, length, WIDTH, generator=generator, dtype=torch.float64)
    return tokens, torch.arange(length) < torch.tensor([[length], [4], [1]])


def judge(discriminator: Discriminator, tokens, mask):
    features = discriminator.summarise(tokens, mask)
    return discriminator(features, mask) if discriminator.needs_tokens else discriminator(features)


# -- closed forms -------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", STRENGTHS)
def test_weights_of_zero_give_log_two(strength):
    discriminator = made(strength)
    with torch.no_grad():
        for parameter in discriminator.parameters():
            parameter.zero_()
    real, fake = (judge(discriminator, *states(n)) for n in (7, 5))
    assert discriminator_loss(real, fake).item() == pytest.approx(math.log(2))
    assert 0.001 * fooling_loss(fake).item() == pytest.approx(0.001 * math.log(2))


# -- the released behaviour, in loops -----------------------------------------------------------


def slow_linear(row, weights, name):
    pairs = zip(weights[f"{name}.weight"], weights[f"{name}.bias"])
    return torch.stack([(w.flatten() * row).sum() + b for w, b in pairs])


def slow_conv(rows, weights, name):
    """Kernel 5, two zeros at both ends; rows is a list of vectors."""
    kernel, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    out = []
    for position in range(len(rows)):
        total = bias.clone()
        for offset in range(5):
            at = position + offset - 2
            if 0 <= at < len(rows):
                total = total + kernel[:, :, offset] @ rows[at]
        out.append(total)
    return out


def slow(strength, tokens, weights):
    """One row of tokens, every position counted, padding or not."""
    count = len(tokens)
    if strength == "strong":
        rows = [slow_linear(token, weights, "narrow") for token in tokens]
        for block in range(3):
            rows = [row.clamp(min=0) for row in rows]  # in place: the skip carries it too
            inner = [r.clamp(min=0) for r in slow_conv(rows, weights, f"blocks.{block}.first")]
            inner = slow_conv(inner, weights, f"blocks.{block}.second")
            rows = [row + 0.3 * change for row, change in zip(rows, inner)]
        return slow_linear(sum(rows) / count, weights, "classify")
    mean = sum(tokens) / count
    if strength == "weak":
        return slow_linear(mean, weights, "classify")
    for layer in (0, 2):
        mean = slow_linear(mean, weights, f"classify.{layer}").tanh()
    return slow_linear(mean, weights, "classify.4")


@pytest.mark.parametrize("strength", STRENGTHS)
def test_legacy_logits_equal_the_released_ones_in_loops(strength):
    discriminator = made(strength, legacy_padding=True)
    tokens, mask = states()
    logits = judge(discriminator, tokens, mask)
    assert logits.shape == (3, 2)
    for row in range(3):
        expected = slow(strength, tokens[row], discriminator.state_dict())
        torch.testing.assert_close(logits[row], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_default_logits_are_those_of_each_caption_alone(strength):
    discriminator = made(strength)
    tokens, mask = states()
    logits = judge(discriminator, tokens, mask)
    for row in range(3):
        expected = slow(strength, tokens[row, mask[row]], discriminator.state_dict())
        torch.testing.assert_close(logits[row], expected, atol=1e-10, rtol=0)


def test_widths_are_the_published_ones():
    def shapes(strength):
        return [tuple(p.shape) for n, p in Discriminator(768, strength=strength).named_parameters()
                if n.endswith("weight")]  # fmt: skip

    assert shapes("weak") == [(2, 768)]
    assert shapes("not_so_weak") == [(256, 768), (128, 256), (2, 128)]
    assert shapes("strong") == [*[(128, 128, 5)] * 6, (128, 768, 1), (2, 128)]
    assert Discriminator(768, logits=1)(torch.zeros(3, 768)).shape == (3, 1)


# -- padding ------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [0.0, 1e4, float("nan")])
@pytest.mark.parametrize("strength", STRENGTHS)
def test_more_padding_changes_no_logit_and_no_gradient(strength, content):
    discriminator = made(strength)
    tokens, mask = states()

    def run(extra: int):
        wide = torch.full((3, 7 + extra, WIDTH), content, dtype=torch.float64)
        wide[:, :7] = tokens.masked_fill(~mask[..., None], content)
        wide.requires_grad_()
        seen = torch.cat([mask, mask.new_zeros(3, extra)], dim=1)
        logits = judge(discriminator, wide, seen)
        discriminator.zero_grad()
        logits.square().sum().backward()
        assert not wide.grad[~seen].any()
        return [logits.detach(), wide.grad[seen],
                *(p.grad.clone() for p in discriminator.parameters())]  # fmt: skip

    for before, after in zip(run(0), run(6)):
        torch.testing.assert_close(after, before, atol=1e-10, rtol=0)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_released_logits_depend_on_padding_which_the_switch_brings_back(strength):
    discriminator = made(strength, legacy_padding=True)
    tokens, mask = states()
    wide = torch.cat([tokens, tokens.new_zeros(3, 4, WIDTH)], dim=1)
    seen = torch.cat([mask, mask.new_zeros(3, 4)], dim=1)
    moved = judge(discriminator, wide, seen) - judge(discriminator, tokens, mask)
    assert (moved.abs().amax(dim=1) > 1e-4).all()


# -- use ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", STRENGTHS)
def test_gradients_are_those_of_finite_differences(strength):
    discriminator = made(strength)
    tokens, mask = states(3)
    tokens.requires_grad_()
    assert torch.autograd.gradcheck(lambda t: judge(discriminator, t, mask), (tokens,))


def test_strong_without_a_mask_takes_all_tokens_for_real():
    discriminator = made("strong")
    tokens, mask = states()
    every = torch.ones_like(mask)
    assert torch.equal(discriminator(tokens), discriminator(tokens, every))


def test_features_of_another_strength_are_refused():
    with pytest.raises(ValueError, match=r"expected \(batch, width\) of width 6.*summarise"):
        made("weak")(torch.zeros(2, 3, WIDTH))
    with pytest.raises(ValueError, match=r"expected \(batch, tokens, width\) of width 6"):
        made("strong")(torch.zeros(2, WIDTH))
    with pytest.raises(ValueError, match=r"got \(2, 5\)"):
        made("weak")(torch.zeros(2, 5))


def test_an_unknown_strength_is_refused():
    with pytest.raises(ValueError, match="weak, not_so_weak or strong, got 'mighty'"):
        made("mighty")
