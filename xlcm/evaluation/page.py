"""A retrieval report as a table for the terminal and as a Markdown page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from xlcm.evaluation.report import DirectionResult, RetrievalReport

HEAD = ("Language", "R@1", "R@5", "R@10", "MedR", "MeanR", "mAP", "Queries", "Gallery")

TRANSLATOR = (
    "w times the scores of the query's machine translation into the source language, and 1 - w "
    "times those of the query as it is, both scaled to [0, 1] over all pairs of the test set. Such "
    "a search calls a translator for each query; the figures above do without."
)


def words(direction: str) -> str:
    """Return `text → image` for `text_to_image`."""
    return direction.replace("_to_", " → ")


def plain(report: RetrievalReport) -> str:
    """Return the figures without intervals, columns aligned, for print and logs."""
    rows: list[tuple[str, ...]] = [("Direction", *HEAD, "SumR")]
    for direction in report.directions:
        for row in _of(report, direction):
            figures = _figures(row, intervals=False)
            rows.append((words(direction), row.lang, *figures, f"{report.sum_r[row.lang]:.1f}"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]
    title = f"{report.dataset}, {report.split}"
    return "\n".join([title, *lines, *_remarks(report), *_fused_lines(report)])


def table(report: RetrievalReport) -> Table:
    """Return the figures as a rich table."""
    from rich.table import Table

    caption = " ".join([*_remarks(report), *_fused_lines(report)])
    out = Table(title=f"{report.dataset}, {report.split}", caption=caption)
    out.add_column("Direction")
    out.add_column("Language")
    for name in (*HEAD[1:], "SumR"):
        out.add_column(name, justify="right")
    for direction in report.directions:
        for row in _of(report, direction):
            out.add_row(
                words(direction),
                row.lang,
                *_figures(row, intervals=False),
                f"{report.sum_r[row.lang]:.1f}",
            )
        out.add_section()
    return out


def markdown(report: RetrievalReport) -> str:
    """Return the page `report.md`: a table a direction with intervals and chance, then SumR."""
    lines = [f"# Retrieval on {report.dataset}, {report.split}", ""]
    for direction in report.directions:
        rows = _of(report, direction)
        body = [(row.lang, *_figures(row, intervals=True)) for row in rows]
        body += _chance_rows(rows)
        lines += [f"## {words(direction).capitalize()}", "", *_table(HEAD, body), ""]
    lines += ["## Languages", "", *_table(*_languages(report)), ""]
    lines += [*_remarks(report), ""]
    if report.fused:
        lines += ["## With the query's translation", "", TRANSLATOR, "", *_fused(report), ""]
    lines += ["## Protocol", ""]
    lines += [f"- {_words(name)}: {_words(value)}" for name, value in report.protocol.items()]
    lines += [
        "",
        "R@k: percent of queries with a right answer among the first k. MedR, MeanR: median and "
        "mean rank of the (best) right answer, from 1 on. mAP: mean average precision in percent. "
        "SumR: R@1 + R@5 + R@10 of both directions, at most 600. Brackets: 95 % bootstrap "
        "interval over images.",
        "",
    ]
    return "\n".join(lines)


def _of(report: RetrievalReport, direction: str) -> list[DirectionResult]:
    return [row for row in report.results if row.direction == direction]


def _figures(row: DirectionResult, *, intervals: bool) -> tuple[str, ...]:
    def show(name: str) -> str:
        digits = ".1f" if name != "median_rank" else "g"
        text = format(getattr(row, name), digits)
        if intervals and name in row.ci95:
            low, high = (format(end, digits) for end in row.ci95[name])
            text += f" [{low}, {high}]"
        return text

    names = ("r1", "r5", "r10", "median_rank", "mean_rank", "map")
    return (*map(show, names), f"{row.queries:,}", f"{row.gallery:,}")


def _chance_rows(rows: Sequence[DirectionResult]) -> list[tuple[str, ...]]:
    """One row a gallery size, as languages may differ in it."""
    out: dict[tuple[str, ...], None] = {}
    for row in rows:
        if row.chance:
            known = {name: f"{value:.2f}" for name, value in row.chance.items()}
            known["mean_rank"] = f"{row.chance.get('mean_rank', 0):.1f}"
            shown = [known.get(n, "") for n in ("r1", "r5", "r10", "", "mean_rank", "map")]
            line = ("*chance*", *shown, "", f"{row.gallery:,}")
            out[line] = None
    return list(out)


def _languages(report: RetrievalReport) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    source = report.gap_to.get("lang", "")
    head: tuple[str, ...] = ("Language", "SumR", f"Gap to {source}")
    body: list[tuple[str, ...]] = []
    for lang, value in report.sum_r.items():
        total = f"{value:.1f}" + _bracket(report.sum_r_ci95.get(lang))
        gap = report.gap_to.get("sum_r", {}).get(lang)
        between = _bracket(report.gap_to.get("ci95", {}).get(lang))
        body.append((lang, total, "" if gap is None else f"{gap:+.1f}" + between))
    if len(body) > 1:
        body.append(("*mean*", f"{report.sum_r_mean:.1f}", ""))
    return (head if report.gap_to.get("sum_r") else head[:2]), body


def _fused(report: RetrievalReport) -> list[str]:
    """Return the table of fused figures: languages, and weights from 0 (unfused) on."""
    head = ["Language", "w"]
    head += [f"{words(way)} {name}" for way in report.directions for name in HEAD[1:4]]
    body = []
    for lang in report.fused[0].sum_r:
        kinds = [(0.0, report.results, report.sum_r, report.sum_r_ci95)]
        kinds += [(one.weight, one.results, one.sum_r, one.sum_r_ci95) for one in report.fused]
        for place, (weight, results, sums, intervals) in enumerate(kinds):
            rows = [row for row in results if row.lang == lang]
            shown = [f"{value:.1f}" for row in rows for value in (row.r1, row.r5, row.r10)]
            total = f"{sums[lang]:.1f}" + _bracket(intervals.get(lang))
            body.append((lang, f"{weight:g}" if place else "not fused", *shown, total))
    return _table([*head, "SumR"], body)


def _fused_lines(report: RetrievalReport) -> list[str]:
    return [
        f"Fused with weight {one.weight:g} with the translation of each query: SumR "
        + ", ".join(f"{lang} {value:.1f}" for lang, value in one.sum_r.items())
        + "."
        for one in report.fused
    ]


def _bracket(ends: Sequence[float] | None) -> str:
    return "" if ends is None else f" [{ends[0]:.1f}, {ends[1]:.1f}]"


def _remarks(report: RetrievalReport) -> list[str]:
    if report.mean_rank_variance is None:
        return []
    return [
        f"Mean rank variance (standard deviation) across {len(report.sum_r)} languages: "
        f"{report.mean_rank_variance:.2f}."
    ]


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{_words(name)} {_words(inner)}" for name, inner in value.items())
    return f"{value:.2f}" if isinstance(value, float) else str(value).replace("_", " ")


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    rows = [list(row)[: len(head)] for row in body]
    sides = ["---", *["---:"] * (len(head) - 1)]
    return ["| " + " | ".join(row) + " |" for row in (list(head), sides, *rows)]
