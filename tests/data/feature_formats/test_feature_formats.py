"""Every format gives back what was written into it, by key, and says what is wrong with it."""

import json
import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset

from xlcm.data.dataset import ManifestDataset
from xlcm.data.feature_formats import open_features
from xlcm.data.manifest import DataError, ManifestWriter
from xlcm.types import Item

DIM = 6
IDS = ["a", "b b", "写真", "1234567890"]
LENGTHS = (3, 1, 5, 2)


def pooled(seed=0):
    random = np.random.default_rng(seed)
    return {name: random.normal(size=DIM).astype(np.float32) for name in IDS}


def frames(seed=0):
    random = np.random.default_rng(seed)
    sizes = zip(IDS, LENGTHS)
    return {name: random.normal(size=(size, DIM)).astype(np.float32) for name, size in sizes}


def matrix(values):
    return np.stack(list(values.values()))


def text(path, ids):
    path.write_text("".join(f"{name}\n" for name in ids), encoding="utf-8")
    return path


def npy(folder, values):
    np.save(folder / "x.npy", matrix(values))
    text(folder / "x.ids.txt", values)
    return folder / "x.npy"


def npz(folder, values):
    np.savez(folder / "x.npz", ids=np.array(list(values)), features=matrix(values))
    return folder / "x.npz"


def npz_by_key(folder, values):
    np.savez(folder / "x.npz", **values)
    return folder / "x.npz"


def npy_folder(folder, values):
    for name, value in values.items():
        np.save(folder / f"{name}.npy", value)
    return folder


def safetensors(folder, values):
    save_file({name: torch.from_numpy(v) for name, v in values.items()}, folder / "x.safetensors")
    return folder / "x.safetensors"


def hdf5(folder, values):
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "x.h5", "w") as file:
        for name, value in values.items():
            file[name] = value
    return folder / "x.h5"


def hdf5_in_a_group(folder, values):
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "x.hdf5", "w") as file:
        for name, value in values.items():
            file[f"resnet/{name}"] = value
    return folder / "x.hdf5"


def hdf5_matrix(folder, values):
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "x.h5", "w") as file:
        file["features"] = matrix(values)
        file["image_id"] = [name.encode() for name in values]
    return folder / "x.h5"


def lmdb_of(folder, encoded):
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(folder / "db"), map_size=1 << 24) as env, env.begin(write=True) as out:
        for name, data in encoded.items():
            out.put(name.encode(), data)
    return folder / "db"


def as_npy(value):
    import io

    out = io.BytesIO()
    np.save(out, value)
    return out.getvalue()


def lmdb_arrays(folder, values):
    return lmdb_of(folder, {name: as_npy(value) for name, value in values.items()})


def lmdb_bare(folder, values):
    return lmdb_of(folder, {name: value.tobytes() for name, value in values.items()})


def bigfile(folder, values, videos=None):
    """Write a BigFile; ids have no blanks there."""
    rows = matrix(values)
    (folder / "feature.bin").write_bytes(rows.astype("<f4").tobytes())
    (folder / "shape.txt").write_text(f"{len(rows)} {rows.shape[1]}\n")
    (folder / "id.txt").write_text(" ".join(values), encoding="latin-1")
    if videos is not None:
        (folder / "video2frames.txt").write_text(repr(videos))
    return folder


EITHER = [npz_by_key, npy_folder, safetensors, hdf5, hdf5_in_a_group, lmdb_arrays]


def check(store, values, kind):
    assert (store.kind, store.dim, len(store), store.views) == (kind, DIM, len(values), None)
    assert sorted(store.keys()) == sorted(values)
    for name, value in values.items():
        assert store[name].dtype == torch.float32
        assert torch.equal(store[name], torch.from_numpy(value))
    assert "nobody" not in store
    assert store.verify() == []
    with pytest.raises(DataError, match=r"no key 'nobody'") as raised:
        store["nobody"]
    assert raised.value.kind == "feature_missing"


@pytest.mark.parametrize("write", [npy, npz, hdf5_matrix, lmdb_bare, *EITHER])
def test_pooled_features_come_back_by_key(tmp_path, write):
    values = pooled()
    store = open_features(write(tmp_path, values))
    check(store, values, "pooled")
    asked = ["写真", "a", "写真"]
    assert torch.equal(store.rows(asked), torch.stack([store[name] for name in asked]))
    with pytest.raises(DataError, match=r"no key 'nobody'"):
        store.rows(["a", "nobody"])


@pytest.mark.parametrize("write", EITHER)
def test_frames_of_any_number_come_back_by_key(tmp_path, write):
    store = open_features(write(tmp_path, frames()))
    check(store, frames(), "tokens")
    with pytest.raises(ValueError, match="one by one"):
        store.rows(["a"])


@pytest.mark.parametrize("write", [npy, npz, hdf5_matrix, lmdb_bare, *EITHER])
def test_a_copy_in_a_worker_reads_the_same_and_carries_no_values(tmp_path, write):
    values = {name: np.repeat(value, 1) for name, value in pooled().items()}
    store = open_features(write(tmp_path, values))
    store["a"]
    sent = pickle.dumps(store)
    assert len(sent) < 4000
    check(pickle.loads(sent), values, "pooled")


@pytest.mark.parametrize("write", EITHER)
def test_forked_workers_read_at_once_what_the_parent_has_open(tmp_path, write):
    values = {f"{i}": np.full((3, DIM), i, dtype=np.float32) for i in range(64)}
    store = open_features(write(tmp_path, values))
    store["0"]  # opens the file in the parent
    keys = list(values) * 4
    loader = DataLoader(
        Keys(store, keys), batch_size=None, num_workers=2, multiprocessing_context="fork"
    )
    assert [int(value[0, 0]) for value in loader] == [int(key) for key in keys]


class Keys(Dataset):
    def __init__(self, store, keys):
        self.store, self.keys = store, keys

    def __len__(self):
        return len(self.keys)

    def __getitem__(self, index):
        return self.store[self.keys[index]]


def test_what_is_handed_out_may_be_changed(tmp_path):
    store = open_features(npy(tmp_path, pooled()))
    store["a"].zero_()
    assert torch.equal(store["a"], torch.from_numpy(pooled()["a"]))


def test_a_leading_axis_of_one_is_dropped(tmp_path):
    values = {name: value[None] for name, value in frames().items()}
    check(open_features(npy_folder(tmp_path, values)), frames(), "tokens")


def test_regions_of_padded_hdf5_are_cut_to_their_number_and_boxes_to_shares(tmp_path):
    h5py = pytest.importorskip("h5py")
    values = np.random.default_rng(0).normal(size=(2, 4, DIM)).astype(np.float32)
    corners = np.array([[[0, 0, 50, 100], [25, 50, 100, 200], [0, 0, 0, 0], [0, 0, 0, 0]]] * 2)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["features"], file["image_id"] = values, ["7", "8"]
        file["bbox"], file["num_boxes"], file["wh"] = corners, [2, 1], [[100, 200], [200, 200]]
        file["objects"] = np.zeros((2, 4))
    store = open_features(tmp_path / "x.h5")
    assert torch.equal(store["7"], torch.from_numpy(values[0, :2]))
    assert store["8"].shape == (1, DIM)
    expected = torch.tensor([[0, 0, 0.5, 0.5], [0.25, 0.25, 1, 1]])
    assert torch.equal(store.boxes("7"), expected)
    for size, wanted in (
        (4, expected),
        (5, torch.tensor([[0, 0, 0.5, 0.5, 0.25], [0.25, 0.25, 1, 1, 0.5625]])),
        (7, torch.tensor([[0, 0, 0.5, 0.5, 0.5, 0.5, 0.25],
                          [0.25, 0.25, 1, 1, 0.75, 0.75, 0.5625]])),
    ):  # fmt: skip
        boxed = pickle.loads(pickle.dumps(open_features(tmp_path / "x.h5", boxes=size)))
        assert (boxed.dim, len(boxed), "7" in boxed) == (DIM + size, 2, True)
        assert torch.equal(boxed["7"], torch.cat([store["7"], wanted], dim=1))


def test_regions_of_a_padded_npz_are_cut_to_their_number_and_boxes_to_shares(tmp_path):
    values = np.random.default_rng(0).normal(size=(2, 3, DIM)).astype(np.float32)
    corners = np.array([[[0, 0, 50, 100], [25, 50, 100, 200], [0, 0, 0, 0]]] * 2)
    arrays = {"features": values, "ids": np.array(["7", "8"]), "boxes": corners,
              "num_boxes": np.array([[2], [1]]), "wh": np.array([[100, 200], [200, 200]])}  # fmt: skip
    np.savez(tmp_path / "x.npz", **arrays)
    store = pickle.loads(pickle.dumps(open_features(tmp_path / "x.npz")))
    assert torch.equal(store["7"], torch.from_numpy(values[0, :2]))
    assert torch.equal(store["8"], torch.from_numpy(values[1, :1]))
    assert torch.equal(store.boxes("7"), torch.tensor([[0, 0, 0.5, 0.5], [0.25, 0.25, 1, 1]]))
    assert torch.equal(store.boxes("8"), torch.tensor([[0, 0, 0.25, 0.5]]))
    np.savez(tmp_path / "x.npz", **{**arrays, "num_boxes": np.array([2])})
    with pytest.raises(DataError, match=r"'num_boxes' must be \(2,\), got \(1,\)"):
        open_features(tmp_path / "x.npz")


@pytest.mark.parametrize("count", [0, 4])
@pytest.mark.parametrize("ending", ["npz", "h5"])
def test_an_impossible_number_of_regions_is_refused_and_named(tmp_path, ending, count):
    path = tmp_path / f"x.{ending}"
    arrays = {"features": np.ones((2, 3, DIM), np.float32), "boxes": np.full((2, 3, 4), 0.5),
              "num_boxes": np.array([2, count])}  # fmt: skip
    if ending == "h5":
        with pytest.importorskip("h5py").File(path, "w") as file:
            file["ids"] = ["7", "8"]
            for name, value in arrays.items():
                file[name] = value
    else:
        np.savez(path, ids=np.array(["7", "8"]), **arrays)
    store = open_features(path)
    assert store["7"].shape == (2, DIM)
    for read in (store.__getitem__, store.boxes):
        with pytest.raises(DataError, match=rf"'8' can't be read: .*frames is {count}, of 3 rows"):
            read("8")


@pytest.mark.parametrize("write", [npz_by_key, npy_folder])
def test_an_item_without_any_frame_is_refused(tmp_path, write):
    store = open_features(write(tmp_path, {**frames(), "none": np.zeros((0, DIM), np.float32)}))
    assert store["a"].shape == (3, DIM)
    with pytest.raises(DataError, match=r"'none' can't be read: shape \(0, 6\) is empty"):
        store["none"]


def test_boxes_in_groups_and_in_npz_values_are_found(tmp_path):
    h5py = pytest.importorskip("h5py")
    corners = np.full((3, 4), 0.5, dtype=np.float32)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for name, value in frames().items():
            file[f"{name}/features"], file[f"{name}/boxes"] = value, corners[: len(value)]
    store = open_features(tmp_path / "x.h5")
    check(store, frames(), "tokens")
    assert torch.equal(store.boxes("a"), torch.from_numpy(corners))
    np.savez(tmp_path / "one.npz", features=frames()["a"], boxes=corners)
    base = open_features(lmdb_of(tmp_path, {"a": (tmp_path / "one.npz").read_bytes()}))
    assert torch.equal(base.boxes("a"), torch.from_numpy(corners))


def test_pixels_of_a_picture_of_unknown_size_are_refused(tmp_path):
    np.savez(tmp_path / "one.npz", features=frames()["a"], boxes=np.full((3, 4), 80.0))
    store = open_features(lmdb_of(tmp_path, {"a": (tmp_path / "one.npz").read_bytes()}))
    with pytest.raises(DataError, match=r"boxes are in pixels \(up to 80\)"):
        store.boxes("a")
    with pytest.raises(DataError, match="there are no boxes in it"):
        open_features(npz_by_key(tmp_path, frames()), boxes=4)


# -- ids -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "ids"),
    [
        ("train-resnet_152-avgpool.npy", "train_id.txt"),
        ("val-resnet_152-avgpool.npy", "../val_id.txt"),
        ("test_2016_flickr-resnet152-avgpool.npy", "test_id_2016.txt"),
        ("trn.npy", "trn_names.npy"),
        ("trn.npy", "trn.json"),
        ("any.npy", "ids.txt"),
    ],
)
def test_the_usual_files_of_ids_are_found(tmp_path, file, ids):
    folder = tmp_path / "resnet152"
    folder.mkdir()
    np.save(folder / file, matrix(pooled()))
    if ids.endswith(".npy"):
        np.save(folder / ids, np.array(IDS))
    elif ids.endswith(".json"):
        (folder / ids).write_text(json.dumps(IDS))
    else:
        text(folder / ids, IDS)
    check(open_features(folder / file), pooled(), "pooled")


def test_ids_may_come_with_a_byte_order_mark_and_carriage_returns(tmp_path):
    np.save(tmp_path / "x.npy", matrix(pooled()))
    (tmp_path / "names").write_bytes("".join(f"{n}\r\n" for n in IDS).encode("utf-8-sig"))
    check(open_features(tmp_path / "x.npy", ids=tmp_path / "names"), pooled(), "pooled")


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (b"a\nb\nc\n", r"has 4 rows, .*ids\.txt 3 ids"),
        (b"a\nb\nc\nd\ne\n", r"has 4 rows, .*ids\.txt 5 ids"),
        (b"a\nb\na\nd\n", r"ids\.txt: id 'a' is at 1 and at 3"),
        (b"a\nb\n\nd\n", r"ids\.txt: id 3 is empty"),
        (b"a\nb\n\xff\nd\n", r"ids\.txt:3: not UTF-8; .*iconv"),
        (None, r"no file says which row is which item; .*feature_ids"),
    ],
)
def test_ids_that_do_not_fit_the_rows_are_told(tmp_path, ids, said):
    np.save(tmp_path / "x.npy", matrix(pooled()))
    if ids is not None:
        (tmp_path / "x.ids.txt").write_bytes(ids)
    with pytest.raises(DataError, match=said):
        open_features(tmp_path / "x.npy")


@pytest.mark.parametrize("write", [*EITHER, lmdb_bare])
def test_ids_for_features_that_have_keys_are_refused(tmp_path, write):
    with pytest.raises(DataError, match="knows its own keys; leave the file of ids"):
        open_features(write(tmp_path, pooled()), ids=text(tmp_path / "ids", IDS))


def test_a_matrix_in_safetensors_takes_its_ids_from_a_file(tmp_path):
    save_file({"values": torch.from_numpy(matrix(pooled()))}, tmp_path / "x.safetensors")
    text(tmp_path / "x.ids.txt", IDS)
    check(open_features(tmp_path / "x.safetensors"), pooled(), "pooled")


def test_a_bfloat16_tensor_is_read(tmp_path):
    save_file({"a": torch.ones(DIM, dtype=torch.bfloat16)}, tmp_path / "x.safetensors")
    assert torch.equal(open_features(tmp_path / "x.safetensors")["a"], torch.ones(DIM))


# -- BigFile -------------------------------------------------------------------------------------


def rows(count=70):
    values = np.random.default_rng(0).normal(size=(count, DIM)).astype(np.float32)
    return {f"v_{i}": values[i] for i in range(count)}


def test_single_rows_of_a_bigfile_are_its_images(tmp_path):
    store = open_features(bigfile(tmp_path, rows()))
    check(store, rows(), "pooled")
    asked = [f"v_{i}" for i in np.random.default_rng(1).permutation(70)]
    assert torch.equal(store.rows(asked), torch.from_numpy(np.stack([rows()[n] for n in asked])))


def test_videos_of_a_bigfile_keep_64_frames_in_order_and_their_mean_is_of_all(tmp_path):
    long = [f"v_{i}" for i in reversed(range(65))]
    store = open_features(bigfile(tmp_path, rows(), {"long": long, "short": ["v_69", "v_2"]}))
    assert (store.kind, len(store), list(store.keys())) == ("tokens", 2, ["long", "short"])
    every = torch.from_numpy(np.stack([rows()[name] for name in long]))
    assert torch.equal(store["long"], every[:64])
    torch.testing.assert_close(store.mean("long"), every.mean(dim=0))
    assert torch.equal(store["short"], torch.from_numpy(np.stack([rows()["v_69"], rows()["v_2"]])))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "feature.bin").write_bytes(bytes(100)), r"100 bytes, but shape\.txt says 70 x 6"),
        (lambda f: (f / "feature.bin").unlink(), r"feature\.bin: missing"),
        (lambda f: (f / "id.txt").unlink(), r"id\.txt: missing"),
        (lambda f: (f / "shape.txt").write_text("70"), r"shape\.txt: expected `<rows> <dims>`, got '70'"),
        (lambda f: (f / "id.txt").write_text("v_1 " * 70), r"id 'v_1' is at 1 and at 2"),
        (lambda f: (f / "id.txt").write_text("v_1 v_2"), r"has 70 rows, .*id\.txt 2 ids"),
        (lambda f: (f / "video2frames.txt").write_text("{'v': ['v_1', 'x']}"),
         r"frame 'x' of video 'v' is not in id\.txt"),
        (lambda f: (f / "video2frames.txt").write_text("{'v': []}"), r"video 'v' must have a list"),
        (lambda f: (f / "video2frames.txt").write_text("['v']"), r"expected \{video id: .*got a list"),
        (lambda f: (f / "video2frames.txt").write_text("{'v': open('gone', 'w').name}"),
         r"not a Python dictionary of names"),
    ],
)  # fmt: skip
def test_faults_of_a_bigfile_are_told(tmp_path, monkeypatch, spoil, said):
    monkeypatch.chdir(tmp_path)
    spoil(bigfile(tmp_path, rows(), {"v": ["v_1"]}))
    with pytest.raises(DataError, match=said):
        open_features(tmp_path)
    assert not (tmp_path / "gone").exists()  # nothing of the file was run


# -- what can't be read --------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.4, 0.9])
def test_an_lmdb_that_was_cut_off_is_told_and_does_not_kill_the_process(tmp_path, share):
    path = lmdb_bare(tmp_path, {str(n): np.full(64, n, "f4") for n in range(500)})
    file = path / "data.mdb"
    os.truncate(file, int(file.stat().st_size * share))
    with pytest.raises(DataError, match=r"db: cut off, [\d,]+ bytes of [\d,]+; copy it again"):
        open_features(path)


@pytest.mark.parametrize("write", [npy, npz, safetensors, hdf5, lmdb_arrays])
def test_a_file_cut_short_is_told_with_its_name(tmp_path, write):
    path = write(tmp_path, pooled())
    file = path / "data.mdb" if path.is_dir() else path
    file.write_bytes(file.read_bytes()[:90])
    with pytest.raises(DataError, match=path.name):
        open_features(path)


def test_objects_and_pickles_are_never_loaded(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    text(tmp_path / "x.ids.txt", ["a"])
    with pytest.raises(DataError, match="runs code"):
        open_features(tmp_path / "x.npy")
    with pytest.raises(DataError, match="runs code"):
        open_features(lmdb_of(tmp_path, {"a": pickle.dumps([1.0, 2.0])}))
    for name in ("x.pkl", "x.pt"):
        (tmp_path / name).write_bytes(pickle.dumps([1.0]))
        with pytest.raises(DataError, match=r"numpy\.savez or safetensors"):
            open_features(tmp_path / name)


def test_another_shape_or_type_within_one_file_is_told_at_its_key(tmp_path):
    values = pooled()
    values["b b"] = np.zeros(DIM + 1, dtype=np.float32)
    values["写真"] = np.array(["no", "number"])
    store = open_features(npz_by_key(tmp_path, values))
    assert store["a"].shape == (DIM,)
    for key, said in (("b b", r"'b b' .*shape \(7,\), where the first"), ("写真", "no numbers")):
        with pytest.raises(DataError, match=said) as raised:
            store[key]
        assert raised.value.kind == "feature_unreadable"


def test_a_path_of_no_known_format_is_told(tmp_path):
    (tmp_path / "x.csv").write_text("1,2")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"by the ending '\.csv'; known are"):
        open_features(tmp_path / "x.csv")
    for name in ("empty", "gone"):
        with pytest.raises(DataError, match=r"is no feature store"):
            open_features(tmp_path / name)
    with pytest.raises(DataError, match="leave the file of ids, x, out"):
        open_features(bigfile(tmp_path / "empty", rows()), ids="x")


# -- in a dataset --------------------------------------------------------------------------------


def manifest(folder):
    with ManifestWriter(folder / "m.jsonl") as writer:
        writer.write(Item("a", "train", ()))
        writer.write(Item("other", "train", (), features="b b"))
        writer.write(Item("gone", "train", ()))
    return str(folder / "m.jsonl")


def test_a_dataset_reads_any_format_as_it_reads_a_store(tmp_path):
    np.save(tmp_path / "x.npy", matrix(pooled()))
    names = str(text(tmp_path / "some.txt", IDS))
    where = {"path": manifest(tmp_path), "split": "train"}
    data = ManifestDataset(**where, features=str(tmp_path / "x.npy"), feature_ids=names)
    assert torch.equal(data.load_features(1), torch.from_numpy(pooled()["b b"]))
    with pytest.raises(DataError, match=r"m\.jsonl:3: features .*x\.npy have no key 'gone'"):
        data.load_features(2)
    with pytest.raises(ValueError, match="go with `features`"):
        ManifestDataset(**where, feature_ids=names)


def test_nan_in_another_format_is_told_with_the_line(tmp_path):
    values = {**pooled(), "a": np.full(DIM, np.nan, dtype=np.float32)}
    data = ManifestDataset(path=manifest(tmp_path), split="train",
                           features=str(npz(tmp_path, values)))  # fmt: skip
    with pytest.raises(DataError, match=r"m\.jsonl:1: features 'a' .* NaN") as raised:
        data.load_features(0)
    assert raised.value.kind == "feature_not_finite"


def test_small_integers_are_multiplied_by_their_scale(tmp_path):
    values = np.arange(24, dtype=np.uint8).reshape(4, DIM)
    scale = np.linspace(0.1, 0.6, DIM, dtype=np.float32)
    np.savez(tmp_path / "x.npz", feature=values, image=np.array(IDS), scale=scale)
    check(open_features(tmp_path / "x.npz"), dict(zip(IDS, values * scale)), "pooled")
    store = pickle.loads(pickle.dumps(open_features(tmp_path / "x.npz")))
    assert torch.equal(store.rows(IDS), torch.from_numpy(values * scale))


def test_a_npy_file_that_is_cut_anywhere_is_said_to_be(tmp_path):
    path = tmp_path / "x.npy"
    (tmp_path / "x.ids.txt").write_text("a\nb\n")
    np.save(path, np.ones((2, 3), np.float32))
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"x\.npy: .* it is cut off.* bytes.*; copy it again"):
            open_features(path)
    path.write_text("no array")
    with pytest.raises(DataError, match=r"x\.npy: this array can't be read: (?!it is cut off)"):
        open_features(path)


def test_the_features_of_the_real_photographs_are_found_by_the_items_of_their_list(shared):
    folder = shared / "data" / "photos"
    path = folder / "features_mobilenetv2_100_128px.npz"
    if not path.is_file():
        pytest.skip(f"no {path}")
    store = open_features(path)
    assert (store.kind, store.dim, len(store)) == ("pooled", 1280, 8091)
    with np.load(path) as found:
        key, row, scale = str(found["image"][77]), found["feature"][77], found["scale"]
    assert torch.equal(store[key], torch.from_numpy(row * scale))
    lines = (folder / "images.jsonl").read_text(encoding="utf-8").splitlines()
    named = [value for value in json.loads(lines[0]).values() if isinstance(value, str)]
    assert any(value in store for value in named)


def test_whatever_byte_of_an_hdf5_file_is_damaged_it_is_a_fault_of_the_data(tmp_path):
    path = hdf5(tmp_path, {f"k{n}": np.full(4, n, dtype=np.float32) for n in range(20)})
    whole, told = path.read_bytes(), 0
    for at in (*range(200), *range(200, len(whole), 61)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :])
        store = None  # or HDF5 would know the file from before
        try:  # and no other fault than this one
            store = open_features(path)
            for key in store.keys():  # noqa: SIM118
                store[key]
        except DataError:
            told += 1
    assert told > 50  # a damaged number is a number
