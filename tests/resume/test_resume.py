"""A run that was cut off and started again is the unbroken run, bit for bit."""

import os
import signal
import subprocess
import time

import pytest
import tiny
import torch

from xlcm.config import merge
from xlcm.training import signals
from xlcm.training.checkpoint import newest_good

STEPS = 12  # three epochs of four batches
EVERY_STEP = {"steps": STEPS, "save_every": 1, "keep_checkpoints": 20}


def same(one, other, step=STEPS):
    """Losses, weights, moments, counters and everything else that a checkpoint holds."""
    assert tiny.metrics(one) == tiny.metrics(other)
    assert [record["step"] for record in tiny.metrics(one)] == list(range(1, step + 1))
    left, right = tiny.checkpoint(one, step), tiny.checkpoint(other, step)
    assert {"model.safetensors", "optimizer.safetensors", "state.json"} == set(left) == set(right)
    assert left == right


@pytest.fixture(scope="module")
def unbroken(tiny_data, tmp_path_factory):
    """Folder and row names of a run with dropout that nothing interrupted."""
    output = tmp_path_factory.mktemp("unbroken")
    run = tiny.train(tiny.tree(tiny_data, output, run=EVERY_STEP))
    return output, run.names


@pytest.mark.parametrize("after", [1, 6, 8, 12], ids=["first", "mid-epoch", "border", "last"])
def test_resume_continues_bit_for_bit(tiny_data, tmp_path, unbroken, after):
    config = tiny.tree(tiny_data, tmp_path, run=EVERY_STEP)
    names = []
    if after < STEPS:
        with pytest.raises(tiny.Crash):
            tiny.train(config, crash_before=after)
        assert len(tiny.metrics(tmp_path)) == after
    else:
        names += tiny.train(config).names
    torch.manual_seed(12345)  # what else goes on in the process plays no part
    names = unbroken[1][:after] + tiny.train(config).names
    assert names == unbroken[1]
    same(unbroken[0], tmp_path)


def test_dropout_is_on_or_the_resume_tests_would_prove_little(tiny_data, tmp_path, unbroken):
    config = tiny.tree(tiny_data, tmp_path, run=EVERY_STEP, model={"text": {"dropout": 0.0}})
    tiny.train(config)
    assert tiny.metrics(tmp_path)[0]["loss"] != tiny.metrics(unbroken[0])[0]["loss"]


def test_two_workers_give_the_rows_and_losses_of_none_and_resume_bit_for_bit(
    tiny_data, tmp_path, unbroken
):
    config = tiny.tree(tiny_data, tmp_path, run=EVERY_STEP, data={"workers": 2})
    with pytest.raises(tiny.Crash):
        tiny.train(config, crash_before=5)
    again = tiny.train(config)
    assert unbroken[1][:5] + again.names == unbroken[1]
    same(unbroken[0], tmp_path)


def test_steps_behind_the_last_checkpoint_are_done_again_and_logged_once(
    tiny_data, tmp_path, unbroken
):
    config = tiny.tree(tiny_data, tmp_path, run={**EVERY_STEP, "save_every": 4})
    with pytest.raises(tiny.Crash):
        tiny.train(config, crash_before=7)
    assert len(tiny.metrics(tmp_path)) == 7
    tiny.train(config)
    same(unbroken[0], tmp_path)


def test_resume_with_accumulation_continues_bit_for_bit(tiny_data, tmp_path):
    run = {**EVERY_STEP, "steps": 4, "accumulate": 3}
    tiny.train(tiny.tree(tiny_data, tmp_path / "whole", run=run))
    config = tiny.tree(tiny_data, tmp_path / "cut", run=run)
    with pytest.raises(tiny.Crash):
        tiny.train(config, crash_before=7)  # in the third step
    tiny.train(config)
    same(tmp_path / "whole", tmp_path / "cut", step=4)


def test_two_processes_resume_bit_for_bit(tiny_data, tmp_path, processes):
    whole = tiny.tree(tiny_data, tmp_path / "whole", run=EVERY_STEP)
    cut = tiny.tree(tiny_data, tmp_path / "cut", run=EVERY_STEP)
    found = processes.run(2, tiny.train_in_pool, [cut, cut, whole], 6)
    assert [result["processes"] for result in found] == [2, 2]
    for result in found:
        assert result["names"][:STEPS] == result["names"][STEPS:]
        assert len(result["names"]) == 2 * STEPS
    same(tmp_path / "whole", tmp_path / "cut")


def test_a_finished_run_that_is_started_again_trains_no_further(tiny_data, tmp_path, unbroken):
    config = tiny.tree(tiny_data, tmp_path, run=EVERY_STEP)
    tiny.train(config)
    before = tiny.checkpoint(tmp_path, STEPS)
    assert tiny.train(config).names == []
    assert tiny.checkpoint(tmp_path, STEPS) == before


def test_a_signal_leaves_a_checkpoint_and_the_same_run_continues(tiny_data, tmp_path, unbroken):
    config = tiny.tree(tiny_data, tmp_path, run={**EVERY_STEP, "save_every": 0})

    def terminate_in_third_step(method):
        calls = []
        forward = method.forward

        def counted(batch):
            calls.append(1)
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)  # a launcher passes on what all got
            return forward(batch)

        method.forward = counted

    before = signal.getsignal(signal.SIGTERM)
    run = tiny.train(config, wrap=terminate_in_third_step)
    assert run.trained.interrupted
    assert run.trained.progress.step == 3
    assert signal.getsignal(signal.SIGTERM) == before
    tiny.train(config)
    same(unbroken[0], tmp_path)


def test_a_second_ctrl_c_stops_at_once_but_only_if_it_comes_later(monkeypatch):
    with signals.stop_signals() as asked:
        assert not asked()
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)  # the launcher's and the terminal's are one
        assert asked()
        monkeypatch.setattr(signals, "SAME_SIGNAL_S", 0.0)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


# -- real processes ------------------------------------------------------------------------------


def launch(config_file, processes=1):
    """Start recipes/train.py in a process group of its own."""
    arguments, environment = tiny.command("train.py", str(config_file), processes=processes)
    return subprocess.Popen(
        arguments,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_step(output, step, seconds=90.0):
    """Return once so many steps are logged."""
    until = time.monotonic() + seconds
    path = output / "metrics.jsonl"
    while not path.is_file() or path.read_bytes().count(b"\n") < step:
        assert time.monotonic() < until, f"step {step} did not come within {seconds} s"
        time.sleep(0.01)


def test_sigterm_to_the_whole_group_ends_with_143_and_the_same_command_continues(
    tiny_data, tmp_path
):
    run = {"steps": 300, "save_every": 1000, "log_every": 1000}
    config = tiny.tree(tiny_data, tmp_path / "run", run=run, data={"workers": 1})
    file = tiny.write_config(config, tmp_path / "config.yaml")
    process = launch(file)
    wait_for_step(tmp_path / "run", 5)
    os.killpg(process.pid, signal.SIGTERM)  # a scheduler signals the loader's workers too
    asked = time.monotonic()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert time.monotonic() - asked < 30
    assert "global batch 16 = 1 x 16 rows" in said
    assert "the same command goes on from the last checkpoint" in said
    left = len(tiny.metrics(tmp_path / "run"))
    assert 5 <= left < 300

    tiny.train(merge(config, {"data": {"workers": 0}}))
    tiny.train(tiny.tree(tiny_data, tmp_path / "whole", run=run))
    same(tmp_path / "whole", tmp_path / "run", step=300)


@pytest.mark.slow
def test_kill_at_many_moments_loses_no_more_than_the_steps_since_the_last_checkpoint(
    tiny_data, tmp_path
):
    run = {"steps": 120, "save_every": 2, "log_every": 1000}
    config = tiny.tree(tiny_data, tmp_path / "run", run=run)
    file = tiny.write_config(config, tmp_path / "config.yaml")
    reached = 0
    for moment in range(8):
        process = launch(file)
        wait_for_step(tmp_path / "run", reached + 3)
        time.sleep(0.013 * moment)  # somewhere in a step, a write or a rename
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate(timeout=60)
        if moment:
            assert "continuing from" in said
        done = len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
        good, faults = newest_good(tmp_path / "run" / "checkpoints")
        assert good is not None
        assert faults == []
        assert done - int(good.name.removeprefix("step-")) <= 2
        reached = done
    tiny.train(config)
    tiny.train(tiny.tree(tiny_data, tmp_path / "whole", run=run))
    same(tmp_path / "whole", tmp_path / "run", step=120)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_two_launched_processes_leaves_a_checkpoint_and_they_continue(
    tiny_data, tmp_path, number
):
    run = {"steps": 200, "save_every": 1000, "log_every": 1000}
    config = tiny.tree(tiny_data, tmp_path / "run", run=run, data={"workers": 1})
    file = tiny.write_config(config, tmp_path / "config.yaml")
    process = launch(file, processes=2)
    wait_for_step(tmp_path / "run", 5)
    os.killpg(process.pid, number)
    said, _ = process.communicate(timeout=90)
    assert "global batch 16 = 2 x 8 rows" in said
    assert "after a signal" in said
    again, _ = (process := launch(file, processes=2)).communicate(timeout=120)
    assert process.returncode == 0, again
    assert "global batch 16 = 2 x 8 rows" in again
    assert "continuing from" in again
    whole = tiny.tree(tiny_data, tmp_path / "whole", run=run)
    process = launch(tiny.write_config(whole, tmp_path / "whole.yaml"), processes=2)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    same(tmp_path / "whole", tmp_path / "run", step=200)
