"""What a run may be continued with, and what not: its config is compared with the folder's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from xlcm.config import ConfigError
from xlcm.training.settings import TrainConfig

MAY_CHANGE = {
    "run": {"output", "name", "steps", "epochs", "log_every", "eval_every", "save_every",
            "keep_checkpoints", "patience", "resume", "max_nonfinite", "trackers", "micro_batch",
            "length_pieces", "compile", "timeout_minutes"},
    "data": {"workers", "test"},
    "evaluation": {"bootstrap", "batch_size", "source_lang", "visual", "fusion", "sheet_langs",
                   "sheet_queries"},
}  # fmt: skip
"""Keys that a run may be continued with other values of.

The rest of `evaluation` says what the scores of validations are, of which the best one is kept: it
may change only where there is no validation.
"""


def same_run(
    config: TrainConfig, output: Path, may_change: Mapping[str, set[str]] = MAY_CHANGE
) -> None:
    """Compare with the config that a folder's run began with.

    Args:
        config: of now.
        output: the folder, with its `config.yaml`.
        may_change: section -> keys that may differ.

    Raises:
        ConfigError: naming the keys that differ and must not.
    """
    old = yaml.safe_load((output / "config.yaml").read_text(encoding="utf-8"))
    before, now = flat(old), flat(config.model_dump(mode="json"))
    changed = []
    for key in sorted({*before, *now}):
        section, _, rest = key.partition(".")
        free = rest.split(".")[0] in may_change.get(section, ())
        if section == "evaluation":
            picks = rest.startswith("fusion") and config.run.select == "fused_text_to_visual"
            free = config.data.val is None or (free and not picks)
        if not free and before.get(key) != now.get(key):
            changed.append(f"{key}: {before.get(key)!r} -> {now.get(key)!r}")
    if changed:
        raise ConfigError(
            f"{output} holds a run with another config ({'; '.join(changed[:6])}): give another "
            "run.output, or go back to the old values to continue it"
        )


def flat(tree: Any, path: str = "") -> dict[str, Any]:
    """Return nested settings by their full names, what is no plain value as text."""
    if isinstance(tree, dict) and tree:
        return {
            k: v for key, value in tree.items() for k, v in flat(value, f"{path}{key}.").items()
        }
    return {path.rstrip("."): tree if isinstance(tree, int | float | str | bool) else str(tree)}
