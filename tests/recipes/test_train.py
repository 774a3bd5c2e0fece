"""recipes/train.py: what a finished run leaves, and one process and two by the real command."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from xlcm import cli
from xlcm.config import merge
from xlcm.models.dual_encoder import DualEncoder
from xlcm.training import checkpoint


def full(data, output, **sections):
    """Return a config with pictures, validation and test."""
    splits = {"data": {name: tiny.held_out(data, name) for name in ("val", "test")}}
    run = {"run": {"steps": 6, "eval_every": 2}}
    tokenizer = {"name": "sentencepiece", "path": None, "vocab_size": 320, "max_tokens": 32}
    text = {"model": {"text": {"tokenizer": tokenizer}}}  # trained on the run's own captions
    everything: dict = {}
    for changes in (tiny.pictures(data), splits, run, text, sections):
        everything = merge(everything, changes)
    return tiny.tree(data, output, **everything)


def run(config, folder):
    """Run the recipe in this process; return its exit code."""
    tiny.forget_processes()
    return tiny.recipe("train.py").main(str(tiny.write_config(config, folder / "config.yaml")))


@pytest.fixture(scope="module")
def finished(tiny_data, tmp_path_factory):
    """The folder of a finished run on one process; what it said is in `said.txt` beside it."""
    folder = tmp_path_factory.mktemp("finished")
    with (folder / "said.txt").open("w") as said, contextlib.redirect_stdout(said):
        assert run(full(tiny_data, folder / "run"), folder) == 0
    return folder / "run"


def test_a_finished_run_leaves_all_that_the_design_names(finished):
    left = {p.relative_to(finished).as_posix() for p in finished.rglob("*") if p.is_file()}
    wanted = {
        "config.yaml", "metrics.jsonl", "report.json", "report.md", "plots/sheet.png",
        "checkpoints/step-00000006/model.safetensors",
        "checkpoints/step-00000006/optimizer.safetensors", "checkpoints/step-00000006/state.json",
        "model/config.json", "model/model.safetensors", "model/README.md",
    }  # fmt: skip
    assert wanted <= left
    assert [name for name in left if name.startswith("checkpoints/best-")]
    assert len([name for name in left if name.startswith("plots/")]) >= 3
    assert not [name for name in left if name.endswith((".pt", ".bin", ".pkl", ".tmp", ".part"))]
    report = json.loads((finished / "report.json").read_text())
    assert (report["dataset"], report["split"]) == ("tiny", "test")
    assert {(row["lang"], row["direction"]) for row in report["results"]} == {
        (lang, direction)
        for lang in ("en", "de")
        for direction in ("text_to_image", "image_to_text")
    }
    assert all(row["ci95"] for row in report["results"])


def test_the_saved_model_is_the_best_one_and_gives_the_reported_figures(finished, tiny_data):
    from xlcm.data.dataset import ManifestDataset
    from xlcm.evaluation.evaluate import EvaluationConfig, evaluate

    model = DualEncoder.from_pretrained(finished / "model")
    best = load_file(max((finished / "checkpoints").glob("best-*.safetensors")))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, best[name]), name
    evaluations = tiny.metrics(finished, "eval")
    assert [record["step"] for record in evaluations] == [2, 4, 6]
    test = ManifestDataset(path=str(tiny_data / "tiny.jsonl"), split="test")
    report = evaluate(model, test, EvaluationConfig(bootstrap=10)).report.to_dict()
    stored = json.loads((finished / "report.json").read_text())
    assert report["results"] == stored["results"]
    assert sorted(model.languages) == ["de", "en"]


def test_a_later_worse_evaluation_does_not_reach_the_model(tiny_data, tmp_path, monkeypatch):
    recipe = tiny.recipe("train.py")
    real, scores = recipe.validate, [1.0, 3.0, 2.0]

    def scored(config, data, retriever):
        report = real(config, data, retriever)
        report.sum_r = dict.fromkeys(report.sum_r, scores.pop(0))
        return report

    monkeypatch.setattr(recipe, "validate", scored)
    tiny.blank_plots(monkeypatch)
    changes = {"run": {"save_every": 1, "keep_checkpoints": 9}}
    config = full(tiny_data, tmp_path / "run", **changes)
    tiny.forget_processes()
    assert recipe.main(str(tiny.write_config(config, tmp_path / "config.yaml"))) == 0
    kept = load_file(tmp_path / "run" / "model" / "model.safetensors")
    second, last = tiny.weights(tmp_path / "run", 4), tiny.weights(tmp_path / "run", 6)
    assert torch.equal(kept["log_scale"], second["retriever.log_scale"])
    assert not torch.equal(kept["log_scale"], last["retriever.log_scale"])


def test_the_first_line_says_what_each_row_sees(finished):
    first = (finished.parent / "said.txt").read_text().splitlines()[0]
    assert first.startswith("global batch 16 = 1 x 16 rows; each image sees 16 captions a view:")
    assert "1.00 right on average, 15.00 negatives; 4 batches an epoch" in first


def test_a_run_stopped_by_a_signal_returns_143_and_has_no_report(
    tiny_data, tmp_path, monkeypatch, capsys
):
    recipe = tiny.recipe("train.py")
    real = recipe.validate

    def interrupted(config, data, retriever):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(config, data, retriever)

    tiny.blank_plots(monkeypatch)
    config = full(tiny_data, tmp_path / "run")
    path = str(tiny.write_config(config, tmp_path / "config.yaml"))
    with monkeypatch.context() as patch:
        patch.setattr(recipe, "validate", interrupted)
        tiny.forget_processes()
        assert recipe.main(path) == 143
    assert "the same command goes on" in capsys.readouterr().out
    assert not (tmp_path / "run" / "report.json").exists()
    assert len(tiny.metrics(tmp_path / "run")) == 3  # the signal came in the evaluation after 2
    assert run(config, tmp_path) == 0
    assert len(tiny.metrics(tmp_path / "run")) == 6
    assert (tmp_path / "run" / "report.json").is_file()


def test_faults_of_the_config_end_with_code_2_and_no_traceback(
    tiny_data, tmp_path, monkeypatch, capsys
):
    config = tiny.write_config(full(tiny_data, tmp_path / "run"), tmp_path / "config.yaml")
    monkeypatch.setattr(sys, "argv", ["recipes/train.py", str(config), "optim.lrr=1"])
    recipe = tiny.recipe("train.py")
    assert cli.recipe(recipe.main, "xlcm.training.settings:TrainConfig", recipe.__doc__) == 2
    said = capsys.readouterr().err
    assert said.startswith("train.py: ")
    assert "unknown key 'optim.lrr'; did you mean 'lr'" in said
    assert not (tmp_path / "run").exists()


UNUSABLE = {
    "a prefix that no parameter has": (
        ["optim.lr_scale.foo=2"],
        "optim.lr_scale: foo fits no trained parameter; prefixes are ",
    ),
    "a batch larger than the data": (
        ["run.global_batch=1000"],
        "64 training rows of 64 items do not fill one global batch of 1000: lower run.global_batch",
    ),
    "options that contradict": (
        ["data.same_image=separate", "data.length_buckets=2"],
        "data.length_buckets=2 reorders rows, so it can't keep data.same_image=separate",
    ),
    "a view made of none": (
        ["data.views.target.of=sorce"],
        "data.views.target.of: no view is called 'sorce'; did you mean 'source'?",
    ),
    "a language that is none": (
        ["data.views.target.langs=[de, xx-yy-zzzz]"],
        "'data.views.target.langs': 'xx-yy-zzzz' is no BCP 47 language code",
    ),
    "a language that no caption is in": (
        ["data.views.target.langs=[de, zh]"],
        "tiny, split 'train': data.views.target.langs: no caption in 'zh'",
    ),
    "too few word pieces": (
        ["model.text.tokenizer.vocab_size=60"],
        "vocab_size=60 is too small for this text",
    ),
    "a folder inside a file": (
        ["run.output={output}/config.yaml/run"],
        "config.yaml/run",
    ),
}
BEFORE_DATA = ("options that contradict", "a view made of none", "a language that is none")


def refuse(recipe, monkeypatch, capsys, *arguments):
    """Return what the recipe says where it ends with code 2."""
    monkeypatch.setattr(sys, "argv", ["recipes/train.py", *map(str, arguments)])
    tiny.forget_processes()
    assert cli.recipe(recipe.main, "xlcm.training.settings:TrainConfig", recipe.__doc__) == 2
    said = capsys.readouterr().err
    assert said.startswith("train.py: ")
    return said


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_a_run_cannot_use_ends_with_code_2_and_a_sentence(
    tiny_data, tmp_path, monkeypatch, capsys, name
):
    config = tiny.write_config(full(tiny_data, tmp_path / "run"), tmp_path / "config.yaml")
    recipe = tiny.recipe("train.py")
    if name in BEFORE_DATA:
        monkeypatch.setattr(recipe, "open_data", lambda *_: pytest.fail("opened the data"))
    overrides, expected = UNUSABLE[name]
    overrides = [override.format(output=tmp_path) for override in overrides]
    assert expected in refuse(recipe, monkeypatch, capsys, config, *overrides)


def test_a_checkpoint_of_another_model_ends_with_code_2(tiny_data, tmp_path, monkeypatch, capsys):
    tiny.blank_plots(monkeypatch)
    changes = {"run": {"steps": 2}}
    config = full(tiny_data, tmp_path / "run", **changes)
    path = tiny.write_config(config, tmp_path / "config.yaml")
    assert run(config, tmp_path) == 0
    state = tmp_path / "run" / "checkpoints" / "step-00000002" / "state.json"
    content = json.loads(state.read_text())
    weights = state.parent / "model.safetensors"
    tensors = load_file(weights)
    tensors["retriever.log_scale"] = tensors["retriever.log_scale"].repeat(2)
    save_file(tensors, weights)
    content["files"][weights.name] = weights.stat().st_size
    state.write_text(json.dumps(content))
    said = refuse(tiny.recipe("train.py"), monkeypatch, capsys, path, "run.steps=3")
    assert "step-00000002 does not fit this model" in said
    assert "give another run.output" in said


def test_a_full_disk_ends_with_code_2(tiny_data, tmp_path, monkeypatch, capsys):
    def full_disk(tensors, path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    config = tiny.write_config(full(tiny_data, tmp_path / "run"), tmp_path / "config.yaml")
    monkeypatch.setattr(checkpoint, "write_tensors", full_disk)
    said = refuse(tiny.recipe("train.py"), monkeypatch, capsys, config)
    assert "No space left on device" in said
    assert str(tmp_path / "run" / "checkpoints") in said


def test_two_launched_processes_train_evaluate_and_report_like_one(tiny_data, tmp_path, finished):
    config = tiny.write_config(full(tiny_data, tmp_path / "run"), tmp_path / "config.yaml")
    arguments, environment = tiny.command("train.py", str(config), processes=2)
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "global batch 16 = 2 x 8 rows" in done.stdout
    one, two = tiny.metrics(finished), tiny.metrics(tmp_path / "run")
    assert len(one) == len(two) == 6
    for left, right in zip(one, two):
        assert right["loss"] == pytest.approx(left["loss"], rel=1e-5)
    assert two[0]["loss"] == pytest.approx(one[0]["loss"], rel=1e-6)  # then rounding adds up
    left, right = tiny.weights(finished, 6), tiny.weights(tmp_path / "run", 6)
    for name in left:
        torch.testing.assert_close(right[name], left[name], rtol=1e-5, atol=1e-5)
    reports = [json.loads((f / "report.json").read_text()) for f in (finished, tmp_path / "run")]
    assert reports[0]["results"] == reports[1]["results"]
