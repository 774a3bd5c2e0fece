"""Whole runs on bad disks and bad data: an error that names the place, or the right weights."""

import json

import pytest
import tiny

from xlcm.config import merge
from xlcm.data.manifest import DataError
from xlcm.training import checkpoint

RUN = {"steps": 8, "save_every": 2}


@pytest.fixture(scope="module")
def whole(tiny_data, tmp_path_factory):
    """The folder of a run that nothing went wrong in."""
    output = tmp_path_factory.mktemp("whole")
    tiny.train(tiny.tree(tiny_data, output, run=RUN))
    return output


def same_end(one, other):
    """Losses and last checkpoint are equal."""
    assert tiny.metrics(one) == tiny.metrics(other)
    assert tiny.checkpoint(one, 8) == tiny.checkpoint(other, 8)


@pytest.mark.parametrize("how", ["truncated weights", "half of state.json", "no optimizer"])
def test_a_damaged_newest_checkpoint_costs_its_steps_and_nothing_else(
    tiny_data, tmp_path, whole, how, capsys
):
    config = tiny.tree(tiny_data, tmp_path, run=RUN)
    with pytest.raises(tiny.Crash):
        tiny.train(config, crash_before=5)
    newest = tmp_path / "checkpoints" / "step-00000004"
    if how == "no optimizer":
        (newest / "optimizer.safetensors").unlink()
    else:
        file = newest / ("state.json" if "state" in how else "model.safetensors")
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    capsys.readouterr()
    assert len(tiny.train(config).names) == 6
    said = capsys.readouterr().out
    assert f"{newest} is not whole and is passed over" in said
    assert "continuing from" in said
    assert "step-00000002" in said
    same_end(whole, tmp_path)


def test_without_any_whole_checkpoint_the_run_begins_anew_and_says_why(
    tiny_data, tmp_path, whole, capsys
):
    config = tiny.tree(tiny_data, tmp_path, run=RUN)
    with pytest.raises(tiny.Crash):
        tiny.train(config, crash_before=3)
    (tmp_path / "checkpoints" / "step-00000002" / "state.json").unlink()
    capsys.readouterr()
    assert len(tiny.train(config).names) == 8
    assert "step-00000002 is not whole and is passed over" in capsys.readouterr().out
    same_end(whole, tmp_path)


def test_a_line_of_metrics_that_a_kill_left_half_is_written_anew(tiny_data, tmp_path, whole):
    config = tiny.tree(tiny_data, tmp_path, run=RUN)
    with pytest.raises(tiny.Crash):
        tiny.train(config, crash_before=5)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    tiny.train(config)
    same_end(whole, tmp_path)


@pytest.mark.parametrize("failing", ["save_file", "write_text"])
def test_a_full_disk_stops_the_run_and_room_lets_it_continue(
    tiny_data, tmp_path, whole, monkeypatch, failing
):
    config = tiny.tree(tiny_data, tmp_path, run=RUN)
    written, real = [0], getattr(checkpoint, failing)

    def until_full(*arguments, **options):
        written[0] += "step-00000004" in str(arguments)
        if written[0]:
            raise OSError(28, "No space left on device")
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, failing, until_full)
        with pytest.raises(OSError, match=r"step-00000004.*No space left on device"):
            tiny.train(config)
    good, faults = checkpoint.newest_good(tmp_path / "checkpoints")
    assert (good.name, faults) == ("step-00000002", [])
    tiny.train(config)
    same_end(whole, tmp_path)


def test_a_file_where_the_checkpoints_should_be_is_named(tiny_data, tmp_path):
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(OSError, match=str(tmp_path / "checkpoints")):
        tiny.train(tiny.tree(tiny_data, tmp_path, run=RUN))


# -- data ----------------------------------------------------------------------------------------


def damaged(data, folder, lines):
    """Copy the manifest with some lines changed (number from 0 -> function of the item)."""
    changed = (data / "tiny.jsonl").read_text().splitlines()
    for number, change in lines.items():
        item = json.loads(changed[number])
        change(item)
        changed[number] = json.dumps(item)
    (folder / "tiny.jsonl").write_text("\n".join(changed) + "\n")
    return {"path": str(folder / "tiny.jsonl"), "image_root": str(data), "split": "train"}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_picture_stops_training_with_file_and_line(tiny_data, tmp_path, workers):
    broken = tmp_path / "broken.png"
    broken.write_bytes((tiny_data / "train5.png").read_bytes()[:40])
    train = damaged(tiny_data, tmp_path, {5: lambda item: item.update(image=str(broken))})
    config = tiny.tree(
        tiny_data,
        tmp_path / "run",
        **merge(
            tiny.pictures(tiny_data),
            {"data": {"train": train, "workers": workers}, "run": RUN},
        ),
    )
    with pytest.raises(DataError, match=r"tiny\.jsonl:6: .*broken\.png"):
        tiny.train(config)


@pytest.mark.parametrize("workers", [0, 2])
def test_features_that_the_store_lacks_stop_training_with_file_line_and_key(
    tiny_data, tmp_path, workers
):
    train = damaged(tiny_data, tmp_path, {5: lambda item: item.update(features="train05")})
    config = tiny.tree(
        tiny_data, tmp_path / "run", data={"train": train, "workers": workers}, run=RUN
    )
    with pytest.raises(DataError, match=r"tiny\.jsonl:6: .*no key 'train05'"):
        tiny.train(config)


def test_skipped_rows_are_counted_listed_and_as_if_they_were_absent(tiny_data, tmp_path, capsys):
    train = damaged(tiny_data, tmp_path, {5: lambda item: item.update(features="none")})
    skip = {"data": {"train": train, "on_error": "skip", "max_skipped": 0.02}, "run": RUN}
    run = tiny.train(tiny.tree(tiny_data, tmp_path / "skip", **skip))
    assert "1 fault(s) skipped" in capsys.readouterr().out
    (line,) = (tmp_path / "skip" / "skipped.jsonl").read_text().splitlines()
    assert "tiny.jsonl:6" in line
    names = [name for batch in run.names for name in batch]
    assert "train5" not in names
    # the others train as if the bad one had never been there
    without = tmp_path / "without"
    without.mkdir()
    lines = (tiny_data / "tiny.jsonl").read_text().splitlines(keepends=True)
    (without / "tiny.jsonl").write_text("".join(lines[:5] + lines[6:]))
    train = {"path": str(without / "tiny.jsonl"), "image_root": str(tiny_data)}
    absent = tiny.train(tiny.tree(tiny_data, without / "run", data={"train": train}, run=RUN))
    assert absent.names == run.names
    assert tiny.metrics(tmp_path / "skip") == tiny.metrics(without / "run")


def test_more_than_the_allowed_share_of_bad_rows_stops_with_the_list(tiny_data, tmp_path):
    spoil = {n: lambda item: item.update(features="none") for n in (5, 9)}
    train = damaged(tiny_data, tmp_path, spoil)
    data = {"train": train, "on_error": "skip"}
    with pytest.raises(DataError, match=r"(?s)jsonl:6.*jsonl:10.*more than data.max_skipped=1"):
        tiny.train(tiny.tree(tiny_data, tmp_path / "run", data=data, run=RUN))
