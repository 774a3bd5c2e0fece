import pytest
import torch

from xlcm.config import ConfigError, build, check_part
from xlcm.encoders.pooling import AttentionPooling
from xlcm.registry import poolings

WIDTH = 16
NAMES = ["attention", "cls", "last", "max", "mean"]


def made(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return build(poolings, name, WIDTH)


def batch(lengths: tuple[int, ...] = (3, 1, 5)) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randn(
        len(lengths), max(lengths), WIDTH, generator=torch.Generator().manual_seed(1)
    )
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    return tokens, mask


def test_the_registry_knows_five_poolings() -> None:
    assert sorted(poolings) == NAMES


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("content", [0.0, 1e4, float("nan"), float("inf")])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_of_any_content_on_either_side_changes_nothing(
    name: str, content: float, side: str
) -> None:
    pooling = made(name)
    tokens, mask = batch()
    expected = torch.stack([pooling(t[m][None], m[m][None])[0] for t, m in zip(tokens, mask)])
    padding = torch.full((3, 4, WIDTH), content)
    none = torch.zeros(3, 4, dtype=torch.bool)
    order = (1, 0) if side == "right" else (0, 1)
    wide = torch.cat([(padding, tokens)[i] for i in order], dim=1)
    wide_mask = torch.cat([(none, mask)[i] for i in order], dim=1)
    wide = wide.masked_fill(~wide_mask[..., None], content).requires_grad_()
    pooled = pooling(wide, wide_mask)
    torch.testing.assert_close(pooled, expected, atol=1e-6, rtol=0)
    pooled.square().sum().backward()
    assert wide.grad is not None
    assert torch.isfinite(wide.grad).all()
    assert not wide.grad[~wide_mask].any()
    assert all(torch.isfinite(p.grad).all() for p in pooling.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_a_row_without_tokens_is_zero_with_zero_gradient(name: str) -> None:
    pooling = made(name)
    tokens, mask = batch()
    mask[1] = False
    tokens.requires_grad_()
    pooled = pooling(tokens, mask)
    assert torch.equal(pooled[1], torch.zeros(WIDTH))
    assert pooled[0].abs().sum() > 0
    pooled.sum().backward()
    assert tokens.grad is not None
    assert torch.isfinite(tokens.grad).all()
    assert not tokens.grad[1].any()


def test_closed_forms_of_mean_max_first_and_last() -> None:
    tokens = torch.tensor([[[1.0, -4.0], [3.0, -2.0], [100.0, 100.0]]])
    mask = torch.tensor([[True, True, False]])
    answers = {"mean": [2.0, -3.0], "max": [3.0, -2.0], "cls": [1.0, -4.0], "last": [3.0, -2.0]}
    for name, answer in answers.items():
        assert build(poolings, name, 2)(tokens, mask).tolist() == [answer]


def test_attention_pooling_matches_a_loop_over_heads_and_tokens() -> None:
    pooling = AttentionPooling(WIDTH, heads=4)
    tokens, mask = batch()
    key, value = pooling.key_value(tokens).chunk(2, dim=-1)
    expected = torch.zeros(3, WIDTH)
    for row in range(3):
        for head in range(4):
            part = slice(4 * head, 4 * head + 4)
            real = mask[row].nonzero()[:, 0]
            scores = torch.stack([pooling.query[head, 0] @ key[row, t, part] for t in real]) / 2.0
            weights = scores.softmax(0)
            expected[row, part] = sum(w * value[row, t, part] for w, t in zip(weights, real))
    torch.testing.assert_close(pooling(tokens, mask), pooling.out(expected), atol=1e-6, rtol=0)


def test_mean_pooling_of_half_precision_sums_in_float32() -> None:
    tokens = torch.full((1, 4096, 1), 100.0, dtype=torch.float16)  # the sum would overflow float16
    pooled = build(poolings, "mean", 1)(tokens, torch.ones(1, 4096, dtype=torch.bool))
    assert pooled.dtype == torch.float16
    assert pooled.item() == 100.0


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_stays_bfloat16(name: str) -> None:
    tokens, mask = batch()
    assert made(name).bfloat16()(tokens.bfloat16(), mask).dtype == torch.bfloat16


@pytest.mark.parametrize("name", NAMES)
def test_spec_rebuilds_the_pooling(name: str) -> None:
    spec = {"name": name, "heads": 2} if name == "attention" else {"name": name}
    pooling = build(poolings, spec, WIDTH)
    assert pooling.spec() == spec
    again = build(poolings, pooling.spec(), WIDTH)
    again.load_state_dict(pooling.state_dict())
    tokens, mask = batch()
    assert torch.equal(pooling(tokens, mask), again(tokens, mask))


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="heads=8 does not divide the width 10"):
        build(poolings, "attention", 10)
    with pytest.raises(ConfigError, match="heads"):
        check_part(poolings, {"name": "attention", "heads": 0})
