"""A checkpoint is whole or is passed over, holds no pickle, and one that fails leaves the others."""

import json
import os
import resource
from pathlib import Path

import pytest
import tiny
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from xlcm.config import ConfigError
from xlcm.training import checkpoint


@pytest.fixture
def saved(tmp_path):
    """`save(step, keep)` writes a checkpoint of a small model, whose weights it returns."""
    tiny.forget_processes()
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, betas=(0.8, 0.9))

    def save(step, keep=2):
        model(torch.randn(5, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        checkpoint.save(accelerator, tmp_path, step, model, optimizer, {"step": step}, keep)
        return {name: tensor.clone() for name, tensor in model.state_dict().items()}

    save.model, save.optimizer = model, optimizer
    return save


def test_load_restores_weights_buffers_moments_and_counters(saved, tmp_path):
    before = saved(3)
    moments = [{k: v.clone() for k, v in s.items()} for s in saved.optimizer.state.values()]
    saved(4)
    step, state = checkpoint.load(tmp_path / "step-00000003", saved.model, saved.optimizer)
    assert (step, state) == (3, {"step": 3})
    for name, tensor in saved.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    for old, new in zip(moments, saved.optimizer.state.values()):
        assert all(torch.equal(old[key], new[key]) for key in old)
    assert tuple(saved.optimizer.param_groups[0]["betas"]) == (0.8, 0.9)


def test_no_file_of_a_checkpoint_is_pickle(saved, tmp_path):
    saved(1)
    files = [f for f in tmp_path.rglob("*") if f.is_file()]
    assert sorted(f.name for f in files) == [
        "model.safetensors", "optimizer.safetensors", "state.json",
    ]  # fmt: skip
    for file in files:
        if file.suffix == ".json":
            json.loads(file.read_text())
        else:  # 8 bytes of length, then a header in JSON
            length = int.from_bytes(file.read_bytes()[:8], "little")
            json.loads(file.read_bytes()[8 : 8 + length])


def test_only_the_newest_are_kept(saved, tmp_path):
    for step in (1, 2, 3, 4):
        saved(step, keep=2)
    assert checkpoint.steps(tmp_path) == [3, 4]


def test_a_broken_newer_checkpoint_does_not_push_a_good_one_out(saved, tmp_path):
    saved(5, keep=1)
    saved(10, keep=2)
    (tmp_path / "step-00000010" / "model.safetensors").unlink()
    saved(6, keep=1)  # the run went on from step 5
    good, faults = checkpoint.newest_good(tmp_path)
    assert good == tmp_path / "step-00000006"
    assert len(faults) == 1
    saved(10, keep=1)  # and takes the place of the broken one
    assert checkpoint.newest_good(tmp_path) == (tmp_path / "step-00000010", [])
    assert checkpoint.steps(tmp_path) == [10]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("how", ["truncated", "empty", "deleted"])
def test_a_damaged_newest_checkpoint_is_passed_over_and_named(saved, tmp_path, name, how):
    saved(1)
    saved(2)
    file = tmp_path / "step-00000002" / name
    if how == "deleted":
        file.unlink()
    else:
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2 if how == "truncated" else 0])
    good, faults = checkpoint.newest_good(tmp_path)
    assert good == tmp_path / "step-00000001"
    assert len(faults) == 1
    assert str(file.parent) in faults[0]
    assert "passed over" in faults[0]


def test_a_half_written_folder_is_no_checkpoint(saved, tmp_path):
    saved(1)
    half = tmp_path / ".step-00000002.tmp"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert checkpoint.newest_good(tmp_path) == (tmp_path / "step-00000001", [])
    saved(2)  # and is not in the way
    assert checkpoint.newest_good(tmp_path) == (tmp_path / "step-00000002", [])
    assert not half.exists()


def test_a_newer_format_is_not_guessed_at(saved, tmp_path):
    saved(1)
    state = tmp_path / "step-00000001" / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "format": 99}))
    good, faults = checkpoint.newest_good(tmp_path)
    assert good is None
    assert "format 99 is newer than this version" in faults[0]


def test_another_model_is_refused_with_the_way_out(saved, tmp_path):
    saved(1)
    other = torch.nn.Sequential(torch.nn.Linear(4, 5))
    optimizer = torch.optim.AdamW(other.parameters())
    with pytest.raises(ValueError, match=r"(?s)step-00000001 does not fit this model.*run.output"):
        checkpoint.load(tmp_path / "step-00000001", other, optimizer)


def renamed(path, old, new):
    """Give a parameter of a checkpoint another name; None: leave it out."""
    file = path / "model.safetensors"
    tensors = load_file(file)
    tensor = tensors.pop(old)
    save_file({**tensors, **({new: tensor} if new else {})}, file)


@pytest.mark.parametrize(
    ("new", "said"),
    [(None, r"it lacks WEIGHT\."), ("more", r"it lacks WEIGHT; it has beyond it more\.")],
)
def test_a_parameter_that_is_missing_or_too_many_is_named(saved, tmp_path, new, said):
    saved(1)
    path = tmp_path / "step-00000001"
    weight = next(iter(saved.model.state_dict()))
    before = saved.model.state_dict()[weight].clone()
    renamed(path, weight, new)
    with pytest.raises(ConfigError, match="does not fit.*" + said.replace("WEIGHT", weight)):
        checkpoint.load(path, saved.model, saved.optimizer)
    assert torch.equal(saved.model.state_dict()[weight], before)


# -- a disk that fails ---------------------------------------------------------------------------


def intact(folder: Path) -> None:
    """The checkpoint of step 1 is there and whole, and nothing half lies about."""
    assert checkpoint.newest_good(folder) == (folder / "step-00000001", [])
    assert not list(folder.glob(".step*"))


@pytest.mark.parametrize("failing", ["save_file", "write_text"])
def test_a_full_disk_names_the_checkpoint_and_leaves_the_older_one(
    saved, tmp_path, monkeypatch, failing
):
    saved(1)

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, failing, full)
    with pytest.raises(OSError, match=r"step-00000002.*No space left on device"):
        saved(2)
    intact(tmp_path)


def test_a_file_that_may_grow_no_further_leaves_the_older_checkpoint(tmp_path):
    tiny.forget_processes()
    model = torch.nn.Linear(100, 100)  # 40 kB
    given = (model, torch.optim.SGD(model.parameters(), lr=0.1), {}, 2)
    checkpoint.save(Accelerator(cpu=True), tmp_path, 1, *given)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"could not write the checkpoint .*step-00000002"):
            checkpoint.save(Accelerator(cpu=True), tmp_path, 2, *given)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    intact(tmp_path)


def test_a_file_in_the_way_of_the_folder_is_named(saved, tmp_path):
    blocked = tmp_path / "blocked"
    blocked.write_text("not a folder")
    with pytest.raises(OSError, match=str(blocked)):
        checkpoint.save(Accelerator(cpu=True), blocked, 1, saved.model, saved.optimizer, {}, keep=1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into a read-only folder")
def test_a_read_only_folder_is_named(saved, tmp_path):
    saved(1)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OSError, match=r"step-00000002"):
            saved(2)
    finally:
        tmp_path.chmod(0o700)
    intact(tmp_path)


def test_write_tensors_keeps_what_was_there_if_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "best.safetensors"
    checkpoint.write_tensors({"a": torch.ones(3)}, path)
    before = path.read_bytes()

    def half(tensors, aside):
        Path(aside).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", half)
    with pytest.raises(OSError, match=r"best.safetensors.*No space left"):
        checkpoint.write_tensors({"a": torch.zeros(3)}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_flatten_and_unflatten_are_inverse():
    tree = {"state": {"a.b": {"step": torch.tensor(3.0), "m": torch.randn(2)}},
            "groups": [{"lr": 0.1, "params": ["a.b"], "fused": None}]}  # fmt: skip
    tensors, skeleton = checkpoint.flatten(tree)
    again = checkpoint.unflatten(tensors, json.loads(json.dumps(skeleton)))
    assert again["groups"] == tree["groups"]
    assert torch.equal(again["state"]["a.b"]["m"], tree["state"]["a.b"]["m"])
