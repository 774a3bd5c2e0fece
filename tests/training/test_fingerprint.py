"""A run goes on with the data and the word pieces that it began with, or not at all."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import tiny

from xlcm.config import ConfigError, merge
from xlcm.data.dataset import ManifestDataset
from xlcm.data.subset import Subset
from xlcm.training.fingerprint import fingerprint
from xlcm.types import Caption, Item

OWN_TOKENIZER = {"name": "sentencepiece", "path": None, "vocab_size": 320, "max_tokens": 32}


@pytest.fixture
def begun(tiny_data, tmp_path):
    """Manifest and config of a run that has a checkpoint and pieces of its own captions."""
    manifest = tmp_path / "tiny.jsonl"
    shutil.copy(tiny_data / "tiny.jsonl", manifest)
    split = {"path": str(manifest), "image_root": str(tiny_data)}
    data = {"train": split, "val": {**tiny.held_out(tiny_data, "val"), **split}}
    model = {"text": {"tokenizer": OWN_TOKENIZER}}
    config = tiny.tree(tiny_data, tmp_path / "run", run={"steps": 2}, data=data, model=model)
    tiny.train(config)
    return manifest, config


def edit(manifest, split, change):
    """Change the second item of a split."""
    items = [json.loads(line) for line in manifest.read_text().splitlines()]
    change([item for item in items if item["split"] == split][1])
    manifest.write_text("".join(json.dumps(item) + "\n" for item in items))


def longer(config):
    return merge(config, {"run": {"steps": 3}})


def retold(item):
    item["captions"][0]["text"] = "purple 9"


def test_other_captions_in_the_same_manifest_are_refused_and_named(begun):
    manifest, config = begun
    edit(manifest, "train", retold)
    with pytest.raises(
        ConfigError, match=r"began \(content of the training items\).*run\.output.*old data"
    ):
        tiny.train(longer(config))


def test_items_that_come_or_go_are_counted(begun):
    manifest, config = begun
    edit(manifest, "train", lambda item: item.update(split="spare"))
    with pytest.raises(ConfigError, match=r"training rows an epoch: 64 -> 63; training items: 64"):
        tiny.train(longer(config))


def test_another_validation_is_refused_since_it_picks_the_best(begun):
    manifest, config = begun
    edit(manifest, "val", retold)
    with pytest.raises(ConfigError, match=r"began \(content of the validation items\)"):
        tiny.train(longer(config))


def test_other_splits_may_change_and_the_run_goes_on(begun):
    manifest, config = begun
    edit(manifest, "test", retold)
    assert len(tiny.train(longer(config)).names) == 1


def test_a_run_without_its_notes_on_the_data_is_refused(begun, tmp_path):
    (tmp_path / "run" / "data.json").unlink()
    with pytest.raises(ConfigError, match=r"data\.json is missing"):
        tiny.train(longer(begun[1]))


def test_a_run_without_a_checkpoint_takes_the_data_of_now(begun, tmp_path):
    manifest, config = begun
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    edit(manifest, "train", retold)
    tiny.train(config)
    assert len(tiny.train(longer(config)).names) == 1


def test_a_run_that_goes_on_keeps_its_word_pieces(begun, tmp_path, monkeypatch):
    from xlcm.encoders.tokenizer import SentencePieceTokenizer

    def trained(self, texts):
        raise AssertionError("the pieces of this run are there")

    file = tmp_path / "run" / "tokenizer" / "sentencepiece.model"
    before = file.read_bytes(), file.stat().st_mtime_ns
    monkeypatch.setattr(SentencePieceTokenizer, "train", trained)
    run = tiny.train(longer(begun[1]))
    assert (file.read_bytes(), file.stat().st_mtime_ns) == before
    assert run.method.retriever.text.tokenizer.path == str(file)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer.*sentencepiece\.model"):
        tiny.train(longer(begun[1]))


# -- what counts ---------------------------------------------------------------------------------


def content(dataset):
    rows = SimpleNamespace(slots=np.ones(len(dataset), dtype=np.int32), dataset=dataset)
    return fingerprint(rows, None)["content of the training items"]


def test_which_items_and_captions_are_left_out_counts(tiny_data):
    whole = ManifestDataset(path=str(tiny_data / "tiny.jsonl"), split="test")
    parts = [
        whole, Subset(whole, [0, 1]), Subset(whole, [0, 2]), Subset(whole, [0, 1], {1: {0}}),
        Subset(whole, [0, 1], {1: {1}}),
    ]  # fmt: skip
    assert len({content(part) for part in parts}) == len(parts)
    assert content(Subset(whole, [0, 1], {1: {0}})) == content(Subset(whole, [0, 1], {1: [0]}))


def test_a_dataset_of_ones_own_is_told_by_its_ids_and_captions():
    class Own(list):
        name, split = "own", "train"

    def item(name, text):
        return Item(name, "train", (Caption(name, "en", text, "human"),))

    one = Own([item("a", "red"), item("b", "blue"), item("c", "green")])
    other = Own([item("a", "red"), item("b", "grey"), item("c", "green")])
    assert content(one) == content(Own(one))
    assert content(one) != content(other)
