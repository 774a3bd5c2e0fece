"""A grid of runs: what each one is, which are done, and what is left of them."""

import json
import os
import shutil
import signal

import pytest
import tiny
import yaml

from xlcm.config import ConfigError, check, load, merge
from xlcm.training import grid_work
from xlcm.training.checkpoint import steps
from xlcm.training.grid import Run, plan_runs, rows, take_stock, write_rows
from xlcm.training.grid_settings import GridConfig
from xlcm.training.grid_work import alone_in, do, left_s
from xlcm.training.workers import Interrupted, forget_processes

pytestmark = pytest.mark.usefixtures("blank_plots")


@pytest.fixture(autouse=True)
def fresh():
    yield
    forget_processes()


def base(data, **changes):
    """A training config with validation and test; its folder is the grid's business."""
    splits = {name: tiny.held_out(data, name) for name in ("val", "test")}
    run = {"steps": 6, "eval_every": 2}
    return merge(tiny.tree(data, "elsewhere", data=splits, run=run), changes)


def grid(data, output, **changes):
    """A checked grid of two methods over two values."""
    tree = {
        "output": str(output),
        "base": base(data),
        "methods": {"contrastive": {}, "fast": {"optim": {"lr": 0.05}}},
        "axis": {
            "name": "noise",
            "values": [
                {"label": 0.0, "set": {"model.text.dropout": 0.0}},
                {"label": 0.4, "set": {"model.text.dropout": 0.4, "optim.clip_norm": 1.0e-05}},
            ],
        },
        "seeds": [0, 3],
    }
    return check(GridConfig, merge(tree, changes))


def task(run, keep=False):
    names = ("tree", "plan", "tests")
    return {name: getattr(run, name) for name in names} | {"folder": str(run.folder), "keep": keep}


def left(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# -- planning -----------------------------------------------------------------------------------


def test_every_method_value_and_seed_is_a_run_with_its_own_config(tiny_data, tmp_path):
    runs = plan_runs(grid(tiny_data, tmp_path))
    assert len({run.name for run in runs}) == len({run.folder for run in runs}) == 8
    assert [run.seed for run in runs] == [0] * 4 + [3] * 4  # whole comparisons early
    last = runs[-1]
    assert (last.method, last.label, last.seed) == ("fast", 0.4, 3)
    assert last.folder == tmp_path / "fast" / "noise-0.4" / "seed-3"
    tree = last.tree
    assert tree["optim"] == {"lr": 0.05, "clip_norm": 1e-5}
    assert tree["model"]["text"]["dropout"] == 0.4
    assert (tree["run"]["seed"], tree["run"]["output"]) == (3, str(last.folder))
    assert runs[0].tree["optim"] == {"lr": 0.01}  # nothing leaks from one run to another


def test_a_method_may_be_like_another_with_single_keys_at_some_values_only(tiny_data, tmp_path):
    methods = {
        "slow": {
            "like": "fast",
            "only": [0.4],
            "optim": {"warmup": 0.5},
            "set": {"method.text_weight": 0.5, "run.steps": 4},
        }
    }
    runs = plan_runs(grid(tiny_data, tmp_path, methods=methods, seeds=[0]))
    (slow,) = [run for run in runs if run.method == "slow"]
    assert (slow.label, slow.tree["run"]["steps"]) == (0.4, 4)
    assert slow.tree["optim"] == {"lr": 0.05, "warmup": 0.5, "clip_norm": 1e-5}
    assert slow.tree["method"] == {"name": "contrastive", "text_weight": 0.5}


def test_the_base_may_be_a_file_that_extends_another(tiny_data, tmp_path):
    (tmp_path / "far.yaml").write_text(yaml.safe_dump(base(tiny_data)))
    (tmp_path / "near.yaml").write_text("extends: far.yaml\nrun: {steps: 7}\n")
    changes = {"base": str(tmp_path / "near.yaml")}
    tree = {**grid(tiny_data, tmp_path).model_dump(), **changes}
    assert plan_runs(check(GridConfig, tree))[0].tree["run"]["steps"] == 7


def test_all_faults_of_the_runs_are_told_before_one_begins(tiny_data, tmp_path):
    methods = {"fast": {"optim": {"lrr": 1}}, "other": {"method": "contrastiv"}}
    with pytest.raises(ConfigError) as told:
        plan_runs(grid(tiny_data, tmp_path, methods=methods))
    lines = str(told.value).split("\n")
    assert len(lines) == 4  # once for all seeds
    assert "fast, 0.0: config: unknown key 'optim.lrr'; did you mean 'lr'" in lines[0]
    assert lines[1].startswith("other, 0.0: config: 'method.name': ")
    assert not list(tmp_path.iterdir())


def test_a_run_that_nothing_judges_is_refused(tiny_data, tmp_path):
    changes = {"base": {"data": {"test": None, "val": None}}}
    with pytest.raises(ConfigError, match=r"without data\.test and data\.val has no figures"):
        plan_runs(grid(tiny_data, tmp_path, **changes))


REFUSED = {
    "a baseline that is none": ({"baseline": "contrast"}, "baseline: no method is called 'contrast'; did you mean"),
    "like nothing": ({"methods": {"a": {"like": "b"}}}, "methods.a.like: no method is called 'b'"),
    "a circle": ({"methods": {"a": {"like": "b"}, "b": {"like": "a"}}}, "methods.a.like goes round in a circle"),
    "only at no value": ({"methods": {"a": {"only": [0.3]}}}, "methods.a.only: 0.3 is no label of the axis; there are 0.0, 0.4"),
    "a value twice": ({"axis": {"values": [{"label": 1}, {"label": "1"}]}}, "axis.values: 1 is there twice"),
    "a seed twice": ({"seeds": [1, 1]}, "seeds: 1 is there twice"),
    "a name that leaves the folder": ({"methods": {"../a": {}}}, "'../a' can't name a folder"),
    "an axis called like a key of the results": ({"axis": {"name": "lang", "values": [{"label": 1}]}}, "axis.name: 'lang' is a key of the results already"),
    "plotting nothing": ({"plotted": ["nrccr"]}, "plotted: no method is called 'nrccr'"),
    "a step of no kind": ({"prepare": [{"set": {}}]}, "a step of prepare is one of train, encode and xlcm"),
    "a section that is none": ({"methods": {"a": {"optimm": {}}}}, "unknown key 'methods.a.optimm'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_grid_that_contradicts_itself_is_refused(tiny_data, tmp_path, name):
    changes, told = REFUSED[name]
    with pytest.raises(ConfigError) as error:
        grid(tiny_data, tmp_path, **changes)
    assert told in str(error.value)


@pytest.mark.parametrize("name", ["noise", "photos_mt"])
def test_the_shipped_grids_plan_all_their_runs(name, monkeypatch):
    monkeypatch.chdir(tiny.REPOSITORY)
    config = load(GridConfig, f"configs/benchmarks/{name}.yaml")
    runs = plan_runs(config)
    assert {run.method for run in runs} == set(config.methods)
    assert len([run for run in runs if run.method == "contrastive"]) == len(config.seeds) * len(
        config.axis.values
    )


# -- what is done -------------------------------------------------------------------------------


def finished(run, values, seconds=1.0):
    """Leave what a finished run leaves."""
    run.folder.mkdir(parents=True)
    results = [{"lang": lang, "sum_r": value} for lang, value in values.items()]
    marker = {"plan": run.plan, "results": results, "seconds": seconds}
    (run.folder / "grid.json").write_text(json.dumps(marker))


def test_finished_runs_are_known_again_and_tidied(tiny_data, tmp_path):
    config = grid(tiny_data, tmp_path)
    first = plan_runs(config)[0]
    finished(first, {"en": 100.0, "de": 50.0}, seconds=7.0)
    (first.folder / "model").mkdir()  # killed between the figures and the tidying
    (first.folder / "model" / "model.safetensors").write_text("")
    runs = plan_runs(config)
    take_stock(runs, changed="refuse", keep=False)
    assert runs[0].results == [{"lang": "en", "sum_r": 100.0}, {"lang": "de", "sum_r": 50.0}]
    assert runs[0].seconds == 7.0
    assert not any(run.results for run in runs[1:])
    assert left(first.folder) == {"grid.json"}


CHANGES = {
    "a key of the base": ({"base": {"optim": {"lr": 0.5}}}, "optim.lr"),
    "a key of the method": ({"methods": {"contrastive": {"run": {"steps": 9}}}}, "run.steps"),
    "what a value means": (
        {"axis": {"values": [{"label": 0.0, "set": {"model.text.dropout": 0.3}}]}},
        "model.text.dropout",
    ),
    "a further test": ({"tests": {"again": {}}}, "tests.again"),
}


@pytest.mark.parametrize("spoilt", ["{", "{}"])
def test_a_spoilt_marker_is_named_with_the_way_out(tiny_data, tmp_path, spoilt):
    runs = plan_runs(grid(tiny_data, tmp_path))
    runs[0].folder.mkdir(parents=True)
    (runs[0].folder / "grid.json").write_text(spoilt)
    with pytest.raises(
        ConfigError, match=r"seed-0/grid\.json is not what a run leaves.*remove its"
    ):
        take_stock(runs, changed="refuse", keep=False)


@pytest.mark.parametrize("name", CHANGES)
def test_runs_of_another_config_are_refused_by_name_or_redone(tiny_data, tmp_path, name):
    changes, key = CHANGES[name]
    first = plan_runs(grid(tiny_data, tmp_path))[0]
    finished(first, {"en": 100.0})
    runs = plan_runs(grid(tiny_data, tmp_path, **changes))
    with pytest.raises(ConfigError) as told:
        take_stock(runs, changed="refuse", keep=False)
    assert "1 run(s) were made or begun with another config" in str(told.value)
    assert f"contrastive, 0.0, seed 0 ({key}" in str(told.value)
    assert first.folder.is_dir()
    take_stock(runs, changed="redo", keep=False)
    assert not first.folder.exists()


def test_runs_on_other_data_are_refused_by_file(tiny_data, tmp_path):
    copied = tmp_path / "data"
    shutil.copytree(tiny_data, copied)
    config = grid(copied, tmp_path / "grid")
    run = plan_runs(config)[0]
    run.folder.mkdir(parents=True)
    marker = {"plan": run.plan, "results": [{"lang": "en", "sum_r": 1.0}], "seconds": 1.0}
    (run.folder / "grid.json").write_text(json.dumps(marker))
    take_stock(plan_runs(config), changed="refuse", keep=False)
    with (copied / "tiny.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n")
    with pytest.raises(ConfigError, match=r"another config.*content of .*tiny\.jsonl"):
        take_stock(plan_runs(config), changed="refuse", keep=False)


def test_keys_that_change_no_figure_may_change(tiny_data, tmp_path):
    finished(plan_runs(grid(tiny_data, tmp_path))[0], {"en": 100.0})
    changes = {"base": {"run": {"log_every": 1, "name": "x"}, "data": {"workers": 1}}, "jobs": 4}
    runs = plan_runs(grid(tiny_data, tmp_path, **changes))
    take_stock(runs, changed="refuse", keep=False)
    assert runs[0].results


def test_a_new_step_before_the_runs_spoils_none_and_a_changed_one_all(tiny_data, tmp_path):
    config = grid(tiny_data, tmp_path)
    finished(plan_runs(config, ["tower"])[0], {"en": 100.0})
    runs = plan_runs(config, ["tower", "teacher"])
    take_stock(runs, changed="refuse", keep=False)
    assert runs[0].results
    with pytest.raises(ConfigError, match=r"contrastive, 0.0, seed 0 \(prepare\)"):
        take_stock(plan_runs(config, ["other tower"]), changed="refuse", keep=False)


def test_a_run_of_another_config_without_a_checkpoint_is_begun_anew(tiny_data, tmp_path):
    old = plan_runs(grid(tiny_data, tmp_path))[0]
    finished(old, {})
    changes = {"base": {"optim": {"lr": 0.5}}}
    take_stock(plan_runs(grid(tiny_data, tmp_path, **changes)), changed="refuse", keep=False)
    assert not old.folder.exists()


def test_figures_are_written_by_method_value_and_seed(tiny_data, tmp_path):
    config = grid(tiny_data, tmp_path / "grid")
    runs = plan_runs(config)
    for run in runs[::-1]:
        if run.name != "fast, 0.4, seed 0":
            run.results = [{"lang": "de", "sum_r": 1.5}]
    write_rows(rows(config, runs), tmp_path / "new" / "noise.json")
    found = json.loads((tmp_path / "new" / "noise.json").read_text())
    assert found[0] == {
        "method": "contrastive",
        "noise": 0.0,
        "seed": 0,
        "lang": "de",
        "sum_r": 1.5,
    }
    assert [(row["method"], row["noise"], row["seed"]) for row in found] == [
        ("contrastive", 0.0, 0), ("contrastive", 0.0, 3),
        ("contrastive", 0.4, 0), ("contrastive", 0.4, 3),
        ("fast", 0.0, 0), ("fast", 0.0, 3), ("fast", 0.4, 3),
    ]  # fmt: skip


def test_the_time_left_is_that_of_runs_of_the_same_method(tmp_path):
    def run(method, seconds=0.0):
        results = [{"lang": "de", "sum_r": 1.0}] if seconds else []
        return Run(method, 0, 0, tmp_path, {}, {}, {}, results, seconds)

    todo = [run("quick"), run("long"), run("unknown")]
    runs = [run("quick", 10), run("quick", 20), run("long", 105), *todo]
    assert left_s(runs, todo, jobs=1) == pytest.approx(15 + 105 + 60)
    assert left_s(runs, todo, jobs=2) == pytest.approx(90)
    assert left_s(todo, todo, jobs=1) == 0


# -- doing --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one(tiny_data, tmp_path_factory):
    """A finished run of the second seed, done first in its process."""
    run = plan_runs(grid(tiny_data, tmp_path_factory.mktemp("one")))[4]
    return run, do(task(run))


def test_a_finished_run_keeps_report_metrics_and_figures_alone(one):
    run, found = one
    assert left(run.folder) == {"grid.json", "metrics.jsonl", "report.json"}
    report = json.loads((run.folder / "report.json").read_text())
    assert found == [{"lang": k, "sum_r": round(v, 4)} for k, v in report["sum_r"].items()]
    assert {row["lang"] for row in found} == {"en", "de"}
    assert json.loads((run.folder / "grid.json").read_text())["results"] == found
    assert len(tiny.metrics(run.folder)) == 6


def test_a_run_equals_one_that_was_trained_by_itself(one, tiny_data, tmp_path):
    run, _ = one
    recipe = tiny.recipe("train.py")
    tree = merge(run.tree, {"run": {"output": str(tmp_path / "alone")}})
    forget_processes()
    assert recipe.main(str(tiny.write_config(tree, tmp_path / "config.yaml"))) == 0
    assert tiny.metrics(run.folder) == tiny.metrics(tmp_path / "alone")
    alone = json.loads((tmp_path / "alone" / "report.json").read_text())
    assert alone == json.loads((run.folder / "report.json").read_text())


def test_a_run_is_the_same_after_another_one_in_its_process(one, tiny_data, tmp_path):
    run, found = one
    runs = plan_runs(grid(tiny_data, tmp_path))
    assert do(task(runs[1])) != found
    assert do(task(runs[4])) == found
    assert tiny.metrics(runs[4].folder) == tiny.metrics(run.folder)


def test_a_stopped_run_goes_on_and_leaves_the_same(one, tiny_data, tmp_path, monkeypatch):
    run, found = one
    again = plan_runs(grid(tiny_data, tmp_path))[4]
    real = grid_work.validate

    def signalled(config, data, retriever):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(config, data, retriever)

    with monkeypatch.context() as patch:
        patch.setattr(grid_work, "validate", signalled)
        with pytest.raises(Interrupted):
            do(task(again, keep=True))
    assert steps(again.folder / "checkpoints") == [2, 3]  # the one of the validation, the last one
    assert do(task(again, keep=True)) == found
    assert "continuing from" in (again.folder / "log.txt").read_text()
    assert tiny.metrics(again.folder) == tiny.metrics(run.folder)
    assert (again.folder / "model" / "model.safetensors").is_file()  # keep


def test_a_failed_run_keeps_its_log_with_the_traceback(tiny_data, tmp_path):
    changes = {"base": {"optim": {"lr_scale": {"foo": 2.0}}}}
    run = plan_runs(grid(tiny_data, tmp_path, **changes))[0]
    with pytest.raises(ConfigError, match="foo fits no trained parameter"):
        do(task(run))
    log = (run.folder / "log.txt").read_text()
    assert "Traceback" in log
    assert "foo fits no trained parameter" in log


def test_runs_are_judged_on_each_test(tiny_data, tmp_path):
    tests = {
        "both": {},
        "german": {"data": {"split": "val"}, "evaluation": {"langs": ["de"]}},
    }
    run = plan_runs(grid(tiny_data, tmp_path, tests=tests))[0]
    found = do(task(run))
    assert [(row["test"], row["lang"]) for row in found] == [
        ("both", "en"), ("both", "de"), ("german", "de"),
    ]  # fmt: skip
    own = json.loads((run.folder / "report.json").read_text())["sum_r"]
    assert found[0]["sum_r"] == pytest.approx(own["en"], abs=1e-3)
    assert left(run.folder) == {
        "grid.json", "metrics.jsonl", "report.json", "report-both.json", "report-german.json",
    }  # fmt: skip


def test_a_method_may_have_stages(tiny_data, tmp_path):
    stages = [
        {"name": "warm", "run": {"steps": 2}},
        {"name": "real", "data": {"views": {"source": {"langs": ["en", "de"]}}}},
    ]
    run = plan_runs(grid(tiny_data, tmp_path, methods={"contrastive": {"stages": stages}}))[0]
    assert {row["lang"] for row in do(task(run, keep=True))} == {"en", "de"}
    assert len(tiny.metrics(run.folder / "stages" / "warm")) == 2
    assert (run.folder / "stages" / "warm" / "model" / "config.json").is_file()
    assert len(tiny.metrics(run.folder)) == 6


@pytest.mark.skipif(os.name != "posix", reason="no locks of files")
def test_two_commands_do_not_work_in_one_folder(tmp_path):
    with alone_in(tmp_path / "grid"):
        with (
            pytest.raises(ConfigError, match="another command works in"),
            alone_in(tmp_path / "grid"),
        ):
            pytest.fail("both were let in")
        with alone_in(tmp_path / "other"):
            pass
    with alone_in(tmp_path / "grid"):
        pass
