import image_text_folders as folders
import pytest
from image_text_folders import REST, TEST, TRAIN, VAL, imported, texts

from xlcm.data.manifest import DataError
from xlcm.data.sources import coco_cn as source


@pytest.fixture
def root(tmp_path):
    folders.coco_cn(tmp_path / "cn")
    return tmp_path / "cn"


def test_splits_are_the_owners_and_captions_the_written_ones(root):
    _, items, _ = imported(source, root)
    splits = {key: item.split for key, item in items.items()}
    assert splits == {TRAIN: "train", REST: "train", VAL: "val", TEST: "test"}
    assert texts(items[TEST], "zh") == ["一只狗3", "两只狗"]
    assert [c.id for c in items[TEST].captions] == [f"{TEST}#zh.0", f"{TEST}#zh.1"]


def test_translated_test_captions_take_the_place_of_written_ones_or_join_them(root):
    _, items, _ = imported(source, root, "--test-captions", "translated")
    assert texts(items[TEST], "zh") == [f"翻译{n}" for n in range(5)]
    assert items[TEST].captions[0].id == f"{TEST}#zh.translated.0"
    assert texts(items[VAL], "zh") == ["一只狗2"]
    _, items, _ = imported(source, root, "--test-captions", "both")
    assert len(texts(items[TEST], "zh")) == 7


def test_english_is_added_from_karpathys_file(root, tmp_path):
    english = folders.karpathy(tmp_path / "k")
    _, items, _ = imported(source, root, "--english", str(english))
    assert len(texts(items[TRAIN], "en")) == 5
    assert len(texts(items[TRAIN], "zh")) == 1


def test_the_extension_is_training_data(tmp_path):
    folders.extension(tmp_path / "cn")
    _, items, _ = imported(source, tmp_path / "cn", "--part", "icap2020")
    assert {key: item.split for key, item in items.items()} == {TRAIN: "train", TEST: "train"}
    assert texts(items[TRAIN], "zh") == ["一只猫", "两只猫"]


def test_the_extension_alone_is_said_to_be_readable(tmp_path):
    folders.extension(tmp_path / "cn")
    with pytest.raises(DataError, match=r"icap2020.txt is here: `--part icap2020` reads it"):
        imported(source, tmp_path / "cn")


def test_a_picture_of_both_parts_is_refused(root):
    folders.extension(root)
    with pytest.raises(DataError, match=f"{TRAIN}.* was written before"):
        imported(source, root, "--part", "both")


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("coco-cn_test.txt", TRAIN, "coco-cn_test.txt:2: .*coco-cn_train.txt:1 before"),
        ("coco-cn_test.txt", "dog", "coco-cn_test.txt:2: expected an id"),
        ("imageid.human-written-caption.txt", "COCO_val2014_000000000099#0\t狗",
         "caption.txt:6: .*none of coco-cn_train.txt"),
        ("imageid.human-written-caption.txt", f"{TEST}#1\t狗", "caption.txt:6: .*caption.txt:5"),
        ("imageid.human-written-caption.txt", f"{TEST} 狗", "caption.txt:6: expected `<id>#"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named(root, file, line, message):
    with open(root / file, "a", encoding="utf-8") as out:
        out.write(line + "\n")
    with pytest.raises(DataError, match=message):
        imported(source, root)
    assert not (root.parent / "out" / "m.jsonl").exists()


def test_a_listed_picture_without_captions_is_counted(root):
    with open(root / "coco-cn_val.txt", "a") as out:
        out.write("COCO_val2014_000000000099\n")
    _, _, report = imported(source, root)
    assert report["splits"]["val"]["without_captions"] == 1


def test_the_real_extension_has_the_published_counts(shared, tmp_path):
    root = shared / "data/captions/coco_cn_icap"
    code, items, _ = imported(source, root, "--part", "icap2020", out=tmp_path / "m.jsonl")
    assert (code, len(items)) == (0, 4_573)
    assert sum(len(item.captions) for item in items.values()) == 4_712
