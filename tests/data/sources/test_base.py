import argparse
import hashlib
import importlib
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from xlcm.cli import main
from xlcm.data.manifest import DataError, read_manifest
from xlcm.data.sources import SOURCES, xtd10
from xlcm.data.sources.base import Expected, Need, Plan, Skipped, add_common, run_import
from xlcm.data.sources.report import OWN, Keys
from xlcm.types import Caption, Item


def item(name: str, split: str = "train", image: str | None = None, **more) -> Item:
    captions = (Caption(f"{name}#en.0", "en", "text"),)
    return Item(name, split, captions, image=image, where=f"list.txt:{name}", **more)


def plan(items: list[Item], **more) -> Plan:
    return Plan("invented", "Invented", "Write to them.", "Ask them.", "Nobody 2020", (),
                lambda: iter(items), **more)  # fmt: skip


@pytest.fixture
def load(tmp_path):
    """Import a plan; returns (exit code, items, report)."""

    def run(made: Plan, *options: str, out: str = "m.jsonl"):
        parser = argparse.ArgumentParser()
        add_common(parser)
        path = tmp_path / "out" / out
        code = run_import(made, parser.parse_args(
            ["--root", str(tmp_path), "--out", str(path), *options]))  # fmt: skip
        report = json.loads(path.with_name(f"{out}.report.json").read_text())
        return code, list(read_manifest(path)), report

    run.out = tmp_path / "out" / "m.jsonl"
    return run


def test_missing_files_stop_the_import_before_anything_is_read(load, tmp_path, capsys):
    needs = (Need("a.txt", "the list"), Need("b-*.txt", "captions"), Need("c", "extras", False))
    (tmp_path / "b-1.txt.gz").write_bytes(b"")

    def never():
        raise AssertionError("was read")
        yield

    with pytest.raises(DataError) as error:
        load(replace(plan([]), needs=needs, items=never))
    message = str(error.value)
    assert f"1 of 3 files are missing:\n  {tmp_path / 'a.txt'}: the list" in message
    assert "Write to them." in message
    assert "Ask them." in message
    shown = capsys.readouterr().out
    for state in ("MISSING", "b-1.txt.gz", "MISSING, not read"):
        assert state in shown
    assert not load.out.parent.exists()


def test_a_root_that_is_not_there_says_where_to_get_it(tmp_path):
    args = argparse.Namespace(root=str(tmp_path / "no"), out="x", images=None, against=[],
                              missing_images="error")  # fmt: skip
    with pytest.raises(DataError, match=r"no: no such folder\. Get it by hand: Write to them"):
        run_import(plan([]), args)


def test_counts_are_held_against_the_published_ones(load, capsys):
    items = [item("1"), item("2"), item("3", "test")]
    right = {"train": Expected(2, {"en": 2}), "test": Expected(1, {"en human": 1})}
    code, _, report = load(plan(items, expected=right))
    assert (code, report["as_published"]) == (0, True)
    wrong = {"train": Expected(2, {"en": 2, "de": 4}), "val": Expected(7)}
    code, _, report = load(plan(items, expected=wrong))
    assert (code, report["as_published"]) == (1, False)
    assert report["splits"]["val"]["counts"] == [{"what": "items", "read": 0, "published": 7}]
    shown = capsys.readouterr().out
    for verdict in ("as published", "expected 4", "expected 7", "not known"):
        assert verdict in shown
    assert len(list(read_manifest(load.out))) == 3, "it is written all the same"


def test_captions_of_one_language_are_counted_by_origin(load):
    captions = (
        Caption("a", "de", "x"),
        Caption("b", "de", "x", "mt", engine="e"),
        Caption("c", "de", "x", "mt", engine="e"),
    )
    items = [Item("1", "train", captions)]
    for told, code in (({"de": 3}, 0), ({"de human": 1, "de mt": 2}, 0), ({"de mt": 3}, 1)):
        assert load(plan(items, expected={"train": Expected(1, told)}))[0] == code, told


def test_the_digest_of_a_split_is_of_its_lines_alone(load):
    items = [item("1"), item("2", "test"), item("3")]
    report = load(plan(items))[2]
    lines = load.out.read_bytes().splitlines(keepends=True)
    digest = hashlib.sha256(lines[0] + lines[2]).hexdigest()
    assert report["splits"]["train"]["sha256"] == digest
    other = load(plan([items[2], items[1], structs.replace(items[0], id="9")]))[2]
    assert other["splits"]["test"]["sha256"] == report["splits"]["test"]["sha256"]
    assert other["splits"]["train"]["sha256"] != digest


@pytest.mark.parametrize("kind", ["image", "video"])
def test_the_digest_does_not_depend_on_where_the_pictures_lie(load, tmp_path, kind):
    captions = (Caption("c", "en", 'a "quote", "image": "x.jpg" \\', "mt", quality={"image": "x"}),)
    sums = {}
    for folder in ('p "1", "video": "', "q"):
        path = tmp_path / folder / "a.jpg"
        path.parent.mkdir()
        path.write_bytes(b"x")
        for name, text in (
            ("same", captions),
            ("other", (structs.replace(captions[0], text="b"),)),
        ):
            made = structs.replace(item("1"), captions=text, **{kind: "a.jpg"})
            code, items, report = load(plan([made]), "--images", str(path.parent))
            assert (code, getattr(items[0], kind)) == (0, f"../{folder}/a.jpg")
            sums.setdefault(name, set()).add(report["splits"]["train"]["sha256"])
    bare = load(plan([structs.replace(item("1"), captions=captions)]))[2]["splits"]["train"][
        "sha256"
    ]
    assert sums["same"] == {bare}
    assert len(sums["other"]) == 1
    assert sums["other"] != sums["same"]
    renamed = load(
        plan([structs.replace(item("1"), captions=(structs.replace(captions[0], quality={}),))])
    )[2]
    assert renamed["splits"]["train"]["sha256"] != bare


def test_a_picture_in_two_splits_is_a_leak(load, capsys):
    items = [item("1-a"), item("2-a"), item("2-b"), item("1-b", "test")]
    code, _, report = load(plan(items, key=lambda i: f"pic:{i.id[0]}"))
    assert code == 1
    assert report["leaks"] == [
        {"of_split": "train", "split": "test", "pictures": 1, "of": 2, "first": ["pic:1"]}
    ]
    shown = capsys.readouterr().out
    assert "LEAK: 1 of 2 pictures of train are in test too: pic:1" in shown
    assert "1 items of train show a picture that the split holds already" in shown
    assert load(plan(items))[0] == 0, "ids differ, and no key says that they are one picture"


def test_the_first_of_many_shared_pictures_are_named_in_order(load):
    numbers = np.random.default_rng(0).permutation(1500)
    items = [item(f"{n:04d}-{split}", split) for split in ("train", "test") for n in numbers]
    leaks = load(plan(items, key=lambda i: i.id[:4]))[2]["leaks"]
    assert [(leak["pictures"], leak["first"]) for leak in leaks] == [
        (1500, ["0000", "0001", "0002", "0003", "0004"])
    ]


def test_keys_of_pictures_take_few_bytes_each():
    count = 100_000
    tracemalloc.start()
    keys = Keys()
    for number in range(count):
        keys.add(f"{number:09d}.jpg")
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 12 * count
    assert len(keys) == count
    assert "000000007.jpg" in keys
    assert "7.jpg" not in keys


def test_pictures_of_other_manifests_are_counted_split_by_split(load):
    load(plan([item("1"), item("2"), item("3", "val")]), out="old.jsonl")
    path = load.out.with_name("old.jsonl")
    items = [item("2", "test"), item("3", "test"), item("4", "test")]
    code, _, report = load(plan(items), "--against", str(path))
    assert code == 0, "other manifests are told, not judged"
    assert [(r["of_split"], r["split"], r["pictures"], r["of"]) for r in report["against"]] == [
        ("test", "train", 1, 3), ("test", "val", 1, 3),
    ]  # fmt: skip


def test_a_report_beside_the_other_manifest_says_how_its_pictures_are_called(load):
    old = plan([item("1000_ab"), item("COCO_val2014_000000000012")])
    load(replace(old, name="multi30k"), out="old.jsonl")
    path = str(load.out.with_name("old.jsonl"))
    mine = plan([item("photo 1000"), item("12", "test")],
                key=lambda i: "flickr:1000" if "photo" in i.id else f"coco:{i.id}")  # fmt: skip
    report = load(mine, "--against", path)[2]
    assert [(r["of_split"], r["first"]) for r in report["against"]] == [
        ("train", ["flickr:1000"]), ("test", ["coco:12"]),
    ]  # fmt: skip
    load.out.with_name("old.jsonl.report.json").write_text("{}")
    with pytest.raises(DataError, match=r"old\.jsonl\.report\.json: no report of an import"):
        load(mine, "--against", path)


def test_a_manifest_made_from_an_imported_one_hands_on_what_its_pictures_are_called(load, capsys):
    old = plan([item("1000_ab"), item("COCO_val2014_000000000012")])
    load(replace(old, name="multi30k", title="Task 1"), out="old.jsonl")
    path, made = (load.out.with_name(name) for name in ("old.jsonl", "new.jsonl"))
    load(plan([item("7")]), out="new.jsonl")  # another import, which is written over
    assert main(["data", "filter", str(path), "--max", "copied=1", "--out", str(made)]) == 0
    told = json.loads(Path(f"{made}.report.json").read_text())
    assert (told["source"], told["title"], told["made_from"]) == ("multi30k", "Task 1", "old.jsonl")
    assert not {"splits", "leaks", "as_published"} & told.keys(), "those of another file"
    mine = plan([item("12", "test")], key=lambda i: f"coco:{i.id}")
    assert load(mine, "--against", str(made))[2]["against"][0]["first"] == ["coco:12"]
    path.with_name("old.jsonl.report.json").unlink()
    assert main(["data", "filter", str(path), "--max", "copied=1", "--out", str(made)]) == 0
    assert not Path(f"{made}.report.json").exists(), "nothing is said of a file that is gone"


def test_an_id_twice_is_named_with_the_place_in_the_source(load):
    with pytest.raises(DataError, match=r"^list\.txt:1: item id '1' was written before"):
        load(plan([item("1"), item("2"), item("1")]))
    assert list(load.out.parent.iterdir()) == []


def test_nothing_to_write_is_an_error_and_the_old_manifest_stays(load):
    load(plan([item("1")]))
    before = load.out.read_bytes()
    with pytest.raises(DataError, match="Invented has no items here; nothing is written"):
        load(plan([]))

    def fails():
        yield item("5")
        raise DataError("list.txt:2: broken")

    with pytest.raises(DataError, match=r"list\.txt:2: broken"):
        load(replace(plan([]), items=fails))
    assert load.out.read_bytes() == before
    names = sorted(path.name for path in load.out.parent.iterdir())
    assert names == ["m.jsonl", "m.jsonl.report.json"]


def test_what_was_left_out_is_told_by_reason_with_the_first_places(load, capsys):
    skipped = Skipped()
    for i in range(7):
        skipped.add(f"a.txt:{i}")
    skipped.add("b.txt:1", "captions of nothing")
    assert skipped.count == 8
    report = load(plan([item("1")], skipped=skipped))[2]
    assert report["left_out"] == {
        "captions without text": {"count": 7, "first": [f"a.txt:{i}" for i in range(5)]},
        "captions of nothing": {"count": 1, "first": ["b.txt:1"]},
    }
    assert "7 captions without text were left out: a.txt:0, a.txt:1" in capsys.readouterr().out


def test_a_manifest_from_elsewhere_is_compared_as_far_as_its_ids_allow(load):
    load(plan([item("photo"), item("12")]), out="old.jsonl")
    old = load.out.with_name("old.jsonl")
    old.with_name("old.jsonl.report.json").unlink()
    mine = plan([item("0012", "test")], key=lambda i: f"coco:{int(i.id)}")
    report = load(mine, "--against", str(old))[2]
    assert [r["first"] for r in report["against"]] == [["coco:12"]]


@pytest.mark.parametrize(("mine", "theirs"), [("xtd10", "csv"), ("csv", "xtd10"), ("csv", "lines")])
def test_pictures_of_a_users_own_files_are_found_by_their_ids(load, mine, theirs):
    keys = {"xtd10": xtd10.picture_key}
    shown = item("COCO_val2014_000000000012")
    load(replace(plan([shown], key=keys.get(theirs)), name=theirs), out="old.jsonl")
    old = load.out.with_name("old.jsonl")
    report = load(replace(plan([shown], key=keys.get(mine)), name=mine), "--against", str(old))[2]
    assert [r["pictures"] for r in report["against"]] == [1]


# -- pictures -----------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path):
    for name in ("p/a.jpg", "p/sub/b.jpg", "q/c.jpg", "p/v.mp4"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path


ITEMS = [item("1", image="a.jpg"), item("2", image="sub/b.jpg"), item("3", image="c.jpg")]


def test_paths_start_at_the_manifest_and_lead_to_the_files(load, pictures):
    more = ("--images", str(pictures / "p"), "--more-images", str(pictures / "q"))
    _, items, _ = load(plan(ITEMS), *more)
    assert [i.image for i in items] == ["../p/a.jpg", "../p/sub/b.jpg", "../q/c.jpg"]
    assert all((load.out.parent / i.image).is_file() for i in items)


def test_paths_hold_when_the_manifest_lies_behind_a_link(load, pictures):
    deep = pictures / "deep" / "er"
    deep.mkdir(parents=True)
    load.out.parent.symlink_to(deep)
    _, items, _ = load(plan(ITEMS[:2]), "--images", str(pictures / "p"))
    assert [i.image for i in items] == ["../../p/a.jpg", "../../p/sub/b.jpg"]
    assert all((load.out.parent / i.image).is_file() for i in items)


def test_missing_pictures_stop_the_import_or_are_dropped_or_kept(load, pictures, capsys):
    there = ("--images", str(pictures / "p"))
    with pytest.raises(DataError, match=r"p: 1 pictures are not there, such as c\.jpg; nothing"):
        load(plan(ITEMS), *there)
    assert not load.out.exists()
    expected = {"train": Expected(3, {"en": 3})}
    code, items, report = load(plan(ITEMS, expected=expected), *there, "--missing-images", "drop")
    assert code == 0, "counts are of what was read"
    assert [i.id for i in items] == ["1", "2"]
    assert report["splits"]["train"]["written"] == 2
    assert "2 written" in capsys.readouterr().out
    _, items, report = load(plan(ITEMS), *there, "--missing-images", "keep")
    assert [i.image for i in items] == ["../p/a.jpg", "../p/sub/b.jpg", "../p/c.jpg"]
    assert "1 pictures are not there, their items were kept: c.jpg" in report["notes"]


def test_a_wrong_folder_is_not_dropping_all_pictures(load, pictures):
    (pictures / "other").mkdir()
    given = ("--images", str(pictures / "other"), "--missing-images", "drop")
    with pytest.raises(
        DataError, match=r"other: none of 3 pictures is there, such as a\.jpg.*folder"
    ):
        load(plan(ITEMS), *given)
    assert not load.out.exists()
    assert load(plan([*ITEMS, item("4", image="v.mp4")]), "--images", str(pictures / "p"),
                "--missing-images", "drop")[0] == 0  # fmt: skip


def test_without_a_folder_paths_are_taken_off_and_that_is_said(load):
    _, items, report = load(plan(ITEMS))
    assert [i.image for i in items] == [None] * 3
    assert report["notes"][0].startswith("no --images: 3 items have no path to a picture")


def test_a_video_may_have_any_usual_ending_and_only_one(load, pictures, capsys):
    made = [item(n, video=f"{n}.*") for n in ("v", "w", "x")]
    for name in ("w.WebM", "x.mov", "x.jpg"):
        (pictures / "p" / name).write_bytes(b"x")
    words = ("--videos", str(pictures / "p"))
    _, items, _ = load(plan(made), *words)
    assert [i.video for i in items] == ["../p/v.mp4", "../p/w.WebM", "../p/x.mov"]
    (pictures / "p" / "w.avi").write_bytes(b"x")
    with pytest.raises(DataError, match=r"w\.WebM and w\.avi are both there: which one"):
        load(plan(made), *words)
    (pictures / "p" / "w.avi").unlink()
    (pictures / "p" / "x.mov").unlink()
    with pytest.raises(DataError, match=r"1 videos are not there, such as x\.mp4 \(or \.webm"):
        load(plan(made), *words)
    _, items, _ = load(plan(made), *words, "--missing-images", "keep")
    assert items[2].video == "../p/x.mp4"


def test_a_published_file_that_is_not_there_is_told_and_the_rest_is_read(load, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("x")
    needs = (Need("a.txt", "the list"), Need("b.txt", "more captions", required=False))
    _, items, report = load(replace(plan(ITEMS), needs=needs))
    assert len(items) == 3
    assert report["missing"] == [{"path": "b.txt", "what": "more captions"}]
    said = capsys.readouterr().out
    assert "MISSING: 1 published files are not there" in said
    assert "b.txt. Get them by hand: Write to them." in " ".join(said.split())


def test_absolute_paths_and_videos_are_kept(load, pictures):
    made = [item("1", image=str(pictures / "q/c.jpg")), item("2", video="v.mp4")]
    _, items, _ = load(plan(made), "--videos", str(pictures / "p"))
    assert (items[0].image, items[1].video) == ("../q/c.jpg", "../p/v.mp4")
    _, items, _ = load(plan(made))
    assert (items[0].image, items[1].video) == ("../q/c.jpg", None)


@pytest.mark.parametrize("name", sorted(set(SOURCES) - OWN - {"cclm"}))
def test_every_public_set_says_which_picture_an_item_shows(name):
    """Without it `--against` finds no picture in a manifest of that set (cclm numbers its rows)."""
    module = importlib.import_module(SOURCES[name])
    assert hasattr(module, "picture_key") or hasattr(module, "key_of_title")
