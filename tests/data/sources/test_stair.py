import json

import pytest
from image_text_folders import REST, TEST, TRAIN, VAL, imported, karpathy, stair, texts

from xlcm.data.manifest import DataError
from xlcm.data.sources import stair as source


@pytest.fixture
def root(tmp_path):
    stair(tmp_path / "stair")
    return tmp_path / "stair"


def change(root, part, edit):
    path = root / f"stair_captions_v1.2_{part}.json"
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def test_its_own_splits_are_those_of_coco_2014(root):
    _, items, report = imported(source, root)
    splits = {key: item.split for key, item in items.items()}
    assert splits == {TRAIN: "train", REST: "val", VAL: "val", TEST: "val"}
    assert texts(items[TEST], "ja") == [f"犬{k}" for k in range(5)]
    assert any("restval" in note for note in report["notes"])


def test_karpathys_splits_and_english_are_joined_by_number(root, tmp_path):
    path = karpathy(tmp_path / "k")
    _, items, _ = imported(source, root, "--karpathy", str(path), "--english")
    splits = {key: item.split for key, item in items.items()}
    assert splits == {TRAIN: "train", REST: "train", VAL: "val", TEST: "test"}
    assert len(texts(items[REST], "en")) == len(texts(items[REST], "ja")) == 5
    assert source.plan(root, karpathy=str(path)).expected["train"].captions == {"ja": 566_435}


def test_english_needs_karpathys_file(root):
    with pytest.raises(DataError, match="--english takes the sentences of --karpathy"):
        imported(source, root, "--english")


def test_pictures_that_karpathys_file_lacks_are_named(root, tmp_path):
    path = karpathy(tmp_path / "k")
    data = json.loads(path.read_text())
    del data["images"][3]
    path.write_text(json.dumps(data))
    with pytest.raises(DataError, match=f"1 pictures are not in .*{TEST}"):
        imported(source, root, "--karpathy", str(path))


def test_a_picture_without_captions_is_counted(root):
    change(root, "train", lambda data: data.update(annotations=[]))
    _, _, report = imported(source, root)
    assert report["splits"]["train"]["without_captions"] == 1


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d["annotations"][1].update(image_id=99), r"annotations\[1\]: .*'images' lacks"),
        (lambda d: d["annotations"][1].update(id=110), r"annotations\[1\]: caption id 110 is at"),
        (lambda d: d["annotations"][1].update(image_id="x"), r"annotations\[1\]: expected"),
        (lambda d: d["images"].append({"id": 11}), r"images\[1\]: picture .*images\[0\] before"),
        (lambda d: d.pop("annotations"), "expected an object with a list 'annotations'"),
    ],
)
def test_a_bad_entry_is_named(root, edit, message):
    change(root, "train", edit)
    with pytest.raises(DataError, match=message):
        imported(source, root)
