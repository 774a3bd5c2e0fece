import json
from pathlib import Path

import pytest
from faults import bad_encoding, bom, crlf, packed, truncated
from test_csv import picture

from xlcm.cli import main
from xlcm.data.check import check_manifest
from xlcm.data.manifest import read_manifest
from xlcm.data.sources import aic_icc


def put(root: Path, split: str, names: list[str], captions: int = 5) -> Path:
    rows = [{"url": "http://x", "image_id": f"{name}.jpg",
             "caption": [f"{name} {n}" for n in range(captions)]} for name in names]  # fmt: skip
    path = root / aic_icc.FILES[split]
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.fixture
def root(tmp_path) -> Path:
    root = tmp_path / "aic"
    root.mkdir()
    put(root, "train", ["b", "a"])
    put(root, "val", ["z", "c", "y"])
    return root


def command(root: Path, *words: str) -> int:
    where = ["--root", str(root), "--out", str(root.parent / "m.jsonl")]
    return main(["data", "import", "aic-icc", *where, *words])


def items(root: Path):
    return {item.id: item for item in read_manifest(root.parent / "m.jsonl")}


def test_the_first_of_the_validation_file_in_its_order_are_the_test(root):
    assert command(root, "--test-images", "2") == 1  # five pictures are not 240,000
    found = items(root)
    assert {i: item.split for i, item in found.items()} == {
        "b": "train", "a": "train", "z": "test", "c": "test", "y": "val",
    }  # fmt: skip
    assert [c.id for c in found["z"].captions] == [f"z#zh.{n}" for n in range(5)]
    assert check_manifest(root.parent / "m.jsonl", images=False).faults == 0


def test_the_archives_are_read_as_they_are_unpacked(root, tmp_path):
    for split, name in aic_icc.FILES.items():
        folder = root / aic_icc.ARCHIVES[split]
        (folder / aic_icc.FOLDERS[split]).mkdir(parents=True)
        (root / name).rename(folder / name)
    train = f"{aic_icc.ARCHIVES['train']}/{aic_icc.FOLDERS['train']}"
    for name in "ab":
        (root / train / f"{name}.jpg").write_bytes(b"x")
    assert command(root, "--images", str(root), "--missing-images", "drop") == 1
    assert {i: item.image for i, item in items(root).items()} == {
        name: f"aic/{train}/{name}.jpg" for name in "ba"
    }


def test_the_published_protocol_is_the_default():
    plan = aic_icc.plan(".")
    assert {split: (e.items, dict(e.captions)) for split, e in plan.expected.items()} == {
        "train": (210_000, {"zh": 1_050_000}), "val": (20_000, {"zh": 100_000}),
        "test": (10_000, {"zh": 50_000}),
    }  # fmt: skip


def test_as_many_as_published_ends_with_0(root, monkeypatch, tmp_path):
    put(root, "train", [f"t{n}" for n in range(21)])
    monkeypatch.setattr(aic_icc, "TRAIN", 21)
    monkeypatch.setattr(aic_icc, "VALIDATION", 3)
    assert command(root, "--test-images", "1") == 0


def test_pictures_lie_in_the_owners_folders_or_in_one(root):
    for split, names in (("train", ["a", "b"]), ("val", ["z", "c", "y"])):
        folder = root / aic_icc.FOLDERS[split]
        folder.mkdir()
        for name in names:
            (folder / f"{name}.jpg").write_bytes(picture())
    command(root, "--images", str(root))
    assert items(root)["z"].image == f"aic/{aic_icc.FOLDERS['val']}/z.jpg"
    flat = root / aic_icc.FOLDERS["train"]
    command(root, "--images", str(flat), "--flat", "--missing-images", "drop")
    assert list(items(root)) == ["b", "a"]


def test_a_caption_without_text_is_counted_and_left_out(root, capsys):
    rows = [{"image_id": "a.jpg", "caption": ["x", " "]}, {"image_id": "b.jpg", "caption": []}]
    (root / aic_icc.FILES["train"]).write_text(json.dumps(rows))
    command(root)
    said = capsys.readouterr().out
    assert "1 captions without text were left out" in said
    assert "1 items of train have no captions" in said


@pytest.mark.parametrize("harmless", [crlf, bom, packed])
def test_line_ends_marks_and_gzip_change_nothing(root, harmless):
    code = command(root)
    before = (root.parent / "m.jsonl").read_bytes()
    (root.parent / "m.jsonl").unlink()
    harmless(root / aic_icc.FILES["val"])
    assert command(root) == code
    assert (root.parent / "m.jsonl").read_bytes() == before


def test_faults_are_named(root, capsys):
    def fails(*words: str) -> str:
        assert command(root, *words) == 2
        return capsys.readouterr().err

    path = root / aic_icc.FILES["train"]
    for text, said in (
        ('[{"caption": []}]', "20170902.json: entry 0: expected image_id and caption"),
        ('[{"image_id": 3, "caption": []}]', "entry 0: image_id must be text"),
        ('[{"image_id": "a.jpg", "caption": [5]}]', "entry 0: caption 0 is no text"),
        ('{"image_id": 3}', "expected a list of pictures"),
        ('[{"image_id": "a.jpg", "caption": []}, {"image_id": "a.jpg", "caption": []}]', "'a'"),
    ):
        path.write_text(text)
        assert said in fails()
    assert "not JSON" in (truncated(put(root, "train", ["a"])) and fails())
    assert "20170902.json:1: not UTF-8" in (bad_encoding(path) and fails())
    path.unlink()
    said = fails()
    assert "captions of the training pictures" in said
    assert "ai_challenger_caption_train_20170902" in said
    assert "--test-images" in fails("--test-images", "-1")


def test_pictures_of_an_older_manifest_are_found(root):
    command(root)
    (root.parent / "m.jsonl").rename(root.parent / "old.jsonl")
    (root.parent / "m.jsonl.report.json").rename(root.parent / "old.jsonl.report.json")
    command(root, "--against", str(root.parent / "old.jsonl"))
    told = json.loads((root.parent / "m.jsonl.report.json").read_text())["against"]
    assert {(row["of_split"], row["split"], row["pictures"]) for row in told} == {
        ("train", "train", 2), ("test", "test", 3),
    }  # fmt: skip
