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


def _reconstruct(kind: type, shape: Any, code: Any) -> np.ndarray:
    if kind is not np.ndarray or shape not in ((0,), 0):
        raise pickle.UnpicklingError(f"an array of {kind!r} is not allowed")
    return np.ndarray((0,), np.int8)


def _scalar(dtype: np.dtype, data: bytes) -> Any:
    return _frombuffer(data, dtype, (1,), "C")[0]


def _frombuffer(data: Any, dtype: np.dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    if not isinstance(dtype, np.dtype) or dtype.hasobject:
        raise pickle.UnpicklingError("an array of objects is not allowed")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if order == "F" else "C").copy()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"encoding {encoding!r} is not allowed")
    return text.encode("latin1")


def _dtype(code: str, *flags: Any) -> np.dtype:
    made = np.dtype(code) if isinstance(code, str) else None
    if made is None or made.hasobject:
        raise pickle.UnpicklingError(f"an array of {code!r} is not allowed")
    return made


ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
}
"""All that a pickle may call; none of it runs code that it was given."""


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
            rows = Restricted(file).load()
    except FileNotFoundError:
        raise SystemExit(f"{path}: no such file") from None
    # a damaged pickle may fail in any way
    except Exception as error:
        raise SystemExit(f"{path}: refused: {error!r}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise SystemExit(f"{path}: expected a list of dictionaries, one a video or clip")
    return rows


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
