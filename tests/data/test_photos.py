import argparse
import gzip
import io
import json
import os
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xlcm.data.aside import aside
from xlcm.data.check import check_manifest
from xlcm.data.dataset import ManifestDataset, feature_key
from xlcm.data.feature_formats import open_features
from xlcm.data.manifest import BOM, DataError, read_manifest
from xlcm.data.sources import SOURCES, photos
from xlcm.data.sources.photos import extract
from xlcm.types import Item

SPLIT_OF = {"a.jpg": "train", "b.jpg": "train", "c.jpg": "val", "d.jpg": "test", "e.jpg": "none"}


def jpeg(colour: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(out, "JPEG")
    return out.getvalue()


def tar(path: Path, files: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    return path


@pytest.fixture
def root(tmp_path) -> Path:
    """A folder in the layout of the real one, five pictures large."""
    folder = tmp_path / "photos"
    (folder / "captions").mkdir(parents=True)
    colours = ("red", "green", "blue", "white", "black")
    tar(folder / "images.tar", {n: jpeg(c) for n, c in zip(SPLIT_OF, colours)})
    rows = (json.dumps({"image": i, "split": s}) for i, s in SPLIT_OF.items())
    (folder / "images.jsonl").write_text("\n".join(rows) + "\n")
    captions(folder, "en.human", [(i, n, f"{i} {n}") for i in SPLIT_OF for n in range(2)])
    captions(folder, "zh.mt_baidu", [(i, n, "狗") for i in SPLIT_OF for n in range(2)])
    captions(folder, "zh.human_translation", [("d.jpg", 1, "猫")])
    header = "file\tlang\tkind\tcaptions\timages\ttrain_images\tval_images\ttest_images\tnote\n"
    (folder / "sources.tsv").write_text(
        header
        + "en.human.tsv.gz\ten\thuman\t10\t5\t2\t1\t1\t\n"
        + "zh.mt_baidu.tsv.gz\tzh\tmachine\t10\t5\t2\t1\t1\t\n"
        + "zh.human_translation.tsv.gz\tzh\thuman-translation\t1\t1\t0\t0\t1\t\n"
    )
    return folder


def captions(folder: Path, name: str, rows: list[tuple[str, int, str]]) -> None:
    text = "image\tidx\ttext\n" + "".join(f"{i}\t{n}\t{t}\n" for i, n, t in rows)
    (folder / "captions" / f"{name}.tsv.gz").write_bytes(gzip.compress(text.encode()))


ALL = ["en.human", "zh.mt_baidu", "zh.human_translation"]


def load(root: Path, out: Path, *options: str) -> tuple[int, dict[str, Item], dict]:
    """Return the exit code, the items by id, and the report."""
    parser = argparse.ArgumentParser()
    photos.add_arguments(parser)
    code = photos.run(parser.parse_args(["--root", str(root), "--out", str(out), *options]))
    report = json.loads(Path(f"{out}.report.json").read_text())
    return code, {item.id: item for item in read_manifest(out)}, report


def test_the_manifest_follows_the_published_splits_and_links_translations(root, tmp_path):
    out = tmp_path / "out" / "manifest.jsonl"
    code, items, report = load(root, out, "--captions", *ALL)
    assert code == 0
    assert {i: item.split for i, item in items.items()} == {
        "a": "train",
        "b": "train",
        "c": "val",
        "d": "test",
    }
    assert [c.id for c in items["a"].captions] == [
        "a#en.human.0", "a#en.human.1", "a#zh.mt_baidu.0", "a#zh.mt_baidu.1",
    ]  # fmt: skip
    machine = items["a"].captions[3]
    assert (machine.lang, machine.origin, machine.of, machine.engine) == (
        "zh", "mt", "a#en.human.1", "baidu-2016",
    )  # fmt: skip
    person = items["d"].captions[-1]
    assert (person.origin, person.of, person.engine) == ("human", "d#en.human.1", None)
    assert report["as_published"]
    assert report["splits"]["test"]["counts"] == [
        {"what": what, "read": n, "published": n}
        for what, n in (("items", 1), ("en human", 2), ("zh human", 1), ("zh mt", 2))
    ]
    assert check_manifest(out).counts == {}


def test_without_the_source_captions_nothing_points_nowhere(root, tmp_path):
    _, items, _ = load(root, tmp_path / "m.jsonl", "--captions", "zh.mt_baidu")
    captions = [c for item in items.values() for c in item.captions]
    assert len(captions) == 8
    assert all(c.of is None for c in captions)


def test_unused_pictures_come_only_when_asked_for(root, tmp_path):
    given = ("--captions", "en.human", "--splits", "none")
    code, items, _ = load(root, tmp_path / "m.jsonl", *given)
    assert (code, list(items)) == (0, ["e"])
    assert [p.name for p in (tmp_path / "images").iterdir()] == ["e.jpg"]


def test_pictures_load_and_a_second_import_unpacks_nothing(root, tmp_path):
    load(root, tmp_path / "m.jsonl", "--captions", "en.human")
    data = ManifestDataset(path=str(tmp_path / "m.jsonl"), split="train")
    assert data.load_image(0).getpixel((8, 8))[0] > 240
    assert extract(root / "images.tar", tmp_path / "images", ["a.jpg", "b.jpg"]) == 0
    (tmp_path / "images" / "b.jpg").write_bytes(b"half")
    name = aside(tmp_path / "images" / "b.jpg").name.removesuffix(str(os.getpid()))
    left = tmp_path / "images" / f"{name}{2**22}"  # of a killed process
    left.write_bytes(b"half")
    assert extract(root / "images.tar", tmp_path / "images", ["a.jpg", "b.jpg"]) == 1
    assert not left.exists()


def test_pictures_that_lie_elsewhere_are_not_unpacked(root, tmp_path):
    extract(root / "images.tar", tmp_path / "mine", list(SPLIT_OF))
    (root / "images.tar").unlink()
    given = ("--captions", "en.human", "--images", str(tmp_path / "mine"))
    _, items, _ = load(root, tmp_path / "m.jsonl", *given)
    assert items["a"].image == "mine/a.jpg"
    assert not (tmp_path / "images").exists()


def test_pictures_that_the_tar_lacks_stop_the_import_or_are_dropped(root, tmp_path):
    tar(root / "images.tar", {n: jpeg("red") for n in SPLIT_OF if n != "b.jpg"})
    given = ("--captions", "en.human")
    with pytest.raises(
        DataError, match=r"images\.tar: 1 pictures are missing, such as b\.jpg; `--mi"
    ):
        load(root, tmp_path / "m.jsonl", *given)
    assert not (tmp_path / "m.jsonl").exists()
    _, items, _ = load(root, tmp_path / "m.jsonl", *given, "--missing-images", "drop")
    assert list(items) == ["a", "c", "d"]


def test_counts_that_differ_from_the_published_ones_show_and_fail(root, tmp_path, capsys):
    captions(root, "en.human", [(i, 0, "one is lost") for i in SPLIT_OF])
    assert load(root, tmp_path / "m.jsonl", "--captions", "all")[0] == 1
    shown = capsys.readouterr().out
    assert "expected 4" in shown
    assert "as published" in shown


def test_captions_without_text_are_left_out_and_told(root, tmp_path):
    rows = [(i, n, " " if (i, n) == ("b.jpg", 1) else "x") for i in SPLIT_OF for n in range(2)]
    captions(root, "en.human", rows)
    _, items, report = load(root, tmp_path / "m.jsonl", "--captions", "en.human")
    assert len(items["b"].captions) == 1
    file = root / "captions" / "en.human.tsv.gz"
    assert report["left_out"] == {"captions without text": {"count": 1, "first": [f"{file}:5"]}}


def test_pictures_are_known_to_other_sets_and_by_their_files_to_features(root, tmp_path):
    np.savez(tmp_path / "f.npz", feature=np.ones((5, 2)), image=np.array(list(SPLIT_OF)))
    _, items, _ = load(root, tmp_path / "m.jsonl", "--captions", "en.human")
    store = open_features(tmp_path / "f.npz")
    assert all(feature_key(item) in store for item in items.values())
    other = tmp_path / "other.jsonl"
    against = ("--captions", "en.human", "--splits", "test", "--against", str(tmp_path / "m.jsonl"))
    _, _, report = load(root, other, *against)
    assert [(r["split"], r["first"]) for r in report["against"]] == [("test", ["flickr:d"])]


def test_what_is_missing_is_listed_with_where_to_get_it(root, tmp_path):
    for name in ("sources.tsv", "images.tar", "captions/en.human.tsv.gz"):
        whole = (root / name).read_bytes()
        (root / name).unlink()
        with pytest.raises(DataError, match=rf"(?s){name}: .*Get it by hand: pictures: Flickr8k"):
            load(root, tmp_path / "m.jsonl", "--captions", "en.human")
        (root / name).write_bytes(whole)


def test_nothing_is_unpacked_outside_the_folder(tmp_path):
    bad = {"../evil.jpg": b"x", "/evil.jpg": b"x", "sub/evil.jpg": b"x", "evil.jpg": b"x"}
    archive = tar(tmp_path / "t.tar", {**bad, "a.jpg": jpeg("red")}, {"b.jpg": "/etc/passwd"})
    assert extract(archive, tmp_path / "in" / "images", ["a.jpg"]) == 1
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.jpg", "images", "in", "t.tar"]
    with pytest.raises(DataError, match=r"'../evil.jpg' is not a bare file name"):
        extract(archive, tmp_path / "images", ["../evil.jpg"])
    with pytest.raises(DataError, match=r"1 pictures are missing, such as b\.jpg"):
        extract(archive, tmp_path / "images", ["b.jpg"])


def test_damaged_sources_are_named(root, tmp_path):
    out = tmp_path / "m.jsonl"
    with pytest.raises(DataError, match=r"no caption file 'en.humna'; did you mean 'en.human'"):
        load(root, out, "--captions", "en.humna")
    whole = (root / "captions" / "en.human.tsv.gz").read_bytes()
    (root / "captions" / "en.human.tsv.gz").write_bytes(whole[:-12])
    with pytest.raises(DataError, match=r"en\.human\.tsv\.gz: the file is cut off"):
        load(root, out, "--captions", "en.human")
    captions(root, "en.human", [("a.jpg", 0, "x"), ("z.jpg", 0, "x")])
    with pytest.raises(DataError, match=r"en\.human\.tsv\.gz:3: unknown image 'z\.jpg'"):
        load(root, out, "--captions", "en.human")
    captions(root, "en.human", [("a.jpg", 0, "x\ty")])
    with pytest.raises(DataError, match=r"en\.human\.tsv\.gz:2: 4 columns, expected 3"):
        load(root, out, "--captions", "en.human")
    data = (root / "images.tar").read_bytes()
    (root / "images.tar").write_bytes(data[:5000])
    captions(root, "en.human", [("a.jpg", 0, "x")])
    with pytest.raises(DataError, match=r"images\.tar: "):
        load(root, out, "--captions", "en.human")
    assert not out.exists()


def test_a_wrong_encoding_number_or_header_and_a_picture_listed_twice_are_named(root, tmp_path):
    file = root / "captions" / "en.human.tsv.gz"
    lines = gzip.decompress(file.read_bytes()).splitlines(keepends=True)

    def refused(said, changed):
        file.write_bytes(gzip.compress(b"".join(changed)))
        with pytest.raises(DataError, match=said) as caught:
            load(root, tmp_path / "m.jsonl", "--captions", "en.human")
        assert len(str(caught.value)) < 300 + len(str(root))

    refused(r"gz:4: not UTF-8 at byte 9 .*iconv", [*lines[:3], b"b.jpg\t0\tb\xe9\n", *lines[4:]])
    refused(r"gz:4: 'idx' must be a number", [*lines[:3], b"b.jpg\t-\tb\n", *lines[4:]])
    refused(r"gz:1: the header has no 'idx'; it has image, n", [b"image\tn\ttext\n", *lines[1:]])
    with open(root / "images.jsonl", "a") as images:
        images.write('{"image": "b.jpg", "split": "val"}\n')
    refused(r"images.jsonl:6: picture 'b\.jpg' is in line 2 before", lines)


def test_a_list_of_sources_that_is_empty_or_doubled_is_named_and_a_packed_one_read(root, tmp_path):
    path = root / "sources.tsv"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for data, said in (
        (b"", r"sources.tsv: there are no rows"),
        (lines[0], r"sources.tsv: there are no rows"),
        (whole + lines[1], r"sources.tsv:5: en.human.tsv.gz was listed before"),
    ):
        path.write_bytes(data)
        with pytest.raises(DataError, match=said):
            load(root, tmp_path / "m.jsonl", "--captions", "en.human")
    path.unlink()
    path.with_name("sources.tsv.gz").write_bytes(gzip.compress(whole))
    assert load(root, tmp_path / "m.jsonl", "--captions", "en.human")[0] == 0


def test_windows_line_ends_and_a_byte_order_mark_change_nothing(root, tmp_path):
    load(root, tmp_path / "a" / "m.jsonl", "--captions", "en.human")
    for file in (root / "captions" / "en.human.tsv.gz", root / "sources.tsv"):
        data = file.read_bytes()
        packed = file.suffix == ".gz"
        data = (gzip.decompress(data) if packed else data).replace(b"\n", b"\r\n")
        file.write_bytes(gzip.compress(BOM + data) if packed else BOM + data)
    load(root, tmp_path / "b" / "m.jsonl", "--captions", "en.human")
    assert (tmp_path / "b" / "m.jsonl").read_bytes() == (tmp_path / "a" / "m.jsonl").read_bytes()


def test_every_source_is_a_module_with_the_two_functions():
    import importlib

    assert SOURCES
    for module in SOURCES.values():
        source = importlib.import_module(module)
        assert callable(source.add_arguments)
        assert callable(source.run)
        assert source.__doc__


def test_the_real_photographs_have_the_published_counts(shared, tmp_path):
    root, path = shared / "data" / "photos", str(tmp_path / "m.jsonl")
    code, items, _ = load(root, tmp_path / "m.jsonl", "--captions", "all")
    assert code == 0
    made = [c for item in items.values() for c in item.captions]
    linked = Counter(c.id.partition("#")[2].rpartition(".")[0] for c in made if c.of)
    assert linked["zh.mt_google"] == 40_000
    assert linked["hi.mt"] == 7_999
    assert linked["de.multi30k_task1"] == 7_391
    assert linked["ar.mt_nllb"] == 7_391
    assert linked["zh.human_translation"] == 5_000
    assert linked["de.multi30k_task2"] == 0
    features = root / "features_mobilenetv2_100_128px.npz"
    data = ManifestDataset(path=path, split="test", langs=["de", "hi"], features=str(features))
    assert len(data) == 1000
    assert data.load_image(999).size == (128, 128)
    assert all(feature_key(item) in data.store for item in items.values())
    assert check_manifest(path, images=False).faults == 0
