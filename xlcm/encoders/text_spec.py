"""Where a text tower's config names its tokenizer: in the innermost tower, if one holds another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def innermost(spec: str | Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of the tower that owns the tokenizer: `spec`, or what its `encoder` says.

    Args:
        spec: of a text tower, or the name alone.
    """
    spec = {"name": spec} if isinstance(spec, str) else spec
    return innermost(spec["encoder"]) if "encoder" in spec else dict(spec)


def with_tokenizer(
    spec: str | Mapping[str, Any], tokenizer: str | Mapping[str, Any]
) -> dict[str, Any]:
    """Return a copy of a text tower's config with this tokenizer in its innermost tower."""
    spec = {"name": spec} if isinstance(spec, str) else spec
    if "encoder" in spec:
        return {**spec, "encoder": with_tokenizer(spec["encoder"], tokenizer)}
    return {**spec, "tokenizer": tokenizer}
