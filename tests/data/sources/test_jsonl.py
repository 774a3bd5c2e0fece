import json
from base64 import b64encode
from collections import Counter
from pathlib import Path

import pytest
from faults import bad_encoding, bom, crlf, packed, truncated
from test_csv import picture

from xlcm.cli import main
from xlcm.data.check import check_manifest
from xlcm.data.manifest import DataError, read_manifest
from xlcm.data.sources.jsonl import read_objects


def put(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def command(source: str, root: Path, *words: str) -> int:
    out = root / "out" / "m.jsonl"
    return main(["data", "import", source, "--root", str(root), "--out", str(out), *words])


def items(root: Path):
    return {item.id: item for item in read_manifest(root / "out" / "m.jsonl")}


ROWS = [
    {"id": 7, "file": "a/7.jpg", "part": "train",
     "caption": {"en": ["A boat.", "A red boat."], "de": ["Ein Boot.", "Ein rotes Boot."]}},
    {"id": 8, "file": "a/8.jpg", "part": "test", "caption": {"en": "A cat.", "de": None}},
]  # fmt: skip
WORDS = ["--files", "rows.jsonl", "--split-column", "part", "--id", "id", "--image", "file"]


def test_captions_by_language_are_linked_to_their_source_by_place(tmp_path):
    put(tmp_path / "rows.jsonl", ROWS)
    assert command("jsonl", tmp_path, *WORDS, "--captions", "caption", "--mt-from", "en") == 0
    first, second = items(tmp_path).values()
    assert [(c.lang, c.text, c.of) for c in first.captions] == [
        ("en", "A boat.", None), ("en", "A red boat.", None),
        ("de", "Ein Boot.", "7#en.0"), ("de", "Ein rotes Boot.", "7#en.1"),
    ]  # fmt: skip
    assert (second.id, second.split, len(second.captions)) == ("8", "test", 1)
    assert check_manifest(tmp_path / "out" / "m.jsonl", images=False).faults == 0


def test_a_value_inside_an_object_is_a_column_too(tmp_path):
    put(tmp_path / "rows.jsonl", ROWS)
    assert command("jsonl", tmp_path, *WORDS, "--captions", "de=caption.de") == 0
    assert [c.text for c in items(tmp_path)["7"].captions] == ["Ein Boot.", "Ein rotes Boot."]


def test_a_json_list_is_read_as_lines_are(tmp_path):
    put(tmp_path / "rows.jsonl", ROWS)
    lines = [row.values for row in read_objects(tmp_path / "rows.jsonl")]
    (tmp_path / "rows.json").write_text(json.dumps(ROWS, indent=1))
    assert [row.values for row in read_objects(tmp_path / "rows.json")] == lines


@pytest.mark.parametrize("harmless", [crlf, bom, packed])
def test_line_ends_marks_and_gzip_change_nothing(tmp_path, harmless):
    put(tmp_path / "rows.jsonl", ROWS)
    command("jsonl", tmp_path, *WORDS, "--captions", "caption")
    before = (tmp_path / "out" / "m.jsonl").read_bytes()
    harmless(tmp_path / "rows.jsonl")
    assert command("jsonl", tmp_path, *WORDS, "--captions", "caption") == 0
    assert (tmp_path / "out" / "m.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"id": 1, "file": "a.jpg", "part": "train", "caption": 5}], ":1: 'caption' holds no text"),
        ([{"id": 1.5, "file": "a.jpg", "part": "train", "caption": "A"}], "whole number"),
        ([{"id": 1, "file": "a.jpg", "caption": {"en": "A"}}], ":1: no 'part'"),
        ([{"id": 1, "file": "a.jpg", "part": "x", "caption": {"jp": "A"}}], "--lang-names jp=CODE"),
        ([{"id": 1, "file": "a.jpg", "part": "x", "captoin": {"en": "A"}}], "did you mean 'captoin'"),
        ([{"id": 1, "file": "a.jpg", "part": "x", "caption": {"en": "A"}},
          {"id": 1, "file": "b.jpg", "part": "x", "caption": {"en": "B"}}],
         ":2: item '1' has the image 'b.jpg' here, 'a.jpg' at"),
        ([[1, 2]], "must be"),
    ],
)  # fmt: skip
def test_faults_are_named_with_file_and_line(tmp_path, capsys, rows, said):
    put(tmp_path / "rows.jsonl", rows)
    assert command("jsonl", tmp_path, *WORDS, "--captions", "caption") == 2
    error = capsys.readouterr().err
    assert "rows.jsonl" in error
    if rows != [[1, 2]]:
        assert said in error
    assert not (tmp_path / "out" / "m.jsonl").exists()


def test_broken_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"rows\.jsonl:2: not UTF-8"):
        list(read_objects(bad_encoding(put(tmp_path / "rows.jsonl", ROWS), 2)))
    with pytest.raises(DataError, match=r"cut\.jsonl:2: not JSON"):
        list(read_objects(truncated(put(tmp_path / "cut.jsonl", ROWS))))
    (tmp_path / "none.jsonl").write_text("\n")
    with pytest.raises(DataError, match=r"none\.jsonl: the file is empty"):
        list(read_objects(tmp_path / "none.jsonl"))


# -- CCLM ---------------------------------------------------------------------------------------


def packing(root: Path) -> None:
    data = b64encode(picture()).decode()
    put(root / "part_0.json", [
        {"binary": data, "caption": {"en": "a red boat", "de": "ein rotes Boot", "zh": "一艘红船"}},
        {"binary": data, "caption": [{"en": "a cat", "jp": "猫"}, {"en": "one cat", "jp": "一匹の猫"}]},
    ])  # fmt: skip
    put(root / "part_1.json", [{"binary": data, "caption": {"en": "a dog", "cz": "pes"}}])


def test_cclm_files_become_pictures_and_linked_translations(tmp_path):
    packing(tmp_path)
    assert command("cclm", tmp_path) == 0
    found = items(tmp_path)
    assert list(found) == ["part_0-1", "part_0-2", "part_1-1"]
    assert [(c.lang, c.origin, c.of, c.engine) for c in found["part_0-1"].captions] == [
        ("en", "human", None, None), ("de", "mt", "part_0-1#en.0", "uc2"),
        ("zh", "mt", "part_0-1#en.0", "uc2"),
    ]  # fmt: skip
    assert [(c.lang, c.text, c.of) for c in found["part_0-2"].captions] == [
        ("en", "a cat", None), ("ja", "猫", "part_0-2#en.0"),
        ("en", "one cat", None), ("ja", "一匹の猫", "part_0-2#en.1"),
    ]  # fmt: skip
    assert found["part_1-1"].captions[1].lang == "cs"
    assert found["part_0-2"].image == "m_images/part_0/2.jpg"
    assert check_manifest(tmp_path / "out" / "m.jsonl").faults == 0


def test_cclm_pictures_may_be_paths(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(picture())
    put(tmp_path / "f.json", [{"image": "a.jpg", "caption": "a boat"}])
    assert command("cclm", tmp_path, "--paths", "--image-key", "image", "--images",
                   str(tmp_path / "photos")) == 0  # fmt: skip
    assert items(tmp_path)["f-1"].image == "../photos/a.jpg"
    assert items(tmp_path)["f-1"].captions[0].lang == "en"


def test_a_cut_off_cclm_file_stops_before_a_manifest_is_written(tmp_path, capsys):
    packing(tmp_path)
    truncated(tmp_path / "part_1.json", 40)
    assert command("cclm", tmp_path) == 2
    assert "part_1.json:1: not JSON" in capsys.readouterr().err
    assert not (tmp_path / "out" / "m.jsonl").exists()
    assert command("cclm", tmp_path, "--files", "train=no*.json") == 2
    assert "no file is called so" in capsys.readouterr().err


def test_real_json_lines_a_language_a_file_meet_at_their_picture(shared, tmp_path):
    root = shared / "data" / "captions" / "iglue" / "xFlickrCO" / "annotations"
    where = ["--root", str(root), "--out", str(tmp_path / "m.jsonl")]
    files = [f"test/{lang}={lang}/test.jsonl" for lang in ("en", "de", "ja", "zh")]
    assert main(["data", "import", "jsonl", *where, "--files", *files, "--image", "img_path",
                 "--captions", "sentences"]) == 0  # fmt: skip
    found = list(read_manifest(tmp_path / "m.jsonl"))
    assert len(found) == 2000
    langs = Counter(c.lang for item in found for c in item.captions)
    assert langs == {"en": 2000, "de": 1999, "ja": 2000, "zh": 2000}
    report = json.loads((tmp_path / "m.jsonl.report.json").read_text())
    empty = report["left_out"]["captions without text"]  # one line of the owners' has no sentence
    assert (empty["count"], empty["first"][0].rpartition(":")[2]) == (1, "1960")


def test_numbers_say_which_part_of_a_video_an_object_is(tmp_path):
    row = {"clip": {"file": "a.mp4", "at": [3]}, "from": 1, "to": 2.5, "text": "A cat."}
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "a.mp4").write_bytes(b"x")
    put(tmp_path / "a.jsonl", [row])
    words = ["--files", "train=a.jsonl", "--video", "clip.file", "--captions", "en=text",
             "--videos", str(tmp_path / "v"), "--start"]  # fmt: skip
    assert command("jsonl", tmp_path, *words, "from", "--end", "to") == 0
    assert [(i.id, i.segment) for i in items(tmp_path).values()] == [("a@1-2.5", (1, 2.5))]
    assert command("jsonl", tmp_path, *words, "clip.at", "--end", "to") == 2
