"""HDF5 in the layouts that are met: a dataset an item, a group an item, or one matrix with ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from xlcm.data.feature_formats.base import (
    BOX_NAMES,
    COUNT_NAMES,
    ID_NAMES,
    SIZE_NAMES,
    VALUE_NAMES,
    FeatureReader,
    first_of,
    kind_of,
    numbered,
    real_rows,
    refuse_ids,
)
from xlcm.data.feature_formats.ids import array_ids, find_ids, read_ids
from xlcm.data.manifest import DataError


class HDF5Reader(FeatureReader):
    """Features of an HDF5 file (needs h5py, `pip install 'xlcm[features]'`).

    Read are: `{id: (D,) or (T, D)}`, also in one group; `{id: {features, boxes}}`; and `features`
    `(N, D)` or `(N, T, D)` with `ids`, to which `boxes` `(N, T, 4)`, `num_boxes` `(N,)` (how many
    regions are real) and `wh` `(N, 2)` (picture sizes) may come. Other names for these: see
    `xlcm.data.feature_formats.base`.

    Args:
        path: the file.
        ids: a file of ids for a matrix without any.

    Raises:
        DataError: for a file that is none of these.
        ImportError: without h5py.
    """

    _file: Any

    def __init__(self, path: Path, ids: Path | None = None) -> None:
        self.folder = path
        self._files = [path]
        self._file = None
        try:
            self._look(path, ids)
        except (DataError, ImportError):
            raise
        except Exception as error:  # h5py has a dozen for what a damaged file may lead to
            raise DataError(f"{path}: this HDF5 file is damaged: {error}; get it again",
                            kind="feature_unreadable") from error  # fmt: skip

    def _look(self, path: Path, ids: Path | None) -> None:
        """Find out which layout it is."""
        root = self._root()
        names = list(root)
        if len(names) == 1 and hasattr(root[names[0]], "keys"):
            inner = root[names[0]]
            if inner and not first_of(VALUE_NAMES, list(inner)):  # all in one group
                root, names = inner, list(inner)
        self._group = root.name
        if not names:
            raise DataError(f"{path}: there is nothing in it")
        self._values = first_of(VALUE_NAMES, names)
        self._boxes = first_of(BOX_NAMES, names)
        self._sizes = first_of(SIZE_NAMES, names)
        self._counts = first_of(COUNT_NAMES, names)
        places: dict[str, Any]
        if self._values is not None and hasattr(root[self._values], "shape"):
            places = self._matrix_places(root, first_of(ID_NAMES, names), ids)
            value = root[self._values]
            kind, dim = kind_of(value[0] if len(value) else np.empty(value.shape[1:]), str(path))
        else:
            refuse_ids(path, ids)
            self._values = None
            places = {name: name for name in names}
            first = root[names[0]]
            if hasattr(first, "keys"):
                self._boxes = first_of(BOX_NAMES, list(first))
                self._sizes = first_of(SIZE_NAMES, list(first))
            kind, dim = kind_of(_value(first, f"{path}: {names[0]!r}"), f"{path}: {names[0]!r}")
        boxes = self._boxes is not None and kind == "tokens"
        super().__init__(path, kind=kind, dim=dim, places=places, files=self._files,
                         boxes=boxes)  # fmt: skip

    def _matrix_places(self, root: Any, named: str | None, ids: Path | None) -> dict[str, Any]:
        where = f"{self.folder}: {self._values!r}"
        if ids is None and named is not None:
            found, said = array_ids(root[named][()], f"{self.folder}: {named!r}"), named
        else:
            file = ids or find_ids(self.folder)
            found, said = read_ids(file), str(file)
            self._files.append(file)
        return dict(numbered(found, len(root[self._values]), where, said))

    def _closed(self) -> tuple[str, ...]:
        return ("_file",)

    def _open(self) -> None:
        self._file = None  # opened at the first reading

    def _leave(self) -> None:
        self._file = None

    def _root(self) -> Any:
        if self._file is None:
            try:
                import h5py
            except ImportError as error:
                raise ImportError(f"{self.folder} is HDF5, which h5py reads: "
                                  "pip install 'xlcm[features]'") from error  # fmt: skip
            try:
                self._file = h5py.File(self.folder, "r")
            except FileNotFoundError as error:
                raise DataError(f"{self.folder}: no such file") from error
            except OSError as error:
                raise DataError(f"{self.folder}: this HDF5 file can't be opened: {error}",
                                kind="feature_unreadable") from error  # fmt: skip
        return self._file[self._group] if hasattr(self, "_group") else self._file

    def _read(self, place: Any) -> np.ndarray:
        root = self._root()
        if self._values is None:
            return _value(root[place], str(place))
        found: np.ndarray = root[self._values][place]
        return self._cut(root, place, found)

    def _cut(self, root: Any, place: int, found: np.ndarray) -> np.ndarray:
        if self._counts is None or found.ndim < 2:
            return found
        return real_rows(found, int(root[self._counts][place]))

    def _read_boxes(self, place: Any) -> tuple[np.ndarray, tuple[float, float] | None]:
        root = self._root()
        if self._values is None:
            group = root[place]
            boxes = group[self._boxes][()]
            size = group[self._sizes][()] if self._sizes else None
        else:
            boxes = self._cut(root, place, root[self._boxes][place])
            size = root[self._sizes][place] if self._sizes else None
        return boxes, None if size is None else (float(size[0]), float(size[1]))


def _value(node: Any, where: str) -> np.ndarray:
    """Return the numbers of an item, which is a dataset or a group with one of known name."""
    if hasattr(node, "keys"):
        name = first_of(VALUE_NAMES, list(node))
        if name is None:
            raise DataError(f"{where}: none of {', '.join(VALUE_NAMES)} is in this group, but "
                            f"{', '.join(list(node)[:8])}", kind="feature_unreadable")  # fmt: skip
        node = node[name]
    found: np.ndarray = node[()]
    return found
