"""The loop: what it guards, logs, evaluates, keeps and stops at."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file

from xlcm.training.loop import announce
from xlcm.training.settings import RunConfig

ALL = {"save_every": 1, "keep_checkpoints": 50}


def poison(at):
    """Return a wrapper that spoils the first row of some forward passes, counted from 1."""

    def wrap(method):
        forward, count = method.forward, [0]

        def poisoned(batch):
            count[0] += 1
            if count[0] in at:
                batch.visual.features[0, 0] = math.nan
            return forward(batch)

        method.forward = poisoned

    return wrap


def scores(*values):
    """Return an `evaluate` that gives one score after the other, as SumR of one language."""
    left = list(values)

    def evaluate(retriever):
        retriever.eval()  # a careless one: training must go on in training mode
        return tiny.report(left.pop(0))

    return evaluate


# -- guard ---------------------------------------------------------------------------------------


def test_a_non_finite_step_is_skipped_named_and_leaves_no_trace(tiny_data, tmp_path):
    model = {"image_head": {"name": "batch_norm"}}  # whose averages a NaN would spoil for ever
    config = tiny.tree(tiny_data, tmp_path, run={**ALL, "steps": 5}, model=model)
    run = tiny.train(config, wrap=poison({3}))
    before, skipped = tiny.checkpoint(tmp_path, 2), tiny.checkpoint(tmp_path, 3)
    assert before["model.safetensors"] == skipped["model.safetensors"]
    assert before["optimizer.safetensors"] == skipped["optimizer.safetensors"]
    assert any("running_mean" in name for name in tiny.weights(tmp_path, 3))
    assert tiny.checkpoint(tmp_path, 4)["model.safetensors"] != skipped["model.safetensors"]
    assert [r["step"] for r in tiny.metrics(tmp_path)] == [1, 2, 4, 5]
    (record,) = tiny.metrics(tmp_path, "nonfinite")
    assert record["step"] == 3
    assert record["rows"] == list(run.names[2])
    assert all(math.isfinite(r["loss"]) for r in tiny.metrics(tmp_path))
    assert all(t.isfinite().all() for t in tiny.weights(tmp_path, 5).values())


def test_too_many_non_finite_steps_in_a_row_stop_the_run_and_name_the_rows(tiny_data, tmp_path):
    config = tiny.tree(tiny_data, tmp_path, run={"max_nonfinite": 3})
    with pytest.raises(FloatingPointError, match=r"3 steps in a row.*step 7 with rows train"):
        tiny.train(config, wrap=poison({2, 5, 6, 7}))
    assert [r["step"] for r in tiny.metrics(tmp_path, "nonfinite")] == [2, 5, 6, 7]


def test_parameters_without_a_gradient_are_named(tiny_data, tmp_path):
    def add(method):
        method.forgotten = torch.nn.Linear(2, 2)

    with pytest.raises(ValueError, match=r"no gradient.*forgotten\.weight, forgotten\.bias"):
        tiny.train(tiny.tree(tiny_data, tmp_path), wrap=add)


def test_the_temperature_stays_below_its_bound(tiny_data, tmp_path):
    optim = {"lr_scale": {"log_scale": 1000.0}}
    model = {"max_scale": 15.0}
    run = tiny.train(tiny.tree(tiny_data, tmp_path, optim=optim, model=model))
    assert run.trained.retriever.scale.item() <= 15.0 * (1 + 1e-6)
    assert all(r["scale"] <= 15.0 * (1 + 1e-6) for r in tiny.metrics(tmp_path))


# -- log -----------------------------------------------------------------------------------------


def test_every_step_is_logged_once_with_terms_rate_and_speed(tiny_data, tmp_path, capsys):
    tiny.train(tiny.tree(tiny_data, tmp_path, run={"log_every": 5}))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 13))
    for record in map(json.loads, lines):
        assert record["loss"] == pytest.approx(record["image_source"] + record["image_target"])
        assert record["items_per_s"] > 0
        assert 0 <= record["data_share"] <= 1
        assert {"lr", "grad_norm", "scale"} <= set(record)
    said = capsys.readouterr().out
    assert [said.count(f"step {step}/12 ") for step in (4, 5, 10, 12)] == [0, 1, 1, 1]
    assert "items/s" in said
    assert "left 0:0" in said


def test_the_announcement_counts_right_answers_and_negatives():
    batches = np.zeros((2, 8, 2), dtype=np.int32)
    batches[0, :, 0] = range(8)  # every row is alone: 1 right answer each
    batches[1, :, 0] = [0, 0, 0, 0, 1, 1, 2, 3]  # 4 x 4, 2 x 2, 2 x 1: mean (16 + 4 + 2) / 8
    batching = SimpleNamespace(batches=lambda epoch: batches)
    loader = SimpleNamespace(stream=SimpleNamespace(batching=batching), batches_per_epoch=2)
    method = torch.nn.Linear(1000, 1000, bias=False)
    line = announce(loader, RunConfig(global_batch=8, steps=1), method)
    assert "global batch 8 = 1 x 8 rows" in line
    assert "1.88 right on average, 6.12 negatives" in line  # (1 + 2.75) / 2
    assert "2 batches an epoch; 1.00 of 1.00 M parameters" in line


def test_epochs_and_accumulation_give_the_number_of_steps(tiny_data, tmp_path):
    run = {"steps": None, "epochs": 1.5, "accumulate": 2}  # 4 batches an epoch
    trained = tiny.train(tiny.tree(tiny_data, tmp_path, run=run))
    assert trained.trained.progress.step == 3
    assert len(trained.names) == 6


# -- evaluate and stop ---------------------------------------------------------------------------


def test_the_best_weights_are_kept_not_the_last(tiny_data, tmp_path):
    run = {**ALL, "steps": 12, "eval_every": 4}
    found = tiny.train(
        tiny.tree(tiny_data, tmp_path, run=run), evaluate=scores(100.0, 300.0, 200.0)
    )
    assert found.trained.progress.best_step == 8
    best, last = tiny.weights(tmp_path, 8), tiny.weights(tmp_path, 12)
    for name, tensor in found.trained.retriever.state_dict().items():
        assert torch.equal(tensor, best[f"retriever.{name}"])
    name = "retriever.text.embedding.weight"
    assert not torch.equal(best[name], last[name])
    evaluations = tiny.metrics(tmp_path, "eval")
    assert [(r["step"], r["sum_r_mean"]) for r in evaluations] == [(4, 100), (8, 300), (12, 200)]


def best_files(output):
    """Return the steps whose weights are kept as best."""
    return [int(f.stem[5:]) for f in sorted((output / "checkpoints").glob("best-*.safetensors"))]


def test_a_run_whose_best_weights_are_gone_is_not_continued_with_the_last(tiny_data, tmp_path):
    config = tiny.tree(tiny_data, tmp_path, run={**ALL, "steps": 6, "eval_every": 2})
    tiny.train(config, evaluate=scores(1.0, 3.0, 2.0))
    assert best_files(tmp_path) == [2, 4]  # checkpoints 2 and 3 name the former
    (tmp_path / "checkpoints" / "best-00000004.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"best-00000004\S* is missing.*run\.output"):
        tiny.train(config, evaluate=scores())


def test_best_weights_of_an_abandoned_trajectory_are_not_taken(tiny_data, tmp_path):
    run = {"steps": 8, "eval_every": 2, "save_every": 4, "keep_checkpoints": 9}
    config = tiny.tree(tiny_data, tmp_path, run=run)
    with pytest.raises(tiny.Crash):  # after an evaluation that no checkpoint knows of
        tiny.train(config, evaluate=scores(5.0, 4.0, 9.0), crash_before=6)
    assert best_files(tmp_path) == [2, 6]
    second = (tmp_path / "checkpoints" / "best-00000002.safetensors").read_bytes()
    again = tiny.train(config, evaluate=scores(3.0, 2.0))
    assert again.trained.progress.best_step == 2
    assert best_files(tmp_path) == [2]
    assert (tmp_path / "checkpoints" / "best-00000002.safetensors").read_bytes() == second
    kept = load_file(tmp_path / "checkpoints" / "best-00000002.safetensors")
    for name, tensor in again.trained.retriever.state_dict().items():
        assert torch.equal(tensor, kept[name]), name


def test_an_older_checkpoint_still_has_its_best_weights(tiny_data, tmp_path):
    run = {"steps": 4, "eval_every": 2, "save_every": 2, "keep_checkpoints": 2}
    config = tiny.tree(tiny_data, tmp_path, run=run)
    tiny.train(config, evaluate=scores(1.0, 2.0))
    (tmp_path / "checkpoints" / "step-00000004" / "model.safetensors").write_bytes(b"")
    again = tiny.train(config, evaluate=scores(0.5))  # goes on from step 2
    assert again.trained.progress.best_step == 2
    assert best_files(tmp_path) == [2]


def test_an_evaluation_does_not_change_the_training(tiny_data, tmp_path):
    tiny.train(tiny.tree(tiny_data, tmp_path / "a"))
    run = {"eval_every": 5}
    tiny.train(tiny.tree(tiny_data, tmp_path / "b", run=run), evaluate=scores(1.0, 2.0, 3.0))
    assert tiny.metrics(tmp_path / "a") == tiny.metrics(tmp_path / "b")


def test_patience_ends_the_run_and_a_second_start_trains_no_further(tiny_data, tmp_path, capsys):
    config = tiny.tree(tiny_data, tmp_path, run={"steps": 40, "eval_every": 2, "patience": 3})
    run = tiny.train(config, evaluate=scores(1.0, 5.0, 4.0, 5.0, 3.0))
    assert run.trained.progress.step == 10
    assert not run.trained.interrupted
    assert "stopped at step 10 after 3 evaluations without a gain" in capsys.readouterr().out
    again = tiny.train(config, evaluate=scores())
    assert again.names == []
    assert again.trained.progress.best_step == 4
    one, other = run.trained.retriever.state_dict(), again.trained.retriever.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_plateau_lowers_the_rate_after_its_patience(tiny_data, tmp_path):
    optim = {"schedule": "plateau", "warmup": 0, "plateau_patience": 2, "plateau_factor": 0.5}
    config = tiny.tree(tiny_data, tmp_path, run={"steps": 10, "eval_every": 2}, optim=optim)
    tiny.train(config, evaluate=scores(9.0, 8.0, 7.0, 6.0, 5.0))  # drops after steps 6 and 10
    rates = [r["lr"] for r in tiny.metrics(tmp_path)]
    assert rates == pytest.approx([0.01] * 6 + [0.005] * 4)


# -- learning ------------------------------------------------------------------------------------


def test_sixty_four_rows_are_learnt_by_heart_within_200_steps(tiny_data, tmp_path):
    from xlcm.data.dataset import ManifestDataset
    from xlcm.evaluation.evaluate import EvaluationConfig, evaluate

    config = tiny.tree(
        tiny_data,
        tmp_path,
        model={"width": 32, "text": {"width": 32, "dropout": 0.0}, "image_head": "mlp"},
        run={"steps": 160, "global_batch": 64, "log_every": 160, "save_every": 160},
    )
    trained = tiny.train(config).trained
    rows = {k: v for k, v in config["data"]["train"].items() if k != "name"}
    report = evaluate(
        trained.retriever, ManifestDataset(**rows), EvaluationConfig(bootstrap=0)
    ).report
    assert {lang: report.result(lang).r1 for lang in report.langs} == {"en": 100.0, "de": 100.0}
