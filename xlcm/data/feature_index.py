"""The index of a feature store, and what its writer and its reader both know."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeAlias

from safetensors import SafetensorError, safe_open

from xlcm.data.manifest import DataError
from xlcm.registry import nearest

Kind: TypeAlias = Literal["pooled", "tokens", "views"]
VERSION = 1
NEEDED = ("kind", "dim", "dtype", "views", "encoder", "count", "complete", "shards")
NEEDED_OF_SHARDS = ("file", "items", "sha256")
INDEX = "index.json"


def read_index(folder: Path) -> dict[str, Any]:
    """Return the index of a store.

    Raises:
        DataError: if it is no feature store, or of another version.
    """
    file = folder / INDEX
    if not folder.exists():
        beside = folder.parent.iterdir() if folder.parent.is_dir() else ()
        raise DataError(f"{folder} is no feature store: there is no such file or folder"
                        + nearest(folder.name, sorted(p.name for p in beside)))  # fmt: skip
    if not file.is_file():
        raise DataError(f"{folder} is no feature store: there is no {INDEX}; make one with "
                        "recipes/encode.py")  # fmt: skip
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
        version = index["version"]
        lacking = {*NEEDED} - index.keys() if version == VERSION else set()
        for shard in index["shards"] if version == VERSION and not lacking else ():
            lacking |= {*NEEDED_OF_SHARDS} - shard.keys()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: not the index of a feature store: {error!r}") from error
    if version != VERSION:
        raise DataError(f"{file}: format version {version}; this xlcm reads version {VERSION}")
    if lacking:
        raise DataError(f"{file}: not the index of a feature store, or damaged: it has no "
                        f"{', '.join(sorted(lacking))}")  # fmt: skip
    return index


def shard_sources(file: Path) -> dict[str, int]:
    """Return what `FeatureWriter.add` was told of the sources behind a shard's keys, 0 if nothing.

    Raises:
        DataError: if it can't be read.
    """
    keys = shard_keys(file)
    with safe_open(file, framework="np") as shard:
        there = "sources" in shard.keys()  # noqa: SIM118
        told = shard.get_tensor("sources").tolist() if there else [0] * len(keys)
    return dict(zip(keys, told))


def shard_keys(file: Path) -> list[str]:
    """Return the keys of a shard, in order.

    Raises:
        DataError: if it can't be read.
    """
    try:
        with safe_open(file, framework="np") as shard:
            keys: bytes = shard.get_tensor("keys").tobytes()
            return keys.decode().split("\n")
    except (SafetensorError, OSError) as error:
        raise DataError(f"{file}: this shard can't be read ({error}); delete the folder and "
                        "encode again") from error  # fmt: skip


def sha256_of(file: Path, on_mib: Callable[[int], None] = lambda _: None) -> str:
    """Return the checksum of a file, in hexadecimal.

    Args:
        file: of any size.
        on_mib: called with 1 for each MiB, or what is left of one.
    """
    digest = hashlib.sha256()
    with open(file, "rb") as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
            on_mib(1)
    return digest.hexdigest()
