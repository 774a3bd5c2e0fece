from pathlib import Path

import pytest
from faults import bad_encoding, bom, crlf
from test_csv import picture

from xlcm.cli import main
from xlcm.data.check import check_manifest
from xlcm.data.manifest import DataError, read_manifest
from xlcm.data.sources.folder import Folder


@pytest.fixture
def root(tmp_path) -> Path:
    root = tmp_path / "root"
    for name, text in {
        "train/a.jpg": None, "train/a.en.txt": "A boat.\nA red boat.\n",
        "train/a.de.mt.txt": "Ein Boot.\n\n", "train/b.c.png": None, "train/b.c.en.txt": "A cat.\n",
        "val/d.JPG": None, "val/d.en.txt": "A dog.\n", "val/e.jpg": None,
        "val/.hidden.txt": "x\n", "notes.md": "x\n",
    }.items():  # fmt: skip
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = "PNG" if name.endswith("png") else "JPEG"
        path.write_bytes(picture(kind=kind) if text is None else text.encode())
    return root


def command(root: Path, *words: str) -> int:
    out = root.parent / "m.jsonl"
    return main(["data", "import", "folder", "--root", str(root), "--out", str(out), *words])


def items(root: Path):
    return {item.id: item for item in read_manifest(root.parent / "m.jsonl")}


def test_text_files_belong_to_the_picture_of_their_name(root, capsys):
    words = ["--split-folders", "--mt-from", "en", "--engine", "some-mt"]
    assert command(root, *words) == 0
    found = items(root)
    assert {i: (item.split, item.image, len(item.captions)) for i, item in found.items()} == {
        "train/a": ("train", "root/train/a.jpg", 3), "train/b.c": ("train", "root/train/b.c.png", 1),
        "val/d": ("val", "root/val/d.JPG", 1), "val/e": ("val", "root/val/e.jpg", 0),
    }  # fmt: skip
    machine = found["train/a"].captions[-1]
    assert (machine.lang, machine.text, machine.origin, machine.of, machine.engine) == (
        "de", "Ein Boot.", "mt", "train/a#en.0", "some-mt",
    )  # fmt: skip
    assert "1 empty lines were left out" in capsys.readouterr().out
    assert check_manifest(root.parent / "m.jsonl").faults == 0


def test_one_split_and_one_language_need_no_names(root):
    (root / "train" / "a.txt").write_text("A ship.\n")
    assert command(root, "--split", "train", "--lang", "en") == 0
    found = items(root)
    assert {item.split for item in found.values()} == {"train"}
    assert "A ship." in {c.text for c in found["train/a"].captions}


@pytest.mark.parametrize("harmless", [crlf, bom])
def test_line_ends_and_marks_change_nothing(root, harmless):
    command(root, "--split", "train")
    before = (root.parent / "m.jsonl").read_bytes()
    harmless(root / "train" / "a.en.txt")
    assert command(root, "--split", "train") == 0
    assert (root.parent / "m.jsonl").read_bytes() == before


def test_endings_in_capitals_are_read_and_other_files_counted(root, capsys):
    (root / "val" / "d.de.TXT").write_text("Ein Hund.\n")
    (root / "val" / "g.heic").write_text("-")
    assert command(root, "--split-folders") == 0
    assert [c.lang for c in items(root)["val/d"].captions] == ["de", "en"]
    said = " ".join(capsys.readouterr().out.split())
    assert "2 files of other kinds were left out" in said
    assert "g.heic" in said


def test_a_text_file_without_picture_stops_or_is_counted(root, capsys):
    (root / "val" / "f.en.txt").write_text("A fox.\n")
    assert command(root, "--split", "train") == 2
    assert "f.en.txt: no picture of this name" in capsys.readouterr().err
    assert command(root, "--split", "train", "--missing-images", "drop") == 0
    assert "1 text files without picture were left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("train/a.txt", "which language?"), ("train/a.jp.txt", "did you mean 'ja'"),
        ("train/a.en.machine.txt", "none of human, mt, back"),
        ("train/a.png", "has the same name but for its ending"), ("g.jpg", "it is in no folder"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_named_with_its_file(root, capsys, name, said):
    (root / name).write_text("A ship.\n")
    assert command(root, "--split-folders") == 2
    error = capsys.readouterr().err
    assert said in error
    assert Path(name).name in error


def test_a_wrong_encoding_and_a_missing_choice_are_named(root, capsys):
    bad_encoding(root / "train" / "a.en.txt", 2)
    assert command(root, "--split-folders") == 2
    assert "a.en.txt:2: not UTF-8" in capsys.readouterr().err
    assert command(root) == 2
    assert "--split-folders" in capsys.readouterr().err


def test_a_linked_folder_is_counted_and_an_unreadable_one_named(tmp_path, monkeypatch):
    (tmp_path / "far").mkdir()
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / "a.jpg").touch()
    (tmp_path / "near" / "linked").symlink_to(tmp_path / "far")
    reader = Folder(tmp_path / "near", split="train", lang="en")
    assert [item.id for item in reader.items()] == ["a"]
    assert reader.skipped.places == {"links to folders": [str(tmp_path / "near" / "linked")]}

    def closed(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", closed)
    with pytest.raises(DataError, match="near: can't be read: Permission denied"):
        list(reader.items())
