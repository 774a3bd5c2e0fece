import numpy as np
import pytest
from faults import packed
from video_folders import CLIPS, HALVES, command, fails, items, nrccr_videos, put, told, vatex

from xlcm.data.sources.tagged_files import youtube_key
from xlcm.types import Item


def halves(root, *words):
    return [word.format(root=root) for word in (*HALVES, *words)]


def test_the_validation_part_is_halved_by_the_lists(tmp_path):
    vatex(tmp_path)
    assert command("vatex", tmp_path, *halves(tmp_path)) == 1  # not 1,500
    found = items(tmp_path)
    assert {i: item.split for i, item in found.items()} == {
        CLIPS[0]: "train", CLIPS[1]: "test", CLIPS[2]: "val"}  # fmt: skip
    assert [(c.id.partition("#")[2], c.text, c.of) for c in found[CLIPS[0]].captions] == [
        ("en.0", "A boat.", None), ("zh.0", "船。", None), ("zh.1", "红船。", None),
    ]  # fmt: skip
    assert told(tmp_path)["left_out"]["captions without text"]["count"] == 3
    rows = told(tmp_path)["splits"]["test"]["counts"]
    assert {"what": "zh", "read": 2, "published": 15_000} in rows


def test_without_lists_all_of_it_is_val(tmp_path):
    vatex(tmp_path)
    command("vatex", tmp_path, "--langs", "zh")
    assert [item.split for item in items(tmp_path).values()] == ["train", "val", "val"]
    assert {c.lang for item in items(tmp_path).values() for c in item.captions} == {"zh"}


def test_training_counts_that_were_not_read_are_not_called_published(tmp_path):
    vatex(tmp_path)
    command("vatex", tmp_path)
    assert all(row["published"] is None for row in told(tmp_path)["splits"]["train"]["counts"])


def test_lists_are_taken_as_names_of_hgr_and_as_caption_files(tmp_path):
    vatex(tmp_path)
    np.save(tmp_path / "val_names.npy", np.array([CLIPS[2]]))
    put(tmp_path / "vatextest.caption.txt", f"{CLIPS[1]}#enc#0 A.\n{CLIPS[1]}#enc#1 B.\n")
    words = ["--val-ids", str(tmp_path / "val_names.npy")]
    words += ["--test-ids", str(tmp_path / "vatextest.caption.txt"), "--packing", "official"]
    command("vatex", tmp_path, *words)
    assert [item.split for item in items(tmp_path).values()] == ["train", "test", "val"]


def test_a_list_with_strange_clips_or_clips_of_both_halves_is_refused(tmp_path, capsys):
    vatex(tmp_path)
    put(tmp_path / "test.txt", f"{CLIPS[1]}\nnobody_000000_000001\n")
    assert "nobody_000000_000001" in fails(capsys, tmp_path, "vatex", *halves(tmp_path))
    put(tmp_path / "test.txt", CLIPS[2])
    assert "in --val-ids and in --test-ids" in fails(capsys, tmp_path, "vatex", *halves(tmp_path))
    assert "go together" in fails(capsys, tmp_path, "vatex", *halves(tmp_path)[:2])
    assert "half of validation" in fails(capsys, tmp_path, "vatex", "--splits", "test")
    put(tmp_path / "test.txt", "")
    assert "it lists no ids" in fails(capsys, tmp_path, "vatex", *halves(tmp_path))


def test_nrccrs_files_are_found_by_themselves(tmp_path):
    nrccr_videos(tmp_path / "vatex", "vatex", CLIPS)
    command("vatex", tmp_path)
    assert [item.split for item in items(tmp_path).values()] == ["train", "val", "test"]
    assert told(tmp_path)["source"] == "vatex"


def test_a_clip_twice_or_without_captions_is_named(tmp_path, capsys):
    vatex(tmp_path)
    row = {"videoID": CLIPS[0], "enCap": ["A."], "chCap": ["船"]}
    file = put(tmp_path / "vatex_training_v1.0.json", [row, row])
    assert f"{file}: clip 1: {CLIPS[0]!r} is also clip 0" in fails(capsys, tmp_path, "vatex")
    put(file, [{"videoID": CLIPS[0], "enCap": ["A."]}])
    assert "--langs en" in fails(capsys, tmp_path, "vatex")
    put(file, [{"enCap": ["A."]}])
    assert "clip 0: expected an object with 'videoID'" in fails(capsys, tmp_path, "vatex")


def test_videos_are_looked_for_by_clip(tmp_path, capsys):
    vatex(tmp_path)
    for clip in CLIPS[:2]:
        put(tmp_path / "videos" / f"{clip}.mp4", "-")
    words = ["--videos", str(tmp_path / "videos")]
    assert f"{CLIPS[2]}.mp4" in fails(capsys, tmp_path, "vatex", *words)
    command("vatex", tmp_path, *words, "--missing-images", "drop")
    assert {i: item.video for i, item in items(tmp_path).items()} == {
        clip: f"../videos/{clip}.mp4" for clip in CLIPS[:2]
    }


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("-a_b-c_1_000000_000010", "-a_b-c_1"),
        ("sf2PPeXQrUA@3-4.5", "sf2PPeXQrUA"),
        ("abc_d", "abc_d"),
    ],
)
def test_the_id_of_youtube_is_split_off_from_the_right(name, key):
    assert youtube_key(Item(name, "train", ())) == f"youtube:{key}"


def test_two_files_of_one_part_are_named_and_none_is_taken(tmp_path, capsys):
    vatex(tmp_path)
    other = put(tmp_path / "vatex_training_v1.1.json", "[]")
    said = " ".join(fails(capsys, tmp_path, "vatex").split())
    assert f"two files of train: {tmp_path / 'vatex_training_v1.0.json'} and {other}" in said
    other.rename(tmp_path / "vatex_validation_v2.json")
    assert "two files of val: " in " ".join(fails(capsys, tmp_path, "vatex").split())
    assert command("vatex", tmp_path, "--splits", "train") == 0


def test_lists_may_be_packed_tables(tmp_path, capsys):
    vatex(tmp_path)
    packed(put(tmp_path / "val.csv", f"n,video_id\n1,{CLIPS[2]}\n"))
    packed(put(tmp_path / "test.txt", CLIPS[1] + "\n"))
    words = ["--val-ids", str(tmp_path / "val.csv.gz"), "--test-ids", str(tmp_path / "test.txt.gz")]
    command("vatex", tmp_path, *words)
    assert [item.split for item in items(tmp_path).values()] == ["train", "test", "val"]
    (tmp_path / "out" / "m.jsonl").unlink()
    (tmp_path / "out" / "m.jsonl.report.json").unlink()
    put(tmp_path / "val.npy.gz", "x")
    words[1] = str(tmp_path / "val.npy.gz")
    assert "gunzip val.npy.gz" in fails(capsys, tmp_path, "vatex", *words)
