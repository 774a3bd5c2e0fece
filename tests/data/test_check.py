import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_videos
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from xlcm.data import bad_rows, looks
from xlcm.data.check import check_manifest, find_bad_rows, find_overlap, write_skipped
from xlcm.data.dataset import ManifestDataset
from xlcm.data.faults import KINDS, WARNINGS, Digests
from xlcm.data.features import FeatureWriter
from xlcm.data.manifest import DataError


def picture(colour=0, mode: str = "RGB", kind: str = "JPEG") -> bytes:
    out = io.BytesIO()
    Image.new(mode, (32, 32), colour).save(out, kind)
    return out.getvalue()


class Folder:
    """A folder with a manifest that is written line by line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = path / "m.jsonl"
        self.lines: list[bytes] = []

    def item(self, *captions: dict, picture_bytes: bytes | None = None, **row) -> None:
        """Add an item, good but for what is given; `...` leaves a key out."""
        number = len(self.lines)
        identity = row.get("id", f"i{number}")
        shade = (number % 8 * 32, number // 8 % 8 * 32, 0)
        data = picture(shade) if picture_bytes is None else picture_bytes
        (self.path / f"{number}.jpg").write_bytes(data)
        filled = [
            {"id": f"{identity}#{n}", "lang": "en", "text": "a dog", **caption}
            for n, caption in enumerate(captions or ({},))
        ]
        whole = {"id": identity, "split": "train", "image": f"{number}.jpg", "captions": filled}
        whole.update(row)
        self.line(json.dumps({k: v for k, v in whole.items() if v is not ...}).encode())

    def line(self, raw: bytes) -> None:
        self.lines.append(raw)
        self.manifest.write_bytes(b"\n".join(self.lines) + b"\n")

    def check(self, **options):
        return check_manifest(self.manifest, **options)

    def dataset(self, split: str = "train", **options) -> ManifestDataset:
        return ManifestDataset(path=str(self.manifest), split=split, **options)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Folder:
    monkeypatch.setenv("XLCM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    made = Folder(tmp_path / "data")
    for n in range(3):  # i0, i1, i2 without any fault
        made.item({}, {"lang": "de", "text": "ein Hund", "origin": "mt", "of": f"i{n}#0"})
    return made


# kind -> what adds one fault of this kind each, and nothing else
INJECTIONS = {
    "bad_line": [
        lambda f: f.line(b'{"id": "1", "split": "train"'),
        lambda f: f.line(b'{"id": "1", "split": "train", "captons": []}'),
        lambda f: f.line(b'{"id": 1, "split": "train", "captions": []}'),
    ],
    "not_utf8": [lambda f: f.line(b'{"id": "\xe9", "split": "train", "captions": []}')],
    "duplicate_item": [lambda f: f.item({"id": "new"}, id="i0")],
    "duplicate_caption": [
        lambda f: f.item({"id": "i0#0"}),
        lambda f: f.item({"id": "twice"}, {"id": "twice"}),
    ],
    "split_overlap": [
        lambda f: f.item(split="val", image="0.jpg"),
        lambda f: f.item({"id": "fresh"}, split="val", id="i1"),
        lambda f: f.item({"id": "newer"}, split="val", id="i2", image="2.jpg"),
        lambda f: (f.item(features="k"), f.item(split="test", features="k")),
    ],
    "of_nowhere": [
        lambda f: f.item({"of": "nobody", "origin": "mt"}),
        lambda f: f.item({"id": "me", "of": "me", "origin": "mt"}),
    ],
    "of_other_item": [lambda f: f.item({"of": "i0#0", "origin": "mt"})],
    "relevant_nowhere": [
        lambda f: f.item({"relevant": ["i0", "nobody", "i1"]}),
        lambda f: (f.item(split="val", id="other"), f.item({"relevant": ["i1", "other"]})),
    ],
    "unknown_language": [
        lambda f: f.item({"lang": "jp"}, {"lang": "EN"}), lambda f: f.item({"lang": "zh_CN"}),
    ],
    "caption_empty": [lambda f: f.item({"text": ""}, {"text": " \u200b"})],
    "caption_too_long": [lambda f: f.item({"text": "x" * 2001}, {"text": "x" * 2000})],
    "control_character": [
        lambda f: f.item({"text": "a\0dog\0"}, {"text": "a\x1bdog"}, {"text": "\x85 dog"}),
    ],
    "lone_surrogate": [lambda f: f.item({"text": "a \ud83d dog"})],
    "image_missing": [lambda f: f.item(image="nope.jpg")],
    "image_empty": [lambda f: f.item(picture_bytes=b"")],
    "image_undecodable": [
        lambda f: f.item(picture_bytes=picture()[:-200]),
        lambda f: f.item(picture_bytes=b"<html>"),
        lambda f: f.item(picture_bytes=b"\xff\xd8 no"),
    ],
    "image_converted": [
        lambda f: f.item(picture_bytes=picture(0, "CMYK")),
        lambda f: f.item(picture_bytes=picture(0, "RGBA", "PNG")),
        lambda f: f.item(picture_bytes=picture(0, "P", "PNG")),
        lambda f: f.item(picture_bytes=picture(0, "I;16", "PNG")),
    ],
    "image_shared": [lambda f: f.item(image="0.jpg")],
    "line_break": [lambda f: f.item({"text": "a dog\nand\ta cat"})],
    "bidi_control": [lambda f: f.item({"text": "a \u202edog"})],
    "replacement_character": [lambda f: f.item({"text": "a d\ufffdg"})],
    "no_captions": [lambda f: f.item(captions=[])],
    "no_visual": [lambda f: f.item(image=...)],
}  # fmt: skip
EXPECTED = {
    kind: len(adds)
    + {"unknown_language": 1, "caption_empty": 1, "control_character": 2}.get(kind, 0)
    for kind, adds in INJECTIONS.items()
}


def inject(folder: Folder, kind: str) -> None:
    for add in INJECTIONS[kind]:
        add(folder)


def test_a_good_manifest_has_no_findings(folder):
    report = folder.check()
    assert (report.items, report.captions, report.splits) == (3, 6, {"train": 3})
    assert report.counts == {}


@pytest.mark.parametrize("kind", INJECTIONS)
def test_each_fault_is_counted_exactly_and_alone(folder, kind):
    inject(folder, kind)
    report = folder.check()
    assert report.counts == {kind: EXPECTED[kind]}
    counted = report.warnings if kind in WARNINGS else report.faults
    assert counted == report.warnings + report.faults == EXPECTED[kind]
    for example in report.examples[kind]:
        path, line, _ = example.split(":", 2)
        assert (path, int(line) > 3) == (str(folder.manifest), True)


def test_all_faults_together_are_counted_as_alone_by_one_process_and_by_two(folder):
    for kind in INJECTIONS:
        inject(folder, kind)
    report = folder.check()
    assert report.counts == EXPECTED
    assert folder.check(workers=2).to_dict() == report.to_dict()
    untested = set(KINDS) - set(INJECTIONS)
    assert untested == {
        "video_missing",  # the check opens no videos and writes no store
        "video_empty",
        "video_undecodable",
        "duplicate_key",
        "image_too_large",
        "feature_missing",
        "feature_not_finite",
        "feature_unreadable",
        "shard_truncated",  # of shards alone
        "image_damaged",  # asked for alone
    }


def test_a_bomb_is_found(folder, monkeypatch):
    monkeypatch.setattr("xlcm.data.images.MAX_PIXELS", 1023)
    assert folder.check().counts == {"image_too_large": 3}


def test_pictures_are_left_alone_when_asked(folder):
    inject(folder, "image_undecodable")
    assert folder.check(images=False).counts == {}


def test_the_first_examples_name_the_lines(folder):
    for _ in range(7):
        folder.item({"lang": "jp"})
    report = folder.check()
    assert report.counts["unknown_language"] == 7
    assert len(report.examples["unknown_language"]) == 5
    assert report.examples["unknown_language"][0] == (
        f"{folder.manifest}:4: caption 'i3#0' has a wrong lang: 'jp' is no BCP 47 language "
        "code; did you mean 'ja'?"
    )


def test_the_same_picture_under_two_names_is_found_by_its_bytes(folder):
    folder.item(picture_bytes=(folder.path / "0.jpg").read_bytes())
    folder.item(picture_bytes=(folder.path / "1.jpg").read_bytes(), split="test")
    assert folder.check().counts == {}
    report = folder.check(contents=True)
    assert report.counts == {"image_shared": 1, "split_overlap": 1}
    assert "in split 'train', here in 'test'" in report.examples["split_overlap"][0]


def test_segments_of_one_video_may_share_a_split_and_not_a_test(folder):
    for start, split in ((0, "train"), (1, "train"), (2, "test")):
        folder.item(image=..., video="v.mp4", segment=[start, start + 1], split=split)
    report = folder.check(images=False)
    assert report.counts == {"split_overlap": 1}
    assert report.examples["split_overlap"] == [
        f"{folder.manifest}:6: video 'v.mp4' is also at {folder.manifest}:4 in split 'train', "
        "here in 'test'"
    ]  # fmt: skip
    found = find_overlap(folder.dataset(), folder.dataset("test"))
    assert [fault.item for fault in found] == ["i3", "i4"]
    folder.item(image=..., video="v.mp4", segment=[1, 2])
    assert folder.check(images=False).counts["image_shared"] == 1


def test_pictures_of_which_the_decoder_complains_are_named(folder, capfd):
    whole = (folder.path / "0.jpg").read_bytes()
    folder.item(picture_bytes=whole[:-2] + b"\x12" * 10 + whole[-2:])
    folder.item(picture_bytes=whole[: len(whole) // 2])  # refused by Pillow, which has the word
    assert folder.check().counts == {"image_undecodable": 1}
    report = folder.check(decoder=True)
    assert report.counts == {"image_undecodable": 1, "image_damaged": 1}
    assert report.warnings == 1
    (example,) = report.examples["image_damaged"]
    assert "Corrupt JPEG data: " in example
    assert f"{folder.manifest}:4: image " in example
    assert "JPEG" not in capfd.readouterr().err


class Words:
    """A tokenizer that counts words."""

    max_tokens = 3

    def lengths(self, texts):
        return [len(text.split()) for text in texts]


def test_the_share_that_a_tokenizer_cuts_is_counted_by_language(folder):
    folder.item(
        {"text": "one two three four"}, {"text": "one two three"}, {"lang": "de", "text": "eins"}
    )
    cut = folder.check(tokenizer=Words()).cut
    assert cut == {
        "en": {"captions": 5, "cut": 1, "longest": 4},
        "de": {"captions": 4, "cut": 0, "longest": 2},
    }


def features(folder: Folder, keys, dim: int = 4) -> Path:
    store = folder.path / "store"
    with FeatureWriter(store, kind="pooled", dim=dim, dtype="float32", shard_items=2) as writer:
        for key in keys:
            writer.add(key, torch.ones(dim))
    return store


def damage(shard: Path) -> None:
    tensors = load_file(shard)
    tensors["values"][1, 0] = float("nan")
    save_file(tensors, shard)


def test_feature_keys_values_and_shards_are_checked(folder):
    folder.item(features="other")
    store = features(folder, ["i0", "i1", "i2"])
    assert folder.check(features=store).counts == {"feature_missing": 1}
    damage(store / "shard-00000.safetensors")
    report = folder.check(features=store)
    assert report.counts == {"feature_missing": 1, "feature_not_finite": 1, "feature_unreadable": 1}
    assert "features 'i1' hold NaN" in report.examples["feature_not_finite"][0]
    (store / "shard-00001.safetensors").unlink()
    assert (
        folder.check(features=store).counts["feature_unreadable"] == 3
    )  # twice by sum, once by key


def test_digests_find_repeats_and_members():
    digests = Digests()
    for line, name in enumerate(["a", "b", "c", "b", "d", "a"]):
        digests.add(name, line)
    assert digests.repeated_on() == {0, 1, 3, 5}
    assert "c" in digests
    assert "e" not in digests
    assert Digests().repeated_on() == set()
    assert "a" not in Digests()


# -- before training ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [k for k in INJECTIONS if k not in {*WARNINGS, "split_overlap"}])
def test_bad_rows_are_those_of_the_check(folder, kind):
    inject(folder, kind)
    found = find_bad_rows(folder.dataset())
    assert [fault.kind for fault in found] == [kind] * EXPECTED[kind]
    assert all(fault.where.startswith(f"{folder.manifest}:") for fault in found)
    told = [str(fault) for fault in found]
    assert sorted(told)[:5] == sorted(folder.check().examples[kind]) or len(told) > 5


def test_bad_rows_leave_out_warnings_other_splits_and_other_languages(folder):
    for kind in WARNINGS - {"no_visual", "image_damaged"}:
        inject(folder, kind)
    folder.item({"text": ""}, split="val")
    folder.item({"lang": "fr", "text": ""})
    assert find_bad_rows(folder.dataset(langs=["en", "de"])) == []
    assert [f.kind for f in find_bad_rows(folder.dataset())] == ["caption_empty"]
    assert [f.caption for f in find_bad_rows(folder.dataset("val"))] == [
        f"i{len(folder.lines) - 2}#0"
    ]


def test_an_item_without_picture_is_bad_where_pictures_are_read(folder):
    folder.item(image=...)
    (fault,) = find_bad_rows(folder.dataset())
    assert (fault.kind, fault.item, fault.caption) == ("image_missing", "i3", None)
    assert find_bad_rows(folder.dataset(), visual="none") == []


def test_features_of_any_format_stand_for_pictures(folder):
    for _ in range(3):
        folder.item(image=...)
    file = folder.path / "features.npz"
    np.savez(file, **{f"i{n}": np.ones(4, np.float32) for n in (0, 1, 2, 3, 5)})
    assert folder.check(features=file).counts == {"feature_missing": 1}
    assert folder.check().counts == {"no_visual": 3}


def test_bad_rows_of_features(folder):
    store = features(folder, ["i0", "i1"])
    damage(store / "shard-00000.safetensors")
    inject(folder, "image_undecodable")  # not read by a run over features
    data = folder.dataset(features=str(store))
    found = {fault.item: fault.kind for fault in find_bad_rows(data)}
    missing = dict.fromkeys(("i2", "i3", "i4", "i5"), "feature_missing")
    assert found == {"i1": "feature_not_finite", **missing}


@pytest.fixture
def looked(monkeypatch):
    """The names of the pictures that were opened, in order."""
    names: list[str] = []
    look_at = looks.look_at
    monkeypatch.setattr(looks, "look_at", lambda task: (names.append(task[1]), look_at(task))[1])
    return names


def test_the_faults_of_the_text_are_remembered_until_the_manifest_changes(folder, monkeypatch):
    inject(folder, "caption_empty")
    first = find_bad_rows(folder.dataset())
    with monkeypatch.context() as patch:
        patch.setattr(bad_rows, "_text_faults", lambda *_: pytest.fail("looked again"))
        assert find_bad_rows(folder.dataset()) == first
        assert find_bad_rows(folder.dataset(), visual="none") == first
        with pytest.raises(pytest.fail.Exception):
            find_bad_rows(folder.dataset(), remember=False)
        with pytest.raises(pytest.fail.Exception):
            find_bad_rows(folder.dataset(langs=["en"]))
    inject(folder, "lone_surrogate")
    assert len(find_bad_rows(folder.dataset())) == len(first) + EXPECTED["lone_surrogate"]


def test_good_pictures_are_opened_once(folder, looked):
    inject(folder, "image_empty")
    inject(folder, "image_converted")  # a warning alone
    first = find_bad_rows(folder.dataset())
    bad = [f"{fault.item[1:]}.jpg" for fault in first]
    assert len(looked) == len(folder.dataset())
    looked.clear()
    assert find_bad_rows(folder.dataset()) == first
    assert looked == bad
    looked.clear()
    find_bad_rows(folder.dataset(), remember=False)
    assert len(looked) == len(folder.dataset())


def test_pictures_that_come_back_are_good_again_and_those_that_go_are_bad(folder, looked):
    away = folder.path.with_name("away")
    folder.path.joinpath("0.jpg").rename(away)
    (fault,) = find_bad_rows(folder.dataset())
    assert (fault.item, fault.kind) == ("i0", "image_missing")
    away.rename(folder.path / "0.jpg")
    assert find_bad_rows(folder.dataset()) == []
    looked.clear()
    assert find_bad_rows(folder.dataset()) == []
    assert looked == []
    (folder.path / "1.jpg").write_bytes(b"")
    (fault,) = find_bad_rows(folder.dataset())
    assert (fault.item, fault.kind, looked) == ("i1", "image_empty", ["1.jpg"])


def test_features_that_are_repaired_are_good_again_and_damaged_ones_bad(folder):
    store = features(folder, ["i0", "i1", "i2"])
    data = folder.dataset(features=str(store))
    shard = store / "shard-00000.safetensors"
    whole = shard.read_bytes()
    assert find_bad_rows(data) == []
    damage(shard)
    data = folder.dataset(features=str(store))
    assert [f.kind for f in find_bad_rows(data)] == ["feature_not_finite"]
    shard.write_bytes(whole)
    assert find_bad_rows(folder.dataset(features=str(store))) == []


def test_faults_are_in_the_order_of_lines_and_written_as_json_lines(folder, tmp_path):
    for kind in ("image_empty", "lone_surrogate", "bad_line", "caption_empty"):
        inject(folder, kind)
    found = find_bad_rows(folder.dataset())
    lines = [int(fault.where.rpartition(":")[2]) for fault in found]
    assert lines == sorted(lines)
    write_skipped(found, tmp_path / "skipped.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == [fault.kind for fault in found]
    assert set(rows[0]) == {"where", "item", "caption", "kind", "message"}


def test_the_dataset_raises_for_each_bad_picture_with_its_line(folder):
    for kind in ("image_empty", "image_undecodable"):
        inject(folder, kind)
    data = folder.dataset()
    for index in range(3, len(data)):
        with pytest.raises(DataError, match=rf"m\.jsonl:{index + 1}: image '{index}\.jpg': "):
            data.load_image(index)


def test_training_items_that_are_scored_on_are_found(folder):
    folder.item(split="val", image="0.jpg")
    folder.item(split="test", image=str(folder.path / "1.jpg"))
    folder.item({"id": "fresh"}, split="test", id="i2")
    train, val, test = (folder.dataset(split) for split in ("train", "val", "test"))
    assert [f.item for f in find_overlap(train, val)] == ["i0"]
    assert [(f.item, f.kind) for f in find_overlap(train, val, test)] == [
        ("i0", "split_overlap"), ("i1", "split_overlap"), ("i2", "split_overlap"),
    ]  # fmt: skip
    assert find_overlap(train) == []
    folder.line(b'{"id": "cut off')  # is in no way met here, but by `find_bad_rows`
    assert len(find_overlap(folder.dataset(), folder.dataset("test"))) == 2


def test_captions_with_an_id_of_the_test_data_are_found_one_by_one(folder):
    folder.item({}, {"id": "i1#0"}, {"id": "i1#1", "lang": "fr"}, split="test")
    found = find_overlap(folder.dataset(), folder.dataset("test"))
    assert [(f.item, f.caption, f.kind) for f in found] == [
        ("i1", "i1#0", "duplicate_caption"), ("i1", "i1#1", "duplicate_caption"),
    ]  # fmt: skip
    assert str(found[0]).endswith(
        f"m.jsonl:2: caption id 'i1#0' is also at {folder.manifest}:4, which scores are measured on"
    )
    assert folder.check().counts == {"duplicate_caption": 2}
    french = folder.dataset("test", langs=["fr"])  # what is not read does no harm
    assert [f.caption for f in find_overlap(folder.dataset(), french)] == ["i1#1"]


def test_items_of_two_manifests_may_have_one_id(folder, tmp_path):
    (tmp_path / "other").mkdir()
    other = Folder(tmp_path / "other")
    other.item(id="i0", split="test")
    assert find_overlap(folder.dataset(), other.dataset("test")) == []


def test_looking_at_pictures_needs_no_torch():
    code = "import sys, xlcm.data.looks; print('torch' in sys.modules)"
    run = [sys.executable, "-c", code]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(run, capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout == "False\n"


def test_videos_that_are_missing_empty_or_cut_are_faults(tmp_path):
    pytest.importorskip("av")
    good = tiny_videos.write(tmp_path / "good.mp4", 8)
    (tmp_path / "cut.mp4").write_bytes(good.read_bytes()[:500])
    (tmp_path / "empty.mp4").write_bytes(b"")
    folder = Folder(tmp_path)
    for name in ("good", "cut", "empty", "gone"):
        folder.item(id=name, image=..., video=f"{name}.mp4")
    report = folder.check()
    assert report.counts == {"video_missing": 1, "video_empty": 1, "video_undecodable": 1}
    assert "m.jsonl:4: video 'gone.mp4': no such file" in report.examples["video_missing"][0]
    assert folder.check(workers=2).counts == report.counts
    assert not folder.check(images=False).counts


def test_videos_without_a_reader_are_told_instead_of_passed(tmp_path, monkeypatch):
    monkeypatch.setattr(looks, "find_spec", lambda name: None)
    folder = Folder(tmp_path)
    folder.item(image=..., video="clip.mp4")
    with pytest.raises(DataError, match=r"xlcm\[video\].*--no-images"):
        folder.check()
