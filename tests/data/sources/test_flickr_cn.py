import argparse
import csv
import gzip
import json
from pathlib import Path

import pytest
from faults import bad_encoding, bom, crlf, line_less, line_more, line_set, packed, truncated

from xlcm.data.check import check_manifest
from xlcm.data.manifest import DataError, read_manifest
from xlcm.data.sources import flickr8k_cn, flickr30k_cn, multi30k
from xlcm.types import Caption, Item

EIGHT = {"train": ["1_a", "2_b"], "val": ["3_c"], "test": ["4_d"]}
COUNTS = {split: len(images) for split, images in EIGHT.items()}


def write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def load(module, root: Path, *options: str) -> tuple[int, dict[str, Item]]:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    out = root.parent / "out" / "m.jsonl"
    code = module.run(parser.parse_args(["--root", str(root), "--out", str(out), *options]))
    return code, {item.id: item for item in read_manifest(out)}


def report(root: Path) -> dict:
    return json.loads((root.parent / "out" / "m.jsonl.report.json").read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def small(monkeypatch, request):
    """The published counts of sets of four pictures."""
    if "shared" not in request.fixturenames:
        monkeypatch.setattr(flickr8k_cn, "IMAGES", COUNTS)
        monkeypatch.setattr(flickr30k_cn, "IMAGES", COUNTS)


@pytest.fixture
def eight(tmp_path) -> Path:
    """The layout of Flickr8k-CN: four pictures in splits, one in none."""
    data = tmp_path / "flickr8kcn" / "data"
    for split, images in EIGHT.items():
        write(data / f"flickr8k{split}.txt", [f"{image}.jpg" for image in images])
    every = [*(image for images in EIGHT.values() for image in images), "5_e"]
    for tag, name in flickr8k_cn.FILES.items():
        images = EIGHT["test"] if tag == "zhm" else every
        rows = [f"{image}.jpg#{tag}#{n} {tag} {image} {n}" for image in images for n in range(5)]
        write(data / name, rows)
    return tmp_path / "flickr8kcn"


@pytest.fixture
def thirty(tmp_path) -> Path:
    """The layout of Flickr30k-CN, with both forms of lines."""
    root = tmp_path / "f30k"
    for split, images in EIGHT.items():
        names = [image.partition("_")[0] for image in images]
        if split == "val":
            rows = [f"{name}\tzh {name} {n}" for name in names for n in range(5)]
        else:
            tag = "zhm" if split == "test" else "zhb"
            rows = [f"{name}#{tag}#{n}\tzh {name} {n}" for n in range(5) for name in names]
        write(root / f"{split}.txt", rows)
    return root


EVERY = ["--captions", "enc", "zhc", "zhb", "zhg", "zhm"]


def test_flickr8k_links_translations_to_english_and_written_chinese_to_nothing(eight):
    code, items = load(flickr8k_cn, eight, *EVERY)
    assert code == 0
    assert {i: item.split for i, item in items.items()} == {
        "1_a": "train", "2_b": "train", "3_c": "val", "4_d": "test",
    }  # fmt: skip
    first = {c.id: c for c in items["4_d"].captions if c.id.endswith(".3")}
    assert list(first.values()) == [
        Caption("4_d#en.3", "en", "enc 4_d 3"),
        Caption("4_d#zh.3", "zh", "zhc 4_d 3"),
        Caption("4_d#zh.zhb.3", "zh", "zhb 4_d 3", "mt", "4_d#en.3", "baidu-2016"),
        Caption("4_d#zh.zhg.3", "zh", "zhg 4_d 3", "mt", "4_d#en.3", "google-2016"),
        Caption("4_d#zh.zhm.3", "zh", "zhm 4_d 3", of="4_d#en.3"),
    ]
    assert check_manifest(eight.parent / "out/m.jsonl", images=False).faults == 0
    why = "captions of pictures that no split lists"
    assert report(eight)["left_out"][why]["count"] == 4 * 5


def test_flickr8k_without_english_has_no_links_and_unused_pictures_on_request(eight):
    _, items = load(flickr8k_cn, eight, "--captions", "zhb", "--splits", "train", "none")
    assert [(item.id, item.split) for item in items.values()] == [
        ("1_a", "train"), ("2_b", "train"), ("5_e", "none"),
    ]  # fmt: skip
    assert {c.of for item in items.values() for c in item.captions} == {None}


def test_flickr30k_has_machine_translation_in_train_and_peoples_in_test(thirty):
    code, items = load(flickr30k_cn, thirty)
    assert code == 0
    assert [(i.id, i.split) for i in items.values()] == [
        ("1", "train"), ("2", "train"), ("3", "val"), ("4", "test"),
    ]  # fmt: skip
    assert items["3"].captions[2] == Caption("3#zh.2", "zh", "zh 3 2", "mt", None, "baidu")
    assert items["4"].captions[2] == Caption("4#zh.2", "zh", "zh 4 2")
    assert check_manifest(thirty.parent / "out/m.jsonl", images=False).faults == 0


def test_flickr30k_links_to_english_only_where_numbers_say_so(thirty, tmp_path):
    names = ["1", "2", "3", "4", "9"]
    token = tmp_path / "results.token"
    write(token, [f"{name}.jpg#{n}\ten {name} {n}" for name in names for n in range(5)])
    write(tmp_path / "cna.txt", [f"{name}.jpg#{n}\tcna" for name in "12" for n in range(5)])
    code, items = load(flickr30k_cn, thirty, "--english", str(token))
    assert code == 0
    assert list(items) == ["1", "2", "3", "4"], "a picture without Chinese was imported"
    links = [c.of for c in items["4"].captions if c.lang == "zh"]
    assert links == [f"4#en.{n}" for n in range(5)]
    assert {c.of for c in items["3"].captions} == {None}
    _, items = load(flickr30k_cn, thirty, "--cna", str(tmp_path / "cna.txt"))
    assert items["1"].captions[1] == Caption("1#zh.1", "zh", "cna")


def test_flickr30k_tells_a_split_that_is_not_there_and_takes_the_others(thirty, capsys):
    (thirty / "train.txt").unlink()
    packed(thirty / "val.txt")
    code, items = load(flickr30k_cn, thirty)
    assert code == 1, "not as published"
    assert list(items) == ["3", "4"]
    assert report(thirty)["missing"] == [{"path": "train.txt", "what": "Chinese captions of train"}]
    assert "MISSING: 1 published files" in capsys.readouterr().out
    assert load(flickr30k_cn, thirty, "--splits", "val", "test")[0] == 0
    assert report(thirty)["missing"] == []
    with pytest.raises(DataError, match=r"mine\.txt: Chinese captions of train\nGet it by hand"):
        load(flickr30k_cn, thirty, "--train", "mine.txt")
    with pytest.raises(DataError, match=r"train\.txt: Chinese captions of train\nGet it by hand"):
        load(flickr30k_cn, thirty, "--splits", "train")


def test_a_picture_in_both_sets_is_told_split_by_split(eight, thirty):
    load(flickr8k_cn, eight)
    other = thirty.parent / "out/eight.jsonl"
    for name in ("m.jsonl", "m.jsonl.report.json"):
        path = thirty.parent / "out" / name
        path.rename(path.with_name(name.replace("m.", "eight.", 1)))
    (thirty / "test.txt").write_text("1#zhm#0 a\n4#zhm#0 b\n")
    (thirty / "train.txt").write_text("7#zhb#0 a\n")
    load(flickr30k_cn, thirty, "--against", str(other))
    assert [
        (row["of_split"], row["split"], row["pictures"], row["of"], row["first"])
        for row in report(thirty)["against"]
    ] == [
        ("val", "val", 1, 1, ["flickr:3"]),
        ("test", "train", 1, 2, ["flickr:1"]),
        ("test", "test", 1, 2, ["flickr:4"]),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: bad_encoding(path, 7), r"zhc\.caption\.txt:7: not UTF-8"),
        (lambda path: truncated(packed(path)), r"zhc\.caption\.txt\.gz: the file is cut off"),
        (lambda path: line_set(path, 3, "no tag"), r"txt:3: expected `<id>#<tag>#<n> <text>`"),
        (lambda path: line_set(path, 3, "1_a.jpg#enc#2 x"), r"txt:3: .* tagged 'zhc' .* 'enc'"),
        (lambda path: line_set(path, 3, "1_a.jpg#zhc#1 x"), r"txt:3: caption 1 of picture '1_a'"),
        (lambda path: path.unlink(), r"zhc\.caption\.txt: Chinese, written"),
    ],
)
def test_flickr8k_damaged_files_are_named_and_nothing_is_written(eight, change, message):
    change(eight / "data" / flickr8k_cn.FILES["zhc"])
    with pytest.raises(DataError, match=message):
        load(flickr8k_cn, eight)
    assert list(eight.parent.glob("out/*")) == []


def test_flickr8k_a_picture_in_two_splits_is_refused(eight):
    line_more(eight / "data/flickr8ktest.txt", "1_a.jpg")
    with pytest.raises(DataError, match=r"test\.txt:2: picture '1_a' is at .*train\.txt:1 too"):
        load(flickr8k_cn, eight)


def test_flickr30k_a_picture_in_two_splits_is_refused(thirty):
    line_more(thirty / "test.txt", "1#zhm#0 x")
    with pytest.raises(DataError, match=r"test\.txt:6: picture '1' is in train too, at .*txt:1"):
        load(flickr30k_cn, thirty)


def test_windows_files_change_nothing(eight, thirty):
    for module, root, file in (
        (flickr8k_cn, eight, eight / "data" / flickr8k_cn.FILES["zhc"]),
        (flickr8k_cn, eight, eight / "data/flickr8ktrain.txt"),
        (flickr30k_cn, thirty, thirty / "val.txt"),
    ):
        before = load(module, root)[1]
        bom(crlf(file))
        after = load(module, root)[1]
        assert [i.captions for i in after.values()] == [i.captions for i in before.values()]
        assert list(after) == list(before)


def test_too_few_captions_and_pictures_without_any_are_told(eight, thirty, capsys):
    zhc = eight / "data" / flickr8k_cn.FILES["zhc"]
    line_set(zhc, 1, "1_a.jpg#zhc#0 ")
    line_more(eight / "data/flickr8kval.txt", "8_x.jpg")
    code, items = load(flickr8k_cn, eight)
    assert code == 1
    assert items["8_x"].captions == ()
    shown = capsys.readouterr().out
    assert "1 items of val have no captions" in shown
    assert "1 captions without text were left out" in shown
    assert "expected 10" in shown
    line_less(thirty / "val.txt")
    assert load(flickr30k_cn, thirty)[0] == 1


# -- real files ---------------------------------------------------------------------------------


def test_the_real_flickr8k_captions_have_the_published_counts(shared, tmp_path):
    photos = shared / "data/photos"
    data = tmp_path / "flickr8kcn" / "data"
    names: dict[str, list[str]] = {"train": [], "val": [], "test": [], "none": []}
    for line in (photos / "images.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        names[row["split"]].append(row["image"])
    for split in ("train", "val", "test"):
        write(data / f"flickr8k{split}.txt", names[split])
    sources = {"enc": "en.human", "zhc": "zh.human", "zhm": "zh.human_translation"}
    for tag, source in sources.items():
        with gzip.open(photos / f"captions/{source}.tsv.gz", "rt", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        lines = [f"{row['image']}#{tag}#{row['idx']} {row['text']}" for row in rows]
        write(data / flickr8k_cn.FILES[tag], lines)
    code, items = load(flickr8k_cn, data, "--captions", "enc", "zhc", "zhm")
    assert code == 0
    assert len(items) == 8_000
    told = report(data)["left_out"]["captions of pictures that no split lists"]
    assert told["count"] == 2 * 91 * 5


def test_the_real_flickr30k_test_pictures_are_training_pictures_of_multi30k(shared, tmp_path):
    folder = shared / "data/captions"
    parser = argparse.ArgumentParser()
    multi30k.add_arguments(parser)
    other = tmp_path / "multi30k.jsonl"
    options = ["--root", str(folder / "multi30k"), "--out", str(other), "--langs", "de"]
    assert multi30k.run(parser.parse_args(options)) == 0
    add = argparse.ArgumentParser()
    flickr30k_cn.add_arguments(add)
    out = tmp_path / "cn.jsonl"
    options = ["--root", str(folder / "flickr30k_cn"), "--out", str(out), "--against", str(other),
               "--splits", "val", "test"]  # fmt: skip
    assert flickr30k_cn.run(add.parse_args(options)) == 0
    told = json.loads(Path(f"{out}.report.json").read_text(encoding="utf-8"))
    assert told["as_published"]
    shared_pictures = {(row["of_split"], row["split"]): row["pictures"] for row in told["against"]}
    assert shared_pictures["test", "train"] == 905
    assert shared_pictures["test", "test_2016_flickr"] == 36
