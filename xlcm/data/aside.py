"""Files written aside, as `.NAME.PID`, and then renamed; a killed process leaves such a file."""

from __future__ import annotations

import os
import re
from pathlib import Path


def aside(path: Path) -> Path:
    """Return where this process writes a file until all of it is there."""
    return path.with_name(f".{path.name}.{os.getpid()}")


def remove_left(path: Path) -> None:
    """Remove what processes that are gone left of a file that they wrote aside.

    A process of this machine that still runs keeps its own. Where that can't be asked, such as on
    Windows, all is left as it is.
    """
    _remove(path.parent, re.compile(rf"\.{re.escape(path.name)}\.(\d+)", re.ASCII))


def remove_left_in(folder: Path) -> None:
    """Do the same for all files of a folder, whose names have an ending."""
    _remove(folder, re.compile(r"\..+\.[a-z0-9]+\.(\d+)", re.ASCII))


def _remove(folder: Path, left: re.Pattern[str]) -> None:
    with os.scandir(folder) as entries:
        found = [(entry.path, match) for entry in entries if (match := left.fullmatch(entry.name))]
    for path, match in found:
        if _gone(int(match[1])):
            Path(path).unlink(missing_ok=True)


def _gone(process: int) -> bool:
    if os.name != "posix" or process == os.getpid():
        return False
    try:
        os.kill(process, 0)  # asks, and sends nothing
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # another user's; no number of a process
        return False
    return False
