"""Tar shards: written from a manifest and read back, whole, truncated, missing and of others."""

import io
import json
import subprocess
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from xlcm.cli import main
from xlcm.data import shard_writer
from xlcm.data.collate import stack_visuals
from xlcm.data.dataset import ManifestDataset
from xlcm.data.manifest import DataError, ManifestWriter
from xlcm.data.rows import open_splits
from xlcm.data.shard_parts import json_part
from xlcm.data.shard_writer import write_shards
from xlcm.data.shards import Shards
from xlcm.data.tar_index import tar_index
from xlcm.evaluation.queries import queries as find_queries
from xlcm.evaluation.settings import EvaluationConfig
from xlcm.types import Caption, Item


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XLCM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def source(tiny_data):
    return ManifestDataset(
        path=str(tiny_data / "translated.jsonl"), split="train", features=str(tiny_data / "store")
    )


@pytest.fixture
def folder(source, tmp_path):
    """Six shards of 64 items with pictures, captions, translations and features."""
    write_shards(source, tmp_path / "shards", shards=6)
    return tmp_path / "shards"


def add(tar, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def jpeg(colour=(10, 20, 30)):
    out = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(out, "JPEG")
    return out.getvalue()


# -- there and back ------------------------------------------------------------------------------


def test_what_was_sharded_is_read_back_captions_translations_pictures_and_features(source, folder):
    shards = Shards(path=str(folder))
    assert len(shards) == len(source) == 64
    by_id = {source[i].id: i for i in range(64)}
    assert len({shards[i].id for i in range(64)}) == 64
    for i in range(64):
        there = by_id[shards[i].id]
        assert shards[i].captions == source[there].captions
        assert torch.equal(shards.load_features(i), source.load_features(there))
        assert np.array_equal(shards.load_image(i), source.load_image(there))
        assert torch.equal(shards.load_pixels(i), source.load_pixels(there))
    assert [shards[i].id for i in range(64)] != [source[i].id for i in range(64)]  # shuffled


def test_shards_differ_by_one_item_at_most_and_a_second_writing_gives_the_same_bytes(
    source, folder, tmp_path
):
    index = json.loads((folder / "shards.json").read_text())
    assert sorted(shard["items"] for shard in index["shards"]) == [10, 10, 11, 11, 11, 11]
    write_shards(source, tmp_path / "again", shards=6)
    for file in sorted(path.name for path in folder.iterdir()):
        assert (folder / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_views_and_frames_come_back_as_what_they_were(tiny_data, tmp_path, monkeypatch):
    source = ManifestDataset(path=str(tiny_data / "tiny.jsonl"), split="val")
    frames = torch.arange(12.0).reshape(3, 4)
    source.store = SimpleNamespace(folder=tmp_path)
    monkeypatch.setattr(source, "load_features", lambda i: frames + i, raising=False)
    write_shards(source, tmp_path / "frames", seed=None, images=False)
    found = Shards(path=str(tmp_path / "frames"), split="val")
    assert torch.equal(found.load_features(2), frames + 2)
    monkeypatch.setattr(source, "load_features", lambda i: list(frames + i), raising=False)
    write_shards(source, tmp_path / "views", seed=None, images=False)
    views = Shards(path=str(tmp_path / "views"), split="val").load_features(2)
    assert isinstance(views, list)
    assert torch.equal(torch.stack(views), frames + 2)


def test_an_item_takes_no_more_memory_than_its_places(folder):
    shards = Shards(path=str(folder))
    assert sum(i.places.nbytes + i.keys.nbytes for i in shards.indices) / len(shards) < 120


def test_a_segment_leaves_with_the_path_of_its_video():
    item = Item("a", "train", (), video="v.mp4", segment=(1.0, 2.0))
    assert b"segment" not in json_part(item)[1]


def test_languages_can_be_chosen(folder):
    item = Shards(path=str(folder), langs=["fr"])[0]
    assert {caption.lang for caption in item.captions} == {"fr"}
    with pytest.raises(ValueError, match="english"):
        Shards(path=str(folder), langs=["english"])


def test_webdataset_reads_what_we_write(source, folder):
    webdataset = pytest.importorskip("webdataset")
    files = sorted(str(path) for path in folder.glob("*.tar"))
    stream = webdataset.WebDataset(files, shardshuffle=False).decode("rgb8")
    found = list(stream)
    shards = Shards(path=str(folder))
    assert [row["json"]["id"] for row in found] == [shards[i].id for i in range(64)]
    kind = next(key for key in found[5] if key not in ("json", "__key__", "__url__", "png",
                                                         "__local_path__"))  # fmt: skip
    assert kind == "pooled.npy"
    assert np.array_equal(found[5]["png"], shards.load_image(5))


def test_what_webdataset_writes_is_read(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "a-0.tar")) as out:
        for number in range(3):
            item = {"id": str(number), "split": "train", "captions": []}
            out.write({"__key__": f"k{number}", "json": item, "jpg": jpeg()})
    found = Shards(path=str(tmp_path / "a-*.tar"))
    assert [found[i].id for i in range(3)] == ["0", "1", "2"]
    assert found.load_image(1).size == (8, 8)


def test_picture_and_txt_pairs_are_read_with_the_language_that_is_given(tmp_path):
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for number in range(2):
            add(tar, f"00000{number}.jpg", jpeg())
            add(tar, f"00000{number}.json", b'{"url": "http://example.org"}')
            add(tar, f"00000{number}.txt", b"ein Hund mit Hut\n")
    found = Shards(path=str(tmp_path), txt_lang="de")
    caption = found[1].captions[0]
    assert (caption.lang, caption.text, caption.origin) == ("de", "ein Hund mit Hut", "human")
    assert found[0].id == "00000/000000"
    with pytest.raises(DataError, match=r"00000\.tar:000001.*unknown key 'url'"):
        Shards(path=str(tmp_path))[1]


# -- bad input -----------------------------------------------------------------------------------


def test_a_truncated_shard_is_reported_with_what_is_lost_and_the_rest_is_read(folder):
    file = folder / "000002.tar"
    whole = {Shards(path=str(folder))[i].id for i in range(64)}
    places = tar_index(file).places
    cut = int(places[4, 2, 0]) + 10  # within the picture of the fifth item
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.warns(UserWarning, match=r"000002\.tar: .*4 items can be read, 7 of its 11"):
        found = Shards(path=str(folder))
    assert len(found) == 64 - 7
    assert found.lost == 7
    ids = {found[i].id for i in range(len(found))}
    assert len(ids) == 57
    assert ids < whole
    for i in range(len(found)):
        found.load_image(i)
        found.load_features(i)


@pytest.mark.parametrize("how", ["between files of an item", "in a header", "end mark"])
def test_a_shard_that_ends_anywhere_keeps_only_whole_items(folder, how):
    file = folder / "000000.tar"
    places = tar_index(file).places
    at = {
        "between files of an item": -(-int(places[3, 0].sum()) // 512) * 512,
        "in a header": int(places[3, 2, 0]) - 100,
        "end mark": -(-int(places[10, 3].sum()) // 512) * 512,
    }[how]
    file.write_bytes(file.read_bytes()[:at])
    found = tar_index(file)
    assert found.truncated
    assert len(found) == (11 if how == "end mark" else 3)


def test_a_damaged_header_in_the_middle_is_no_silent_end(folder):
    file = folder / "000000.tar"
    data = bytearray(file.read_bytes())
    at = int(tar_index(file).places[3, 0, 0]) - 512
    data[at : at + 100] = b"\xff" * 100
    file.write_bytes(data)
    found = tar_index(file)
    assert found.truncated
    assert len(found) == 3


def test_a_shard_whose_end_is_nothing_but_zeros_is_no_whole_one(folder):
    """A download that was cut, in a file whose place was kept on the disk before."""
    file = folder / "000000.tar"
    whole = file.read_bytes()
    places = tar_index(file).places
    behind = -(-int(places[5, 3].sum()) // 512) * 512  # of the sixth item
    within = int(places[6, 3, 0]) + 80  # its features; the picture is whole
    for cut, left in ((behind, 6), (within, 6)):
        file.write_bytes(whole[:cut] + bytes(len(whole) - cut + 30_000))
        found = tar_index(file)
        assert found.truncated
        assert len(found) == left
    file.write_bytes(whole + bytes(-len(whole) % 10240))
    assert not tar_index(file).truncated


@pytest.mark.parametrize("blocking", [20, 64, 128, 2048])
def test_the_padding_of_tar_with_larger_records_is_no_truncation(folder, tmp_path, blocking):
    record = blocking * 512
    with tarfile.open(folder / "000001.tar") as tar:
        tar.extractall(tmp_path / "x", filter="data")
    names = sorted(file.name for file in (tmp_path / "x").iterdir())
    made = tmp_path / "made.tar"
    words = ["tar", "-b", str(blocking), "-cf", str(made), "-C", str(tmp_path / "x"), *names]
    subprocess.run(words, check=True)
    assert made.stat().st_size % record == 0
    assert not tar_index(made).truncated
    cut = made.read_bytes()[: int(tar_index(made).places[6, 3, 0]) + 80]
    made.write_bytes(cut + bytes(2**20 - len(cut)))
    assert tar_index(made).truncated
    made.write_bytes(cut + bytes(2**20 + 10240 - len(cut)))
    assert tar_index(made).truncated


def test_a_lone_sample_that_is_cut_is_not_kept(tmp_path):
    file = tmp_path / "0.tar"
    with tarfile.open(file, "w") as tar:
        add(tar, "a.json", b'{"id": "x", "split": "train", "captions": []}')
        add(tar, "a.jpg", jpeg())
    file.write_bytes(file.read_bytes()[:1300])
    assert len(tar_index(file)) == 0
    with (
        pytest.warns(UserWarning, match="truncated: 0 items"),
        pytest.raises(DataError, match="no whole item"),
    ):
        Shards(path=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "values"),
    [("tokens", np.zeros((0, 4))), ("pooled", np.zeros((2, 4))), ("pooled", np.array(["a"]))],
)
def test_features_of_no_frame_or_another_shape_are_refused(tmp_path, name, values):
    out = io.BytesIO()
    np.save(out, values)
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        add(tar, "a.json", b'{"id": "x", "split": "train", "captions": []}')
        add(tar, f"a.{name}.npy", out.getvalue())
    with pytest.raises(DataError, match=rf"0\.tar:a: {name}\.npy") as caught:
        Shards(path=str(tmp_path)).load_features(0)
    assert caught.value.kind == "feature_unreadable"


def test_pooled_and_frame_features_in_one_batch_name_two_items():
    items = [Item("a", "train", (), where="m:1"), Item("b", "train", (), where="m:2")]
    with pytest.raises(DataError, match=r"m:2: item 'b' has features of the shape \(3, 4\).*'a'"):
        stack_visuals([torch.zeros(4), torch.zeros(3, 4)], items)
    with pytest.raises(DataError, match=r"\(5,\)"):
        stack_visuals([torch.zeros(4), torch.zeros(5)])


@pytest.mark.filterwarnings("ignore:.*truncated")
def test_training_stops_at_a_truncated_shard_or_lists_it_and_reads_the_rest(folder):
    file = folder / "000002.tar"
    file.write_bytes(file.read_bytes()[: int(tar_index(file).places[4, 2, 0])])
    spec = {"name": "shards", "path": str(folder)}
    with pytest.raises(DataError, match=r"000002\.tar.*truncated.*\n?.*data\.on_error=skip"):
        open_splits([spec], visual="features")
    with pytest.raises(DataError, match=r"10\.9%"):
        open_splits([spec], visual="features", on_error="skip")
    (dataset,), faults = open_splits([spec], visual="features", on_error="skip", max_skipped=0.2)
    assert len(dataset) == 57
    assert [fault.kind for fault in faults] == ["shard_truncated"]


def test_no_tar_a_compressed_one_and_a_missing_one_are_named(folder):
    other = folder.parent / "other"
    other.mkdir()
    with pytest.raises(DataError, match="no tar files"):
        Shards(path=str(other))
    (other / "0.tar").write_text("<html>not found</html>")
    with pytest.raises(DataError, match=r"0\.tar: no tar file"):
        Shards(path=str(other))
    with tarfile.open(other / "0.tar", "w:gz") as tar:
        add(tar, "a.json", b"{}")
    with pytest.raises(DataError, match="gunzip"):
        Shards(path=str(other))
    (folder / "000003.tar").unlink()
    with pytest.raises(DataError, match=r"000003\.tar: missing"):
        Shards(path=str(folder))
    with pytest.raises(DataError, match="split 'train', not of 'val'"):
        Shards(path=str(folder), split="val")


def test_a_spoilt_picture_names_shard_and_item(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        add(tar, "a.json", b'{"id": "x", "split": "train", "captions": []}')
        add(tar, "a.jpg", jpeg()[:60])
    found = Shards(path=str(tmp_path))
    with pytest.raises(DataError, match=r"0\.tar:a: image 'a'") as caught:
        found.load_image(0)
    assert caught.value.kind == "image_undecodable"
    with pytest.raises(DataError, match="no features in the shard"):
        found.load_features(0)


def test_a_changed_shard_is_read_anew_and_not_from_what_is_remembered(folder, source, tmp_path):
    before = Shards(path=str(folder))
    ids = [before[i].id for i in range(11)]
    before = Shards(path=str(folder))  # with no file open yet
    assert list((tmp_path / "cache" / "shards").glob("*.npz"))
    write_shards(source, tmp_path / "others", shards=6, seed=7)
    (folder / "000000.tar").write_bytes((tmp_path / "others" / "000000.tar").read_bytes())
    with pytest.raises(DataError, match=r"000000\.tar: the shard was changed"):
        before[0]
    after = Shards(path=str(folder))
    assert [after[i].id for i in range(11)] != ids
    after.load_image(3)


# -- the command ---------------------------------------------------------------------------------


def test_the_command_writes_shards_and_names_what_it_leaves_out(tiny_data, tmp_path, capsys):
    data = tiny.write_data(tmp_path / "data", train=12, held_out=2)
    (data / "train5.png").write_bytes(b"")
    arguments = ["data", "shard", str(data / "tiny.jsonl"), "--out", str(tmp_path / "out"),
                 "--shards", "3", "--features", str(data / "store")]  # fmt: skip
    assert main(arguments) != 0
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))  # nothing half is left
    said = capsys.readouterr()
    assert "tiny.jsonl:6" in said.out + said.err
    assert main([*arguments, "--on-error", "skip"]) == 1
    said = capsys.readouterr().out.replace("\n", "")
    assert "train5.png" in said
    assert "11 items of train in 3 shards, 1 left out" in said
    assert len(Shards(path=str(tmp_path / "out"))) == 11
    assert main([*arguments, "--on-error", "skip"]) != 0  # the folder is there
    assert "is there already" in "".join(capsys.readouterr())
    assert len(Shards(path=str(tmp_path / "out"))) == 11


def shop(folder, *named):
    """Six pictures, of which the fourth is spoilt; the first one's captions name others."""
    with ManifestWriter(folder / "shop.jsonl") as writer:
        for number in range(6):
            (folder / f"{number}.jpg").write_bytes(jpeg() if number != 3 else b"spoilt")
            captions = [Caption(f"{number}#0", "en", f"A fish {number}.")]
            if number == 0:
                captions += [
                    Caption(f"q{n}", "en", "x", relevant=ids) for n, ids in enumerate(named)
                ]
            writer.write(Item(f"{number}", "val", tuple(captions), image=f"{number}.jpg"))
    return ["data", "shard", str(folder / "shop.jsonl"), "--split", "val", "--shards", "2",
            "--out", str(folder / "out")]  # fmt: skip


def test_a_right_answer_that_is_left_out_is_told_and_no_answer_any_more(tmp_path, capsys):
    command = shop(tmp_path, ("1", "3"), ("3",), ("2",), ("4", "9"))
    assert main([*command, "--on-error", "skip"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "2 items that captions name in `relevant`, such as '3' (" in said
    assert "shop.jsonl:1: caption 'q0'): they are no right answers in the shards" in said
    shards = Shards(path=str(tmp_path / "out"), split="val")
    assert sorted(shards[i].id for i in range(5)) == ["0", "1", "2", "4", "5"]
    captions = [c for i in range(5) for c in shards[i].captions if c.id.startswith("q")]
    assert [c.relevant for c in captions] == [("1",), (), ("2",), ("4",)]
    asked = find_queries(shards, EvaluationConfig())
    numbers = {shards[i].id: i for i in range(5)}
    assert [i for _, i in asked.relevant["en"].tolist()] == [numbers[n] for n in "124"]


def test_a_right_answer_that_no_item_is_stops_the_writing_before_it_begins(tmp_path, capsys):
    command = [*shop(tmp_path, ("1",), ("2", "9")), "--no-images"]
    assert main(command) != 0
    said = " ".join("".join(capsys.readouterr()).split())
    assert "shop.jsonl:1: caption 'q1' names the relevant item '9', and split 'val' has no" in said
    assert not list(tmp_path.glob("*out*"))
    assert main([*command, "--on-error", "skip"]) == 0
    assert "1 items that captions name in `relevant`, such as '9'" in capsys.readouterr().out
    with ManifestWriter(tmp_path / "shop.jsonl") as writer:
        for number in range(2):
            captions = (Caption(f"{number}#0", "en", "x", relevant=(str(1 - number),)),)
            writer.write(Item(f"{number}", "val", captions))
    assert main([*command[:-2], str(tmp_path / "two"), "--no-images"]) == 0
    shards = Shards(path=str(tmp_path / "two"), split="val")
    assert {shards[i].captions[0].relevant for i in range(2)} == {("0",), ("1",)}


@pytest.mark.parametrize("after", [1, 10, 11, 63])
def test_a_killed_writing_goes_on_behind_its_last_whole_shard(source, tmp_path, after, monkeypatch):
    write_shards(source, tmp_path / "whole", shards=6)
    left = iter(range(after))
    with pytest.raises(StopIteration):  # as Ctrl-C does, it leaves what is there
        write_shards(source, tmp_path / "out", shards=6, on_item=lambda: next(left))
    assert not (tmp_path / "out").exists()
    if after > 10:  # a shard is whole
        with pytest.raises(DataError, match="interrupted writing of other data, or with other"):
            write_shards(source, tmp_path / "out", shards=7)
    (tmp_path / ".out.part" / "000009.tar").write_bytes(b"half")
    taken, told = [], []
    parts = shard_writer.item_parts
    monkeypatch.setattr(shard_writer, "item_parts", lambda *a: taken.append(a[1]) or parts(*a))
    write_shards(source, tmp_path / "out", shards=6, on_item=lambda: told.append(1))
    content = [
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}
        for name in ("whole", "out")
    ]
    assert content[0] == content[1]
    assert len(told) == 64
    assert len(taken) == {1: 64, 10: 64, 11: 53, 63: 10}[after]


def test_more_shards_than_items_are_refused(source, tmp_path):
    with pytest.raises(DataError, match="64 items do not fill 65 shards; --shards 64 at most"):
        write_shards(source, tmp_path / "out", shards=65)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_shards_that_is_not_there_is_told_with_the_nearest(folder):
    with pytest.raises(DataError, match="no such folder of shards; did you mean 'shards'"):
        Shards(path=str(folder.with_name("shard")), split="train")


def test_a_language_that_no_caption_is_in_is_no_shard(tiny_data, tmp_path, capsys):
    source = str(tiny_data / "translated.jsonl")
    assert main(["data", "shard", source, "--out", str(tmp_path / "x"), "--langs", "en", "sw"]) == 2
    assert "no caption in sw; there are" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
