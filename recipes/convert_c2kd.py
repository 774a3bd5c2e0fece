"""Turn a pickle of C2KD into JSON lines and .npz, once, without running what is in it.

    python recipes/convert_c2kd.py msrvtt_train_multilingual.pkl --split train --out converted

A pickle is a program: loading one from elsewhere can do anything that you may do. Here it may build
numbers, text, lists, dictionaries and numpy arrays; at any other name in it, it is refused. Then
`xlcm data import c2kd --dataset msrvtt --root converted` reads the folder:

    train.jsonl      {"id": "video7", "captions": {"en": [...], "de": [...]}}, one a clip
    train.2d.npz     an array for each id: `features: converted/train.2d.npz` of a data set
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

FRAME_KEYS = ("2d", "3d", "s3d")


# -- reading ------------------------------------------------------------------------------------


class _Code:
    """Stands for a `numpy.dtype` while a pickle is read: a code, without numpy's own setter."""

    def __init__(self, code: str, *flags: Any) -> None:
        if not isinstance(code, str) or not _CODE.fullmatch(code):
            raise pickle.UnpicklingError(f"an array of {code!r} is not allowed")
        self.code = code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, order, *fields = state
        if order not in ("<", ">", "|", "=") or any(one is not None for one in fields[:3]):
            raise pickle.UnpicklingError("an array with fields is not allowed")
        self.code = order + self.code.lstrip("<>|=")


class _Array:
    """Stands for a `numpy.ndarray` while a pickle is read; `made` is the real one."""

    made: np.ndarray | None = None

    def __init__(self, *ignored: Any) -> None: ...

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, code, fortran, data = state
        self.made = _build(data, code, shape, "F" if fortran else "C")


def _build(
    data: Any, code: _Code, shape: tuple[int, ...], order: str, axes: tuple[int, ...] | None = None
) -> np.ndarray:
    if not isinstance(code, _Code) or not isinstance(data, bytes | bytearray | memoryview):
        raise pickle.UnpicklingError("an array of objects is not allowed")
    dtype = np.dtype(code.code)
    flat = np.frombuffer(data, dtype) if len(data) else np.zeros(0, dtype)
    array = flat.reshape(shape, order="F" if order == "F" else "C")
    made: np.ndarray = (array if axes is None else array.transpose(axes)).copy()
    return made


def _scalar(code: _Code, data: bytes) -> Any:
    return _build(data, code, (), "C").item()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"encoding {encoding!r} is not allowed")
    return text.encode("latin1")


_CODE = re.compile(r"[<>|=]?[biufSU]\d+")
ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Code,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): lambda: b"",
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _build for core in ("core", "_core")},
}
"""All that a pickle may call: functions of this file in the place of numpy's."""


class Restricted(pickle.Unpickler):
    """Loads numpy arrays and plain Python values only."""

    def find_class(self, module: str, name: str) -> Any:
        """Return an allowed name; refuse any other."""
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which is neither a numpy array nor a plain value"
            ) from None


def load(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a pickle.

    Raises:
        SystemExit: if it is cut off, asks for anything else, or is no list of dictionaries.
    """
    try:
        with open(path, "rb") as file:
            rows = _real(Restricted(file).load())
    except FileNotFoundError:
        raise SystemExit(f"{path}: no such file") from None
    # a damaged pickle may fail in any way
    except Exception as error:
        raise SystemExit(f"{path}: refused: {error!r}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise SystemExit(f"{path}: expected a list of dictionaries, one a video or clip")
    return rows


def _real(value: Any) -> Any:
    """Return a value with real arrays in it."""
    if isinstance(value, _Array):
        return value.made
    if isinstance(value, dict):
        return {_real(key): _real(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_real(inner) for inner in value]
    return value


# -- rows ---------------------------------------------------------------------------------------


def ids(rows: list[dict[str, Any]], path: Path) -> list[str]:
    """Return an id for each row; clips of one video get `<id>@<number>`.

    Raises:
        SystemExit: for a row without id.
    """
    for i, row in enumerate(rows):
        if not isinstance(row.get("id"), str) or not row["id"]:
            raise SystemExit(f"{path}: row {i} has no 'id'; its keys: {', '.join(map(str, row))}")
    counts, seen = Counter(row["id"] for row in rows), Counter[str]()
    if max(counts.values(), default=1) == 1:
        return [row["id"] for row in rows]
    made = []
    for row in rows:
        made.append(f"{row['id']}@{seen[row['id']]}")
        seen[row["id"]] += 1
    return made


def captions(row: dict[str, Any], start: str, where: str) -> dict[str, list[str]]:
    """Return the texts by language of `caption`, `caption_<lang>` (or `eval_caption...`)."""
    found = {"en": row[start]} if start in row else {}
    found |= {key[len(start) + 1 :]: row[key] for key in row if key.startswith(f"{start}_")}
    if start == "caption":
        found |= row.get("captions") or {}
    texts = {}
    for lang, value in found.items():
        own = [value] if isinstance(value, str) else [] if value is None else list(value)
        if not all(isinstance(text, str) for text in own):
            raise SystemExit(f"{where}: captions in {lang} must be text")
        texts["cs" if lang == "cz" else lang] = own
    return texts


def arrays(row: dict[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the arrays of a row: `2d`, `audio`, `audios_<lang>`."""
    for key, value in row.items():
        if isinstance(value, np.ndarray):
            yield key, value
        elif isinstance(value, dict):
            for inner, array in value.items():
                if isinstance(array, np.ndarray):
                    yield f"{key}_{inner}", array


def prepared(
    name: str, array: np.ndarray, frames: int | None, normalise: bool, where: str
) -> np.ndarray:
    """Return an array as it is written; frames `(T, dim)` may be cut and L2-normalised.

    Raises:
        SystemExit: for an array of anything but numbers, or with NaN or infinity.
    """
    if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise SystemExit(f"{where}: {name!r} is {array.dtype}, or holds NaN or infinity")
    if not name.startswith(FRAME_KEYS) or array.ndim != 2:
        return array
    array = array[:frames]
    if normalise:
        length = np.linalg.norm(array.astype(np.float32), axis=1, keepdims=True)
        array = (array / np.maximum(length, 1e-12)).astype(np.float32)
    return array


# -- writing ------------------------------------------------------------------------------------


@contextmanager
def aside(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that gets its name when all of it is written."""
    there = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(there, "wb") as file:
            yield file
        os.replace(there, path)
    finally:
        there.unlink(missing_ok=True)


def convert(
    path: Path, out: Path, split: str, *, frames: int | None = None, normalise: bool = False
) -> None:
    """Write `<split>.jsonl` and one `<split>.<array>.npz` for each array of the rows."""
    rows = load(path)
    names = ids(rows, path)
    found: dict[str, list[tuple[str, np.ndarray]]] = {}
    lines, left = [], Counter[str]()
    for identity, row in zip(names, rows, strict=True):
        where = f"{path}: {identity}"
        line: dict[str, Any] = {"id": identity, "captions": captions(row, "caption", where)}
        if evaluated := captions(row, "eval_caption", where):
            line["eval_captions"] = evaluated
        lines.append(line)
        for name, array in arrays(row):
            array = prepared(name, array, frames, normalise, where)
            found.setdefault(name, []).append((identity, array))
        left.update(
            key for key, value in row.items()
            if key != "id" and not isinstance(value, np.ndarray | dict) and "caption" not in key
        )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    for name, own in found.items():
        with aside(out / f"{split}.{name}.npz") as file, zipfile.ZipFile(file, "w") as packed:
            for identity, array in own:
                with packed.open(f"{identity}.npy", "w", force_zip64=True) as entry:
                    npy.write_array(entry, np.ascontiguousarray(array), allow_pickle=False)
        print(f"{out / f'{split}.{name}.npz'}: {len(own):,} of {len(rows):,} rows have it")
    with aside(out / f"{split}.jsonl") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False).encode("utf-8") + b"\n")
    print(f"{out / f'{split}.jsonl'}: {len(rows):,} rows")
    for name, count in left.items():
        print(f"left out: {name!r} of {count:,} rows")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("pickle", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="the folder")
    parser.add_argument("--split", required=True, help="train, val or test: names the files")
    parser.add_argument("--frames", type=int, help="keep the first so many (C2KD: 30)")
    parser.add_argument("--normalise", action="store_true", help="L2, each frame (C2KD does)")
    args = parser.parse_args()
    convert(args.pickle, args.out, args.split, frames=args.frames, normalise=args.normalise)


if __name__ == "__main__":
    main()
