"""README and docs: links lead to files, paths in the text exist, examples run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

from xlcm.config import build, load
from xlcm.encoders.tokenizer import SentencePieceTokenizer
from xlcm.registry import models
from xlcm.training.settings import TrainConfig

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for path in [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")]
)
LINK = re.compile(r"\]\(([^)\s]+)[^)]*\)")
PATH = re.compile(r"`((?:xlcm|tests|recipes|configs|docs|benchmarks|\.ci)/[\w./-]*)`")


def prose(page: Path) -> str:
    """Return the page without its code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)


def anchors(page: Path) -> set[str]:
    """Return the anchors that the site makes of the page's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings]
    return {re.sub(r"[-\s]+", "-", heading) for heading in plain}


def test_all_pages_are_looked_at():
    assert {"README.md", "CONTRIBUTING.md", "docs/index.md", "docs/data/manifest.md"} <= set(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_files_that_exist(name):
    page = REPOSITORY / name
    for link in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name}: {link} leads nowhere"
        if name.startswith("docs/"):
            inside = target.is_relative_to(REPOSITORY / "docs")
            assert inside, f"{name}: {link} leaves the folder that the site is built from"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{name}: {link} has no such heading"


@pytest.mark.parametrize("name", PAGES)
def test_paths_in_the_text_exist(name):
    for path in PATH.findall(prose(REPOSITORY / name)):
        if not re.search(r"NAME|<", path):  # a placeholder
            assert (REPOSITORY / path).exists(), f"{name}: there is no {path}"


# -- README -------------------------------------------------------------------------------------


def readme(language: str) -> list[str]:
    page = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def test_commands_name_files_that_exist():
    words = [word for block in readme("bash") for word in shlex.split(block, comments=True)]
    named = [word for word in words if word.startswith(("recipes/", "configs/"))]
    assert len(named) >= 4
    assert [word for word in named if not (REPOSITORY / word).is_file()] == []


def test_commands_on_own_data_agree_with_the_config_that_they_launch():
    """The manifest that is checked is the one trained on, and the model judged the one it leaves."""
    block = next(b for b in readme("bash") if "xlcm data check" in b)
    launched = next(line for line in block.splitlines() if "recipes/train.py" in line)
    config = load(TrainConfig, REPOSITORY / launched.split()[-1])
    splits = (config.data.train, config.data.val, config.data.test)
    assert {split["path"] for split in splits} == {"manifest.jsonl"}
    assert "xlcm data check manifest.jsonl" in block
    assert f"xlcm evaluate {config.run.output}/model manifest.jsonl --split test" in block


def test_the_python_example_runs_on_a_model_of_the_quickstart(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XLCM_CACHE", str(tmp_path / "cache"))
    SentencePieceTokenizer(vocab_size=300).train(["zwei rote Sterne auf einer Wiese"] * 9).save("t")
    spec = load(TrainConfig, REPOSITORY / "configs/quickstart.yaml").model
    spec["text"]["tokenizer"]["path"] = "t"
    torch.manual_seed(0)
    build(models, spec).save_pretrained("runs/quickstart/model")
    (example,) = readme("python")
    assert example.count("1000") == 2
    exec(compile(example.replace("1000", "12"), "README.md", "exec"), {})
    found = capsys.readouterr().out
    assert found.startswith("['")
    assert found.count("', '") == 4, "five captions"
