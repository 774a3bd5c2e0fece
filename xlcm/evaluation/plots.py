"""Curves of a run and recall by language, as PNG files.

`save_plots(folder)` draws what it finds in a run's folder: `plots/curves.png` from
`metrics.jsonl`, `plots/languages.png` from `report.json`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeGuard

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from xlcm.evaluation.page import words
from xlcm.evaluation.report import DirectionResult, RetrievalReport
from xlcm.evaluation.style import COLOURS, GREY, MARKERS, figure, look, only

Record = dict[str, Any]
Series = dict[str, list[tuple[float, float]]]

# numbers of a training step that are not loss terms
# fmt: off
NOT_TERMS = frozenset((
    "step", "loss", "lr", "epoch", "items", "items_per_s", "mfu", "tokens_per_s", "seconds", "time",
    "data_time", "data_share", "grad_norm", "gradient_norm", "scale", "temperature", "bias",
    "skipped", "cut", "memory", "seed", "samples", "eta",
))
# fmt: on


def save_plots(folder: str | Path) -> list[Path]:
    """Draw what a run's folder has the figures for; return the files written."""
    folder = Path(folder)
    written = []
    if (folder / "metrics.jsonl").is_file():
        records = read_metrics(folder / "metrics.jsonl")
        if any("step" in record for record in records):
            written.append(plot_curves(records, folder / "plots" / "curves.png"))
    if (folder / "report.json").is_file():
        report = RetrievalReport.load(folder)
        written.append(plot_languages(report, folder / "plots" / "languages.png"))
    return written


def read_metrics(path: str | Path) -> list[Record]:
    """Return the records of a `metrics.jsonl`.

    A last line without its end, as a run leaves that was killed while writing, is left out.

    Raises:
        ValueError: for any other line that is not a JSON object; names file and line.
    """
    records = []
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError(f"expected an object, got {type(record).__name__}")
        except ValueError as error:
            if number == len(lines):
                continue
            raise ValueError(f"{path}:{number}: not a record of a run: {error}") from error
        records.append(record)
    return records


def plot_curves(records: Sequence[Record], path: str | Path, *, title: str = "") -> Path:
    """Draw loss and terms, learning rate, and by language SumR or R@1 of the evaluations.

    Args:
        path: the PNG file to write.
        title: above the panels.
        records: training lines `{"step", "loss", terms, "lr", ...}` and evaluation lines
            `{"step", "kind": "eval", "sum_r": {lang: x}, "r1": {lang: x}}`. What a line lacks is
            not drawn.
    """
    losses, rates, recalls, label = _collect(records)
    panels = [
        ("Training loss", "loss", losses),
        (f"Validation {label}", f"{label} ({'%' if label == 'R@1' else 'of 600'})", recalls),
        ("Learning rate", "learning rate", rates),
    ]
    panels = [panel for panel in panels if panel[2]]
    with figure(path, (4.6 * max(1, len(panels)), 3.6)) as drawn:
        if title:
            drawn.suptitle(title, fontweight="bold")
        for at, (head, unit, series) in enumerate(panels, 1):
            axes = drawn.add_subplot(1, len(panels), at)
            axes.set(title=head, xlabel="step", ylabel=unit)
            only(axes, "y")
            _lines(axes, series, marked=series is recalls, smooth=series is losses)
            if series is rates:
                axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    return Path(path)


def plot_languages(report: RetrievalReport, path: str | Path) -> Path:
    """Draw R@1, R@5 and R@10 of every language with 95 % intervals, a panel a direction."""
    directions = report.directions
    height = 1.9 + 0.42 * len(report.langs)
    with figure(path, (1.0 + 4.6 * len(directions), height)) as drawn:
        drawn.suptitle(f"Recall by language: {report.dataset}, {report.split}", fontweight="bold")
        for at, direction in enumerate(directions, 1):
            axes = drawn.add_subplot(1, len(directions), at)
            rows = [row for row in report.results if row.direction == direction]
            _recalls(axes, rows)
            sizes = sorted({row.gallery for row in rows})
            size = " to ".join(f"{n:,}" for n in dict.fromkeys((sizes[0], sizes[-1])))
            axes.set_title(f"{words(direction).capitalize()}  (gallery {size})")
        handles: list[Any] = [
            Line2D([], [], color=COLOURS[i], marker=MARKERS[i], label=f"R@{k}", lw=2)
            for i, k in enumerate((1, 5, 10))
        ]
        if any(row.chance for row in report.results):
            handles.append(Line2D([], [], color=GREY, marker="|", ls="", ms=9, label="chance R@10"))
        interval = "line: 95 % interval" if any(row.ci95 for row in report.results) else None
        drawn.legend(
            handles=handles, loc="outside lower center", ncols=4, title=interval, title_fontsize=9
        )
    return Path(path)


def _recalls(axes: Axes, rows: Sequence[DirectionResult]) -> None:
    for i, name in enumerate(("r1", "r5", "r10")):
        for y, row in enumerate(rows):
            at, value = y + 0.22 * (i - 1), getattr(row, name)
            if name in row.ci95:
                axes.plot(row.ci95[name], [at, at], color=COLOURS[i], lw=2, solid_capstyle="butt")
            axes.plot(value, at, color=COLOURS[i], marker=MARKERS[i], ms=5, clip_on=False, zorder=3)
    for y, row in enumerate(rows):
        if "r10" in row.chance:
            axes.plot(row.chance["r10"], y, color=GREY, marker="|", ms=16, zorder=1)
    axes.set(
        yticks=range(len(rows)),
        yticklabels=[row.lang for row in rows],
        ylim=(len(rows) - 0.4, -0.6),
        xlim=(0, 100),
        xlabel="recall (%)",
    )
    axes.tick_params(axis="y", length=0)
    only(axes, "x")


def _collect(records: Sequence[Record]) -> tuple[Series, Series, Series, str]:
    losses: Series = {}
    rates: Series = {}
    scores: dict[str, Series] = {"sum_r": {}, "r1": {}}
    for record in records:
        step = record.get("step")
        if not _number(step):
            continue
        if record.get("kind") == "eval":
            for name, series in scores.items():
                for lang, value in _by_language(record.get(name)).items():
                    series.setdefault(lang, []).append((step, value))
            continue
        if _number(record.get("loss")):
            losses.setdefault("loss", []).append((step, record["loss"]))
        for name, value in _terms(record).items():
            losses.setdefault(name, []).append((step, value))
        if _number(record.get("lr")):
            rates.setdefault("lr", []).append((step, record["lr"]))
    if len(losses) == 2:  # one term only: the same curve again, up to its weight
        losses.popitem()
    chosen = "sum_r" if scores["sum_r"] else "r1"
    return losses, rates, scores[chosen], {"sum_r": "SumR", "r1": "R@1"}[chosen]


def _terms(record: Record) -> dict[str, float]:
    inner = record.get("terms")
    source = inner if isinstance(inner, Mapping) else record
    return {k: v for k, v in source.items() if k not in NOT_TERMS and _number(v)}


def _by_language(value: Any) -> dict[str, float]:
    if isinstance(value, Mapping):
        return {str(k): v for k, v in value.items() if _number(v)}
    return {"all": value} if _number(value) else {}


def _number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _lines(axes: Axes, series: Series, *, marked: bool, smooth: bool) -> None:
    for number, (name, points) in enumerate(series.items()):
        colour, marker = look(number)
        steps, values = zip(*sorted(points))
        shape = marker if marked else ""
        if smooth and len(values) > 60:  # the single steps pale, their mean in front
            axes.plot(steps, values, color=colour, lw=0.5, alpha=0.25)
            values = _smooth(values)
        axes.plot(steps, values, color=colour, lw=1.6, label=name, marker=shape, ms=4)
    if marked:
        axes.set_ylim(bottom=0)
    axes.margins(x=0.02)
    if len(series) > 1:
        axes.legend(ncols=1 + (len(series) > 6))


def _smooth(values: Sequence[float]) -> tuple[float, ...]:
    """Return centred means over a fiftieth of the run; at the ends over what there is."""
    half = max(3, len(values) // 100)
    totals = list(accumulate(values, initial=0.0))
    last = len(values)
    spans = ((max(0, i - half), min(last, i + half + 1)) for i in range(last))
    return tuple((totals[high] - totals[low]) / (high - low) for low, high in spans)
