import json

import pytest
from faults import bad_encoding, bom, crlf, packed, truncated
from video_folders import command, fails, howto100m, items, put, told

from xlcm.data.manifest import DataError
from xlcm.data.sources import json_table
from xlcm.data.sources.json_table import JsonTable


def test_a_segment_is_an_item_and_languages_meet_at_equal_times(tmp_path):
    howto100m(tmp_path)
    assert command("howto100m", tmp_path) == 0
    found = items(tmp_path)
    assert {i: [(c.lang, c.text, c.of) for c in item.captions] for i, item in found.items()} == {
        "v_1@0.5-2.25": [("en", "cut it", None), ("de", "schneide es", "v_1@0.5-2.25#en.0")],
        "v_1@3-5": [("en", "stir it", None)],
        "v_1@9-10": [("de", "spät", None)],
        "v-2@1-2": [("en", "hello", None)],
    }
    assert {item.split for item in found.values()} == {"train"}
    left = told(tmp_path)["left_out"]
    assert left["videos without narration in de"]["count"] == 1
    assert left["captions without text"]["count"] == 1


def test_links_do_not_hang_on_the_order_of_the_languages(tmp_path):
    howto100m(tmp_path)
    command("howto100m", tmp_path, "--langs", "de", "en")
    found = items(tmp_path)
    assert list(found) == ["v_1@0.5-2.25", "v_1@9-10", "v_1@3-5", "v-2@1-2"], "German leads"
    assert [(c.lang, c.of) for c in found["v_1@0.5-2.25"].captions] == [
        ("de", "v_1@0.5-2.25#en.0"), ("en", None),
    ]  # fmt: skip


def test_segments_have_their_times_and_impossible_ones_are_counted(tmp_path):
    howto100m(tmp_path)
    put(tmp_path / "how2_de.json", {"v_1": {"text": ["a", "b"], "start": [4, 7], "end": [3, 7]}})
    put(tmp_path / "v" / "v_1.mp4", "-")
    words = ["--videos", str(tmp_path / "v"), "--missing-images", "drop"]
    command("howto100m", tmp_path, *words)
    assert {i: (item.video, item.segment) for i, item in items(tmp_path).items()} == {
        "v_1@0.5-2.25": ("../v/v_1.mp4", (0.5, 2.25)), "v_1@3-5": ("../v/v_1.mp4", (3, 5)),
    }  # fmt: skip
    assert told(tmp_path)["left_out"]["segments that end before they begin"]["count"] == 2


def test_languages_that_are_not_there_are_told(tmp_path):
    howto100m(tmp_path)
    command("howto100m", tmp_path)
    assert [row["path"] for row in told(tmp_path)["missing"]] == [
        f"how2_{lang}.json" for lang in ("fr", "cs", "sw", "ru", "vi", "es", "zh")
    ]
    command("howto100m", tmp_path, "--langs", "en", "de")
    assert told(tmp_path)["missing"] == []


def test_narration_that_is_no_translation_is_not_linked(tmp_path):
    howto100m(tmp_path)
    command("howto100m", tmp_path, "--origin", "human")
    captions = items(tmp_path)["v_1@0.5-2.25"].captions
    assert [(c.lang, c.origin, c.of) for c in captions] == [
        ("en", "human", None), ("de", "human", None),
    ]  # fmt: skip


def test_only_the_videos_that_are_asked_for(tmp_path, capsys):
    howto100m(tmp_path)
    ids = put(tmp_path / "ids.txt", "v-2\n")
    command("howto100m", tmp_path, "--ids", str(ids))
    assert list(items(tmp_path)) == ["v-2@1-2"]
    for file in (tmp_path / "out").iterdir():
        file.unlink()
    put(ids, "v-2\nv3\n")
    assert "1 videos have no narration, such as v3" in fails(
        capsys, tmp_path, "howto100m", "--ids", str(ids)
    )


def test_lists_of_different_lengths_name_the_video(tmp_path, capsys):
    howto100m(tmp_path)
    name = tmp_path / "how2_de.json"
    for bad, word in (
        ({"text": ["a"], "start": [1, 2], "end": [2]}, "2 of start, 1 of end, 1 of text"),
        ({"text": ["a"], "start": ["1"], "end": [2]}, "'start' must be a list of seconds"),
        ({"text": ["a"], "start": [float("nan")], "end": [2]}, "not finite"),
        ([], "expected"),
    ):
        put(name, {"v_1": bad})
        said = fails(capsys, tmp_path, "howto100m")
        assert f"{name}: v_1" in said
        assert word in said


# -- JsonTable ----------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 2, 7, 1 << 20])
@pytest.mark.parametrize("indent", [None, 1])
def test_a_table_reads_what_json_reads_however_it_is_cut_into_chunks(
    tmp_path, monkeypatch, chunk, indent
):
    monkeypatch.setattr(json_table, "CHUNK", chunk)
    value = {
        "ä船": {"a": [1, 2.5, '}",{ ö']},
        "b": 12,
        "e": 2.5,
        "f": -1e-3,
        "t": True,
        "c": "\u0085",
        "d": [],
        "": None,
    }
    path = tmp_path / "x.json"
    path.write_text(json.dumps(value, ensure_ascii=False, indent=indent), "utf-8")
    for change in (lambda p: p, crlf, bom):
        change(path)
        table = JsonTable(path)
        assert [table[key] for key in table.places] == list(value.values())
    path.write_text(" { } ")
    assert JsonTable(path).places == {}


def test_a_table_names_file_and_byte_of_a_fault(tmp_path):
    path = tmp_path / "x.json"
    for text, word in (
        ('{"a": [1], "a": 2}', "'a' is there twice, at bytes 6 and 16"),
        ('{"a": 1, 2: 3}', "byte 9: a key must be text"),
        ('{"a" 1}', "byte 5: expected :"), ("[1]", "byte 0: expected {"), ("", "byte 0"),
        ('{"a": 1} {"b": 2}', "byte 9: something stands behind the end"),
        ("{}}", "byte 2: something stands behind the end"), ('{"a": [1, }', "byte 6: not JSON"), ('{"a": 1', "byte 7: the file is cut off"),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(DataError, match=word.replace("{", r"\{")) as error:
            JsonTable(path)
        assert str(path) in str(error.value)


def test_a_packed_file_gives_what_the_plain_one_does(tmp_path):
    howto100m(tmp_path)
    command("howto100m", tmp_path)
    before = items(tmp_path)
    packed(tmp_path / "how2_en.json")
    (tmp_path / "out" / "m.jsonl").unlink()
    assert command("howto100m", tmp_path) == 0
    assert {i: item.captions for i, item in items(tmp_path).items()} == {
        i: item.captions for i, item in before.items()
    }


def test_damaged_files_are_named(tmp_path, capsys):
    howto100m(tmp_path)
    truncated(tmp_path / "how2_en.json")
    assert "how2_en.json: byte" in fails(capsys, tmp_path, "howto100m", "--langs", "en")
    howto100m(tmp_path)
    truncated(packed(tmp_path / "how2_en.json"))
    said = fails(capsys, tmp_path, "howto100m", "--langs", "en")
    assert "how2_en.json.gz: the file is cut off; get it again" in said
    howto100m(tmp_path)
    bad_encoding(tmp_path / "how2_en.json", 4)
    assert "not" in fails(capsys, tmp_path, "howto100m")
    path = tmp_path / "x.json"
    path.write_bytes(b'{"a": "\xe9"}')
    with pytest.raises(DataError, match=r"a: not UTF-8 at byte 7.*iconv"):
        _ = JsonTable(path)["a"]
