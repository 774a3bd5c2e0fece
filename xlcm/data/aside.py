"""Files written aside, as `.NAME.PID`, and then renamed; a killed process leaves such a file."""

from __future__ import annotations

import os
from pathlib import Path


def aside(path: Path) -> Path:
    """Return where this process writes a file until all of it is there."""
    return path.with_name(f".{path.name}.{os.getpid()}")


def remove_left(path: Path) -> None:
    """Remove what processes that are gone left of a file that they wrote aside.

    A process of this machine that still runs keeps its own. Where that can't be asked, such as on
    Windows, all is left as it is.
    """
    start = f".{path.name}."
    with os.scandir(path.parent) as entries:
        left = [Path(entry.path) for entry in entries if entry.name.startswith(start)]
    for file in left:
        number = file.name[len(start) :]
        if number.isdecimal() and number.isascii() and _gone(int(number)):
            file.unlink(missing_ok=True)


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
