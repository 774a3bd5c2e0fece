"""Captions of a Hugging Face stream: read once, and compared with what scores are measured on."""

import io
import re
import threading
import time

import pytest

from xlcm.cli import main
from xlcm.data import hf_captions, progress
from xlcm.data.hf_captions import kept_captions
from xlcm.data.hf_stream import HfStream
from xlcm.data.manifest import DataError, ManifestWriter
from xlcm.data.rows import open_splits
from xlcm.data.shared_items import find_alike, shared_by_parts
from xlcm.data.sources.columns import Layout
from xlcm.types import Caption, Item

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setenv("XLCM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)


@pytest.fixture
def rows(tmp_path):
    """Write numbered rows in two files."""

    def write(names, split="train"):
        folder = tmp_path / "rows"
        folder.mkdir(exist_ok=True)
        half = len(names) // 2
        for shard, part in enumerate((names[:half], names[half:])):
            columns = {"name": part, "english": [f"picture {name}" for name in part],
                       "image": [f"{name}.jpg" for name in part]}  # fmt: skip
            datasets.Dataset.from_dict(columns).to_parquet(folder / f"{split}-{shard:05d}.parquet")
        return folder

    return write


def manifest(path, texts, split="val"):
    """Write an item for each id with its captions by language."""
    with ManifestWriter(path) as writer:
        for name, captions in texts.items():
            made = [Caption(f"{name}#{lang}", lang, text) for lang, text in captions.items()]
            writer.write(Item(name, split, tuple(made)))
    return {"name": "manifest", "path": str(path), "split": split}


def stream(folder, **options):
    return {"name": "hf_stream", "path": str(folder), "captions": {"en": "english"}, **options}


NAMES = [f"p{n}" for n in range(10)]
TEXTS = {
    "p3": {"en": "picture p3", "de": "Bild 3"},  # is in training
    "p4": {"en": "another picture"},  # another data set may call its own so
    "q5": {"en": "picture p5"},  # says the same under another id
}


def test_rows_with_ids_that_scores_are_measured_on_are_refused_or_left_out(rows, tmp_path):
    specs = [stream(rows(NAMES), id="name"), manifest(tmp_path / "val.jsonl", TEXTS)]
    with pytest.raises(DataError, match=r"(?s)1 fault.*train row 4: item id 'p3' with the caption "
                       r"'picture p3' is also at .*val\.jsonl:1"):  # fmt: skip
        open_splits(specs, visual="features")
    (train, _), faults = open_splits(specs, visual="features", on_error="skip", max_skipped=0.1)
    assert [fault.kind for fault in faults] == ["split_overlap"]
    assert [train[n].id for n in range(len(train))] == [n for n in NAMES if n != "p3"]
    with pytest.raises(DataError, match=r"10\.0% of its items"):
        open_splits(specs, visual="features", on_error="skip", max_skipped=0.05)


def test_validation_rows_of_a_stream_are_found_in_a_manifest_and_in_a_stream(rows, tmp_path):
    rows(NAMES)
    val = stream(rows(["p3", "x1", "x2"], "test"), id="name", split="test")
    train = manifest(tmp_path / "train.jsonl", {"p3": {"en": "picture p3"}}, "train")
    for spec in (train, stream(tmp_path / "rows", id="name")):
        with pytest.raises(DataError, match=r"item id 'p3'.*test row 1, which scores are measured"):
            open_splits([spec, val], visual="features")


def test_rows_without_ids_are_told_where_their_captions_are_those_of_another_item(rows, tmp_path):
    specs = [stream(rows(NAMES)), manifest(tmp_path / "val.jsonl", TEXTS)]
    with pytest.warns(UserWarning, match=r"2 items have the captions of items .* such as .*train "
                      r"row 4 those of .*val\.jsonl:1.*`id`"):  # fmt: skip
        (train, val), faults = open_splits(specs, visual="features")
    assert len(train) == 10
    assert not faults
    assert [where.rpartition(" ")[2] for where, _ in find_alike(train, [val])] == ["4", "6"]
    named = HfStream(path=str(tmp_path / "rows"), captions={"en": "english"}, id="name")
    assert find_alike(named, [val]) == []


def test_shards_of_a_stream_are_compared_as_the_stream_is(rows, tmp_path):
    folder, val = str(rows(NAMES)), manifest(tmp_path / "val.jsonl", TEXTS)
    words = ["data", "shard-hf", folder, "--captions", "en=english", "--out"]
    assert main([*words, str(tmp_path / "named"), "--id", "name"]) == 0
    assert main([*words, str(tmp_path / "numbered")]) == 0
    with pytest.raises(DataError, match="item id 'p3' with the caption 'picture p3' is also at"):
        open_splits([{"name": "shards", "path": str(tmp_path / "named")}, val], visual="features")
    with pytest.warns(UserWarning, match=r"2 items have the captions of .*`--id`"):
        open_splits([{"name": "shards", "path": str(tmp_path / "numbered")}, val],
                    visual="features")  # fmt: skip


def test_an_item_with_one_caption_in_common_and_others_that_differ_is_another_one(rows, tmp_path):
    rows(NAMES)
    two = HfStream(path=str(tmp_path / "rows"), captions={"en": ["english", "image"]})
    (val,), _ = open_splits([manifest(tmp_path / "val.jsonl", TEXTS)], visual="features")
    assert find_alike(two, [val]) == []


def test_parts_of_a_mix_that_share_named_rows_are_told(rows):
    folder = str(rows(NAMES))
    named = {k: HfStream(path=folder, captions={"en": "english"}, id="name") for k in "ab"}
    assert shared_by_parts(named) == {("a", "b"): NAMES}
    numbered = {k: HfStream(path=folder, captions={"en": "english"}) for k in "ab"}
    assert shared_by_parts(numbered) == {}


def test_two_rows_of_one_id_and_a_missing_column_are_named(rows):
    folder = str(rows(["p1", "p2", "p3", "p1"]))
    with pytest.raises(DataError, match=r"train row 4: item id 'p1' was written before, in row 1.*"
                       r"leave `id: name` out.*xlcm data import hf --id name"):  # fmt: skip
        HfStream(path=folder, captions={"en": "english"}, id="name")
    with pytest.raises(DataError, match="no column 'nam'; did you mean 'name'"):
        HfStream(path=folder, captions={"en": "english"}, id="nam")


# -- read once -----------------------------------------------------------------------------------


def test_of_several_processes_one_reads_and_the_others_wait(monkeypatch):
    readers = []

    def slowly(_, folder, *__):
        readers.append(folder)
        time.sleep(0.2)
        folder.mkdir(parents=True)
        (folder / hf_captions.COUNTS).write_text('{"rows": [1], "silent": 0, "first": null}')

    monkeypatch.setattr(hf_captions, "_read", slowly)
    found = []

    def ask():
        found.append(kept_captions(None, Layout(()), "x", "train", ["about"]))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(readers) == 1
    assert [known["rows"] for _, known in found] == [[1], [1], [1]]


def test_reading_the_captions_shows_how_far_it_is(rows, monkeypatch):
    monkeypatch.setattr(progress, "FILE_S", 0.0)
    out = io.StringIO()
    monkeypatch.setattr("sys.stderr", out)
    HfStream(path=str(rows(NAMES)), captions={"en": "english"})
    assert re.search(r"rows, train: captions: 10( of 10)? rows, [\d.,]+ rows/s", out.getvalue())
