import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from xlcm.data.dataset import ManifestDataset
from xlcm.data.features import FeatureStore, FeatureWriter
from xlcm.data.manifest import DataError, ManifestWriter
from xlcm.data.mapped import spanned
from xlcm.data.subset import Subset
from xlcm.types import Item

DIM = 8


def vectors(count: int, *shape: int) -> torch.Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))


def fill(folder, values, **options):
    settings = {"kind": "pooled", "dim": DIM, "dtype": "float32", "shard_items": 10, **options}
    with FeatureWriter(folder, **settings) as writer:
        for i, value in enumerate(values):
            writer.add(f"image {i}", value)
    return FeatureStore(folder)


def test_pooled_features_come_back_by_key_over_shards(tmp_path):
    values = vectors(35, DIM)
    store = fill(tmp_path, values, encoder={"name": "timm", "backbone": "x"})
    assert len(list(tmp_path.glob("shard-*.safetensors"))) == 4
    assert all(torch.equal(store[f"image {i}"], values[i]) for i in range(35))
    assert sorted(store.keys()) == sorted(f"image {i}" for i in range(35))
    assert (len(store), "image 34" in store, "image 35" in store, "" in store) == (
        35,
        True,
        False,
        False,
    )
    assert "image 3\0" not in store
    assert torch.equal(store.rows(["image 20", "image 3"]), values[[20, 3]])
    assert store.encoder == {"name": "timm", "backbone": "x"}
    assert store.verify() == []


def test_keys_of_any_script_and_length_are_told_apart(tmp_path):
    keys = ["a", "aa", "a" * 500, "写真", "写真1", "é", "z"]
    with FeatureWriter(tmp_path, kind="pooled", dim=1, dtype="float32") as writer:
        for i, key in enumerate(keys):
            writer.add(key, torch.tensor([float(i)]))
    store = FeatureStore(tmp_path)
    assert [float(store[key]) for key in keys] == list(range(len(keys)))
    assert "a" * 600 not in store
    assert "写" not in store


def test_half_precision_on_disk_is_float32_in_memory(tmp_path):
    values = vectors(5, DIM)
    store = fill(tmp_path, values, dtype="float16")
    assert store["image 1"].dtype == torch.float32
    assert torch.equal(store["image 1"], values[1].half().float())


def test_token_features_keep_their_lengths(tmp_path):
    values = [vectors(1, length, DIM)[0] for length in (3, 1, 7, 2) * 6]
    store = fill(tmp_path, values, kind="tokens")
    assert all(torch.equal(store[f"image {i}"], value) for i, value in enumerate(values))
    with pytest.raises(ValueError, match="one by one"):
        store.rows(["image 0"])


def test_views_of_one_picture_are_read_one_by_one(tmp_path):
    values = vectors(25, 3, DIM)
    store = fill(tmp_path, values, kind="views", views=3)
    assert torch.equal(store["image 24"], values[24])
    assert torch.equal(store.view("image 24", 2), values[24, 2])
    assert store.rows(["image 1", "image 2"]).shape == (2, 3, DIM)
    with pytest.raises(IndexError, match="view 3 of 3"):
        store.view("image 0", 3)


def test_a_dataset_hands_out_features_by_key_or_id(tmp_path):
    fill(tmp_path / "store", vectors(3, 2, DIM), kind="views", views=2)
    with ManifestWriter(tmp_path / "m.jsonl") as writer:
        writer.write(Item("image 1", "train", ()))
        writer.write(Item("b", "train", (), features="image 2"))
        writer.write(Item("c", "train", ()))
    data = ManifestDataset(
        path=str(tmp_path / "m.jsonl"), split="train", features=str(tmp_path / "store")
    )
    for index, row in ((0, 1), (1, 2)):
        views = data.load_features(index)
        assert isinstance(views, list)
        assert torch.equal(torch.stack(views), vectors(3, 2, DIM)[row])
    with pytest.raises(DataError, match=r"m\.jsonl:3: feature store .*store has no key 'c'"):
        data.load_features(2)
    assert torch.equal(
        pickle.loads(pickle.dumps(data)).load_features(0)[0], data.load_features(0)[0]
    )


def test_a_missing_key_names_key_store_and_neighbour(tmp_path):
    store = fill(tmp_path, vectors(3, DIM))
    with pytest.raises(
        DataError, match=r"has no key 'image_1'; did you mean 'image 1'\? \(3 keys\)"
    ):
        store["image_1"]


def test_an_interrupted_writer_goes_on_after_its_last_shard(tmp_path):
    values = vectors(35, DIM)
    settings = {"kind": "pooled", "dim": DIM, "dtype": "float32", "shard_items": 10}

    def interrupted():
        with FeatureWriter(tmp_path, **settings) as writer:
            for i in range(25):
                writer.add(f"image {i}", values[i])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(DataError, match=r"unfinished \(20 items so far\)"):
        FeatureStore(tmp_path)
    (tmp_path / "shard-00002.safetensors").write_bytes(b"half")  # not in the index, so it never was
    with FeatureWriter(tmp_path, **settings) as writer:
        assert len(writer) == 20
        for i in range(35):
            if f"image {i}" not in writer:
                writer.add(f"image {i}", values[i])
    store = FeatureStore(tmp_path)
    assert all(torch.equal(store[f"image {i}"], values[i]) for i in range(35))
    assert store.verify() == []


def test_a_finished_store_can_be_extended(tmp_path):
    fill(tmp_path, vectors(3, DIM))
    with FeatureWriter(tmp_path, kind="pooled", dim=DIM, dtype="float32") as writer:
        writer.add("later", torch.ones(DIM))
    store = FeatureStore(tmp_path)
    assert len(store) == 4
    assert torch.equal(store["later"], torch.ones(DIM))
    assert torch.equal(store["image 2"], vectors(3, DIM)[2])


def test_a_store_whose_extension_was_interrupted_is_unfinished(tmp_path):
    fill(tmp_path, vectors(3, DIM))
    writer = FeatureWriter(tmp_path, kind="pooled", dim=DIM, dtype="float32", shard_items=1)
    writer.add("later", torch.ones(DIM))
    with pytest.raises(DataError, match=r"unfinished \(4 items so far\)"):
        FeatureStore(tmp_path)


def test_a_store_of_another_encoder_is_not_continued(tmp_path):
    fill(tmp_path, vectors(1, DIM), encoder={"backbone": "a"})
    with pytest.raises(
        DataError, match=r"encoder.backbone=.a., not .b.; choose another folder or delete"
    ):
        FeatureWriter(tmp_path, kind="pooled", dim=DIM, dtype="float32", encoder={"backbone": "b"})


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("a", torch.ones(DIM), "key 'a' was written before"),
        ("", torch.ones(DIM), "must be 1 to 512 bytes"),
        ("x\ny", torch.ones(DIM), "must be 1 to 512 bytes"),
        ("é" * 300, torch.ones(DIM), "must be 1 to 512 bytes"),
        ("b", torch.ones(DIM + 1), r"must be \(8,\) for kind 'pooled', got \(9,\)"),
        ("b", torch.ones(1, DIM), r"got \(1, 8\)"),
        ("b", torch.full((DIM,), float("nan")), "not finite"),
        ("b", torch.full((DIM,), float("inf")), "not finite"),
        ("b", torch.full((DIM,), 1e6), "beyond float16"),
    ],
)
def test_a_bad_key_or_value_is_refused_on_writing(tmp_path, key, value, said):
    writer = FeatureWriter(tmp_path, kind="pooled", dim=DIM, dtype="float16")
    writer.add("a", torch.ones(DIM))
    with pytest.raises(DataError, match=said):
        writer.add(key, value)


def test_what_was_added_is_not_changed_by_its_owner(tmp_path):
    row = torch.ones(DIM)
    with FeatureWriter(tmp_path, kind="pooled", dim=DIM, dtype="float32") as writer:
        writer.add("a", row)
        row.zero_()
    assert float(FeatureStore(tmp_path)["a"].sum()) == DIM


def test_tables_of_keys_that_are_not_those_of_the_shards_are_found(tmp_path):
    assert fill(tmp_path, vectors(15, DIM)).verify() == []
    rows = np.load(tmp_path / "rows.npy")
    for wrong in (rows[::-1].copy(), rows[:-1]):
        np.save(tmp_path / "rows.npy", wrong)
        (fault,) = FeatureStore(tmp_path).verify()
        assert "rows.npy differ from the keys in the shards" in fault


@pytest.mark.parametrize("kept", [1000, 0])
@pytest.mark.parametrize("damage", [lambda rows: rows[:-1], lambda rows: rows * 7, lambda r: -r])
def test_damaged_tables_of_keys_are_named_and_never_a_wrong_row(
    tmp_path, monkeypatch, kept, damage
):
    monkeypatch.setattr("xlcm.data.features.MEMORY_KEYS", kept)
    fill(tmp_path, vectors(15, DIM))
    np.save(tmp_path / "rows.npy", damage(np.load(tmp_path / "rows.npy")))
    store = FeatureStore(tmp_path)
    last = max(store.keys())
    for read in (lambda: store[last], lambda: store.rows(["image 0", last])):
        with pytest.raises(DataError, match=r"rows\.npy are damaged"):
            read()


@pytest.mark.parametrize("name", ["keys.npy", "rows.npy"])
def test_a_table_of_keys_without_a_whole_header_is_named(tmp_path, name):
    fill(tmp_path, vectors(2, DIM))
    whole = (tmp_path / name).read_bytes()
    for damaged in (b"", whole[:58] + b"'" + whole[59:], whole[:70]):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(DataError, match="table of keys can't be read"):
            FeatureStore(tmp_path)


@pytest.mark.parametrize("lost", ["count", "items", "sha256"])
def test_an_index_that_lacks_something_is_named(tmp_path, lost):
    fill(tmp_path, vectors(2, DIM))
    index = (tmp_path / "index.json").read_text()
    (tmp_path / "index.json").write_text(index.replace(f'"{lost}"', '"x"'))
    with pytest.raises(DataError, match=f"index.json: .*it has no {lost}"):
        FeatureStore(tmp_path)


def test_damage_is_found(tmp_path):
    fill(tmp_path, vectors(15, DIM))
    first, second = sorted(tmp_path.glob("shard-*"))
    tensors = load_file(first)
    tensors["values"][0] += 1
    save_file(tensors, first)
    second.unlink()
    store = FeatureStore(tmp_path)
    changed, missing = store.verify()
    assert "SHA-256 differs" in changed
    assert missing.endswith("missing")
    with pytest.raises(DataError, match="shard of the feature store is missing"):
        store["image 12"]


def test_what_is_no_store_is_named(tmp_path):
    with pytest.raises(DataError, match="is no feature store"):
        FeatureStore(tmp_path)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(DataError, match="not the index of a feature store"):
        FeatureStore(tmp_path)
    (tmp_path / "index.json").write_text(json.dumps({"version": 99}))
    with pytest.raises(DataError, match="format version 99"):
        FeatureStore(tmp_path)


def test_no_pickle_is_ever_read(tmp_path):
    fill(tmp_path, vectors(2, DIM))
    np.save(tmp_path / "keys.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="table of keys can't be read"):
        FeatureStore(tmp_path)


@pytest.mark.parametrize("kept", [1000, 0])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_many_are_taken_in_the_order_asked_from_one_shard_and_from_several(
    tmp_path, monkeypatch, dtype, kept
):
    monkeypatch.setattr("xlcm.data.features.MEMORY_KEYS", kept)  # 0: keys are searched on disk
    values = vectors(35, DIM)
    store = fill(tmp_path / "pooled", values, dtype=dtype)
    views = fill(tmp_path / "views", vectors(35, 2, DIM), kind="views", views=2, dtype=dtype)
    for numbers in ([34, 0, 11, 0, 29], [3, 1, 1], []):
        keys = [f"image {i}" for i in numbers]
        assert torch.equal(store.rows(keys), values[numbers].to(getattr(torch, dtype)).float())
        expected = vectors(35, 2, DIM)[numbers].to(getattr(torch, dtype)).float()
        assert torch.equal(views.rows(keys), expected)
    with pytest.raises(DataError, match="no key 'image 35'; did you mean"):
        store.rows(["image 1", "image 35"])
    for wrong in ("image 3" + "4" * 99, "image 3\0", "zoo"):
        with pytest.raises(DataError, match=r"no key '(image 3|zoo)"):
            store.rows(["image 1", wrong])


@pytest.mark.parametrize("shift", [0, 1, 4])
def test_rows_of_several_arrays_are_read_through_one_wherever_they_lie(shift):
    memory = np.zeros(4096, dtype=np.uint8)
    parts = [memory[start : start + 12 * n].view("<f4").reshape(n, 3)
             for start, n in ((2000 + shift, 5), (16, 4), (2400, 0), (1000, 7))]  # fmt: skip
    values = np.arange(48, dtype=np.float32).reshape(16, 3)
    for part, first in zip(parts, (0, 5, 9, 9)):
        part[:] = values[first : first + len(part)]
    whole, places = spanned(parts)
    rows = [15, 0, 4, 5, 8, 9, 9]
    assert np.array_equal(whole[places[rows]], values[rows])
    assert not whole.flags.writeable


def test_a_dataset_hands_out_pooled_rows_at_once_or_says_by_none_that_one_is_bad(tmp_path):
    values = vectors(3, DIM)
    fill(tmp_path / "store", values)
    with ManifestWriter(tmp_path / "m.jsonl") as writer:
        for i in range(4):
            writer.write(Item(f"image {i}", "train", ()))
    dataset = ManifestDataset(
        path=str(tmp_path / "m.jsonl"), split="train", features=str(tmp_path / "store")
    )
    items = [dataset[i] for i in range(4)]
    assert torch.equal(dataset.load_feature_rows([items[2], items[0]]), values[[2, 0]])
    part = Subset(dataset, [2, 1])
    assert torch.equal(part.load_feature_rows([part[0], part[1]]), values[[2, 1]])
    assert dataset.load_feature_rows(items) is None  # the fourth is in no store
    shard = tmp_path / "store" / "shard-00000.safetensors"
    tensors = {name: value.clone() for name, value in load_file(shard).items()}
    tensors["values"][1, 3] = float("nan")
    save_file(tensors, shard)
    dataset = ManifestDataset(
        path=str(tmp_path / "m.jsonl"), split="train", features=str(tmp_path / "store")
    )
    assert dataset.load_feature_rows([items[0], items[2]]) is not None
    assert dataset.load_feature_rows(items[:2]) is None


def test_boxes_come_back_and_a_store_without_them_says_so(tmp_path):
    corners = [torch.rand(length, 4) for length in (3, 1, 2)]
    settings = {"kind": "tokens", "dim": DIM, "shard_items": 2}
    with FeatureWriter(tmp_path / "a", boxes=True, **settings) as writer:
        for i, boxes in enumerate(corners):
            writer.add(f"{i}", torch.ones(len(boxes), DIM), boxes)
        with pytest.raises(DataError, match=r"boxes of 'x' must be \(2, 4\), got \(1, 4\)"):
            writer.add("x", torch.ones(2, DIM), corners[1])
        with pytest.raises(DataError, match=r"boxes of 'x' must be \(2, 4\), got None"):
            writer.add("x", torch.ones(2, DIM))
    store = FeatureStore(tmp_path / "a")
    assert all(torch.equal(store.boxes(f"{i}"), boxes) for i, boxes in enumerate(corners))
    with pytest.raises(DataError, match=r"boxes=True, not None; choose another folder"):
        FeatureWriter(tmp_path / "a", **settings)
    plain = fill(tmp_path / "b", vectors(2, 3, DIM), kind="tokens")
    assert not plain.has_boxes
    with pytest.raises(DataError, match="there are no boxes in it"):
        plain.boxes("image 0")


def test_a_store_that_is_not_there_is_told_with_the_nearest(tmp_path):
    (tmp_path / "features").mkdir()
    with pytest.raises(DataError, match="no such file or folder; did you mean 'features'"):
        FeatureStore(tmp_path / "feature")
