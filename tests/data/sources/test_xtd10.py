import json
import os
from pathlib import Path

import pytest
from faults import line_less, line_more
from image_text_folders import TEST, TRAIN, imported, xtd10

from xlcm.data.manifest import DataError
from xlcm.data.sources import xtd10 as source


@pytest.fixture
def root(tmp_path):
    xtd10(tmp_path / "xtd")
    return tmp_path / "xtd"


def test_line_i_of_every_file_belongs_to_picture_i(root):
    _, items, _ = imported(source, root)
    assert list(items) == [TRAIN, TEST]
    for item in items.values():
        assert {c.lang for c in item.captions} == {
            "en", "es", "it", "ko", "pl", "ru", "tr", "zh", "de", "fr", "ja",
        }  # fmt: skip
        assert all(c.text.endswith(item.id) for c in item.captions)


def test_translations_name_their_english_caption_and_japanese_none(root):
    _, items, _ = imported(source, root)
    of = {c.lang: c.of for c in items[TEST].captions}
    assert of.pop("en") is None
    assert of.pop("ja") is None
    assert set(of.values()) == {f"{TEST}#en.0"}
    _, items, _ = imported(source, root, "--langs", "de", "ja")
    assert [(c.lang, c.of) for c in items[TEST].captions] == [("de", None), ("ja", None)]


def test_pictures_of_the_training_part_of_coco_are_named_in_the_report(root, capsys):
    _, _, report = imported(source, root)
    assert report["coco_train2014"] == {"pictures": 1, "ids": [TRAIN]}
    assert TRAIN in capsys.readouterr().out


def test_no_report_is_ever_without_the_pictures_of_the_training_part(root, monkeypatch):
    whole, seen = os.replace, []

    def replace(source, target):
        whole(source, target)
        if str(target).endswith(".report.json"):
            seen.append(json.loads(Path(target).read_text(encoding="utf-8")))

    monkeypatch.setattr(os, "replace", replace)
    imported(source, root)
    assert [report["coco_train2014"]["ids"] for report in seen] == [[TRAIN]]


def test_a_language_that_it_does_not_have_is_refused(root):
    with pytest.raises(DataError, match=r"--langs jp: .*en"):
        imported(source, root, "--langs", "jp")


@pytest.mark.parametrize(("damage", "n"), [(line_less, 1), (line_more, 3)])
def test_lines_too_few_or_too_many_are_refused(root, damage, n):
    damage(root / "MIC/test_1kcaptions_de.txt")
    with pytest.raises(DataError, match=f"de.txt: {n} lines, but .* has 2 pictures"):
        imported(source, root)
    assert not (root.parent / "out" / "m.jsonl").exists()


def test_blank_lines_at_the_end_do_not_count(root):
    for file in ("MIC/test_1kcaptions_de.txt", "XTD10/test_image_names.txt"):
        line_more(root / file, "")
    _, items, _ = imported(source, root)
    assert len(items) == 2


def test_a_separator_inside_a_caption_breaks_no_line(root):
    path = root / "XTD10/test_1kcaptions_es.txt"
    path.write_text("uno\u2028dos\ntres\n", encoding="utf-8")
    _, items, _ = imported(source, root)
    assert [c.text for c in items[TRAIN].captions if c.lang == "es"] == ["uno\u2028dos"]


def test_a_picture_twice_or_of_another_name_is_refused(root):
    names = root / "XTD10/test_image_names.txt"
    names.write_text(f"{TRAIN}.jpg\n{TRAIN}.jpg\n")
    with pytest.raises(DataError, match=r"names.txt:2: item id .* was written before"):
        imported(source, root)
    names.write_text(f"{TRAIN}.jpg\ndog.jpg\n")
    with pytest.raises(DataError, match=r"names.txt:2: expected a name such as"):
        imported(source, root)


def test_an_empty_line_is_left_out_and_counted(root):
    path = root / "XTD10/test_1kcaptions_en.txt"
    path.write_text("\na dog\n")
    _, items, report = imported(source, root)
    assert "en" not in {c.lang for c in items[TRAIN].captions}
    assert {c.of for c in items[TRAIN].captions} == {None}
    assert "test_1kcaptions_en.txt:1" in json.dumps(report)


def test_the_real_files_have_the_published_counts(shared, tmp_path):
    code, items, report = imported(source, shared / "data/captions/xtd10", out=tmp_path / "m.jsonl")
    assert (code, len(items)) == (0, 1_000)
    assert report["coco_train2014"]["pictures"] == len(report["coco_train2014"]["ids"]) == 800
    assert all(len(item.captions) == 11 for item in items.values())
