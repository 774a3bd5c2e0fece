import argparse
import json
from pathlib import Path

import pytest
from faults import bad_encoding, bom, crlf, line_less, line_more, line_set, packed, truncated

from xlcm.data.check import check_manifest
from xlcm.data.manifest import DataError, read_manifest
from xlcm.data.sources import multi30k
from xlcm.data.sources.multi30k import picture_key
from xlcm.types import Caption, Item

IMAGES = {
    "train": ["11.jpg", "12.jpg", "13.jpg"], "val": ["21.jpg"], "test_2016_flickr": ["31.jpg"],
    "test_2017_flickr": ["41_ab.jpg"], "test_2018_flickr": ["61_ab.jpg"],
    "test_2017_mscoco": ["COCO_train2014_000000000051.jpg#7"],
}  # fmt: skip
TASK2 = {"train": "train", "val": "val", "test_2016_flickr": "test_2016"}


def write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The published counts of a set of eight pictures."""
    monkeypatch.setattr(multi30k, "IMAGES", {s: len(names) for s, names in IMAGES.items()})


@pytest.fixture
def root(tmp_path) -> Path:
    """The repository's layout, eight pictures large."""
    data = tmp_path / "dataset" / "data"
    for split, names in IMAGES.items():
        write(data / f"task1/image_splits/{split}.txt", names)
        for lang in ("en", "de", "fr", "cs"):
            if lang != "cs" or "2017" not in split:
                write(data / f"task1/raw/{split}.{lang}", [f"{lang} {name}" for name in names])
    for split, theirs in TASK2.items():
        names = IMAGES[split]
        write(data / f"task2/image_splits/{theirs}_images.txt", names)
        for k in range(1, 6):
            for lang in ("en", "de"):
                texts = [f"{lang} {name}" if k == 4 else f"{lang} {k} {name}" for name in names]
                write(data / f"task2/raw/{theirs}.{k}.{lang}", texts)
    return tmp_path / "dataset"


@pytest.fixture
def load(root, tmp_path):
    """Import with these options; returns (exit code, items by id)."""

    def run(*options: str, out: str = "m.jsonl") -> tuple[int, dict[str, Item]]:
        parser = argparse.ArgumentParser()
        multi30k.add_arguments(parser)
        path = tmp_path / "out" / out
        code = multi30k.run(parser.parse_args(["--root", str(root), "--out", str(path), *options]))
        return code, {item.id: item for item in read_manifest(path)}

    run.out = tmp_path / "out" / "m.jsonl"
    return run


def raw(root: Path, name: str) -> Path:
    return root / "data/task1/raw" / name


def test_task_1_has_every_split_and_links_translations_to_english(load):
    code, items = load()
    assert code == 0
    assert {i: item.split for i, item in items.items()} == {
        "11": "train", "12": "train", "13": "train", "21": "val", "31": "test_2016_flickr",
        "41_ab": "test_2017_flickr", "61_ab": "test_2018_flickr",
        "COCO_train2014_000000000051": "test_2017_mscoco",
    }  # fmt: skip
    assert items["12"].captions == (
        Caption("12#en.0", "en", "en 12.jpg"),
        Caption("12#de.0", "de", "de 12.jpg", of="12#en.0"),
        Caption("12#fr.0", "fr", "fr 12.jpg", of="12#en.0"),
        Caption("12#cs.0", "cs", "cs 12.jpg", of="12#en.0"),
    )
    assert [c.lang for c in items["41_ab"].captions] == ["en", "de", "fr"]
    assert check_manifest(load.out, images=False).faults == 0


def test_task_2_has_five_captions_each_and_links_none(load):
    code, items = load("--task", "2")
    assert code == 0
    assert sorted({item.split for item in items.values()}) == ["test_2016_flickr", "train", "val"]
    captions = items["31"].captions
    assert [c.id for c in captions] == [f"31#{lang}.{n}" for lang in ("en", "de") for n in range(5)]
    assert captions[5].text == "de 1 31.jpg"
    assert not any(c.of for c in captions)


def test_both_tasks_link_french_to_the_english_caption_of_the_same_text(load):
    code, items = load("--task", "both")
    assert code == 0
    langs = [c.lang for c in items["31"].captions]
    assert langs == ["en"] * 5 + ["de"] * 5 + ["fr", "cs"]
    assert {c.of for c in items["31"].captions if c.lang in ("fr", "cs")} == {"31#en.3"}
    assert [c.of for c in items["61_ab"].captions] == [None, *["61_ab#en.0"] * 3]
    assert check_manifest(load.out, images=False).faults == 0


def test_languages_and_tests_are_chosen(load):
    _, items = load("--langs", "de", "--tests", "test_2018_flickr")
    assert sorted({item.split for item in items.values()}) == ["test_2018_flickr", "train", "val"]
    assert [c.of for c in items["11"].captions] == [None]
    _, items = load("--langs", "cs")
    assert "41_ab" not in items, "a picture without a caption was imported"
    _, items = load("--tests")
    assert {item.split for item in items.values()} == {"train", "val"}


def test_companions_have_the_same_line_order(load, tmp_path):
    for split, names in IMAGES.items():
        write(tmp_path / f"mt/{split}.en2es", [f"es {name}" for name in names])
        write(tmp_path / f"mt/{split}.en2zh", [f"zh {name}" for name in names])
        if split in TASK2:
            write(tmp_path / f"pt/{split}.pt", [f"pt {name}" for name in names])
    more = ["--langs", "en", "pt", "--more", str(tmp_path / "pt"), "--mt", str(tmp_path / "mt")]
    code, items = load(*more, "--mt-langs", "es")
    assert code == 0
    assert items["13"].captions[1:] == (
        Caption("13#pt.0", "pt", "pt 13.jpg", of="13#en.0"),
        Caption("13#es.mt.0", "es", "es 13.jpg", "mt", "13#en.0", "nllb-200-3.3b"),
    )
    assert [c.lang for c in items["41_ab"].captions] == ["en", "es"]
    _, items = load(*more, "--task", "both", "--mt-engine", "mine")
    assert [(c.lang, c.of, c.engine) for c in items["11"].captions[5:]] == [
        ("pt", "11#en.3", None), ("es", "11#en.3", "mine"), ("zh", "11#en.3", "mine"),
    ]  # fmt: skip


def test_pictures_get_paths_from_the_manifest_in_several_folders(load, tmp_path):
    names = [name.partition("#")[0] for names in IMAGES.values() for name in names]
    for name in names:
        folder = tmp_path / ("coco" if name.startswith("COCO") else "flickr")
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    more = ["--images", str(tmp_path / "flickr"), "--more-images", str(tmp_path / "coco")]
    _, items = load(*more)
    assert items["11"].image == "../flickr/11.jpg"
    assert items["COCO_train2014_000000000051"].image == ("../coco/COCO_train2014_000000000051.jpg")
    before = load.out.read_bytes()
    (tmp_path / "flickr/12.jpg").unlink()
    with pytest.raises(DataError, match=r"1 pictures are not there, such as 12\.jpg; nothing"):
        load(*more)
    assert load.out.read_bytes() == before
    _, items = load(*more, "--missing-images", "drop")
    assert len(items) == 7
    assert "12" not in items


def test_a_key_is_the_picture_over_data_sets():
    assert picture_key(Item("1000268201", "x", ())) == "flickr:1000268201"
    assert picture_key(Item("1000268201_693b08cb0e", "x", ())) == "flickr:1000268201"
    assert picture_key(Item("COCO_val2014_000000398076", "x", ())) == "coco:398076"


def test_a_missing_file_is_named_with_the_place_to_get_it(load, root):
    raw(root, "val.fr").unlink()
    with pytest.raises(DataError) as error:
        load()
    message = str(error.value)
    assert "1 of 28 files are missing" in message
    assert "data/task1/raw/val.fr: captions of val, French" in message
    assert "github.com/multi30k/dataset" in message
    assert "non-commercial" in message
    assert not load.out.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (line_less, r"train\.de:3: 2 lines, fewer than the 3 pictures of .*train\.txt; lines are"),
        (line_more, r"train\.de:4: 4 lines, more than the 3 pictures"),
        (lambda path: bad_encoding(path, 2), r"train\.de:2: not UTF-8 .* `iconv -f"),
        (
            lambda path: truncated(packed(path)),
            r"train\.de\.gz: the file is cut off, \d lines could",
        ),
        (lambda path: truncated(path, 14), r"train\.de:3: 2 lines, fewer"),
    ],
)
def test_a_damaged_file_stops_the_import_and_nothing_is_written(load, root, change, message):
    change(raw(root, "train.de"))
    with pytest.raises(DataError, match=message):
        load()
    assert list(load.out.parent.iterdir()) == []


def test_windows_files_and_blank_lines_at_the_end_change_nothing(load, root):
    load()
    before = load.out.read_bytes()
    bom(crlf(raw(root, "train.de")))
    crlf(root / "data/task1/image_splits/train.txt")
    line_more(raw(root, "train.fr"), "")
    packed(raw(root, "train.cs"))
    assert load()[0] == 0
    assert load.out.read_bytes() == before


def test_an_exotic_line_break_inside_a_caption_moves_nothing(load, root):
    line_set(raw(root, "train.de"), 1, "eins\u2028zwei\x0bdrei\x85vier")
    code, items = load()
    assert code == 0
    assert items["11"].captions[1].text == "eins\u2028zwei\x0bdrei\x85vier"
    assert items["12"].captions[1].text == "de 12.jpg"


def test_an_image_twice_and_a_line_without_a_name_are_refused(load, root):
    images = line_set(root / "data/task1/image_splits/train.txt", 3, "11.jpg")
    with pytest.raises(DataError, match=r"train\.txt:3: item id '11' was written before"):
        load()
    line_set(images, 2, " ")
    with pytest.raises(DataError, match=r"train\.txt:2: no image name"):
        load()


def test_a_picture_whose_captions_are_empty_is_kept_and_counted(load, root, capsys):
    for lang in ("en", "de"):
        line_set(raw(root, f"train.{lang}"), 2, "  ")
    code, items = load("--langs", "en", "de")
    assert code == 1
    assert items["12"].captions == ()
    shown = capsys.readouterr().out
    assert "2 captions without text were left out" in shown
    assert "train.en:2" in shown
    assert "1 items of train have no captions" in shown
    report = json.loads(Path(f"{load.out}.report.json").read_text())
    assert report["splits"]["train"]["without_captions"] == 1


def test_a_list_of_pictures_that_is_cut_off_within_a_name_is_refused(load, root):
    path = root / "data/task1/image_splits/val.txt"
    whole = path.read_bytes()
    number = whole.count(b"\n")
    for cut in (2, 3, 4, 5):
        path.write_bytes(whole[:-cut])
        with pytest.raises(DataError, match=rf"val.txt:{number}: expected an image name"):
            load("--langs", "en", "de")


def test_a_translation_of_an_empty_english_line_names_no_source(load, root):
    line_set(raw(root, "train.en"), 2, "")
    items = load("--langs", "de", "en")[1]
    assert [(c.lang, c.of) for c in items["12"].captions] == [("de", None)]
    assert [c.of for c in items["11"].captions] == ["11#en.0", None]


def test_a_folder_without_machine_translations_is_refused(load, tmp_path):
    write(tmp_path / "mt/train.es", ["x"] * 3)
    with pytest.raises(DataError, match=r"--mt .*mt: no file there is called .*train\.en2es"):
        load("--mt", str(tmp_path / "mt"))
    assert not load.out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--langs", "cz"], r"--langs cz"),
        (["--langs", "it"], r"task 1 has en, de, fr, cs, pt; other languages need"),
        (["--task", "2", "--langs", "fr"], r"task 2 has only en and de; `--task both`"),
        (["--task", "2", "--tests", "test_2017_flickr"], r"task 2 has only test_2016_flickr"),
        (["--langs", "cs", "--tests", "test_2017_flickr"], r"not published in cs"),
        (["--mt", "/nowhere"], r"--mt /nowhere: no such folder"),
        (["--images", "/nowhere"], r"--images /nowhere: no such folder"),
        (["--against", "/nowhere.jsonl"], r"--against /nowhere\.jsonl: no such manifest"),
    ],
)
def test_options_that_cannot_be_are_refused_with_what_there_is(load, options, message):
    with pytest.raises(DataError, match=message):
        load(*options)


REAL = {"train": 29_000, "val": 1_014, "test_2016_flickr": 1_000, "test_2017_flickr": 1_000,
        "test_2017_mscoco": 461, "test_2018_flickr": 1_071}  # fmt: skip


def test_the_real_files_have_the_published_counts_and_leak_nothing(shared, tmp_path, monkeypatch):
    monkeypatch.setattr(multi30k, "IMAGES", REAL)
    folder = shared / "data/captions"
    parser = argparse.ArgumentParser()
    multi30k.add_arguments(parser)
    out = tmp_path / "m.jsonl"
    start = ["--root", str(folder / "multi30k"), "--out", str(out)]
    langs = ["--langs", "en", "cs", "pt", "--mt", str(folder / "multi30k_mt_nllb")]
    five = ["--task", "2", "--langs", "de"]
    for options in (langs, five, ["--task", "both", "--langs", "en", "fr"]):
        assert multi30k.run(parser.parse_args([*start, *options])) == 0
        report = json.loads(Path(f"{out}.report.json").read_text())
        assert report["as_published"]
        assert report["leaks"] == []
        wanted = REAL if options != five else dict.fromkeys(TASK2)
        assert set(report["splits"]) == set(wanted)
        assert all(s["pictures"] == s["items"] for s in report["splits"].values())
    unlinked = [c.id for i in read_manifest(out) for c in i.captions if c.lang == "fr" and not c.of]
    assert unlinked == []


def test_splits_without_a_machine_translation_are_told(load, tmp_path):
    for split in ("train", "val"):
        write(tmp_path / f"mt/{split}.en2es", [f"es {name}" for name in IMAGES[split]])
    write(tmp_path / "mt/train.en2zh", [f"zh {name}" for name in IMAGES["train"]])
    load("--mt", str(tmp_path / "mt"), "--tests", "test_2016_flickr")
    notes = json.loads(Path(f"{load.out}.report.json").read_text())["notes"]
    assert "--mt has no translation into es of test_2016_flickr: items there have none" in notes
    assert (
        "--mt has no translation into zh of val, test_2016_flickr: items there have none" in notes
    )
    load("--mt", str(tmp_path / "mt"), "--mt-langs", "es", "--tests")
    notes = json.loads(Path(f"{load.out}.report.json").read_text())["notes"]
    assert not any(note.startswith("--mt") for note in notes)
