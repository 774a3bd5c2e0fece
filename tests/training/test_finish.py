"""What was trained is not lost to what comes after it."""

import json
import logging

import pytest
import tiny

from xlcm.config import merge
from xlcm.data.manifest import DataError
from xlcm.models.dual_encoder import DualEncoder


def run(config, folder):
    """Run the recipe in this process; return its exit code."""
    tiny.forget_processes()
    return tiny.recipe("train.py").main(str(tiny.write_config(config, folder / "config.yaml")))


@pytest.fixture
def own(tmp_path):
    """Data of one's own to spoil, and a config that tests on them."""
    data = tiny.write_data(tmp_path / "data")
    config = tiny.tree(
        data, tmp_path / "run", run={"steps": 2}, data={"test": tiny.held_out(data, "test")}
    )
    return data, config


def test_pictures_that_only_the_sheet_wants_are_grey_tiles(own, tmp_path, caplog):
    data, config = own
    for number in range(1, 16):  # the first one is good
        (data / f"test{number}.png").write_bytes(b"<html>not found</html>")
    assert run(config, tmp_path) == 0
    output = tmp_path / "run"
    assert DualEncoder.from_pretrained(output / "model").languages
    assert (output / "model" / "report.json").is_file()
    (told,) = [r.getMessage() for r in caplog.records if "sheet of found" in r.getMessage()]
    assert (output / "plots" / "sheet.png").is_file() == ("grey tiles" in told)
    assert ".png" in told


def test_a_model_that_can_not_be_judged_is_there_all_the_same(own, tmp_path):
    data, config = own
    config = merge(config, tiny.pictures(data))
    good = (data / "test4.png").read_bytes()
    (data / "test4.png").write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match=r"test4\.png"):
        run(config, tmp_path)
    model = tmp_path / "run" / "model"
    assert DualEncoder.from_pretrained(model).languages
    assert not (model / "report.json").exists()
    (data / "test4.png").write_bytes(good)
    assert run(config, tmp_path) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert json.loads((model / "report.json").read_text()) == report
    assert len(tiny.metrics(tmp_path / "run")) == 2  # trained once


def test_a_sheet_that_fails_takes_neither_model_nor_report(own, tmp_path, monkeypatch):
    from xlcm.evaluation import evaluate

    def fails(*arguments, **options):
        raise RuntimeError("no font at all")

    monkeypatch.setattr(evaluate, "retrieval_sheet", fails)
    with pytest.raises(RuntimeError, match="no font"):
        run(own[1], tmp_path)
    assert (tmp_path / "run" / "model" / "report.json").is_file()
    assert (tmp_path / "run" / "report.md").is_file()


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"langs": ["en", "fr"]}, "origin human in fr; set evaluation.langs"),
        ({"origins": ["mt"]}, "origin mt at all; .*evaluation.origins"),
    ],
)
def test_queries_that_a_split_lacks_are_met_before_the_first_step(
    tiny_data, tmp_path, split, changed, said
):
    data = {split: tiny.held_out(tiny_data, split)}
    config = tiny.tree(tiny_data, tmp_path / "run", data=data, evaluation=changed)
    with pytest.raises(DataError, match=f"tiny, split '{split}': no captions of {said}"):
        run(config, tmp_path)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_sheet_languages_that_are_not_there_are_told(own, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    config = merge(own[1], {"evaluation": {"sheet_langs": ["fr", "de"]}})
    assert run(config, tmp_path) == 0
    said = "evaluation.sheet_langs: no queries in fr, so the sheet goes without; there are en, de"
    assert said in caplog.text
    sheet = tmp_path / "run" / "plots" / "sheet.png"
    assert sheet.is_file()
    sheet.unlink()
    caplog.clear()
    assert run(merge(config, {"evaluation": {"sheet_langs": ["fr"]}}), tmp_path) == 0
    assert "no queries in fr, so there is no sheet of found pictures" in caplog.text
    assert not sheet.exists()
