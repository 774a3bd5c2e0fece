"""Pictures in the LMDB that Chinese-CLIP's preparation makes: id -> base64, and `num_images`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from xlcm.data.manifest import DataError

COUNT = b"num_images"  # written last
REMAKE = "copy it again, or make it again from <split>_imgs.tsv"


def read_lmdb(path: Path, *, data: bool = True) -> Iterator[tuple[str, str, str]]:
    """Yield (`folder: key`, id, base64) of every picture, one in memory, in the order of the keys.

    Keys are in the order of their characters, so `10` stands before `9`. Nothing is unpickled.

    Args:
        path: the folder `imgs` with its `data.mdb`.
        data: False: the pictures are not read, and their base64 is empty.

    Raises:
        DataError: if it can't be opened, is cut off or unfinished, or holds something else.
        ImportError: without lmdb.
    """
    with closing(_opened(path)) as env, env.begin() as reading:
        import lmdb

        try:
            _whole(path, env, reading.get(COUNT))
            cursor = reading.cursor()
            for key in cursor.iternext(keys=True, values=False):
                if key != COUNT:
                    yield _picture(path, key, cursor.value() if data else b"")
        except lmdb.Error as error:
            raise DataError(f"{path}: damaged ({error}); {REMAKE}") from error


def _opened(path: Path) -> Any:
    try:
        import lmdb
    except ImportError as error:
        raise ImportError(
            f"{path} is an LMDB, which lmdb reads: pip install 'xlcm[features]'"
        ) from error
    file = path / "data.mdb"
    if not file.is_file():
        raise DataError(f"{file}: no such file; {REMAKE}")
    try:
        env = lmdb.open(str(path), readonly=True, lock=False, max_readers=1)
    except lmdb.Error as error:
        raise DataError(f"{path}: this LMDB can't be opened: {error}; {REMAKE}") from error
    from xlcm.data.feature_formats.lmdb import cut_off  # loads torch

    if said := cut_off(env, path):
        env.close()
        raise DataError(f"{file}: {said}; {REMAKE}")
    return env


def _whole(path: Path, env: Any, count: bytes | None) -> None:
    """Refuse what was not written to its end."""
    pictures = env.stat()["entries"] - 1
    if count is None:
        raise DataError(
            f"{path}: no key {COUNT.decode()!r}, which is written last: these are no pictures of "
            f"Chinese-CLIP, or the preparation was stopped; {REMAKE}"
        )
    if count != str(pictures).encode():
        raise DataError(
            f"{path}: {pictures:,} pictures, and {COUNT.decode()!r} says {count[:20]!r}; {REMAKE}"
        )


def _picture(path: Path, key: bytes, value: bytes) -> tuple[str, str, str]:
    try:
        identity = key.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: key {key[:40]!r} is not UTF-8") from error
    where = f"{path}: key {identity}"
    try:
        return where, identity, value.decode("ascii")
    except UnicodeDecodeError as error:
        kind = "a pickle, and reading one runs code" if value[:1] == b"\x80" else "no base64"
        raise DataError(f"{where}: the value is {kind}; pictures are base64 here") from error
