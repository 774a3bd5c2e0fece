"""Features of foreign formats -> one feature store, verified."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, TypeAlias

from xlcm.data.feature_formats import open_features
from xlcm.data.feature_index import INDEX, read_index, sha256_of
from xlcm.data.features import FeatureStore, FeatureWriter
from xlcm.data.manifest import DataError
from xlcm.data.progress import Progress

OnItems: TypeAlias = Callable[[int], AbstractContextManager[Callable[[int], None]]]


def convert_features(
    paths: Sequence[str | Path],
    output: str | Path,
    *,
    ids: Sequence[str | Path] = (),
    dtype: Literal["float32", "float16"] = "float16",
    shard_items: int = 8192,
    progress: OnItems | None = None,
) -> FeatureStore:
    """Write all features of the sources into one store; return it, verified.

    An interrupted conversion goes on after its last shard if it is asked for again. The store
    holds the SHA-256 of what it was made of, for which all sources are read once more: one that
    has changed since is refused, also where name, size and time are the same.

    Args:
        paths: of one kind and width, such as the matrices of several splits.
        output: folder of the store.
        ids: for each path a file with the names of its rows; empty: they are looked for.
        dtype: on disk.
        shard_items: items a shard.
        progress: given the number of items, a context that yields `advance(n)`.

    Raises:
        DataError: for a source that can't be read, sources that don't fit together, a key in two of
            them, a folder that holds what was converted of others, or a store that is not what was
            written.
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
    made_of = _made_of(sources)
    _refuse_changed(Path(output), made_of)
    writer = FeatureWriter(
        output,
        kind=first.kind,
        dim=first.dim,
        dtype=dtype,
        encoder={"converted": made_of},
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


def _made_of(sources: Sequence[FeatureStore]) -> list[dict[str, Any]]:
    """Return the name of each source, and one SHA-256 over the names and contents of its files."""
    files = [
        [(source.folder / shard["file"], shard.get("sha256")) for shard in source.index["shards"]]
        for source in sources
    ]
    unknown = (file for own in files for file, known in own if known is None)
    size = sum(-(-file.stat().st_size // (1 << 20)) for file in unknown)
    told = Progress(size, "checksums of what is converted", unit="MiB")
    made = []
    for source, own in zip(sources, files):
        digest = hashlib.sha256()
        for file, known in own:
            digest.update(f"{file.name} {known or sha256_of(file, told.advance)}\n".encode())
        made.append({"name": source.folder.name, "sha256": digest.hexdigest()})
    told.close()
    return made


def _refuse_changed(output: Path, made_of: Sequence[dict[str, Any]]) -> None:
    """Refuse a folder that holds features of other sources, or of these before they changed."""
    if not (output / INDEX).is_file():
        return
    index = read_index(output)
    before = index["encoder"].get("converted")
    if before is None or before == made_of:
        return
    names = [old["name"] if isinstance(old, dict) else old for old in before]
    wanted = [new["name"] for new in made_of]
    changed = [new["name"] for new, old in zip(made_of, before) if new != old]
    said = f"{', '.join(changed)} had other contents then" if names == wanted else (
        f"it was made of {', '.join(names)}, not of {', '.join(wanted)}"
    )  # fmt: skip
    raise DataError(
        f"{output}: holds {index['count']:,} items of an earlier conversion, and {said}; delete "
        "this folder to convert anew, or choose another one"
    )


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
