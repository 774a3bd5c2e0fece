"""Methods side by side over an axis and seeds: means, paired differences, tables and a plot.

Figures are rows `{"method", <axis>, "seed", "lang", "sum_r"}`, with `test` where runs were judged
on several. Intervals are 95 % t-intervals over seeds: how far a mean moves if the runs were made
again with other seeds. A difference is taken seed by seed, so that what a seed does to both methods
drops out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from xlcm.config import ConfigError
from xlcm.evaluation.style import figure, look, only
from xlcm.registry import nearest

Row = Mapping[str, Any]
Key = tuple[str, str]  # test ("" if there is one alone) and language
BEGIN, END = "<!-- tables: made by recipes/benchmark.py -->", "<!-- end -->"


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Args:
        mean: of the figures.
        half: half the width of the 95 % interval; infinite with one seed.
        seeds: how many there are.
    """

    mean: float
    half: float
    seeds: int

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return abs(self.mean) > self.half

    def __str__(self) -> str:
        return f"{self.mean:.1f}" + (f" ± {self.half:.1f}" if self.seeds > 1 else "")


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean with its 95 % t-interval.

    Raises:
        ValueError: without values.
    """
    n = len(values)
    if not n:
        raise ValueError("the mean of no values: every cell needs at least one seed")
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, math.inf, 1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return Estimate(mean, t_quantile(n - 1) * deviation / math.sqrt(n), n)


def t_quantile(freedom: int, level: float = 0.95) -> float:
    """Return t such that Student's distribution has `level` of its mass in [-t, t].

    Source: the finite sums for integer degrees of freedom in Abramowitz and Stegun, Handbook of
    Mathematical Functions (1964), 26.7.3 and 26.7.4.
    """
    low, high = 0.0, 1.0
    while _mass(high, freedom) < level:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _mass(middle, freedom) < level else (low, middle)
    return (low + high) / 2


def _mass(t: float, freedom: int) -> float:
    angle = math.atan(t / math.sqrt(freedom))
    square = math.cos(angle) ** 2
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0 if freedom == 1 else term
    for k in range(2 + odd, freedom - 1, 2):
        term *= square * (k - 1) / k
        total += term
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total


class Comparison:
    """Figures by method, value of the axis, test and language.

    Args:
        rows: see above.
        axis: the key of the axis.
        baseline: the method that differences are taken to; None: none.
        average: languages whose mean joins as one more, if a run has them all.

    Raises:
        ConfigError: for a language in `average` that no run has figures of.
    """

    def __init__(
        self,
        rows: Iterable[Row],
        *,
        axis: str,
        baseline: str | None = None,
        average: Sequence[str] = (),
    ) -> None:
        self.axis, self.baseline = axis, baseline
        self.figures: dict[tuple[str, Any, Key], dict[int, float]] = {}
        for row in rows:
            key = (row.get("test", ""), row["lang"])
            self.figures.setdefault((row["method"], row[axis], key), {})[row["seed"]] = row["sum_r"]
        if average:
            self._add_average(average)
        self.methods = list(dict.fromkeys(method for method, _, _ in self.figures))
        self.labels = list(dict.fromkeys(label for _, label, _ in self.figures))
        if all(isinstance(label, int | float) for label in self.labels):
            self.labels.sort()
        keys = list(dict.fromkeys(key for _, _, key in self.figures))
        tests = [test for test, _ in keys]
        self.keys = sorted(keys, key=lambda key: tests.index(key[0]))  # a test's panels together

    def _add_average(self, langs: Sequence[str]) -> None:
        known = sorted({lang for _, _, (_, lang) in self.figures})
        for lang in langs:
            if lang not in known:
                raise ConfigError(
                    f"average: no run has figures of {lang!r}{nearest(lang, known)}; languages "
                    f"with figures: {', '.join(known)}"
                )
        for method, label, test in dict.fromkeys((m, x, key[0]) for m, x, key in self.figures):
            found = [self.figures.get((method, label, (test, lang)), {}) for lang in langs]
            seeds = set.intersection(*(set(by_seed) for by_seed in found))
            if seeds:
                self.figures[method, label, (test, f"mean of {', '.join(langs)}")] = {
                    seed: sum(by_seed[seed] for by_seed in found) / len(langs) for seed in seeds
                }

    def mean(self, method: str, label: Any, key: Key) -> Estimate | None:
        """Return a cell of the table; None if there is no run."""
        found = self.figures.get((method, label, key))
        return estimate(list(found.values())) if found else None

    def difference(self, method: str, label: Any, key: Key) -> Estimate | None:
        """Return a method minus the baseline, paired by seed; None without a common seed."""
        ours = self.figures.get((method, label, key), {})
        theirs = self.figures.get((str(self.baseline), label, key), {})
        pairs = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
        return estimate(pairs) if pairs else None

    def markdown(self) -> str:
        """Return the tables, two for each test and language: SumR and differences."""
        seeds = sorted({seed for by_seed in self.figures.values() for seed in by_seed})
        lines = [f"SumR (at most 600), mean and 95 % t-interval over {len(seeds)} seed(s)."]
        if any(len(by_seed) < len(seeds) for by_seed in self.figures.values()):
            lines[0] += " Where runs are missing, the number of seeds stands in brackets."
        for key in self.keys:
            lines += ["", f"**{_title(key)}**", ""]
            lines += self._table(key, self.methods, len(seeds), difference=False)
            if self.baseline in self.methods and len(self.methods) > 1:
                others = [method for method in self.methods if method != self.baseline]
                lines += ["", f"Difference to {self.baseline}, paired by seed; bold where the "
                          "interval leaves out 0:", ""]  # fmt: skip
                lines += self._table(key, others, len(seeds), difference=True)
        return "\n".join(lines) + "\n"

    def _table(
        self, key: Key, methods: Sequence[str], seeds: int, *, difference: bool
    ) -> list[str]:
        lines = [
            f"| {self.axis} | " + " | ".join(map(str, self.labels)) + " |",
            "|---" * (1 + len(self.labels)) + "|",
        ]
        for method in methods:
            ask = self.difference if difference else self.mean
            cells = [_cell(ask(method, label, key), seeds, difference) for label in self.labels]
            if any(cells):
                lines.append(f"| {method} | " + " | ".join(cells) + " |")
        return lines

    def plot(self, path: str | Path, title: str = "", methods: Sequence[str] | None = None) -> Path:
        """Draw SumR over the axis, a panel for each test and language, bands for the intervals.

        Args:
            path: a PNG file.
            title: above the panels.
            methods: which ones; None: all.
        """
        shown = [method for method in self.methods if methods is None or method in methods]
        numbers = all(isinstance(label, int | float) for label in self.labels)
        at = {label: label if numbers else place for place, label in enumerate(self.labels)}
        with figure(path, (1.0 + 3.9 * len(self.keys), 4.2)) as drawn:
            drawn.suptitle(title, fontweight="bold")
            handles: dict[str, Any] = {}
            for place, key in enumerate(self.keys, 1):
                axes = drawn.add_subplot(1, len(self.keys), place)
                axes.set(title=_title(key), xlabel=self.axis, ylabel="SumR" if place == 1 else "")
                axes.set_xticks([at[label] for label in self.labels], map(str, self.labels))
                only(axes, "y")
                for number, method in enumerate(shown):
                    points = [
                        (at[label], found)
                        for label in self.labels
                        if (found := self.mean(method, label, key)) is not None
                    ]
                    if points:
                        aside = 0.08 * (number - (len(shown) - 1) / 2)
                        handles[method] = _line(axes, points, number, None if numbers else aside)
                if not numbers:
                    axes.set_xlim(-0.6, len(self.labels) - 0.4)
            drawn.legend(
                handles.values(), handles.keys(), loc="outside lower center", ncols=4,
                title="band or bar: 95 % interval over seeds", title_fontsize=9,
            )  # fmt: skip
        return Path(path)


def _line(
    axes: Axes, points: Sequence[tuple[float, Estimate]], number: int, aside: float | None
) -> Any:
    """Draw one method: a line with a band, or points a little `aside` with bars."""
    colour, marker = look(number)
    places = [place + (aside or 0.0) for place, _ in points]
    means = [found.mean for _, found in points]
    halves = [found.half if math.isfinite(found.half) else 0.0 for _, found in points]
    if aside is not None or len(points) == 1:
        return axes.errorbar(
            places, means, yerr=halves, color=colour, marker=marker, ms=5, lw=1.2, ls="", capsize=2
        )
    low, high = zip(*((mean - half, mean + half) for mean, half in zip(means, halves)))
    axes.fill_between(places, low, high, color=colour, alpha=0.15, lw=0)
    return axes.plot(places, means, color=colour, marker=marker, ms=5, lw=1.6)[0]


def _title(key: Key) -> str:
    return ", ".join(part for part in key if part)


def _cell(found: Estimate | None, seeds: int, signed: bool) -> str:
    if found is None:
        return ""
    fewer = f" ({found.seeds})" if found.seeds < seeds else ""
    if not signed:
        return f"{found}{fewer}"
    text = ("+" if found.mean >= 0 else "") + str(found)
    return (f"**{text}**" if found.clear else text) + fewer


def save_comparison(
    rows: Sequence[Row],
    *,
    axis: str,
    baseline: str | None,
    average: Sequence[str],
    page: str | Path,
    plot: str | Path,
    plotted: Sequence[str] | None,
    title: str,
) -> str:
    """Write tables and plot; return the tables.

    Args:
        rows: see above.
        axis: the key of the axis.
        baseline: see `Comparison`.
        average: see `Comparison`.
        page: a Markdown file; one that has the marks keeps what is around them.
        plot: a PNG file.
        plotted: methods in it; None: all.
        title: of both.

    Raises:
        ConfigError: if the page exists and has no marks.
    """
    comparison = Comparison(rows, axis=axis, baseline=baseline, average=average)
    tables, page = comparison.markdown(), Path(page)
    head, tail = around_tables(page, title)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(f"{head}{BEGIN}\n\n{tables}\n{END}{tail}", encoding="utf-8")
    comparison.plot(plot, title, plotted)
    return tables


def around_tables(page: str | Path, title: str = "") -> tuple[str, str]:
    """Return what stands before and after the tables of a page, which need not be there yet.

    Raises:
        ConfigError: if the page has no marks for the tables.
    """
    page = Path(page)
    if not page.is_file():
        return f"# {title}\n\n", "\n"
    head, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ConfigError(f"{page} has no lines {BEGIN!r} and {END!r} for the tables to go between")
    return head, tail
