"""Features of foreign formats -> one feature store, verified."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, TypeAlias

from xlcm.data.feature_formats import open_features
from xlcm.data.features import FeatureStore, FeatureWriter
from xlcm.data.manifest import DataError

Progress: TypeAlias = Callable[[int], AbstractContextManager[Callable[[int], None]]]


def convert_features(
    paths: Sequence[str | Path],
    output: str | Path,
    *,
    ids: Sequence[str | Path] = (),
    dtype: Literal["float32", "float16"] = "float16",
    shard_items: int = 8192,
    progress: Progress | None = None,
) -> FeatureStore:
    """Write all features of the sources into one store; return it, verified.

    An interrupted conversion goes on after its last shard if it is asked for again.

    Args:
        paths: of one kind and width, such as the matrices of several splits.
        output: folder of the store.
        ids: for each path a file with the names of its rows; empty: they are looked for.
        dtype: on disk.
        shard_items: items a shard.
        progress: given the number of items, a context that yields `advance(n)`.

    Raises:
        DataError: for a source that can't be read, sources that don't fit together, a key in two of
            them, or a store that is not what was written.
    """
    if ids and len(ids) != len(paths):
        raise DataError(f"{len(paths)} paths and {len(ids)} files of ids; give one for each path")
    sources = [open_features(path, ids=ids[i] if ids else None) for i, path in enumerate(paths)]
    first = sources[0]
    for source in sources[1:]:
        for name in ("kind", "dim", "views", "has_boxes"):
            here, there = getattr(source, name), getattr(first, name)
            if here != there:
                raise DataError(f"{source.folder} has {name}={here!r}, {first.folder} {there!r}; "
                                "put them into stores of their own")  # fmt: skip
    total = sum(map(len, sources))
    writer = FeatureWriter(
        output,
        kind=first.kind,
        dim=first.dim,
        dtype=dtype,
        encoder={"converted": [source.folder.name for source in sources]},
        views=first.views,
        shard_items=shard_items,
        boxes=first.has_boxes,
    )
    with (
        writer,
        (progress or (lambda _: contextlib.nullcontext(lambda _: None)))(total) as advance,
    ):
        _copy(sources, writer, advance)
    return verified(output, total)


def _copy(
    sources: Sequence[FeatureStore], writer: FeatureWriter, advance: Callable[[int], None]
) -> None:
    seen: set[str] = set()
    for source in sources:
        for key in source.keys():  # noqa: SIM118
            if key in seen:
                raise DataError(f"{source.folder}: key {key!r} is in another source as well")
            seen.add(key)
            if key not in writer:
                writer.add(key, source[key], source.boxes(key) if source.has_boxes else None)
            advance(1)


def verified(folder: str | Path, count: int) -> FeatureStore:
    """Open a store that was just written, and compare its number of items and its checksums.

    Raises:
        DataError: naming what is not as it was written.
    """
    store = FeatureStore(folder)
    faults = store.verify()
    if len(store) != count:
        faults.append(f"{folder}: {len(store)} items, {count} were to be written")
    if faults:
        raise DataError("\n".join(faults), kind="feature_unreadable")
    return store
