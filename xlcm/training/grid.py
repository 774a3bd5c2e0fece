"""A grid of training runs: what each one is, and which are done.

Every run has a folder with `grid.json`, which holds its config and, when it is done, its figures.
`xlcm.training.grid_work` does those that are not.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from xlcm.config import ConfigError, check, merge, override, read
from xlcm.evaluation.settings import EvaluateConfig
from xlcm.training.checkpoint import write_text
from xlcm.training.grid_settings import GridConfig, Tree
from xlcm.training.settings import TrainConfig
from xlcm.training.stages import lay_out

MARKER = "grid.json"
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
    digests: dict[str, str] = {}
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
                    "data": _digests({**tree, "run": None}, digests),
                }
                runs.append(Run(method, value.label, seed, folder, tree, tests, plain(plan)))
        if faults:  # the other seeds have the same ones
            raise ConfigError("\n".join(dict.fromkeys(faults)))
    return runs


def _digests(spec: Any, known: dict[str, str]) -> dict[str, str]:
    """Return the SHA-256 of every file that a spec names, and of stores' indices and models."""
    if isinstance(spec, dict | list):
        inner = spec.values() if isinstance(spec, dict) else spec
        return {path: digest for one in inner for path, digest in _digests(one, known).items()}
    if not isinstance(spec, str):
        return {}
    named = (Path(spec), Path(spec) / "index.json", Path(spec) / "model.safetensors")
    files = [file for file in named if file.is_file()]
    for file in files:
        if str(file) not in known:
            known[str(file)] = hashlib.sha256(file.read_bytes()).hexdigest()
    return {str(file): known[str(file)] for file in files}


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
    try:
        known: Tree = json.loads(path.read_text(encoding="utf-8"))
        missing = {"plan", "results", "seconds"} - set(known)
    except ValueError:
        missing = {"JSON"}
    if missing:
        raise ConfigError(
            f"{path} is not what a run leaves (no {', '.join(sorted(missing))}): remove its "
            "folder, and the run is made anew"
        )
    return known


def _difference(old: Tree, new: Tree) -> list[str]:
    """Return the keys that differ; steps that were added to `prepare` since are none."""
    steps = old["prepare"]
    keys = [] if steps == new["prepare"][: len(steps)] else ["prepare"]
    before, now = (flat({**plan["config"], "tests": plan["tests"]}) for plan in (old, new))
    data, files = old.get("data", {}), new["data"]
    keys += [f"content of {file}" for file in files if data.get(file, files[file]) != files[file]]
    other = [key for key in sorted({*before, *now}) if before.get(key, ()) != now.get(key, ())]
    # a section that was empty or null before differs as a whole: its keys say more
    return keys + [key for key in other if not any(k.startswith(f"{key}.") for k in other)]


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
