"""What is done once before a grid of runs: other recipes and commands, each in its own process."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import yaml

from xlcm.config import ConfigError, read
from xlcm.training.checkpoint import write_text
from xlcm.training.grid_settings import GridConfig, Step
from xlcm.training.workers import POLL_S


def prepare(
    config: GridConfig, recipes: Path, *, lock: int, asked_to_stop: Callable[[], bool]
) -> list[str] | None:
    """Do the steps that are not done; an interrupted one continues as its recipe does.

    Args:
        config: of the grid.
        recipes: the folder with `train.py` and `encode.py`.
        lock: open file that a step keeps open, so that the grid's folder stays taken while it runs.
        asked_to_stop: see `xlcm.training.signals`.

    Returns:
        A digest of each step; None if a signal stopped it.

    Raises:
        ConfigError: if a step fails, or was done before with another config.
    """
    digests = [_digest(step) for step in config.prepare]
    for number, (step, digest) in enumerate(zip(config.prepare, digests), 1):
        marker = Path(str(config.output)) / "prepare" / f"{number}.json"
        done = json.loads(marker.read_text(encoding="utf-8")) if marker.is_file() else None
        if done is not None and done["digest"] == digest:
            continue
        if done is not None and config.changed == "refuse":
            raise ConfigError(
                f"prepare.{number - 1} was done with another config ({_said(step)}): say "
                "changed=redo to do it and all runs anew (remove its own output first), or give "
                "another output"
            )
        print(f"prepare {number}/{len(digests)}: {_said(step)}", flush=True)
        code = _run(_command(step, recipes), lock, asked_to_stop)
        if code == 143 or (code != 0 and asked_to_stop()):
            print("stopped; the same command goes on")
            return None
        if code:
            raise ConfigError(f"prepare.{number - 1} ({_said(step)}) ended with exit code {code}")
        marker.parent.mkdir(parents=True, exist_ok=True)
        write_text(marker, json.dumps({"step": _said(step), "digest": digest}) + "\n")
    return digests


def _said(step: Step) -> str:
    pairs = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in step.set.items()]
    name, what = next(
        (name, str(value))
        for name in ("train", "encode", "xlcm")
        if (value := getattr(step, name)) is not None
    )
    return " ".join([name, what, *pairs])


def _digest(step: Step) -> str:
    """Return what changes with the step and the content of its config."""
    path = step.train or step.encode
    content = [step.model_dump(), read(path) if path else None]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _command(step: Step, recipes: Path) -> list[str]:
    if step.xlcm is not None:
        return [sys.executable, "-m", "xlcm.cli", *shlex.split(step.xlcm)]
    name, path = ("train", step.train) if step.train is not None else ("encode", step.encode)
    pairs = [f"{key}={yaml.safe_dump(value)}" for key, value in step.set.items()]
    return [sys.executable, str(recipes / f"{name}.py"), str(path), *pairs]


def _run(command: list[str], lock: int, asked_to_stop: Callable[[], bool]) -> int:
    process = subprocess.Popen(command, pass_fds=(lock,) if os.name == "posix" else ())
    told = False
    while True:
        try:
            return process.wait(timeout=POLL_S)
        except subprocess.TimeoutExpired:
            if asked_to_stop() and not told:
                process.terminate()
                told = True
