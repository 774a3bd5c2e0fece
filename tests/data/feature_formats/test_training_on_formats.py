"""Training reads features of other formats as it reads a store."""

import os

import numpy as np
import pytest
import tiny

from xlcm.data.check import find_bad_rows
from xlcm.data.dataset import ManifestDataset
from xlcm.data.features import FeatureStore


@pytest.fixture
def foreign(tiny_data, tmp_path):
    """The features of the tiny data as a matrix with ids."""
    store = FeatureStore(tiny_data / "store")
    names = list(store.keys())
    np.save(tmp_path / "x.npy", store.rows(names).numpy())
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n")
    return {"features": str(tmp_path / "x.npy"), "feature_ids": str(tmp_path / "names.txt")}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_on_a_matrix_is_that_on_a_store_bit_for_bit(tiny_data, tmp_path, foreign, workers):
    run = {"run": {"steps": 3}}
    tiny.train(tiny.tree(tiny_data, tmp_path / "store", **run))
    data = {"train": foreign, "workers": workers}
    tiny.train(tiny.tree(tiny_data, tmp_path / "npy", **run, data=data))
    losses = [[row["loss"] for row in tiny.metrics(tmp_path / name)] for name in ("store", "npy")]
    assert losses[0] == losses[1]


def test_faults_are_found_before_the_run_and_again_when_the_file_has_changed(
    tiny_data, tmp_path, foreign, monkeypatch
):
    monkeypatch.setenv("XLCM_CACHE", str(tmp_path / "cache"))
    where = {"path": str(tiny_data / "tiny.jsonl"), "split": "val"}
    assert find_bad_rows(ManifestDataset(**where, **foreign)) == []
    values = np.load(foreign["features"])
    names = (tmp_path / "names.txt").read_text().split()
    values[names.index("val3")] = np.nan
    np.save(foreign["features"], values)
    (tmp_path / "names.txt").write_text("\n".join(names).replace("val5\n", "val5b\n") + "\n")
    faults = find_bad_rows(ManifestDataset(**where, **foreign))
    assert {(fault.item, fault.kind) for fault in faults} == {
        ("val3", "feature_not_finite"), ("val5", "feature_missing"),
    }  # fmt: skip


def test_a_file_that_changes_inside_a_folder_is_looked_at_again(tmp_path, tiny_data, monkeypatch):
    monkeypatch.setenv("XLCM_CACHE", str(tmp_path / "cache"))
    store = FeatureStore(tiny_data / "store")
    folder = tmp_path / "npy"
    folder.mkdir()
    for name in list(store.keys()):
        np.save(folder / f"{name}.npy", store[name].numpy())
    where = {"path": str(tiny_data / "tiny.jsonl"), "split": "val", "features": str(folder)}
    assert find_bad_rows(ManifestDataset(**where)) == []
    inside = folder / "val3.npy"
    before = inside.stat()
    np.save(inside, np.full_like(np.load(inside), np.nan))
    # older than the others, and of the same size
    os.utime(inside, ns=(before.st_atime_ns, before.st_mtime_ns - 10**9))
    assert [fault.item for fault in find_bad_rows(ManifestDataset(**where))] == ["val3"]
