"""The manifest: JSON lines, one visual item a line; the only format the library reads.

{"id": "17", "split": "train", "image": "images/17.jpg", "captions": [
  {"id": "17#0", "lang": "en", "text": "Two dogs ...", "origin": "human"},
  {"id": "17#0.de", "lang": "de", "text": "Zwei ...", "origin": "mt", "of": "17#0"}]}
"""

from __future__ import annotations

import io
import os
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from xlcm.data.aside import aside, remove_left
from xlcm.data.import_report import handed_on, report_path, write_report
from xlcm.data.manifest_lines import DataError, parse_item, to_line
from xlcm.data.seen import Seen
from xlcm.registry import nearest
from xlcm.types import Item

__all__ = [
    "BOM", "DataError", "Manifest", "ManifestWriter", "lines", "parse_item", "read_manifest",
    "to_line",
]  # fmt: skip

BOM = b"\xef\xbb\xbf"

# quotes inside a JSON string are escaped, so this can only be a key
_SPLIT = re.compile(rb'"split"\s*:\s*"([^"\\]*)"')


# -- reading ------------------------------------------------------------------------------------


def read_manifest(path: str | Path) -> Iterator[Item]:
    """Yield the items of a manifest in order, holding one line at a time.

    A byte-order mark, Windows line ends and blank lines are tolerated.

    Raises:
        DataError: at the first line that is no item, as `file:line: what is wrong`.
        FileNotFoundError: if there is no such file.
    """
    start = f"{path}:"
    for number, _, raw in lines(path):
        yield parse_item(raw, start + str(number))


def lines(path: str | Path) -> Iterator[tuple[int, int, bytes]]:
    """Yield (line number from 1, byte offset, bytes) of every line that is not blank."""
    offset = 0
    with open(_there(path), "rb", buffering=1 << 20) as file:
        for number, raw in enumerate(file, 1):
            start, offset = offset, offset + len(raw)
            if number == 1 and raw.startswith(BOM):
                start, raw = len(BOM), raw[len(BOM) :]
            if not raw.isspace() and raw:
                yield number, start, raw


def _there(path: str | Path) -> Path:
    path = Path(path)
    if path.is_dir():
        there = ", ".join(sorted(p.name for p in path.glob("*.jsonl"))[:10]) or "none"
        raise DataError(f"{path} is a folder; name the manifest, a .jsonl file (in it: {there})")
    if not path.is_file() and not path.parent.is_dir():
        raise FileNotFoundError(f"no manifest {path}: there is no folder {path.parent}")
    if not path.is_file():
        known = [p.name for p in path.parent.glob("*.jsonl")] if path.parent.is_dir() else []
        raise FileNotFoundError(f"no manifest {path}" + nearest(path.name, sorted(known)))
    return path


# -- random access ------------------------------------------------------------------------------


class Manifest:
    """The items of a manifest by number; rows stay on disk and are parsed when asked for.

    Holds 16 bytes a line. Copies travel into loader processes and open the file again there.

    Args:
        path: the JSON lines.
        split: only the items of this split, and lines too broken to tell theirs; None: all.

    Attributes:
        line_numbers: `(items,)` int32, from 1.

    Raises:
        DataError: if the split has no items; the message names the splits that exist.
        FileNotFoundError: if there is no such file.
    """

    def __init__(self, path: str | Path, split: str | None = None) -> None:
        self.path = str(path)
        self.split = split
        self._stamp = _stamp(_there(path))
        wanted = None if split is None else split.encode()
        offsets, sizes, numbers, seen = array("q"), array("i"), array("i"), set()
        for number, offset, raw in lines(path):
            if wanted is not None:
                found = _split_of(raw)
                if found is not None and found != wanted:
                    seen.add(found)
                    continue
            offsets.append(offset)
            sizes.append(len(raw))
            numbers.append(number)
        if split is not None and not offsets:
            known = sorted(name.decode("utf-8", "replace") for name in seen)
            hint = nearest(split, known)
            raise DataError(f"{path}: no item of split {split!r}{hint}; splits here: "
                            f"{', '.join(known) or 'none, the file has no items'}")  # fmt: skip
        self._offsets = np.array(offsets, dtype=np.int64)
        self._sizes = np.array(sizes, dtype=np.int32)
        self.line_numbers = np.array(numbers, dtype=np.int32)
        self._file: io.FileIO | None = None

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Item:
        """Return one item; negative numbers count from the end.

        Raises:
            DataError: if the line is no item, or the file has changed since it was indexed.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of {len(self)} in {self.path}")
        return parse_item(self.raw(index), self.where(index))

    def __iter__(self) -> Iterator[Item]:
        return (self[i] for i in range(len(self)))

    def where(self, index: int) -> str:
        """Return `file:line` of an item."""
        return f"{self.path}:{self.line_numbers[index]}"

    def raw(self, index: int) -> bytes:
        """Return the bytes of an item's line."""
        if self._file is None:
            if _stamp(_there(self.path)) != self._stamp:
                raise DataError(f"{self.path}: the manifest was changed while it was in use; "
                                "start again")  # fmt: skip
            self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115 -- stays open
        offset, size = int(self._offsets[index]), int(self._sizes[index])
        # threads and forked processes share the file's position, which pread doesn't use
        if hasattr(os, "pread"):
            return os.pread(self._file.fileno(), size, offset)
        self._file.seek(offset)
        return self._file.read(size)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def __del__(self) -> None:
        if opened := self.__dict__.get("_file"):
            opened.close()


def _split_of(raw: bytes) -> bytes | None:
    """Return the split of a line; None if it can't be told.

    Such a line counts in every split, so that it is met and its fault named.
    """
    if match := _SPLIT.search(raw):
        return match[1]
    try:
        return parse_item(raw).split.encode()
    except DataError:
        return None


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


# -- writing ------------------------------------------------------------------------------------


class ManifestWriter:
    """Writes a manifest aside and puts it in place when all of it is there.

    Use it as `with ManifestWriter("data/photos.jsonl") as writer: writer.write(item)`. What killed
    processes left of the same manifest is removed, and at the end the report of an older one.

    Args:
        path: the finished file; an older one is replaced at the end, or kept if writing fails.
        made_from: the manifest whose items these are: what its report says of the data set is
            written beside the new one.

    Of ids it holds some 20 bytes each, see `Seen`.

    Attributes:
        items: written so far.
        captions: written so far.
    """

    def __init__(self, path: str | Path, *, made_from: str | Path | None = None) -> None:
        self.path, self.made_from = Path(path), made_from
        self.items = self.captions = 0
        self._ids, self._caption_ids = Seen(), Seen()

    def __enter__(self) -> ManifestWriter:
        if self.path.is_dir():
            raise DataError(f"{self.path} is a folder; name the manifest to write, a file in it")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            file = next(folder for folder in self.path.parents if folder.exists())
            raise DataError(f"{self.path}: {file} is no folder, so nothing can be put into it; "
                            "name another place to write") from error  # fmt: skip
        remove_left(self.path)
        self._aside = aside(self.path)
        self._out = open(self._aside, "wb")
        return self

    def write(self, item: Item) -> None:
        """Add one item.

        Raises:
            DataError: for an id that was written before, or an item that could not be read back.
        """
        where = f"{self.path}:{self.items + 1}"
        ids = [caption.id for caption in item.captions]
        if len(set(ids)) < len(ids):
            twice = next(name for i, name in enumerate(ids) if name in ids[:i])
            raise DataError(f"{where}: caption id {twice!r} was written before, in this very item; "
                            "ids must be unique")  # fmt: skip
        line = to_line(item, where)
        if self._ids.add(item.id):
            self._refuse(where, "item", {item.id})
        if known := {name for name in ids if self._caption_ids.add(name)}:
            self._refuse(where, "caption", known)
        self._out.write(line)
        self.items += 1
        self.captions += len(ids)

    def flush(self) -> None:
        """Put on disk what was written so far: after this, putting it in place needs no room."""
        self._out.flush()
        os.fsync(self._out.fileno())

    def _refuse(self, where: str, kind: str, ids: set[str]) -> None:
        """Refuse ids that are in the file; two names may have one digest, so it is looked up."""
        self._out.flush()
        for number, _, raw in lines(self._aside):
            item = parse_item(raw)
            known = {item.id} if kind == "item" else {caption.id for caption in item.captions}
            if twice := sorted(known & ids):
                raise DataError(f"{where}: {kind} id {twice[0]!r} was written before, in line "
                                f"{number}; ids must be unique")  # fmt: skip

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            told = None if self.made_from is None else handed_on(self.made_from)
            self.flush()
            self._out.close()
            # a kill from here on may leave a manifest without a report, but never with another's
            report_path(self.path).unlink(missing_ok=True)
            os.replace(self._aside, self.path)
            if told is not None:
                write_report(self.path, told)
        else:
            self._out.close()
            self._aside.unlink()
