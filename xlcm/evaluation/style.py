"""How our plots look: colours that every eye tells apart, quiet axes, no global state."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's palette for all kinds of colour vision, https://jfly.uni-koeln.de/color/,
# without its yellow, which is too pale on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#666666"

_SETTINGS = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": "#333333",
    "axes.edgecolor": "#999999",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "legend.frameon": False,
    "legend.fontsize": 9,
}


@contextmanager
def figure(
    path: str | Path, size: tuple[float, float], *, families: tuple[str, ...] = ("DejaVu Sans",)
) -> Iterator[Figure]:
    """Yield an empty figure and save it as `path` (PNG), aside and then renamed.

    Args:
        path: the file.
        size: width and height in inches, at 150 dots an inch.
        families: fonts; a glyph that the first lacks comes from the next.
    """
    path = Path(path)
    settings = {**_SETTINGS, "font.family": list(families)}
    with (
        matplotlib.rc_context(settings),  # type: ignore[arg-type]
        warnings.catch_warnings(),
    ):
        # said once, with the remedy, by xlcm.evaluation.fonts
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        drawn = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(drawn)  # no window, whatever backend the user has chosen
        yield drawn
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(path.name + ".part")
        drawn.savefig(aside, dpi=150, format="png", facecolor="white")
        os.replace(aside, path)


def look(number: int) -> tuple[str, str]:
    """Return colour and marker of the n-th series; pairs repeat only after 49."""
    return COLOURS[number % len(COLOURS)], MARKERS[(number + number // 7) % len(MARKERS)]


def only(axes: Axes, grid: str) -> None:
    """Keep the grid lines of one axis, `x` or `y`."""
    axes.grid(visible=False)
    axes.grid(visible=True, axis=grid)  # type: ignore[arg-type]
