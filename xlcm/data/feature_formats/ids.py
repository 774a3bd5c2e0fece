"""The names of a matrix's rows: given by a file, or found beside it."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np

from xlcm.data.json_faults import told
from xlcm.data.manifest import DataError

MAGIC = b"\x93NUMPY"
_NRCCR = re.compile(r"(train|val|test(?:_\d{4})?)(?![a-z])")


def find_ids(matrix: Path) -> Path:
    """Return the file of ids that belongs to a matrix by its name.

    `x.npy` goes with `x.ids.txt`, `x_ids.txt`, `x_names.npy` or `x.txt` beside it; NRCCR's
    `val-resnet_152-avgpool.npy` with `val_id.txt` and `test_2016_flickr-….npy` with
    `test_id_2016.txt`, in its folder or the one above; else `ids.txt` or `id.txt` beside it.

    Raises:
        DataError: if there is none.
    """
    stem, folder = matrix.stem, matrix.parent
    endings = (".ids.txt", "_ids.txt", "_id.txt", ".txt", "_names.npy", "_ids.npy", ".json")
    tried = [folder / f"{stem}{ending}" for ending in endings]
    if match := _NRCCR.match(stem):
        split, _, year = match[1].partition("_")
        name = f"{split}_id_{year}.txt" if year else f"{split}_id.txt"
        tried += [folder / name, folder.parent / name]
    tried += [folder / "ids.txt", folder / "id.txt"]
    for file in tried:
        if file.is_file():
            return file
    raise DataError(
        f"{matrix}: no file says which row is which item; name it (`feature_ids` of the dataset, "
        f"--ids of the command), or put the ids, a line each, into {tried[0]}"
    )


def read_ids(file: Path) -> list[str]:
    """Return the ids of a text file (a line each), a JSON list or a .npy of strings.

    Raises:
        DataError: naming the file, if it is none of these.
    """
    if not file.is_file():
        raise DataError(f"{file}: no such file of ids")
    if file.suffix == ".npy":
        return array_ids(load_array(file), str(file))
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = file.read_bytes()[: error.start].count(b"\n") + 1
        raise DataError(f"{file}:{line}: not UTF-8; `iconv -f LATIN1 -t UTF-8` converts "
                        "it") from error  # fmt: skip
    if file.suffix == ".json":
        try:
            found = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{file}:{error.lineno}: {told(error)}") from error
        except ValueError as error:  # a number of too many digits
            raise DataError(f"{file}: not JSON: {error}") from error
        if not isinstance(found, list):
            raise DataError(f"{file}: ids must be a JSON list of names")
        return [str(name) for name in found]
    lines = text.removesuffix("\n").split("\n") if text else []
    return [line.removesuffix("\r") for line in lines]


def array_ids(found: np.ndarray, where: str) -> list[str]:
    """Return an array of strings, bytes or whole numbers as a list of ids.

    Raises:
        DataError: for another type or shape.
    """
    found = np.asarray(found).squeeze()
    if found.ndim > 1:
        raise DataError(f"{where}: ids must be one axis, got {found.shape}")
    if found.dtype.kind not in "SUOiu":
        raise DataError(f"{where}: ids of type {found.dtype} are no names")
    values = np.atleast_1d(found).tolist()
    return [v.decode() if isinstance(v, bytes) else str(v) for v in values]


def load_array(file: Path, *, mapped: bool = False) -> np.ndarray:
    """Return a .npy file's array.

    Raises:
        DataError: if it is none, is cut short, or would need a pickle.
    """
    try:
        found: np.ndarray = np.load(file, mmap_mode="r" if mapped else None, allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"{file}: no such file") from error
    except (OSError, ValueError, EOFError) as error:
        objects = "it holds Python objects, and reading those runs code; save it as numbers"
        said = _cut(file) or (objects if "bject" in str(error) else str(error))
        raise DataError(f"{file}: this array can't be read: {said}",
                        kind="feature_unreadable") from error  # fmt: skip
    if not isinstance(found, np.ndarray):
        raise DataError(f"{file}: not a .npy file; name it .npz?", kind="feature_unreadable")
    # a memory map that stays one is slow by the row
    return found.view(np.ndarray) if mapped else found


def _cut(file: Path) -> str | None:
    """Return that a .npy file is cut off and where, if it is."""
    size = file.stat().st_size
    with open(file, "rb") as opened:
        if not MAGIC.startswith(opened.read(len(MAGIC))):
            return None
        opened.seek(0)
        try:
            version = np.lib.format.read_magic(opened)
            read = (
                np.lib.format.read_array_header_1_0 if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )  # fmt: skip
            shape, _, dtype = read(opened)
        except ValueError:
            return f"it is cut off within its header, at {size:,} bytes; copy it again"
        needed = opened.tell() + math.prod(shape) * dtype.itemsize
    if size < needed and not dtype.hasobject:
        return f"it is cut off, {size:,} bytes of {needed:,}; copy it again"
    return None
