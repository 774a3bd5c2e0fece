"""How far long work is: a line with throughput and time left, on screens and in log files."""

from __future__ import annotations

import sys
import time
from typing import TextIO

SCREEN_S, FILE_S = 1.0, 60.0  # seconds between two lines


class Progress:
    """Tells of the work of one process, which stands for all: they have equal shares.

    Args:
        total: lines of all processes; None: nobody knows.
        name: what is done, `en to de`.
        world: number of processes.
        show: whether this process tells.
        out: where to.
        unit: what lines are called.
    """

    def __init__(
        self,
        total: int | None,
        name: str,
        world: int = 1,
        show: bool = True,
        out: TextIO | None = None,
        *,
        unit: str = "lines",
    ) -> None:
        self.total, self.name, self.world, self.show, self.unit = total, name, world, show, unit
        self.out = sys.stderr if out is None else out
        self.done = 0
        self._begin = self._said = time.monotonic()
        self._wrote = False

    def advance(self, lines: int) -> None:
        """Count lines that this process has done."""
        self.done += lines * self.world
        if self.total is not None:
            self.done = min(self.done, self.total)
        screen, now = self.out.isatty(), time.monotonic()
        if self.show and now - self._said > (SCREEN_S if screen else FILE_S):
            self._said, self._wrote = now, screen
            line = self.text(now - self._begin)
            self.out.write(f"\r{line}\033[K" if screen else line + "\n")
            self.out.flush()

    def text(self, seconds: float) -> str:
        """Return the line after so many seconds."""
        speed = self.done / max(seconds, 1e-9)
        if self.total is None:
            return f"{self.name}: {self.done:,} {self.unit}, {speed:,.1f} {self.unit}/s"
        left = int((self.total - self.done) / max(speed, 1e-9))
        hours, minutes = divmod(left // 60, 60)
        return (
            f"{self.name}: {self.done:,} of {self.total:,} {self.unit}, "
            f"{speed:,.1f} {self.unit}/s, {hours}:{minutes:02d}:{left % 60:02d} left"
        )

    def close(self) -> None:
        """Leave the line on the screen."""
        if self._wrote:
            self.out.write("\n")
