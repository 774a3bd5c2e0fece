import json

import pytest
from image_text_folders import REST, TEST, TRAIN, VAL, imported, karpathy, texts, xtd10

from xlcm.data.manifest import DataError
from xlcm.data.sources import coco
from xlcm.data.sources import xtd10 as xtd10_source
from xlcm.types import Item


@pytest.fixture
def root(tmp_path):
    karpathy(tmp_path / "captions")
    return tmp_path / "captions"


def test_the_pictures_between_val_and_test_join_the_training_set(root):
    _, items, _ = imported(coco, root)
    splits = {key: item.split for key, item in items.items()}
    assert splits == {TRAIN: "train", REST: "train", VAL: "val", TEST: "test"}


@pytest.mark.parametrize(("restval", "split"), [("own", "restval"), ("drop", None)])
def test_they_can_be_a_split_or_stay_out(root, restval, split):
    _, items, _ = imported(coco, root, "--restval", restval)
    assert (items[REST].split if REST in items else None) == split
    assert coco.plan(root, restval=restval).expected["train"].items == 82_783


def test_the_first_five_captions_are_kept_unless_all_are_asked_for(root):
    _, items, _ = imported(coco, root)
    assert texts(items[TRAIN], "en") == [f"A dog {k} in 11, né." for k in range(5)]
    assert items[TRAIN].captions[4].id == f"{TRAIN}#en.4"
    _, items, _ = imported(coco, root, "--captions", "0")
    assert len(items[TRAIN].captions) == 6
    with pytest.raises(DataError, match="--captions -1"):
        coco.plan(root, captions=-1)


def test_published_counts_fit_what_is_kept(root):
    told = coco.plan(root).expected
    assert (told["train"].items, told["train"].captions) == (113_287, {"en": 566_435})
    assert coco.plan(root, captions=0).expected["test"].captions == {"en": 25_010}
    assert coco.plan(root, "flickr30k").expected["val"].captions == {"en": 5_070}
    code, _, report = imported(coco, root)
    assert (code, report["as_published"]) == (1, False)


@pytest.mark.parametrize(
    "layout", ["{part}2014/{stem}.jpg", "{stem}.jpg", "coco/{part}2014/{stem}.jpg",
               "train2017/{number}.jpg"],
)  # fmt: skip
def test_pictures_are_found_in_every_usual_layout(root, tmp_path, layout):
    for stem in (TRAIN, REST, VAL, TEST):
        part = "train" if "train" in stem else "val"
        path = tmp_path / "pics" / layout.format(part=part, stem=stem, number=stem[-12:])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    _, items, _ = imported(coco, root, "--images", str(tmp_path / "pics"))
    for item in items.values():
        path = (tmp_path / "out" / str(item.image)).resolve()
        assert path.is_file()
        assert path.stem[-12:] == item.id[-12:]


def test_a_missing_picture_is_named_as_the_owners_call_it(root, tmp_path):
    (tmp_path / "pics").mkdir()
    with pytest.raises(DataError, match=f"4 pictures are not there.*train2014/{TRAIN}.jpg"):
        imported(coco, root, "--images", str(tmp_path / "pics"))


def test_flickr_pictures_are_known_by_their_photo_id(tmp_path):
    path = karpathy(tmp_path / "f", "flickr8k")
    data = json.loads(path.read_text())
    for n, image in enumerate(data["images"]):
        image.update(filename=f"{n}0_ab.jpg", split="train")
        del image["filepath"], image["cocoid"]
    path.write_text(json.dumps(data))
    _, items, _ = imported(coco, path.parent, "--set", "flickr8k")
    assert list(items) == ["00_ab", "10_ab", "20_ab", "30_ab"]
    assert coco.picture_key(items["10_ab"]) == "flickr:10"
    assert coco.picture_key(Item(TEST, "test", ())) == "coco:44"


def test_test_pictures_of_another_set_that_training_has_seen_are_counted(root, tmp_path):
    xtd10(tmp_path / "xtd")
    other = tmp_path / "xtd.jsonl"
    imported(xtd10_source, tmp_path / "xtd", out=other)
    _, _, report = imported(coco, root, "--against", str(other))
    found = {(leak["of_split"], leak["split"]): leak["first"] for leak in report["against"]}
    assert found == {("train", "test"): ["coco:11"], ("test", "test"): ["coco:44"]}


def test_cocos_own_file_is_told_from_karpathys(root):
    (root / "dataset_coco.json").write_text('{"annotations": []}')
    with pytest.raises(DataError, match=r"Karpathy's dataset_coco.json.*coco-json"):
        imported(coco, root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "dev"}, r"images\[1\]: .*split one of train"),
        ({"sentences": [{"raw": 3}]}, r"images\[1\]: caption 0 is no text"),
        ({"sentences": None}, r"images\[1\]: expected filename"),
        ({"filename": f"{TRAIN}.jpg"}, rf"images\[1\]: item id '{TRAIN}' was written before"),
    ],
)
def test_a_bad_entry_is_named(root, change, message):
    data = json.loads((root / "dataset_coco.json").read_text())
    data["images"][1].update(change)
    (root / "dataset_coco.json").write_text(json.dumps(data))
    with pytest.raises(DataError, match=message):
        imported(coco, root)


def test_a_picture_without_captions_is_counted_and_an_empty_caption_left_out(root):
    data = json.loads((root / "dataset_coco.json").read_text())
    data["images"][2]["sentences"] = []
    data["images"][3]["sentences"][1]["raw"] = "  "
    (root / "dataset_coco.json").write_text(json.dumps(data))
    _, items, report = imported(coco, root)
    assert report["splits"]["val"]["without_captions"] == 1
    assert [c.id for c in items[TEST].captions] == [f"{TEST}#en.{n}" for n in (0, 2, 3, 4)]
