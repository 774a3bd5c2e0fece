"""Paths of pictures and videos, from the manifest's folder; and whether the files are there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from xlcm.data.manifest import DataError
from xlcm.types import Item

SHOWN = 5  # examples that a message or report names


class Pictures:
    """Turns file names into paths from the manifest's folder, and looks whether they are there.

    Each folder is listed once, which on a network disk is far faster than asking for every file.

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
        self.taken_off = self.absent = 0
        self._listed: dict[str, set[str]] = {}

    def place(self, item: Item) -> Item | None:
        """Return the item with paths as the manifest wants them; None if it is dropped."""
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
                if len(self.without) < SHOWN:
                    self.without.append(file)
                if self.missing != "keep":
                    return None
                path = os.path.join(self.folders[0] if self.folders else "", file)
            with suppress(ValueError):  # another drive
                path = os.path.relpath(path, self.start)
            item = _with(item, name, path.replace(os.sep, "/"))
        return item

    def _path(self, file: str) -> str | None:
        for folder in self.folders or [""]:
            path = os.path.join(os.path.abspath(folder), file)
            if self._there(path):
                return path
        return None

    def finish(self) -> None:
        """Refuse missing pictures, unless they may be dropped or kept.

        Raises:
            DataError: with their number and the first names.
        """
        if self.absent and self.missing == "error":
            where = f"--images {' '.join(self.folders)}: " if self.folders else ""
            raise DataError(
                f"{where}{self.absent:,} pictures are not there, such as "
                f"{', '.join(self.without)}; nothing is written. `--missing-images drop` leaves "
                "their items out, `--missing-images keep` keeps them",
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
            said.append(f"{self.absent:,} pictures are not there, their items were {done}: "
                        + ", ".join(self.without))  # fmt: skip
        return said

    def _there(self, path: str) -> bool:
        folder, name = os.path.split(path)
        if folder not in self._listed:
            try:
                with os.scandir(folder) as entries:
                    self._listed[folder] = {entry.name for entry in entries}
            except OSError:
                self._listed[folder] = set()
        return name in self._listed[folder]


def _with(item: Item, name: str, path: str | None) -> Item:
    return replace(item, image=path) if name == "image" else replace(item, video=path)
