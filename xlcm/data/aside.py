"""Files written aside, as `.NAME.HOST-PID`, then renamed; a killed process leaves such a file."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable
from pathlib import Path

# on a shared disk, other machines and containers have processes of the same numbers
_HOST = re.sub(r"[^A-Za-z0-9_]+", "_", platform.node())[:40]


def aside(path: Path) -> Path:
    """Return where this process writes a file until all of it is there."""
    return path.with_name(f".{path.name}.{_HOST}-{os.getpid()}")


def remove_left(path: Path) -> None:
    """Remove what processes that are gone left of a file that they wrote aside.

    A process that still runs keeps its own, and so does any of another machine. Where that can't
    be asked, such as on Windows, all is left as it is.
    """
    _remove(path.parent, re.escape(path.name))


def remove_left_in(folder: Path, endings: Iterable[str]) -> None:
    """Do the same for all files of a folder that have one of some endings, such as `.jpg`."""
    if known := "|".join(re.escape(ending) for ending in endings if ending):
        _remove(folder, rf".+(?:{known})")


def _remove(folder: Path, names: str) -> None:
    left = re.compile(rf"\.{names}\.{_HOST}-(\d+)", re.ASCII | re.DOTALL)
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
