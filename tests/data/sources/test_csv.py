import io
import json
import re
from base64 import b64encode
from pathlib import Path

import pytest
from faults import bad_encoding, bom, crlf, packed, truncated
from PIL import Image

from xlcm.cli import main
from xlcm.data.check import check_manifest
from xlcm.data.manifest import DataError, read_manifest
from xlcm.data.sources.csv import read_table

WIDE = """name,en,de,part
dogs/1.jpg,"Two dogs, one ball.",Zwei Hunde.,train
dogs/2.jpg,A cat.,Eine Katze.,dev
dogs/3.jpg,A red boat.,,train
"""
LONG = """image\tlanguage\tcaption\twho
1.jpg\ten\tA "red boat.\thuman
1.jpg\tjp\t赤い船。\tmt
2.jpg\ten\tA cat.\thuman
1.jpg\ten\tA boat on a lake.\thuman
"""


def put(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def command(root: Path, *words: str) -> int:
    out = root / "out" / "m.jsonl"
    return main(["data", "import", "csv", "--root", str(root), "--out", str(out), *words])


def items(root: Path):
    return {item.id: item for item in read_manifest(root / "out" / "m.jsonl")}


def wide(root: Path, *words: str) -> int:
    return command(root, "--files", "wide.csv", "--image", "name", "--split-column", "part",
                   "--split-names", "dev=val", *words)  # fmt: skip


def long(root: Path, *words: str) -> int:
    return command(root, "--files", "long.tsv", "--image", "image", "--lang-column", "language",
                   "--captions", "caption", "--split", "train", *words)  # fmt: skip


def picture(colour: str = "red", kind: str = "JPEG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (16, 12), colour).save(out, kind)
    return out.getvalue()


# -- parts of videos ----------------------------------------------------------------------------

PARTS = """file,from,to,text
a/1.mp4,0,2.5,A cat.
a/1.mp4,2.5,4,A dog.
a/1.mp4,0,2.5,A small cat.
b.mp4,1e1,20,A boat.
"""


def parts(root: Path, text: str, *words: str) -> int:
    put(root, "parts.csv", text)
    return command(root, "--files", "train=parts.csv", "--video", "file", "--captions", "en=text",
                   "--start", "from", "--end", "to", *words)  # fmt: skip


def test_rows_are_parts_of_videos_where_columns_say_when_they_begin_and_end(tmp_path):
    for name in ("a/1.mp4", "b.mp4"):
        (tmp_path / "v" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "v" / name).write_bytes(b"x")
    assert parts(tmp_path, PARTS, "--videos", str(tmp_path / "v")) == 0
    found = items(tmp_path)
    assert {i: (item.video, item.segment) for i, item in found.items()} == {
        "a/1@0-2.5": ("../v/a/1.mp4", (0, 2.5)), "a/1@2.5-4": ("../v/a/1.mp4", (2.5, 4)),
        "b@10-20": ("../v/b.mp4", (10, 20)),
    }  # fmt: skip
    assert [c.text for c in found["a/1@0-2.5"].captions] == ["A cat.", "A small cat."]
    assert parts(tmp_path, PARTS) == 0
    assert {(i.video, i.segment) for i in items(tmp_path).values()} == {(None, None)}


def test_parts_of_one_video_are_never_drawn_into_two_splits(tmp_path):
    rows = [f"{video}.mp4,{n},{n + 1},Text." for video in range(40) for n in range(5)]
    put(tmp_path, "parts.csv", "file,from,to,text\n" + "\n".join(rows))
    assert parts(tmp_path, "file,from,to,text\n" + "\n".join(rows), "--hold-out", "val=0.3") == 0
    splits = {}
    for name, item in items(tmp_path).items():
        splits.setdefault(name.partition("@")[0], set()).add(item.split)
    assert set(map(len, splits.values())) == {1}
    assert 4 < sum(found == {"val"} for found in splits.values()) < 20


@pytest.mark.parametrize(
    ("row", "words", "said"),
    [
        ("a.mp4,0:12,14,x", (), r"parts.csv:2: 'from' must be a number of seconds, .* got '0:12'"),
        ("a.mp4,1,,x", (), "parts.csv:2: 'to' must be a number of seconds"),
        ("a.mp4,1,inf,x", (), "parts.csv:2: 'to' must be a number of seconds"),
        ("a.mp4,4,2,x", (), r"parts.csv:2: it begins at 4 s \('from'\) and ends at 2 s"),
        ("a.mp4,-1,2,x", (), "parts.csv:2: it begins at -1 s"),
        ("a.mp4,1,2,x\na.mp4,1,3,y", ("--id", "file"),
         r"parts.csv:3: item 'a.mp4' has the segment \(1.0, 3.0\) here, \(1.0, 2.0\) at"),
        ("a.mp4,1,2,x", ("--end", "too"), "parts.csv:2: no 'too'; did you mean 'to'"),
    ],
)  # fmt: skip
def test_times_that_are_none_are_named_with_their_line(tmp_path, capsys, row, words, said):
    assert parts(tmp_path, f"file,from,to,text\n{row}\n", *words) == 2
    assert re.search(said, capsys.readouterr().err)
    assert not (tmp_path / "out" / "m.jsonl").exists()


def test_a_beginning_without_an_end_or_a_video_is_refused(tmp_path, capsys):
    put(tmp_path, "parts.csv", PARTS)
    for words in (["--video", "file", "--start", "from"], ["--start", "from", "--end", "to"]):
        assert command(tmp_path, "--files", "train=parts.csv", "--id", "file", "--captions",
                       "en=text", *words) == 2  # fmt: skip
        assert "--start, --end and --video go together" in capsys.readouterr().err


# -- one row an item, a column a language -------------------------------------------------------


def test_columns_of_languages_become_captions_and_translations_name_their_source(tmp_path):
    put(tmp_path, "wide.csv", WIDE)
    assert wide(tmp_path, "--captions", "en=en", "de:mt:en=de", "--engine", "nllb") == 0
    found = items(tmp_path)
    assert {i: item.split for i, item in found.items()} == {
        "dogs/1": "train", "dogs/2": "val", "dogs/3": "train",
    }  # fmt: skip
    english, german = found["dogs/1"].captions
    assert (english.text, english.origin, english.engine) == ("Two dogs, one ball.", "human", None)
    assert (german.id, german.origin, german.of, german.engine) == (
        "dogs/1#de.mt.0", "mt", english.id, "nllb",
    )  # fmt: skip
    assert [c.lang for c in found["dogs/3"].captions] == ["en"]  # an empty cell is no caption
    report = json.loads((tmp_path / "out" / "m.jsonl.report.json").read_text())
    assert report["left_out"]["captions without text"]["count"] == 1
    assert check_manifest(tmp_path / "out" / "m.jsonl", images=False).faults == 0


def test_mt_from_links_all_other_languages_of_the_row(tmp_path):
    put(tmp_path, "wide.csv", WIDE)
    assert wide(tmp_path, "--captions", "de=de", "en=en", "--mt-from", "en") == 0
    german, english = items(tmp_path)["dogs/1"].captions
    assert (german.lang, german.origin, german.of) == ("de", "mt", english.id)


def test_several_captions_in_a_cell_are_linked_by_place(tmp_path):
    put(tmp_path, "w.csv", "id,en,de\na,one | two,eins | zwei\n")
    words = ["--files", "train=w.csv", "--id", "id", "--separator", "|"]
    assert command(tmp_path, *words, "--captions", "en=en", "de:mt:en=de") == 0
    assert [(c.text, c.of) for c in items(tmp_path)["a"].captions] == [
        ("one", None), ("two", None), ("eins", "a#en.0"), ("zwei", "a#en.1"),
    ]  # fmt: skip
    put(tmp_path, "w.csv", "id,en,de\na,one | two,eins\n")
    assert command(tmp_path, *words, "--captions", "en=en", "de:mt:en=de") == 2


def test_two_columns_of_one_language_do_not_collide(tmp_path):
    put(tmp_path, "w.csv", "id,a,b\nx,one,two\n")
    command(tmp_path, "--files", "train=w.csv", "--id", "id", "--captions", "en=a", "en=b")
    assert [c.id for c in items(tmp_path)["x"].captions] == ["x#en.0", "x#en.1"]


# -- one row a caption --------------------------------------------------------------------------


def test_rows_of_one_picture_are_gathered_from_anywhere_in_the_table(tmp_path):
    put(tmp_path, "long.tsv", LONG)
    assert long(tmp_path, "--lang-names", "jp=ja", "--origin-column", "who") == 0
    first, second = items(tmp_path).values()
    assert [(c.lang, c.text, c.origin) for c in first.captions] == [
        ("en", 'A "red boat.', "human"), ("ja", "赤い船。", "mt"),
        ("en", "A boat on a lake.", "human"),
    ]  # fmt: skip
    assert second.id == "2"


def test_each_row_can_be_an_item(tmp_path):
    put(tmp_path, "long.tsv", LONG)
    assert long(tmp_path, "--lang-names", "jp=ja", "--id", "@row") == 0
    assert list(items(tmp_path)) == ["long-1", "long-2", "long-3", "long-4"]


def test_a_language_a_file_meets_at_the_picture(tmp_path):
    put(tmp_path, "en.csv", "id,t\na,A boat.\nb,A cat.\n")
    put(tmp_path, "de.csv", "id,t\nb,Eine Katze.\n")
    assert command(tmp_path, "--files", "test/en=en.csv", "test/de=de.csv", "--id", "id",
                   "--captions", "t") == 0  # fmt: skip
    assert {i: [(c.id, c.lang) for c in item.captions] for i, item in items(tmp_path).items()} == {
        "a": [("a#en.0", "en")], "b": [("b#en.0", "en"), ("b#de.0", "de")],
    }  # fmt: skip


# -- splits -------------------------------------------------------------------------------------


def test_splits_come_from_files_and_globs(tmp_path):
    for name in ("a0.csv", "a1.csv", "b.csv"):
        put(tmp_path, name, f"id,t\n{name},A boat.\n")
    for path in ("a*.csv", str(tmp_path / "a*.csv")):
        command(tmp_path, "--files", f"train={path}", "test=b.csv", "--id", "id", "--captions",
                "en=t")  # fmt: skip
        assert list(items(tmp_path)) == ["a0.csv", "a1.csv", "b.csv"]
    assert [item.split for item in items(tmp_path).values()] == ["train", "train", "test"]


def test_held_out_items_are_the_same_in_every_import_and_about_as_many_as_asked(tmp_path):
    rows = "".join(f"{n},text {n}\n" for n in range(2000))
    put(tmp_path, "a.csv", "id,t\n" + rows)
    put(tmp_path, "b.csv", "id,t\n" + "".join(reversed(rows.splitlines(keepends=True))))
    splits = []
    for name in ("a.csv", "b.csv"):
        command(tmp_path, "--files", name, "--id", "id", "--captions", "en=t", "--hold-out",
                "val=0.1", "test=0.2")  # fmt: skip
        splits.append({i: item.split for i, item in items(tmp_path).items()})
    assert splits[0] == splits[1]
    counts = [list(splits[0].values()).count(split) for split in ("train", "val", "test")]
    assert counts == pytest.approx([1400, 200, 400], abs=70)


def test_an_item_in_two_splits_is_refused(tmp_path, capsys):
    put(tmp_path, "a.csv", "id,t\nx,One.\n")
    put(tmp_path, "b.csv", "id,t\ny,One.\nx,Two.\n")
    words = ["--files", "train=a.csv", "test=b.csv", "--id", "id", "--captions", "en=t"]
    assert command(tmp_path, *words) == 2
    said = capsys.readouterr().err
    assert "b.csv:3: item 'x' is in split 'test' here, in 'train' at" in said
    assert not (tmp_path / "out" / "m.jsonl").exists()


# -- pictures -----------------------------------------------------------------------------------


def test_paths_start_from_the_pictures_folder_and_missing_ones_are_named(tmp_path, capsys):
    put(tmp_path, "wide.csv", WIDE)
    (tmp_path / "photos").mkdir()
    for n in (1, 2):
        (tmp_path / "photos" / f"{n}.jpg").write_bytes(picture())
    words = ["--captions", "en=en", "--strip-path", "dogs/", "--images", str(tmp_path / "photos")]
    assert wide(tmp_path, *words) == 2
    assert "3.jpg" in capsys.readouterr().err
    assert wide(tmp_path, *words, "--missing-images", "drop") == 0
    assert [item.image for item in items(tmp_path).values()] == [
        "../photos/1.jpg",
        "../photos/2.jpg",
    ]
    assert check_manifest(tmp_path / "out" / "m.jsonl").faults == 0


def test_pictures_in_base64_are_written_beside_the_manifest_and_a_second_import_keeps_them(
    tmp_path, capsys
):
    rows = [f"{n},{b64encode(picture(kind=kind)).decode()},A boat.\n"
            for n, kind in enumerate(["JPEG", "PNG"])]  # fmt: skip
    put(tmp_path, "p.csv", "id,data,t\n" + "".join(rows))
    words = ["--files", "train=p.csv", "--id", "id", "--picture-data", "data", "--captions", "en=t"]
    assert command(tmp_path, *words) == 0
    assert "2 pictures written, 0 were there" in capsys.readouterr().out
    assert [item.image for item in items(tmp_path).values()] == ["m_images/0.jpg", "m_images/1.png"]
    assert check_manifest(tmp_path / "out" / "m.jsonl").faults == 0
    assert command(tmp_path, *words) == 0
    assert "0 pictures written, 2 were there" in capsys.readouterr().out


@pytest.mark.parametrize("data", [b"<html>gone</html>", picture()[:-200], b""])
def test_data_that_is_no_whole_picture_stops_with_its_line_or_is_dropped_with_its_item(
    tmp_path, capsys, data
):
    good = b64encode(picture()).decode()
    put(tmp_path, "p.csv", f"id,data,t\na,{good},A boat.\nb,{b64encode(data).decode()},A cat.\n")
    words = ["--files", "train=p.csv", "--id", "id", "--picture-data", "data", "--captions", "en=t"]
    assert command(tmp_path, *words) == 2
    assert "p.csv:3: picture 'b'" in capsys.readouterr().err
    assert command(tmp_path, *words, "--bad-pictures", "drop") == 0
    assert list(items(tmp_path)) == ["a"]
    said = capsys.readouterr().out
    assert "1 are no pictures and were dropped" in said
    assert "1 rows whose picture can't be read were left out" in said
    assert [p.name for p in (tmp_path / "out" / "m_images").iterdir()] == ["a.jpg"]


# -- faults of the file -------------------------------------------------------------------------


@pytest.mark.parametrize("harmless", [crlf, bom])
def test_line_ends_and_byte_order_marks_change_nothing(tmp_path, harmless):
    put(tmp_path, "wide.csv", WIDE)
    wide(tmp_path, "--captions", "en=en")
    before = (tmp_path / "out" / "m.jsonl").read_bytes()
    harmless(tmp_path / "wide.csv")
    assert wide(tmp_path, "--captions", "en=en") == 0
    assert (tmp_path / "out" / "m.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,t\na,One, two.\n", ":2: 3 cells, expected 2"),
        ("id,t\ra,One.\rb,Two.\r", ":1: a carriage return within a line; if lines end"),
        ("<html>403 Forbidden</html>\n", "no rows below the header '<html>403 Forbidden</html>'"),
        ("id;t\na;One.\n", "did you mean"),
        ("id,t\na\n", ":2: 1 cells"),
        ("id,t\n\na,\"One.\nb,Two.\n", ":3: unexpected end of data; is a quote never closed"),
        ("id,id\na,b\n", "two columns are called 'id'"),
        ("id,text\na,One.\n", "no row has 't'"),
        ("id,t\n,One.\n", ":2: 'id' is empty"),
        ("", "the file is empty"),
    ],
)  # fmt: skip
def test_faults_of_a_table_are_named_with_their_line(tmp_path, capsys, text, said):
    put(tmp_path, "w.csv", text)
    code = command(tmp_path, "--files", "train=w.csv", "--id", "id", "--captions", "en=t")
    error = capsys.readouterr().err
    if "did you mean" not in said:
        assert said in error
    assert code == 2
    assert not (tmp_path / "out" / "m.jsonl").exists()


@pytest.mark.parametrize("mark", [";", "|", "\t"])
def test_another_mark_between_cells_is_guessed_at(tmp_path, mark):
    table = put(tmp_path, "t.csv", f"name{mark}en\n1.jpg{mark}A dog, two cats.\n")
    with pytest.raises(DataError, match=r"t\.csv:1: one column, 'name.*--delimiter"):
        list(read_table(table, None))
    assert [row.values["en"] for row in read_table(table, None, delimiter=mark)] == [
        "A dog, two cats."
    ]
    put(tmp_path, "one.csv", "en\nA dog; two cats.\n")
    assert len(list(read_table(tmp_path / "one.csv", None))) == 1


def test_a_row_is_named_by_the_line_that_it_begins_in(tmp_path):
    put(tmp_path, "w.csv", 'id,t\na,"One\ntwo."\nb,Three.\n')
    rows = list(read_table(tmp_path / "w.csv"))
    assert [row.where.rpartition(":")[2] for row in rows] == ["2", "4"]
    assert rows[0].values["t"] == "One\ntwo."


def test_a_wrong_encoding_and_a_truncated_archive_are_named(tmp_path):
    bad_encoding(put(tmp_path, "a.csv", WIDE), 3)
    with pytest.raises(DataError, match=r"a\.csv:3: not UTF-8.*iconv"):
        list(read_table(tmp_path / "a.csv"))
    cut = truncated(packed(put(tmp_path, "b.csv", WIDE)))
    with pytest.raises(DataError, match=r"b\.csv\.gz: .*cut off"):
        list(read_table(cut))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--captions", "ger=de"], "did you mean 'de'"),
        (["--captions", "de:machine=de"], "an origin is one of human, mt, back"),
        (["--captions", "de:mt:en=de", "en=en"], "none of the columns before it"),
        (["--captions", "de=german"], "no row has 'german'"),
        (["--captions", "en"], "which language is 'en'"),
        (["--captions", "en=en", "--hold-out", "val=2"], "between 0 and 1"),
        (["--captions", "en=en", "--picture-data", "de"], "--image and --picture-data"),
    ],
)
def test_wrong_options_are_named(tmp_path, capsys, words, said):
    put(tmp_path, "wide.csv", WIDE)
    assert wide(tmp_path, *words) == 2
    assert said in capsys.readouterr().err


def test_no_split_no_item_name_and_no_file_are_told_with_the_way_out(tmp_path, capsys):
    put(tmp_path, "w.csv", "id,t\na,http://x/y.jpg\n")
    assert command(tmp_path, "--files", "w.csv", "--id", "id", "--captions", "en=t") == 2
    assert "w.csv:2: which split?" in capsys.readouterr().err
    assert command(tmp_path, "--files", "w.csv", "--split", "train", "--captions", "en=t") == 2
    assert "--id @row" in capsys.readouterr().err
    assert command(tmp_path, "--files", "train=v.csv", "--id", "id", "--captions", "en=t") == 2
    assert "v.csv" in capsys.readouterr().err
    assert command(tmp_path, "--files", "train=w.csv", "--image", "t", "--captions", "en=t") == 2
    assert "nothing is fetched here" in capsys.readouterr().err


# -- real files ---------------------------------------------------------------------------------


def test_real_tables_of_captions_are_read_whole(shared, tmp_path):
    root = shared / "data" / "photos" / "captions"
    where = ["--root", str(root), "--out", str(tmp_path / "m.jsonl")]
    files = ["train/en=en.multi30k_task1.tsv.gz", "train/es=es.mt_nllb.tsv.gz"]
    assert main(["data", "import", "csv", *where, "--files", *files, "--image", "image",
                 "--captions", "text"]) == 0  # fmt: skip
    langs = [tuple(c.lang for c in item.captions) for item in read_manifest(tmp_path / "m.jsonl")]
    assert len(langs) > 1000
    assert langs.count(("en", "es")) == len(langs)
