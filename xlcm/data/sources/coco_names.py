"""Ids of COCO's and Flickr's pictures: which picture an id is, and where its file lies."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path

from xlcm.types import Item

_COCO = re.compile(r"COCO_(?:train|val|test)2014_(\d{12})")
_NUMBERED = re.compile(r"(?:COCO_[a-z]+\d{4}_)?(\d{12})")
DEPTH = 2  # folders below the one that is named, such as coco/val2014


def image_folders(args: argparse.Namespace) -> list[str]:
    """Return the folders that `--images` and `--more-images` name."""
    return [*([args.images] if args.images else []), *args.more_images]


def coco_id(number: int, part: str) -> str:
    """Return the id of a picture of COCO 2014: its file name without ending.

    Args:
        number: COCO's own, such as 123456.
        part: `train` or `val`.
    """
    return f"COCO_{part}2014_{number:012d}"


def coco_number(identity: str) -> int | None:
    """Return COCO's number of `COCO_val2014_000000123456`; None for other pictures."""
    match = _COCO.fullmatch(identity)
    return int(match[1]) if match else None


def coco_file(identity: str) -> str:
    """Return where COCO's archives put a picture: `val2014/COCO_val2014_000000123456.jpg`."""
    return f"{identity.split('_')[1]}/{identity}.jpg"


def picture_key(item: Item) -> str:
    """Return `coco:123456`, or `flickr:1234567890` for what is not of COCO."""
    number = coco_number(item.id)
    return f"flickr:{item.id.partition('_')[0]}" if number is None else f"coco:{number}"


class PictureIndex:
    """Finds the files of pictures in any of the usual layouts; lists each folder once.

    All pictures in one folder, in `train2014/` and `val2014/`, in `coco/val2014/`, or those of
    COCO 2017 (the same pictures, sorted anew and named `000000123456.jpg`): a file is found by
    its name without ending, one of COCO also by its number.

    Args:
        folders: as `image_folders` returns them; without any, every name is the owners'.
    """

    def __init__(self, folders: Sequence[str]) -> None:
        self._names: dict[str, str] = {}
        self._numbers: dict[int, str] = {}
        for path in (path for folder in folders for path in _files(folder)):
            stem = os.path.splitext(os.path.basename(path))[0]
            self._names.setdefault(stem, path)
            if match := _NUMBERED.fullmatch(stem):
                self._numbers.setdefault(int(match[1]), path)

    def find(self, identity: str, default: str) -> str:
        """Return a picture's path below its folder; `default` if it is not there.

        Args:
            identity: the file's name without ending.
            default: its place in the owners' layout, for messages.
        """
        if identity in self._names:
            return self._names[identity]
        number = coco_number(identity)
        return default if number is None else self._numbers.get(number, default)


def _files(folder: str) -> list[str]:
    found = []
    for here, folders, files in os.walk(folder, followlinks=True):
        below = Path(here).relative_to(folder)
        found += [(below / name).as_posix() for name in sorted(files)]
        folders[:] = sorted(folders) if len(below.parts) < DEPTH else []
    return found
