"""How a user's downloaded pictures are called: by the row's number, or by a list of URLs."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from xlcm.data.manifest import DataError
from xlcm.data.sources.text_lines import iter_lines


def add_downloads(parser: argparse.ArgumentParser, *, default: str, fields: str) -> None:
    """Declare how pictures that were fetched by URL are found below `--images`."""
    shown = default.replace("%", "%%")
    parser.add_argument("--image-name", default=default, metavar="PATTERN",
                        help=f"a picture's path, made of {fields} (default: {shown})")  # fmt: skip
    parser.add_argument("--downloaded", metavar="FILE", help="instead: lines <url><tab><path> of "
                        "the pictures that could be fetched")  # fmt: skip


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
