"""Captions of one picture from several files -> one item; ids of captions; languages to read."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from xlcm.data.manifest import DataError
from xlcm.data.sources.base import Skipped
from xlcm.registry import nearest
from xlcm.types import Caption, Item


def add_langs(parser: argparse.ArgumentParser, known: Iterable[str]) -> None:
    """Declare `--langs`."""
    parser.add_argument("--langs", nargs="+", metavar="LANG",
                        help=f"languages to read, of {' '.join(known)} (default: all)")  # fmt: skip


def chosen_langs(langs: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """Return the languages that were asked for, in the order of `known`; all without a request.

    Raises:
        DataError: for a language that the set does not have.
    """
    for lang in langs or ():
        if lang not in known:
            raise DataError(f"--langs {lang}: this set has {' '.join(known)}"
                            + nearest(lang, known))  # fmt: skip
    return [lang for lang in known if not langs or lang in langs]


def captions_of(
    identity: str, lang: str, texts: Sequence[object], where: str, skipped: Skipped
) -> list[Caption]:
    """Return human captions `<identity>#<lang>.<n>`, n the place of the text among `texts`.

    Raises:
        DataError: for what is no text.
    """
    made = []
    for n, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"{where}: caption {n} is no text but {text!r:.60}")
        if not text.strip():
            skipped.add(where)
            continue
        made.append(Caption(f"{identity}#{lang}.{n}", lang, text.strip()))
    return made


@dataclass
class _Open:
    split: str
    where: str
    captions: list[Caption] = field(default_factory=list)


class Joined:
    """Pictures in the order in which they were first met, with what was read of each."""

    def __init__(self) -> None:
        self._items: dict[str, _Open] = {}

    def add(self, identity: str, split: str, captions: Iterable[Caption], where: str) -> None:
        """Add captions to a picture, which may be new.

        Raises:
            DataError: if the picture is in another split already.
        """
        item = self._items.setdefault(identity, _Open(split, where))
        if item.split != split:
            raise DataError(f"{where}: picture {identity!r} is in split {split!r} here, in "
                            f"{item.split!r} at {item.where}")  # fmt: skip
        item.captions += captions

    def __contains__(self, identity: str) -> bool:
        return identity in self._items

    def items(self, file: Callable[[str], str | None]) -> Iterator[Item]:
        """Yield them; `file` returns a picture's path below `--images`."""
        for identity, item in self._items.items():
            yield Item(identity, item.split, tuple(item.captions), file(identity), where=item.where)
