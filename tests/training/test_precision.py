"""Half precision: losses stay in float32, and the scaler of fp16 is part of the run."""

import math

import pytest
import tiny
import torch

from xlcm.config import ConfigError
from xlcm.training import launch


def test_bf16_stays_within_two_percent_of_fp32_and_losses_are_float32(tiny_data, tmp_path):
    seen = {}

    def look(method):
        encode, losses = method.retriever.text_head.forward, method.losses

        def head(*given):
            out = encode(*given)
            seen["head"] = out.dtype
            return out

        def terms(encoded):
            out = losses(encoded)
            seen["terms"] = {term.dtype for term in out.values()}
            return out

        method.retriever.text_head.forward, method.losses = head, terms

    optim = {"lr": 0.001}
    for precision in ("fp32", "bf16"):
        run = {"steps": 50, "precision": precision}
        config = tiny.tree(tiny_data, tmp_path / precision, run=run, optim=optim)
        tiny.train(config, wrap=look)
    assert seen == {"head": torch.bfloat16, "terms": {torch.float32}}
    full, half = (
        [r["loss"] for r in tiny.metrics(tmp_path / precision)] for precision in ("fp32", "bf16")
    )
    assert half != full
    assert half == pytest.approx(full, rel=0.02)


def test_fp16_without_a_gpu_is_refused_before_anything_is_written(tiny_data, tmp_path):
    config = tiny.tree(tiny_data, tmp_path / "run", run={"precision": "fp16"})
    with pytest.raises(ConfigError, match=r"run\.precision=fp16: there is no GPU.*fp32, or bf16"):
        tiny.train(config)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def scaled(monkeypatch):
    """Accelerate uses fp16 on GPUs only; this gives it torch's scaler for the CPU."""
    accelerator = launch.Accelerator

    def scaling(**options):
        made = accelerator(**options)
        made.state._mixed_precision = "fp16"
        made.native_amp = True
        made.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=3)
        return made

    monkeypatch.setattr(launch, "Accelerator", scaling)


def test_fp16_resumes_with_its_scale(tiny_data, tmp_path, scaled):
    run = {"steps": 10, "save_every": 1, "keep_checkpoints": 20}
    whole = tiny.train(tiny.tree(tiny_data, tmp_path / "whole", run=run))
    assert whole.accelerator.scaler.get_scale() != 2.0**20, "the scale has to move for this test"
    assert tiny.metrics(tmp_path / "whole")[0]["grad_norm"] is None  # it overflowed
    config = tiny.tree(tiny_data, tmp_path / "cut", run=run)
    with pytest.raises(tiny.Crash):
        tiny.train(config, crash_before=5)
    again = tiny.train(config)
    assert again.accelerator.scaler.state_dict() == whole.accelerator.scaler.state_dict()
    assert tiny.metrics(tmp_path / "whole") == tiny.metrics(tmp_path / "cut")
    assert tiny.checkpoint(tmp_path / "whole", 10) == tiny.checkpoint(tmp_path / "cut", 10)


def test_fp16_goes_on_after_a_non_finite_loss(tiny_data, tmp_path, scaled):
    def spoil(method):
        forward, count = method.forward, [0]

        def spoiled(batch):
            count[0] += 1
            if count[0] in (3, 4):
                batch.visual.features[0, 0] = math.nan
            return forward(batch)

        method.forward = spoiled

    run = {"steps": 8, "save_every": 1, "keep_checkpoints": 20}
    tiny.train(tiny.tree(tiny_data, tmp_path, run=run), wrap=spoil)
    assert [r["step"] for r in tiny.metrics(tmp_path, "nonfinite")] == [3, 4]
    weights = [tiny.checkpoint(tmp_path, step)["model.safetensors"] for step in (2, 4, 8)]
    assert weights[0] == weights[1] != weights[2]


def test_fp16_whose_gradients_overflow_at_every_scale_stops_instead_of_learning_nothing(
    tiny_data, tmp_path, scaled
):
    def spoil(method):
        weight = method.retriever.image_head.linear.weight
        weight.register_hook(lambda gradient: gradient * math.nan)

    config = tiny.tree(tiny_data, tmp_path, run={"steps": 60, "save_every": 1})
    with pytest.raises(FloatingPointError, match=r"fp16: at step 34 gradients.*precision=bf16"):
        tiny.train(config, wrap=spoil)
    assert [r["grad_norm"] for r in tiny.metrics(tmp_path)] == [None] * 34  # each is in the log


def test_fp16_in_cached_pieces_has_the_steps_of_the_whole_batch(tiny_data, tmp_path, scaled):
    model, optim = {"text": {"dropout": 0.0}}, {"lr": 1e-5}
    for name, micro_batch in (("one", None), ("pieces", 5)):
        run = {"steps": 20, "micro_batch": micro_batch}
        config = tiny.tree(tiny_data, tmp_path / name, run=run, model=model, optim=optim)
        tiny.train(config)
    norms = []
    for left, right in zip(*(tiny.metrics(tmp_path / n) for n in ("one", "pieces")), strict=True):
        assert right["loss"] == pytest.approx(left["loss"], rel=0.002)
        norms.append((left["grad_norm"], right["grad_norm"]))
    assert norms[0] == (None, None)  # overflows at the first scale, as the scaler expects
    taken = [pair for pair in norms if None not in pair]
    assert len(taken) > 5
    assert all(right == pytest.approx(left, rel=0.01) for left, right in taken)


@pytest.mark.parametrize("micro_batch", [None, 5])
def test_fp16_on_a_tower_that_overflows_stops_at_once_with_the_way_out(
    tiny_data, tmp_path, scaled, micro_batch
):
    def hot(method):
        method.retriever.image_head.linear.weight.data.mul_(1e6)

    run = {"micro_batch": micro_batch}
    config = tiny.tree(tiny_data, tmp_path, run=run)
    with pytest.raises(FloatingPointError, match=r"fp16: image of the first.*precision=bf16"):
        tiny.train(config, wrap=hot)
