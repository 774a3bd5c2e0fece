"""Each video source on files that arrive damaged, or with another line end, mark or packing."""

from pathlib import Path

import pytest
from faults import bad_encoding, bom, crlf, packed, truncated
from video_folders import (
    CLIPS,
    HALVES,
    command,
    converted,
    fails,
    msrvtt,
    nrccr_videos,
    vatex,
    youcook2,
)


def videos(root: Path) -> None:
    nrccr_videos(root, "vatex", CLIPS)


def msrvtt_cn(root: Path) -> None:
    nrccr_videos(root, "msrvttcn", ["video1", "video2", "video3"])


def rows(root: Path) -> None:
    converted(root, "train", {"id": "a", "captions": {"en": ["A."], "hi": ["नाव"]}})


CASES = {
    "vatex": (vatex, ["vatex", *HALVES], "vatex_training_v1.0.json"),
    "vatex-ids": (vatex, ["vatex", *HALVES], "val.txt"),
    "msrvtt": (msrvtt, ["msrvtt"], "MSRVTT_data.json"),
    "msrvtt-csv": (msrvtt, ["msrvtt"], "MSRVTT_JSFUSION_test.csv"),
    "nrccr": (videos, ["nrccr", "--collection", "vatex"], "TextData/vatextrain.caption.txt"),
    "msrvtt-cn": (msrvtt_cn, ["msrvtt-cn"], "TextData/msrvttcnval_zh.caption.txt"),
    "youcook2": (youcook2, ["youcook2"], "youcookii_annotations_trainval.json"),
    "c2kd": (rows, ["c2kd", "--dataset", "msrvtt"], "train.jsonl"),
    "rudder": (rows, ["rudder"], "train.jsonl"),
}
case = pytest.mark.parametrize("name", CASES)


def prepared(root: Path, name: str) -> tuple[list[str], Path]:
    make, words, file = CASES[name]
    make(root)
    return [word.format(root=root) for word in words], root / file


@case
def test_line_ends_marks_and_packing_change_nothing(tmp_path, name):
    words, file = prepared(tmp_path, name)
    out = tmp_path / "out" / "m.jsonl"
    code = command(words[0], tmp_path, *words[1:])
    wanted = out.read_bytes()
    for change in (crlf, bom) + (() if name == "vatex-ids" else (packed,)):
        change(file)
        out.unlink()
        assert command(words[0], tmp_path, *words[1:]) == code
        assert out.read_bytes() == wanted, change.__name__


@case
def test_a_wrong_encoding_names_file_line_and_way_out(tmp_path, name, capsys):
    words, file = prepared(tmp_path, name)
    bad_encoding(file)
    said = fails(capsys, tmp_path, words[0], *words[1:])
    assert f"{file}:1: not UTF-8" in said
    assert "iconv" in said


@pytest.mark.parametrize("name", [name for name in CASES if name != "vatex-ids"])
def test_a_packed_file_that_is_cut_off_is_named(tmp_path, name, capsys):
    words, file = prepared(tmp_path, name)
    truncated(packed(file))
    said = fails(capsys, tmp_path, words[0], *words[1:])
    assert file.name in said
    assert "get it again" in said


@pytest.mark.parametrize("name", ["vatex", "msrvtt", "youcook2", "c2kd"])
def test_json_that_is_cut_off_is_named(tmp_path, name, capsys):
    words, file = prepared(tmp_path, name)
    truncated(file)
    assert f"{file}:" in fails(capsys, tmp_path, words[0], *words[1:])


@pytest.mark.parametrize("name", ["vatex", "msrvtt", "nrccr", "msrvtt-cn"])
def test_a_missing_file_is_told_with_place_and_terms(tmp_path, name, capsys):
    words, file = prepared(tmp_path, name)
    file.unlink()
    said = fails(capsys, tmp_path, words[0], *words[1:])
    assert "Get it by hand: " in said
    assert "Terms: " in said
