"""Runs on tar shards and on mixed corpora: resumed bit for bit, the same on any processes."""

import json
import multiprocessing

import pytest
import tiny

from xlcm.config import ConfigError
from xlcm.data.dataset import ManifestDataset
from xlcm.data.shard_writer import write_shards

STEPS = 10  # four batches an epoch of the shards, eight of the mix
EVERY_STEP = {"steps": STEPS, "save_every": 1, "keep_checkpoints": 20, "log_every": 1}


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLCM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def sections(tiny_data, tmp_path_factory):
    """`data.train` of each kind."""
    folder = tmp_path_factory.mktemp("streams") / "shards"
    manifest = {"path": str(tiny_data / "tiny.jsonl"), "features": str(tiny_data / "store")}
    source = ManifestDataset(**manifest, split="train")
    write_shards(source, folder, shards=4, images=False)
    shards = {"name": "shards", "path": str(folder), "split": "train", "open_shards": 2}
    other = {
        "name": "manifest", **manifest, "path": str(tiny_data / "translated.jsonl"),
        "split": "train",
    }  # fmt: skip
    return {
        "shards": shards,
        "mix": {"name": "mix", "temperature": 2.0, "parts": {"tars": shards, "rows": other}},
    }


def tree(tiny_data, output, train, **sections):
    return tiny.tree(tiny_data, output, **{"run": EVERY_STEP, **sections,
                     "data": {**sections.get("data", {}), "train": train}})  # fmt: skip


def same(one, other, step=STEPS):
    assert tiny.metrics(one) == tiny.metrics(other)
    assert [record["step"] for record in tiny.metrics(one)] == list(range(1, step + 1))
    assert tiny.checkpoint(one, step) == tiny.checkpoint(other, step)


def train_with_workers(configs, crash_before):
    """`tiny.train_in_pool` in a process that may have children: those of the pool are daemons."""
    multiprocessing.current_process()._config["daemon"] = False
    return tiny.train_in_pool(configs, crash_before)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["shards", "mix"])
def test_resume_continues_to_the_sample_bit_for_bit(tiny_data, tmp_path, sections, kind, workers):
    whole = tiny.train(tree(tiny_data, tmp_path / "whole", sections[kind]))
    for after in (3, 4, 7):  # within an epoch and at its border
        output = tmp_path / f"cut{after}"
        config = tree(tiny_data, output, sections[kind], data={"workers": workers})
        with pytest.raises(tiny.Crash):
            tiny.train(config, crash_before=after)
        again = tiny.train(config)
        assert whole.names[:after] + again.names == whole.names
        same(tmp_path / "whole", output)


def test_an_epoch_of_shards_has_each_item_once(tiny_data, tmp_path, sections):
    names = tiny.train(tree(tiny_data, tmp_path, sections["shards"])).names
    for epoch in (names[:4], names[4:8]):
        rows = [name for batch in epoch for name in batch]
        assert sorted(rows) == sorted(f"train{number}" for number in range(64))
    assert names[:4] != names[4:8]


def test_two_processes_with_two_workers_share_the_rows_of_one_without_overlap_and_resume(
    tiny_data, tmp_path, sections, processes
):
    alone = tiny.train(tree(tiny_data, tmp_path / "alone", sections["shards"])).names
    data = {"workers": 2}
    whole = tree(tiny_data, tmp_path / "whole", sections["shards"], data=data)
    cut = tree(tiny_data, tmp_path / "cut", sections["shards"], data=data)
    first, second = processes.run(2, train_with_workers, [cut, cut, whole], 5)
    assert (first["processes"], second["processes"]) == (2, 2)
    for result in (first, second):
        assert result["names"][:STEPS] == result["names"][STEPS:]
    for step in range(STEPS):
        left, right = first["names"][step], second["names"][step]
        assert len(left) == len(right) == 8
        assert left + right == alone[step]
    for start in (0, 4):
        rows = [
            n for r in (first, second) for batch in r["names"][start : start + 4] for n in batch
        ]
        assert len(rows) == len(set(rows)) == 64
    same(tmp_path / "whole", tmp_path / "cut")


def test_too_few_shards_are_refused_before_the_first_step(tiny_data, tmp_path, sections):
    config = tree(tiny_data, tmp_path, sections["shards"], data={"workers": 5})
    with pytest.raises(ConfigError, match=r"4 shard.*at least 5.*--shards 5"):
        tiny.train(config)
    assert not (tmp_path / "checkpoints").exists()


def test_realised_shares_are_kept_with_the_state_and_written(tiny_data, tmp_path, sections, capsys):
    views = {"source": {"langs": ["en"]}, "target": {"langs": ["de", "fr"]}}
    train = sections["mix"]
    config = tree(tiny_data, tmp_path, train, data={"views": views})
    with pytest.raises(tiny.Crash):
        tiny.train(config, crash_before=6)
    tiny.train(config)
    shares = json.loads((tmp_path / "shares.json").read_text())
    assert set(shares) == {"rows", "captions/source", "captions/target"}
    for group in shares.values():
        assert sum(one["count"] for one in group.values()) == STEPS * 16
    assert shares["rows"]["tars"]["asked"] == 0.5
    assert abs(shares["rows"]["tars"]["share"] - 0.5) < 0.1
    assert set(shares["captions/target"]) == {"de", "fr"}
    assert "shares of rows: rows" in capsys.readouterr().out
    state = json.loads(tiny.checkpoint(tmp_path, STEPS)["state.json"])
    assert state["state"]["data"]["rows/tars"] == shares["rows"]["tars"]["count"]
