"""Texts with several right pictures, and pictures in an LMDB, in Chinese-CLIP's packing."""

import json
import os
import pickle
import stat
from base64 import urlsafe_b64encode
from pathlib import Path

import pytest
from test_csv import picture

from xlcm.cli import main
from xlcm.data.check import check_manifest
from xlcm.data.manifest import DataError, read_manifest
from xlcm.data.sources import chinese_clip_lmdb
from xlcm.data.sources.chinese_clip_lmdb import read_lmdb
from xlcm.types import Item

PICTURES = {"train": [10, 11, 9], "valid": [20, 21, 22], "test": [30]}
TEXTS = {
    "train": [(1, "红色连衣裙", [10, 11])],
    "valid": [(2, "湖边的船", [22, 20, 21]), (3, "一只猫", [20]), (4, "一只狗", [21, 22, 21])],
    "test": [(5, "一只鸟", [])],
}


def put_texts(root: Path, **changed: list) -> None:
    for split, rows in {**TEXTS, **changed}.items():
        keys = ("text_id", "text", "image_ids")
        lines = [json.dumps(dict(zip(keys, row)), ensure_ascii=False) + "\n" for row in rows]
        (root / f"{split}_texts.jsonl").write_text("".join(lines), "utf-8")


def put(root: Path, **changed: list) -> Path:
    root.mkdir()
    put_texts(root, **changed)
    for split, numbers in PICTURES.items():
        rows = [f"{n}\t{urlsafe_b64encode(picture()).decode()}\n" for n in numbers]
        (root / f"{split}_imgs.tsv").write_text("".join(rows))
    return root


def write_lmdb(folder: Path, values: dict[bytes, bytes], size: int = 1 << 30) -> Path:
    lmdb = pytest.importorskip("lmdb")
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=size) as env, env.begin(write=True) as writing:
        for key, value in values.items():
            writing.put(key, value)
    return folder


def encoded(numbers: list[int]) -> dict[bytes, bytes]:
    values = {str(n).encode(): urlsafe_b64encode(picture()) for n in numbers}
    return {**values, b"num_images": str(len(numbers)).encode()}


def put_lmdb(root: Path) -> Path:
    """Write what Chinese-CLIP's preparation writes beside the texts, pickled pairs included."""
    root.mkdir()
    put_texts(root)
    for split, numbers in PICTURES.items():
        write_lmdb(root / "lmdb" / split / "imgs", encoded(numbers), size=1 << 40)
        pairs = [(i, number, text) for number, text, images in TEXTS[split] for i in images]
        values = {str(n).encode(): pickle.dumps(pair) for n, pair in enumerate(pairs)}
        write_lmdb(root / "lmdb" / split / "pairs",
                   {**values, b"num_samples": str(len(pairs)).encode()})  # fmt: skip
    return root


def command(root: Path, *words: str) -> int:
    where = ["--root", str(root), "--out", str(root.parent / "m.jsonl")]
    return main(["data", "import", "chinese-clip", *where, *words])


def items(root: Path) -> dict[str, Item]:
    return {item.id: item for item in read_manifest(root.parent / "m.jsonl")}


def captions(root: Path) -> dict[str, list]:
    return {i: [(c.id, c.relevant) for c in item.captions] for i, item in items(root).items()}


# -- several right pictures ----------------------------------------------------------------------


def test_a_text_to_be_asked_names_its_further_pictures_and_one_to_train_on_is_repeated(tmp_path):
    root = put(tmp_path / "data")
    assert command(root) == 0
    assert captions(root) == {
        "10": [("10#zh.1", ())], "11": [("11#zh.1", ())], "9": [],
        "20": [("20#zh.3", ())], "21": [("21#zh.4", ("22",))], "22": [("22#zh.2", ("20", "21"))],
        "30": [],
    }  # fmt: skip
    assert check_manifest(tmp_path / "m.jsonl").faults == 0


def test_further_pictures_are_called_as_their_items_are(tmp_path):
    """Picture 10 of train comes again in valid, as a leak."""
    root = put(tmp_path / "data", valid=[(2, "船", [20, 10])])
    with (root / "valid_imgs.tsv").open("a") as out:
        out.write(f"10\t{urlsafe_b64encode(picture()).decode()}\n")
    assert command(root) == 1
    assert captions(root)["20"] == [("20#zh.2", ("10@val",))]
    assert check_manifest(tmp_path / "m.jsonl").counts["relevant_nowhere"] == 0


@pytest.mark.parametrize("way", ["bad", "missing"])
def test_a_text_keeps_the_right_pictures_that_are_there(tmp_path, capsys, way):
    root = put(tmp_path / "data", valid=[*TEXTS["valid"], (6, "车", [22])])
    if way == "bad":
        rows = (root / "valid_imgs.tsv").read_text().splitlines()
        (root / "valid_imgs.tsv").write_text("\n".join([*rows[:2], "22\tnot base64!"]))
        assert command(root, "--bad-pictures", "drop") == 0
    else:
        (tmp_path / "files").mkdir()
        for number in (10, 11, 9, 20, 21, 30):
            (tmp_path / "files" / f"{number}.jpg").write_bytes(picture())
        options = ["--images", str(tmp_path / "files"), "--missing-images"]
        assert command(root, *options, "error") == 2
        assert command(root, *options, "drop") == 0
    found = captions(root)
    assert {name: found.get(name) for name in ("20", "21", "22")} == {
        "20": [("20#zh.2", ("21",)), ("20#zh.3", ())], "21": [("21#zh.4", ())], "22": None,
    }  # fmt: skip
    assert "1 texts whose pictures can't be had were left out" in capsys.readouterr().out
    assert check_manifest(tmp_path / "m.jsonl").faults == 0


def test_a_further_picture_that_the_file_lacks_is_named(tmp_path, capsys):
    root = put(tmp_path / "data", valid=[(2, "船", [20, 99])])
    assert command(root) == 2
    said = capsys.readouterr().err
    assert "valid_texts.jsonl: text 2 belongs to picture 99, which valid_imgs.tsv doesn't" in said
    assert not (tmp_path / "m.jsonl").exists()


# -- pictures in an LMDB -------------------------------------------------------------------------


def test_pictures_are_read_from_an_lmdb_and_texts_from_the_lines_beside_it(tmp_path, capsys):
    plain, packed = put(tmp_path / "data"), put_lmdb(tmp_path / "packed")
    assert command(plain) == 0
    expected, files = items(plain), sorted(p.name for p in (tmp_path / "m_images").rglob("*.jpg"))
    for path in (tmp_path / "m_images").rglob("*.jpg"):
        path.unlink()
    assert command(packed) == 0
    assert list(items(packed)) == ["10", "11", "9", "20", "21", "22", "30"]  # keys, as characters
    assert captions(packed) == {i: [(c.id, c.relevant) for c in item.captions]
                                for i, item in expected.items()}  # fmt: skip
    assert sorted(p.name for p in (tmp_path / "m_images").rglob("*.jpg")) == files
    assert "lmdb/train/imgs" in capsys.readouterr().out
    assert check_manifest(tmp_path / "m.jsonl").faults == 0


def test_nothing_is_unpickled_and_lost_texts_are_asked_for(tmp_path, capsys, monkeypatch):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harmed"),)

    root = put_lmdb(tmp_path / "data")
    (root / "valid_texts.jsonl").unlink()
    for options in ([], ["--no-pictures"]):
        assert command(root, *options) == 2
        said = capsys.readouterr().err
        assert "valid_texts.jsonl" in said
        assert "lmdb/valid/pairs: pickled texts, and reading a pickle runs code; the .jsonl" in said
    harm = {b"1": pickle.dumps(Harm()), b"num_images": b"1"}
    with pytest.raises(DataError, match=r"imgs: key 1: the value is a pickle, and reading one"):
        list(read_lmdb(write_lmdb(tmp_path / "imgs", harm)))
    assert not (tmp_path / "harmed").exists()


def test_an_import_from_an_lmdb_goes_on_where_it_was_stopped(tmp_path, capsys, monkeypatch):
    root = put_lmdb(tmp_path / "data")
    written, real = [], os.replace

    def stop_at_the_fourth(aside, target):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(target)
        real(aside, target)

    with monkeypatch.context() as patch:
        patch.setattr("xlcm.data.sources.pictures.os.replace", stop_at_the_fourth)
        assert command(root) == 130
    assert not (tmp_path / "m.jsonl").exists()
    assert len([p for p in (tmp_path / "m_images").rglob("*") if p.is_file()]) == 3
    capsys.readouterr()
    assert command(root) == 0
    assert "4 pictures written, 3 were there" in capsys.readouterr().out


def test_a_packing_that_can_only_be_read_is_read(tmp_path):
    root = put_lmdb(tmp_path / "data")
    for path in (root / "lmdb").rglob("*"):
        path.chmod(stat.S_IREAD | (stat.S_IEXEC if path.is_dir() else 0))
    before = sorted(p for p in root.rglob("*"))
    assert command(root, "--no-pictures") == 0
    assert sorted(p for p in root.rglob("*")) == before


def test_what_is_wrong_with_an_lmdb_is_said(tmp_path):
    def said(name: str, values: dict[bytes, bytes]) -> str:
        folder = write_lmdb(tmp_path / name, values)
        with pytest.raises(DataError) as error:
            list(read_lmdb(folder))
        return str(error.value)

    good = encoded([1, 2])
    assert "2 pictures, and 'num_images' says b'3'" in said("a", {**good, b"num_images": b"3"})
    stopped = {key: value for key, value in good.items() if key != b"num_images"}
    assert "no key 'num_images', which is written last" in said("b", stopped)
    assert r"key b'\xe9' is not UTF-8" in said("c", {b"\xe9": b"AA", b"num_images": b"1"})
    assert "key 1: the value is no base64" in said("d", {b"1": b"\xff\xd8", b"num_images": b"1"})


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_a_cut_off_lmdb_is_told_and_does_not_kill_the_process(tmp_path, share):
    folder = write_lmdb(tmp_path / "imgs", {**encoded(list(range(200)))})
    file = folder / "data.mdb"
    os.truncate(file, int(file.stat().st_size * share))
    with pytest.raises(DataError, match=r"cut off, .* bytes of|can't be opened"):
        list(read_lmdb(folder))
    file.unlink()
    with pytest.raises(DataError, match=r"data\.mdb: no such file; copy it again"):
        list(read_lmdb(folder))
    file.write_bytes(b"no LMDB" * 4000)
    with pytest.raises(DataError, match="can't be opened"):
        list(read_lmdb(folder))


def test_pages_that_were_overwritten_are_told(tmp_path):
    folder = write_lmdb(tmp_path / "imgs", encoded(list(range(300))))
    file = folder / "data.mdb"
    data = bytearray(file.read_bytes())
    data[3 * 4096 :] = b"\xa5" * (len(data) - 3 * 4096)
    file.write_bytes(data)
    with pytest.raises(DataError, match=r"imgs: damaged \(.*\); copy it again"):
        list(read_lmdb(folder))


def test_without_lmdb_the_extra_is_named(tmp_path, monkeypatch):
    folder = write_lmdb(tmp_path / "imgs", encoded([1]))
    monkeypatch.setitem(__import__("sys").modules, "lmdb", None)
    with pytest.raises(ImportError, match=r"pip install 'xlcm\[features\]'"):
        list(chinese_clip_lmdb.read_lmdb(folder))
