from pathlib import Path

import pytest
from faults import bad_encoding, bom, crlf, line_less, line_more, packed, truncated
from test_csv import picture

from xlcm.cli import main
from xlcm.data.check import check_manifest
from xlcm.data.manifest import read_manifest
from xlcm.data.sources import cc3m
from xlcm.data.sources.base import Need


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    root = tmp_path / "cc3m"
    root.mkdir()
    (root / cc3m.FILES["train"]).write_text(
        "a red boat\thttp://x/1.jpg\na cat\thttp://x/2.jpg\na dog\thttp://y/3.jpg\n"
    )
    (root / cc3m.FILES["val"]).write_text("a tree\thttp://x/4.jpg\n")
    (root / "train.de").write_text("ein rotes Boot\neine Katze\nein Hund\n")
    # an equal URL behind the caption proves the place of the line
    (root / "train.zh").write_text("一艘红船\thttp://x/1.jpg\n\n一只狗\n", encoding="utf-8")
    monkeypatch.setattr(cc3m, "ROWS", {"train": 3, "val": 1})
    return root


WORDS = ["--translations", "de=train.de", "train/zh=train.zh"]


def command(root: Path, *words: str) -> int:
    where = ["--root", str(root), "--out", str(root.parent / "m.jsonl")]
    return main(["data", "import", "cc3m", *where, *words])


def items(root: Path):
    return {item.id: item for item in read_manifest(root.parent / "m.jsonl")}


def test_line_n_of_each_language_belongs_to_row_n(root, capsys):
    assert command(root, *WORDS) == 0
    found = items(root)
    assert {i: item.split for i, item in found.items()} == {
        "train-1": "train", "train-2": "train", "train-3": "train", "val-1": "val",
    }  # fmt: skip
    assert [(c.lang, c.text, c.origin, c.of, c.engine) for c in found["train-1"].captions] == [
        ("en", "a red boat", "human", None, None),
        ("de", "ein rotes Boot", "mt", "train-1#en.0", "uc2"),
        ("zh", "一艘红船", "mt", "train-1#en.0", "uc2"),
    ]  # fmt: skip
    assert [c.lang for c in found["train-2"].captions] == ["en", "de"]
    assert "train.zh:2" in capsys.readouterr().out
    assert check_manifest(root.parent / "m.jsonl", images=False).faults == 0


def test_a_training_row_with_the_url_of_a_validation_row_is_a_leak_or_left_out(root, capsys):
    with open(root / cc3m.FILES["train"], "a") as file:
        file.write("an elm\thttp://x/4.jpg\n")
    for lang in ("de", "zh"):
        with open(root / f"train.{lang}", "a") as file:
            file.write("x\n")
    assert command(root, *WORDS) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "LEAK: 1 of 4 pictures of train are in val too: cc3m:val-1" in said
    command(root, *WORDS, "--drop-duplicates")
    assert list(items(root)) == ["train-1", "train-2", "train-3", "val-1"], "val keeps it"
    assert [c.lang for c in items(root)["train-3"].captions] == ["en", "de", "zh"]
    said = " ".join(capsys.readouterr().out.split())
    assert "LEAK" not in said
    assert "1 rows whose URL was there before were left out" in said


def test_a_dead_link_drops_all_languages_of_its_row(root):
    folder = root.parent / "photos"
    folder.mkdir()
    for number in (1, 3):
        (folder / f"{number:09d}.jpg").write_bytes(picture())
    words = [*WORDS, "--splits", "train", "--images", str(folder)]
    assert command(root, *words) == 2
    assert command(root, *words, "--missing-images", "drop") == 0
    assert list(items(root)) == ["train-1", "train-3"]
    assert items(root)["train-3"].image == "photos/000000003.jpg"


def test_a_list_of_what_was_downloaded_says_where_pictures_are(root):
    folder = root.parent / "photos"
    folder.mkdir()
    (folder / "x.jpg").write_bytes(picture())
    (root / "done.tsv").write_text("http://y/3.jpg\tx.jpg\n")
    assert command(root, "--splits", "train", "--images", str(folder), "--missing-images", "drop",
                   "--downloaded", str(root / "done.tsv")) == 0  # fmt: skip
    assert {i: item.image for i, item in items(root).items()} == {"train-3": "photos/x.jpg"}


@pytest.mark.parametrize("wrong", [line_more, line_less])
def test_a_translation_with_more_or_fewer_lines_is_refused(root, capsys, wrong):
    wrong(root / "train.de")
    assert command(root, *WORDS) == 2
    said = capsys.readouterr().err
    assert "train.de: " in said
    assert "has 3: line n must belong to line n" in said
    assert not (root.parent / "m.jsonl").exists()


@pytest.mark.parametrize("harmless", [crlf, bom, packed])
def test_line_ends_marks_and_gzip_change_nothing(root, harmless):
    command(root, *WORDS)
    before = (root.parent / "m.jsonl").read_bytes()
    for name in (cc3m.FILES["train"], "train.de"):
        harmless(root / name)
    assert command(root, *WORDS) == 0
    assert (root.parent / "m.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--translations", "jp=train.de"], "did you mean 'ja'"),
        (["--translations", "train.de"], "expected [SPLIT/]LANG=FILE"),
        (["--translations", "test/de=train.de"], "the splits are train, val"),
        (["--translations", "de=train.de", "de=train.zh"], "has captions in 'de' already"),
        (["--translations", "cs=train.cs"], "train.cs: cs, train"),
        (["--image-name", "{name}.jpg"], "fields are {split}, {row}"),
    ],
)
def test_wrong_options_are_named(root, capsys, words, said):
    assert command(root, *words) == 2
    assert said in capsys.readouterr().err


def test_faults_are_named_with_file_and_line(root, capsys):
    (root / cc3m.FILES["val"]).write_text("a tree http://x/4.jpg\n")
    assert command(root) == 2
    assert "Validation.tsv:1: expected <caption><tab><url>" in capsys.readouterr().err
    (root / "train.zh").write_text("one\thttp://x/2.jpg\ntwo\nthree\n")
    assert command(root, *WORDS, "--splits", "train") == 2
    assert "train.zh:1: behind the tab is 'http://x/2.jpg'" in capsys.readouterr().err
    bad_encoding(root / cc3m.FILES["train"], 2)
    assert command(root, "--splits", "train") == 2
    assert "training.tsv:2: not UTF-8" in capsys.readouterr().err
    truncated(packed(root / cc3m.FILES["train"]))
    assert command(root, "--splits", "train") == 2
    assert "cut off" in capsys.readouterr().err
    (root / (cc3m.FILES["train"] + ".gz")).unlink()
    assert command(root) == 2
    said = capsys.readouterr().err
    assert cc3m.FILES["train"] in said
    assert "github.com/zmykevin/UC2" in said
    assert not (root.parent / "m.jsonl").exists()


def test_a_count_that_differs_from_the_published_one_ends_with_1(root, monkeypatch):
    monkeypatch.setattr(cc3m, "ROWS", {"train": 4, "val": 1})
    assert command(root) == 1
    assert isinstance(cc3m.make_plan(root, ["val"], {"val": {}}, None).needs[0], Need)  # type: ignore[arg-type]
