from video_folders import command, converted, fails, items, put, told, youcook2


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
    put(name, {"database": {"v": {"subset": "testing"}}})
    assert "v: 'subset' must be" in fails(capsys, tmp_path, "youcook2")
    put(name, {"v": 1})
    assert "'database'" in fails(capsys, tmp_path, "youcook2")


def test_an_empty_folder_says_where_to_get_it(tmp_path, capsys):
    assert "youcook2.eecs.umich.edu" in fails(capsys, tmp_path, "youcook2")
