"""The report beside a manifest that was imported, and what of it holds of manifests made from that.

`data/photos.jsonl` has `data/photos.jsonl.report.json`. Counts and digests are those of one very
file, so a manifest that is written anew never keeps the report of the one before.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xlcm.data.aside import aside, remove_left

OF_THE_DATA = ("source", "title", "get", "terms", "cite", "notes")
"""What is true of a data set, whatever translations are added to its captions or taken out."""


def report_path(manifest: str | Path) -> Path:
    """Return where the report of a manifest is, whether it is there or not."""
    return Path(f"{manifest}.report.json")


def handed_on(manifest: str | Path) -> dict[str, Any] | None:
    """Return what a manifest's report says of its data set; None without a report."""
    try:
        told = json.loads(report_path(manifest).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(told, dict) or "source" not in told:
        return None
    kept = {key: told[key] for key in OF_THE_DATA if key in told}
    return {**kept, "made_from": Path(manifest).name}


def write_report(manifest: str | Path, told: Mapping[str, Any]) -> None:
    """Write a report beside a manifest, aside and then in place."""
    path = report_path(manifest)
    remove_left(path)
    text = json.dumps(told, ensure_ascii=False, indent=1) + "\n"
    aside(path).write_text(text, encoding="utf-8", errors="backslashreplace")
    os.replace(aside(path), path)
