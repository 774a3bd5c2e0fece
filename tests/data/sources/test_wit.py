import json

import pytest
from image_text_folders import imported, texts, wit

from xlcm.data.manifest import DataError
from xlcm.data.sources import wit as source


@pytest.fixture
def root(tmp_path):
    wit(tmp_path / "datasets")
    return tmp_path / "datasets"


def add(path, **row):
    base = {"image_url": "https://up.example.org/a/b.jpg", "language": "ar",
            "wit_ix": "wit-test_3", "caption_reference_description": "x"}  # fmt: skip
    with open(path, "a") as out:
        out.write(json.dumps({**base, **row}) + "\n")


def test_captions_of_all_languages_join_at_the_picture(root):
    _, items, _ = imported(source, root, "--langs", "en", "tr")
    assert {key: item.split for key, item in items.items()} == {
        "wit_1": "val", "wit-test_3": "test",
    }  # fmt: skip
    assert [c.id for c in items["wit-test_3"].captions] == [
        f"wit-test_3#{lang}.{n}" for lang in ("en", "tr") for n in (0, 1)
    ]


def test_translations_into_english_name_the_caption_that_they_are_of(root):
    _, items, _ = imported(source, root, "--langs", "tr", "--translate-test")
    made = [(c.text, c.of) for c in items["wit-test_3"].captions if c.origin == "mt"]
    assert made == [("from tr 0", "wit-test_3#tr.0"), ("from tr 1", "wit-test_3#tr.1")]


def test_a_translation_without_its_caption_is_left_out_if_it_is_the_known_one(root):
    gmt = root / "wit/annotations_machine-translate/test_ar_gmt.jsonl"
    add(gmt, wit_ix="wit-test_7382")
    _, items, report = imported(source, root, "--translate-test")
    assert "wit-test_7382" not in items
    assert "test_ar_gmt.jsonl:3" in json.dumps(report)
    add(gmt, wit_ix="wit-test_9")
    with pytest.raises(DataError, match=r"test_ar_gmt.jsonl:4: a translation of caption 0"):
        imported(source, root, "--translate-test")


@pytest.mark.parametrize("name", ["wit_1.png", "T%C3%BCrm.JPG", "Türm.JPG"])
def test_a_picture_is_found_by_wit_ix_or_the_end_of_its_url(root, tmp_path, name):
    for file in (name, "wit-test_3.jpg"):
        (tmp_path / "pics").mkdir(exist_ok=True)
        (tmp_path / "pics" / file).touch()
    _, items, _ = imported(source, root, "--images", str(tmp_path / "pics"))
    assert items["wit_1"].image == f"../pics/{name}"


def test_training_data_is_read_when_it_is_unzipped(root):
    here = root / "wit/annotations"
    (here / "train_en.jsonl.zip").touch()
    with pytest.raises(DataError, match="unzip it first"):
        imported(source, root, "--train")
    add(here / "train_en.jsonl", language="en", wit_ix="wit_5", image_url="https://up/c.jpg")
    _, items, _ = imported(source, root, "--train")
    assert items["wit_5"].split == "train"
    assert texts(items["wit_5"], "en") == ["x"]


def test_one_url_in_training_and_test_is_a_leak(root):
    add(root / "wit/annotations/train_en.jsonl", language="en", wit_ix="wit_5",
        image_url="http://up.example.org/a/b.jpg")  # fmt: skip
    code, _, report = imported(source, root, "--train")
    assert code == 1
    assert [(leak["of_split"], leak["split"]) for leak in report["leaks"]] == [("train", "test")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"language": "bg"}, "language 'bg' in a file of 'ar'"),
        ({"image_url": "https://other"}, "has the URL other"),
        ({"wit_ix": None}, "'wit_ix' must be text"),
        ({"caption_reference_description": 3}, "is no text but 3"),
    ],
)
def test_a_bad_line_is_named(root, row, message):
    add(root / "wit/annotations/test_ar.jsonl", **row)
    with pytest.raises(DataError, match=f"test_ar.jsonl:3: .*{message}"):
        imported(source, root)


def test_the_real_files_have_the_published_counts(shared, tmp_path):
    root = shared / "data/captions/iglue"
    code, items, report = imported(source, root, "--translate-test", out=tmp_path / "m.jsonl")
    assert (code, len(items)) == (0, 10_827)
    assert report["splits"]["val"]["items"] == 4_632


def test_pictures_of_an_older_manifest_are_found(root, tmp_path):
    old = tmp_path / "old" / "m.jsonl"
    imported(source, root, out=old)
    _, _, report = imported(source, root, "--langs", "en", "--against", str(old))
    assert {(row["of_split"], row["split"], row["pictures"]) for row in report["against"]} == {
        ("val", "val", 1), ("test", "test", 1),
    }  # fmt: skip
