"""Runs on tar shards and on mixed corpora: resumed bit for bit, the same on any processes."""

import json
import multiprocessing

import pytest
import tiny

from xlcm.config import ConfigError
from xlcm.data.dataset import ManifestDataset
from xlcm.data.shard_writer import write_shards

# the two corpora of the mix have the same items
pytestmark = pytest.mark.filterwarnings("ignore:.*items of 'rows' are in 'tars' too")
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
    multiprocessing.set_start_method("fork", force=True)  # as elsewhere: the server's take a second
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


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"data": {"workers": 5}}, r"4 shard.*at least 5.*--shards 5"),
        ({"run": {**EVERY_STEP, "global_batch": 65}}, r"64 training rows.*do not fill"),
    ],
)
def test_too_few_shards_or_rows_are_refused_before_a_tokenizer_is_trained(
    tiny_data, tmp_path, sections, change, match
):
    tokenizer = {"text": {"tokenizer": {"path": None}}}  # to be trained on the run's captions
    config = tree(tiny_data, tmp_path, sections["shards"], model=tokenizer, **change)
    with pytest.raises(ConfigError, match=match):
        tiny.train(config)
    assert not (tmp_path / "tokenizer").exists()
    assert not (tmp_path / "data.json").exists()


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


# -- straight from a Hugging Face stream ---------------------------------------------------------


@pytest.fixture(scope="module")
def streamed(tiny_data, tmp_path_factory):
    """Return a tree of a run that streams the tiny pictures, 64 rows in 8 files."""
    datasets = pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("hub") / "rows"
    folder.mkdir()
    source = ManifestDataset(path=str(tiny_data / "tiny.jsonl"), split="train")
    features = datasets.Features(
        image=datasets.Image(), en=datasets.Value("string"), de=datasets.Value("string")
    )
    for shard in range(8):
        items = [source[number] for number in range(8 * shard, 8 * shard + 8)]
        pictures = [(tiny_data / item.image).read_bytes() for item in items]
        rows = {
            "image": [{"bytes": picture, "path": None} for picture in pictures],
            "en": [item.captions[0].text for item in items],
            "de": [item.captions[1].text for item in items],
        }
        part = datasets.Dataset.from_dict(rows, features=features)
        part.to_parquet(folder / f"train-{shard:05d}.parquet", batch_size=3)
    train = {
        "name": "hf_stream", "path": str(folder), "captions": {"en": "en", "de": "de"},
        "open_shards": 4, "buffer": 5,
    }  # fmt: skip

    def make(output, workers=0, steps=STEPS):
        run = {**EVERY_STEP, "steps": steps}
        config = tree(
            tiny_data, output, None, data={"workers": workers}, run=run, **tiny.pictures(tiny_data)
        )
        config["data"]["train"] = train
        return config

    return make


def test_a_streamed_run_resumes_to_the_sample_with_any_workers(tmp_path, streamed):
    whole = tiny.train(streamed(tmp_path / "whole"))
    for after, workers in ((3, 2), (4, 0)):
        config = streamed(tmp_path / f"cut{after}", workers)
        with pytest.raises(tiny.Crash):
            tiny.train(config, crash_before=after)
        again = tiny.train(config)
        assert whole.names[:after] + again.names == whole.names
        same(tmp_path / "whole", tmp_path / f"cut{after}")


@pytest.mark.slow
def test_a_streamed_run_on_two_processes_with_two_workers_has_the_rows_of_one_and_resumes(
    tmp_path, streamed, processes
):
    alone = tiny.train(streamed(tmp_path / "alone", steps=5)).names
    whole, cut = (streamed(tmp_path / name, 2, steps=5) for name in ("whole", "cut"))
    first, second = processes.run(2, train_with_workers, [cut, cut, whole], 3)
    for result in (first, second):
        assert result["names"][:5] == result["names"][5:]
    for step in range(5):
        assert first["names"][step] + second["names"][step] == alone[step]
    same(tmp_path / "whole", tmp_path / "cut", step=5)


def test_too_few_files_of_a_stream_are_refused_with_the_way_out(tmp_path, streamed):
    with pytest.raises(ConfigError, match=r"8 shard.*at least 9.*xlcm data shard-hf"):
        tiny.train(streamed(tmp_path, 9))
