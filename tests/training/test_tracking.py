"""What a run says on the screen and to trackers, and that nothing is dropped without a word."""

import json
import time

import pytest
import tiny
from accelerate import Accelerator

from xlcm.config import ConfigError
from xlcm.training import launch
from xlcm.training.tracking import Journal, clock


@pytest.fixture
def journal(tmp_path):
    """`journal(step)` opens the journal of a run of 10 steps that continues there."""
    tiny.forget_processes()
    accelerator = Accelerator(cpu=True)
    return lambda step, every=2: Journal(accelerator, tmp_path / "metrics.jsonl", step, 10, every)


def test_time_is_told_in_hours_only_if_there_are_any():
    assert [clock(s) for s in (0.4, 59.6, 61, 3600, 36_061)] == [
        "0:00", "1:00", "1:01", "1:00:00", "10:01:01",
    ]  # fmt: skip


def test_records_behind_the_step_of_a_resumed_run_are_dropped(journal, tmp_path):
    first = journal(0)
    for step in range(1, 6):
        first.step(step, {"loss": 1 / step}, items=4, seconds=0.5, waited=0.1)
    first.write({"step": 4, "kind": "eval", "sum_r": {"en": 1.0}})
    first.write({"step": 5, "kind": "eval", "sum_r": {"en": 2.0}})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss"')  # a killed process was here
    journal(4)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(r["step"], r.get("kind")) for r in records] == [
        (1, None), (2, None), (3, None), (4, None), (4, "eval"),
    ]  # fmt: skip
    assert records[0] == {"step": 1, "loss": 1.0, "items_per_s": 8.0, "data_share": 0.2}


def test_slow_loading_is_said_with_the_key_to_change(journal, capsys):
    fast, slow = journal(0), journal(0)
    time.sleep(0.02)
    fast.step(2, {"loss": 1.0}, items=4, seconds=0.02, waited=0.0)
    assert "loading is slow" not in capsys.readouterr().out
    slow.step(2, {"loss": 1.0}, items=4, seconds=0.02, waited=0.02)
    assert "loading is slow: raise data.workers" in capsys.readouterr().out


def test_an_evaluation_is_left_out_of_the_speed(journal, capsys):
    opened = journal(0)
    opened.step(1, {"loss": 1.0}, items=1000, seconds=0.01, waited=0.0)
    time.sleep(0.05)
    opened.pause()
    time.sleep(0.01)
    opened.step(2, {"loss": 1.0}, items=10, seconds=0.01, waited=0.0)
    said = capsys.readouterr().out.split(" items/s")[0].split()[-1]
    assert float(said.replace(",", "")) < 1001  # 10 items in at least 0.01 s


def test_a_tracker_that_is_not_installed_is_said_before_anything_starts(
    tiny_data, tmp_path, monkeypatch
):
    config = tiny.tree(tiny_data, tmp_path / "run", run={"trackers": ["wandb"]})
    monkeypatch.setattr(launch, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"run.trackers: wandb is not installed; pip install"):
        tiny.train(config)
    assert not (tmp_path / "run").exists()


def test_tensorboard_gets_the_figures(tiny_data, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tiny.train(tiny.tree(tiny_data, tmp_path, run={"steps": 3, "trackers": ["tensorboard"]}))
    run.accelerator.end_training()
    (folder,) = {file.parent for file in (tmp_path / "tiny").glob("events*")}
    events = EventAccumulator(str(folder)).Reload()
    stored = [(event.step, event.value) for event in events.Scalars("loss")]
    expected = [(r["step"], r["loss"]) for r in tiny.metrics(tmp_path)]
    assert stored == [(step, pytest.approx(loss)) for step, loss in expected]
