"""Weights of image backbones on disk: finding, reading and strict loading of safetensors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def locate(weights: str) -> list[Path]:
    """Return the safetensors files of a path: itself, or what a folder holds.

    Raises:
        FileNotFoundError: naming the file that was expected and where.
        ValueError: for a file of another kind.
    """
    path = Path(weights).expanduser()
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ValueError(f"{path}: expected a .safetensors file; pickled weights aren't read")
        return [path]
    if (path / SINGLE).is_file():
        return [path / SINGLE]
    if (path / INDEX).is_file():
        table = json.loads((path / INDEX).read_text(encoding="utf-8"))["weight_map"]
        shards = [path / name for name in sorted(set(table.values()))]
        lost = [shard.name for shard in shards if not shard.is_file()]
        if lost:
            raise FileNotFoundError(
                f"{path / INDEX} names shards that are missing in {path}: {lost}"
            )
        return shards
    if path.is_dir():
        found = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
        raise FileNotFoundError(
            f"no weights in {path}: expected {path / SINGLE} (or {INDEX} with its shards); "
            f"found {found}"
        )
    raise FileNotFoundError(
        f"no weights at {path}: expected a .safetensors file or a folder that holds {SINGLE}"
    )


def read(files: Iterable[Path]) -> dict[str, Tensor]:
    """Return all tensors of the files by name, on the CPU."""
    state: dict[str, Tensor] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            state.update({key: opened.get_tensor(key) for key in opened.keys()})  # noqa: SIM118
    return state


def metadata(file: Path) -> dict[str, Any]:
    """Return what a safetensors file says of its input: create_kwargs, input_size, mean, ...

    Values are text there: JSON, or numbers with commas between them.

    Raises:
        ValueError: naming the file and the key that can't be read.
    """
    with safe_open(file, framework="pt") as opened:
        texts = opened.metadata() or {}
    values: dict[str, Any] = {}
    for key in ("create_kwargs", "input_size", "mean", "std", "crop_pct", "interpolation"):
        if key not in texts:
            continue
        text = texts[key]
        try:
            if key == "interpolation":
                values[key] = text
            elif key == "create_kwargs":
                values[key] = dict(json.loads(text))
            else:
                number = json.loads(text if text.startswith("[") else f"[{text}]")
                values[key] = [float(v) for v in number]
        except (ValueError, TypeError) as error:
            raise ValueError(f"{file}: metadata {key!r} can't be read: {text!r}") from error
    if "input_size" in values:
        values["input_size"] = int(values["input_size"][-1])
    if "crop_pct" in values:
        values["crop_pct"] = values["crop_pct"][0]
    return values


def load(module: nn.Module, state: Mapping[str, Tensor], spare: Iterable[str], where: str) -> None:
    """Load a state dict; nothing may be missing, left over or of another shape.

    Args:
        module: gets the weights.
        state: names as in the module.
        spare: beginnings of names that the module may lack, such as a classifier's.
        where: for messages.

    Raises:
        ValueError: listing the keys that don't fit.
    """
    own = module.state_dict()
    spare = tuple(spare)
    given = {k: v for k, v in state.items() if k in own or not k.startswith(spare)}
    faults = {
        "missing": [k for k in own if k not in given],
        "unexpected": [k for k in given if k not in own],
        "of another shape": [
            f"{k} {(*given[k].shape,)} instead of {(*v.shape,)}"
            for k, v in own.items()
            if k in given and given[k].shape != v.shape
        ],
    }
    if any(faults.values()):
        lines = [f"{len(v)} {k}: {_few(v)}" for k, v in faults.items() if v]
        raise ValueError(
            f"{where} doesn't fit {type(module).__name__}; is it of another backbone, or built "
            "with other backbone_options?\n  " + "\n  ".join(lines)
        )
    module.load_state_dict(given)


def _few(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f", ... {len(names) - 6} more" if len(names) > 6 else "")
