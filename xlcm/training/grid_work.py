"""Doing the runs of a grid in worker processes, and what is left of each.

The command may be killed at any moment: finished runs have their figures in `grid.json`, the
others continue from their checkpoints.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from accelerate import Accelerator

from xlcm.config import ConfigError, check
from xlcm.evaluation.report import RetrievalReport
from xlcm.evaluation.settings import EvaluateConfig
from xlcm.evaluation.setup import judge
from xlcm.training.checkpoint import write_text
from xlcm.training.grid import MARKER, Run, rows, tidy, write_rows
from xlcm.training.grid_settings import GridConfig, Tree
from xlcm.training.loop import announce, fit
from xlcm.training.settings import TrainConfig
from xlcm.training.setup import build_loader, build_method, finish, open_data, start, validate
from xlcm.training.stages import is_done, lay_out, mark_done
from xlcm.training.tracking import clock
from xlcm.training.workers import Interrupted, Outcome, forget_processes, run_all

LOG = "log.txt"


def go_through(
    config: GridConfig, runs: Sequence[Run], *, asked_to_stop: Callable[[], bool]
) -> list[Outcome]:
    """Do what is not done, write the figures after each run, tell how far it is.

    Returns:
        Runs that failed or were interrupted.
    """
    todo = {run.name: run for run in runs if not run.results}
    before = len(runs) - len(todo)
    print(f"{len(runs)} runs, {before} of them done before; {config.jobs} at a time", flush=True)
    tasks = {
        run.name: {"tree": run.tree, "folder": str(run.folder), "plan": run.plan,
                   "tests": run.tests, "keep": config.keep}
        for run in todo.values()
    }  # fmt: skip
    bad: list[Outcome] = []
    if before:
        write_rows(rows(config, runs), str(config.results))
    for outcome in run_all(do, tasks, jobs=config.jobs, asked_to_stop=asked_to_stop):
        run = todo.pop(outcome.name)
        if outcome.fault is not None or outcome.interrupted:
            bad.append(outcome)
            told = outcome.fault or "stopped; it goes on with the same command"
        else:
            run.results, run.seconds = outcome.value, outcome.seconds
            write_rows(rows(config, runs), str(config.results))
            told = "  ".join(
                f"{row.get('test', '')} {row['lang']} {row['sum_r']:.1f}".strip()
                for row in run.results
            )
        left = clock(left_s(runs, list(todo.values()), config.jobs))
        print(
            f"{len(runs) - len(todo)}/{len(runs)}  {run.name}: {told}  "
            f"in {clock(outcome.seconds)}  left {left}",
            flush=True,
        )
    return bad


def left_s(runs: Sequence[Run], todo: Sequence[Run], jobs: int) -> float:
    """Return about how many seconds the rest takes: as long as runs of the same method took."""
    taken: dict[str, list[float]] = {}
    for run in runs:
        if run.results:
            taken.setdefault(run.method, []).append(run.seconds)
    means = {method: sum(found) / len(found) for method, found in taken.items()}
    overall = sum(means.values()) / len(means) if means else 0.0
    return sum(means.get(run.method, overall) for run in todo) / jobs


def do(task: Tree) -> list[Tree]:
    """Train, judge and tidy one run, in a worker or in this process; return its figures.

    Args:
        task: `tree`, `folder`, `plan`, `tests` and `keep` of a `Run`.

    Raises:
        Interrupted: if a signal stopped it.
    """
    folder = Path(task["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    marker = {"plan": task["plan"], "results": [], "seconds": 0.0}
    write_text(folder / MARKER, json.dumps(marker, indent=1))
    begin = time.monotonic()
    with _log(folder / LOG):
        *earlier, last = lay_out(task["tree"])
        for config in earlier:
            if not is_done(config):
                mark_done(train(config), config)
        train(last).end_training()
        found = _figures(folder, task["tests"])
    marker.update(results=found, seconds=round(time.monotonic() - begin, 1))
    write_text(folder / MARKER, json.dumps(marker, indent=1))
    if not task["keep"]:
        tidy(folder)
    gc.collect()
    return found


def train(config: TrainConfig) -> Accelerator:
    """Train one stage and leave its model and report, as `recipes/train.py` does.

    Raises:
        Interrupted: if a signal stopped it; its checkpoint is written.
    """
    forget_processes()
    accelerator = start(config)
    data = open_data(accelerator, config)
    method = build_method(accelerator, config, data.rows)
    loader = build_loader(accelerator, config.data, config.run, data.rows, method)
    accelerator.print(announce(loader, config.run, method))
    check_with = partial(validate, config, data) if data.val is not None else None
    trained = fit(accelerator, method, loader, config.optim, config.run, evaluate=check_with)
    if trained.interrupted:
        raise Interrupted(str(config.run.output))
    finish(accelerator, config, data, trained.retriever)
    return accelerator


def _figures(folder: Path, tests: dict[str, Tree]) -> list[Tree]:
    """Return what the report says, or what the tests find."""
    if not tests:
        report = RetrievalReport.load(folder)
        return [{"lang": lang, "sum_r": round(value, 4)} for lang, value in report.sum_r.items()]
    found = []
    for name, tree in tests.items():
        judged = judge(check(EvaluateConfig, tree), Accelerator().device).report
        text = json.dumps(judged.to_dict(), indent=2, ensure_ascii=False)
        write_text(folder / f"report-{name}.json", text + "\n")
        sums = judged.sum_r.items()
        found += [{"test": name, "lang": lang, "sum_r": round(value, 4)} for lang, value in sums]
    return found


@contextlib.contextmanager
def _log(path: Path) -> Iterator[None]:
    """Write into a file what would go to the screen, and how it failed."""
    with (
        path.open("a", encoding="utf-8", buffering=1) as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        try:
            yield
        except Exception:
            traceback.print_exc()
            raise


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[int]:
    """Hold a folder for this process and those it hands the yielded file to.

    Raises:
        ConfigError: if another command works in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        with contextlib.suppress(ImportError):  # only on POSIX
            import fcntl

            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"another command works in {folder}: wait for it, or give another output"
                ) from None
        yield handle
    finally:
        os.close(handle)
