import pytest
import torch

from xlcm.config import ConfigError, build, check_part
from xlcm.encoders.heads import BatchNormHead, GatedUnitHead, LinearHead, MLPHead
from xlcm.registry import heads

OPTIONS = [
    {"name": "identity"},
    {"name": "linear", "bias": False, "dropout": 0.1, "layer_norm": True},
    {
        "name": "mlp", "hidden": 7, "layers": 3, "activation": "relu", "dropout": 0.2,
        "layer_norm": True, "residual": True,
    },
    {"name": "batch_norm", "dropout": 0.3, "hidden": 7, "activation": "none"},
    {"name": "gated", "dropout": 0.1, "layer_norm": True},
]  # fmt: skip


def test_the_registry_knows_five_heads() -> None:
    assert sorted(heads) == sorted(spec["name"] for spec in OPTIONS)


@pytest.mark.parametrize("spec", OPTIONS, ids=lambda spec: spec["name"])
def test_spec_rebuilds_the_head(spec: dict) -> None:
    out = 6 if spec["name"] == "identity" else 5
    head = build(heads, spec, 6, out).eval()
    assert head.spec() == spec
    again = build(heads, head.spec(), 6, out).eval()
    again.load_state_dict(head.state_dict())
    rows = torch.randn(4, 6)
    assert head(rows).shape == (4, out)
    assert torch.equal(head(rows), again(rows))


@pytest.mark.parametrize("name", sorted(heads))
def test_every_parameter_gets_a_gradient(name: str) -> None:
    head = build(heads, {**next(s for s in OPTIONS if s["name"] == name)}, 6, 6)
    rows = torch.randn(8, 6, requires_grad=True)
    head(rows).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())


def test_identity_refuses_to_change_the_width() -> None:
    with pytest.raises(ValueError, match=r"width 6 into 5.*set the model's width to 6"):
        build(heads, "identity", 6, 5)


def test_linear_head_is_a_matrix_product() -> None:
    head = LinearHead(3, 2, bias=False)
    rows = torch.randn(4, 3)
    torch.testing.assert_close(head(rows), rows @ head.linear.weight.T)


def test_layer_norm_removes_scale_and_shift_of_the_input() -> None:
    for kind in (LinearHead, MLPHead, GatedUnitHead):
        head = kind(64, 2, layer_norm=True)
        rows = torch.randn(4, 64)
        torch.testing.assert_close(head(rows), head(3 * rows + 5), atol=1e-5, rtol=0)


def test_gated_unit_with_identity_weights_and_a_closed_gate_halves_its_input() -> None:
    head = GatedUnitHead(3, 3)
    with torch.no_grad():
        head.linear.weight.copy_(torch.eye(3))
        for zero in (head.linear.bias, head.gate.weight, head.gate.bias):
            zero.zero_()
    rows = torch.randn(4, 3)
    torch.testing.assert_close(head(rows), rows / 2)


def test_gated_unit_gates_its_own_projection() -> None:
    head = GatedUnitHead(1, 1)
    with torch.no_grad():
        for parameter, value in zip(head.parameters(), (2.0, 1.0, -1.0, 0.5)):
            parameter.fill_(value)
    hidden = 2.0 * 3.0 + 1.0
    expected = hidden * torch.sigmoid(torch.tensor(-hidden + 0.5))
    torch.testing.assert_close(head(torch.tensor([[3.0]])).squeeze(), expected)


def test_gated_unit_has_the_published_number_of_parameters() -> None:
    assert sum(p.numel() for p in GatedUnitHead(512, 512).parameters()) == 2 * 512 * 513


def test_batch_norm_head_normalises_every_channel_over_the_batch() -> None:
    head = BatchNormHead(6, 5, dropout=0.0)
    mapped = head(torch.randn(32, 6))
    torch.testing.assert_close(mapped.mean(0), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(mapped.var(0, unbiased=False), torch.ones(5), atol=1e-3, rtol=0)


@pytest.mark.parametrize("activation", ["relu", "none"])
def test_batch_norm_head_may_have_a_layer_in_front(activation) -> None:
    head = BatchNormHead(6, 5, hidden=7, activation=activation, dropout=0.0).eval()
    rows = torch.randn(4, 6)
    first = head.front if activation == "none" else head.front[0]
    hidden = rows @ first.weight.T + first.bias
    if activation == "relu":
        hidden = hidden.clamp(min=0)
    mapped = hidden @ head.linear.weight.T + head.linear.bias
    torch.testing.assert_close(head(rows), mapped / (1 + head.norm.eps) ** 0.5)


def test_batch_norm_head_without_a_layer_in_front_has_the_weights_it_always_had() -> None:
    names = {name for name, _ in BatchNormHead(6, 5).named_parameters()}
    assert names == {"linear.weight", "linear.bias", "norm.weight", "norm.bias"}


def test_batch_norm_head_is_row_wise_in_evaluation() -> None:
    head = BatchNormHead(6, 5).eval()
    rows = torch.randn(8, 6)
    torch.testing.assert_close(head(rows)[:1], head(rows[:1]))


def test_batch_norm_head_explains_why_one_row_cannot_train() -> None:
    with pytest.raises(ValueError, match="larger batch"):
        BatchNormHead(6, 5)(torch.randn(1, 6))


def test_mlp_without_hidden_activation_effect_is_its_shortcut() -> None:
    head = MLPHead(3, 2, residual=True)
    with torch.no_grad():
        head.mlp[-1].weight.zero_()
        head.mlp[-1].bias.zero_()
    rows = torch.randn(4, 3)
    assert head.shortcut is not None
    torch.testing.assert_close(head(rows), head.shortcut(rows))


def test_dropout_acts_in_training_alone() -> None:
    for kind in (LinearHead, BatchNormHead, GatedUnitHead, MLPHead):
        head = kind(6, 64, dropout=0.5)
        rows = torch.randn(8, 6)
        assert not torch.equal(head(rows), head(rows))
        head.eval()
        assert torch.equal(head(rows), head(rows))


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "linear", "dropout": 1.0},
        {"name": "mlp", "layers": 1},
        {"name": "mlp", "hidden": 0},
        {"name": "batch_norm", "hidden": 0},
        {"name": "batch_norm", "activation": "gelu"},
    ],
)
def test_options_out_of_range_are_refused(spec: dict) -> None:
    with pytest.raises(ConfigError):
        check_part(heads, spec)
