"""LMDB of arrays: each value a .npy or .npz as bytes, or bare float32."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from xlcm.data.feature_formats.base import BOX_NAMES, VALUE_NAMES, FeatureReader, first_of, kind_of
from xlcm.data.manifest import DataError

SPECIAL = frozenset({b"keys", b"__keys__", b"__len__", b"length", b"num_samples"})

_OPEN: dict[tuple[str, int], Any] = {}
"""Environments by path and process: LMDB opens a file once a process."""


def cut_off(env: Any, path: Path) -> str | None:
    """Return how much of an LMDB is missing at its end; None if it is whole.

    To read a page that is not there any more would kill the process.

    Args:
        env: the open LMDB.
        path: its folder, or its file.
    """
    file = path / "data.mdb" if path.is_dir() else path
    size, needed = file.stat().st_size, (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    return f"cut off, {size:,} bytes of {needed:,}" if size < needed else None


class LMDBReader(FeatureReader):
    """Arrays by key (needs lmdb, `pip install 'xlcm[features]'`); a copy a worker is opened anew.

    A value is what `numpy.save` writes, what `numpy.savez` writes (`features`, and `boxes` if it
    has any), or bare little-endian float32, one vector. Pickled values are refused, for reading
    them runs code.

    Args:
        path: the folder with data.mdb, or a file.

    Raises:
        DataError: if it can't be opened, is cut off or empty, or holds pickles.
        ImportError: without lmdb.
    """

    _env: Any

    def __init__(self, path: Path) -> None:
        self.folder = path
        self._env = None
        with self._opened().begin() as reading:
            names = [bytes(key) for key in reading.cursor().iternext(keys=True, values=False)]
        names = [name for name in names if name not in SPECIAL]
        if not names:
            raise DataError(f"{path}: there is nothing in it")
        places = {}
        for name in names:
            try:
                places[name.decode()] = name
            except UnicodeDecodeError as error:
                raise DataError(f"{path}: key {name!r} is not UTF-8") from error
        value, boxes = self._decoded(names[0])
        kind, dim = kind_of(value, f"{path}: {names[0]!r}")
        file = path / "data.mdb" if path.is_dir() else path
        super().__init__(path, kind=kind, dim=dim, places=places, files=[file],
                         boxes=boxes is not None and kind == "tokens")  # fmt: skip

    def _closed(self) -> tuple[str, ...]:
        return ("_env",)

    def _open(self) -> None:
        self._env = None  # opened at the first reading

    def _leave(self) -> None:
        parents = _OPEN.pop((str(self.folder.absolute()), self._pid), None)
        if parents is not None:
            parents.close()  # in this process alone
        self._env = None

    def _opened(self) -> Any:
        if self._env is None:
            try:
                import lmdb
            except ImportError as error:
                raise ImportError(f"{self.folder} is an LMDB, which lmdb reads: "
                                  "pip install 'xlcm[features]'") from error  # fmt: skip
            name = str(self.folder.absolute()), os.getpid()
            try:
                self._env = _OPEN.get(name) or lmdb.open(
                    str(self.folder), subdir=self.folder.is_dir(), readonly=True, lock=False,
                    readahead=False, max_readers=512,
                )  # fmt: skip
                if name not in _OPEN and (said := cut_off(self._env, self.folder)):
                    self._env.close()
                    self._env = None
                    raise DataError(f"{self.folder}: {said}; copy it again",
                                    kind="feature_unreadable")  # fmt: skip
                _OPEN[name] = self._env
            except lmdb.Error as error:
                raise DataError(f"{self.folder}: this LMDB can't be opened: {error}",
                                kind="feature_unreadable") from error  # fmt: skip
        return self._env

    def _decoded(self, name: bytes) -> tuple[np.ndarray, np.ndarray | None]:
        with self._opened().begin(buffers=False) as reading:
            data = reading.get(name)
        where = f"{self.folder}: {name.decode()!r}"
        try:
            if data[:6] == b"\x93NUMPY":
                return np.load(io.BytesIO(data), allow_pickle=False), None
            if data[:2] == b"PK":
                found = np.load(io.BytesIO(data), allow_pickle=False)
                value, boxes = (first_of(names, found.files) for names in (VALUE_NAMES, BOX_NAMES))
                if value is None:
                    raise ValueError(f"its arrays are {', '.join(found.files)}, none of "
                                     f"{', '.join(VALUE_NAMES)}")  # fmt: skip
                return found[value], None if boxes is None else found[boxes]
        # zipfile has errors of its own
        except Exception as error:
            raise DataError(f"{where} can't be read: {error}", kind="feature_unreadable") from error
        if data[:1] == b"\x80" and data[-1:] == b".":
            raise DataError(f"{where} is a pickle, and reading one runs code; write its arrays by "
                            "numpy.save instead", kind="feature_unreadable")  # fmt: skip
        if not data or len(data) % 4:
            raise DataError(f"{where}: {len(data)} bytes are neither .npy, .npz nor float32",
                            kind="feature_unreadable")  # fmt: skip
        return np.frombuffer(data, dtype="<f4"), None

    def _read(self, place: Any) -> np.ndarray:
        return self._decoded(place)[0]

    def _read_boxes(self, place: Any) -> tuple[np.ndarray, tuple[float, float] | None]:
        boxes = self._decoded(place)[1]
        if boxes is None:
            raise DataError(f"{self.folder}: {place.decode()!r} has no boxes, others have",
                            kind="feature_unreadable")  # fmt: skip
        return boxes, None
