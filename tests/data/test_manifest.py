import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from xlcm.data import seen
from xlcm.data.dataset import ManifestDataset
from xlcm.data.manifest import DataError, Manifest, ManifestWriter, parse_item, read_manifest
from xlcm.data.seen import Seen
from xlcm.types import Caption, Item

REPOSITORY = Path(__file__).resolve().parents[2]


def item(number: int = 0, split: str = "train", **more) -> Item:
    captions = (
        Caption(f"{number}#0", "en", "Two dogs.\tA tab"),
        Caption(f"{number}#0.de", "de", "Zwei Hünde", "mt", f"{number}#0", "m2m", ("wrong_sense",)),
        Caption(f"{number}#0.de.en", "en", "Two dogs", "back", f"{number}#0.de"),
    )
    return replace(Item(str(number), split, captions, image=f"images/{number}.jpg"), **more)


def write(path: Path, items: list[Item]) -> Path:
    with ManifestWriter(path) as writer:
        for one in items:
            writer.write(one)
    return path


def line(**changes) -> bytes:
    row = {"id": "1", "split": "train", "captions": [{"id": "1#0", "lang": "en", "text": "x"}]}
    row.update(changes)
    return json.dumps({k: v for k, v in row.items() if v is not ...}).encode()


def caption(**changes) -> bytes:
    row = {"id": "1#0", "lang": "en", "text": "x", **changes}
    return line(captions=[{k: v for k, v in row.items() if v is not ...}])


def test_a_folder_in_the_place_of_a_manifest_is_named_with_the_way_out(tmp_path):
    write(tmp_path / "a.jsonl", [item()])
    with pytest.raises(DataError, match=r"is a folder; name the manifest, .*\(in it: a\.jsonl\)"):
        next(read_manifest(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no manifest .*x\.jsonl: there is no folder .*no"):
        next(read_manifest(tmp_path / "no" / "x.jsonl"))
    with pytest.raises(DataError, match="is a folder; name the manifest to write"):
        write(tmp_path, [item()])
    with pytest.raises(DataError, match=r"a\.jsonl is no folder, .* name another place to write"):
        write(tmp_path / "a.jsonl" / "sub" / "b.jsonl", [item()])
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_manifest_that_is_cut_anywhere_is_said_to_be_cut_off(tmp_path):
    path = tmp_path / "m.jsonl"
    data = caption(text="Hünde") + b"\n" + line()
    for size in range(1, len(data)):
        path.write_bytes(data[:size])
        inside = size - len(caption(text="Hünde"))
        if inside in (0, 1):
            assert len(list(read_manifest(path))) == 1
            continue
        with pytest.raises(
            DataError, match=rf"m\.jsonl:{1 + (inside > 0)}: not JSON: .* is cut off"
        ):
            list(read_manifest(path))


def test_what_the_writer_writes_the_reader_reads(tmp_path):
    several = (Caption("3#0", "en", "Dogs", relevant=("0", "2")),)
    items = [item(0), item(1, "val", image=None, video="v.mp4"), item(2, features="k", captions=())]
    items.append(item(3, captions=several))
    items.append(item(4, image=None, video="v.mp4", segment=(0.0, 2.5)))
    path = write(tmp_path / "m.jsonl", items)
    assert [replace(i, where="") for i in read_manifest(path)] == items
    assert [i.where for i in read_manifest(path)] == [f"{path}:{n}" for n in range(1, 6)]


def test_a_segment_is_a_stretch_of_time_in_a_video():
    for bad in ([1], [2, 1], [1, 1], [-1, 2], ["1", 2], [True, 2], {"start": 1}, [1, float("inf")]):
        with pytest.raises(DataError, match=r"f:1: 'segment' must be \[start, end\] in seconds"):
            parse_item(line(video="v.mp4", segment=bad), "f:1")
    with pytest.raises(DataError, match="part of a `video`, and the item has none"):
        parse_item(line(segment=[1, 2]))
    assert parse_item(line(video="v.mp4", segment=[1, 2])).clip == "v.mp4#t=1.0,2.0"


def test_bom_windows_line_ends_and_blank_lines_are_tolerated(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + line(id="a") + b"\r\n\r\n" + line(id="b") + b"\r\n \n")
    assert [(i.id, i.where) for i in read_manifest(path)] == [
        ("a", f"{path}:1"),
        ("b", f"{path}:3"),
    ]
    manifest = Manifest(path)
    assert [(i.id, i.where) for i in manifest] == [(i.id, i.where) for i in read_manifest(path)]


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b'{"id": "caf\xe9"}', "not UTF-8 at byte 11 of the line (0xe9)"),
        (b'{"id": "1",', "not JSON"),
        (b"[" * 100_000, "brackets"),
        (b"[1]", "expected an object {...}, got a list: [1]"),
        (line(captoins=[]), "unknown key 'captoins'; did you mean 'captions'?"),
        (line(colour="red"), "unknown key 'colour'; known: captions, features, id, image"),
        (line(split=...), "key 'split' is missing"),
        (line(id=7), "'id' must be text that is not empty, got a number: 7"),
        (line(split=""), "'split' must be text that is not empty"),
        (line(image=["a.jpg"]), "'image' must be text, got a list"),
        (line(captions={}), "'captions' must be a list, got an object"),
        (line(captions=["x"]), "captions[0] must be an object {...}, got text"),
        (caption(text=...), "captions[0]: key 'text' is missing"),
        (caption(langs="en"), "unknown key 'captions[0].langs'; did you mean 'lang'?"),
        (caption(text=None), "captions[0].text must be text, got null"),
        (caption(id=""), "captions[0].id is empty"),
        (caption(of=3), "captions[0].of must be text, got a number: 3"),
        (
            caption(origin="humans"),
            "must be one of human, mt, back, got 'humans'; did you mean 'human'",
        ),
        (caption(origin=[]), "captions[0].origin must be one of"),
        (caption(noise="omission"), "captions[0].noise must be a list of words"),
        (caption(quality={"a": 1.0, "b": float("nan")}), "captions[0].quality.b is nan"),
        (caption(quality={"a": float("inf")}), "captions[0].quality.a is inf"),
        (caption(quality={"a": 0}).replace(b"0}", b"-1e999}"), "captions[0].quality.a is -inf"),
        (caption(relevant="2"), "captions[0].relevant must be a list of ids of items, got text"),
        (caption(relevant=["2", 3]), "captions[0].relevant must be a list of ids of items"),
        (caption(relevant=[""]), "captions[0].relevant must be a list of ids of items"),
        (caption(relevant=["2", "3", "2"]), "captions[0].relevant names '2' twice"),
        (caption(relevant=["2", "1"]), "captions[0].relevant names '1' itself, the item that"),
        (line(id="9").replace(b'"9"', b"9" * 5000), "not JSON"),
        (line(id="a\ud800"), "id has U+D800 at 1, half of a character"),
        (line(split="\udfff"), "split has U+DFFF at 0"),
        (line(image="\ud83d.jpg"), "image has U+D83D at 0"),
        (line(**{"\ud83d": 1}), "the name \\ud83d has U+D83D"),
        (caption(text="a \ud83d dog"), "captions[0].text has U+D83D at 2"),
        (caption(text="xx").replace(b"xx", b"a \\uDc00"), "captions[0].text has U+DC00 at 2"),
        (caption(of="\ud83d"), "captions[0].of has U+D83D at 0"),
        (caption(noise=["\ud83d"]), "captions[0].noise[0] has U+D83D at 0"),
        (caption(quality={"\ud83d": 1}), "the name captions[0].quality.\\ud83d has U+D83D at 0"),
        (line() + b" x", "not JSON: Extra data"),
    ],
)
def test_a_bad_line_is_named_with_file_line_and_remedy(tmp_path, raw, said):
    path = tmp_path / "m.jsonl"
    path.write_bytes(line(id="fine") + b"\n" + raw + b"\n")
    stream = read_manifest(path)
    assert next(stream).id == "fine"
    with pytest.raises(DataError) as error:
        next(stream)
    assert str(error.value).startswith(f"{path}:2: ")
    assert said in str(error.value)


def test_whole_characters_outside_the_basic_plane_are_read_however_they_are_written():
    for raw in (caption(text="a \U0001f436"), '{"id":"1","split":"s","captions":[{"id":"c","lang":'
                '"en","text":"a \U0001f436"}]}'.encode()):  # fmt: skip
        assert parse_item(raw).captions[0].text == "a \U0001f436"
    assert parse_item(b" " + line() + b" \r\n").id == "1"


def test_items_made_by_the_reader_are_as_any_other():
    row = caption(
        origin="mt", of="0", engine="x", noise=["a"], quality={"b": 1}, relevant=["3", "2"]
    )
    read = parse_item(row)
    made = Caption("1#0", "en", "x", "mt", "0", "x", ("a",), {"b": 1}, ("3", "2"))
    assert read == Item("1", "train", (made,))
    assert repr(read) == repr(Item("1", "train", (made,))) == repr(replace(read))
    assert pickle.loads(pickle.dumps(read)) == read
    with pytest.raises(AttributeError):
        read.id = "2"


def test_a_missing_manifest_names_the_nearest_one(tmp_path):
    write(tmp_path / "photos.jsonl", [item()])
    with pytest.raises(FileNotFoundError, match=r"photo\.jsonl; did you mean 'photos\.jsonl'"):
        Manifest(tmp_path / "photo.jsonl")


def test_random_access_finds_the_items_of_a_split(tmp_path):
    items = [item(i, "val" if i % 3 == 0 else "train") for i in range(100)]
    path = write(tmp_path / "m.jsonl", items)
    val = Manifest(path, "val")
    assert len(val) == 34
    assert [val[i].id for i in (33, 0, 5, -1)] == ["99", "0", "15", "99"]
    assert val[5].where == val.where(5) == f"{path}:16"
    assert len(Manifest(path)) == 100
    with pytest.raises(IndexError):
        val[34]


def test_the_split_is_not_mistaken_for_text_that_looks_like_it(tmp_path):
    text = 'he said "split": "val" and {"split": "val"} \\'
    tricky = item(0, "train", captions=(Caption("c", "en", text),))
    path = write(tmp_path / "m.jsonl", [tricky, item(1, "val")])
    raw = path.read_bytes() + line(id="2", split="v\u00e4l") + b"\n"
    path.write_bytes(raw + line(id="3", split="val").replace(b'"split"', b'"spl\\u0069t"') + b"\n")
    assert [i.id for i in Manifest(path, "train")] == ["0"]
    assert [i.id for i in Manifest(path, "val")] == ["1", "3"]
    assert [i.id for i in Manifest(path, "v\u00e4l")] == ["2"]


def test_a_line_too_broken_to_tell_its_split_is_met_in_every_split(tmp_path):
    path = write(tmp_path / "m.jsonl", [item(0), item(1, "val")])
    path.write_bytes(path.read_bytes() + b'{"id": "2", "spl\n')
    for split in ("train", "val"):
        manifest = Manifest(path, split)
        assert len(manifest) == 2
        with pytest.raises(DataError, match=r"m\.jsonl:3: not JSON"):
            manifest[1]


def test_an_unknown_split_names_those_that_exist(tmp_path):
    path = write(tmp_path / "m.jsonl", [item(0), item(1, "val")])
    with pytest.raises(
        DataError, match=r"'trian'; did you mean 'train'\?; splits here: train, val"
    ):
        Manifest(path, "trian")


def test_a_manifest_changed_under_a_run_is_refused(tmp_path):
    path = write(tmp_path / "m.jsonl", [item(0)])
    manifest = Manifest(path)
    write(path, [item(0), item(1)])
    with pytest.raises(DataError, match="changed while it was in use"):
        manifest[0]


def test_a_copy_in_another_process_reads_the_same_items(tmp_path):
    path = write(tmp_path / "m.jsonl", [item(i) for i in range(200)])
    manifest = Manifest(path)
    assert manifest[7].id == "7"  # opens the file, which must not travel
    assert manifest._file.tell() == 0  # threads and forks share the position, so it is not used
    again = pickle.loads(pickle.dumps(manifest))
    assert again[150] == manifest[150]
    with multiprocessing.get_context("fork").Pool(2) as pool:  # forked copies share the file
        assert pool.map(manifest.__getitem__, range(200), chunksize=1) == list(manifest)


def test_the_writer_refuses_ids_twice_and_keeps_the_old_file(tmp_path):
    path = write(tmp_path / "m.jsonl", [item(5)])
    before = path.read_bytes()
    with pytest.raises(DataError, match="item id '0' was written before"):
        write(path, [item(0), item(0)])
    with pytest.raises(DataError, match="caption id '0#0' was written before"):
        write(path, [item(0), replace(item(0), id="1")])
    twice = replace(item(0), captions=item(0).captions[:1] * 2)
    with pytest.raises(DataError, match="caption id '0#0' was written before"):
        write(path, [twice])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.jsonl"]


@pytest.mark.parametrize("digest", [len, lambda name: 0, hash])
def test_two_ids_of_one_digest_are_not_taken_for_one(tmp_path, monkeypatch, digest):
    monkeypatch.setattr(seen, "hash", digest, raising=False)
    items = [item(n) for n in range(30)]
    path = write(tmp_path / "m.jsonl", items)
    assert [replace(i, where="") for i in read_manifest(path)] == items
    with pytest.raises(DataError, match=r"m\.jsonl:31: item id '7' was written before, in line 8"):
        write(path, [*items, item(7)])
    again = replace(item(99), captions=item(12).captions[1:])
    with pytest.raises(
        DataError, match=r":31: caption id '12#0\.de' was written before, in line 13"
    ):
        write(path, [*items, again])


def test_all_names_are_seen_again_in_a_table_that_has_grown():
    table = Seen()
    names = [f"{n}#0" for n in range(5_000)]
    assert not any(table.add(name) for name in names)
    assert len(table) == 5_000
    assert all(table.add(name) for name in names)
    assert not table.add("5000#0")
    assert len(table._table) * 8 <= 32 * len(table)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"text": "a\ud800"}, "item '0' can't be written: captions[0].text has U+D800 at 1"),
        ({"id": "\ud800"}, "captions[0].id has U+D800 at 0"),
        ({"engine": "\ud800"}, "captions[0].engine has U+D800 at 0"),
        ({"quality": {"\ud800": 1}}, "the name captions[0].quality.\\ud800 has U+D800"),
        ({"quality": {"a": float("nan")}}, "captions[0].quality.a is nan"),
        ({"quality": {"a": float("inf")}}, "captions[0].quality.a is inf"),
        ({"origin": "robot"}, "origin must be one of"),
    ],
)
def test_the_writer_refuses_what_no_reader_takes(tmp_path, changes, said):
    odd = replace(item(0), captions=(replace(Caption("c", "en", "x"), **changes),))
    with pytest.raises(DataError) as error:
        write(tmp_path / "m.jsonl", [item(1), odd])
    assert str(error.value).startswith(f"{tmp_path / 'm.jsonl'}:2: ")
    assert said in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_filters_captions_by_language_and_keeps_items(tmp_path):
    path = write(tmp_path / "m.jsonl", [item(0), item(1, "val"), item(2, captions=())])
    data = ManifestDataset(path=str(path), split="train", langs=["de"])
    assert (data.name, data.split, len(data)) == ("m", "train", 2)
    assert [c.id for c in data[0].captions] == ["0#0.de"]
    assert data[1].captions == ()
    assert len(ManifestDataset(path=str(path), split="train")[0].captions) == 3
    with pytest.raises(ValueError, match="did you mean 'ja'"):
        ManifestDataset(path=str(path), split="train", langs=["jp"])


def test_a_dataset_names_line_and_picture_that_it_lacks(tmp_path):
    path = write(tmp_path / "m.jsonl", [item(0), item(1, image=None, features="k")])
    data = ManifestDataset(path=str(path), split="train")
    with pytest.raises(DataError, match=r"m\.jsonl:1: image 'images/0\.jpg': no such file in "):
        data.load_image(0)
    with pytest.raises(DataError, match=r"m\.jsonl:2: item '1' has no image"):
        data.load_image(1)
    with pytest.raises(DataError, match=r"m\.jsonl:2: no feature store was given"):
        data.load_features(1)


MEASURE = """
import os, resource, sys
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
from xlcm.data.manifest import Manifest, read_manifest
before = resident()
peak = 0
for n, item in enumerate(read_manifest(sys.argv[1])):
    if n % 10_000 == 0:
        peak = max(peak, resident())
print(peak - before)
before = resident()
manifest = Manifest(sys.argv[1], "train")
for i in range(0, len(manifest), 7):
    manifest[i]
print(resident() - before, len(manifest))
"""


def _grow(tmp_path: Path, items: int) -> tuple[float, float]:
    path = tmp_path / "long.jsonl"
    captions = ",".join(
        f'{{"id":"%d#{c}","lang":"en","text":"Two dogs run over the wet sand.","origin":"human"}}'
        for c in range(2)
    )
    row = '{"id":"%d","split":"train","image":"images/%d.jpg","captions":[' + captions + "]}\n"
    with open(path, "w") as file:
        for i in range(items):
            file.write(row % ((i,) * 4))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)],
        capture_output=True, text=True, check=True, cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ).stdout.split()  # fmt: skip
    assert int(done[2]) == items
    return float(done[0]), float(done[1])


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_200_thousand_items_take_under_40_megabytes(tmp_path):
    streamed, indexed = _grow(tmp_path, 200_000)
    assert streamed < 20  # does not grow with the items
    assert indexed < 40


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_a_million_items_take_under_200_megabytes(tmp_path):
    streamed, indexed = _grow(tmp_path, 1_000_000)
    assert streamed < 20
    assert indexed < 200


def test_parsing_is_fast():
    # a tenth of what is reached, so that a busy machine passes and a quadratic slip does not
    raw = line(captions=[{"id": "1#0", "lang": "en", "text": "Two dogs run over the wet sand."}])
    start = time.process_time()
    for _ in range(5_000):
        parse_item(raw, "m.jsonl:1")
    assert 5_000 / (time.process_time() - start) > 10_000
