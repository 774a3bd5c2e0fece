"""A run of several stages that was cut off in any of them ends as the unbroken one, bit for bit."""

import json
import shutil

import pytest
import tiny
import torch
from accelerate import Accelerator

from xlcm.config import ConfigError
from xlcm.methods.contrastive import Contrastive
from xlcm.models.dual_encoder import DualEncoder
from xlcm.registry import methods

STEPS = 6
pytestmark = pytest.mark.usefixtures("blank_plots")


class Follow(Contrastive):
    """Contrastive learning that also follows the images of a frozen model."""

    def __init__(self, retriever, *, leader: str) -> None:
        super().__init__(retriever)
        self.leader = [DualEncoder.from_pretrained(leader)]  # in a list: no part of the method

    def encode(self, batch):
        with torch.no_grad():
            led = self.leader[0].embed_visual(batch.visual)
        return {**super().encode(batch), "led": led}

    def losses(self, encoded):
        terms = super().losses(encoded)
        distance = (encoded["image"] - encoded["led"]).pow(2).sum(1).mean()
        return {**terms, "image_source": terms["image_source"] + distance}


@pytest.fixture(scope="module", autouse=True)
def registered():
    methods.register("follow")(Follow)
    yield
    methods._parts.pop("follow")


def staged(data, output, **run):
    """Return a config whose second stage follows the model of the first one."""
    config = tiny.tree(data, output, run={"steps": STEPS, "eval_every": 2, **run})
    config["data"]["val"] = tiny.held_out(data, "val")
    config["stages"] = [
        {"name": "leader", "optim": {"lr": 0.02}},
        {"name": "follower", "method": {"name": "follow", "leader": "stage:leader"}},
    ]
    return config


def run(config, folder, *overrides, crash=None):
    """Run the recipe; `crash=(place, batches)` ends it in a stage. Return how many it trained."""
    recipe, trained = tiny.recipe("train.py"), []
    real = recipe.build_loader

    def build_loader(*arguments):
        trained.append(1)
        stops = crash[1] if crash is not None and crash[0] == len(trained) - 1 else None
        return tiny.Recorder(real(*arguments), stops)

    recipe.build_loader = build_loader
    tiny.forget_processes()
    file = tiny.write_config(config, folder / "config.yaml")
    assert recipe.main(str(file), *overrides) == 0
    return len(trained)


def left(output):
    """Return all that the stages left: files of models and checkpoints, losses, figures."""
    found = {}
    for folder in (output / "stages" / "leader", output):
        checkpoints = [*(folder / "checkpoints").rglob("*"), folder / "model" / "model.safetensors"]
        for file in checkpoints:
            if file.is_file():
                found[file.relative_to(output)] = file.read_bytes()
        found[folder.relative_to(output)] = (
            tiny.metrics(folder),
            tiny.metrics(folder, "eval"),
            json.loads((folder / "report.json").read_text())["results"],
        )
    return found


@pytest.fixture(scope="module")
def unbroken(tiny_data, tmp_path_factory):
    """What a run that nothing interrupted left."""
    folder = tmp_path_factory.mktemp("unbroken")
    assert run(staged(tiny_data, folder / "run"), folder) == 2
    return left(folder / "run")


@pytest.mark.parametrize("crash", [(0, 3), (1, 0), (1, 5)], ids=["first", "border", "second"])
def test_stages_continue_bit_for_bit(tiny_data, tmp_path, unbroken, crash):
    config = staged(tiny_data, tmp_path / "run")
    with pytest.raises(tiny.Crash):
        run(config, tmp_path, crash=crash)
    assert (tmp_path / "run" / "stages" / "leader" / "done").exists() == (crash[0] == 1)
    assert run(config, tmp_path) == (2 if crash[0] == 0 else 1)  # what is done is not done again
    found = left(tmp_path / "run")
    assert found.keys() == unbroken.keys()
    for name, content in found.items():
        assert content == unbroken[name], name


def test_a_stop_after_training_and_before_the_end_of_a_stage_is_made_good(
    tiny_data, tmp_path, unbroken, monkeypatch
):
    config = staged(tiny_data, tmp_path / "run")

    def no_room(*_):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("xlcm.training.setup.save_plots", no_room)
        with pytest.raises(OSError, match="No space"):
            run(config, tmp_path)
    assert run(config, tmp_path) == 2
    assert left(tmp_path / "run") == unbroken


def test_the_second_stage_really_follows_the_first(tiny_data, tmp_path, unbroken):
    config = staged(tiny_data, tmp_path / "run")
    run(config, tmp_path, "stages.leader.optim.lr=0.0001")
    other = left(tmp_path / "run")
    here = next(name for name in other if str(name) == ".")
    assert other[here][0][0]["loss"] != unbroken[here][0][0]["loss"]


def test_a_stage_that_is_done_is_named_and_may_not_change(tiny_data, tmp_path, capsys):
    config = staged(tiny_data, tmp_path / "run")
    run(config, tmp_path)
    capsys.readouterr()
    assert run(config, tmp_path) == 1
    assert f"tiny-leader is done: {tmp_path}/run/stages/leader" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"stages/leader holds.*optim\.lr: 0\.02 -> 0\.5"):
        run(config, tmp_path, "stages.leader.optim.lr=0.5")


def test_a_run_does_not_go_on_with_another_model_of_an_earlier_stage(tiny_data, tmp_path):
    config = staged(tiny_data, tmp_path / "run")
    with pytest.raises(tiny.Crash):
        run(config, tmp_path, crash=(1, 5))
    shutil.rmtree(tmp_path / "run" / "stages")
    with pytest.raises(ConfigError, match=r"weights of the model in method\.leader"):
        run(config, tmp_path, "stages.leader.run.seed=1")


# -- two processes ------------------------------------------------------------------------------


def run_in_pool(config, folder, crash):
    """Run the recipe twice in a process of the pool; the first time it crashes."""
    from pathlib import Path

    found = {"processes": tiny.join_pool()}
    methods.register("follow")(Follow)
    tiny.blank_plots(pytest.MonkeyPatch())
    Accelerator.end_training = lambda self: None  # which would end the group for good
    mine = Path(folder, str(torch.distributed.get_rank()))
    mine.mkdir()
    with pytest.raises(tiny.Crash):
        run(config, mine, crash=crash)
    torch.distributed.barrier()
    found["trained"] = run(config, mine)
    return found


def test_two_processes_go_through_the_stages_and_continue(tiny_data, tmp_path, processes):
    config = staged(tiny_data, tmp_path / "run")
    for stage in (config, *config["stages"]):
        stage["model"] = {**stage.get("model", {}), "text": {"dropout": 0.0}}
    config["model"] = tiny.tree(tiny_data, tmp_path, model={"text": {"dropout": 0.0}})["model"]
    found = processes.run(2, run_in_pool, config, str(tmp_path), (1, 3))
    assert found == [{"processes": 2, "trained": 1}] * 2
    one = staged(tiny_data, tmp_path / "one")
    one["model"], one["stages"] = config["model"], config["stages"]
    run(one, tmp_path)
    for folder in ("stages/leader", "."):
        left, right = (tiny.metrics(tmp_path / name / folder) for name in ("one", "run"))
        for a, b in zip(left, right, strict=True):
            assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
