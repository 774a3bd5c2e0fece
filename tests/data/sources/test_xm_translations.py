import bz2
import json

import pytest
from image_text_folders import REST, TRAIN, VAL, imported, texts, translations

from xlcm.data.manifest import DataError
from xlcm.data.sources import cc3m
from xlcm.data.sources import xm_translations as source


@pytest.fixture
def root(tmp_path):
    translations(tmp_path / "mt")
    return tmp_path / "mt"


def change(root, edit, file="coco_mt_train.jsonl.bz2"):
    rows = [json.loads(line) for line in bz2.decompress((root / file).read_bytes()).splitlines()]
    edit(rows)
    data = "".join(json.dumps(row) + "\n" for row in rows)
    (root / file).write_bytes(bz2.compress(data.encode()))


def test_english_translation_and_back_translation_are_linked(root):
    _, items, _ = imported(source, root, "--langs", "de", "zh")
    assert {key: item.split for key, item in items.items()} == {
        TRAIN: "train", REST: "train", VAL: "val",
    }  # fmt: skip
    by_id = {c.id: c for c in items[TRAIN].captions}
    assert len(by_id) == len(items[TRAIN].captions) == 5  # English once for both languages
    source_id, mt, back = (f"{TRAIN}#{n}.0" for n in ("en", "zh.mt", "en.back-zh"))
    assert (by_id[source_id].text, by_id[source_id].origin) == ("dog é 11", "human")
    assert (by_id[mt].text, by_id[mt].origin, by_id[mt].of) == ("zh 11", "mt", source_id)
    assert (by_id[back].text, by_id[back].origin, by_id[back].of) == ("back zh 11", "back", mt)
    assert by_id[back].lang == "en"
    assert by_id[mt].engine == by_id[back].engine


def test_languages_splits_and_back_translations_can_be_left_out(root):
    options = ("--langs", "de", "--splits", "val", "--no-back")
    _, items, _ = imported(source, root, *options)
    assert [(c.lang, c.origin) for c in items[VAL].captions] == [("en", "human"), ("de", "mt")]
    assert list(items) == [VAL]


def test_published_counts_are_by_language(root):
    told = source.plan(root, "cc3m", ["de", "zh"]).expected["train"]
    assert told.items == 3_318_270
    assert told.captions["en back"] == 2 * told.captions["de mt"] == 2 * 3_318_270


def test_rows_of_cc3m_get_the_ids_of_its_own_import(tmp_path):
    translations(tmp_path / "mt", "cc3m")
    _, items, _ = imported(source, tmp_path / "mt", "--set", "cc3m", "--langs", "de")
    assert list(items) == ["train-11", "train-22", "val-33"]
    assert texts(items["train-11"], "de", "mt") == ["de 11"]
    assert source.picture_key(items["val-33"]) == cc3m.picture_key(items["val-33"])


def test_an_old_code_is_read_as_the_new_one(root):
    change(root, lambda rows: [row.update(trg_lang="iw") for row in rows])
    with pytest.raises(DataError, match="he translation of caption 0"):
        imported(source, root, "--langs", "he", "--splits", "train")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image_id": "99_1"}, "no picture 99"),
        ({"image_id": "33_1"}, "picture 33 is in val of Karpathy's split, not in train"),
        ({"image_id": "11"}, "image_id must be like 123456_1"),
        (
            {"image_id": "11_1", "caption_tokenized": "dog é 11"},
            "the de translation of caption 0 .*in a line before",
        ),
        ({"src_lang": "fr"}, "src_lang is 'fr'"),
        ({"translation_tokenized": None}, "'translation_tokenized' must be text"),
    ],
)
def test_a_bad_line_is_named(root, row, message):
    change(root, lambda rows: rows[1].update(row))
    with pytest.raises(DataError, match=f"coco_mt_train.jsonl.bz2:2: .*{message}"):
        imported(source, root, "--langs", "de")


def test_a_translation_of_other_english_than_a_line_before_is_left_out_and_counted(root):
    change(root, lambda rows: rows[2].update(caption_tokenized="cat"))
    _, items, report = imported(source, root, "--langs", "de", "zh")
    assert texts(items[TRAIN], "zh", "mt") == []
    assert texts(items[TRAIN], "en") == ["dog é 11"]
    assert "coco_mt_train.jsonl.bz2:3" in json.dumps(report)


def test_a_row_without_translation_is_left_out_and_counted(root):
    change(root, lambda rows: rows[0].update(translation_tokenized=" "))
    _, items, report = imported(source, root, "--langs", "de")
    assert [c.origin for c in items[TRAIN].captions] == ["human"]
    assert "coco_mt_train.jsonl.bz2:1" in json.dumps(report)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-9], "cut off"),
        (lambda data: b"BZh9" + bytes(90), "no bzip2 file, or damaged"),
        (lambda data: bz2.compress(b'{"a": "\xe9"}\n'), ":1: not UTF-8"),
        (lambda data: bz2.compress(b"{\n"), ":1: not JSON"),
        (lambda data: bz2.compress(b"[]\n"), ":1: expected an object"),
    ],
)
def test_a_damaged_file_is_told_and_nothing_is_written(root, damage, message):
    path = root / "coco_mt_train.jsonl.bz2"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=f"coco_mt_train.jsonl.bz2.*{message}"):
        imported(source, root, "--langs", "de")
    assert list((root.parent / "out").iterdir()) == []


def test_windows_line_ends_and_a_byte_order_mark_change_nothing(root):
    _, clean, _ = imported(source, root, "--langs", "de")
    path = root / "coco_mt_train.jsonl.bz2"
    data = bz2.decompress(path.read_bytes()).replace(b"\n", b"\r\n")
    path.write_bytes(bz2.compress(b"\xef\xbb\xbf" + data))
    _, items, _ = imported(source, root, "--langs", "de")
    assert items.keys() == clean.keys()
    assert [i.captions for i in items.values()] == [i.captions for i in clean.values()]


def test_missing_files_are_listed_with_the_place_to_get_them(root):
    (root / "dataset_coco.json").unlink()
    with pytest.raises(DataError, match=r"(?s)dataset_coco.json.*Get it by hand.*CC BY 4.0"):
        imported(source, root, "--langs", "de")
