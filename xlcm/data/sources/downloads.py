"""Pictures by URL: what a user's downloads are called, and which rows show one picture."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping

from xlcm.data.manifest import DataError
from xlcm.data.sources.text_lines import iter_lines
from xlcm.types import Item

REPEATED = "rows whose URL was there before"
BY_ROW = "--against compares numbers of rows alone, as manifests have no URLs."


def add_downloads(parser: argparse.ArgumentParser, *, default: str, fields: str) -> None:
    """Declare how pictures that were fetched by URL are found below `--images`."""
    shown = default.replace("%", "%%")
    parser.add_argument("--image-name", default=default, metavar="PATTERN",
                        help=f"a picture's path, made of {fields} (default: {shown})")  # fmt: skip
    parser.add_argument("--downloaded", metavar="FILE", help="instead: lines <url><tab><path> of "
                        "the pictures that could be fetched")  # fmt: skip


class Urls:
    """Tells which rows have one URL; a manifest doesn't have them.

    A training row with the URL of a held-out row is the same picture, which is told as a leak.

    Args:
        drop: leave out rows whose URL was there before; the held-out ones come before all others.
    """

    def __init__(self, *, drop: bool) -> None:
        self._held: dict[bytes, str] = {}  # digest -> the first held-out item
        self._first: dict[str, str] = {}  # other items with those URLs -> that item
        self._seen: set[bytes] | None = set() if drop else None

    def hold(self, url: str, identity: str) -> None:
        """Note the URL of a held-out row; call it for all of them before `repeats`."""
        self._held.setdefault(_digest(url), identity)

    def repeats(self, url: str, identity: str) -> bool:
        """Whether the row is to be left out, as one before it, or a held-out one, has its URL."""
        digest = _digest(url)
        first = self._held.get(digest, identity)
        if self._seen is not None:
            if first != identity or digest in self._seen:
                return True
            self._seen.add(digest)
        if first != identity:
            self._first[identity] = first
        return False

    def picture(self, item: Item) -> str:
        """Return the id of the item that stands for the picture."""
        return self._first.get(item.id, item.id)


def _digest(url: str) -> bytes:
    return hashlib.blake2b(url.encode(), digest_size=10).digest()


class Downloads:
    """Names of pictures.

    Args:
        pattern: with fields in braces, as `str.format` takes them.
        downloaded: file of `<url><tab><path>`; takes the place of the pattern.
        example: a value for each field, to try the pattern with.

    Raises:
        DataError: for a field that isn't there, or a line without tab.
    """

    def __init__(
        self, pattern: str, downloaded: str | None, example: Mapping[str, str | int]
    ) -> None:
        self.pattern = pattern
        self.paths: dict[str, str] | None = None
        try:
            pattern.format(**example)
        except (KeyError, IndexError, ValueError) as error:
            known = ", ".join(f"{{{name}}}" for name in example)
            raise DataError(f"--image-name {pattern}: {error!r}; fields are {known}") from error
        if downloaded is not None:
            self.paths = {}
            for number, line in iter_lines(downloaded):
                url, tab, path = line.partition("\t")
                if not tab or not path.strip():
                    raise DataError(f"{downloaded}:{number}: expected <url><tab><path>, got "
                                    f"{line[:60]!r}")  # fmt: skip
                self.paths[url.strip()] = path.strip()

    def name(self, url: str, **fields: str | int) -> str:
        """Return the path below the pictures' folder; of one that wasn't fetched, a name of none.

        So the row counts as a missing picture, and `--missing-images` says what is done with it.
        """
        if self.paths is None:
            return self.pattern.format(**fields)
        return self.paths.get(url) or "not downloaded: " + "-".join(map(str, fields.values()))
