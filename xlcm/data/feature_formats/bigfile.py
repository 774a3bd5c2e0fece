"""The BigFile folders of NRCCR, MLCMR, LECCR and Dual Encoding, read in place.

    shape.txt          `<rows> <dims>`
    id.txt             names of the rows, separated by white space
    feature.bin        rows x dims little-endian float32, no header
    video2frames.txt   {video id: [row name, ...]}, for videos

Source: the reader of https://github.com/HuiGuanLab/nrccr (Apache-2.0), basic/bigfile.py.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xlcm.data.feature_formats.base import MatrixReader, numbered
from xlcm.data.features import Kind
from xlcm.data.manifest import DataError

FRAMES = 64  # those readers keep the first 64 frames of a video
NAMES = "shape.txt, id.txt and feature.bin"


class BigFileReader(MatrixReader):
    """Rows of `feature.bin`; with a `video2frames.txt` the frames of videos, else single rows.

    Args:
        path: the folder.
        frames: how many of a video are kept, from the first one on; None: all.

    Raises:
        DataError: for a missing file, a size that is not rows x dims, names that are there twice,
            or a video whose frames are no rows.
    """

    def __init__(self, path: Path, frames: int | None = FRAMES) -> None:
        self.folder, self.frames = path, frames
        rows, dim = self._shape()
        self._size = rows, dim
        self._open()
        # names are in Latin-1, and an id may hold any of its characters
        ids = self._text("id.txt", "latin-1").split()
        places: dict[str, Any] = dict(numbered(ids, rows, str(path), str(path / "id.txt")))
        files = [path / name for name in ("feature.bin", "id.txt", "shape.txt")]
        videos = path / "video2frames.txt"
        if videos.is_file():
            places = self._videos(videos, places)
            files.append(videos)
        kind: Kind = "tokens" if videos.is_file() else "pooled"
        super().__init__(path, kind=kind, dim=dim, places=places, files=files)

    def _text(self, name: str, encoding: str = "utf-8") -> str:
        file = self.folder / name
        if not file.is_file():
            raise DataError(f"{file}: missing; a BigFile has {NAMES}")
        return file.read_text(encoding=encoding)

    def _shape(self) -> tuple[int, int]:
        words = self._text("shape.txt", "latin-1").split()
        if len(words) != 2 or not all(word.isdecimal() for word in words) or int(words[1]) == 0:
            raise DataError(f"{self.folder / 'shape.txt'}: expected `<rows> <dims>`, got "
                            f"{' '.join(words)[:80]!r}")  # fmt: skip
        return int(words[0]), int(words[1])

    def _open(self) -> None:
        rows, dim = self._size
        file = self.folder / "feature.bin"
        if not file.is_file():
            raise DataError(f"{file}: missing; a BigFile has {NAMES}", kind="feature_unreadable")
        size = file.stat().st_size
        if size != rows * dim * 4:
            raise DataError(f"{file}: {size:,} bytes, but shape.txt says {rows} x {dim} float32, "
                            f"{rows * dim * 4:,} bytes; was its copying cut short?",
                            kind="feature_unreadable")  # fmt: skip
        if rows:
            mapped = np.memmap(file, dtype="<f4", mode="r", shape=(rows, dim))
            self._matrix = mapped.view(np.ndarray)
        else:
            self._matrix = np.empty((0, dim), dtype=np.float32)

    def _videos(self, file: Path, rows: dict[str, int]) -> dict[str, np.ndarray]:
        try:
            # a literal, never `eval`: the file may come from anywhere
            found = ast.literal_eval(file.read_text(encoding="utf-8"))
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            raise DataError(f"{file}: not a Python dictionary of names: {error}") from error
        if not isinstance(found, dict):
            raise DataError(f"{file}: expected {{video id: [row name, ...]}}, got a "
                            f"{type(found).__name__}")  # fmt: skip
        videos = {}
        for video, names in found.items():
            if not isinstance(video, str) or not isinstance(names, list) or not names:
                raise DataError(f"{file}: video {video!r} must have a list of row names that is "
                                "not empty")  # fmt: skip
            unknown = [name for name in names if not isinstance(name, str) or name not in rows]
            if unknown:
                raise DataError(f"{file}: frame {unknown[0]!r} of video {video!r} is not in id.txt")
            videos[video] = np.array([rows[name] for name in names], dtype=np.int64)
        return videos

    def _read(self, place: Any) -> np.ndarray:
        if self.kind == "tokens":
            return self._matrix[place[: self.frames]]
        return self._matrix[place]

    def mean(self, video: str) -> Tensor:
        """Return the mean over all frames of a video, also those that are cut, `(dim,)`."""
        place = self._where(video)
        found = np.atleast_2d(self._matrix[place]).mean(axis=0, dtype=np.float64)
        return torch.from_numpy(found.astype(np.float32))
