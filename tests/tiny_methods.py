"""Configs of every method for the made-up data of `tiny`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny

from xlcm.config import merge

RUN = {"steps": 6}
PLAIN_TEXT = {"dropout": 0.0, "tokenizer": {"max_tokens": 64}}  # draws differ between processes
TARGETS = {"langs": ["de", "fr"], "origin": ["mt"], "of": "source", "every": True}
HEAD = {"name": "batch_norm", "dropout": 0.0}
NORMED = {"model": {"text_head": HEAD, "image_head": HEAD}}  # NRCCR's, but for what they draw


def nrccr(data: Path, output: Path) -> dict[str, Any]:
    """NRCCR with back-translations."""
    text = {
        "name": "refined", "width": 16, "heads": 2, "key_width": 8, "positions": 64, "dropout": 0.0,
        "encoder": merge(tiny.tree(data, output)["model"]["text"], PLAIN_TEXT),
    }  # fmt: skip
    views = {
        "target": {"langs": ["de", "fr"], "origin": ["mt"], "of": "source"},
        "back": {"langs": ["en"], "origin": ["back"], "of": "target"},
    }
    return tiny.tree(
        data, output, **tiny.translated(data, **views), run=RUN, model={"text": text},
        method={"name": "nrccr"},
    )  # fmt: skip


def cl2cm(data: Path, output: Path, **options: Any) -> dict[str, Any]:
    """CL2CM on the same towers and captions."""
    return merge(nrccr(data, output), {"method": {"name": "cl2cm", **options}})


def languages(
    data: Path,
    output: Path,
    method: dict[str, Any],
    manifest: Path | None = None,
    **source: Any,
) -> dict[str, Any]:
    """A method of every language at once; a manifest may lack some captions."""
    sections = tiny.translated(data, targets={**TARGETS, "optional": manifest is not None})
    sections["data"]["views"]["source"] |= source
    if manifest is not None:
        sections["data"]["train"] |= {"path": str(manifest), "image_root": str(data)}
    return tiny.tree(data, output, **sections, run=RUN, model={"text": PLAIN_TEXT}, method=method)
