"""Run benchmarks and write their page.

python -m benchmarks.run evaluation            # one or several by name
python -m benchmarks.run all                   # every benchmark, each in a process of its own
python -m benchmarks.run all --small           # small sizes, printed; nothing is written
python -m benchmarks.run page                  # only the pages, from the figures that are there

A benchmark is a module `benchmarks/<question>.py`. The first line of its docstring is the question.
It has `PEERS`, distributions that it compares with and leaves out where they are missing;
`TARGETS`, what is asked of which figure; `measure(*, small)`, which checks that all ways give the
same values and returns figures for JSON; and `table(found)`, which shows them as Markdown. It may
have `reached(found)`: for each target what was measured, as text, and whether that reaches it;
`refused()`: why it can't be measured on this machine, or None; and `summary(found)`: a shorter
table, for pages that ask for it by `<!-- figures: NAME -->`.
"""

from __future__ import annotations

import argparse
import ast
import datetime
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.measure import installed, machine

HERE = Path(__file__).parent
FOLDER = HERE.parent / "docs" / "benchmarks"
PAGE = "index.md"
INTRODUCTION = HERE / "page.md"  # what stands above the figures


def names() -> list[str]:
    """Return the benchmarks: the modules that say with whom they compare."""
    return sorted(path.stem for path in HERE.glob("*.py") if _assigns(path, "PEERS"))


def _assigns(path: Path, name: str) -> bool:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(one, ast.Name) and one.id == name for one in targets):
            return True
    return False


def load(name: str) -> ModuleType:
    """Import a benchmark; without its peers, which it imports when it measures."""
    return importlib.import_module(f"benchmarks.{name}")


def question(module: ModuleType) -> str:
    """Return the first line of its docstring."""
    return (module.__doc__ or "").strip().partition("\n")[0]


def refused(name: str) -> str | None:
    """Return why a benchmark can't be measured here; None if it can."""
    module = load(name)
    return module.refused() if hasattr(module, "refused") else None


def measured(name: str, *, small: bool, **options: Any) -> dict[str, Any]:
    """Run a benchmark and return its figures with machine, versions and date."""
    module = load(name)
    missing = [peer for peer in module.PEERS if not installed(peer)]
    if missing:
        print(f"{name}: without {', '.join(missing)}; pip install 'xlcm[bench]'", file=sys.stderr)
    found = module.measure(small=small, **options)
    return {
        "benchmark": name,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": machine(module.PEERS),
        "missing": missing,
        "found": found,
    }


def write(path: Path, text: str) -> None:
    """Write aside and rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def section(data: dict[str, Any]) -> str:
    """Return one benchmark's part of the page."""
    module = load(data["benchmark"])
    parts = [f"## {question(module)}", module.table(data["found"]), targets(module, data["found"])]
    return "\n\n".join([*(part for part in parts if part), told(data)]) + "\n"


def told(data: dict[str, Any]) -> str:
    """Return when, where and with which versions figures were measured, and how to do it again."""
    on = data["machine"]
    versions = {"torch": on["torch"], **on["versions"]}
    threads = f"{on['threads']} thread{'s' if on['threads'] > 1 else ''}"
    without = (
        f" Not installed, so left out: {', '.join(data['missing'])}." if data["missing"] else ""
    )
    return (
        f"{data['date']}, {on['cpu']} ({on['cores']} cores, {threads}), Python {on['python']}, "
        f"{', '.join(f'{name} {number}' for name, number in versions.items())}.{without} Again: "
        f"`OMP_NUM_THREADS={on['threads']} python -m benchmarks.run {data['benchmark']}`."
    )


def targets(module: ModuleType, found: dict[str, Any]) -> str:
    """Return what was asked, and whether it was reached where the benchmark can tell."""
    if not module.TARGETS:
        return ""
    reached = module.reached(found) if hasattr(module, "reached") else {}
    lines = ["| target | asked | measured | reached |", "|---|---|---|---|"]
    for name, asked in module.TARGETS.items():
        value, good = reached.get(name, ("", None))
        lines.append(
            f"| {name} | {asked} | {value} | {dict.get({True: 'yes', False: 'no'}, good, '')} |"
        )
    return "\n".join(lines)


def page() -> str:
    """Return the page of all figures there are."""
    measured = []
    for name in names():
        if (file := FOLDER / f"{name}.json").is_file():
            data = json.loads(file.read_text(encoding="utf-8"))
            measured += [data] if "found" in data else []
    introduction = INTRODUCTION.read_text(encoding="utf-8")
    return "\n".join([introduction, glance(measured), *map(section, measured)])


def glance(measured: list[dict[str, Any]]) -> str:
    """Return a table of all questions: how many targets were reached, and which were not."""
    lines = ["## At a glance", "", "| question | targets reached | not reached |", "|---|--:|---|"]
    for data in measured:
        module = load(data["benchmark"])
        asked = question(module)
        anchor = re.sub(r"[^\w -]", "", asked.lower()).replace(" ", "-")
        found = module.reached(data["found"]) if hasattr(module, "reached") else {}
        told = [(name, good) for name, (_, good) in found.items() if good is not None]
        count = f"{sum(good for _, good in told)} of {len(told)}" if told else "none set"
        missed = "; ".join(name for name, good in told if not good)
        lines.append(f"| [{asked}](#{anchor}) | {count} | {missed} |")
    without = sorted({*names()} - {data["benchmark"] for data in measured})
    if without:
        lines += ["", f"Without figures so far: {', '.join(f'`{name}`' for name in without)}."]
    return "\n".join(lines) + "\n"


def with_figures(text: str) -> str:
    """Return a page whose `<!-- figures: NAME -->` are followed by the summary of that benchmark.

    Where there are no figures, it says how to get them.
    """

    def fill(mark: re.Match[str]) -> str:
        name, file = mark[1], FOLDER / f"{mark[1]}.json"
        shown = f"Not measured yet: `python -m benchmarks.run {name}`."
        if file.is_file():
            data = json.loads(file.read_text(encoding="utf-8"))
            shown = f"{load(name).summary(data['found'])}\n\n{told(data)}"
        return f"<!-- figures: {name} -->\n{shown}\n<!-- end -->"

    return re.sub(r"<!-- figures: (\w+) -->\n.*?<!-- end -->", fill, text, flags=re.DOTALL)


def pages() -> dict[Path, str]:
    """Return what is made of the figures, by file: their page, and pages that show some of them."""
    out = {FOLDER / PAGE: page()}
    for path in sorted(FOLDER.parent.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        if "<!-- figures: " in text:
            out[path] = with_figures(text)
    return out


def measure_and_write(name: str, *, small: bool, **options: Any) -> None:
    """Print the figures of a benchmark; write them and the pages unless they are small."""
    data = measured(name, small=small, **options)
    print(load(name).table(data["found"]) if small else section(data), flush=True)
    if not small:
        write(FOLDER / f"{name}.json", json.dumps(data, indent=1, allow_nan=False) + "\n")
        for path, text in pages().items():
            write(path, text)


def main() -> int:
    """Run what is asked for; return 1 if a benchmark failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="benchmarks, `all` or `page`")
    parser.add_argument("--small", action="store_true", help="small sizes; nothing is written")
    args = parser.parse_args()
    if args.names == ["page"]:
        for path, text in pages().items():
            write(path, text)
        return 0
    asked = names() if args.names == ["all"] else args.names
    if unknown := [name for name in asked if name not in names()]:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(names())}")
    if not args.small:
        why = {name: why for name in asked if (why := refused(name))}
        for name, reason in why.items():
            print(f"{name}: left out, {reason}", file=sys.stderr)
        asked = [name for name in asked if name not in why]
        if not asked:
            return 1
    if len(asked) == 1:
        measure_and_write(asked[0], small=args.small)
        return 0
    flags = ["--small"] if args.small else []
    command = [sys.executable, "-m", "benchmarks.run"]
    failed = [
        name
        for name in asked
        if subprocess.run([*command, name, *flags], check=False, cwd=HERE.parent).returncode
    ]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
