"""Whether a run that goes on still has the data, and the teachers, that it began with."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from xlcm.config import ConfigError
from xlcm.data.dataset import Dataset, ManifestDataset
from xlcm.data.rows import Rows
from xlcm.data.subset import Subset
from xlcm.training import checkpoint

FILE = "data.json"


def fingerprint(rows: Rows, val: Dataset | None) -> dict[str, Any]:
    """Return what tells the data of a run from others, by words for a message.

    Pictures and features are not read: a manifest's lines of the split are, byte for byte. Other
    datasets give the ids and captions of their items, of the first and last one where a dataset
    says that all are alike.

    Args:
        rows: the training split.
        val: what picks the best checkpoint.
    """
    found: dict[str, Any] = {"training rows an epoch": int(rows.slots.sum())}
    for name, dataset in (("training", rows.dataset), ("validation", val)):
        if dataset is not None:
            found[f"{name} items"] = len(dataset)
            found[f"content of the {name} items"] = _content(dataset)
    found["rows of each item"] = hashlib.sha256(rows.slots.tobytes()).hexdigest()
    return found


def models_named(spec: Any, key: str = "method") -> dict[str, Any]:
    """Return a digest of the weights in each folder that a spec names, by words for a message.

    A method's teachers are not in its checkpoints; a run that went on with others would be half
    of each.

    Args:
        spec: of the method, resolved.
        key: where it stands in the config.
    """
    if isinstance(spec, dict | list):
        pairs = spec.items() if isinstance(spec, dict) else enumerate(spec)
        return {
            words: digest
            for name, inner in pairs
            for words, digest in models_named(inner, f"{key}.{name}").items()
        }
    file = Path(spec, "model.safetensors") if isinstance(spec, str) and spec else None
    if file is None or not file.is_file():
        return {}
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    return {f"weights of the model in {key}": digest.hexdigest()}


def _content(dataset: Dataset) -> str:
    digest = hashlib.sha256()
    while isinstance(dataset, Subset):
        without = sorted((index, sorted(places)) for index, places in dataset.without.items())
        digest.update(np.ascontiguousarray(dataset.indices).tobytes() + repr(without).encode())
        dataset = dataset.dataset
    if isinstance(dataset, ManifestDataset):
        for index in range(len(dataset)):
            digest.update(dataset.manifest.raw(index))
    else:
        alike = getattr(dataset, "uniform", False)
        for index in (0, len(dataset) - 1) if alike else range(len(dataset)):
            item = dataset[index]
            captions = [(c.id, c.lang, c.text, c.origin) for c in item.captions]
            digest.update(repr((item.id, captions)).encode())
    return digest.hexdigest()


def same_data(output: Path, now: dict[str, Any], *, write: bool) -> None:
    """Compare with the data that a run began with; a run that begins writes them down.

    Args:
        output: the folder of the run.
        now: see `fingerprint`.
        write: this process is the one that writes.

    Raises:
        ConfigError: naming what has changed, if the run has checkpoints of other data or teachers.
    """
    file = output / FILE
    going, _ = checkpoint.newest_good(output / "checkpoints")
    if going is None:
        if write:
            checkpoint.write_text(file, json.dumps(now, indent=1) + "\n")
        return
    if not file.is_file():
        raise ConfigError(
            f"{file} is missing, which says what data the run in {output} began with: put it "
            "back, or give another run.output"
        )
    before = json.loads(file.read_text(encoding="utf-8"))
    changed = [
        f"{what}: {before.get(what)} -> {now.get(what)}" if isinstance(now.get(what), int) else what
        for what in {**before, **now}
        if before.get(what) != now.get(what)
    ]
    if changed:
        raise ConfigError(
            f"the data, or a model that the method uses, have changed since the run in {output} "
            f"began ({'; '.join(changed)}), and the result would be that of neither: give another "
            "run.output, or go back to the old data and models to continue it"
        )
