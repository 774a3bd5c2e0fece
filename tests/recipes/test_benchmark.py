"""recipes/benchmark.py by its real command: killed, continued, and with a run that fails."""

import json
import re
import subprocess
import time

import pytest
import tiny

from xlcm import cli
from xlcm.config import load, merge
from xlcm.evaluation.comparison import BEGIN
from xlcm.training.grid import plan_runs
from xlcm.training.grid_settings import GridConfig

GRID = {
    "baseline": "contrastive",
    "methods": {
        "contrastive": {},
        "long": {"run": {"steps": 80, "eval_every": 4}},
        "broken": {"optim": {"lr_scale": {"foo": 2.0}}},
    },
    "axis": {"name": "noise", "values": [{"label": 0.4, "set": {"model.text.dropout": 0.4}}]},
    "seeds": [0],
    "keep": True,
}


def config(data, folder, **changes):
    """Write a grid's config; return its path."""
    splits = {name: tiny.held_out(data, name) for name in ("val", "test")}
    run, evaluation = {"steps": 4, "eval_every": 2}, {"sheet_queries": 0}
    base = tiny.tree(data, "elsewhere", data=splits, run=run, evaluation=evaluation)
    tree = merge({**GRID, "output": str(folder / "grid"), "base": base}, changes)
    return tiny.write_config(tree, folder / "grid.yaml")


def wait_for(condition, seconds=60):
    for _ in range(seconds * 20):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("waited in vain")


def figures(run):
    path = run / "grid.json"
    return json.loads(path.read_text())["results"] if path.is_file() else []


def test_a_killed_benchmark_keeps_what_is_done_and_goes_on_with_the_rest(tiny_data, tmp_path):
    runs = {name: tmp_path / "grid" / name / "noise-0.4" / "seed-0" for name in GRID["methods"]}
    arguments, environment = tiny.command("benchmark.py", str(config(tiny_data, tmp_path)))
    options = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    killed = subprocess.Popen(arguments, text=True, **options)
    wait_for(lambda: figures(runs["contrastive"]) and any(runs["long"].rglob("step-*/state.json")))
    killed.kill()
    said, _ = killed.communicate(timeout=60)  # the workers have the same output: they end too
    assert "1/3" in said
    assert not figures(runs["long"])
    marker = (runs["contrastive"] / "grid.json").stat().st_mtime_ns

    done = subprocess.run([*arguments, "jobs=2"], text=True, check=False, **options)
    assert done.returncode == 1, done.stderr
    first, *lines = done.stdout.splitlines()
    assert first == "3 runs, 1 of them done before; 2 at a time"
    assert (runs["contrastive"] / "grid.json").stat().st_mtime_ns == marker
    log = (runs["long"] / "log.txt").read_text()
    assert f"continuing from {runs['long'] / 'checkpoints'}" in log
    assert len(tiny.metrics(runs["long"])) == 80
    assert lines[-1].startswith("FAILED  broken, 0.4, seed 0: ConfigError: optim.lr_scale: foo")
    assert lines[-1].endswith(f"({runs['broken'] / 'log.txt'})")
    progress = [line for line in lines if line.startswith(("2/3", "3/3"))]
    assert len(progress) == 2
    assert all("  left " in line for line in progress)

    rows = json.loads((tmp_path / "grid" / "results.json").read_text())
    assert [(row["method"], row["noise"], row["seed"], row["lang"]) for row in rows] == [
        (method, 0.4, 0, lang) for method in ("contrastive", "long") for lang in ("en", "de")
    ]
    page = (tmp_path / "grid" / "results.md").read_text()
    assert f"| contrastive | {rows[0]['sum_r']:.1f} |" in page
    assert f"| long | {rows[2]['sum_r'] - rows[0]['sum_r']:+.1f} |" in page
    assert (tmp_path / "grid" / "results.png").is_file()


def refuse(monkeypatch, capsys, *arguments):
    """Return what the recipe says where it ends with code 2, before any run."""
    recipe = tiny.recipe("benchmark.py")
    monkeypatch.setattr(recipe, "go_through", lambda *_, **__: pytest.fail("began"))
    monkeypatch.setattr("sys.argv", ["recipes/benchmark.py", *map(str, arguments)])
    schema = "xlcm.training.grid_settings:GridConfig"
    assert cli.recipe(recipe.main, schema, recipe.__doc__) == 2
    return capsys.readouterr().err


def test_faults_of_any_run_end_with_code_2_before_the_first(
    tiny_data, tmp_path, monkeypatch, capsys
):
    path = config(tiny_data, tmp_path)
    said = refuse(monkeypatch, capsys, path, "methods.long.optim.lrr=1")
    assert said.startswith("benchmark.py: long, 0.4: config: unknown key 'optim.lrr'")


def test_a_page_without_marks_ends_with_code_2_before_the_first(
    tiny_data, tmp_path, monkeypatch, capsys
):
    page = tmp_path / "page.md"
    page.write_text("# Mine\n")
    path = config(tiny_data, tmp_path, page=str(page))
    assert BEGIN in refuse(monkeypatch, capsys, path)
    assert page.read_text() == "# Mine\n"


def test_it_refuses_to_be_launched_on_several_processes(tiny_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = refuse(monkeypatch, capsys, config(tiny_data, tmp_path))
    assert "start it by python and say jobs=N" in said


# -- docs/comparing.md --------------------------------------------------------------------------

PAGE = tiny.REPOSITORY / "docs" / "comparing.md"


def test_the_page_names_every_option():
    table = PAGE.read_text().split("| option | meaning |")[1].split("##")[0]
    named = {name for line in table.splitlines() for name in re.findall(r"`(\w+)`", line[:80])}
    assert set(GridConfig.model_fields) <= named


def test_the_config_of_the_page_plans_the_runs_that_it_promises(tmp_path, monkeypatch):
    example = re.search(r"```yaml\n(# compare.yaml\n.*?)```", PAGE.read_text(), re.DOTALL)[1]
    (tmp_path / "compare.yaml").write_text(example)
    monkeypatch.chdir(tiny.REPOSITORY)
    runs = plan_runs(load(GridConfig, tmp_path / "compare.yaml"))
    assert len(runs) == (2 * 2 + 1) * 3
    slow = next(run for run in runs if run.method == "with-pairs-slow")
    assert slow.tree["method"] == {"name": "contrastive", "text_weight": 0.3}
    assert (slow.tree["optim"]["lr"], slow.label) == (5e-4, 0.4)
    assert slow.tree["data"]["train"]["noise_rate"] == 0.4
    assert str(slow.folder) == "runs/compare/with-pairs-slow/noise-0.4/seed-0"
