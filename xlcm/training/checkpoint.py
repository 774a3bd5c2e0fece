"""Complete training state on disk: written aside, flushed, renamed; no pickle.

A checkpoint is a folder `step-00000120` with `model.safetensors`, `optimizer.safetensors` and
`state.json`, which lists the size of each file. Beside it lie the best weights that its state
names by `best_step`, such as `best-00000080.safetensors`. Model and optimiser states are
gathered whole, so that they are the same on one process and on many, with moments spread or not.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from xlcm.config import ConfigError
from xlcm.files import readable_like
from xlcm.training.sharded import fill_state, names_of_state, whole_state

FORMAT = 1


def save(
    accelerator: Accelerator,
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write the checkpoint of a step; every process must call it.

    Args:
        accelerator: knows which process writes.
        folder: of all checkpoints of the run.
        step: optimiser steps done.
        model: as prepared by accelerate.
        optimizer: the same.
        state: plain data: counters, data position, best score.
        keep: older checkpoints beyond so many are removed.

    Raises:
        OSError: if the folder can't be written; the message names it. What was there stays.
    """
    weights, moments = whole_state(model, optimizer)
    final = folder / f"step-{step:08d}"
    if accelerator.is_main_process:
        aside = folder / f".{final.name}.tmp"
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            tensors, plain = flatten(moments)
            write_tensors(weights, aside / "model.safetensors")
            write_tensors(tensors, aside / "optimizer.safetensors")
            sizes = {file.name: file.stat().st_size for file in sorted(aside.iterdir())}
            content = {"format": FORMAT, "step": step, "files": sizes}
            write_text(
                aside / "state.json",
                json.dumps({**content, "state": dict(state), "optimizer": plain}, indent=1),
            )
            shutil.rmtree(final, ignore_errors=True)
            os.replace(aside, final)
            _flush_folder(folder)
        except OSError as error:
            shutil.rmtree(aside, ignore_errors=True)
            raise OSError(f"could not write the checkpoint {final}: {error}") from error
        # a newer one was not whole when the run went on from an older: it doesn't count
        for old in [known for known in steps(folder) if known <= step][:-keep]:
            shutil.rmtree(folder / f"step-{old:08d}")
        _drop_best(folder)
    accelerator.wait_for_everyone()
    return final


def steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints in a folder, oldest first, whether good or not."""
    return sorted(
        int(path.name.removeprefix("step-"))
        for path in folder.glob("step-*")
        if path.name.removeprefix("step-").isdigit()
    )


def newest_good(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint that is whole, and a sentence for each newer one that is not."""
    faults: list[str] = []
    for step in reversed(steps(folder)):
        path = folder / f"step-{step:08d}"
        fault = _fault(path)
        if fault is None:
            return path, faults
        faults.append(f"checkpoint {path} is not whole and is passed over: {fault}")
    return None, faults


def _fault(path: Path) -> str | None:
    try:
        content = json.loads((path / "state.json").read_text(encoding="utf-8"))
        for name, size in content["files"].items():
            found = (path / name).stat().st_size
            if found != size:
                return f"{name} has {found} bytes instead of {size}"
        if content["format"] > FORMAT:
            return f"format {content['format']} is newer than this version of xlcm knows"
    except (OSError, ValueError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def load(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, dict[str, Any]]:
    """Fill model and optimiser from a checkpoint; return its step and its plain data.

    Raises:
        ConfigError: if the checkpoint lacks a parameter of the model, has one too many, or one of
            another shape; naming it.
    """
    content = json.loads((path / "state.json").read_text(encoding="utf-8"))
    weights = load_file(path / "model.safetensors")
    moments = unflatten(load_file(path / "optimizer.safetensors"), content["optimizer"])
    faults = _other_names(weights, names_of_state(model))
    if faults:
        raise ConfigError(_misfit(path, faults))
    try:
        fill_state(model, optimizer, weights, moments)
    except (RuntimeError, KeyError) as error:
        raise ConfigError(_misfit(path, str(error))) from error
    return int(content["step"]), content["state"]


def _other_names(there: Iterable[str], wanted: Iterable[str]) -> str:
    """Say which names the checkpoint lacks and which it has too many; empty if none."""
    lacks, more = sorted(set(wanted) - set(there)), sorted(set(there) - set(wanted))
    return "; ".join(
        f"it {verb} {', '.join(names[:5])}" + (f" and {len(names) - 5} more" if names[5:] else "")
        for verb, names in (("lacks", lacks), ("has beyond it", more))
        if names
    )


def _misfit(path: Path, fault: str) -> str:
    return (
        f"the checkpoint {path} does not fit this model: {fault}. The config, or the code of the "
        "model or the method, has changed since it was written: give another run.output"
    )


# -- the best weights ----------------------------------------------------------------------------


def write_best(tensors: Mapping[str, Any], folder: Path, step: int) -> None:
    """Write the weights of a step, the best so far; on one process only.

    Those that some checkpoint names stay: a run that goes on from it needs them.

    Raises:
        OSError: naming the file.
    """
    write_tensors(tensors, folder / _best_name(step))
    _drop_best(folder, but=step)


def best_weights(folder: Path, step: int) -> Path:
    """Return the file with the best weights, which are those of a step.

    Raises:
        FileNotFoundError: if it is gone.
    """
    path = folder / _best_name(step)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: it holds the best weights so far, those of step {step}, which "
            "the checkpoint needs. Put it back, or begin anew in another run.output"
        )
    return path


def _best_name(step: int) -> str:
    return f"best-{step:08d}.safetensors"


def _drop_best(folder: Path, but: int = 0) -> None:
    """Remove the best weights that no checkpoint names, except those of step `but`."""
    named = {_best_name(but)}
    for step in steps(folder):
        # a checkpoint that can't be read can't be continued either
        with contextlib.suppress(OSError, ValueError, KeyError):
            text = (folder / f"step-{step:08d}" / "state.json").read_text(encoding="utf-8")
            named.add(_best_name(json.loads(text)["state"]["best_step"]))
    for path in folder.glob("best-*.safetensors"):
        if path.name not in named:
            path.unlink()


# -- nested state dicts without pickle -----------------------------------------------------------


def flatten(tree: Any) -> tuple[dict[str, Tensor], Any]:
    """Split nested dicts and lists into tensors by path and a skeleton that JSON can hold."""
    tensors: dict[str, Tensor] = {}

    def walk(node: Any, path: str) -> Any:
        if isinstance(node, Tensor):
            tensors[path] = node
            return {"__tensor__": path}
        if isinstance(node, Mapping):
            return {str(key): walk(value, f"{path}/{key}") for key, value in node.items()}
        if isinstance(node, list | tuple):
            return [walk(value, f"{path}/{position}") for position, value in enumerate(node)]
        return node

    return tensors, walk(tree, "")


def unflatten(tensors: Mapping[str, Tensor], skeleton: Any) -> Any:
    """Return what `flatten` took apart (tuples come back as lists)."""
    if isinstance(skeleton, dict):
        if set(skeleton) == {"__tensor__"}:
            return tensors[skeleton["__tensor__"]]
        return {key: unflatten(tensors, value) for key, value in skeleton.items()}
    if isinstance(skeleton, list):
        return [unflatten(tensors, value) for value in skeleton]
    return skeleton


def write_tensors(tensors: Mapping[str, Any], path: Path) -> None:
    """Write tensors aside, flush them to the disk and rename them over `path`.

    Raises:
        OSError: naming `path`, which is left as it was.
    """
    aside = path.with_name(f".{path.name}.tmp")
    # copies, because safetensors refuses tensors that share memory (tied embeddings)
    copies = {k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(copies, aside)
        readable_like(aside, path.parent)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise OSError(f"could not write {path}: {error}") from error


def write_text(path: Path, text: str) -> None:
    """Write a whole file aside, flush it to the disk and rename it over `path`."""
    aside = path.with_name(f".{path.name}.tmp")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def _flush_folder(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
