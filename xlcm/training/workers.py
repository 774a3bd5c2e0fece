"""Processes that import once and do one task after another, so that a fault costs one task."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any

from accelerate.state import AcceleratorState, GradientState, PartialState

POLL_S = 1.0  # how often a wish to stop is asked for


class Interrupted(Exception):
    """A task was stopped by a signal and can be continued."""


@dataclass
class Outcome:
    """How a task ended.

    Args:
        name: of the task.
        value: what the function returned.
        fault: why it failed, in a line; None: it did not.
        interrupted: a signal stopped it.
        seconds: that it took.
    """

    name: str
    value: Any = None
    fault: str | None = None
    interrupted: bool = False
    seconds: float = 0.0


def forget_processes() -> None:
    """Let the next Accelerator be made anew: accelerate keeps its state in classes.

    For several runs in one process, which may differ in precision and trackers.
    """
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState._reset_state()


def run_all(
    function: Callable[[Any], Any],
    tasks: Mapping[str, Any],
    *,
    jobs: int,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Outcome]:
    """Do tasks in worker processes with one thread each; yield each one's outcome as it ends.

    When a stop is asked for, the busy processes get SIGTERM, no task is begun any more, and what
    they make of it is yielded. If this process is killed, the workers end by themselves.

    Args:
        function: importable by name; called with a task in a worker.
        tasks: by name, done in this order; plain data.
        jobs: how many at a time.
        asked_to_stop: see `xlcm.training.signals`.
    """
    waiting = list(tasks.items())
    workers: list[_Worker] = []
    stopping = False
    try:
        while True:
            if asked_to_stop() and not stopping:
                stopping = True
                for worker in workers:
                    worker.process.terminate()
            while waiting and not stopping and len([w for w in workers if w.task]) < jobs:
                idle = [w for w in workers if w.task is None] or [_Worker(function)]
                if idle[0] not in workers:
                    workers.append(idle[0])
                idle[0].give(*waiting.pop(0))
            busy = [worker for worker in workers if worker.task]
            if not busy:
                return
            handles = [h for w in busy for h in (w.pipe, w.process.sentinel)]
            ready = connection.wait(handles, timeout=POLL_S)
            for worker in busy:
                if worker.pipe in ready or worker.process.sentinel in ready:
                    outcome = worker.take(stopping or asked_to_stop())
                    if not worker.alive:
                        workers.remove(worker)
                    yield outcome
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    """One process and what it is busy with."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads badly
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(function, theirs))
        self.task: str | None = None
        self.alive = True
        self.since = 0.0
        with _one_thread():
            self.process.start()
        theirs.close()  # so that an ended process is seen as the end of the pipe

    def give(self, name: str, task: Any) -> None:
        self.task, self.since = name, time.monotonic()
        with contextlib.suppress(BrokenPipeError):  # it has died: `take` says so
            self.pipe.send(task)

    def take(self, stopping: bool) -> Outcome:
        assert self.task is not None
        outcome = Outcome(self.task, seconds=time.monotonic() - self.since)
        try:
            kind, value = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            self.alive = False
            kind, value = "fault", _last_words(self.process.exitcode)
            kind = "interrupted" if stopping else kind
        self.task = None
        if kind == "done":
            outcome.value = value
        elif kind == "fault":
            outcome.fault = value
        else:
            outcome.interrupted = True
        return outcome

    def end(self) -> None:
        if self.task is not None:
            self.process.kill()
        self.pipe.close()
        self.process.join()


def _last_words(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-code).name
            memory = " (too little memory?)" if name == "SIGKILL" else ""
            return f"the process was ended by {name}{memory}"
    return f"the process ended with exit code {code} and said nothing"


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Let a process that is started now compute on one thread, its libraries included."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(function: Callable[[Any], Any], pipe: connection.Connection) -> None:
    """Do what comes through the pipe until it ends."""
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            task = pipe.recv()
        except (EOFError, KeyboardInterrupt):  # Ctrl-C reaches the whole group
            return
        try:
            answer = ("done", function(task))
        except (Interrupted, KeyboardInterrupt):
            answer = ("interrupted", None)
        except Exception as error:
            answer = ("fault", f"{type(error).__name__}: {error}")
        forget_processes()
        try:
            pipe.send(answer)
        except BrokenPipeError:
            return


def _end_with_parent() -> None:
    """End this process at once if the one that started it is gone: another may do its work."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
