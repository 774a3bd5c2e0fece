import re
import sys
from pathlib import Path

import pytest
from test_csv import picture

from xlcm.cli import main
from xlcm.data.check import check_manifest
from xlcm.data.manifest import read_manifest


@pytest.fixture
def root(tmp_path) -> Path:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({
        "image": datasets.Image(), "captions": [datasets.Value("string")],
        "translation": {"en": datasets.Value("string"), "de": datasets.Value("string")},
        "number": datasets.Value("int64"),
    })  # fmt: skip

    def rows(*numbers: int):
        return datasets.Dataset.from_dict(
            {
                "image": [{"bytes": picture(), "path": None} for _ in numbers],
                "captions": [[f"Boat {n}.", f"Red boat {n}."] for n in numbers],
                "translation": [{"en": f"Boat {n}.", "de": f"Boot {n}."} for n in numbers],
                "number": list(numbers),
            },
            features=features,
        )

    datasets.DatasetDict({"train": rows(1, 2), "validation": rows(3)}).save_to_disk(tmp_path / "d")
    (tmp_path / "p").mkdir()
    rows(4, 5).to_parquet(tmp_path / "p" / "train.parquet")
    return tmp_path


def command(root: Path, folder: str, *words: str) -> int:
    where = ["--root", str(root / folder), "--out", str(root / "m.jsonl")]
    return main(["data", "import", "hf", *where, *words])


def items(root: Path):
    return {item.id: item for item in read_manifest(root / "m.jsonl")}


def test_a_saved_data_set_brings_its_splits_captions_and_pictures(root):
    words = ["--id", "number", "--picture-data", "image", "--captions", "en=captions"]
    assert command(root, "d", *words, "--split-names", "validation=val") == 0
    found = items(root)
    assert {i: (item.split, item.image) for i, item in found.items()} == {
        "1": ("train", "m_images/1.jpg"), "2": ("train", "m_images/2.jpg"),
        "3": ("val", "m_images/3.jpg"),
    }  # fmt: skip
    assert [c.text for c in found["3"].captions] == ["Boat 3.", "Red boat 3."]
    assert check_manifest(root / "m.jsonl").faults == 0


def test_rows_are_chosen_and_joined_by_columns_that_nothing_else_names(root):
    datasets = pytest.importorskip("datasets")
    rows = {"name": ["a", "b", "c"], "asked": ["boat"] * 3, "query": [7] * 3, "label": [1, 0, 1]}
    part = datasets.Dataset.from_dict(rows)
    datasets.DatasetDict({"test": part}).save_to_disk(root / "asked")
    words = ["--id", "name", "--captions", "en=asked", "--query", "query", "--only", "label=1"]
    assert command(root, "asked", *words) == 0
    found = [(item.id, [c.relevant for c in item.captions]) for item in items(root).values()]
    assert found == [("a", [("c",)]), ("c", [])]


def test_translations_are_linked_and_rows_need_no_ids(root):
    words = ["--id", "@row", "--captions", "translation", "--mt-from", "en", "--splits", "train"]
    assert command(root, "d", *words) == 0
    found = items(root)
    assert list(found) == ["train-1", "train-2"]
    assert [(c.lang, c.origin, c.of) for c in found["train-1"].captions] == [
        ("en", "human", None), ("de", "mt", "train-1#en.0"),
    ]  # fmt: skip


def test_faults_are_named(root, capsys):
    assert command(root, "d", "--id", "number", "--captions", "en=caption") == 2
    assert "no column 'caption'; did you mean 'captions'" in capsys.readouterr().err
    assert command(root, "d", "--id", "number", "--captions", "fr=translation.fr") == 2
    assert "d, train row 1: no row has 'translation.fr'" in capsys.readouterr().err
    assert command(root, "d", "--image", "image", "--captions", "en=captions") == 2
    assert "--picture-data image" in capsys.readouterr().err
    assert command(root, "d", "--id", "number", "--captions", "en=captions", "--splits", "val") == 2
    assert "no split 'val'" in capsys.readouterr().err
    assert command(root, "nowhere", "--id", "number", "--captions", "en=captions") == 2
    assert "--hub NAME" in capsys.readouterr().err
    (root / "empty").mkdir()
    assert command(root, "empty", "--id", "number", "--captions", "en=captions") == 2
    assert "can't open it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("t.csv", b"name,en\na,A dog.\nb,A caf\xe9.\n", "codec can't decode.*not UTF-8.*iconv"),
        ("t.csv", b'name,en\na,A dog.\nb,"A cat.\n', "EOF inside string"),
        ("t.jsonl", b'{"name": "a", "en": "A dog."}\n{"name": "b", "en": "A c', "JSON parse error"),
        ("t.parquet", b"PAR1 cut short", "Parquet magic bytes"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(root, monkeypatch, capsys, name, data, said):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", root / "cache")
    (root / "bad").mkdir()
    (root / "bad" / name).write_bytes(data)
    assert command(root, "bad", "--id", "name", "--captions", "en=en") == 2
    told = " ".join(capsys.readouterr().err.split())
    assert re.search(rf"bad: `datasets` can't open it: \S*/bad/{name}: .*{said}", told)
    assert not (root / "m.jsonl").exists()


def test_the_hub_is_asked_only_when_it_is_named(root, monkeypatch):
    import datasets

    asked = []

    def load(*words, **options):
        asked.append((words, options))
        return datasets.load_from_disk(str(root / "d"))

    monkeypatch.setattr("datasets.load_dataset", load)
    words = ["--id", "number", "--captions", "en=captions"]
    assert command(root, "d", *words) == 0
    assert asked == []
    assert command(root, "cache", *words, "--hub", "someone/boats", "--config", "small") == 0
    assert asked == [(("someone/boats", "small"), {"cache_dir": str(root / "cache")})]


def test_without_the_library_the_extra_is_named(tmp_path, monkeypatch):
    from xlcm.data.sources.hf import open_parts

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'xlcm\[stream\]'"):
        open_parts(tmp_path)


def test_parquet_files_are_read(root, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", root / "cache")
    assert command(root, "p", "--id", "number", "--captions", "en=captions") == 0
    assert list(items(root)) == ["4", "5"]


def test_without_a_network_a_data_set_of_the_hub_is_refused_in_words(root, capsys, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    words = ["--id", "number", "--captions", "en=captions"]
    assert command(root, "cache", "--hub", "OWNER/NONE", *words) == 2
    said = capsys.readouterr().err.replace("\n", " ")
    assert "OWNER/NONE: `datasets` can't open it" in said
    assert not (root / "m.jsonl").exists()
    where = ["--root", "OWNER/NONE", "--out", str(root / "m.jsonl")]
    assert main(["data", "import", "hf", *where, *words]) == 2
    assert "a data set of the hub is fetched by --hub NAME" in capsys.readouterr().err.replace(
        "\n", " "
    )
