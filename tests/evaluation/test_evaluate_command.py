"""`xlcm evaluate` and recipes/evaluate.py: a saved model on a split, by one process or two."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import tiny
import torch
import yaml

from xlcm import cli, hub
from xlcm.config import merge
from xlcm.data.features import FeatureWriter
from xlcm.evaluation.evaluate import EvaluationConfig, evaluate
from xlcm.evaluation.report import RetrievalReport
from xlcm.models.dual_encoder import DualEncoder

SCENES = ["scenes", "--size", "24", "--langs", "en", "zh", "--workers", "0", "--set",
          "data.cache=null", "evaluation.bootstrap=20"]  # fmt: skip
LEFT = {"report.json", "report.md", "plots/languages.png"}


@pytest.fixture(scope="module")
def models(tiny_data, tmp_path_factory) -> dict[str, str]:
    """Two saved models with random weights: one reads features, one pictures."""
    folder = tmp_path_factory.mktemp("models")
    plain = tiny.tree(tiny_data, folder)
    specs = {"features": plain, "pictures": merge(plain, tiny.pictures(tiny_data))}
    for name, spec in specs.items():
        torch.manual_seed(3)
        DualEncoder.from_config(spec["model"]).save_pretrained(folder / name)
    return {name: str(folder / name) for name in specs}


@pytest.fixture
def manifest(tiny_data) -> str:
    return str(tiny_data / "tiny.jsonl")


@pytest.fixture
def store(tiny_data) -> list[str]:
    return ["--features", str(tiny_data / "store"), "--workers", "0"]


def files(folder: Path) -> set[str]:
    found = {path for path in folder.rglob("*") if path.is_file()}
    return {path.relative_to(folder).as_posix() for path in found}


def refused(capsys, *arguments: str) -> str:
    assert cli.main(["evaluate", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("xlcm evaluate: ")
    return captured.err


# -- what it does -------------------------------------------------------------------------------


def test_scenes_are_evaluated_without_a_config(models, tmp_path, capsys):
    assert cli.main(["evaluate", models["pictures"], *SCENES, "--out", str(tmp_path / "out")]) == 0
    report = RetrievalReport.load(tmp_path / "out")
    assert (report.dataset, report.split) == ("scenes", "test")
    assert report.langs == ["en", "zh"]
    assert report.directions == ["text_to_image", "image_to_text"]
    assert {row.gallery for row in report.results if row.direction == "text_to_image"} == {24}
    assert {row.queries for row in report.results if row.direction == "text_to_image"} == {48}
    assert report.gap_to["lang"] == "en"
    assert report.protocol["model"] == models["pictures"]
    assert files(tmp_path / "out") == LEFT | {"plots/sheet.png"}
    said = capsys.readouterr().out
    assert "zh" in said
    assert str(tmp_path / "out") in said


def test_a_manifest_is_evaluated_as_the_library_does(models, manifest, store, tiny_data, capsys):
    asked = ["evaluate", models["features"], manifest, *store, "--json"]
    assert cli.main([*asked, "--set", "evaluation.bootstrap=0"]) == 0
    printed = json.loads(capsys.readouterr().out)
    from xlcm.data.dataset import ManifestDataset

    split = ManifestDataset(path=manifest, split="test", features=str(tiny_data / "store"))
    model = DualEncoder.from_pretrained(models["features"])
    expected = evaluate(model, split, EvaluationConfig(bootstrap=0)).report.to_dict()
    assert printed["results"] == expected["results"]
    assert printed["sum_r"] == expected["sum_r"]


def test_options_choose_split_languages_and_gallery(models, manifest, store, capsys):
    asked = ["evaluate", models["features"], manifest, *store, "--json", "--split", "val"]
    assert cli.main([*asked, "--langs", "de", "--gallery", "captioned"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["split"] == "val"
    assert list(printed["sum_r"]) == ["de"]
    assert "captioned" in json.dumps(printed["protocol"])


def test_a_pipe_gets_every_figure_however_narrow_the_terminal(
    models, manifest, store, tmp_path, capsys, monkeypatch
):
    asked = ["evaluate", models["features"], manifest, *store, "--set", "evaluation.bootstrap=0"]
    monkeypatch.setenv("COLUMNS", "40")
    assert cli.main([*asked, "--out", str(tmp_path)]) == 0
    said, report = capsys.readouterr().out, RetrievalReport.load(tmp_path)
    assert said.startswith(f"{report}\n")
    assert "Mean rank variance (standard deviation) across 2 languages" in said
    monkeypatch.setenv("FORCE_COLOR", "1")  # which rich takes for a terminal
    assert cli.main(asked) == 0
    assert "┃" in capsys.readouterr().out


def test_without_a_folder_nothing_is_written(models, manifest, store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["evaluate", models["features"], manifest, *store]) == 0
    assert files(tmp_path) == set()


def test_a_model_of_features_leaves_a_sheet_of_the_pictures_there_are(
    models, manifest, store, tmp_path
):
    """The manifest names pictures too, so they can be shown."""
    out = ["--out", str(tmp_path / "out")]
    assert cli.main(["evaluate", models["features"], manifest, *store, *out]) == 0
    assert files(tmp_path / "out") == LEFT | {"plots/sheet.png"}


def test_the_recipe_gives_the_same_report_on_two_processes(
    models, manifest, store, tiny_data, tmp_path
):
    """15 items, so that the processes' shares differ."""
    lines = Path(manifest).read_text(encoding="utf-8").splitlines(keepends=True)
    last = max(i for i, line in enumerate(lines) if '"split": "test"' in line)
    odd = tmp_path / "odd.jsonl"
    odd.write_text("".join(lines[:last] + lines[last + 1 :]), encoding="utf-8")
    config = {
        "model": models["features"],
        "data": {"name": "manifest", "path": str(odd), "split": "test",
                 "features": str(tiny_data / "store"), "image_root": str(tiny_data)},
        "evaluation": {"bootstrap": 50},
        "workers": 0,
    }  # fmt: skip
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    out = tmp_path / "two"
    called, environment = tiny.command(
        "evaluate.py", str(tmp_path / "c.yaml"), f"output={out}", processes=2
    )
    run = subprocess.run(called, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert f"{models['features']} on 2 process(es)" in run.stdout
    assert run.stdout.count("report and plots are in") == 1
    assert files(out) == LEFT | {"plots/sheet.png"}
    alone = ["--image-root", str(tiny_data), "--set", "evaluation.bootstrap=50"]
    one = ["evaluate", models["features"], str(odd), *store, "--out", str(tmp_path / "one")]
    assert cli.main([*one, *alone]) == 0
    two, expected = RetrievalReport.load(out), RetrievalReport.load(tmp_path / "one")
    assert {row.gallery for row in two.results} == {15}
    assert two.results == expected.results
    assert two.sum_r_ci95 == expected.sum_r_ci95


# -- what it refuses ----------------------------------------------------------------------------


def test_a_model_that_is_not_there_is_told_with_the_files_expected(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "_download", lambda *_: pytest.fail("a path was taken for a hub id"))
    missing = tmp_path / "gone"
    said = refused(capsys, str(missing), "scenes")
    assert f"expected {missing}/config.json and {missing}/model.safetensors" in said
    said = refused(capsys, "./gone", "scenes")
    assert "expected gone/config.json and gone/model.safetensors" in said


def test_a_name_that_might_be_of_the_hub_is_told_with_both(capsys, tmp_path, monkeypatch):
    def offline(source, revision):
        raise FileNotFoundError(f"no model to be had from {source!r}")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "_download", offline)
    said = refused(capsys, "runs/gone", "scenes")
    assert "expected runs/gone/config.json and runs/gone/model.safetensors" in said
    assert "no model to be had from 'runs/gone'" in said


def test_a_folder_without_weights_is_told(models, tmp_path, capsys):
    broken = tmp_path / "model"
    broken.mkdir()
    (broken / "config.json").write_bytes((Path(models["features"]) / "config.json").read_bytes())
    assert f"expected the weights at {broken / 'model.safetensors'}" in refused(
        capsys, str(broken), "scenes"
    )


def test_the_folder_of_a_run_is_told_from_its_model(models, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(models["features"])
    said = refused(capsys, str(tmp_path / "run"), "scenes")
    assert f"give its model, {tmp_path / 'run' / 'model'}" in said


def test_files_that_do_not_fit_are_told_without_a_traceback(models, tmp_path, capsys):
    broken = tmp_path / "model"
    broken.mkdir()
    (broken / "config.json").write_text("{}", encoding="utf-8")
    said = refused(capsys, str(broken), "scenes")
    assert f"model {broken}: {broken / 'config.json'} is not the config of an xlcm model" in said


def test_features_that_are_missing_are_told_with_the_way_to_make_them(models, manifest, capsys):
    said = refused(capsys, models["features"], manifest)
    assert "reads features of width 8, and none were given for tiny, split 'test'" in said
    assert "recipes/encode.py" in said
    assert "--features" in said


def test_a_model_of_features_wants_those_of_scenes(models, tmp_path, capsys):
    said = refused(capsys, models["features"], "scenes")
    assert "reads features of width 8, and none were given for scenes, split 'test'" in said
    drawn = {"drawings": {"scenes": {"seed": 0, "image_size": 64}}}
    with FeatureWriter(tmp_path / "store", kind="pooled", dim=8, encoder=drawn) as writer:
        for index in range(24):
            writer.add(f"scenes-test-{index:06d}", torch.randn(8))
    asked = ["evaluate", models["features"], *SCENES[:-2], "evaluation.bootstrap=0"]
    assert cli.main([*asked, "--features", str(tmp_path / "store")]) == 0
    assert "text → image" in capsys.readouterr().out


def test_features_of_another_width_are_told_with_their_encoder(models, manifest, tmp_path, capsys):
    with FeatureWriter(
        tmp_path / "wide", kind="pooled", dim=9, encoder={"image": {"backbone": "resnet10t"}}
    ) as writer:
        writer.add("a", torch.zeros(9))
    said = refused(capsys, models["features"], manifest, "--features", str(tmp_path / "wide"))
    assert "reads features of width 8" in said
    assert "have width 9 and are by resnet10t" in said


def test_features_that_would_not_be_used_are_refused(models, manifest, store, capsys):
    said = refused(capsys, models["pictures"], manifest, *store)
    assert "reads pictures" in said
    assert "leave --features" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["scenes", "--langs", "en", "tlh"], "scenes have no grammar of 'tlh'"),
        (["scenes", "--split", "tset"], "'data.split': Input should be 'train', 'val' or 'test'"),
        (["scenes", "--size", "0"], "'data.size'"),
        (["scenes", "--image-root", "x"], "--image-root goes with a manifest"),
        (["scenes", "--features", "x"], "x is no feature store"),
        (["scenes", "--set", "evaluation.bootstap=0"], "did you mean 'bootstrap'?"),
        (["scenes", "--set", "size"], "not of the form section.key=value"),
        (["scenes", "--device", "abacus"], "--device abacus"),
        (["gone.jsonl"], "gone.jsonl"),
    ],
)
def test_arguments_that_can_not_be_used_are_told(models, capsys, arguments, said):
    assert said in refused(capsys, models["pictures"], *arguments)


def test_a_language_or_split_without_captions_is_told(models, manifest, store, capsys):
    said = refused(capsys, models["features"], manifest, *store, "--langs", "de", "fr")
    assert "tiny, split 'test': no captions of origin human in fr" in said
    assert "tset" in refused(capsys, models["features"], manifest, *store, "--split", "tset")
