import json
from pathlib import Path

import pytest
from faults import bad_encoding, bom, crlf, packed, truncated

from xlcm.cli import main
from xlcm.data.check import check_manifest
from xlcm.data.manifest import read_manifest


def put(root: Path, name: str, images: list[int], texts: list[tuple[int, str]]) -> Path:
    tree = {
        "info": {}, "licenses": [],
        "images": [{"id": n, "file_name": f"COCO_{n:012d}.jpg", "license": 3} for n in images],
        "annotations": [{"id": i, "image_id": n, "caption": t} for i, (n, t) in enumerate(texts)],
    }  # fmt: skip
    path = root / name
    path.write_text(json.dumps(tree, ensure_ascii=False, indent=1), encoding="utf-8")
    return path


@pytest.fixture
def root(tmp_path) -> Path:
    put(tmp_path, "en.json", [5, 3], [(3, "A cat."), (5, "A boat."), (3, "One cat.")])
    put(tmp_path, "ja.json", [3, 5], [(5, "船。")])
    put(tmp_path, "val.json", [9], [(9, "A dog.")])
    return tmp_path


def command(root: Path, *words: str) -> int:
    out = root / "out" / "m.jsonl"
    return main(["data", "import", "coco-json", "--root", str(root), "--out", str(out), *words])


def items(root: Path):
    return {item.id: item for item in read_manifest(root / "out" / "m.jsonl")}


def test_captions_of_several_files_meet_at_their_picture(root):
    files = ["train/en=en.json", "train/ja:mt=ja.json", "val/en=val.json"]
    assert command(root, "--files", *files, "--engine", "some-mt") == 0
    found = items(root)
    assert [(i, item.split) for i, item in found.items()] == [
        ("5", "train"), ("3", "train"), ("9", "val"),
    ]  # fmt: skip
    assert [(c.id, c.lang, c.origin, c.engine) for c in found["5"].captions] == [
        ("5#en.0", "en", "human", None), ("5#ja.mt.0", "ja", "mt", "some-mt"),
    ]  # fmt: skip
    assert [c.text for c in found["3"].captions] == ["A cat.", "One cat."]
    assert check_manifest(root / "out" / "m.jsonl", images=False).faults == 0


def test_a_picture_without_captions_is_an_item_and_is_counted(root, capsys):
    assert command(root, "--files", "train=ja.json", "--lang", "ja") == 0
    assert [len(item.captions) for item in items(root).values()] == [0, 1]
    assert "1 items of train have no captions" in capsys.readouterr().out


def test_items_may_be_called_by_their_file(root):
    assert command(root, "--files", "val.json", "--lang", "en", "--split", "val", "--id",
                   "file_name") == 0  # fmt: skip
    assert list(items(root)) == ["COCO_000000000009"]


@pytest.mark.parametrize("harmless", [crlf, bom, packed])
def test_line_ends_marks_and_gzip_change_nothing(root, harmless):
    command(root, "--files", "train/en=en.json")
    before = (root / "out" / "m.jsonl").read_bytes()
    harmless(root / "en.json")
    assert command(root, "--files", "train/en=en.json") == 0
    assert (root / "out" / "m.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["en.json"], "which split?"),
        (["train=en.json"], "which language?"),
        (["train/jp=en.json"], "did you mean 'ja'"),
        (["train/en:man=en.json"], "did you mean 'human'"),
        (["train/en=eng.json"], "eng.json"),
        (
            ["train/en=en.json", "val/en=ja.json"],
            "picture 3 is COCO_000000000003.jpg in split 'val'",
        ),
    ],
)
def test_wrong_options_are_named(root, capsys, words, said):
    assert command(root, "--files", *words) == 2
    assert said in capsys.readouterr().err
    assert not (root / "out" / "m.jsonl").exists()


def test_faults_of_the_file_are_named_with_the_entry(root, capsys):
    put(root, "a.json", [1], [(1, "A boat."), (2, "A cat.")])
    assert command(root, "--files", "train/en=a.json") == 2
    assert "a.json: annotations[1]: image_id 2 is none of the 1 images" in capsys.readouterr().err
    put(root, "a.json", [1, 1], [])
    assert command(root, "--files", "train/en=a.json") == 2
    assert "a.json: images[1]: id 1 is there twice" in capsys.readouterr().err
    (root / "a.json").write_text('{"images": []}')
    assert command(root, "--files", "train/en=a.json") == 2
    assert "no list 'annotations'" in capsys.readouterr().err
    truncated(put(root, "a.json", [1], [(1, "A boat.")]))
    assert command(root, "--files", "train/en=a.json") == 2
    assert "not JSON" in capsys.readouterr().err
    bad_encoding(put(root, "a.json", [1], [(1, "A boat.")]), 3)
    assert command(root, "--files", "train/en=a.json") == 2
    assert "a.json:3: not UTF-8" in capsys.readouterr().err
