"""Several corpora, and shards, in one order: shares, no overlap, no dependence on processes."""

from collections import Counter
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import tiny

from xlcm.config import ConfigError, build
from xlcm.data.batching import RowStream
from xlcm.data.dataset import ManifestDataset
from xlcm.data.mixing import Layout, Mix, layout, quotas
from xlcm.data.rows import open_splits, survey
from xlcm.data.shard_writer import write_shards
from xlcm.data.stream_order import StreamBatching, enough_shards
from xlcm.data.subset import Subset
from xlcm.data.views import View
from xlcm.registry import datasets

TWO = Layout(("small", "large"), np.repeat([0, 1], [30, 170]), np.full(200, -1), (1, 1), 2.0)


def shards(count, each, open_shards=2):
    return Layout(("s",), np.zeros(count * each, int), np.repeat(np.arange(count), each),
                  (open_shards,))  # fmt: skip


def rows_of(batching, epoch):
    return [tuple(row) for row in batching.batches(epoch).reshape(-1, 2).tolist()]


# -- shares --------------------------------------------------------------------------------------


def test_quotas_follow_the_temperature_and_keep_the_sum():
    assert quotas([100, 300], 1.0) == [100, 300]
    assert quotas([100, 900], 2.0) == [250, 750]  # sqrt: 1 to 3
    assert sum(quotas([7, 11, 1000], 3.0)) == 1018
    evened = quotas([10, 1000], 1e9)
    assert evened == [505, 505]
    assert quotas([1_000_000, 10], 0.01) == [1_000_010, 0]


def test_each_epoch_has_the_asked_share_of_each_corpus():
    batching = StreamBatching(np.ones(200, int), 20, TWO)
    wanted = 200 * np.sqrt(30) / (np.sqrt(30) + np.sqrt(170))
    for epoch in range(3):
        small = sum(item < 30 for item, _ in rows_of(batching, epoch))
        assert abs(small - wanted) < 1


def test_a_corpus_that_gets_no_row_at_its_temperature_is_refused():
    with pytest.raises(ConfigError, match=r"parts\.small: it gets no row.*a higher one"):
        StreamBatching(np.ones(200, np.int32), 10, replace(TWO, temperature=0.05))


def test_a_lifted_corpus_comes_equally_often_and_a_lowered_one_goes_on_where_it_stopped():
    batching = StreamBatching(np.ones(200, int), 20, TWO)
    seen = Counter(item for epoch in range(10) for item, _ in rows_of(batching, epoch))
    counts = np.array([seen[item] for item in range(200)])
    assert counts[:30].max() - counts[:30].min() <= 1
    assert counts[30:].max() - counts[30:].min() <= 1
    assert counts[:30].min() > counts[30:].max()


def test_a_row_that_comes_again_in_an_epoch_says_how_often_it_came():
    evened = replace(TWO, temperature=1e6)  # 100 rows of 30 items
    batching = StreamBatching(np.ones(200, int), 20, evened)
    whole = RowStream(batching)
    rows = [row for _, batch in zip(range(20), whole) for row in batch]  # two epochs
    assert len(set(rows)) == len(rows)
    assert max(row.repeat for row in rows) == 3
    met = Counter()
    for row in rows:
        assert row.repeat == met[row[:3]]
        met[row[:3]] += 1
    resumed = RowStream(batching, rank=1, world=2)
    resumed.start_at(0, 7)
    assert next(iter(resumed)) == rows[7 * 20 + 10 : 8 * 20]
    followed = StreamBatching(np.ones(200, int), 20, replace(TWO, temperature=1.0))
    assert {row.repeat for _, batch in zip(range(10), RowStream(followed)) for row in batch} == {0}


def test_corpora_are_mixed_within_batches_and_epochs_differ():
    batching = StreamBatching(np.ones(200, int), 20, TWO)
    shares = [np.mean(batch[:, 0] < 30) for batch in batching.batches(0)]
    assert min(shares) > 0
    assert max(shares) < 1
    assert rows_of(batching, 0) != rows_of(batching, 1)
    assert rows_of(batching, 0) == rows_of(StreamBatching(np.ones(200, int), 20, TWO), 0)
    assert rows_of(batching, 0) != rows_of(StreamBatching(np.ones(200, int), 20, TWO, seed=1), 0)


# -- order of shards -----------------------------------------------------------------------------


def test_an_epoch_has_every_row_once_and_reads_so_many_shards_at_a_time():
    slots = np.array([1, 2] * 40)
    batching = StreamBatching(slots, 10, shards(8, 10, open_shards=2))
    rows = rows_of(batching, 0)
    assert sorted(rows) == [(i, s) for i in range(80) for s in range(slots[i])]
    windows = [{item // 10 for item, _ in rows[at : at + 30]} for at in range(0, 120, 30)]
    assert all(len(window) == 2 for window in windows)
    again = [{item // 10 for item, _ in rows_of(batching, 1)[at : at + 30]}
             for at in range(0, 120, 30)]  # fmt: skip
    assert windows != again


def test_rows_of_one_item_can_be_kept_apart_or_together():
    slots = np.full(40, 2)
    apart = StreamBatching(slots, 8, shards(4, 10), same_image="separate").batches(0)
    assert all(len(set(batch[:, 0].tolist())) == 8 for batch in apart)
    near = StreamBatching(slots, 8, shards(4, 10), same_image="together").batches(0)
    assert all(len(set(batch[:, 0].tolist())) == 4 for batch in near)
    with pytest.raises(ConfigError, match="several corpora"):
        StreamBatching(np.full(200, 2), 8, TWO, same_image="together")


@pytest.mark.parametrize("world", [1, 2, 4])
def test_global_batches_do_not_depend_on_the_number_of_processes(world):
    batching = StreamBatching(np.ones(80, int), 8, shards(8, 10))
    streams = [iter(RowStream(batching, rank, world)) for rank in range(world)]
    for epoch in (0, 1):
        for batch in batching.batches(epoch):
            found = [row.item for stream in streams for row in next(stream)]
            assert found == batch[:, 0].tolist()


def test_too_few_shards_are_refused_with_the_number_that_is_needed():
    enough_shards(shards(4, 10), processes=2, workers=2)
    enough_shards(TWO, processes=8, workers=8)  # none in shards
    with pytest.raises(ConfigError, match=r"s: 3 shard.*at least 4.*--shards 4.*workers to 1"):
        enough_shards(shards(3, 10), processes=2, workers=2)
    with pytest.raises(ConfigError, match="at least 4"):
        enough_shards(shards(3, 10), processes=4, workers=0)


# -- datasets ------------------------------------------------------------------------------------


def test_a_mix_finds_each_item_in_its_corpus(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setenv("XLCM_CACHE", str(tmp_path))
    spec = {"name": "manifest", "path": str(tiny_data / "tiny.jsonl"), "split": "train",
            "features": str(tiny_data / "store")}  # fmt: skip
    source = ManifestDataset(**{k: v for k, v in spec.items() if k != "name"})
    write_shards(source, tmp_path / "s", shards=4, seed=None)
    tars = {"name": "shards", "path": str(tmp_path / "s"), "open_shards": 3}
    mix = build(datasets, {"name": "mix", "parts": {"a": spec, "b": tars}, "temperature": 2})
    assert isinstance(mix, Mix)
    assert len(mix) == 128
    for index in (0, 63, 64, 127):
        assert mix[index].id == source[index % 64].id
        assert mix.load_features(index).equal(source.load_features(index % 64))
        assert mix.load_image(index).tobytes() == source.load_image(index % 64).tobytes()
        assert mix.load_pixels(index).equal(source.load_pixels(index % 64))
    found = layout(mix)
    assert found.names == ("a", "b")
    assert (found.shards(0), found.shards(1)) == (0, 4)
    assert found.open_shards == (1, 3)
    assert found.temperature == 2
    kept = layout(Subset(mix, [0, 64, 127]))
    assert kept.corpus.tolist() == [0, 1, 1]
    assert kept.shard.tolist() == [-1, 0, 3]
    assert layout(source) is None


def test_corpora_of_different_splits_or_none_are_refused(tiny_data):
    spec = {"name": "manifest", "path": str(tiny_data / "tiny.jsonl")}
    with pytest.raises(ConfigError, match="different splits"):
        build(datasets, {"name": "mix", "parts": {"a": {**spec, "split": "train"},
                                                  "b": {**spec, "split": "val"}}})  # fmt: skip
    with pytest.raises(ConfigError, match="at least one corpus"):
        build(datasets, {"name": "mix", "parts": {}})


@pytest.mark.filterwarnings("ignore:.*items of 'two' are in 'one' too")
def test_faults_of_a_corpus_are_found_within_a_mix(tmp_path, monkeypatch):
    monkeypatch.setenv("XLCM_CACHE", str(tmp_path / "cache"))
    one = tiny.write_data(tmp_path / "one", train=20, held_out=2)
    two = tiny.write_data(tmp_path / "two", train=20, held_out=2)
    text = (two / "tiny.jsonl").read_text().splitlines()
    text[3] = text[3].replace('"lang": "de"', '"lang": "german"')
    (two / "tiny.jsonl").write_text("\n".join(text) + "\n")
    parts = {
        name: {"name": "manifest", "path": str(folder / "tiny.jsonl"), "split": "train"}
        for name, folder in (("one", one), ("two", two))
    }
    spec = {"name": "mix", "parts": parts}
    with pytest.raises(ValueError, match=r"two/tiny\.jsonl:4"):
        open_splits([spec], visual="image")
    (mix,), faults = open_splits([spec], visual="image", on_error="skip", max_skipped=0.1)
    assert [fault.kind for fault in faults] == ["unknown_language"]
    views = {"source": View(langs=["en"]), "target": View(langs=["de"])}
    rows = survey(mix, views)
    assert len(rows.dropped) == 1
    assert layout(rows.dataset).corpus.tolist() == [0] * 20 + [1] * 19


def test_a_run_on_shards_may_go_on_with_another_number_of_processes():
    batching = StreamBatching(np.ones(80, np.int32), 8, shards(8, 10))

    def rows(world, batch):
        """Return the global batches behind a position, put together of all processes' shares."""
        streams = [RowStream(batching, rank, world) for rank in range(world)]
        for stream in streams:
            stream.start_at(1, batch)
        return [list(chain(*shares)) for _, *shares in zip(range(12), *streams)]

    assert rows(1, 0)[4:] == rows(2, 4)[:8] == rows(4, 4)[:8]
