"""Worker processes: what each task leaves, what a fault costs, and how they end."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from accelerate import Accelerator

from xlcm.training.workers import Interrupted, forget_processes, run_all


def work(task):
    """Do what a task says, in a worker."""
    kind, value = task
    if kind == "facts":
        return {"pid": os.getpid(), "threads": torch.get_num_threads(), "value": value}
    if kind == "fail":
        raise RuntimeError(value)
    if kind == "die":
        os.kill(os.getpid(), value)
    if kind == "sleep":
        time.sleep(value)
    if kind == "stopped":
        raise Interrupted
    return None


@pytest.fixture(scope="module")
def outcomes():
    """What two workers made of tasks good and bad, by name, in the order in which they ended."""
    tasks = {
        "first": ("facts", 1),
        "fails": ("fail", "no such thing"),
        "stopped": ("stopped", None),
        "killed": ("die", signal.SIGKILL),
        "then": ("facts", 2),
        "last": ("facts", 3),
    }
    return {outcome.name: outcome for outcome in run_all(work, tasks, jobs=1)}


def test_every_task_has_an_outcome_in_order(outcomes):
    assert list(outcomes) == ["first", "fails", "stopped", "killed", "then", "last"]
    assert [outcomes[name].value["value"] for name in ("first", "then", "last")] == [1, 2, 3]
    assert all(outcome.seconds >= 0 for outcome in outcomes.values())


def test_a_fault_is_told_and_the_others_go_on(outcomes):
    assert outcomes["fails"].fault == "RuntimeError: no such thing"
    assert not outcomes["fails"].interrupted
    assert outcomes["stopped"].interrupted
    assert outcomes["stopped"].fault is None


def test_a_killed_process_costs_its_task_alone(outcomes):
    assert outcomes["killed"].fault == "the process was ended by SIGKILL (too little memory?)"
    assert outcomes["then"].fault is None


def test_a_process_does_many_tasks_on_one_thread(outcomes):
    assert outcomes["then"].value["pid"] == outcomes["last"].value["pid"]
    assert outcomes["then"].value["pid"] != outcomes["first"].value["pid"]
    assert outcomes["first"].value["threads"] == 1


def test_a_wish_to_stop_reaches_the_busy_and_begins_nothing_more():
    begin = time.monotonic()
    found = list(
        run_all(
            work,
            {"long": ("sleep", 300), "never": ("facts", 1)},
            jobs=1,
            asked_to_stop=lambda: time.monotonic() - begin > 0.5,
        )
    )
    assert [(outcome.name, outcome.interrupted) for outcome in found] == [("long", True)]
    assert time.monotonic() - begin < 60


PARENT = """
import sys
sys.path.insert(0, {folder!r})
import test_workers
from xlcm.training.workers import run_all
if __name__ == "__main__":
    tasks = {{"pid": ("facts", 1), "long": ("sleep", 300)}}
    for outcome in run_all(test_workers.work, tasks, jobs=1):
        print(outcome.value["pid"], flush=True)
"""


def test_workers_end_when_the_one_that_started_them_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(folder=os.path.dirname(__file__)))
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert int(parent.stdout.readline()) != parent.pid
    parent.kill()
    # the worker has the same standard output, so this waits for both
    assert parent.communicate(timeout=60) == ("", None)


def test_processes_are_forgotten():
    Accelerator(mixed_precision="no")
    forget_processes()
    assert Accelerator(mixed_precision="bf16").mixed_precision == "bf16"
    forget_processes()
