"""Rows of one query at several pictures, wrong pairs, and the sets of R2D2 by the commands shown."""

import json
import re
import shlex
from pathlib import Path

import pytest
from test_csv import picture

from xlcm.cli import main
from xlcm.data.check import check_manifest
from xlcm.data.manifest import read_manifest

PAGE = (Path(__file__).resolve().parents[3] / "docs/data/sources.md").read_text(encoding="utf-8")
CLICKS = """query_id,query,german,picture,label,part
1,red dress,rotes Kleid,58.jpg,1,dev
2,oak table,Eichentisch,12.jpg,1,dev
1,red dress,rotes Kleid,90.jpg,1,dev
1,red dress,rotes Kleid,58.jpg,1,dev
1,red dress,rotes Kleid,7.jpg,0,dev
1,red dress,rotes Kleid,12.jpg,1,dev
3,lamp,Lampe,1.jpg,1,train
3,lamp,Lampe,2.jpg,1,train
1,red dress,rotes Kleid,3.jpg,1,test
"""


def command(root: Path, *words: str, text: str = CLICKS, reader: str = "csv") -> int:
    file = root / "clicks.csv"
    file.write_text(text, encoding="utf-8")
    if reader == "jsonl":
        names, *rows = (line.split(",") for line in text.splitlines())
        file = root / "clicks.jsonl"
        file.write_text("".join(json.dumps(dict(zip(names, row))) + "\n" for row in rows))
    return main(["data", "import", reader, "--root", str(root), "--files", file.name,
                 "--out", str(root / "m.jsonl"), "--image", "picture", "--split-column", "part",
                 "--split-names", "dev=val", "--captions", "en=query", "de:mt:query=german",
                 "--query", "query_id", "--only", "label=1", *words])  # fmt: skip


def found(root: Path) -> dict[str, list]:
    return {item.id: [(c.id, c.of, c.relevant) for c in item.captions]
            for item in read_manifest(root / "m.jsonl")}  # fmt: skip


@pytest.mark.parametrize("reader", ["csv", "jsonl"])
def test_a_query_is_one_caption_with_all_its_right_pictures(tmp_path, capsys, reader):
    assert command(tmp_path, reader=reader) == 0
    assert found(tmp_path) == {
        "58": [("58#en.0", None, ("90", "12")), ("58#de.mt.0", "58#en.0", ("90", "12"))],
        "12": [("12#en.0", None, ()), ("12#de.mt.0", "12#en.0", ())],
        "90": [],
        # pairs to train on; another split asks its own queries
        "1": [("1#en.0", None, ()), ("1#de.mt.0", "1#en.0", ())],
        "2": [("2#en.0", None, ()), ("2#de.mt.0", "2#en.0", ())],
        "3": [("3#en.0", None, ()), ("3#de.mt.0", "3#en.0", ())],
    }
    assert "1 rows whose 'label' is not '1' were left out" in capsys.readouterr().out
    assert check_manifest(tmp_path / "m.jsonl", images=False).faults == 0


def test_pictures_that_are_dropped_are_no_answers(tmp_path):
    (tmp_path / "files").mkdir()
    for name in ("12", "90", "1", "3"):
        (tmp_path / "files" / f"{name}.jpg").write_bytes(picture())
    options = ["--images", str(tmp_path / "files"), "--missing-images"]
    assert command(tmp_path, *options, "error") == 2
    assert command(tmp_path, *options, "drop") == 0
    kept = {name: [one[::2] for one in captions] for name, captions in found(tmp_path).items()}
    assert kept["90"] == [("90#en.0", ("12",)), ("90#de.mt.0", ("12",))]
    assert kept["12"] == [("12#en.0", ()), ("12#de.mt.0", ())]
    assert kept.keys() == {"90", "12", "1", "3"}
    assert check_manifest(tmp_path / "m.jsonl").faults == 0


def test_what_can_not_be_joined_is_said_with_file_and_line(tmp_path, capsys):
    def said(*words: str, text: str = CLICKS) -> str:
        assert command(tmp_path, *words, text=text) == 2
        assert not (tmp_path / "m.jsonl").exists()
        return capsys.readouterr().err

    other = CLICKS.replace("1,red dress,rotes Kleid,90", "1,blue dress,rotes Kleid,90")
    assert "clicks.csv:4: query '1' is 'blue dress' here, 'red dress' at " in said(text=other)
    assert "clicks.csv:2; does 'query_id' tell queries apart?" in said(text=other)
    assert "clicks.csv:3: 'query_id' is empty" in said(text=CLICKS.replace("2,oak", ",oak"))
    assert "no 'query_ix'; did you mean 'query_id'" in said("--query", "query_ix")
    assert "no 'labl'; did you mean 'label'" in said("--only", "labl=1")
    assert "--only label: expected A=B" in said("--only", "label")
    assert "has no items here" in said("--only", "label=yes")
    assert "--query joins rows, --id @row keeps them apart" in said("--id", "@row")


# -- the sets of R2D2 ----------------------------------------------------------------------------


def test_the_commands_for_the_sets_of_r2d2_run_on_tables_of_pairs(tmp_path, monkeypatch):
    section = PAGE.partition("## R2D2 and ZERO")[2].partition("\n## ")[0]
    (block,) = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    iqr, icm = (shlex.split(line)[1:] for line in block.replace("\\\n", " ").splitlines())
    monkeypatch.chdir(tmp_path)
    for folder in ("IQR/images", "ICM"):
        Path(folder).mkdir(parents=True)
    for number in range(6):
        Path(f"IQR/images/{number}.jpg").write_bytes(picture())
    head = "query,image\n"
    Path("IQR/train.csv").write_text(head + "船,0.jpg\n船,1.jpg\n", encoding="utf-8")
    Path("IQR/val.csv").write_text(head + "猫,2.jpg\n猫,3.jpg\n", encoding="utf-8")
    Path("IQR/test.csv").write_text(head + "狗,5.jpg\n鸟,4.jpg\n狗,4.jpg\n", encoding="utf-8")
    Path("ICM/train.csv").write_text("image_id,caption,label\n7,一只鸟,1\n7,一辆车,0\n", "utf-8")
    assert main(iqr) == 0
    rows = [(item.split, item.id, c.text, c.relevant)
            for item in read_manifest("iqr.jsonl") for c in item.captions]  # fmt: skip
    assert rows == [
        ("train", "0", "船", ()), ("train", "1", "船", ()), ("val", "2", "猫", ("3",)),
        ("test", "5", "狗", ("4",)), ("test", "4", "鸟", ()),
    ]  # fmt: skip
    assert check_manifest("iqr.jsonl").faults == 0
    assert main(icm) == 0
    assert [[c.text for c in item.captions] for item in read_manifest("icm.jsonl")] == [["一只鸟"]]
