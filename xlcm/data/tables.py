"""Tables on the screen for the data commands."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table; columns that hold only numbers are aligned to the right."""
    rows = [list(row) for row in rows]
    shown = Table(title=escape(title), title_justify="left", title_style="bold")
    for i, name in enumerate(header):
        numbers = all(isinstance(row[i], int | float) for row in rows)
        shown.add_column(name, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(escape(_cell(value)) for value in row))
    console().print(shown)


def say(text: str) -> None:
    """Print a line as it is."""
    console().print(text, markup=False, highlight=False, soft_wrap=True)


def console() -> Console:
    """Return the console; wide where the output is a file, so that nothing is broken up there."""
    wide = Console()
    if not wide.is_terminal and "COLUMNS" not in os.environ:
        return Console(width=160)
    return wide


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
