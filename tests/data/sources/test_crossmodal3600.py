import json

import pytest
from image_text_folders import crossmodal3600, imported, texts

from xlcm.data.languages import language_fault
from xlcm.data.manifest import DataError
from xlcm.data.sources import crossmodal3600 as source


@pytest.fixture
def root(tmp_path):
    crossmodal3600(tmp_path / "xm")
    return tmp_path / "xm"


def append(root, row):
    with open(root / "captions.jsonl", "a") as out:
        out.write(json.dumps(row) + "\n")


def test_as_many_captions_as_there_are_join_a_picture(root):
    _, items, _ = imported(source, root)
    assert list(items) == ["0a", "0b"]
    assert items["0a"].split == "test"
    assert texts(items["0a"], "en") == ["a boat, né", "the boat"]
    assert texts(items["0b"], "quz") == ["wampu 0b"]
    _, items, _ = imported(source, root, "--langs", "quz")
    assert [c.id for c in items["0a"].captions] == ["0a#quz.0"]


def test_all_36_languages_have_codes_that_the_manifest_takes():
    assert len(set(source.LANGS)) == 36
    assert [lang for lang in source.LANGS if language_fault(lang)] == []


def test_older_codes_are_read(root):
    append(root, {"image/key": "0c", "iw": {"caption": ["x"]}, "tl": {"caption": ["y"]}})
    _, items, _ = imported(source, root)
    assert [(c.lang, c.text) for c in items["0c"].captions] == [("fil", "y"), ("he", "x")]


def test_a_language_without_captions_is_counted_and_refused_if_it_was_asked_for(root):
    append(root, {"image/key": "0c", "de": {"caption": ["x"]}})
    _, _, report = imported(source, root)
    left = {why: told["count"] for why, told in report["left_out"].items()}
    assert left["captions in de that a picture doesn't have"] == 2
    assert left["captions in sw that a picture doesn't have"] == 3
    _, items, report = imported(source, root, "--langs", "de", "en")
    assert [len(item.captions) for item in items.values()] == [2, 2, 1]
    with pytest.raises(DataError, match=r"captions\.jsonl: no picture has captions in 'sw'; take"):
        imported(source, root, "--langs", "de", "sw")


def test_pictures_are_named_by_their_key(root, tmp_path):
    (tmp_path / "pics").mkdir()
    for key in ("0a", "0b"):
        (tmp_path / "pics" / f"{key}.jpg").touch()
    _, items, _ = imported(source, root, "--images", str(tmp_path / "pics"))
    assert items["0a"].image == "../pics/0a.jpg"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image/key": "0a"}, "'0a' is at .*jsonl:1 before"),
        ({"en": {}}, "'image/key' must be text"),
        ({"image/key": "0c", "en": {"caption": "x"}}, "'en' must be an object with a list"),
        ({"image/key": "0c", "en": {"caption": [1]}}, "caption 0 is no text"),
    ],
)
def test_a_bad_line_is_named(root, row, message):
    append(root, row)
    with pytest.raises(DataError, match=f"captions.jsonl:3: .*{message}"):
        imported(source, root)


def test_a_picture_without_captions_is_counted(root):
    append(root, {"image/key": "0c"})
    _, _, report = imported(source, root)
    assert report["splits"]["test"]["without_captions"] == 1
