import os
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from xlcm.cli import main
from xlcm.data.convert_features import convert_features
from xlcm.data.feature_formats import open_features
from xlcm.data.features import FeatureStore, FeatureWriter
from xlcm.data.manifest import DataError

DIM = 6


def values(count, seed):
    random = np.random.default_rng(seed)
    return {f"{seed}-{i}": random.normal(size=DIM).astype(np.float32) for i in range(count)}


def source(folder, name, found):
    np.savez(folder / name, **found)
    return str(folder / name)


def test_several_files_become_one_store_with_the_same_numbers(tmp_path, capsys):
    first, second = values(5, 0), values(7, 1)
    paths = [source(tmp_path, "a.npz", first), source(tmp_path, "b.npz", second)]
    out = str(tmp_path / "store")
    asked = ["data", "convert-features", *paths, "--out", out, "--dtype", "float32"]
    assert main([*asked, "--shard-items", "5"]) == 0
    assert "12 items, pooled of width 6; count and checksums are right" in " ".join(
        capsys.readouterr().out.split()
    )
    store = FeatureStore(out)
    assert [made["name"] for made in store.encoder["converted"]] == ["a.npz", "b.npz"]
    assert len(store.index["shards"]) == 3
    for key, value in (first | second).items():
        assert torch.equal(store[key], torch.from_numpy(value))
    keys = [*second, *first]
    assert torch.equal(store.rows(keys), torch.stack([store[key] for key in keys]))


def test_boxes_travel_into_the_store(tmp_path):
    h5py = pytest.importorskip("h5py")
    regions = np.random.default_rng(0).normal(size=(2, 3, DIM)).astype(np.float32)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["features"], file["ids"], file["num_boxes"] = regions, ["p", "q"], [3, 2]
        file["boxes"] = np.linspace(0, 1, 24).reshape(2, 3, 4)
    store = convert_features([tmp_path / "x.h5"], tmp_path / "store", dtype="float32")
    assert torch.equal(store["q"], torch.from_numpy(regions[1, :2]))
    expected = open_features(tmp_path / "x.h5").boxes("q")
    assert torch.equal(store.boxes("q"), expected)
    assert expected.shape == (2, 4)
    assert open_features(tmp_path / "store", boxes=7)["q"].shape == (2, DIM + 7)


def test_an_interrupted_conversion_goes_on_and_reads_nothing_twice(tmp_path, monkeypatch):
    path, out = source(tmp_path, "a.npz", values(9, 0)), tmp_path / "store"
    add, added = FeatureWriter.add, []

    def until_six(writer, key, value, boxes=None):
        if len(added) == 6:
            raise KeyboardInterrupt
        added.append(key)
        add(writer, key, value, boxes)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureWriter, "add", until_six)
        with pytest.raises(KeyboardInterrupt):
            convert_features([path], out, shard_items=4)
    with pytest.raises(DataError, match=r"unfinished \(4 items so far\)"):
        FeatureStore(out)
    monkeypatch.setattr(FeatureWriter, "add", lambda *a: (added.append(a[1]), add(*a))[1])
    assert len(convert_features([path], out, shard_items=4)) == 9
    assert added[6:] == added[4:6] + [f"0-{i}" for i in range(6, 9)]


def test_long_checksums_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("xlcm.data.progress.FILE_S", 0.0)
    np.save(tmp_path / "a.npy", np.zeros((3000, 256), np.float32))  # 2.9 MiB
    (tmp_path / "a.txt").write_text("\n".join(map(str, range(3000))))
    convert_features([tmp_path / "a.npy"], tmp_path / "store")
    assert "checksums of what is converted: 3 of 4 MiB" in capsys.readouterr().err


def test_a_changed_source_of_the_same_name_is_refused(tmp_path):
    path, out = source(tmp_path, "a.npz", values(4, 0)), tmp_path / "store"
    once = convert_features([path], out)
    assert torch.equal(convert_features([path], out)["0-0"], once["0-0"])
    before = os.stat(path)
    source(tmp_path, "a.npz", {key: -value for key, value in values(4, 0).items()})
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert os.stat(path).st_size == before.st_size  # only the numbers in it tell
    with pytest.raises(DataError, match=r"4 items .* a\.npz had other contents then; delete this"):
        convert_features([path], out)
    (tmp_path / "elsewhere").mkdir()
    other = source(tmp_path / "elsewhere", "a.npz", values(5, 1))
    with pytest.raises(DataError, match=r"a\.npz had other contents"):
        convert_features([other], out)
    with pytest.raises(DataError, match=r"made of a\.npz, not of b\.npz"):
        convert_features([source(tmp_path, "b.npz", values(4, 0))], out)
    assert torch.equal(FeatureStore(out)["0-0"], once["0-0"])


@pytest.mark.parametrize("ending", [".npy", ".npz", ".safetensors", ".h5"])
def test_changed_names_of_the_rows_are_refused_too(tmp_path, ending):
    path, ids, out = tmp_path / f"a{ending}", tmp_path / "names.txt", tmp_path / "store"
    matrix = np.stack(list(values(3, 0).values()))
    if ending == ".npy":
        np.save(path, matrix)
    elif ending == ".npz":
        np.savez(path, features=matrix)
    elif ending == ".safetensors":
        save_file({"features": torch.from_numpy(matrix)}, path)
    else:
        with pytest.importorskip("h5py").File(path, "w") as file:
            file["features"] = matrix
    ids.write_text("p\nq\nr\n")
    convert_features([path], out, ids=[ids])
    ids.write_text("r\nq\np\n")
    with pytest.raises(DataError, match="had other contents then"):
        convert_features([path], out, ids=[ids])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_at_any_file_leaves_a_store_that_the_next_run_makes_whole(tmp_path, when):
    found = values(9, 0)
    path = source(tmp_path, "a.npz", found)
    ends = []
    for number in range(12):
        out = tmp_path / f"{number}"
        ends.append(_killed_at(number, when, path, out))
        store = convert_features([path], out, dtype="float32", shard_items=4)
        assert sorted(store.keys()) == sorted(found)
        assert all(torch.equal(store[key], torch.from_numpy(v)) for key, v in found.items())
        assert sum(shard["items"] for shard in store.index["shards"]) == 9
        assert not [file.name for file in out.iterdir() if file.name.startswith(".")]
    assert ends == [signal.SIGKILL] * 9 + [0] * 3  # three shards and three files, each was met


def _killed_at(number, when, path, out):
    """Convert in a process that dies at a file's renaming; return the signal that ended it."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    replace, count = os.replace, iter(range(100))

    def deadly(aside, name):
        last = next(count) == number
        if last and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        replace(aside, name)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = deadly
    try:
        convert_features([path], out, dtype="float32", shard_items=4)
    except BaseException:  # nothing of the test may run on in here
        os._exit(1)
    os._exit(0)


def test_a_store_that_is_not_what_was_written_is_told(tmp_path, monkeypatch):
    path, out = source(tmp_path, "a.npz", values(4, 0)), tmp_path / "store"
    close = FeatureWriter.close

    def spoil(writer):
        close(writer)
        file = out / "shard-00000.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"\1")

    monkeypatch.setattr(FeatureWriter, "close", spoil)
    with pytest.raises(DataError, match="SHA-256 differs"):
        convert_features([path], out)


def test_sources_that_do_not_fit_together_are_told(tmp_path):
    first = source(tmp_path, "a.npz", values(3, 0))
    wide = source(tmp_path, "w.npz", {"x": np.zeros(DIM + 1, dtype=np.float32)})
    with pytest.raises(DataError, match=r"w\.npz has dim=7, .*a\.npz 6"):
        convert_features([first, wide], tmp_path / "store")
    with pytest.raises(DataError, match=r"key '0-0' is in another source as well"):
        convert_features([first, first], tmp_path / "store")
    with pytest.raises(DataError, match=r"2 paths and 1 files of ids"):
        convert_features([first, wide], tmp_path / "other", ids=["x"])
