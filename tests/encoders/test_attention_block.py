import math

import pytest
import released
import torch

from xlcm.encoders.attention_block import AttentionBlock, InputProjection

WIDTH, HEADS, KEYS = 8, 2, 12


def made(**options) -> AttentionBlock:
    torch.manual_seed(0)
    return AttentionBlock(WIDTH, **{"heads": HEADS, "key_width": KEYS, **options}).double().eval()


def rows(count: int = 3, length: int = 5, seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(count, length, WIDTH, generator=generator, dtype=torch.float64)
    lengths = [length, *[1 + i % length for i in range(count - 1)]]
    return tokens, torch.arange(length) < torch.tensor(lengths)[:, None]


# -- closed forms -------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True])
def test_constant_values_give_themselves_whatever_the_scores(legacy):
    block = made(legacy_padding=legacy)
    constant = torch.randn(WIDTH, dtype=torch.float64)
    with torch.no_grad():
        block.value.weight.zero_()
        block.value.bias.copy_(constant)
    query, query_mask = rows(seed=1)
    key, _ = rows(length=7, seed=2)
    everything = torch.ones(3, 7, dtype=torch.bool)
    context = block.context(query, query_mask, key, everything)
    torch.testing.assert_close(context, constant.expand(3, 5, WIDTH))


@pytest.mark.parametrize("legacy", [False, True])
def test_content_of_masked_keys_changes_nothing_for_real_queries(legacy):
    block = made(legacy_padding=legacy)
    query, query_mask = rows(seed=1)
    key, key_mask = rows(length=7, seed=2)
    expected = block(query, query_mask, key, key_mask)
    key[~key_mask] = 9.0
    changed = block(query, query_mask, key, key_mask)
    torch.testing.assert_close(changed[query_mask], expected[query_mask], atol=1e-12, rtol=0)
    # a padded query sees them in the released code, and only there
    unseen = torch.allclose(changed[~query_mask], expected[~query_mask], atol=1e-12)
    assert unseen != legacy


# -- the released behaviour ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cross", [False, True])
def test_legacy_block_equals_the_released_one_in_loops(cross, dtype):
    block = made(legacy_padding=True, legacy_divisor=True).to(dtype)
    query, query_mask = rows(seed=1)
    key, key_mask = rows(length=4, seed=2) if cross else (query, query_mask)
    query, key = query.to(dtype), key.to(dtype)
    ours = block(query, query_mask, key, key_mask, residual=not cross)
    weights = block.state_dict()
    for row in range(len(query)):
        slow = released.attention(
            query[row], query_mask[row].int().tolist(), key[row], key_mask[row].int().tolist(),
            weights, HEADS, cross,
        )  # fmt: skip
        torch.testing.assert_close(ours[row], torch.stack(slow), atol=1e-5, rtol=0)


def test_legacy_divisor_is_that_of_the_values_and_the_default_that_of_the_keys():
    assert made().scale == pytest.approx(1 / math.sqrt(KEYS / HEADS))
    assert made(legacy_divisor=True).scale == pytest.approx(1 / math.sqrt(WIDTH / HEADS))


def test_both_masks_agree_where_nothing_is_padded():
    query, _ = rows()
    mask = torch.ones(3, 5, dtype=torch.bool)
    one, other = made(), made(legacy_padding=True)
    torch.testing.assert_close(one(query, mask, query, mask), other(query, mask, query, mask))


def test_the_projection_equals_the_released_one_in_loops():
    torch.manual_seed(0)
    layer = InputProjection(6, WIDTH, positions=9).double().eval()
    tokens = torch.randn(2, 4, 6, dtype=torch.float64)
    for ours, row in zip(layer(tokens), tokens):
        slow = released.projection(row, layer.state_dict())
        torch.testing.assert_close(ours, torch.stack(slow), atol=1e-5, rtol=0)


def test_residual_adds_the_query_in_front_of_the_norm():
    block = made()
    query, mask = rows()
    with torch.no_grad():
        block.out.weight.zero_()
        block.out.bias.zero_()
    torch.testing.assert_close(
        block(query, mask, query, mask)[mask], block.norm(query)[mask], atol=1e-12, rtol=0
    )
    assert not block(query, mask, query, mask, residual=False).any()


# -- padding ------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [0.0, 1e4, float("nan")])
def test_more_padding_changes_no_output_and_no_gradient(content):
    block = made()
    query, query_mask = rows(seed=1)
    key, key_mask = rows(length=4, seed=2)

    def run(extra: int):
        wide = [
            torch.cat([t.masked_fill(~m[..., None], content),
                       torch.full((3, extra, WIDTH), content, dtype=t.dtype)], dim=1)
            for t, m in ((query, query_mask), (key, key_mask))
        ]  # fmt: skip
        masks = [
            torch.cat([m, torch.zeros(3, extra, dtype=torch.bool)], dim=1)
            for m in (query_mask, key_mask)
        ]
        for tokens in wide:
            tokens.requires_grad_()
        out = block(wide[0], masks[0], wide[1], masks[1])
        real = out[masks[0]]
        block.zero_grad()
        real.square().sum().backward()
        return [real.detach(), *(t.grad[m] for t, m in zip(wide, masks)),
                *(p.grad.clone() for p in block.parameters())]  # fmt: skip

    for before, after in zip(run(0), run(6)):
        torch.testing.assert_close(after, before, atol=1e-12, rtol=0)


def test_a_row_without_keys_gathers_nothing():
    block = made()
    query, query_mask = rows()
    key, key_mask = rows(length=4, seed=2)
    key_mask[1] = False
    key.requires_grad_()
    context = block.context(query, query_mask, key, key_mask)
    assert not context[1].any()
    context.square().sum().backward()
    assert key.grad.isfinite().all()
    assert not key.grad[1].any()


# -- the rest -----------------------------------------------------------------------------------


def test_gradients_are_those_of_finite_differences():
    block = made()
    query, query_mask = rows(2, 3, seed=1)
    key, key_mask = rows(2, 2, seed=2)
    assert torch.autograd.gradcheck(
        lambda q, k: block(q, query_mask, k, key_mask)[query_mask],
        (query.requires_grad_(), key.requires_grad_()),
    )


def test_bfloat16_autocast_stays_close():
    block = made().float()
    query, mask = rows()
    query = query.float()
    exact = block(query, mask, query, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = block(query, mask, query, mask)
    torch.testing.assert_close(rough.float()[mask], exact[mask], atol=0.1, rtol=0)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_padded_queries_of_the_released_mask_keep_their_scores_in_half_precision(half):
    block = made(legacy_padding=True).float()
    query, mask = rows()
    query = 4 * query.float()
    exact = block(query, mask, query, mask)
    with torch.autocast("cpu", dtype=half):
        rough = block(query, mask, query, mask)
    assert not mask.all()
    torch.testing.assert_close(rough.float(), exact, atol=0.05, rtol=0)


def test_dropout_acts_in_training_alone():
    block = made(dropout=0.5)
    query, mask = rows()
    assert torch.equal(block(query, mask, query, mask), block(query, mask, query, mask))
    block.train()
    assert not torch.equal(block(query, mask, query, mask), block(query, mask, query, mask))


@pytest.mark.parametrize("options", [{"heads": 3}, {"key_width": 7}, {"heads": 0}])
def test_heads_that_do_not_divide_are_refused(options):
    with pytest.raises(ValueError, match=r"heads=\d does not divide (width|key_width)="):
        made(**options)


def test_too_few_positions_say_what_to_do():
    layer = InputProjection(6, WIDTH, positions=3)
    with pytest.raises(ValueError, match=r"4 tokens a row, but there are 3 positions: set"):
        layer(torch.zeros(1, 4, 6))
    with pytest.raises(ValueError, match="positions must be at least 1, got 0"):
        InputProjection(6, WIDTH, positions=0)
