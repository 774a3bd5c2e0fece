"""The table of docs/results/photos.md, from the reports of finished runs.

python -m benchmarks.photos --runs ours=runs/photos/contrastive floor=runs/photos/floor

Writes docs/results/photos.json and the tables between the marks of docs/results/photos.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from xlcm.evaluation.report import RetrievalReport

PAGE = Path("docs/results/photos.md")
BEGIN, END = "<!-- tables: made by benchmarks/photos.py -->", "<!-- end -->"
WORDS = {"text_to_image": "text to image", "image_to_text": "image to text"}
RECALLS = ("r1", "r5", "r10")


def cell(row, name: str) -> str:
    """Return `12.3 (11.1 to 13.6)`."""
    low, high = row.ci95[name]
    return f"{getattr(row, name):.1f} ({low:.1f} to {high:.1f})"


def table(reports: dict[str, RetrievalReport], direction: str) -> list[str]:
    """Return one direction as a Markdown table: a row for each language and run."""
    lines = [
        f"**{WORDS[direction]}**", "",
        "| language | model | R@1 | R@5 | R@10 | median rank | queries | gallery | "
        "chance R@1 / 5 / 10 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    langs = list(dict.fromkeys(lang for report in reports.values() for lang in report.langs))
    for lang in langs:
        for name, report in reports.items():
            if lang not in report.langs:
                continue
            row = report.result(lang, direction)
            recalls = " | ".join(cell(row, recall) for recall in RECALLS)
            chance = " / ".join(f"{row.chance[recall]:.2f}" for recall in RECALLS)
            lines.append(
                f"| {lang} | {name} | {recalls} | {row.median_rank:g} | {row.queries:,} | "
                f"{row.gallery:,} | {chance} |"
            )
    return lines


def sums(reports: dict[str, RetrievalReport]) -> list[str]:
    """Return SumR by language, a row for each run."""
    langs = list(dict.fromkeys(lang for report in reports.values() for lang in report.langs))
    lines = [f"| SumR | {' | '.join(langs)} |", "|---" * (len(langs) + 1) + "|"]
    for name, report in reports.items():
        shown = [
            f"{report.sum_r[lang]:.1f} ({report.sum_r_ci95[lang][0]:.1f} to "
            f"{report.sum_r_ci95[lang][1]:.1f})"
            if lang in report.langs
            else "not trained"
            for lang in langs
        ]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return lines


def main() -> None:
    """Write the data and the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", nargs="+", required=True, metavar="NAME=FOLDER")
    pairs = [one.split("=", 1) for one in parser.parse_args().runs]
    reports = {name: RetrievalReport.load(folder) for name, folder in pairs}
    data = {name: report.to_dict() for name, report in reports.items()}
    PAGE.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    parts = [*sums(reports), ""]
    for direction in WORDS:
        parts += [*table(reports, direction), ""]
    page = PAGE.read_text(encoding="utf-8")
    head, _, rest = page.partition(BEGIN)
    tail = rest.partition(END)[2]
    PAGE.write_text(f"{head}{BEGIN}\n\n" + "\n".join(parts) + f"\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
