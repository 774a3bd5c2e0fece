"""numpy's .npy and .npz, folders of .npy, and single safetensors files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from xlcm.data.feature_formats.base import (
    BOX_NAMES,
    COUNT_NAMES,
    ID_NAMES,
    SIZE_NAMES,
    VALUE_NAMES,
    FeatureReader,
    MatrixReader,
    first_of,
    kind_of,
    numbered,
    plain,
    real_rows,
    refuse_ids,
)
from xlcm.data.feature_formats.ids import array_ids, find_ids, load_array, read_ids
from xlcm.data.features import Kind
from xlcm.data.manifest import DataError


class NpyReader(MatrixReader):
    """One matrix `(N, D)` or `(N, T, D)` with a file of ids; memory-mapped.

    Args:
        path: the .npy file.
        ids: its ids, in the order of the rows; by default looked for beside it (`find_ids`).
    """

    def __init__(self, path: Path, ids: Path | None = None) -> None:
        self.folder = path
        self._open()
        if self._matrix.ndim not in (2, 3):
            raise DataError(f"{path}: features must be (N, D) or (N, T, D), got "
                            f"{self._matrix.shape}", kind="feature_unreadable")  # fmt: skip
        ids = ids or find_ids(path)
        places = numbered(read_ids(ids), len(self._matrix), str(path), str(ids))
        kind: Kind = "pooled" if self._matrix.ndim == 2 else "tokens"
        dim = self._matrix.shape[-1]
        super().__init__(path, kind=kind, dim=dim, places=places, files=[path, ids])

    def _open(self) -> None:
        self._matrix = load_array(self.folder, mapped=True)


class NpyFolderReader(FeatureReader):
    """A folder with one `<id>.npy` an item, `(D,)`, `(T, D)` or `(1, T, D)`."""

    def __init__(self, path: Path) -> None:
        places = {file.stem: file.name for file in sorted(path.glob("*.npy"))}
        first = path / next(iter(places.values()))
        kind, dim = kind_of(load_array(first, mapped=True), str(first))
        # the folder's own time doesn't change with a file in it
        files = [path / name for name in places.values()]
        super().__init__(path, kind=kind, dim=dim, places=places, files=files)

    def _read(self, place: Any) -> np.ndarray:
        return load_array(self.folder / place)


class NpzReader(MatrixReader):
    """An .npz: either a matrix with ids beside it, or one array an item.

    The first has `features` (or values, embeddings, feats) and `ids` (or keys, names, image_id),
    and may have `boxes` `(N, T, 4)`, `num_boxes` `(N,)` (how many regions are real), `wh` `(N, 2)`
    (picture sizes), and `scale` `(D,)`, by which small integers are multiplied; it is read into
    memory at once, for a zip can't be mapped.
    """

    _zip: Any

    def __init__(self, path: Path, ids: Path | None = None) -> None:
        self.folder = path
        self._values: str | None = None
        self._box_name: str | None = None
        self._scale: np.ndarray | None = None
        files = [path]
        self._counts: np.ndarray | None = None
        self._sizes: np.ndarray | None = None
        names = list(self._zipped().files)
        self._values = first_of(VALUE_NAMES, names)
        named = first_of(ID_NAMES, names)
        if self._values is not None and (named or ids or len(names) == 1):
            self._open()
            matrix = self._matrix
            if matrix.ndim not in (2, 3):
                raise DataError(f"{path}: {self._values!r} must be (N, D) or (N, T, D), got "
                                f"{matrix.shape}", kind="feature_unreadable")  # fmt: skip
            if named and not ids:
                found, said = (
                    array_ids(self._entry(named), f"{path}: {named!r}"),
                    f"{path}: {named}",
                )
            else:
                file = ids or find_ids(path)
                found, said = read_ids(file), str(file)
                files.append(file)
            places: dict[str, Any] = dict(numbered(found, len(matrix), str(path), said))
            kind: Kind = "pooled" if matrix.ndim == 2 else "tokens"
            dim = matrix.shape[-1]
            self._box_name = first_of(BOX_NAMES, names) if kind == "tokens" else None
            if kind == "tokens":
                self._counts = self._column(first_of(COUNT_NAMES, names), (len(matrix),))
                self._sizes = self._column(first_of(SIZE_NAMES, names), (len(matrix), 2))
            if "scale" in names:
                self._scale = self._entry("scale").astype(np.float32)
        elif names:
            refuse_ids(path, ids)
            self._values = None
            self._open()
            places = {name: name for name in names}
            kind, dim = kind_of(self._entry(names[0]), f"{path}: {names[0]!r}")
        else:
            raise DataError(f"{path}: there is nothing in it")
        super().__init__(path, kind=kind, dim=dim, places=places, files=files,
                         boxes=self._box_name is not None)  # fmt: skip

    def _column(self, name: str | None, shape: tuple[int, ...]) -> np.ndarray | None:
        """Return an array of numbers about each row, if there is one."""
        if name is None:
            return None
        found = self._entry(name)
        if found.size != np.prod(shape):
            raise DataError(f"{self.folder}: {name!r} must be {shape}, got {found.shape}",
                            kind="feature_unreadable")  # fmt: skip
        return found.reshape(shape)

    def _cut(self, place: int, found: np.ndarray) -> np.ndarray:
        return found if self._counts is None else real_rows(found, int(self._counts[place]))

    def _closed(self) -> tuple[str, ...]:
        return ("_matrix", "_zip", "_box_values")

    def _open(self) -> None:
        self._zip = None
        # where each item is an array of its own, there is no matrix
        self._matrix = np.empty((0,)) if self._values is None else self._entry(self._values)
        self._box_values = None if self._box_name is None else self._entry(self._box_name)

    def _leave(self) -> None:
        self._zip = None

    def _zipped(self) -> Any:
        if getattr(self, "_zip", None) is None:
            try:
                self._zip = np.load(self.folder, allow_pickle=False)
            except FileNotFoundError as error:
                raise DataError(f"{self.folder}: no such file") from error
            # zipfile has errors of its own
            except Exception as error:
                raise DataError(f"{self.folder}: this .npz can't be read: {error}; was its copying "
                                "cut short?", kind="feature_unreadable") from error  # fmt: skip
            if not hasattr(self._zip, "files"):
                raise DataError(f"{self.folder}: not an .npz file", kind="feature_unreadable")
        return self._zip

    def _entry(self, name: str) -> np.ndarray:
        try:
            found: np.ndarray = self._zipped()[name]
        except DataError:
            raise
        except Exception as error:
            said = "it holds Python objects, and reading those runs code; save it as numbers" \
                if "pickle" in str(error) else str(error)  # fmt: skip
            raise DataError(f"{self.folder}: array {name!r} can't be read: {said}",
                            kind="feature_unreadable") from error  # fmt: skip
        return found

    def _read(self, place: Any) -> np.ndarray:
        if self._values is None:
            return self._entry(place)
        row = self._cut(place, self._matrix[place])
        return row if self._scale is None else row * self._scale

    def rows(self, keys: Sequence[str]) -> Tensor:
        """Return the features of many items, `(n, dim)` float32, taken at once."""
        found = super().rows(keys)
        if self._scale is not None and self._matrix.ndim == 2 and self.kind == "pooled":
            found *= torch.from_numpy(self._scale)
        return found

    def _read_boxes(self, place: Any) -> tuple[np.ndarray, tuple[float, float] | None]:
        if self._box_values is None:
            self._box_values = self._entry(str(self._box_name))
        size = None if self._sizes is None else self._sizes[place].tolist()
        return self._cut(place, plain(self._box_values[place], "tokens")), size


class SafetensorsReader(MatrixReader):
    """A safetensors file: one tensor an item, or a matrix with a file of ids beside it."""

    _file: Any

    def __init__(self, path: Path, ids: Path | None = None) -> None:
        self.folder = path
        self._values: str | None = None
        files = [path]
        self._open()
        names = list(self._file.keys())
        self._values = first_of(VALUE_NAMES, names)
        if self._values is not None and (ids is not None or len(names) == 1):
            self._open()
            file = ids or find_ids(path)
            places: dict[str, Any] = dict(
                numbered(read_ids(file), len(self._matrix), str(path), str(file))
            )
            kind, dim = kind_of(np.empty(self._matrix.shape[1:]), f"{path}: {self._values!r}")
            files.append(file)
        elif names:
            refuse_ids(path, ids)
            self._values = None
            places = {name: name for name in names}
            kind, dim = kind_of(self._read(names[0]), f"{path}: {names[0]!r}")
        else:
            raise DataError(f"{path}: there is nothing in it")
        super().__init__(path, kind=kind, dim=dim, places=places, files=files)

    def _closed(self) -> tuple[str, ...]:
        return ("_matrix", "_file")

    def _open(self) -> None:
        try:
            self._file = safe_open(self.folder, framework="pt")
            found = None if self._values is None else self._file.get_tensor(self._values)
        except FileNotFoundError as error:
            raise DataError(f"{self.folder}: no such file") from error
        except (SafetensorError, OSError) as error:
            raise DataError(f"{self.folder}: this safetensors file can't be read: {error}",
                            kind="feature_unreadable") from error  # fmt: skip
        self._matrix = np.empty((0,)) if found is None else _numbers(found)

    def _read(self, place: Any) -> np.ndarray:
        return (
            _numbers(self._file.get_tensor(place)) if self._values is None else self._matrix[place]
        )


def _numbers(tensor: torch.Tensor) -> np.ndarray:
    """Return it for numpy, which knows no bfloat16."""
    found: np.ndarray = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return found
