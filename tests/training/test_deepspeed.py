"""DeepSpeed's ZeRO 1 and 2 on two processes: the run of one, which stops, resumes and moves."""

import json
import os
import subprocess
import sys

import pytest
import tiny
import torch
from launched_zero import clamp, spoil

from xlcm.config import ConfigError, merge
from xlcm.methods.base import Method
from xlcm.models.dual_encoder import DualEncoder
from xlcm.training import zero
from xlcm.training.optim import rest

LAUNCHED = tiny.REPOSITORY / "tests" / "launched_zero.py"
LAUNCHER = tiny.REPOSITORY / "configs" / "accelerate" / "deepspeed.yaml"
STEPS = 8


def config_of(data, output, **run):
    """A run with a group of parameters that has a single number, which one process holds."""
    return tiny.tree(
        data, output, model={"text": {"dropout": 0.0}},
        run={"steps": STEPS, "save_every": 2, "keep_checkpoints": 9, **run},
        optim={"lr_scale": {"log_scale": 0.5}},
    )  # fmt: skip


@pytest.fixture(scope="module", params=[1, 2], ids=["zero1", "zero2"])
def runs(request, tiny_data, tmp_path_factory):
    """The folder with the runs of two processes under the shipped file; and of one, in one/."""
    reason = "DeepSpeed is not installed (pip install 'xlcm[deepspeed]'): nothing trains under it"
    pytest.importorskip("deepspeed", reason=reason)
    folder = tmp_path_factory.mktemp("zero")
    accumulated = {"micro_batch": 3, "accumulate": 2}
    begun = config_of(tiny_data, folder / "begun_without")
    with pytest.raises(tiny.Crash):
        tiny.train(begun, crash_before=5)
    tiny.train(config_of(tiny_data, folder / "one"))
    tiny.train(config_of(tiny_data, folder / "one_clamped"), wrap=clamp)
    tiny.train(config_of(tiny_data, folder / "one_spoilt"), wrap=spoil)
    tiny.train(config_of(tiny_data, folder / "one_accumulated", **accumulated))
    tasks = [
        {"config": config_of(tiny_data, folder / "whole")},
        {"config": config_of(tiny_data, folder / "cut"), "crash_before": 5},
        {"config": config_of(tiny_data, folder / "cut")},
        {"config": config_of(tiny_data, folder / "begun_with"), "crash_before": 5},
        {"config": begun},
        {"config": config_of(tiny_data, folder / "accumulated", **accumulated)},
        {"config": config_of(tiny_data, folder / "bf16", precision="bf16")},
        {"config": config_of(tiny_data, folder / "spoilt"), "wrap": "spoil"},
        {"config": config_of(tiny_data, folder / "clamped"), "wrap": "clamp"},
    ]
    listed = folder / "tasks.json"
    listed.write_text(json.dumps(tasks))
    started = subprocess.run(
        [
            sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(LAUNCHER),
            "--zero_stage", str(request.param), "--num_processes", "2",
            "--main_process_port", tiny.free_port(), str(LAUNCHED), str(listed), "2",
        ],
        env={
            **tiny.command("train.py")[1],
            "PYTHONPATH": os.pathsep.join([str(tiny.REPOSITORY), *sys.path]),
            "DS_ACCELERATOR": "cpu",
        },
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert started.returncode == 0, started.stderr[-3000:]
    tiny.train(config_of(tiny_data, folder / "begun_with"))
    return folder


def curves_equal(one, other, steps=STEPS, rel=1e-5):
    left, right = tiny.metrics(one), tiny.metrics(other)
    assert len(left) == len(right) == steps
    for mine, theirs in zip(left, right):
        for key in ("loss", "grad_norm", "scale", "lr"):
            assert theirs[key] == pytest.approx(mine[key], rel=rel), (mine["step"], key)


@pytest.mark.parametrize(
    ("one", "other"),
    [("one", "whole"), ("one_accumulated", "accumulated"), ("one_clamped", "clamped")],
    ids=["whole batches", "accumulated and cached in pieces", "scale clamped"],
)
def test_a_run_under_deepspeed_is_that_of_one_process(runs, one, other):
    curves_equal(runs / one, runs / other)
    left, right = tiny.weights(runs / one, STEPS), tiny.weights(runs / other, STEPS)
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(right[name], left[name], rtol=1e-4, atol=1e-5)


def test_the_model_that_is_left_is_an_ordinary_one(runs):
    model = DualEncoder.from_pretrained(runs / "whole" / "model")
    for name, weight in tiny.weights(runs / "whole", STEPS).items():
        torch.testing.assert_close(
            model.state_dict()[name.removeprefix("retriever.")], weight, rtol=0, atol=0
        )


def test_half_precision_is_close_and_keeps_weights_in_float32(runs):
    curves_equal(runs / "one", runs / "bf16", rel=0.02)
    assert tiny.metrics(runs / "one") != tiny.metrics(runs / "bf16")
    assert {w.dtype for w in tiny.weights(runs / "bf16", STEPS).values()} == {torch.float32}


def test_a_crashed_run_resumes_bit_for_bit(runs):
    assert tiny.metrics(runs / "cut") == tiny.metrics(runs / "whole")
    assert tiny.checkpoint(runs / "cut", STEPS) == tiny.checkpoint(runs / "whole", STEPS)


@pytest.mark.parametrize("moved", ["begun_with", "begun_without"])
def test_a_checkpoint_goes_on_with_and_without_deepspeed(runs, moved):
    curves_equal(runs / "one", runs / moved)


def test_moments_are_spread_and_gradients_are_reduced_once_a_step(runs):
    whole, pieces = (
        json.loads((runs / name / "found.json").read_text()) for name in ("whole", "accumulated")
    )
    assert whole["moments"] == pytest.approx(whole["weights"] / 2, rel=0.1)
    assert whole["reduced"] >= STEPS * whole["weights"]
    assert pieces["reduced"] == whole["reduced"]


def test_a_loss_that_is_infinite_on_one_process_stops_both_before_the_step(runs):
    (record,) = tiny.metrics(runs / "spoilt", "nonfinite")
    assert (record["step"], record["loss"]) == (3, "inf")
    curves_equal(runs / "one_spoilt", runs / "spoilt", STEPS - 1)


# -- what is refused, with or without DeepSpeed ---------------------------------------------------


def test_without_deepspeed_a_run_under_it_stops_before_anything_is_written(
    tiny_data, tmp_path, monkeypatch
):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr(zero, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'xlcm\[deepspeed\]'"):
        tiny.train(tiny.tree(tiny_data, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "precision", "said"),
    [
        ({"zero_optimization": {"stage": 3}}, "fp32", r"zero_stage: 3.*1 and 2.*fsdp\.yaml"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}, "fp32",
         r"offload_optimizer_device: cpu: only none"),
        ({"bf16": {"enabled": True}}, "bf16", "neither fp16 nor bf16"),
        ({}, "fp16", r"run\.precision is fp32 or bf16"),
    ],
)  # fmt: skip
def test_settings_that_were_not_tried_are_refused(changed, precision, said):
    good = {"zero_optimization": {"stage": 2, "offload_param": {"device": "none"}}}
    zero._refuse(good, "bf16")
    with pytest.raises(ConfigError, match=said):
        zero._refuse(merge(good, changed), precision)


def test_a_method_that_lets_parts_rest_is_refused():
    class Resting(Method):
        def resting(self):
            return ("retriever",)

    method = Resting(torch.nn.Linear(2, 2))
    rest(method, method.resting())
    for parameter in method.parameters():
        parameter._hp_mapping = None  # as ZeRO marks what it has put into one piece
    with pytest.raises(ConfigError, match=r"Resting lets retriever rest.*FSDP"):
        rest(method, method.resting())
