from pathlib import Path

import pytest
from faults import bad_encoding, bom, crlf, line_less, line_more, packed, truncated

from xlcm.cli import main
from xlcm.data.check import check_manifest
from xlcm.data.manifest import read_manifest


@pytest.fixture
def root(tmp_path) -> Path:
    root = tmp_path / "text"
    root.mkdir()
    (root / "ids.txt").write_text("b.jpg\na.jpg\n")
    (root / "train.en").write_text("A boat.\nA cat.\n")
    (root / "train.de").write_text("Ein Boot.\nEine Katze.\n")
    (root / "test.en").write_text("".join(f"Dog {n}.\n" for n in range(10)))
    return root


TRAIN = ["--ids", "train=ids.txt", "--captions", "train/de:mt=train.de", "train/en=train.en",
         "--mt-from", "en", "--engine", "some-mt"]  # fmt: skip


def command(root: Path, *words: str) -> int:
    where = ["--root", str(root), "--out", str(root.parent / "m.jsonl")]
    return main(["data", "import", "lines", *where, *words])


def items(root: Path):
    return {item.id: item for item in read_manifest(root.parent / "m.jsonl")}


def test_line_n_of_each_file_belongs_to_picture_n(root):
    assert command(root, *TRAIN) == 0
    found = items(root)
    assert list(found) == ["b", "a"]
    assert [(c.id, c.text, c.origin, c.of, c.engine) for c in found["a"].captions] == [
        ("a#en.0", "A cat.", "human", None, None),
        ("a#de.mt.0", "Eine Katze.", "mt", "a#en.0", "some-mt"),
    ]  # fmt: skip
    assert check_manifest(root.parent / "m.jsonl", images=False).faults == 0


def test_five_lines_a_picture_without_names(root):
    assert command(root, "--captions", "test/en=test.en", "--per-image", "5") == 0
    found = items(root)
    assert list(found) == ["test-0", "test-1"]
    assert [c.text for c in found["test-1"].captions] == [f"Dog {n}." for n in range(5, 10)]


def test_an_empty_line_is_counted_and_shifts_nothing(root, capsys):
    (root / "train.en").write_text("\nA cat.\n")
    assert command(root, *TRAIN) == 0
    assert [c.text for c in items(root)["a"].captions] == ["A cat.", "Eine Katze."]
    assert items(root)["b"].captions[0].of is None
    assert "train.en:1" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [line_more, line_less])
def test_more_or_fewer_lines_than_pictures_are_refused(root, capsys, wrong):
    wrong(root / "train.de")
    assert command(root, *TRAIN) == 2
    assert "lines, expected 2: ids.txt has 2 pictures with 1 captions" in capsys.readouterr().err
    assert not (root.parent / "m.jsonl").exists()


@pytest.mark.parametrize("harmless", [crlf, bom, packed])
def test_line_ends_marks_and_gzip_change_nothing(root, harmless):
    command(root, *TRAIN)
    before = (root.parent / "m.jsonl").read_bytes()
    for name in ("ids.txt", "train.en"):
        harmless(root / name)
    assert command(root, *TRAIN) == 0
    assert (root.parent / "m.jsonl").read_bytes() == before


def test_faults_are_named(root, capsys):
    def fails(*words: str) -> str:
        assert command(root, *(words or TRAIN)) == 2
        return capsys.readouterr().err

    (root / "ids.txt").write_text("a.jpg\na.jpg\n")
    assert "ids.txt:2: a is also at line 1" in fails()
    (root / "ids.txt").write_text("\na.jpg\n")
    assert "ids.txt:1: no picture is named" in fails()
    (root / "ids.txt").write_text("b.jpg\na.jpg\n")
    bad_encoding(root / "train.de", 2)
    assert "train.de:2: not UTF-8" in fails()
    truncated(packed(root / "train.en"))
    assert "cut off" in fails()
    assert "which split?" in fails("--captions", "train.en")
    assert "which language?" in fails("--captions", "train=train.en")
    assert "no.en" in fails("--captions", "train/en=no.en")
    assert "with a split of --captions" in fails("--captions", "x/en=test.en", "--ids", "y=ids.txt")


def test_real_line_aligned_files_are_read_whole(shared, tmp_path):
    root = shared / "data" / "captions" / "multi30k" / "task1"
    out = str(tmp_path / "m.jsonl")
    names = [f"test/{lang}=raw/test_2016_flickr.{lang}" for lang in ("en", "de", "fr", "cs")]
    if not list(root.glob("raw/test_2016_flickr.en*")):
        pytest.skip("needs the files of Multi30K")
    assert main(["data", "import", "lines", "--root", str(root), "--out", out, "--captions", *names,
                 "--ids", "test=image_splits/test_2016_flickr.txt"]) == 0  # fmt: skip
    found = list(read_manifest(out))
    assert len(found) == 1000
    assert all([c.lang for c in item.captions] == ["en", "de", "fr", "cs"] for item in found)


def test_two_lists_of_pictures_for_a_split_are_refused(root, capsys):
    (root / "other.txt").write_text("c.jpg\nd.jpg\n")
    ids = ["--ids", "train=ids.txt", "train=other.txt"]
    assert command(root, *ids, "--captions", "train/en=train.en") != 0
    assert "the pictures of train are named by ids.txt too" in capsys.readouterr().err
    assert not (root.parent / "m.jsonl").exists()


def test_blank_lines_at_the_end_are_no_captions_and_are_told(root, capsys):
    for name, more in (("ids.txt", "\n"), ("train.en", "\n \n"), ("train.de", "\r\n")):
        with open(root / name, "a", newline="") as file:
            file.write(more)
    assert command(root, *TRAIN) == 0
    assert [len(item.captions) for item in items(root).values()] == [2, 2]
    said = " ".join(capsys.readouterr().out.split())
    assert "4 blank lines at the end of a file were left out: " in said
    assert command(root, "--captions", "train/en=train.en") == 0
    assert [c.text for item in items(root).values() for c in item.captions] == ["A boat.", "A cat."]


def test_a_last_line_that_another_file_has_a_caption_for_is_an_empty_caption(root, capsys):
    (root / "train.en").write_text("A boat.\n\n\n")
    assert command(root, "--captions", "train/en=train.en", "train/de=train.de") == 0
    assert [[c.lang for c in item.captions] for item in items(root).values()] == [
        ["en", "de"], ["de"],
    ]  # fmt: skip
    said = " ".join(capsys.readouterr().out.split())
    assert f"1 captions without text were left out: {root / 'train.en'}:2" in said
    assert f"1 blank lines at the end of a file were left out: {root / 'train.en'}:3" in said
    (root / "train.en").write_text("A boat.\n")
    assert command(root, "--captions", "train/en=train.en", "train/de=train.de") == 2
    assert "1 lines, expected 2" in capsys.readouterr().err
    assert command(root, "--captions", "train/en=train.en", "--per-image", "5") == 2


def test_translations_of_xtd10_by_machine_are_read_beside_its_own_files(shared, tmp_path):
    root = shared / "data" / "captions"
    if not (root / "xtd10_mt_nllb").is_dir():
        pytest.skip("needs the translations of XTD10 by NLLB")
    out = str(tmp_path / "m.jsonl")
    names = ["test/en=xtd10/XTD10/test_1kcaptions_en.txt", "test/de=xtd10/MIC/test_1kcaptions_de.txt",
             "test/de:mt=xtd10_mt_nllb/deu_Latn.txt", "test/sw:mt=xtd10_mt_nllb/swh_Latn.txt"]  # fmt: skip
    assert main(["data", "import", "lines", "--root", str(root), "--out", out, "--captions", *names,
                 "--ids", "test=xtd10/XTD10/test_image_names.txt", "--mt-from", "en", "--engine",
                 "nllb-200"]) == 0  # fmt: skip
    found = list(read_manifest(out))
    assert len(found) == 1000
    for item in found:
        assert [c.lang for c in item.captions] == ["en", "de", "de", "sw"]
        english = item.captions[0].id
        assert [c.of for c in item.captions] == [None, None, english, english]
        assert item.id.startswith("COCO_")
