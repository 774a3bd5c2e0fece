from pathlib import Path

import pytest
from faults import line_less, line_more, line_set
from video_folders import CLIPS, command, fails, items, nrccr_videos, put, tagged, told

from xlcm.data.check import check_manifest

VATEX = ("--collection", "vatex")


def multi30k(root: Path, task: str = "1") -> Path:
    text = root / "multi30k" / "TextData"
    start, end = ("multi30k", "_task1") if task == "1" else ("Flickr30k", "")
    boat, boot = {"17": ["A boat."]}, {"17": ["Ein Boot."]}
    tagged(text / f"{start}train_enc.caption.txt", "enc", boat, ".jpg")
    tagged(text / f"{start}train_google_enc2de.caption.txt", "enc2de", boot, ".jpg")
    tagged(text / f"{start}train_google_enc2de2enc.caption.txt", "enc2de2enc", boat, ".jpg")
    for split, year, i in (("val", "", "18"), ("test", "_2016", "19")):
        tagged(text / f"multi30k{split}_de{year}{end}.caption.txt", "de", {i: ["Ein Boot."]})
        tagged(text / f"multi30k{split}_google_de2enc{year}{end}.caption.txt", "de2enc",
               {i: ["A ship."]})  # fmt: skip
    return text


def test_training_has_english_its_translation_and_the_way_back_linked_by_number(tmp_path):
    nrccr_videos(tmp_path, "vatex", CLIPS)
    assert command("nrccr", tmp_path, *VATEX, "--engine", "g") == 1  # fewer than published
    first, second, third = items(tmp_path).values()
    assert (first.id, first.split, first.image, first.video) == (CLIPS[0], "train", None, None)
    i = CLIPS[0]
    assert [(c.id, c.lang, c.origin, c.of, c.engine) for c in first.captions] == [
        (f"{i}#en.0", "en", "human", None, None), (f"{i}#en.1", "en", "human", None, None),
        (f"{i}#zh.mt.0", "zh", "mt", f"{i}#en.0", "g"),
        (f"{i}#zh.mt.1", "zh", "mt", f"{i}#en.1", "g"),
        (f"{i}#en.back.0", "en", "back", f"{i}#zh.mt.0", "g"),
        (f"{i}#en.back.1", "en", "back", f"{i}#zh.mt.1", "g"),
    ]  # fmt: skip
    assert first.captions[1].text == "A red  boat."
    for item in (second, third):
        assert [(c.lang, c.origin) for c in item.captions] == [("zh", "human")] * 2 + [
            ("en", "mt")
        ] * 2
        assert item.captions[3].of == f"{item.id}#zh.1"
    assert check_manifest(tmp_path / "out" / "m.jsonl", images=False).faults == 0


def test_order_of_the_files_changes_no_pair(tmp_path):
    text = nrccr_videos(tmp_path, "vatex", CLIPS)
    for name, tag in (("_zh", "zh"), ("_google_zh2enc", "zh2enc")):
        rows = {"b_000000_000010": [f"b {tag}"], "a_000000_000010": [f"a {tag}"]}
        rows = rows if tag == "zh" else dict(reversed(rows.items()))
        tagged(text / f"vatexval{name}.caption.txt", tag, rows)
    command("nrccr", tmp_path, *VATEX, "--splits", "val")
    assert {i: [c.text for c in item.captions] for i, item in items(tmp_path).items()} == {
        "b_000000_000010": ["b zh", "b zh2enc"],
        "a_000000_000010": ["a zh", "a zh2enc"],
    }


def test_names_and_tags_of_mlcmr_are_known(tmp_path):
    text = nrccr_videos(tmp_path, "vatex", CLIPS)
    for split, clip in (("val", CLIPS[1]), ("test", CLIPS[2])):
        (text / f"vatex{split}_google_zh2enc.caption.txt").unlink()
        tagged(text / f"vatex{split}_google_zhc2en.caption.txt", "zhc2en", {clip: ["A", "B"]})
    command("nrccr", tmp_path, *VATEX)
    assert [c.text for c in items(tmp_path)[CLIPS[2]].captions][2:] == ["A", "B"]


def test_everything_adds_what_the_protocol_leaves_out(tmp_path):
    text = nrccr_videos(tmp_path, "vatex", CLIPS)
    tagged(text / "vatextrain_zh.caption.txt", "zh", {CLIPS[0]: ["人写的。"]})
    tagged(text / "vatexval.caption.txt", "enc", {CLIPS[1]: ["Written."]})
    command("nrccr", tmp_path, *VATEX)
    assert len(items(tmp_path)[CLIPS[0]].captions) == 6
    command("nrccr", tmp_path, *VATEX, "--everything")
    found = items(tmp_path)
    assert ("zh", "human") in [(c.lang, c.origin) for c in found[CLIPS[0]].captions]
    assert [c.text for c in found[CLIPS[1]].captions if c.origin == "human"][-1] == "Written."


@pytest.mark.parametrize("task", ["1", "2"])
def test_multi30k_has_a_suffix_for_german_of_task_1_only(tmp_path, task):
    multi30k(tmp_path, task)
    put(tmp_path / "pictures" / "17.jpg", "-")
    words = ("--collection", "multi30k", "--task", task, "--langs", "de")
    words += ("--images", str(tmp_path / "pictures"), "--missing-images", "keep")
    assert command("nrccr", tmp_path, *words) == 1
    found = items(tmp_path)
    assert [item.split for item in found.values()] == ["train", "val", "test"]
    assert found["17"].image == "../pictures/17.jpg"
    assert next(c["published"] for c in told(tmp_path)["splits"]["test"]["counts"]) == 1000


def test_several_targets_share_english_and_keep_their_ways_back_apart(tmp_path):
    text = multi30k(tmp_path)
    for tag in ("enc2fr", "enc2fr2enc"):
        tagged(text / f"multi30ktrain_google_{tag}.caption.txt", tag, {"17": [tag]})
    words = ("--collection", "multi30k", "--langs", "de", "fr", "--splits", "train")
    command("nrccr", tmp_path, *words)
    captions = items(tmp_path)["17"].captions
    assert [(c.id.partition("#")[2], c.of and c.of.partition("#")[2]) for c in captions] == [
        ("en.0", None), ("de.mt.0", "en.0"), ("en.back-de.0", "de.mt.0"),
        ("fr.mt.0", "en.0"), ("en.back-fr.0", "fr.mt.0"),
    ]  # fmt: skip
    assert {c.origin for c in captions} == {"human", "mt", "back"}


def test_pictures_of_coco_are_asked_one_language_at_a_time(tmp_path, capsys):
    said = fails(capsys, tmp_path, "nrccr", "--collection", "mscoco")
    assert "say ja or zh" in said
    name = "COCO_val2014_000000000042"
    tagged(tmp_path / "mscocoval_ja.caption.txt", "ja", {name: ["船"]}, ".jpg")
    tagged(tmp_path / "mscocoval_google_ja2enc.caption.txt", "ja2enc", {name: ["ship"]}, ".jpg")
    words = ("--collection", "mscoco", "--langs", "ja", "--splits", "val")
    assert command("nrccr", tmp_path, *words) == 0
    assert list(items(tmp_path)) == [name]


def test_a_line_more_or_less_in_a_translation_is_named(tmp_path, capsys):
    text = nrccr_videos(tmp_path, "vatex", CLIPS)
    chinese = text / "vatextrain_google_enc2zh.caption.txt"
    line_more(chinese, f"{CLIPS[0]}#enc2zh#7 多")
    said = fails(capsys, tmp_path, "nrccr", *VATEX)
    assert f"{chinese}:3: it was made from {CLIPS[0]}#enc#7" in said
    line_less(chinese)
    line_less(chinese)
    said = fails(capsys, tmp_path, "nrccr", *VATEX)
    assert (
        "vatextrain.caption.txt:2: vatextrain_google_enc2zh.caption.txt has no translation" in said
    )
    assert command("nrccr", tmp_path, *VATEX, "--unpaired", "skip") == 1
    assert [len(item.captions) for item in items(tmp_path).values()] == [4, 4, 4]
    left = told(tmp_path)["left_out"]
    assert left["translations into zh that don't exist"]["count"] == 1
    assert left["translations without their source"]["count"] == 1  # the way back of it


def test_empty_texts_are_left_out_and_counted(tmp_path):
    text = nrccr_videos(tmp_path, "vatex", CLIPS)
    line_set(text / "vatextrain.caption.txt", 1, f"{CLIPS[0]}#enc#0 ")
    command("nrccr", tmp_path, *VATEX)
    captions = {c.id: c.of for c in items(tmp_path)[CLIPS[0]].captions}
    assert f"{CLIPS[0]}#en.0" not in captions
    assert captions[f"{CLIPS[0]}#zh.mt.0"] is None
    assert told(tmp_path)["left_out"]["captions without text"]["count"] == 1


def test_a_way_back_never_stands_without_the_way_there(tmp_path):
    text = nrccr_videos(tmp_path, "vatex", CLIPS)
    line_set(text / "vatextrain_google_enc2zh.caption.txt", 1, f"{CLIPS[0]}#enc2zh#0 ")
    command("nrccr", tmp_path, *VATEX)
    captions = {c.id: c.of for c in items(tmp_path)[CLIPS[0]].captions}
    assert [name for name in captions if "#en.back" in name] == [f"{CLIPS[0]}#en.back.1"]
    left = told(tmp_path)["left_out"]
    assert left["ways back of translations without text"]["count"] == 1


def test_a_line_twice_another_tag_and_another_form_are_named(tmp_path, capsys):
    text = nrccr_videos(tmp_path, "vatex", CLIPS)
    file = text / "vatexval_zh.caption.txt"
    line_more(file)
    assert f"{file}:3: {CLIPS[1]}#zh#1 is also at line 2" in fails(
        capsys, tmp_path, "nrccr", *VATEX
    )
    line_set(file, 3, f"{CLIPS[1]}#enc2zh#2 x")
    assert f"{file}:3: expected the tag zh" in fails(capsys, tmp_path, "nrccr", *VATEX)
    line_set(file, 3, "no tag at all")
    assert f"{file}:3: expected `<id>#<tag>#<n> <text>`" in fails(capsys, tmp_path, "nrccr", *VATEX)


def test_a_missing_file_is_listed_with_the_way_to_get_it(tmp_path, capsys):
    text = nrccr_videos(tmp_path, "vatex", CLIPS)
    (text / "vatextrain_google_enc2zh2enc.caption.txt").unlink()
    said = fails(capsys, tmp_path, "nrccr", *VATEX)
    assert "vatextrain_google_enc2zh2enc.caption.txt" in said
    assert "github.com/HuiGuanLab/nrccr" in said


def test_msrvtt_cn_finds_any_of_its_names_and_compares_its_test_with_the_list(tmp_path, capsys):
    nrccr_videos(tmp_path / "msrvtt10kcn", "msrvtt10kcn", ["video1", "video2", "video3"])
    listed = put(tmp_path / "test.csv", "video_id,sentence\nvideo3,A dog.\n")
    assert command("msrvtt-cn", tmp_path, "--test-list", str(listed)) == 1  # not the 1,000
    assert list(items(tmp_path)) == ["video1", "video2", "video3"]
    for file in (tmp_path / "out").iterdir():
        file.unlink()
    put(listed, "video_id,sentence\nvideo9,A dog.\n")
    said = fails(capsys, tmp_path, "msrvtt-cn", "--test-list", str(listed))
    assert "video9" in said
    assert "video3" in said


def test_the_english_of_two_tasks_is_kept_apart_and_shared_sentences_are_one_caption(tmp_path):
    text = multi30k(tmp_path)
    tagged(text / "multi30ktrain_google_enc2fr.caption.txt", "enc2fr", {"17": ["Un bateau."]})
    back = {"17": ["A ship."]}
    tagged(text / "multi30ktrain_google_enc2fr2enc.caption.txt", "enc2fr2enc", back)
    for split, year, i in (("val", "", "18"), ("test", "_2016", "19")):
        tagged(text / f"multi30k{split}_fr{year}.caption.txt", "fr", {i: ["Un bateau."]})
        ship = {i: ["A ship."]}
        tagged(text / f"multi30k{split}_google_fr2enc{year}.caption.txt", "fr2enc", ship)
        own = {i: ["A boat."]}
        tagged(text / f"multi30k{split}_enc{year}_task1.caption.txt", "enc", own)
        five = {i: ["A long boat.", "A boat."]}
        tagged(text / f"multi30k{split}_enc{year}.caption.txt", "enc", five)
        tagged(text / f"multi30k{split}_google_enc2fr{year}.caption.txt", "enc2fr",
               {i: ["Un long bateau.", "Un bateau."]})  # fmt: skip
    words = ("--collection", "multi30k", "--langs", "de", "fr", "--everything")
    assert command("nrccr", tmp_path, *words) == 1  # fewer than published
    found = items(tmp_path)["18"].captions
    assert [(c.id, c.text) for c in found if (c.lang, c.origin) == ("en", "human")] == [
        ("18#en.0", "A boat."), ("18#en.fr.0", "A long boat."),
    ]  # fmt: skip
    assert [(c.id, c.of) for c in found if (c.lang, c.origin) == ("fr", "mt")] == [
        ("18#fr.mt.0", "18#en.fr.0"), ("18#fr.mt.1", "18#en.0"),
    ]  # fmt: skip
    assert all((c.engine is None) == (c.origin == "human") for c in found)
    assert check_manifest(tmp_path / "out" / "m.jsonl", images=False).faults == 0
