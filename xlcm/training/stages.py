"""Several runs in one config, each laid over what they share, later ones built on earlier models.

A file may hold `stages: [{name: teacher, method: ...}, {name: student, ...}]` beside the usual
sections. Each stage is laid over the rest of the file. The last one writes to `run.output`, the
earlier ones to `<run.output>/stages/<name>`, and `stage:teacher` as a value in a later stage is the
folder of that stage's model.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from xlcm.config import ConfigError, check, dump, merge, override, read
from xlcm.registry import nearest
from xlcm.training import checkpoint
from xlcm.training.continued import MAY_CHANGE, same_run
from xlcm.training.settings import TrainConfig

DONE = "done"
"""File in the folder of an earlier stage that has its model and its report."""

REFERENCE = "stage:"
MAY_CHANGE_WHEN_DONE = {
    **MAY_CHANGE,
    "run": MAY_CHANGE["run"] - {"steps", "epochs", "eval_every", "patience"},
}
"""A stage that is done is not run again, so what it would do more of may not change either."""


class Stage(TrainConfig):
    """A part of a training config that is laid over the rest of the file.

    Args:
        name: of its folder, and in `stage:<name>` and `stages.<name>.run.epochs=3`.
        model: what is trained and kept.
        data: what is read, and how rows are made of it.
        method: the losses and how they are weighed.
        optim: optimiser and schedule.
        run: length, checkpoints; not `output`, which is set for the whole file.
        evaluation: of the validation and of the report at the end.
    """

    name: str


def read_stages(path: str | Path, overrides: Sequence[str] = ()) -> list[TrainConfig]:
    """Read a training config: one run for each stage, or the only one of a file without stages.

    Args:
        path: the YAML file.
        overrides: `section.key=value` for all stages, `stages.<name>.section.key=value` for one.

    Raises:
        ConfigError: with the file, the stage and one line a fault.
        FileNotFoundError: if the file, or one that it extends, is missing.
    """
    return lay_out(read(path), overrides, where=str(path))


def lay_out(
    tree: Mapping[str, Any], overrides: Sequence[str] = (), *, where: str = "config"
) -> list[TrainConfig]:
    """Return the runs of a config given as nested dicts, in the order in which they are done.

    The command line comes last: an override goes over what a stage sets itself, too; one that
    names the stage goes over one for all.

    Args:
        tree: the config; left as it is.
        overrides: see `read_stages`.
        where: the file, for messages.

    Raises:
        ConfigError: with one line a fault of any stage.
    """
    shared = copy.deepcopy(dict(tree))
    plain = [text for text in overrides if not text.startswith("stages.")]
    single = [text for text in overrides if text.startswith("stages.")]
    if "stages" not in shared:
        if single:
            raise ConfigError(f"override {single[0]!r}: {where} has no stages")
        override(shared, plain)
        return [check(TrainConfig, shared, where)]
    stages = _by_name(shared.pop("stages"), where)
    own = _overrides_by_name(single, stages)
    output, label = _output(shared, plain)
    folders: dict[str, str] = {}
    found, faults = [], []
    for name, stage in stages.items():
        last = name == next(reversed(stages))
        laid = merge(copy.deepcopy(shared), copy.deepcopy(stage))
        override(laid, [*plain, *own[name]])
        at = f"{where}, stage {name!r}"
        if not isinstance(laid.get("run") or {}, dict):
            raise ConfigError(f"{at}: 'run' must be a section, got {laid['run']!r}")
        folder = output if last else f"{output}/stages/{name}"
        laid["run"] = merge({"name": label}, laid.get("run") or {})
        override(laid, [f"run.output={json.dumps(folder)}"])
        if not last and laid["run"]["name"] == label:
            laid["run"]["name"] = f"{label}-{name}"
        try:
            found.append(check(TrainConfig, _resolved(laid, folders, at), at))
        except ConfigError as error:
            faults.append(str(error))
        folders[name] = f"{folder}/model"
    if faults:
        raise ConfigError("\n".join(faults))
    for key, word in (("precision", "precision"), ("timeout_minutes", "patience")):
        given = sorted({str(getattr(config.run, key)) for config in found})
        if len(given) > 1:
            raise ConfigError(
                f"{where}: run.{key} differs between stages ({', '.join(given)}): all share one "
                f"process, hence one {word}"
            )
    return found


def _by_name(stages: Any, where: str) -> dict[str, dict[str, Any]]:
    """Return name -> the rest of each stage."""
    if not isinstance(stages, list) or not stages:
        raise ConfigError(f"{where}: 'stages' must be a list of at least one, got {stages!r}")
    found: dict[str, dict[str, Any]] = {}
    for place, stage in enumerate(stages):
        name = stage.get("name") if isinstance(stage, dict) else None
        if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name):
            raise ConfigError(
                f"{where}: 'stages.{place}' needs a `name` of letters, digits, - and _ (it names "
                f"the stage's folder), got {name!r}"
            )
        if name in found:
            raise ConfigError(f"{where}: two stages are called {name!r}")
        if isinstance(stage.get("run"), dict) and "output" in stage["run"]:
            raise ConfigError(
                f"{where}, stage {name!r}: 'run.output' is set for the whole file: the last stage "
                "writes there, the others to stages/<name> inside"
            )
        found[name] = {key: value for key, value in stage.items() if key != "name"}
    return found


def _overrides_by_name(overrides: Sequence[str], stages: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return stage -> the overrides for it alone, without `stages.<name>.`."""
    found: dict[str, list[str]] = {name: [] for name in stages}
    for text in overrides:
        name, _, rest = text.removeprefix("stages.").partition(".")
        if name not in stages:
            raise ConfigError(
                f"override {text!r}: no stage is called {name!r}{nearest(name, stages)}; "
                f"known: {', '.join(stages)}"
            )
        given: dict[str, Any] = {}
        if rest.startswith(("run.", "run=")):  # `run={output: there}` says it, too
            override(given, [rest])
        if isinstance(given.get("run"), dict) and "output" in given["run"]:
            raise ConfigError(f"override {text!r}: run.output is set for the whole file")
        found[name].append(rest)
    return found


def _output(shared: Mapping[str, Any], plain: Sequence[str]) -> tuple[str, str]:
    """Return folder and name of the whole run."""
    tree = copy.deepcopy(dict(shared))
    override(tree, plain)
    run = tree.get("run")
    run = run if isinstance(run, dict) else {}
    label = str(run.get("name") or "run")
    return str(run.get("output") or f"runs/{label}").rstrip("/"), label


def _resolved(node: Any, folders: Mapping[str, str], at: str) -> Any:
    """Put the folders of earlier stages' models in the place of `stage:<name>`."""
    if isinstance(node, dict):
        return {key: _resolved(value, folders, at) for key, value in node.items()}
    if isinstance(node, list):
        return [_resolved(value, folders, at) for value in node]
    if isinstance(node, str) and node.startswith("stages:"):
        raise ConfigError(
            f"{at}: {node!r}: a stage's model is {node.replace('stages:', REFERENCE)!r}"
        )
    if not isinstance(node, str) or not node.startswith(REFERENCE):
        return node
    name = node.removeprefix(REFERENCE)
    if name not in folders:
        known = ", ".join(folders) or "none, it is the first"
        raise ConfigError(
            f"{at}: {node!r} is no earlier stage{nearest(name, folders)}; earlier ones: {known}"
        )
    return folders[name]


# -- a run of several stages --------------------------------------------------------------------


def is_done(config: TrainConfig) -> bool:
    """Return whether an earlier stage has its model already.

    Raises:
        ConfigError: if it has, by another config.
    """
    output = Path(str(config.run.output))
    whole = (output / DONE).is_file() and (output / "model" / "config.json").is_file()
    if not whole or config.run.resume == "never":  # which `start` refuses
        return False
    same_run(config, output, MAY_CHANGE_WHEN_DONE)
    return True


def mark_done(accelerator: Accelerator, config: TrainConfig) -> None:
    """Note that an earlier stage has all that it leaves; close its trackers, not the processes."""
    for tracker in accelerator.trackers:
        tracker.finish()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        checkpoint.write_text(Path(str(config.run.output)) / DONE, "")
    accelerator.wait_for_everyone()


def shown(path: str | Path, overrides: Sequence[str] = ()) -> str:
    """Return all that the stages would use as YAML, which loads to the same runs."""
    file, found = read(path), read_stages(path, overrides)
    if "stages" not in file:
        return dump(found[0])
    names = [stage["name"] for stage in file["stages"]]
    folders = {f"{c.run.output}/model": REFERENCE + n for n, c in zip(names, found[:-1])}
    stages = []
    for name, config in zip(names, found):
        tree = _referring(config.model_dump(mode="json"), folders)
        del tree["run"]["output"]
        stages.append({"name": name, **tree})
    return dump({"run": {"output": found[-1].run.output}, "stages": stages})


def _referring(node: Any, names: Mapping[str, str]) -> Any:
    if isinstance(node, dict):
        return {key: _referring(value, names) for key, value in node.items()}
    if isinstance(node, list):
        return [_referring(value, names) for value in node]
    return names.get(node, node) if isinstance(node, str) else node
