"""Comments of configs that say how their manifest is imported: the command exists and makes it."""

import argparse
import importlib
import shlex
from pathlib import Path

import pytest
import yaml

from xlcm.data.sources import SOURCES
from xlcm.data.sources.c2kd import KNOWN

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
WITH_DATA = sorted(p for p in CONFIGS.glob("*/*.yaml") if "path: runs/data/" in p.read_text())


def commands(path: Path) -> list[list[str]]:
    text = path.read_text(encoding="utf-8").replace("\\\n#", "")
    start = "#   xlcm data import "
    return [shlex.split(x[len(start) :]) for x in text.splitlines() if x.startswith(start)]


@pytest.mark.parametrize("path", WITH_DATA, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_a_config_on_imported_data_names_the_command_or_the_config_that_does(path):
    text = path.read_text(encoding="utf-8")
    if path.parent.name == "cl2cm":
        named = CONFIGS / "nrccr" / text.partition("configs/nrccr/")[2].split(",")[0].split(":")[0]
        made = commands(named)
    elif "extends: multi30k_task1_" in text and not commands(path):
        made = commands(path.parent / f"{text.partition('extends: ')[2].split()[0]}")
    else:
        made = commands(path)
    assert len(made) == 1
    name, *words = made[0]
    parser = argparse.ArgumentParser()
    importlib.import_module(SOURCES[name]).add_arguments(parser)
    out = parser.parse_args(words).out
    read = {part["path"] for part in (yaml.safe_load(text).get("data") or {}).values()
            if isinstance(part, dict) and "path" in part}  # fmt: skip
    assert read <= {out}


@pytest.mark.parametrize("name", KNOWN)
def test_c2kd_is_measured_on_the_split_that_the_import_writes(name):
    data = yaml.safe_load((CONFIGS / "c2kd" / f"{name}.yaml").read_text(encoding="utf-8"))["data"]
    assert data["test"]["split"] == KNOWN[name].test
