"""Pictures on disk after they were drawn once; several processes may fill it together."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import tempfile
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray

from xlcm.data.scenes import backgrounds, draw, shapes, splits, world

VARIABLE = "XLCM_CACHE"
CHUNK = 1000  # pictures a file: any size of a split shares its files with any other
VERSION = 1  # of the layout of the files
CHECK = 4  # bytes of checksum after each picture

_log = logging.getLogger(__name__)


def default_folder() -> Path:
    """Return `$XLCM_CACHE/scenes`, or `~/.cache/xlcm/scenes`."""
    root = os.environ.get(VARIABLE)
    return (Path(root) if root else Path.home() / ".cache" / "xlcm") / "scenes"


class PictureCache:
    """The pictures of one split, by index.

    Files of `CHUNK` rows, each a picture and its checksum; a row counts only if the checksum is
    right, so a write that was cut short, or one that two processes made at once, is never taken
    for a picture. Rows are written through the file and not through the memory map, since a full
    disk is an error that way and a killed process the other.

    Args:
        folder: the root; pictures lie in a sub-folder named by a hash of the drawing code.
        name: of the split and seed, part of the file names.
        size: side of the pictures in pixels.
    """

    def __init__(self, folder: str | Path, name: str, size: int) -> None:
        self.root = Path(folder)
        self.folder = self.root / f"{drawing_hash()}-{size}"
        self.name = name
        self.size = size
        self.width = size * size * 3 + CHECK
        self.writable = True
        self._chunks: dict[int, NDArray[np.uint8]] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            self._give_up(error)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_chunks": {}}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)

    def get(self, index: int) -> NDArray[np.uint8] | None:
        """Return a picture `(size, size, 3)`, or None if it isn't there whole."""
        chunk, row = divmod(index, CHUNK)
        rows = self._chunks.get(chunk)
        if rows is None:
            rows = self._open(chunk)
            if rows is None:
                return None
            self._chunks[chunk] = rows
        data = np.array(rows[row])  # one copy: the map must not be handed out
        if zlib.crc32(data[:-CHECK].tobytes()) != int.from_bytes(data[-CHECK:].tobytes(), "little"):
            return None
        return data[:-CHECK].reshape(self.size, self.size, 3)

    def put(self, index: int, picture: NDArray[np.uint8]) -> None:
        """Keep a picture `(size, size, 3)`; after a failure nothing is written any more."""
        if not self.writable:
            return
        chunk, row = divmod(index, CHUNK)
        path = self._path(chunk)
        data = picture.tobytes()
        data += zlib.crc32(data).to_bytes(CHECK, "little")
        try:
            was_there = path.exists()  # files appear whole, so one that can't be read is damaged
            if self._chunks.get(chunk) is None and self._open(chunk) is None:
                self._create(path, replace=was_there)
            offset = path.stat().st_size - (CHUNK - row) * self.width
            with path.open("r+b", buffering=0) as file:
                file.seek(offset)
                if file.write(data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._give_up(error)

    def _path(self, chunk: int) -> Path:
        return self.folder / f"{self.name}-{chunk:05d}.npy"

    def _open(self, chunk: int) -> NDArray[np.uint8] | None:
        """Map a file for reading; None if it isn't there or is no whole file of ours."""
        try:
            rows = np.load(self._path(chunk), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):  # absent, cut short or foreign: made anew
            return None
        return rows if rows.shape == (CHUNK, self.width) and rows.dtype == np.uint8 else None

    def _create(self, path: Path, replace: bool) -> None:
        """Make a file of zeros aside, then name it; holes take no space on most disks."""
        with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".new", delete=False) as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (CHUNK, self.width)}
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(file.tell() + CHUNK * self.width)
        aside = Path(file.name)
        try:
            if replace:
                aside.replace(path)
            else:
                os.link(aside, path)  # unlike a rename, it leaves what another has just made
        except FileExistsError:
            pass  # as good as ours
        except OSError:  # no hard links on this disk
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)

    def _give_up(self, error: OSError) -> None:
        self.writable = False
        _log.warning(
            "pictures of scenes can't be kept in %s (%s): they are drawn again each time. "
            "Free some space there, set `cache` or %s to another folder, or set `cache: null`.",
            self.root,
            error.strerror or error,
            VARIABLE,
        )


@cache
def drawing_hash() -> str:
    """Return 12 hex digits that change with the code and the libraries that draw the pictures."""
    digest = hashlib.sha256(f"{VERSION} {np.__version__} {PIL.__version__}".encode())
    for module in (world, splits, shapes, backgrounds, draw):
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()[:12]
