"""docs/config.md and docs/training.md say what the code does.

`python tests/test_docs_pages.py` writes the option tables anew.
"""

from __future__ import annotations

import argparse
import json
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate import Accelerator

from xlcm.config import ConfigError, build, load, override, read
from xlcm.data.transforms import Augment
from xlcm.data.views import View
from xlcm.evaluation import commands
from xlcm.evaluation.settings import EvaluationConfig, FusionConfig
from xlcm.registry import image_encoders, losses, methods
from xlcm.schema import export
from xlcm.training.batch_size import refuse_pieces
from xlcm.training.settings import DataConfig, OptimConfig, RunConfig, TrainConfig
from xlcm.training.stages import read_stages

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIG, TRAINING = REPOSITORY / "docs/config.md", REPOSITORY / "docs/training.md"
SECTIONS = [RunConfig, OptimConfig, DataConfig, View, Augment, EvaluationConfig, FusionConfig]


def marked(page: str, mark: str) -> str:
    found = re.search(rf"<!-- {mark} -->\n(.*?)<!-- end -->", page, re.DOTALL)
    assert found, f"the page has no mark {mark!r}"
    return found[1]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


# -- tables of options --------------------------------------------------------------------------


def options_table(name: str, definitions: dict[str, Any]) -> str:
    """Return the table of a section from its JSON schema, which the code gives."""
    definition = definitions[name]
    lines = ["| option | values | default | meaning |", "|---|---|---|---|"]
    for option, node in definition["properties"].items():
        needed = option in definition.get("required", ())
        given = node.get("default")
        if isinstance(given, dict) and set(given) == {"name"}:  # a part without options
            given = given["name"]
        default = "*needed*" if needed else f"`{shown(given)}`"
        if isinstance(given, dict) and given:
            default = "all off"
        meaning = node["description"].replace("None", "`null`").replace("|", "\\|")
        lines.append(f"| `{option}` | {values(node)} | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


def shown(default: Any) -> str:
    return f"{default:.4g}" if isinstance(default, float) else json.dumps(default)


def values(node: dict[str, Any]) -> str:
    """Return in few words what a schema allows."""
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        below = dict.fromkeys(("Augment", "FusionConfig"), "see below")
        return {"dataset": "a data set", **below}.get(name, name)
    if "anyOf" in node:
        return " or ".join(
            "`null`" if n.get("type") == "null" else values(n) for n in node["anyOf"]
        )
    if "const" in node:
        return f"`{node['const']}`"
    if "enum" in node:
        return ", ".join(f"`{choice}`" for choice in node["enum"])
    kind = {"string": "text", "boolean": "`true`, `false`", "object": "mapping"}.get(node["type"])
    if node["type"] == "array":
        kind = f"list of {values(node['items'])}" if "items" in node else "list"
    if "prefixItems" in node:
        kind = f"list of {len(node['prefixItems'])} numbers"
    kind = kind or node["type"]
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {node[key]:g}" for key, sign in bounds.items() if key in node]
    return f"{kind} {', '.join(limits)}".strip()


@pytest.mark.parametrize("section", [section.__name__ for section in SECTIONS])
def test_the_page_has_every_option_with_its_default_and_meaning(section):
    table = marked(TRAINING.read_text(encoding="utf-8"), f"options: {section}")
    expected = options_table(section, export("train")["$defs"])
    assert table == expected, f"run: python {Path(__file__).relative_to(REPOSITORY)}"
    assert table.count("\n") == 2 + len(
        next(s for s in SECTIONS if s.__name__ == section).model_fields
    )


def rewrite() -> None:
    page, definitions = TRAINING.read_text(encoding="utf-8"), export("train")["$defs"]
    for section in SECTIONS:
        mark = f"<!-- options: {section.__name__} -->\n"
        old = marked(page, f"options: {section.__name__}")
        page = page.replace(mark + old, mark + options_table(section.__name__, definitions))
    TRAINING.write_text(page, encoding="utf-8")


# -- training.md against a run ------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tiny_data, tmp_path_factory) -> Path:
    """The folder of a small run of the recipe, with a tokenizer of its own and faults skipped."""
    import tiny

    output = tmp_path_factory.mktemp("run") / "out"
    manifest, splits = tiny_data / "tiny.jsonl", {}
    for name in ("train", "val", "test"):
        splits[name] = {
            "name": "manifest", "path": str(manifest), "split": name,
            "features": str(tiny_data / "store"),
        }  # fmt: skip
    config = tiny.tree(tiny_data, output, data={**splits, "on_error": "skip"}, run={"steps": 4})
    config["model"]["text"]["tokenizer"] = {"name": "sentencepiece", "vocab_size": 300}
    path = tiny.write_config(config, output.parent / "config.yaml")
    tiny.forget_processes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", str(path)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(REPOSITORY / "recipes" / "train.py"), run_name="__main__")
    assert ended.value.code == 0
    return output


def test_a_run_leaves_what_the_page_lists_and_no_more(run):
    block = next(b for b in blocks(TRAINING, "text") if b.startswith("config.yaml"))
    listed = {line.split()[0] for line in block.splitlines()}
    assert all((run / name).exists() for name in listed), listed
    top = {path.name for path in run.iterdir()}
    assert top == {name.partition("/")[0] for name in listed}
    assert {f"plots/{p.name}" for p in (run / "plots").iterdir()} < listed


def test_the_metrics_have_the_fields_of_the_page(run):
    page = TRAINING.read_text(encoding="utf-8")
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for kind, mark in ((None, "step"), ("eval", "eval")):
        listed = re.findall(r"`(\w+)`", "".join(
            line.split("|")[1] for line in marked(page, f"fields: {mark}").splitlines()[2:]
        ))  # fmt: skip
        found = [set(record) for record in records if record.get("kind") == kind]
        assert found
        assert all(fields == set(listed) for fields in found), (found[0], listed)


def test_the_keys_that_a_run_may_be_continued_with_are_listed():
    from xlcm.training.continued import MAY_CHANGE

    listed = re.findall(r"`([\w.]+)`", marked(TRAINING.read_text(encoding="utf-8"), "may change"))
    assert listed == sorted(
        f"{section}.{key}" for section in MAY_CHANGE for key in MAY_CHANGE[section]
    )


def test_commands_of_the_pages_name_files_and_options_that_exist():
    parser = argparse.ArgumentParser()
    commands.add_arguments(parser)
    seen = 0
    for line in "\n".join(blocks(TRAINING, "bash") + blocks(CONFIG, "bash")).splitlines():
        words = shlex.split(line, comments=True)
        for word in words:
            if word.startswith(("recipes/", "configs/")):
                assert (REPOSITORY / word).is_file(), word
                seen += 1
        if words[:2] == ["xlcm", "evaluate"]:
            parser.parse_args(words[2:])
            seen += 1
    assert seen >= 10


def test_commands_of_the_page_that_cut_a_batch_name_a_tower_that_may_be_cut():
    seen = 0
    for line in "\n".join(blocks(TRAINING, "bash")).splitlines():
        words = shlex.split(line, comments=True)
        place = next((i for i, word in enumerate(words) if word.startswith("configs/")), None)
        if place is not None and any(word.startswith("run.micro_batch=") for word in words):
            config = load(TrainConfig, REPOSITORY / words[place], words[place + 1 :])
            tower = build(image_encoders, config.model["image"])
            tower.cacheable = methods.get(config.method["name"]).cacheable
            refuse_pieces(Accelerator(cpu=True), tower, config.run)
            seen += 1
    assert seen


# -- config.md ----------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    """The files of the page, by the name in their first line."""
    for language in ("yaml", "python"):
        for block in blocks(CONFIG, language):
            name = re.match(r"# ([\w]+\.\w+)\n", block)
            if name:
                (tmp_path / name[1]).write_text(block, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_configs_of_the_page_load(files):
    nested, longer = load(TrainConfig, "nested.yaml"), load(TrainConfig, "longer.yaml")
    assert nested.model["text"]["pooling"] == {"name": "attention", "heads": 8}
    assert (nested.run.epochs, longer.run.epochs) == (3, 10)
    assert longer.model["text_head"] == {"name": "gated", "dropout": 0.0, "layer_norm": False}
    assert longer.model["text"] == nested.model["text"]


def test_the_stages_of_the_page_are_laid_out_as_it_says(files):
    page = CONFIG.read_text(encoding="utf-8").split("## Stages")[1].split("## ")[0]
    one, all_of_them = re.findall(r"^\| `(.*?=.*?)` \|", page, re.MULTILINE)[::-1]
    teacher, student = read_stages("staged.yaml")
    assert (teacher.run.epochs, student.run.epochs) == (5, 3)
    assert teacher.run.output == "runs/staged/stages/teacher"
    assert student.method["teachers"] == ["runs/staged/stages/teacher/model"]
    assert [s.run.epochs for s in read_stages("staged.yaml", [all_of_them])] == [1, 1]
    assert [s.run.epochs for s in read_stages("staged.yaml", [one])] == [1, 3]
    with pytest.raises(ConfigError, match=r"stage 'teacher'.*method\.temperature"):
        read_stages("staged.yaml", ["method.temperature=0.2"])


def test_overrides_of_the_page_fit(files):
    page = CONFIG.read_text(encoding="utf-8").split("## Overrides")[1].split("## ")[0]
    listed = re.findall(r"^\| `(.*?=.*?)` \|", page, re.MULTILINE)
    assert len(listed) == 7
    for one in listed:
        load(TrainConfig, "nested.yaml", [one])


def test_faults_of_the_page_are_the_ones_told(files):
    tree = read("nested.yaml")
    override(tree, ["optim.learning_rate=1", "model.image.name=tim", "data.train.noise_rate=3"])
    Path("my.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load(TrainConfig, "my.yaml")
    block = next(b for b in blocks(CONFIG, "text") if "my.yaml" in b)
    shown = [line.removeprefix("train.py: ").removesuffix(" ...") for line in block.splitlines()]
    told = str(caught.value).splitlines()
    assert len(told) == len(shown)
    for line in shown:
        assert any(one.startswith(line) for one in told), (line, told)


def test_the_example_of_a_part_of_ones_own_runs(files, monkeypatch, capsys):
    import torch

    monkeypatch.syspath_prepend(str(files))
    monkeypatch.setattr(losses, "_parts", dict(losses._parts))
    example = next(b for b in blocks(CONFIG, "python") if "import my_losses" in b)
    space: dict[str, Any] = {}
    exec(compile(example, str(CONFIG), "exec"), space)
    promised = re.findall(r"^# (\{.*)$|print\(error\)  # (.*)$", example, re.MULTILINE)
    assert capsys.readouterr().out.splitlines() == ["".join(pair) for pair in promised]
    pairs = torch.nn.functional.normalize(torch.randn(4, 8), dim=1)
    options = {"group": torch.tensor([0, 1, 1, 2]), "scale": torch.tensor(5.0)}
    loss = space["loss"]
    assert 0 < loss(pairs, pairs, **options) < loss(pairs, pairs.flip(0), **options)


def test_the_line_for_editors_names_the_file_that_is_written():
    page = CONFIG.read_text(encoding="utf-8")
    assert "xlcm schema train > train.schema.json" in page
    assert "# yaml-language-server: $schema=train.schema.json" in page


if __name__ == "__main__":
    rewrite()
