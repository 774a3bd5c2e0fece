"""Paths of pictures and videos, from the manifest's folder; and whether the files are there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from msgspec.structs import replace

from xlcm.data.manifest import DataError
from xlcm.types import Item

SHOWN = 5  # examples that a message or report names
VIDEOS = (".mp4", ".webm", ".mkv", ".avi", ".mov")
ANY_VIDEO = ".*"
"""Ending, in an item's `video`, of a file that may have any ending of `VIDEOS`, capitals or not."""


class Pictures:
    """Turns file names into paths from the manifest's folder, and looks whether they are there.

    Each folder is listed once, which on a network disk is far faster than asking for every file.
    A video `<name>.*` is the one file `<name>` with an ending of `VIDEOS`.

    Args:
        folder: what the names start from; None: names are taken off the items.
        manifest: the file whose folder the paths start from.
        missing: `error`, `drop` or `keep`.
        more: folders for names that `folder` lacks.

    Raises:
        DataError: if there is no such folder.
    """

    def __init__(
        self,
        folder: str | None,
        manifest: str | Path,
        missing: str = "error",
        *,
        more: Sequence[str] = (),
    ) -> None:
        self.folders = [*([] if folder is None else [folder]), *more]
        for named in self.folders:
            if not Path(named).is_dir():
                raise DataError(f"--images {named}: no such folder")
        self.start = os.path.realpath(Path(manifest).parent)
        self.missing = missing
        self.without: list[str] = []  # the first few
        self.taken_off = self.absent = self.present = 0
        self.videos = False  # whether some of those were videos of any ending
        self._listed: dict[str, set[str]] = {}
        self._videos: dict[str, dict[str, list[str]]] = {}

    def place(self, item: Item) -> Item | None:
        """Return the item with paths as the manifest wants them; None if it is dropped.

        Raises:
            DataError: if a video of any ending is there with two.
        """
        for name in ("image", "video"):
            file = getattr(item, name)
            if file is None:
                continue
            if not self.folders and not os.path.isabs(file):
                self.taken_off += 1
                item = _with(item, name, None)
                continue
            path = self._path(file)
            if path is None:
                self.absent += 1
                if file.endswith(ANY_VIDEO):
                    self.videos = True
                    file = file.removesuffix(ANY_VIDEO) + VIDEOS[0]
                if len(self.without) < SHOWN:
                    self.without.append(file)
                if self.missing != "keep":
                    return None
                path = os.path.join(self.folders[0] if self.folders else "", file)
            else:
                self.present += 1
            with suppress(ValueError):  # another drive
                path = os.path.relpath(path, self.start)
            item = _with(item, name, path.replace(os.sep, "/"))
        return item

    def _path(self, file: str) -> str | None:
        for folder in self.folders or [""]:
            path = os.path.join(os.path.abspath(folder), file)
            if path.endswith(ANY_VIDEO):
                if (video := self._video(path.removesuffix(ANY_VIDEO))) is not None:
                    return video
            elif self._there(path):
                return path
        return None

    def _video(self, bare: str) -> str | None:
        folder, name = os.path.split(bare)
        if folder not in self._videos:
            known = self._videos[folder] = {}
            for file in sorted(self._names(folder)):
                stem, ending = os.path.splitext(file)
                if ending.lower() in VIDEOS:
                    known.setdefault(stem, []).append(file)
        found = self._videos[folder].get(name, [])
        if len(found) > 1:
            raise DataError(f"{folder}: {' and '.join(found)} are both there: which one is the "
                            "video? Take the others away")  # fmt: skip
        return os.path.join(folder, found[0]) if found else None

    def finish(self) -> None:
        """Refuse missing pictures, unless they may be dropped or kept; not all can be dropped.

        Raises:
            DataError: with their number and the first names.
        """
        where = f"--images {' '.join(self.folders)}: " if self.folders else ""
        if self.absent and self.missing == "drop" and not self.present:
            raise DataError(
                f"{where}none of {self.absent:,} pictures is there, such as "
                f"{', '.join(self.without)}; nothing is written. Name the folder that these names "
                "start from",
                kind="image_missing",
            )
        if self.absent and self.missing == "error":
            raise DataError(
                f"{where}{self.absent:,} {self._what()} are not there, such as "
                f"{', '.join(self.without)}{self._endings()}; nothing is written. "
                "`--missing-images drop` leaves their items out, `--missing-images keep` keeps "
                "them",
                kind="image_missing",
            )

    def notes(self) -> list[str]:
        """Return what was done, for the report."""
        said = []
        if self.taken_off:
            said.append(f"no --images: {self.taken_off:,} items have no path to a picture; train "
                        "on features with their ids as keys, or import again")  # fmt: skip
        if self.absent:
            done = "dropped" if self.missing == "drop" else "kept"
            said.append(f"{self.absent:,} {self._what()} are not there, their items were {done}: "
                        + ", ".join(self.without) + self._endings())  # fmt: skip
        return said

    def _what(self) -> str:
        return "videos" if self.videos else "pictures"

    def _endings(self) -> str:
        return f" (or {' '.join(VIDEOS[1:])})" if self.videos else ""

    def _there(self, path: str) -> bool:
        folder, name = os.path.split(path)
        return name in self._names(folder)

    def _names(self, folder: str) -> set[str]:
        if folder not in self._listed:
            try:
                with os.scandir(folder) as entries:
                    self._listed[folder] = {entry.name for entry in entries}
            except OSError:
                self._listed[folder] = set()
        return self._listed[folder]


def _with(item: Item, name: str, path: str | None) -> Item:
    if name == "image":
        return replace(item, image=path)
    return replace(item, video=path, segment=item.segment if path is not None else None)
