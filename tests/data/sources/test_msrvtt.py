import pytest
from faults import line_more
from video_folders import command, fails, items, msrvtt, put, told

from xlcm.data.sources.msrvtt import EXPECTED


def splits(root):
    return {i: item.split for i, item in items(root).items()}


def test_full_has_the_official_parts(tmp_path):
    msrvtt(tmp_path)
    assert command("msrvtt", tmp_path, "--split", "full") == 1  # not the published counts
    assert splits(tmp_path) == {"video0": "train", "video1": "train", "video2": "val",
                                "video3": "test", "video4": "test"}  # fmt: skip
    assert [c.text for c in items(tmp_path)["video3"].captions] == [
        "video3 is shown, 0.", "video3 is shown, 1.",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("split", "train"),
    [
        ("1k-A", ["video0", "video1", "video2", "video4"]),
        ("1k-A-7k", ["video0", "video1", "video2"]),
    ],
)
def test_1k_a_trains_on_the_rest_and_tests_on_one_sentence_a_clip(tmp_path, split, train):
    msrvtt(tmp_path)
    command("msrvtt", tmp_path, "--split", split)
    assert splits(tmp_path) == {**dict.fromkeys(train, "train"), "video3": "test"}
    assert [c.text for c in items(tmp_path)["video3"].captions] == ["a dog, running"]
    assert len(items(tmp_path)["video0"].captions) == 2


def test_the_published_counts_add_up():
    full = {split: expected.items for split, expected in EXPECTED["full"].items()}
    assert sum(full.values()) == 10_000
    assert EXPECTED["1k-A"]["train"].items == 10_000 - EXPECTED["1k-A"]["test"].items
    assert EXPECTED["1k-A-7k"]["train"].items == full["train"] + full["val"]


def test_1k_b_takes_its_lists_and_keeps_them_apart(tmp_path, capsys):
    msrvtt(tmp_path)
    assert "--train-ids" in fails(capsys, tmp_path, "msrvtt", "--split", "1k-B")
    put(tmp_path / "train.txt", "video4\nvideo0\n")
    put(tmp_path / "test.txt", "video2\n")
    words = ("--split", "1k-B", "--train-ids", str(tmp_path / "train.txt"))
    words += ("--test-ids", str(tmp_path / "test.txt"))
    command("msrvtt", tmp_path, *words)
    assert splits(tmp_path) == {"video4": "train", "video0": "train", "video2": "test"}
    for file in (tmp_path / "out").iterdir():
        file.unlink()
    put(tmp_path / "test.txt", "video0\n")
    said = fails(capsys, tmp_path, "msrvtt", *words)
    assert "'video0' is in the training list too" in said


def test_a_test_clip_of_one_split_is_found_in_the_training_part_of_another(tmp_path):
    msrvtt(tmp_path)
    command("msrvtt", tmp_path, "--split", "1k-A")
    (tmp_path / "out" / "m.jsonl").rename(tmp_path / "a.jsonl")
    (tmp_path / "out" / "m.jsonl.report.json").rename(tmp_path / "a.jsonl.report.json")
    command("msrvtt", tmp_path, "--split", "full", "--against", str(tmp_path / "a.jsonl"))
    rows = {(row["of_split"], row["split"]): row["pictures"] for row in told(tmp_path)["against"]}
    assert rows["test", "train"] == 1
    assert rows["test", "test"] == 1


def test_translations_are_linked_by_number_and_in_the_test_by_clip(tmp_path):
    msrvtt(tmp_path)
    row = {"video_id": "video1", "caption": "video1 ist zu sehen.", "sen_id": 3}
    put(tmp_path / "de.json", {"sentences": [row]})
    put(tmp_path / "de.csv", "video_id,sentence\nvideo3,ein Hund\n")
    words = ("--translations", "de=de.json", "de=de.csv", "--engine", "m2m")
    command("msrvtt", tmp_path, *words)
    found = items(tmp_path)
    made = found["video1"].captions[-1]
    assert (made.lang, made.origin, made.of, made.engine) == ("de", "mt", "video1#en.1", "m2m")
    assert (
        next(c.text for c in found["video1"].captions if c.id == made.of) == "video1 is shown, 1."
    )
    test = found["video3"].captions
    assert [(c.text, c.of) for c in test] == [
        ("a dog, running", None), ("ein Hund", "video3#en.test"),
    ]  # fmt: skip


def test_captions_without_a_translation_are_counted(tmp_path):
    msrvtt(tmp_path)
    rows = [{"video_id": "video1", "caption": text, "sen_id": n} for n, text in ((3, "x"), (2, ""))]
    put(tmp_path / "de.json", {"sentences": rows})
    put(tmp_path / "fr.csv", "video_id,sentence\nvideo3,un chien\n")
    words = ("--translations", "de=de.json", "fr=fr.csv")
    command("msrvtt", tmp_path, *words)
    found, left = items(tmp_path), told(tmp_path)["left_out"]
    for lang, empty in (("de", 1), ("fr", 0)):
        gaps = left[f"translations into {lang} that don't exist"]
        captions = [c for item in found.values() for c in item.captions]
        of = {c.of for c in captions if c.lang == lang}
        english = [c for c in captions if c.lang == "en"]
        assert gaps["count"] == len([c for c in english if c.id not in of]) - empty > 0
    assert left["captions without text"]["count"] == 1
    assert "(video0#en.0)" in left["translations into de that don't exist"]["first"][0]


def test_translations_of_other_files_are_refused(tmp_path, capsys):
    msrvtt(tmp_path)
    for number in (4, 99, None, [3]):
        row = {"video_id": "video1", "caption": "x", "sen_id": number}
        put(tmp_path / "de.json", {"sentences": [row]})
        said = fails(capsys, tmp_path, "msrvtt", "--translations", "de=de.json")
        assert "de.json: sentences[0]" in said
        assert "don't belong together" in said
    assert "expected LANG=FILE" in fails(capsys, tmp_path, "msrvtt", "--translations", "de.json")
    assert "GERMAN" in fails(capsys, tmp_path, "msrvtt", "--translations", "GERMAN=de.json")


def test_a_test_clip_twice_or_without_annotations_is_named(tmp_path, capsys):
    msrvtt(tmp_path)
    csv = tmp_path / "MSRVTT_JSFUSION_test.csv"
    line_more(csv)
    said = fails(capsys, tmp_path, "msrvtt")
    assert f"{csv}:3: clip 'video3' is also at {csv}:2" in said
    put(csv, "video_id,sentence\nvideo77,a\n")
    assert "'video77' has no annotations" in fails(capsys, tmp_path, "msrvtt")
    put(csv, "id,text\nvideo3,a\n")
    assert f"{csv}:1: no column 'video_id'" in fails(capsys, tmp_path, "msrvtt")


def test_a_clip_of_unknown_part_or_twice_and_a_sentence_without_clip_are_named(tmp_path, capsys):
    sentence = {"video_id": "video1", "caption": "a", "sen_id": 0}
    clip = {"video_id": "video0", "split": "train"}
    for videos, sentences, word in (
        ([{"video_id": "video0", "split": "dev"}], [], "videos[0]"),
        ([clip, clip], [], "videos[1]"),
        ([clip], [sentence], "sentences[0]: clip 'video1' is not under 'videos'"),
        ([clip], [{"caption": "a"}], "sentences[0]"),
    ):
        msrvtt(tmp_path)
        put(tmp_path / "MSRVTT_data.json", {"videos": videos, "sentences": sentences})
        assert word in fails(capsys, tmp_path, "msrvtt", "--split", "full")


def test_a_sentence_with_commas_outside_quotes_is_refused_not_cut(tmp_path, capsys):
    msrvtt(tmp_path)
    csv = tmp_path / "MSRVTT_JSFUSION_test.csv"
    put(csv, "video_id,sentence\nvideo3,a dog, running\n")
    assert f"{csv}:2: more cells than the 2 columns" in fails(capsys, tmp_path, "msrvtt")


def test_translations_of_a_test_that_the_split_lacks_are_refused_not_lost(tmp_path, capsys):
    msrvtt(tmp_path)
    put(tmp_path / "de.csv", "video_id,sentence\nvideo3,ein Hund\n")
    put(tmp_path / "train.txt", "video0\n")
    put(tmp_path / "test.txt", "video3\n")
    lists = ("--train-ids", str(tmp_path / "train.txt"), "--test-ids", str(tmp_path / "test.txt"))
    said = fails(capsys, tmp_path, "msrvtt", "--split", "full", "--translations", "de=de.csv")
    assert "but --split full" in said
    words = ("--split", "1k-B", *lists, "--translations", "de=de.csv")
    assert "test.txt has no sentences" in fails(capsys, tmp_path, "msrvtt", *words)
