"""Training rows straight from a Hugging Face stream: their order, their pictures, bad input."""

import io
import zipfile
from itertools import chain

import numpy as np
import pytest
import torch
from PIL import Image

from xlcm.config import build
from xlcm.data.batching import Batching, RowStream
from xlcm.data.collate import Collator, TrainLoader
from xlcm.data.hf_rows import _Cursor
from xlcm.data.hf_stream import HfStream
from xlcm.data.images import to_pixels
from xlcm.data.lanes import Lanes, lane_of_place, lane_order, lanes_of
from xlcm.data.manifest import DataError
from xlcm.data.mixing import Mix, layout
from xlcm.data.rows import survey
from xlcm.data.shares import CountingLoader
from xlcm.data.stream_order import StreamBatching
from xlcm.data.views import View
from xlcm.registry import datasets as registered
from xlcm.types import TextBatch

datasets = pytest.importorskip("datasets")
CAPTIONS = {"en": "english", "de/mt/english": "german"}
VIEWS = {"source": View(langs=["en"])}
SHARDS, EACH = 8, 12


def png(number):
    out = io.BytesIO()
    Image.new("RGB", (6, 4), (number % 256, number // 256, 0)).save(out, "PNG")
    return out.getvalue()


def write(folder, *, shards=SHARDS, each=EACH, silent=(), spoilt=(), kind="parquet"):
    """Write numbered rows; row n has a picture whose red is n."""
    features = datasets.Features(
        image=datasets.Image(), english=datasets.Value("string"), german=datasets.Value("string")
    )
    folder.mkdir(exist_ok=True)
    for shard in range(shards):
        rows = range(shard * each, (shard + 1) * each)
        data = {
            "image": [{"bytes": b"<html>" if n in spoilt else png(n), "path": None} for n in rows],
            "english": ["" if n in silent else f"picture {n}" for n in rows],
            "german": ["" if n in silent else f"Bild {n}" for n in rows],
        }
        part = datasets.Dataset.from_dict(data, features=features)
        if kind == "parquet":
            part.to_parquet(folder / f"train-{shard:05d}.parquet", batch_size=5)  # row groups
        else:
            part.save_to_disk(folder.parent / f"saved{shard}")
            (file,) = (folder.parent / f"saved{shard}").glob("*.arrow")
            file.rename(folder / f"train-{shard:05d}.arrow")
    return folder


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setenv("XLCM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "rows")


def opened(folder, **options):
    return HfStream(path=str(folder), **{"captions": CAPTIONS, **options})


def red(dataset, index):
    return dataset.load_image(index).getpixel((0, 0))[0]


# -- rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_rows_have_their_captions_and_pictures_in_any_order(tmp_path, kind):
    found = opened(write(tmp_path / "rows", kind=kind), buffer=1)
    assert len(found) == SHARDS * EACH
    for number in [0, 95, 7, 6, 40, 41, 39, 0]:
        english, german = found[number].captions
        assert (english.lang, english.text) == ("en", f"picture {number}")
        assert (german.lang, german.text) == ("de", f"Bild {number}")
        assert (german.origin, german.of) == ("mt", english.id)
        assert red(found, number) == number
        assert tuple(found.load_pixels(number).shape) == (3, 4, 6)


@pytest.mark.parametrize("packed", [False, True])
def test_each_picture_of_a_folder_is_had_at_any_time_and_needs_no_shards(tmp_path, packed):
    folder = tmp_path / "rows" / "train"
    folder.mkdir(parents=True)
    table = "\n".join(["file_name,english"] + [f"{n}.png,picture {n}" for n in range(16)]) + "\n"
    files = {"metadata.csv": table.encode(), **{f"{n}.png": png(n) for n in range(16)}}
    if packed:
        with zipfile.ZipFile(folder / "all.zip", "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        for name, data in files.items():
            (folder / name).write_bytes(data)
    found = opened(tmp_path / "rows", captions={"en": "english"})
    for number in [15, 0, 7, 3]:
        assert (found[number].captions[0].text, red(found, number)) == (f"picture {number}", number)
    assert layout(found) is None
    rows = survey(found, VIEWS)
    order = Batching(rows.slots, 4)
    alone = reds(TrainLoader(RowStream(order), collator(found, rows)), 6)
    shares = []
    for process in range(2):
        stream = RowStream(order, process, 2)
        shares.append(reds(TrainLoader(stream, collator(found, rows), workers=2), 6))
    assert [list(chain(*batches)) for batches in zip(*shares)] == alone
    assert sorted(chain(*alone[:4])) == list(range(16))
    assert alone[0] != [0.0, 1.0, 2.0, 3.0]
    if not packed:
        (folder / "5.png").unlink()
        with pytest.raises(DataError, match=r"train row 6: .*5\.png") as caught:
            found.load_image(5)
        assert caught.value.kind == "image_missing"


def test_captions_are_counted_once_and_again_when_a_file_has_changed(folder, monkeypatch):
    opened(folder)
    with monkeypatch.context() as patch:
        patch.setattr("xlcm.data.hf_captions._read", None)
        assert len(opened(folder)) == SHARDS * EACH
    write(folder, shards=1, each=3)
    changed = opened(folder)
    assert len(changed) == SHARDS * EACH - EACH + 3
    assert red(changed, 3) == EACH


# -- the order -----------------------------------------------------------------------------------


def batching(dataset, size=8, **options):
    return StreamBatching(np.ones(len(dataset), np.int32), size, layout(dataset), **options)


def test_an_epoch_has_each_row_once_and_the_next_another_order(folder):
    order = batching(opened(folder))
    epochs = [order.batches(epoch)[..., 0].reshape(-1).tolist() for epoch in range(2)]
    for rows in epochs:
        assert sorted(rows) == list(range(SHARDS * EACH))
    assert epochs[0] != epochs[1]
    again = batching(opened(folder))
    assert again.batches(1)[..., 0].reshape(-1).tolist() == epochs[1]
    other = batching(opened(folder), seed=1)
    assert other.batches(0)[..., 0].reshape(-1).tolist() != epochs[0]


def test_each_shard_is_read_by_one_worker_of_one_process_and_opened_once(folder, monkeypatch):
    data = opened(folder, open_shards=4, buffer=6)
    order = batching(data)
    made = []
    begin = _Cursor.__init__
    monkeypatch.setattr(_Cursor, "__init__", lambda s, *a: made.append(a[1]) or begin(s, *a))
    readers = {}
    for process in range(2):
        stream = RowStream(order, process, 2)
        taken = [rows for rows, _ in zip(stream, range(24))]  # two epochs
        for worker in range(2):
            mine = opened(folder, open_shards=4, buffer=6)
            made.clear()
            for number, rows in enumerate(taken):
                if number % 2 != worker:
                    continue
                for row in rows:
                    assert red(mine, row.item) == row.item
                    readers.setdefault((row.epoch, data.shard[row.item]), set()).add(
                        (process, worker)
                    )
            assert len(made) <= 4  # of 8 shards two in each epoch
    assert len(readers) == 2 * SHARDS
    assert all(len(found) == 1 for found in readers.values())


def loader(dataset, process, processes, workers):
    rows = survey(dataset, VIEWS)
    order = StreamBatching(rows.slots, 8, layout(dataset))
    return CountingLoader(
        RowStream(order, process, processes), collator(dataset, rows), workers=workers
    )


def collator(dataset, rows):
    return Collator(dataset, rows.views, no_tokens, corner)


def corner(picture):
    pixels = to_pixels(picture) if isinstance(picture, Image.Image) else picture
    return pixels[:, :1, :1]


def no_tokens(texts, langs):
    count = len(texts)
    return TextBatch(torch.zeros(count, 1, dtype=torch.int64), torch.ones(count, 1), tuple(langs))


def reds(batches, count):
    """Return the rows of so many batches, as their pictures show them."""
    return [batch.visual.pixels[:, 0, 0, 0].tolist() for _, batch in zip(range(count), batches)]


@pytest.mark.parametrize("processes", [1, 2])
def test_workers_of_several_processes_share_the_rows_and_go_on_at_the_sample(folder, processes):
    """16 batches: an epoch of 12 and a third of the next one."""
    dataset = opened(folder, open_shards=4, buffer=6)
    alone = reds(loader(dataset, 0, 1, 0), 16)
    shares = []
    for process in range(processes):
        first = loader(dataset, process, processes, 2)
        before = reds(first, 5)
        state = first.state_dict()
        assert (state["epoch"], state["batch"]) == (0, 5)
        on = loader(dataset, process, processes, 2)
        on.load_state_dict(state)
        shares.append(before + reds(on, 11))
    assert [list(chain(*batches)) for batches in zip(*shares)] == alone
    assert sorted(chain(*alone[:12])) == list(range(SHARDS * EACH))


@pytest.mark.parametrize(("workers", "processes"), [(1, 2), (0, 4)])
def test_a_run_may_go_on_with_other_processes_and_workers(folder, workers, processes):
    dataset = opened(folder, open_shards=4, buffer=6)
    alone = reds(loader(dataset, 0, 1, 0), 16)
    shares = []
    for process in range(processes):
        on = loader(dataset, process, processes, workers)
        on.load_state_dict({"epoch": 0, "batch": 7})
        shares.append(reds(on, 9))
    assert [list(chain(*batches)) for batches in zip(*shares)] == alone[7:]


def test_rows_of_a_lane_are_mixed_no_further_than_the_buffer():
    lanes = Lanes(2, 1, 5)
    shard = np.repeat(np.arange(4), 10)
    lane = lane_of_place(lanes, 8, 0, 40)
    assert lane[:8].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    order = lane_order(lanes, shard, np.arange(40), lane, np.random.default_rng(0))
    assert sorted(order) == list(range(40))
    for number in range(2):
        rows = order[lane == number]
        shards = sorted(set(shard[rows]), key=lambda n: np.flatnonzero(shard[rows] == n).mean())
        line = [row for n in shards for row in sorted(rows[shard[rows] == n])]
        for place, row in enumerate(rows):
            assert abs(place - line.index(row)) < 5
        assert (np.diff(rows) != 1).any()


def test_lanes_never_exceed_the_shards_and_are_whole_turns():
    assert lanes_of(100, at_once=16, turns=2, buffer=9) == Lanes(16, 2, 9)
    assert lanes_of(7, at_once=16, turns=2, buffer=9) == Lanes(6, 2, 9)
    assert lanes_of(1, at_once=16, turns=4, buffer=9) == Lanes(1, 1, 9)


def test_a_mix_takes_its_share_of_a_stream(folder, tmp_path):
    other = write(tmp_path / "other", shards=2, each=6)
    part = {"name": "hf_stream", "captions": CAPTIONS}
    parts = {"a": {**part, "path": str(folder)}, "b": {**part, "path": str(other)}}
    mix = build(registered, {"name": "mix", "parts": parts, "temperature": 1e9})
    assert isinstance(mix, Mix)
    found = layout(mix)
    assert [found.streamed(0).number, found.streamed(1).number] == [8, 2]
    order = StreamBatching(np.ones(len(mix), np.int32), 12, found)
    rows = order.batches(0)[..., 0].reshape(-1)
    assert (rows < SHARDS * EACH).sum() == 54
    assert red(mix, SHARDS * EACH + 7) == 7


# -- bad input -----------------------------------------------------------------------------------


def test_a_missing_column_split_or_folder_is_named(folder, tmp_path):
    with pytest.raises(DataError, match=r"no column 'pictures'.*image, english, german"):
        opened(folder, image="pictures")
    with pytest.raises(DataError, match="no column 'germn'; did you mean 'german'"):
        opened(folder, captions={"en": "english", "de": "germn"})
    with pytest.raises(DataError, match=r"'tests'.*can't open it"):
        opened(folder, split="tests")
    with pytest.raises(DataError, match=r"OWNER/NONE: `datasets` can't open it: .*Hub"):
        HfStream(path="OWNER/NONE", captions=CAPTIONS)
    datasets.Dataset.from_dict({"a": [1]}).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match="xlcm data import hf"):
        opened(tmp_path / "saved")


@pytest.mark.parametrize(
    ("captions", "said"),
    [
        ({"english": "english"}, r"captions\.english"),
        ({"en/robot": "english"}, "an origin is one of"),
        ({"de/mt/nothing": "german"}, "no column 'nothing'"),
        ({"en": "english", "de": "english"}, "named twice"),
        ({}, "no column is named"),
    ],
)
def test_a_key_of_captions_that_says_nothing_is_refused(folder, captions, said):
    with pytest.raises(ValueError, match=said):
        opened(folder, captions=captions)


def test_rows_without_a_caption_are_counted_and_left_out(tmp_path):
    folder = write(tmp_path / "rows", silent=(5, 40))
    with pytest.warns(UserWarning, match="2 of 96 rows have no caption, such as row 6"):
        found = opened(folder)
    rows = survey(found, {"source": View(langs=["en"])}, incomplete="drop")
    assert rows.dropped == ["train-6", "train-41"]
    assert layout(rows.dataset).streamed(0) is not None
    assert len(StreamBatching(rows.slots, 8, layout(rows.dataset)).rows) == 1
    with pytest.raises(DataError, match="train row 6"):
        survey(found, {"source": View(langs=["en"])})


def test_a_spoilt_picture_or_file_names_its_row(tmp_path):
    folder = write(tmp_path / "rows", spoilt=(13,))
    found = opened(folder)
    with pytest.raises(DataError, match=r"train row 14: .*image") as caught:
        found.load_image(13)
    assert caught.value.kind == "image_undecodable"
    with pytest.raises(DataError, match="no features"):
        found.load_features(0)
    file = folder / "train-00003.parquet"
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(DataError, match="shard 3: `datasets` can't read it"):
        found.load_image(3 * EACH)
    with pytest.raises(DataError, match="behind row 36: `datasets` can't read on"):
        opened(folder)
    assert not list((tmp_path / "cache" / "streams").glob(".*"))
