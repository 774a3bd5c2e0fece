"""SIGTERM and Ctrl-C as a wish that the loop asks for between steps."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

SAME_SIGNAL_S = 2.0  # a second Ctrl-C that comes later is meant as one


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM or SIGINT into a wish to stop; a second, later SIGINT acts as always.

    A launcher passes on the signal that the whole group has already got, so the same one may come
    twice at once; and whoever sends SIGTERM again can only be served by the checkpoint.
    """
    asked_at: float | None = None
    before: dict[int, Any] = {}

    def ask(number: int, frame: object) -> None:
        nonlocal asked_at
        now = time.monotonic()
        if asked_at is None:
            asked_at = now
        elif number == signal.SIGINT and now - asked_at > SAME_SIGNAL_S:
            raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():  # or signals are not ours
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, ask)
    try:
        yield lambda: asked_at is not None
    finally:
        for known, handler in before.items():
            signal.signal(known, handler)
