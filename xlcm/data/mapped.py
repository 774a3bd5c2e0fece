"""Tensors of safetensors files as memory-mapped arrays: reading a row costs that row."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import safe_open

_DTYPES = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I64": "<i8", "U8": "u1"}


def map_tensor(file: Path, name: str) -> np.ndarray:
    """Return the tensor called `name`, read-only; nothing is read before it is asked for.

    Raises:
        SafetensorError: if the file is damaged or cut short, which its header tells.
        KeyError: if there is no such tensor.
        OSError: if it can't be opened.
    """
    safe_open(file, framework="np")  # checks the header against the size of the file
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        entry = json.loads(opened.read(length))[name]
    first, last = entry["data_offsets"]
    if first == last:
        return np.empty(entry["shape"], dtype=_DTYPES[entry["dtype"]])
    mapped = np.memmap(
        file, dtype=_DTYPES[entry["dtype"]], mode="r", offset=8 + length + first,
        shape=tuple(entry["shape"]),
    )  # fmt: skip
    return mapped.view(np.ndarray)  # a row of a memmap is a memmap again, which takes its time


def spanned(arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return one array that reaches over several mapped ones, and the place of each row in it.

    `whole[places[rows]]` reads any rows, counted over all arrays, in one call of numpy, which a
    loop over files can't keep up with. What lies between the arrays belongs to nobody: index by
    `places` alone, and keep the arrays alive as long.

    Args:
        arrays: at least one, `(n, ...)` each, contiguous, of one dtype and one shape of a row.
    """
    filled = [array for array in arrays if len(array)]
    if not filled:
        return arrays[0], np.empty(0, dtype=np.int64)
    begins = [int(array.__array_interface__["data"][0]) for array in filled]
    size = filled[0][0].nbytes
    lowest = filled[begins.index(min(begins))]
    # the largest step on which all rows begin
    step = math.gcd(size, *(begin - min(begins) for begin in begins))
    places = [
        (begin - min(begins)) // step + np.arange(len(array), dtype=np.int64) * (size // step)
        for begin, array in zip(begins, filled)
    ]
    whole = np.lib.stride_tricks.as_strided(
        lowest,
        shape=(max(int(place[-1]) for place in places) + 1, *lowest.shape[1:]),
        strides=(step, *lowest.strides[1:]),
        writeable=False,
    )
    return whole, np.concatenate(places)
