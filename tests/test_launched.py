"""Two launched processes: how long they wait, what they say of a fault, and with whom they end."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext

import pytest
import tiny
import torch.distributed as dist
from accelerate.commands.launch import launch_command_parser
from accelerate.utils.launch import prepare_simple_launcher_cmd_env
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from xlcm import launched
from xlcm.data.transfer import ahead

FAILING = tiny.REPOSITORY / "tests" / "launched_faults.py"
SAID = "run.something: no such thing"


def test_a_fault_of_one_process_is_the_last_word_and_the_other_says_one_line():
    command, environment = tiny.command(str(FAILING), "10", processes=2)
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    said, summary = done.stdout.split("launched_faults.py FAILED")
    assert f"ConfigError: {SAID}" in summary.split("Root Cause")[1]
    assert said.count(SAID) == 1
    assert said.count("Traceback") == 1, "the launcher's own"
    lines = [line for line in said.splitlines() if "can't reach the others" in line]
    assert len(lines) == 1
    assert "process 0 of 2" in lines[0]
    # what the group of both was told: the config's 10 minutes, which is not torch's default here
    assert "timeout 600.0 s" in said


@pytest.fixture
def second(tmp_path, monkeypatch):
    """This process is the second of two; returns the file that the launcher will read."""
    file = tmp_path / "attempt_0" / "1" / "error.json"
    file.parent.mkdir(parents=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv(launched.ERROR_FILE, str(file))
    monkeypatch.setattr(launched, "ECHO_S", 0.0)
    return file


def test_a_fault_that_several_processes_have_is_told_by_the_first(second, monkeypatch, capsys):
    assert not launched.is_told(ValueError(SAID), "train.py")
    failure = ProcessFailure(1, 1, 1, str(second))  # as torch's launcher reads it
    assert failure.message["message"] == f"ValueError: {SAID}"
    other = second.parents[1] / "0" / "error.json"
    other.parent.mkdir()
    monkeypatch.setenv(launched.ERROR_FILE, str(other))
    assert launched.is_told(ValueError(SAID), "train.py")
    assert capsys.readouterr().err == "train.py: process 1 of 2 ended with the same fault\n"
    assert not other.exists()
    assert not launched.is_told(ValueError("something else"), "train.py")
    assert other.exists()


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed"
        ),
        dist.DistBackendError("NCCL error\nLast error:\nDuplicate GPU detected"),
        dist.DistNetworkError("The client socket has timed out"),
    ],
)
def test_losing_the_others_is_a_line_and_no_fault_of_its_own(error, second, capsys):
    assert launched.is_told(error, "train.py")
    said = capsys.readouterr().err
    assert "process 1 of 2 can't reach the others" in said
    assert str(error) in said
    assert not second.exists()


def test_a_process_alone_tells_its_fault_itself(second, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not launched.is_told(RuntimeError("gloo/transport"), "train.py")
    assert capsys.readouterr() == ("", "")
    assert not second.exists()


@pytest.fixture
def told(monkeypatch):
    """Whatever lasts takes long; returns what is said of it, and what is set when it is said."""
    said, once = [], threading.Event()
    monkeypatch.setattr(launched, "LONG_S", 0.01)
    monkeypatch.setattr(launched, "_say", lambda line: (said.append(line), once.set()))
    return said, once


def test_a_process_says_where_it_waits_if_a_step_lasts_long(second, told):
    said, once = told
    with launched.watched() as at:
        at("step 7")
        next(ahead([1], lambda batch: once.wait(60), lambda sent: sent))
    assert once.is_set()
    line = r"process 1 of 2: step 7 has lasted \d+ minutes, at .*transfer\.py:\d+ \(ahead\)"
    assert re.fullmatch(line, said[0])


def test_training_says_what_it_is_at(tiny_data, tmp_path, monkeypatch):
    at = []
    monkeypatch.setattr("xlcm.training.loop.watched", lambda: nullcontext(at.append))
    config = tiny.tree(tiny_data, tmp_path, run={"steps": 2, "eval_every": 2})
    tiny.train(config, evaluate=lambda model: tiny.report(1.0))
    later = ["the validation after step 2", "the checkpoint after step 2"]
    assert at == ["step 1", "step 2", *later]


def test_a_process_alone_waits_for_none(second, told, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    threads = threading.active_count()
    with launched.watched() as at:
        at("step 7")
        assert threading.active_count() == threads


def test_every_recipe_that_opens_processes_is_patient():
    opened = {
        path.name: text.count("Accelerator(kwargs_handlers=patient())")
        for path in sorted((tiny.REPOSITORY / "recipes").glob("*.py"))
        if "Accelerator(" in (text := path.read_text())
    }
    assert opened == {"encode.py": 1, "evaluate.py": 1, "translate.py": 1}  # train.py: the config


def test_processes_whose_launcher_is_killed_leave_a_checkpoint_and_end(tiny_data, tmp_path):
    run = {"steps": 100_000, "save_every": 100_000, "log_every": 100_000}
    config = tiny.write_config(tiny.tree(tiny_data, tmp_path / "run", run=run), tmp_path / "c.yaml")
    command, environment = tiny.command("train.py", str(config), processes=2)
    launcher = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        until, steps = time.monotonic() + 90, tmp_path / "run" / "metrics.jsonl"
        while not steps.is_file() or steps.read_bytes().count(b"\n") < 3:
            assert time.monotonic() < until
            time.sleep(0.02)
        launcher.kill()
        said, _ = launcher.communicate(timeout=60)  # the end of what both processes say
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)
    assert f"the launcher (process id {launcher.pid}) is gone" in said
    assert "the same command goes on from the last checkpoint" in said
    assert list((tmp_path / "run" / "checkpoints").glob("step-*/state.json"))


STOPPABLE = """
import signal, sys, time
from xlcm.launched import end_with_launcher
signal.signal(signal.SIGTERM, lambda *_: sys.exit("a checkpoint"))
end_with_launcher()
print("ready", flush=True)
time.sleep(60)
"""


def test_a_single_process_ends_with_accelerate_which_passes_no_sigterm_on():
    asked = launch_command_parser().parse_args(["--dynamo_backend", "no", "train.py"])
    asked.use_cpu, asked.mixed_precision, asked.num_machines = True, "no", 1  # filled in later
    _, environment = prepare_simple_launcher_cmd_env(asked)
    waits = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    launcher = subprocess.Popen(
        [sys.executable, "-c", waits, STOPPABLE], text=True, start_new_session=True,
        env={**environment, "PYTHONPATH": str(tiny.REPOSITORY)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert launcher.stdout.readline() == "ready\n"
        launcher.terminate()
        _, said = launcher.communicate(timeout=30)  # the end of what its process says
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)
    assert f"the launcher (process id {launcher.pid}) is gone" in said
    assert said.endswith("a checkpoint\n")
