import json
from base64 import b64encode, urlsafe_b64encode
from pathlib import Path

import pytest
from faults import bad_encoding, bom, crlf, packed, truncated
from test_csv import picture

from xlcm.cli import main
from xlcm.data.check import check_manifest
from xlcm.data.manifest import DataError, ManifestWriter, read_manifest
from xlcm.data.sources import pictures
from xlcm.data.sources.base import Expected, Plan
from xlcm.data.sources.chinese_clip import KNOWN, Packing, key_of_title, read_pictures
from xlcm.data.sources.multi30k import picture_key as multi30k_key
from xlcm.data.sources.pictures import PictureFolder, decode_base64, safe_name
from xlcm.data.sources.report import overlaps
from xlcm.types import Item

PICTURES = {"train": [10, 11], "valid": [20, 21], "test": [30]}
TEXTS = {
    "train": [(1, "红色连衣裙", [10]), (2, "一只猫", [10, 11])],
    "valid": [(3, "湖边的船", [21])],
    "test": [(4, "一只狗", [])],
}


def put(root: Path, *, muge: bool = False) -> Path:
    """Write the packing of Chinese-CLIP, or as MUGE is given out."""
    root.mkdir()
    begin, rest = ("MR_", "queries") if muge else ("", "texts")
    keys = ("query_id", "query_text", "item_ids") if muge else ("text_id", "text", "image_ids")
    for split, numbers in PICTURES.items():
        encode = b64encode if split == "train" else urlsafe_b64encode
        rows = [f"{n}\t{encode(picture()).decode()}\n" for n in numbers]
        (root / f"{begin}{split}_imgs.tsv").write_text("".join(rows))
        texts = [dict(zip(keys, row)) for row in TEXTS[split]]
        if muge and split == "test":
            texts = [{k: v for k, v in row.items() if k != "item_ids"} for row in texts]
        (root / f"{begin}{split}_{rest}.jsonl").write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in texts), "utf-8"
        )
    return root


def command(root: Path, *words: str) -> int:
    where = ["--root", str(root), "--out", str(root.parent / "m.jsonl")]
    return main(["data", "import", "chinese-clip", *where, *words])


def items(root: Path):
    return {item.id: item for item in read_manifest(root.parent / "m.jsonl")}


@pytest.mark.parametrize("muge", [False, True])
def test_texts_stand_at_each_of_their_pictures_in_either_naming(tmp_path, capsys, muge):
    root = put(tmp_path / "data", muge=muge)
    assert command(root) == 0
    found = items(root)
    assert {i: (item.split, item.image) for i, item in found.items()} == {
        "10": ("train", "m_images/train/10.jpg"), "11": ("train", "m_images/train/11.jpg"),
        "20": ("val", "m_images/valid/20.jpg"), "21": ("val", "m_images/valid/21.jpg"),
        "30": ("test", "m_images/test/30.jpg"),
    }  # fmt: skip
    assert [[(c.id, c.text) for c in item.captions] for item in found.values()] == [
        [("10#zh.1", "红色连衣裙"), ("10#zh.2", "一只猫")], [("11#zh.2", "一只猫")],
        [], [("21#zh.3", "湖边的船")], [],
    ]  # fmt: skip
    said = capsys.readouterr().out
    assert "1 texts that name no picture (hidden labels) were left out" in said
    assert check_manifest(tmp_path / "m.jsonl").faults == 0


def test_machine_translated_splits_are_marked_and_published_counts_are_compared(tmp_path, capsys):
    root = put(tmp_path / "data")
    assert command(root, "--dataset", "flickr30k-cn", "--splits", "train", "valid") == 1
    assert {(c.origin, c.engine) for c in items(root)["10"].captions} == {("mt", "baidu")}
    assert "29,783" in capsys.readouterr().out


def test_as_many_as_published_ends_with_0(tmp_path, monkeypatch):
    known = {"train": Expected(2, {"zh": 3}), "val": Expected(2, {"zh": 1}), "test": Expected(1)}
    monkeypatch.setitem(KNOWN["coco-cn"].__dict__, "expected", known)
    assert command(put(tmp_path / "data"), "--dataset", "coco-cn") == 0


def test_a_second_import_writes_no_picture_again(tmp_path, capsys):
    root = put(tmp_path / "data")
    command(root)
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "m_images").rglob("*.jpg")}
    (tmp_path / "m_images" / "train" / "10.jpg").write_bytes(b"half a pic")
    capsys.readouterr()
    assert command(root) == 0
    assert "1 pictures written, 4 were there" in capsys.readouterr().out
    changed = [p.name for p, t in times.items() if p.stat().st_mtime_ns != t]
    assert changed == ["10.jpg"]


def test_an_import_that_was_stopped_goes_on_where_it_was(tmp_path, capsys, monkeypatch):
    root = put(tmp_path / "data")
    written, real = [], pictures.os.replace

    def stop_at_the_third(aside, target):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(target)
        real(aside, target)

    with monkeypatch.context() as patch:
        patch.setattr("xlcm.data.sources.pictures.os.replace", stop_at_the_third)
        assert command(root) == 130
    assert not (tmp_path / "m.jsonl").exists()
    assert len(list((tmp_path / "m_images").rglob("*.*"))) == 2  # nothing half, nothing aside
    capsys.readouterr()
    assert command(root) == 0
    assert "3 pictures written, 2 were there" in capsys.readouterr().out


def test_pictures_that_are_files_already_or_not_wanted_are_not_unpacked(tmp_path):
    root = put(tmp_path / "data")
    assert command(root, "--no-pictures") == 0
    assert {item.image for item in items(root).values()} == {None}
    assert not (tmp_path / "m_images").exists()
    (tmp_path / "files").mkdir()
    for number in (10, 11, 20, 21, 30):
        (tmp_path / "files" / f"{number}.jpg").write_bytes(picture())
    assert command(root, "--images", str(tmp_path / "files")) == 0
    assert items(root)["20"].image == "files/20.jpg"


def test_a_picture_of_two_splits_is_told_as_a_leak(tmp_path, capsys):
    root = put(tmp_path / "data")
    data = b64encode(picture()).decode()
    (root / "test_imgs.tsv").write_text(f"10\t{data}\n30\t{data}\n")
    assert command(root) == 1
    assert list(items(root)) == ["10", "11", "20", "21", "10@test", "30"]


@pytest.mark.parametrize("harmless", [crlf, bom, packed])
def test_line_ends_marks_and_gzip_of_the_texts_change_nothing(tmp_path, harmless):
    root = put(tmp_path / "data")
    command(root)
    before = (tmp_path / "m.jsonl").read_bytes()
    harmless(root / "train_texts.jsonl")
    assert command(root) == 0
    assert (tmp_path / "m.jsonl").read_bytes() == before


def test_missing_files_are_named_with_where_to_get_them(tmp_path, capsys):
    root = put(tmp_path / "data")
    (root / "valid_texts.jsonl").unlink()
    assert command(root, "--dataset", "muge") == 2
    said = capsys.readouterr().err
    assert "valid_texts.jsonl" in said
    assert "tianchi.aliyun.com" in said
    assert not (tmp_path / "m_images").exists()
    assert command(root, "--splits", "train") == 0


def test_faults_are_named_with_file_and_line(tmp_path, capsys):
    def fails(change) -> str:
        root = put(tmp_path / f"data{len(list(tmp_path.iterdir()))}")
        change(root)
        assert command(root) == 2
        return capsys.readouterr().err

    assert "train_imgs.tsv:2: picture 'train/11'" in fails(
        lambda root: truncated(root / "train_imgs.tsv", 300)
    )
    assert "train_imgs.tsv:1: expected <id><tab><base64>" in fails(
        lambda root: (root / "train_imgs.tsv").write_text("10 AAAA\n")
    )
    assert "valid_imgs.tsv:1: not UTF-8" in fails(
        lambda root: bad_encoding(root / "valid_imgs.tsv")
    )
    assert "test_texts.jsonl:1: not JSON" in fails(
        lambda root: truncated(root / "test_texts.jsonl")
    )
    assert "belongs to picture 99, which train_imgs.tsv doesn't have" in fails(
        lambda root: (root / "train_texts.jsonl").write_text(
            '{"text_id": 1, "text": "a", "image_ids": [99]}\n'
        )
    )
    assert "train_texts.jsonl:1: expected text_id, text, image_ids or" in fails(
        lambda root: (root / "train_texts.jsonl").write_text('{"id": 1}\n')
    )
    row = '{"text_id": 1, "text": "a", "image_ids": [10]}\n'
    assert "train_texts.jsonl:2: text id 1 is also at line 1" in fails(
        lambda root: (root / "train_texts.jsonl").write_text(row + row)
    )


def test_a_picture_listed_twice_is_refused(tmp_path):
    (tmp_path / "p.tsv").write_text("1\tAA\n\n1\tAA\n")
    with pytest.raises(DataError, match=r"p\.tsv:3: picture 1 is also at line 1"):
        list(read_pictures(tmp_path / "p.tsv"))


def test_bad_pictures_are_dropped_with_their_texts_when_asked_for(tmp_path, capsys):
    root = put(tmp_path / "data")
    rows = f"10\t{b64encode(picture()).decode()}\n11\tnot base64!\n"
    (root / "train_imgs.tsv").write_text(rows)
    assert command(root, "--bad-pictures", "drop") == 0
    assert "11" not in items(root)
    assert "train_imgs.tsv:2: picture 'train/11': no base64" in capsys.readouterr().out


def test_base64_is_read_with_either_alphabet_without_padding_and_as_data_url():
    data = bytes(range(250, 256)) * 3 + b"x"
    for text in (b64encode(data), urlsafe_b64encode(data), b64encode(data).rstrip(b"=")):
        assert decode_base64(text.decode()) == data
        assert decode_base64("data:image/png;base64," + text.decode() + "\n") == data


def test_names_of_files_stay_inside_their_folder(tmp_path):
    names = [safe_name(i) for i in ("../x", "/etc/x", "a/b", "a b", ".hidden", "", "ü", "x" * 300)]
    assert len(set(names)) == len(names)
    folder = PictureFolder(tmp_path / "p")
    for name in names:
        folder.save(name, picture(), "here")
    assert len([p for p in (tmp_path / "p").iterdir() if p.is_file()]) == len(names)


def test_nothing_is_left_of_a_picture_that_could_not_be_written(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("xlcm.data.sources.pictures.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        PictureFolder(tmp_path / "p").save("a", picture(), "here")
    assert list((tmp_path / "p").iterdir()) == []


def test_every_known_set_names_its_terms():
    for name, known in KNOWN.items():
        plan = Packing(Path("."), name).plan()
        assert plan.get == known.get
        assert plan.terms
        assert plan.cite


def other(root: Path, source: str, names: list[str]) -> str:
    """Write a manifest with a report of another source; return its path."""
    path = root.parent / "other.jsonl"
    with ManifestWriter(path) as writer:
        for name in names:
            writer.write(Item(name, "train", ()))
    report = {"source": source, "title": "Multi30K task 1"}
    path.with_name("other.jsonl.report.json").write_text(json.dumps(report))
    return str(path)


def against(root: Path) -> list[str]:
    rows = json.loads((root.parent / "m.jsonl.report.json").read_text())["against"]
    return sorted(key for row in rows for key in row["first"])


def test_pictures_of_flickr30k_are_found_in_sets_that_share_them_and_muges_are_not(tmp_path):
    root = put(tmp_path / "data")
    path = other(root, "multi30k", ["10", "30", "99"])
    command(root, "--dataset", "flickr30k-cn", "--against", path)
    assert against(root) == ["flickr:10", "flickr:30"]
    (tmp_path / "m.jsonl").rename(tmp_path / "cn.jsonl")
    (tmp_path / "m.jsonl.report.json").rename(tmp_path / "cn.jsonl.report.json")
    for dataset, found in (("flickr30k-cn", 5), ("muge", 0), ("coco-cn", 0)):
        command(root, "--dataset", dataset, "--against", str(tmp_path / "cn.jsonl"))
        assert len(against(root)) == found, dataset
    key = key_of_title(KNOWN["coco-cn"].title)
    assert key(Item("COCO_val2014_000000000012@val", "val", ())) == "coco:12"
    assert key(Item("12", "val", ())) == "coco-cn:12"


def test_a_manifest_of_this_packing_is_understood_by_other_sources(tmp_path):
    root = put(tmp_path / "data")
    command(root, "--dataset", "flickr30k-cn")
    plan = Plan("multi30k", "x", "", "", "", (), lambda: iter(()), key=multi30k_key)
    keys = overlaps(plan, [str(tmp_path / "m.jsonl")])[str(tmp_path / "m.jsonl")]
    assert len(keys["train"]) == 2
    assert all(key in keys["train"] for key in ("flickr:10", "flickr:11"))
