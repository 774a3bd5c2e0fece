import json

import pytest
from image_text_folders import TEST, imported, jsonl, texts, xflickrco

from xlcm.data.manifest import DataError
from xlcm.data.sources import xflickrco as source

TEST_DE = "xFlickrCO/annotations/de/test.jsonl"


@pytest.fixture
def root(tmp_path):
    xflickrco(tmp_path / "datasets")
    return tmp_path / "datasets"


def test_both_kinds_of_pictures_have_a_caption_in_each_language(root):
    _, items, _ = imported(source, root)
    assert list(items) == ["36979", TEST]
    assert [c.lang for c in items[TEST].captions] == list(source.LANGS)
    assert source.picture_key(items["36979"]) == "flickr:36979"
    assert source.picture_key(items[TEST]) == "coco:44"


def test_translations_into_english_name_the_caption_that_they_are_of(root):
    _, items, _ = imported(source, root, "--langs", "de", "ja", "--translate-test")
    made = [(c.lang, c.text, c.of, c.engine) for c in items[TEST].captions if c.origin == "mt"]
    assert made == [("en", "from de 0", f"{TEST}#de.0", "google"),
                    ("en", "from ja 0", f"{TEST}#ja.0", "google")]  # fmt: skip


def test_a_translation_of_an_empty_caption_names_none(root):
    empty = {"sentences": [""], "id": 44, "img_path": f"{TEST}.jpg"}
    other = {"sentences": ["ja"], "id": "36979", "img_path": "36979.jpg"}
    jsonl(root / TEST_DE, [other, empty])
    _, items, _ = imported(source, root, "--langs", "de", "--translate-test")
    assert [(c.text, c.of) for c in items[TEST].captions] == [("from de 0", None)]


def test_few_shot_pictures_are_training_data_and_join_english(root):
    _, items, _ = imported(source, root, "--shots", "1", "--flickr30k", "train")
    assert items["77"].split == "train"
    assert texts(items["77"], "en") == ["cat 0", "cat 1"]
    assert texts(items["77"], "de") == ["de t"]


def test_larger_few_shot_sets_are_german_and_japanese_only(root):
    needs = [need.path for need in source.plan(root, shots="100x5").needs]
    assert [path for path in needs if "100x5" in path] == [
        f"xFlickrCO/annotations/{lang}/train_100x5.jsonl" for lang in ("de", "ja")
    ]
    assert source.plan(root, shots="100x5").expected["train"].captions == {"de": 500, "ja": 500}
    with pytest.raises(DataError, match="--shots 200: there is no such file for zh"):
        source.plan(root, ["zh"], shots="200")


def test_of_the_validation_translations_only_the_first_is_one(root):
    _, items, _ = imported(source, root, "--langs", "de", "--flickr30k", "val")
    assert items["88"].split == "val"
    made = [(c.id, c.lang, c.text, c.origin, c.of) for c in items["88"].captions]
    assert made[2:] == [("88#de.mt.0", "de", "de v", "mt", "88#en.0")]
    assert texts(items["88"], "en") == ["dog 0", "dog 1"]


def test_pictures_are_found_in_both_folders(root, tmp_path):
    for path in ("flickr30k-images/36979.jpg", f"coco/val2014/{TEST}.jpg"):
        (tmp_path / "pics" / path).parent.mkdir(parents=True)
        (tmp_path / "pics" / path).touch()
    _, items, _ = imported(source, root, "--images", str(tmp_path / "pics" / "coco"),
                           "--more-images", str(tmp_path / "pics" / "flickr30k-images"))  # fmt: skip
    assert items["36979"].image == "../pics/flickr30k-images/36979.jpg"
    _, items, _ = imported(source, root, "--images", str(tmp_path / "pics"))
    assert items[TEST].image == f"../pics/coco/val2014/{TEST}.jpg"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"sentences": ["x"], "id": 45, "img_path": f"{TEST}.jpg"}, "id 45 does not belong"),
        ({"sentences": ["x"], "id": "36979", "img_path": "36979.jpg"}, "jsonl:1 before"),
        ({"sentences": "x", "id": "1", "img_path": "1.jpg"}, "expected img_path and a list"),
        ({"sentences": [None], "id": "1", "img_path": "1.jpg"}, "caption 0 is no text"),
    ],
)
def test_a_bad_line_is_named(root, row, message):
    with open(root / TEST_DE, "a") as out:
        out.write(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=f"test.jsonl:3: .*{message}"):
        imported(source, root)


def test_a_translation_of_an_unknown_picture_is_named(root):
    jsonl(root / "xFlickrCO/annotations_machine-translate/de/test_gmt.jsonl",
          [{"sentences": ["x"], "id": "1", "img_path": "1.jpg"}])  # fmt: skip
    with pytest.raises(DataError, match=r"test_gmt.jsonl:1: a translation for picture '1'"):
        imported(source, root, "--translate-test")


def test_a_picture_without_captions_is_counted(root):
    jsonl(root / TEST_DE, [{"sentences": [], "id": "36979", "img_path": "36979.jpg"}])
    _, _, report = imported(source, root, "--langs", "de")
    assert report["splits"]["test"]["without_captions"] == 1


def test_the_real_files_have_the_published_counts(shared, tmp_path):
    options = ("--translate-test", "--shots", "100", "--flickr30k", "val")
    root = shared / "data/captions/iglue"
    code, items, report = imported(source, root, *options, out=tmp_path / "m.jsonl")
    assert (code, len(items)) == (0, 3_114)
    assert not report["leaks"]
    sizes = {split: of["items"] for split, of in report["splits"].items()}
    assert sizes == {"test": 2_000, "val": 1_014, "train": 100}
