"""One file, several runs: how stages are laid over it, what overrides reach, what is refused."""

import copy

import pytest
import tiny
import yaml

from xlcm import cli
from xlcm.config import ConfigError, load
from xlcm.training.settings import TrainConfig
from xlcm.training.stages import is_done, lay_out, read_stages, shown


@pytest.fixture
def tree(tiny_data, tmp_path):
    """A config of two stages; the second one names the first one's model."""
    base = tiny.tree(tiny_data, tmp_path / "run")
    base["method"] = {"name": "contrastive", "source_weight": 0.5}
    base["stages"] = [
        {"name": "first", "run": {"steps": 3}, "method": {"target_weight": 0.25}},
        {
            "name": "second",
            "method": {"name": "c2kd", "teachers": ["stage:first"]},
            "optim": {"lr": 0.5},
        },
    ]
    return base


def test_each_stage_lies_over_the_rest_of_the_file_and_the_last_one_writes_to_the_output(
    tree, tmp_path
):
    before = copy.deepcopy(tree)
    first, second = lay_out(tree)
    assert tree == before
    assert first.run.output == f"{tmp_path}/run/stages/first"
    assert second.run.output == f"{tmp_path}/run"
    assert (first.run.steps, second.run.steps) == (3, 12)
    assert (first.optim.lr, second.optim.lr) == (0.01, 0.5)
    assert (first.method["source_weight"], first.method["target_weight"]) == (0.5, 0.25)
    assert second.method["name"] == "c2kd"
    assert (first.run.name, second.run.name) == ("tiny-first", "tiny")
    assert first.data == second.data


def test_stage_and_name_become_the_folder_of_that_model(tree, tmp_path):
    second = lay_out(tree)[1]
    assert second.method["teachers"] == [f"{tmp_path}/run/stages/first/model"]


def test_a_file_without_stages_is_one_run(tiny_data, tmp_path):
    path = tiny.write_config(tiny.tree(tiny_data, tmp_path / "run"), tmp_path / "config.yaml")
    assert read_stages(path, ["optim.lr=0.3"]) == [load(TrainConfig, path, ["optim.lr=0.3"])]
    assert shown(str(path)) == yaml.safe_dump(
        load(TrainConfig, path).model_dump(mode="json"), sort_keys=False, width=100
    )


def test_overrides_reach_all_stages_and_those_with_a_name_one_whatever_their_order(tree):
    overrides = ["stages.first.run.steps=7", "run.steps=5", "optim.lr=0.2"]
    for given in (overrides, overrides[::-1]):
        first, second = lay_out(tree, given)
        assert (first.run.steps, second.run.steps) == (7, 5)
        assert (first.optim.lr, second.optim.lr) == (0.2, 0.2)  # over what a stage says itself


def test_an_override_may_name_a_stage_and_change_the_output(tree, tmp_path):
    overrides = [f"run.output={tmp_path}/other", "stages.second.method.teachers=[stage:first]"]
    first, second = lay_out(tree, overrides)
    assert (first.run.output, second.run.output) == (
        f"{tmp_path}/other/stages/first",
        f"{tmp_path}/other",
    )
    assert second.method["teachers"] == [f"{tmp_path}/other/stages/first/model"]


def test_stages_do_not_share_what_an_override_changes(tree):
    first, second = lay_out(tree, ["stages.first.data.views.target.langs.0=en"])
    assert first.data.views["target"].langs == ["en"]
    assert second.data.views["target"].langs == ["de"]


def test_the_folder_follows_from_the_name_where_no_output_is_given(tree):
    del tree["run"]["output"]
    first, second = lay_out(tree, ["run.name=mine"])
    assert (first.run.output, second.run.output) == ("runs/mine/stages/first", "runs/mine")


def change(tree, key, value):
    tree["stages"][1][key] = value


REFUSED = {
    "an empty list": (lambda t: t.update(stages=[]), (), r"'stages' must be a list of at least"),
    "no list": (lambda t: t.update(stages={"a": 1}), (), r"'stages' must be a list"),
    "a stage without a name": (lambda t: t["stages"][0].pop("name"), (), r"'stages\.0' needs a `n"),
    "a name that is no folder": (lambda t: change(t, "name", "a/b"), (), r"got 'a/b'"),
    "two of one name": (lambda t: change(t, "name", "first"), (), r"two stages are called 'first'"),
    "an output of its own": (
        lambda t: change(t, "run", {"output": "x"}), (), r"stage 'second': 'run\.output' is set",
    ),
    "an unknown key": (
        lambda t: change(t, "optim", {"lrr": 1}), (),
        r"stage 'second': unknown key 'optim\.lrr'; did you mean 'lr'",
    ),
    "itself": (
        lambda t: change(t, "method", {"name": "c2kd", "teachers": ["stage:second"]}), (),
        r"'stage:second' is no earlier stage.*earlier ones: first",
    ),
    "a misspelt one": (
        lambda t: change(t, "method", {"name": "c2kd", "teachers": ["stage:frist"]}), (),
        r"'stage:frist' is no earlier stage; did you mean 'first'",
    ),
    "a reference that is spelt like an override": (
        lambda t: change(t, "method", {"name": "c2kd", "teachers": ["stages:first"]}), (),
        r"stage 'second': 'stages:first': a stage's model is 'stage:first'",
    ),
    "two precisions": (
        lambda t: change(t, "run", {"precision": "bf16"}), (), r"precision differs.*bf16, fp32",
    ),
    "two patiences": (
        lambda t: change(t, "run", {"timeout_minutes": 5}), (), r"timeout_minutes differs.*5.*720",
    ),
    "an override for none": (
        lambda t: None, ("stages.thrid.run.steps=3",), r"no stage is called 'thrid'.*first, second",
    ),
    "an override of one output": (
        lambda t: None, ("stages.first.run.output=x",), r"run\.output is set for the whole file",
    ),
    "an output in a section for one": (
        lambda t: None, ("stages.first.run={output: x}",), r"run\.output is set for the whole file",
    ),
    "a run that is no section": (
        lambda t: change(t, "run", "long"), (), r"stage 'second': 'run' must be a section.*'long'",
    ),
    "an override of stages where there are none": (
        lambda t: t.pop("stages"), ("stages.first.run.steps=3",), r"config has no stages",
    ),
    "an option that one stage's method lacks": (
        lambda t: None, ("method.temperature=0.2",), r"stage 'first'.*method\.temperature",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_stages_may_not_say_is_refused(tree, name):
    spoil, overrides, said = REFUSED[name]
    spoil(tree)
    with pytest.raises(ConfigError, match=said):
        lay_out(tree, overrides)


def test_faults_of_all_stages_are_told_at_once(tree):
    tree["stages"][0]["run"] = {"stepps": 3}
    tree["stages"][1]["optim"] = {"lr": -1}
    with pytest.raises(ConfigError) as caught:
        lay_out(tree)
    said = str(caught.value).splitlines()
    assert any("stage 'first'" in line and "run.stepps" in line for line in said)
    assert any("stage 'second'" in line and "optim.lr" in line for line in said)


def test_print_config_of_stages_loads_to_the_same_runs(tree, tmp_path, monkeypatch, capsys):
    path = tiny.write_config(tree, tmp_path / "config.yaml")
    monkeypatch.setattr("sys.argv", ["train.py", str(path), "optim.lr=0.3", "--print-config"])
    assert cli.recipe(pytest.fail, "xlcm.training.stages:shown", "") == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    assert read_stages(printed) == read_stages(path, ["optim.lr=0.3"])
    moved = read_stages(printed, ["run.output=elsewhere"])
    assert moved[1].method["teachers"] == ["elsewhere/stages/first/model"]


# -- which stages are done ----------------------------------------------------------------------


@pytest.fixture
def done(tiny_data, tmp_path):
    """The config of a run that left what a finished stage leaves."""
    config = tiny.tree(tiny_data, tmp_path / "run")
    checked = lay_out(config)[0]
    folder = tmp_path / "run"
    (folder / "model").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(checked.model_dump(mode="json")))
    (folder / "model" / "config.json").write_text("{}")
    (folder / "done").write_text("")
    return config, folder


@pytest.mark.parametrize("missing", ["done", "model/config.json"])
def test_a_stage_is_done_with_its_marker_and_its_model(done, missing):
    config, folder = done
    assert is_done(lay_out(config)[0])
    (folder / missing).unlink()
    assert not is_done(lay_out(config)[0])


def test_a_stage_that_is_done_may_not_be_asked_for_other_results(done):
    config, _ = done
    for changed in ("run.steps=13", "optim.lr=0.3", "run.patience=2"):
        with pytest.raises(ConfigError, match=changed.partition("=")[0]):
            is_done(lay_out(config, [changed])[0])
    assert is_done(lay_out(config, ["run.log_every=1", "data.workers=3"])[0])
    assert not is_done(lay_out(config, ["run.resume=never"])[0])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"run": {"micro_batch": 17}}, r"run\.micro_batch=17, but a process has only 16 rows"),
        ({"run": {"micro_batch": 4}, "method": {"name": "cl2cm", "word_score": 1.0}},
         r"method\.word_score to 0"),
    ],
)  # fmt: skip
def test_what_a_later_stage_can_not_do_is_said_before_the_first_one_trains(
    tree, tmp_path, changed, said
):
    tree["stages"][1] = {"name": "second", **changed}
    path = tiny.write_config(tree, tmp_path / "config.yaml")
    tiny.forget_processes()
    with pytest.raises(ConfigError, match=rf"stage in {tmp_path}/run: .*{said}"):
        tiny.recipe("train.py").main(str(path))
    assert not (tmp_path / "run").exists()


def test_a_stage_that_is_done_may_be_one_that_these_processes_could_not_do(
    tree, tmp_path, monkeypatch
):
    tree["stages"][0]["run"]["micro_batch"] = 17
    path = tiny.write_config(tree, tmp_path / "config.yaml")
    recipe, trained = tiny.recipe("train.py"), []
    monkeypatch.setattr(recipe, "is_done", lambda config: config.run.name == "tiny-first")
    monkeypatch.setattr(recipe, "train", lambda config: trained.append(config.run.name) or 0)
    tiny.forget_processes()
    assert recipe.main(str(path)) == 0
    assert trained == ["tiny"]
