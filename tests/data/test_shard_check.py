"""`xlcm data check` on tar shards; items that training shares with what scores are measured on."""

import json
import tarfile

import pytest
from test_shards import add, jpeg

from xlcm.cli import main
from xlcm.config import build
from xlcm.data.manifest import DataError
from xlcm.data.rows import open_splits
from xlcm.data.shard_check import check_shards
from xlcm.data.shard_writer import write_shards
from xlcm.data.shared_items import shared_by_parts
from xlcm.registry import datasets


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XLCM_CACHE", str(tmp_path / "cache"))


def item(name, text="a dog", split="train", **more):
    captions = [{"id": f"{name}#en", "lang": "en", "text": text, "origin": "human"}]
    return {"id": name, "split": split, "captions": captions, **more}


def tars(folder, *shards):
    """Write shards, each a list of (key, item or bytes, picture)."""
    folder.mkdir()
    for number, samples in enumerate(shards):
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for key, line, picture in samples:
                data = line if isinstance(line, bytes) else json.dumps(line).encode()
                add(tar, f"{key}.json", data)
                if picture is not None:
                    add(tar, f"{key}.jpg", picture)
    return folder


def manifest(path, *items):
    path.write_text("".join(json.dumps(one) + "\n" for one in items))
    return path


def test_whole_shards_have_no_fault_and_are_counted(tiny_data, tmp_path, capsys):
    source = build(datasets, {"name": "manifest", "path": str(tiny_data / "tiny.jsonl"),
                              "split": "val", "features": str(tiny_data / "store")})  # fmt: skip
    write_shards(source, tmp_path / "out", shards=2)
    report = check_shards(tmp_path / "out", against=[tiny_data / "tiny.jsonl"])
    assert report.faults == 0
    assert (report.items, report.captions) == (len(source), 2 * len(source))
    assert dict(report.splits) == {"val": len(source)}
    assert main(["data", "check", str(tmp_path / "out")]) == 0
    assert f"{len(source)} items ({len(source)} val)" in capsys.readouterr().out


def test_shards_that_nothing_lists_are_of_the_split_that_their_items_say(tmp_path):
    val = [("0", b"{", jpeg()), ("1", item("1", split="val"), jpeg()),
           ("2", item("2", "a cat", "val"), jpeg())]  # fmt: skip
    folder = tars(tmp_path / "rows", val[:1], val[1:])
    known = manifest(tmp_path / "known.jsonl", item("1", split="val"), item("2", "a cat"))
    for path in (folder, f"{folder}/*.tar"):
        report = check_shards(path, against=[known])
        assert dict(report.splits) == {"val": 2}
        assert dict(report.counts) == {"bad_line": 1, "split_overlap": 1}


def test_each_broken_member_is_named_and_the_rest_is_read(tmp_path, capsys):
    folder = tars(
        tmp_path / "t",
        [("a", item("1"), jpeg()), ("b", item("2", text=""), jpeg()[:60])],
        [("a", item("3"), jpeg()), ("c", b"{", jpeg()), ("d", item("1"), None)],
        [("e", item("5"), jpeg()), ("f", item("6"), jpeg()), ("g", item("7"), jpeg())],
    )
    with tarfile.open(folder / "3.tar", "w") as tar:
        add(tar, "h.json", json.dumps(item("8")).encode())
        add(tar, "h.tokens.npy", b"no npy")
    file = folder / "2.tar"
    file.write_bytes(file.read_bytes()[:4000])
    report = check_shards(folder)
    assert dict(report.counts) == {
        "shard_truncated": 1, "image_undecodable": 1, "caption_empty": 1, "bad_line": 1,
        "duplicate_item": 2, "duplicate_caption": 1, "no_visual": 1, "feature_unreadable": 1,
    }  # fmt: skip
    assert report.examples["image_undecodable"][0].startswith(f"{folder}/0.tar:b: ")
    assert (
        f"{folder}/1.tar:a: a sample of the same key is at {folder}/0.tar:a"
        in (report.examples["duplicate_item"])
    )
    assert main(["data", "check", str(folder), "--json", str(tmp_path / "r.json")]) == 1
    assert "shard_truncated" in capsys.readouterr().out
    assert json.loads((tmp_path / "r.json").read_text())["faults"] == report.faults


def test_items_of_another_split_of_a_manifest_are_found_by_id_and_caption_or_by_picture(tmp_path):
    folder = tars(
        tmp_path / "t",
        [("a", item("1"), jpeg()), ("b", item("2"), jpeg((9, 9, 9))), ("c", item("3"), jpeg())],
    )
    (tmp_path / "x.jpg").write_bytes(jpeg((9, 9, 9)))
    other = manifest(
        tmp_path / "m.jsonl",
        item("1", split="test"),
        item("2", text="another dog", split="test"),  # counts from 1 as well
        item("3"),  # the shards' own split
        item("9", split="val", image="x.jpg"),
    )
    report = check_shards(folder, against=[other])
    assert [text.split(": ")[0] for text in report.examples["split_overlap"]] == [
        f"{folder}/0.tar:a"
    ]
    report = check_shards(folder, against=[other], contents=True)
    assert report.counts["split_overlap"] == 2
    assert "same picture is at" in report.examples["split_overlap"][1]


def test_options_of_the_other_kind_are_refused(tmp_path, capsys):
    folder = tars(tmp_path / "t", [("a", item("1"), jpeg())])
    other = manifest(tmp_path / "m.jsonl", item("1"))
    assert main(["data", "check", str(other), "--against", str(other)]) == 2
    assert "go with shards" in capsys.readouterr().err
    assert main(["data", "check", str(folder), "--features", str(folder)]) == 2
    assert "go with manifests" in capsys.readouterr().err


# -- training ------------------------------------------------------------------------------------


@pytest.fixture
def splits(tmp_path):
    folder = tars(tmp_path / "t", [(str(n), item(str(n), f"dog {n}"), jpeg()) for n in range(20)])
    (tmp_path / "x.jpg").write_bytes(jpeg())
    held_out = [item(str(n), f"dog {n}", "val", image="x.jpg") for n in (3, 30)]
    held_out.append(item("4", "a cat", "val", image="x.jpg"))
    return [
        {"name": "shards", "path": str(folder), "langs": ["de"]},
        {"name": "manifest", "path": str(manifest(tmp_path / "v.jsonl", *held_out)),
         "split": "val"},
    ]  # fmt: skip


def test_training_on_shards_stops_at_an_item_of_the_validation_or_leaves_it_out(splits):
    with pytest.raises(DataError, match=r"0\.tar:3: item id '3' with the caption 'dog 3' is also"):
        open_splits(splits, visual="image")
    with pytest.raises(DataError, match=r"5\.0%"):
        open_splits(splits, visual="image", on_error="skip")
    (train, _), faults = open_splits(splits, visual="image", on_error="skip", max_skipped=0.1)
    assert [fault.kind for fault in faults] == ["split_overlap"]
    assert len(train) == 19
    assert "3" not in {train[n].id for n in range(19)}


def test_training_on_a_manifest_stops_at_an_item_of_validation_shards(splits, tmp_path):
    shards, held_out = splits
    lines = [json.loads(line) for line in (tmp_path / "v.jsonl").read_text().splitlines()]
    train = manifest(tmp_path / "t.jsonl", *({**line, "split": "train"} for line in lines))
    specs = [{**held_out, "path": str(train), "split": "train"}, shards]
    with pytest.raises(DataError, match=r"t\.jsonl:1: item id '3'.*0\.tar:3"):
        open_splits(specs, visual="none")


def test_items_in_two_parts_of_a_mix_are_told(splits, tmp_path):
    shards, held_out = splits
    own = manifest(tmp_path / "o.jsonl", item("3", "dog 3"), item("4", "other"), item("z"))
    mix = {"name": "mix", "parts": {
        "tars": shards, "rows": {**held_out, "path": str(own), "split": "train"}}}  # fmt: skip
    with pytest.warns(UserWarning, match="1 items of 'rows' are in 'tars' too, such as '3'"):
        open_splits([mix], visual="none")
    parts = build(datasets, mix).parts
    assert shared_by_parts({"tars": parts["tars"]}) == {}
    assert shared_by_parts({**parts, "again": parts["rows"]}) == {
        ("tars", "rows"): ["3"], ("tars", "again"): ["3"], ("rows", "again"): ["4", "z"],
    }  # fmt: skip


def test_one_picture_file_in_two_manifests_of_a_mix_is_told(tmp_path):
    one = manifest(tmp_path / "a.jsonl", item("1", "dog", image="x.jpg"))
    two = manifest(tmp_path / "b.jsonl", item("9", "Hund", image="x.jpg"), item("8"))
    parts = {
        path.stem: build(datasets, {"name": "manifest", "path": str(path), "split": "train"})
        for path in (one, two)
    }
    assert shared_by_parts(parts) == {("a", "b"): ["9"]}
