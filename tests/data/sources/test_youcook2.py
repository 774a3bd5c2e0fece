import pytest
from tiny_videos import numbers, write
from video_folders import command, converted, fails, items, put, told, youcook2

from xlcm.data.check import check_manifest
from xlcm.data.dataset import ManifestDataset
from xlcm.data.video import FrameSampling


def test_a_segment_is_an_item_and_train_comes_first(tmp_path):
    youcook2(tmp_path)
    assert command("youcook2", tmp_path) == 1  # not 3,350 clips
    found = items(tmp_path)
    assert {i: (item.split, [c.text for c in item.captions]) for i, item in found.items()} == {
        "zz@1-2.5": ("train", ["wash rice"]), "zz@3-4": ("train", []),
        "-xx_y@4-9": ("val", ["cut the leek"]),
    }  # fmt: skip
    left = told(tmp_path)["left_out"]
    assert left["segments at the same times as another"]["count"] == 1
    assert left["captions without text"]["count"] == 1


def test_the_test_part_beside_the_others_is_counted_and_left_out(tmp_path):
    youcook2(tmp_path)
    rows = [{"id": 0, "segment": [1, 2]}]
    put(tmp_path / "youcookii_annotations_test_segments_only.json",
        {"database": {"t": {"subset": "testing", "annotations": rows}}})  # fmt: skip
    assert command("youcook2", tmp_path) == 1
    assert list(items(tmp_path)) == ["zz@1-2.5", "zz@3-4", "-xx_y@4-9"]
    left = told(tmp_path)["left_out"]
    (why,) = [why for why in left if "test part" in why]
    assert left[why]["count"] == 1


def test_clips_of_one_video_are_no_pictures_that_come_twice(tmp_path, capsys):
    youcook2(tmp_path)
    command("youcook2", tmp_path)
    said = capsys.readouterr().out
    assert "2 items of train are clips of 1 videos" in said
    assert "show a picture that the split holds already" not in said
    converted(tmp_path / "c", "val", *({"id": f"zz@{n}", "captions": {}} for n in range(3)))
    command("youcook2", tmp_path / "c")
    assert "3 items of val are clips of 1 videos" in capsys.readouterr().out


def test_segments_that_differ_by_a_hundredth_are_two(tmp_path):
    rows = [{"segment": [1000.01, 1000.5 + n / 100], "sentence": "stir"} for n in range(2)]
    put(tmp_path / "youcookii_annotations_trainval.json",
        {"database": {"v": {"subset": "training", "annotations": rows}}})  # fmt: skip
    assert command("youcook2", tmp_path) == 1
    assert list(items(tmp_path)) == ["v@1000.01-1000.5", "v@1000.01-1000.51"]


def test_each_segment_of_a_whole_video_has_frames_of_its_own(tmp_path):
    pytest.importorskip("av")
    youcook2(tmp_path)
    (tmp_path / "v").mkdir()
    write(tmp_path / "v" / "zz.mkv", 60)  # six seconds
    write(tmp_path / "v" / "-xx_y.mkv", 60, rate=6)
    assert command("youcook2", tmp_path, "--videos", str(tmp_path / "v")) == 1
    found = items(tmp_path)
    assert {i: (item.video, item.segment) for i, item in found.items()} == {
        "zz@1-2.5": ("../v/zz.mkv", (1, 2.5)), "zz@3-4": ("../v/zz.mkv", (3, 4)),
        "-xx_y@4-9": ("../v/-xx_y.mkv", (4, 9)),
    }  # fmt: skip
    manifest = str(tmp_path / "out" / "m.jsonl")
    data = ManifestDataset(path=manifest, split="train")
    every = FrameSampling(how="fps", fps=10)
    assert numbers(data.load_frames(0, every)) == list(range(10, 25))
    assert numbers(data.load_frames(1, every)) == list(range(30, 40))
    digest = told(tmp_path)["splits"]["train"]["sha256"]
    assert check_manifest(manifest).counts == {"no_captions": 1}, "two segments are two clips"
    command("youcook2", tmp_path)
    assert told(tmp_path)["splits"]["train"]["sha256"] == digest, "where videos are is no matter"


def test_without_videos_no_segment_is_written(tmp_path):
    youcook2(tmp_path)
    command("youcook2", tmp_path)
    assert {(item.video, item.segment) for item in items(tmp_path).values()} == {(None, None)}


def test_converted_clips_never_take_the_whole_video(tmp_path, capsys):
    rows = [{"id": f"zz@{n}", "captions": {"en": ["wash rice"]}} for n in range(2)]
    converted(tmp_path, "val", *rows)
    put(tmp_path / "v" / "zz.mp4", "-")
    words = ["--videos", str(tmp_path / "v")]
    said = fails(capsys, tmp_path, "youcook2", *words)
    assert "2 videos are not there, such as zz@0.mp4, zz@1.mp4 (or .webm" in said
    for n in range(2):
        put(tmp_path / "v" / f"zz@{n}.WEBM", "-")
    command("youcook2", tmp_path, *words)
    assert [i.video for i in items(tmp_path).values()] == ["../v/zz@0.WEBM", "../v/zz@1.WEBM"]


def test_other_languages_come_from_converted_files(tmp_path):
    row = {"id": "zz@0", "captions": {"en": ["wash rice"], "de": ["Reis waschen"], "cs": ["myj"]}}
    converted(tmp_path, "val", row)
    assert command("youcook2", tmp_path, "--langs", "en", "de") == 1
    captions = items(tmp_path)["zz@0"].captions
    assert [(c.lang, c.origin, c.of) for c in captions] == [
        ("en", "human", None), ("de", "mt", "zz@0#en.0"),
    ]  # fmt: skip
    assert any("official_queries: 3350" in note for note in told(tmp_path)["notes"])


def test_the_official_file_has_no_german(tmp_path, capsys):
    youcook2(tmp_path)
    assert "English only" in fails(capsys, tmp_path, "youcook2", "--langs", "de")


def test_a_broken_segment_is_named(tmp_path, capsys):
    name = tmp_path / "youcookii_annotations_trainval.json"
    good = {"segment": [1, 2], "sentence": "x"}
    for bad in ({"segment": [1], "sentence": "x"}, {"segment": [1, True], "sentence": "x"}, [],
                {"segment": [1, 2]}):  # fmt: skip
        put(name, {"database": {"v": {"subset": "training", "annotations": [good, bad]}}})
        assert f"{name}: v: segment 1: expected" in fails(capsys, tmp_path, "youcook2")
    put(name, {"database": {"v": {"subset": "training", "annotations": [
        {"segment": [2, 1], "sentence": "x"}]}}})  # fmt: skip
    assert "segment 0: it begins at 2 s and ends at 1 s" in fails(capsys, tmp_path, "youcook2")
    put(name, {"database": {"v": {"subset": "tests"}}})
    assert "v: 'subset' must be" in fails(capsys, tmp_path, "youcook2")
    put(name, {"v": 1})
    assert "'database'" in fails(capsys, tmp_path, "youcook2")


def test_an_empty_folder_says_where_to_get_it(tmp_path, capsys):
    said = fails(capsys, tmp_path, "youcook2")
    assert "youcook2.eecs.umich.edu" in said
    assert "youcookii_annotations*.json: the owners' English file; or *.jsonl" in said
