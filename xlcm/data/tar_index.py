"""Where the samples of a tar shard lie: its headers are read once, and what they say remembered.

A sample is what the WebDataset convention says: neighbouring files whose names are equal up to the
first dot, such as `000012.json` and `000012.jpg`.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from xlcm.data.manifest import DataError

VERSION = 3  # of the index; a new one makes old ones void
BLOCK = 512
RECORD = 20 * BLOCK  # a finished tar is filled up with zeros to a multiple of this
WIDER = tuple(BLOCK << power for power in range(6, 12))  # or of one of these: `tar -b 64` to 2048
KINDS = ("pooled", "tokens", "views")
PARTS = ("json", "txt", "image", *KINDS)
IMAGE_ENDINGS = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "img"})


class Place(NamedTuple):
    """Where one file lies in its tar, in bytes."""

    offset: int
    size: int


@dataclass(frozen=True)
class TarIndex:
    """The samples of one tar.

    Args:
        keys: `(samples,)` bytes, the names up to the first dot.
        places: `(samples, parts, 2)` int64 offset and size of each of `PARTS`; -1: there is none.
        truncated: the file ends before its end mark, or its end is nothing but zeros; what is
            listed is whole.
    """

    keys: np.ndarray
    places: np.ndarray
    truncated: bool

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, number: int) -> str:
        """Return the name of a sample."""
        return bytes(self.keys[number]).decode("utf-8", "surrogateescape")

    def place(self, number: int, part: str) -> Place | None:
        """Return where a part of a sample lies; None if it has none."""
        offset, size = self.places[number, PARTS.index(part)].tolist()
        return Place(offset, size) if offset >= 0 else None


def tar_index(path: str | Path, *, remember: bool = True) -> TarIndex:
    """Return the samples of a tar.

    The result is kept in `$XLCM_CACHE/shards` (by default `~/.cache/xlcm/shards`) until the file's
    size or time changes.

    Raises:
        DataError: if the file is no tar, or a compressed one.
        FileNotFoundError: if there is none.
    """
    path = Path(path)
    status = path.stat()
    about = [VERSION, str(path.resolve()), status.st_size, status.st_mtime_ns]
    digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:24]
    folder = Path(os.environ.get("XLCM_CACHE") or Path.home() / ".cache" / "xlcm") / "shards"
    kept = folder / f"{path.stem}-{digest}.npz"
    if remember and kept.is_file():
        with np.load(kept, allow_pickle=False) as found:
            return TarIndex(found["keys"], found["places"], bool(found["truncated"]))
    index = _scan(path, status.st_size)
    if remember:
        folder.mkdir(parents=True, exist_ok=True)
        aside = kept.with_name(f".{os.getpid()}.{kept.name}")
        np.savez(aside, keys=index.keys, places=index.places, truncated=index.truncated)
        os.replace(aside, kept)
    return index


def _scan(path: Path, size: int) -> TarIndex:
    keys: list[bytes] = []
    samples: list[dict[str, Place]] = []
    end = 0
    cut = False
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                here = member.offset_data + (member.size if member.isfile() else 0)
                end = -(-here // BLOCK) * BLOCK
                tar.members = []  # type: ignore[attr-defined]  # or each would be kept
                if here > size:
                    cut = True
                    break
                key, part = _named(member.name)
                if not member.isfile() or key is None:
                    continue
                name = key.encode("utf-8", "surrogateescape")
                if not keys or keys[-1] != name or (part and part in samples[-1]):
                    keys.append(name)
                    samples.append({})
                if part:
                    samples[-1][part] = Place(member.offset_data, member.size)
    except tarfile.TarError as error:
        if not end:  # the first header
            raise DataError(
                f"{path}: no tar file ({error}); a compressed one must be unpacked (`gunzip`), and "
                "one that is empty or a web page fetched again",
                kind="shard_truncated",
            ) from error
        cut = True
    ending = _ending(path, end, size)
    if ending == "padded":
        last_whole = not samples or not _ends_in_zeros(path, samples[-1])
        alike = len(samples) < 2 or not _lacks_parts(samples)
        ending = "whole" if last_whole and alike else "zeroed"
    cut = cut or ending != "whole"
    if (
        cut
        and samples
        and (_lacks_parts(samples) or (ending == "zeroed" and _ends_in_zeros(path, samples[-1])))
    ):
        keys.pop()
        samples.pop()
    places = np.full((len(samples), len(PARTS), 2), -1, dtype=np.int64)
    for number, sample in enumerate(samples):
        for part, place in sample.items():
            places[number, PARTS.index(part)] = place
    return TarIndex(np.array(keys, dtype=np.bytes_), places, cut)


def _named(name: str) -> tuple[str | None, str | None]:
    """Return the key and the part that a file's name stands for; None: none that is read."""
    folder, slash, base = name.rpartition("/")
    stem, dot, ending = base.partition(".")
    if not stem or not dot:
        return None, None
    last = ending.lower()
    if last in ("json", "txt"):
        part = last
    elif last in IMAGE_ENDINGS:
        part = "image"
    elif last.removesuffix(".npy") in KINDS and last.endswith(".npy"):
        part = last.removesuffix(".npy")
    else:
        return folder + slash + stem, None
    return folder + slash + stem, part


def _ending(path: Path, end: int, size: int) -> Literal["whole", "padded", "cut", "zeroed"]:
    """Return what follows the last file: a block of zeros in every finished tar.

    More zeros than a finished tar has are the rest of a file whose place was kept on the disk
    before all of it was there; so is anything behind them. What `tar -b` adds to a full record of
    its own is known by the size of the file.
    """
    with open(path, "rb") as file:
        file.seek(end)
        if size < end + BLOCK or any(file.read(BLOCK)):
            return "cut"
    if size - end <= 2 * RECORD:
        return "whole"
    needed = end + 2 * BLOCK
    return "padded" if any(size == -(-needed // wide) * wide for wide in WIDER) else "zeroed"


def _lacks_parts(samples: list[dict[str, Place]]) -> bool:
    """Return whether the last sample hasn't the files that most have; a lone one tells nothing."""
    kinds = Counter(frozenset(sample) for sample in samples[:-1])
    return not kinds or kinds.most_common(1)[0][0] != samples[-1].keys()


def _ends_in_zeros(path: Path, sample: dict[str, Place]) -> bool:
    if not sample:
        return True
    last = max(sample.values())
    with open(path, "rb") as file:
        file.seek(last.offset + max(last.size - 16, 0))
        return not any(file.read(min(last.size, 16)))
