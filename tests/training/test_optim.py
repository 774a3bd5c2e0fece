"""Parameter groups by name, schedules by their formula, accumulation and clipping by gradients."""

import copy
import math

import pytest
import tiny
import torch
from safetensors.torch import load_file

from xlcm.config import ConfigError, build
from xlcm.registry import methods, models
from xlcm.training.optim import build_optimizer, lr_factor, parameter_groups, set_lr
from xlcm.training.settings import OptimConfig

BETA = 0.9  # of the first moment: after one step it is (1 - BETA) times the gradient


@pytest.fixture
def method(tiny_data):
    """A method whose towers have norms, convolutions, several layers."""
    model = tiny.tree(tiny_data, tiny_data)["model"]
    spec = {
        **model,
        "image": {"name": "timm", "backbone": "test_vit", "image_size": 32},
        "text": {**model["text"], "context_layers": 2, "hidden": 8},
    }
    return build(methods, "contrastive", build(models, spec))


def described(method, config):
    """Return name -> (rate factor, weight decay) for the whole method."""
    names = {id(p): name for name, p in method.named_parameters()}
    return {
        names[id(p)].removeprefix("retriever."): (group["lr_factor"], group["weight_decay"])
        for group in parameter_groups(method, config)
        for p in group["params"]
    }


def test_every_trained_parameter_is_in_exactly_one_group(method):
    method.retriever.image.freeze("all")
    grouped = [id(p) for g in parameter_groups(method, OptimConfig()) for p in g["params"]]
    assert sorted(grouped) == sorted(id(p) for p in method.parameters() if p.requires_grad)
    assert len(grouped) < len(list(method.parameters()))


def test_norms_biases_temperature_and_single_tokens_are_not_decayed(method):
    decay = {name: d for name, (_, d) in described(method, OptimConfig(weight_decay=0.3)).items()}
    for name, parameter in method.retriever.named_parameters():
        module = method.retriever.get_submodule(name.rpartition(".")[0])
        plain = (
            isinstance(module, torch.nn.LayerNorm | torch.nn.BatchNorm1d | torch.nn.BatchNorm2d)
            or name.endswith("bias")
            or name == "log_scale"
            or name.endswith("cls_token")
        )
        assert decay[name] == (0.0 if plain else 0.3), name
        assert plain == (sum(size > 1 for size in parameter.shape) <= 1), name
    assert decay["log_scale"] == 0.0
    assert decay["text.embedding.weight"] == 0.3


def test_the_longest_prefix_of_lr_scale_decides(method):
    config = OptimConfig(lr_scale={"image": 0.1, "image_head": 3.0, "text": 0.5, "text.mlp": 2.0})
    factors = {name: f for name, (f, _) in described(method, config).items()}
    for name, factor in factors.items():
        expected = 1.0
        if name.startswith("image."):
            expected = 0.1
        elif name.startswith("image_head."):
            expected = 3.0
        elif name.startswith("text."):
            expected = 2.0 if name.startswith("text.mlp.") else 0.5
        assert factor == expected, name
    assert factors["log_scale"] == 1.0


def test_an_lr_scale_that_fits_nothing_is_refused_with_the_prefixes_there_are(method):
    with pytest.raises(ConfigError, match=r"txt fits no trained parameter.*image_head.*text"):
        parameter_groups(method, OptimConfig(lr_scale={"txt": 0.1}))


def test_layer_decay_falls_from_the_top_layer_to_the_input(method):
    config = OptimConfig(layer_decay={"text": 0.5}, lr_scale={"text": 10.0})
    factors = {name: f for name, (f, _) in described(method, config).items()}
    assert factors["text.mlp.layers.1.weight"] == 10.0
    assert factors["text.blocks.1.conv.weight"] == 5.0
    assert factors["text.blocks.0.conv.weight"] == 2.5
    assert factors["text.embedding.weight"] == 1.25
    assert all(f == 1.0 for name, f in factors.items() if name.startswith("image"))


def test_nothing_to_train_is_said(method):
    method.requires_grad_(False)
    with pytest.raises(ConfigError, match=r"every parameter is frozen"):
        parameter_groups(method, OptimConfig())


def test_set_lr_gives_each_group_its_share(method):
    optimizer = build_optimizer(method, OptimConfig(lr=1.0, lr_scale={"image": 0.25}))
    set_lr(optimizer, 0.4)
    for group in optimizer.param_groups:
        assert group["lr"] == pytest.approx(0.4 * group["lr_factor"])
    assert {group["lr_factor"] for group in optimizer.param_groups} == {1.0, 0.25}


# -- schedules -----------------------------------------------------------------------------------


def test_warmup_rises_in_equal_steps_to_the_full_rate():
    config = OptimConfig(warmup=4, schedule="constant")
    assert [lr_factor(s, 100, config) for s in range(6)] == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]
    )


def test_a_warmup_below_one_is_a_share_of_all_steps():
    share, count = OptimConfig(warmup=0.1), OptimConfig(warmup=10)
    assert [lr_factor(s, 100, share) for s in range(100)] == pytest.approx(
        [lr_factor(s, 100, count) for s in range(100)]
    )


def test_cosine_and_linear_fall_to_the_lowest_rate_by_their_formulas():
    for schedule, middle in (("cosine", (1 + math.cos(math.pi / 4)) / 2), ("linear", 0.75)):
        config = OptimConfig(warmup=20, schedule=schedule, min_lr=0.1)
        assert lr_factor(20, 100, config) == pytest.approx(1.0)
        assert lr_factor(40, 100, config) == pytest.approx(0.1 + 0.9 * middle)
        assert lr_factor(60, 100, config) == pytest.approx(0.55)
        assert lr_factor(100, 100, config) == pytest.approx(0.1)
        assert lr_factor(150, 100, config) == pytest.approx(0.1)


def test_plateau_falls_by_its_factor_at_each_drop():
    config = OptimConfig(warmup=0, schedule="plateau", plateau_factor=0.3)
    assert [lr_factor(50, 100, config, drops) for drops in range(3)] == pytest.approx(
        [1.0, 0.3, 0.09]
    )


# -- gradients -----------------------------------------------------------------------------------


def first_gradients(data, output, **optim):
    """Train one step of two batches; return its gradients and the mean of the batches' own."""
    seen = {}

    def copied(method):
        seen["method"], seen["batches"] = copy.deepcopy(method), []
        forward = method.forward
        method.forward = lambda batch: seen["batches"].append(batch) or forward(batch)

    config = tiny.tree(
        data,
        output,
        run={"steps": 1, "accumulate": 2},
        optim={"betas": [BETA, 0.98], **optim},
        model={"text": {"dropout": 0.0}},
    )
    tiny.train(config, wrap=copied)
    saved = load_file(output / "checkpoints" / "step-00000001" / "optimizer.safetensors")
    moments = {
        name.split("/")[2]: tensor / (1 - BETA)
        for name, tensor in saved.items()
        if name.endswith("/exp_avg")
    }
    method = seen["method"]
    assert len(seen["batches"]) == 2
    for batch in seen["batches"]:
        (method.total(method(batch)) / 2).backward()
    return moments, {name: p.grad for name, p in method.named_parameters()}


def test_accumulation_averages_the_gradients_of_its_batches(tiny_data, tmp_path):
    found, expected = first_gradients(tiny_data, tmp_path, clip_norm=None)
    assert set(found) == set(expected)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-7)


def test_clipping_shortens_the_whole_gradient_and_logs_its_length_before(tiny_data, tmp_path):
    found, whole = first_gradients(tiny_data, tmp_path, clip_norm=1e-3)
    length = torch.cat([g.flatten() for g in whole.values()]).norm().item()
    assert length > 0.1
    assert tiny.metrics(tmp_path)[0]["grad_norm"] == pytest.approx(length, rel=1e-5)
    for name in whole:
        torch.testing.assert_close(found[name], whole[name] * 1e-3 / length, rtol=1e-3, atol=1e-9)
