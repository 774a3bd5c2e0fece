"""One tensor of a safetensors file as a memory-mapped array: reading a row costs that row."""

from __future__ import annotations

import json
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
