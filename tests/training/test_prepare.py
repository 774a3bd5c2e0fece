"""Steps before a grid of runs: done once, in order, and anew when they change."""

import json
import os

import pytest
import yaml

from xlcm.config import ConfigError, check
from xlcm.training.grid_settings import GridConfig
from xlcm.training.prepare import prepare

RECIPE = """
import json, os, pathlib, sys
with open({calls!r}, "a") as file:
    file.write(json.dumps([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]) + "\\n")
os.fstat(int(pathlib.Path({lock!r}).read_text()))
sys.exit(int(pathlib.Path({code!r}).read_text()))
"""


class Bench:
    """Recipes that write down how they were called, and a grid that uses them."""

    def __init__(self, folder):
        self.folder, self.calls = folder, folder / "calls.jsonl"
        names = {name: str(folder / name) for name in ("lock", "code")}
        for recipe in ("train.py", "encode.py"):
            (folder / recipe).write_text(RECIPE.format(calls=str(self.calls), **names))
        (folder / "code").write_text("0")
        self.config = folder / "tower.yaml"
        self.config.write_text(yaml.safe_dump({"run": {"epochs": 1}}))

    def run(self, steps, changed="refuse", stop=lambda: False):
        tree = {"output": str(self.folder / "grid"), "prepare": steps, "changed": changed,
                "base": {}, "methods": {"a": {}}, "axis": {"name": "x", "values": [{"label": 1}]}}  # fmt: skip
        lock = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT)
        (self.folder / "lock").write_text(str(lock))
        try:
            config = check(GridConfig, tree)
            return prepare(config, self.folder, lock=lock, asked_to_stop=stop)
        finally:
            os.close(lock)

    def told(self):
        if not self.calls.exists():
            return []
        return [json.loads(line) for line in self.calls.read_text().splitlines()]


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def test_steps_are_done_once_in_their_order(bench):
    steps = [
        {"train": str(bench.config), "set": {"run.epochs": 3, "data.train.langs": ["en"]}},
        {"encode": str(bench.config)},
    ]
    first = bench.run(steps)
    assert bench.told() == [
        ["train.py", str(bench.config), "run.epochs=3\n...\n", "data.train.langs=- en\n"],
        ["encode.py", str(bench.config)],
    ]
    assert bench.run(steps) == first
    assert len(bench.told()) == 2


def test_a_failed_step_stops_the_grid_and_is_tried_again(bench):
    steps = [{"train": str(bench.config)}, {"encode": str(bench.config)}]
    (bench.folder / "code").write_text("2")
    with pytest.raises(ConfigError, match=r"prepare\.0 \(train .*tower\.yaml\) ended with exit"):
        bench.run(steps)
    (bench.folder / "code").write_text("0")
    assert len(bench.run(steps)) == 2
    assert [call[0] for call in bench.told()] == ["train.py", "train.py", "encode.py"]


def test_a_stopped_step_stops_the_grid_without_a_fault(bench):
    (bench.folder / "code").write_text("143")
    assert bench.run([{"train": str(bench.config)}], stop=lambda: True) is None


def test_a_step_of_another_config_is_refused_or_done_anew(bench):
    steps = [{"train": str(bench.config)}]
    first = bench.run(steps)
    bench.config.write_text(yaml.safe_dump({"run": {"epochs": 2}}))
    with pytest.raises(ConfigError, match=r"prepare\.0 was done with another config"):
        bench.run(steps)
    assert len(bench.told()) == 1
    assert bench.run(steps, changed="redo") != first
    assert len(bench.told()) == 2


def test_a_command_of_xlcm_is_a_step(bench, capfd):
    bench.run([{"xlcm": "schema benchmark"}])
    assert '"title": "config of recipes/benchmark.py"' in capfd.readouterr().out
    with pytest.raises(ConfigError, match="ended with exit code"):
        bench.run([{"xlcm": "data check 'no such file'"}], changed="redo")
