import json
from pathlib import Path

import pytest
from faults import bad_encoding, bom, crlf, truncated

from xlcm.cli import main
from xlcm.data.check import check_manifest
from xlcm.data.manifest import DataError, read_manifest
from xlcm.data.sources import wukong


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    root = tmp_path / "data"
    (root / "wukong_release").mkdir(parents=True)
    for shard, rows in {
        0: ['http://x/a.jpg,"湖边,有船"', "http://x/b.jpg,一只猫", "http://x/c.jpg, "],
        2: ["http://x/a.jpg,一只狗"],
    }.items():
        (root / "wukong_release" / f"wukong_100m_{shard}.csv").write_text(
            "url,caption\n" + "".join(f"{row}\n" for row in rows), encoding="utf-8"
        )
    (root / "wukong_test.csv").write_text("http://x/t.jpg,一棵树\n", encoding="utf-8")
    monkeypatch.setattr(wukong, "TEST_ROWS", 1)
    return root


def command(root: Path, *words: str) -> int:
    where = ["--root", str(root), "--out", str(root.parent / "m.jsonl")]
    return main(["data", "import", "wukong", *where, *words])


def items(root: Path):
    return {item.id: item for item in read_manifest(root.parent / "m.jsonl")}


def test_all_tables_that_are_there_are_read_with_commas_and_without_header(root, capsys):
    assert command(root) == 0
    found = items(root)
    assert {i: item.split for i, item in found.items()} == {
        "0-1": "train", "0-2": "train", "2-1": "train", "test-1": "test",
    }  # fmt: skip
    assert found["0-1"].captions[0].text == "湖边,有船"
    assert "1 rows without caption were left out" in capsys.readouterr().out
    assert check_manifest(root.parent / "m.jsonl", images=False).faults == 0


def test_tables_can_be_chosen(root, capsys):
    assert command(root, "--shards", "2") == 0
    assert list(items(root)) == ["2-1", "test-1"]
    assert command(root, "--shards", "none") == 0
    assert list(items(root)) == ["test-1"]
    assert command(root, "--shards", "0-1") == 2
    assert "wukong_100m_1.csv" in capsys.readouterr().err


def test_rows_whose_url_was_there_before_are_left_out_when_asked_for(root):
    assert command(root, "--drop-duplicates") == 0
    assert list(items(root)) == ["0-1", "0-2", "test-1"]
    report = json.loads((root.parent / "m.jsonl.report.json").read_text())
    assert report["left_out"]["rows whose URL was there before"]["count"] == 1


def test_a_training_row_with_the_url_of_a_test_row_is_a_leak_or_left_out(root, capsys):
    with open(root / "wukong_release" / "wukong_100m_2.csv", "a", encoding="utf-8") as file:
        file.write("http://x/t.jpg,一棵大树\n")
    assert command(root) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "LEAK: 1 of 4 pictures of train are in test too: wukong:test-1" in said
    assert command(root, "--drop-duplicates") == 0
    assert list(items(root)) == ["0-1", "0-2", "test-1"], "the test keeps it"
    report = json.loads((root.parent / "m.jsonl.report.json").read_text())
    assert report["left_out"]["rows whose URL was there before"]["count"] == 2


def test_tables_that_are_not_there_are_told(root, capsys):
    (root / "wukong_test.csv").unlink()
    assert command(root) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "MISSING: 255 published files are not there" in said
    missing = json.loads((root.parent / "m.jsonl.report.json").read_text())["missing"]
    assert [row["path"] for row in missing][::254] == [
        "wukong_release/wukong_100m_1.csv", "wukong_test.csv"
    ]  # fmt: skip
    assert command(root, "--shards", "0,2") == 0
    missing = json.loads((root.parent / "m.jsonl.report.json").read_text())["missing"]
    assert [row["path"] for row in missing] == ["wukong_test.csv"]


def test_pictures_are_found_by_table_and_row(root):
    folder = root.parent / "photos"
    for name in ("0/000002.jpg", "test/000001.jpg"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(b"x")
    assert command(root, "--images", str(folder), "--missing-images", "drop") == 0
    assert [item.image for item in items(root).values()] == [
        "photos/0/000002.jpg", "photos/test/000001.jpg",
    ]  # fmt: skip


def test_parts_of_the_range_are_read_or_refused():
    assert wukong.read_shards("0-2,5") == [0, 1, 2, 5]
    for wrong in ("256", "3-1", "a", "1-", ""):
        with pytest.raises(DataError, match="--shards"):
            wukong.read_shards(wrong)


@pytest.mark.parametrize("harmless", [crlf, bom])
def test_line_ends_and_marks_change_nothing(root, harmless):
    command(root)
    before = (root.parent / "m.jsonl").read_bytes()
    harmless(root / "wukong_release" / "wukong_100m_0.csv")
    harmless(root / "wukong_test.csv")
    assert command(root) == 0
    assert (root.parent / "m.jsonl").read_bytes() == before


def test_faults_are_named_with_file_and_line(root, capsys):
    table = root / "wukong_release" / "wukong_100m_0.csv"
    table.write_text("url,caption\nhttp://x/a.jpg,a,b\n")
    assert command(root) == 2
    assert "wukong_100m_0.csv:2: 3 cells, expected 2" in capsys.readouterr().err
    table.write_text('url,caption\nhttp://x/a.jpg,"a long caption"\n')
    truncated(table)
    assert command(root) == 2
    assert "wukong_100m_0.csv:2: unexpected end of data" in capsys.readouterr().err
    table.write_text("url,caption\nhttp://x/a.jpg,a\n")
    bad_encoding(table, 2)
    assert command(root) == 2
    assert "wukong_100m_0.csv:2: not UTF-8" in capsys.readouterr().err
    table.write_text("url\nx\n")
    assert command(root) == 2
    assert "expected URL and caption" in capsys.readouterr().err
    assert not (root.parent / "m.jsonl").exists()


def test_an_empty_folder_is_told_where_the_tables_come_from(tmp_path, capsys):
    (tmp_path / "none").mkdir()
    assert command(tmp_path / "none") == 2
    said = capsys.readouterr().err
    assert "wukong-dataset.github.io" in said
    assert "CC BY-NC-SA 4.0" in said
