"""Looks at pictures, in this process or in several, which then need not load torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from xlcm.data.images import decode
from xlcm.data.manifest import DataError


@dataclass(frozen=True)
class Look:
    """What one look at a picture found.

    Args:
        kind: of the fault or warning; None: all is well.
        message: in words.
        content: digest of the file's bytes, where asked for.
    """

    kind: str | None = None
    message: str = ""
    content: str | None = None


def look_at(task: tuple[str, str, bool]) -> Look:
    """Decode one picture.

    Args:
        task: the path, its name in messages, whether to digest its bytes.
    """
    path, name, digest = task
    content = None
    try:
        if not digest:
            note = decode(Path(path), name=name)[1]
        else:
            data = Path(path).read_bytes()
            content = hashlib.blake2b(data, digest_size=12).hexdigest()
            note = decode(data, name=name)[1]
    except FileNotFoundError:
        return Look("image_missing", f"image {name!r}: no such file")
    except DataError as error:
        return Look(error.kind, str(error), content)
    kind = "image_converted" if note else None
    return Look(kind, f"image {name!r}: {note}" if note else "", content)


class Looker:
    """Looks at many pictures, in this process or in several."""

    def __init__(self, pool: ProcessPoolExecutor | None) -> None:
        self._pool = pool

    def __call__(self, tasks: list[tuple[str, str, bool]]) -> Iterable[Look]:
        """Return one look a task, in order."""
        return map(look_at, tasks) if self._pool is None else self._pool.map(
            look_at, tasks, chunksize=32
        )  # fmt: skip


@contextmanager
def looker(workers: int) -> Iterator[Looker]:
    """Give a `Looker` whose processes end with the block.

    Args:
        workers: processes; at most 1: this one does it.
    """
    if workers <= 1:
        yield Looker(None)
        return
    # spawned, because a fork of a process whose torch has threads can hang
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield Looker(pool)
