"""docs/data/features.md says what the code does."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from xlcm.cli import main
from xlcm.config import load
from xlcm.data.dataset import ManifestDataset
from xlcm.data.encode_settings import EncodeConfig
from xlcm.data.feature_formats.base import BOX_NAMES, ID_NAMES, VALUE_NAMES
from xlcm.data.feature_formats.ids import find_ids
from xlcm.data.manifest import DataError
from xlcm.data.video import FrameSampling

PAGE = (Path(__file__).resolve().parents[2] / "docs/data/features.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_python_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for block in blocks("python"):
        exec(compile(block, "features.md", "exec"), {})
    assert "tokens 512 2 torch.Size([12, 512])" in capsys.readouterr().out


def test_the_configs_of_the_recipe_are_whole_and_its_defaults_are_told(tmp_path):
    found = [block for block in blocks("yaml") if "output:" in block]
    assert len(found) == 2
    for number, block in enumerate(found):
        (tmp_path / f"{number}.yaml").write_text(block)
        load(EncodeConfig, str(tmp_path / f"{number}.yaml"), ())
    table = dict(re.findall(r"^\| `(how|count|fps|most)` \| `(.*?)` \|", PAGE, re.MULTILINE))
    assert table == {name: str(value) for name, value in FrameSampling().model_dump().items()}


def test_the_options_of_data_sets_exist():
    known = ManifestDataset.__init__.__annotations__
    named = [
        yaml.safe_load(block)["data"]["train"] for block in blocks("yaml") if "data:\n" in block
    ]
    assert len(named) == 2
    assert all(set(one) - {"name"} <= set(known) for one in named)


def test_the_command_is_the_one_that_there_is(capsys):
    (command,) = [shlex.split(line) for block in blocks("bash") for line in block.splitlines()]
    with pytest.raises(SystemExit) as ended:
        main([*command[1:3], "--help"])
    assert ended.value.code == 0
    assert all(word in capsys.readouterr().out for word in command if word.startswith("--"))


def test_names_that_the_page_promises_are_known(tmp_path):
    assert {"features", "values", "embeddings", "feats"} <= set(VALUE_NAMES)
    assert {"ids", "keys", "names", "image_id", "video_id"} <= set(ID_NAMES)
    assert {"boxes", "bbox"} <= set(BOX_NAMES)
    promised = re.search(r"for `x\.npy`, it is looked for beside it as (.*?);", PAGE, re.DOTALL)[1]
    for name in re.findall(r"`(.*?)`", promised):
        (tmp_path / name).write_text("")
        assert find_ids(tmp_path / "x.npy").name == name
        (tmp_path / name).unlink()
    with pytest.raises(DataError):
        find_ids(tmp_path / "x.npy")
