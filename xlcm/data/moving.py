"""Paths of pictures when a manifest is written anew in another folder."""

from __future__ import annotations

import os
from pathlib import Path

from msgspec.structs import replace

from xlcm.types import Item


class Moving:
    """Rewrites the paths of items, which start from their manifest's folder, for another folder.

    Absolute paths stay, and all of them where the folder is the same. Links among the folders
    are followed where a `..` behind them would otherwise lead elsewhere.

    Args:
        source: the manifest that items were read from.
        target: the one that they are written to.

    Attributes:
        moved: how many paths were rewritten.
    """

    def __init__(self, source: str | Path, target: str | Path) -> None:
        self.source = os.path.realpath(Path(source).parent)
        self.target = os.path.realpath(Path(target).parent)
        self.moved = 0
        self._folders: dict[str, str] = {}

    def __call__(self, item: Item) -> Item:
        """Return the item with paths that lead from the target's folder to the same files."""
        if self.source == self.target:
            return item
        return replace(item, image=self._path(item.image), video=self._path(item.video))

    def _path(self, path: str | None) -> str | None:
        if path is None or os.path.isabs(path):
            return path
        self.moved += 1
        folder, name = os.path.split(path)
        if folder not in self._folders:
            self._folders[folder] = self._folder(folder)
        return os.path.join(self._folders[folder], name).replace(os.sep, "/")

    def _folder(self, folder: str) -> str:
        parts = folder.split("/")
        while parts and parts[0] in ("..", "."):
            parts.pop(0)
        whole = os.path.join(self.source, folder)
        if ".." in parts:
            whole = os.path.realpath(whole)
        try:
            return os.path.relpath(whole, self.target)
        except ValueError:  # another drive
            return os.path.normpath(whole)

    def tell(self) -> str:
        """Return what was done, for people; empty if nothing was."""
        if not self.moved:
            return ""
        return (
            f"{self.moved:,} paths of pictures now start from {self.target}; with `image_root`, "
            "write to the folder of the old manifest, or use --keep-paths"
        )
