"""A grid of training runs: what each one is, which are done, and doing the others.

Every run has a folder with `grid.json`, which holds its config and, when it is done, its figures.
So a killed command goes on: finished runs are kept, the others continue from their checkpoints.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import json
import os
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator

from xlcm.config import ConfigError, check, merge, override, read
from xlcm.evaluation.report import RetrievalReport
from xlcm.evaluation.settings import EvaluateConfig
from xlcm.evaluation.setup import judge
from xlcm.training.checkpoint import write_text
from xlcm.training.grid_settings import GridConfig, Tree
from xlcm.training.loop import announce, fit
from xlcm.training.settings import TrainConfig
from xlcm.training.setup import build_loader, build_method, finish, open_data, start, validate
from xlcm.training.stages import is_done, lay_out, mark_done
from xlcm.training.tracking import clock
from xlcm.training.workers import Interrupted, Outcome, forget_processes, run_all

MARKER, LOG = "grid.json", "log.txt"
FREE = {
    "run": {"output", "name", "log_every", "save_every", "keep_checkpoints", "resume", "trackers"},
    "data": {"workers"},
}
"""Keys that change nothing of a run's figures."""


@dataclass
class Run:
    """One run of the grid.

    Args:
        method: as the grid names it.
        label: value of the axis.
        seed: of the run.
        folder: where it is kept.
        tree: its whole config, as `recipes/train.py` would read it.
        tests: configs of the further tests, by name.
        plan: what its figures depend on, as `grid.json` keeps it.
        results: `{"lang", "sum_r"}`, with `test` if there are several; empty: not done.
        seconds: that it took.
    """

    method: str
    label: int | float | str
    seed: int
    folder: Path
    tree: Tree
    tests: dict[str, Tree]
    plan: Tree
    results: list[Tree] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"{self.method}, {self.label}, seed {self.seed}"


# -- planning -----------------------------------------------------------------------------------


def plan_runs(config: GridConfig, prepared: Sequence[str] = ()) -> list[Run]:
    """Return all runs with what is known of them: seed by seed, so that comparisons fill evenly.

    Args:
        config: of the grid.
        prepared: digests of the steps before the runs.

    Raises:
        ConfigError: one line a fault of any run's config.
    """
    base = _base(config)
    runs, faults = [], []
    for seed in config.seeds:
        for value in config.axis.values:
            for method, entry in config.methods.items():
                if entry.only is not None and value.label not in entry.only:
                    continue
                folder = Path(str(config.output)) / method / f"{config.axis.name}-{value.label}"
                folder /= f"seed-{seed}"
                tree = _with(_changed(config, method, base), value.set)
                fixed = {"seed": seed, "output": str(folder), "resume": "auto"}
                fixed["name"] = f"{method}-{value.label}-{seed}"
                tree = merge(tree, {"run": fixed})
                try:
                    tests = _tests(config, lay_out(tree))
                except ConfigError as error:
                    faults += [
                        f"{method}, {value.label}: {line}" for line in str(error).split("\n")
                    ]
                    continue
                plan = {
                    "config": _without_free(tree),
                    "tests": {name: test.model_dump() for name, test in config.tests.items()},
                    "prepare": list(prepared),
                }
                runs.append(Run(method, value.label, seed, folder, tree, tests, plain(plan)))
        if faults:  # the other seeds have the same ones
            raise ConfigError("\n".join(dict.fromkeys(faults)))
    return runs


def _base(config: GridConfig) -> Tree:
    return read(config.base) if isinstance(config.base, str) else config.base


def _changed(config: GridConfig, method: str, base: Tree) -> Tree:
    """Return the base with the changes of a method, those of the one that it is like first."""
    entry = config.methods[method]
    if entry.like is not None:
        base = _changed(config, entry.like, base)
    changes = {
        section: value
        for section, value in entry.model_dump(exclude={"like", "only", "set"}).items()
        if value is not None
    }
    return _with(merge(base, changes), entry.set)


def _with(tree: Tree, keys: Tree) -> Tree:
    """Return a copy in which dotted keys have other values."""
    tree = copy.deepcopy(tree)
    override(tree, [f"{key}={yaml.safe_dump(value)}" for key, value in keys.items()])
    return tree


def _tests(config: GridConfig, stages: Sequence[TrainConfig]) -> dict[str, Tree]:
    """Return the configs of the tests of one run, checked."""
    last = stages[-1]
    judged = last.data.test or last.data.val
    if judged is None and not config.tests:
        raise ConfigError("a run without data.test and data.val has no figures: give one")
    found = {}
    for name, test in config.tests.items():
        tree = {
            "model": f"{last.run.output}/model",
            "data": merge(judged or {}, test.data),
            "evaluation": merge(last.evaluation.model_dump(mode="json"), test.evaluation),
            "workers": last.data.workers,
        }
        check(EvaluateConfig, tree, where=f"tests.{name}")
        found[name] = tree
    return found


def _without_free(tree: Tree) -> Tree:
    kept = {
        section: {k: v for k, v in value.items() if k not in FREE.get(section, ())}
        if isinstance(value, dict)
        else value
        for section, value in tree.items()
    }
    if isinstance(kept.get("stages"), list):
        kept["stages"] = [_without_free(stage) for stage in kept["stages"]]
    return kept


def plain(tree: Any) -> Any:
    """Return nested dicts as JSON gives them back."""
    return json.loads(json.dumps(tree, default=str))


# -- what is done -------------------------------------------------------------------------------


def take_stock(runs: Sequence[Run], *, changed: str, keep: bool) -> None:
    """Fill in the figures of finished runs and tidy their folders; see to those of another config.

    Args:
        runs: all of the grid.
        changed: `refuse` or `redo`, see `GridConfig`.
        keep: leave checkpoints, models and logs.

    Raises:
        ConfigError: naming runs in the folder that had another config, and the keys.
    """
    others: list[str] = []
    for run in runs:
        known = _read_marker(run.folder / MARKER)
        if known is None:
            continue
        keys = _difference(known["plan"], run.plan)
        worthless = not known["results"] and not any(run.folder.rglob("step-*"))
        if keys and (changed == "redo" or worthless):
            shutil.rmtree(run.folder)
        elif keys:
            others.append(f"{run.name} ({', '.join(keys[:4])})")
        elif known["results"]:
            run.results, run.seconds = known["results"], known["seconds"]
            if not keep:
                tidy(run.folder)
    if others:
        shown = "; ".join(others[:5]) + (f"; and {len(others) - 5} more" if others[5:] else "")
        raise ConfigError(
            f"{len(others)} run(s) were made or begun with another config: {shown}. Say "
            "changed=redo to throw them away and run them anew, or give another output"
        )


def _read_marker(path: Path) -> Tree | None:
    if not path.is_file():
        return None
    return json.loads(path.read_text(encoding="utf-8"))


def _difference(old: Tree, new: Tree) -> list[str]:
    """Return the keys that differ; steps that were added to `prepare` since are none."""
    steps = old["prepare"]
    keys = [] if steps == new["prepare"][: len(steps)] else ["prepare"]
    before, now = (flat({**plan["config"], "tests": plan["tests"]}) for plan in (old, new))
    return keys + [k for k in sorted({*before, *now}) if before.get(k, ()) != now.get(k, ())]


def flat(tree: Any, path: str = "") -> dict[str, Any]:
    """Return the values of nested dicts by dotted key."""
    if isinstance(tree, dict) and tree:
        return {
            k: v for key, value in tree.items() for k, v in flat(value, f"{path}{key}.").items()
        }
    return {path.rstrip("."): tree}


def tidy(folder: Path) -> None:
    """Leave `grid.json`, the reports and `metrics.jsonl` of a finished run."""
    for path in folder.iterdir():
        kept = path.name in (MARKER, "metrics.jsonl") or path.match("report*.json")
        if path.is_dir():
            shutil.rmtree(path)
        elif not kept:
            path.unlink()


def rows(config: GridConfig, runs: Sequence[Run]) -> list[Tree]:
    """Return the figures of the finished runs: by method, axis, seed, test, language."""
    methods, labels = list(config.methods), [value.label for value in config.axis.values]
    ordered = sorted(runs, key=lambda r: (methods.index(r.method), labels.index(r.label), r.seed))
    return [
        {"method": run.method, config.axis.name: run.label, "seed": run.seed, **row}
        for run in ordered
        for row in run.results
    ]


def write_rows(found: Sequence[Tree], path: str | Path) -> None:
    """Write figures as JSON, one a line."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n ".join(json.dumps(row, ensure_ascii=False) for row in found)
    write_text(Path(path), f"[\n {lines}\n]\n")


# -- doing --------------------------------------------------------------------------------------


def go_through(
    config: GridConfig,
    runs: Sequence[Run],
    *,
    asked_to_stop: Callable[[], bool],
    say: Callable[[str], None] = print,
) -> list[Outcome]:
    """Do what is not done, write the figures after each run, tell how far it is.

    Returns:
        Runs that failed or were interrupted.
    """
    todo = {run.name: run for run in runs if not run.results}
    say(f"{len(runs)} runs, {len(runs) - len(todo)} of them done before; {config.jobs} at a time")
    tasks = {
        run.name: {"tree": run.tree, "folder": str(run.folder), "plan": run.plan,
                   "tests": run.tests, "keep": config.keep}
        for run in todo.values()
    }  # fmt: skip
    bad: list[Outcome] = []
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
        share = f"{len(runs) - len(todo)}/{len(runs)}"
        say(f"{share}  {run.name}: {told}  in {clock(outcome.seconds)}  left {left}")
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
