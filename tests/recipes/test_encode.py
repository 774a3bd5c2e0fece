"""recipes/encode.py: the encoder's own features, whoever made them and however often interrupted."""

import json
import re
import shutil

import numpy as np
import pytest
import tiny
import torch
import yaml
from safetensors.torch import save_file

from xlcm.config import ConfigError, build
from xlcm.data.dataset import ManifestDataset
from xlcm.data.features import FeatureStore, FeatureWriter
from xlcm.data.manifest import DataError
from xlcm.models.dual_encoder import DualEncoder
from xlcm.registry import datasets, image_encoders
from xlcm.types import Visual

IMAGE = {"name": "timm", "backbone": "test_vit", "image_size": 32}


def config(data, folder, **changes):
    """Write a config of the recipe; return its path."""
    spec = {
        "image": IMAGE, "manifest": str(data / "tiny.jsonl"), "output": str(folder / "store"),
        "batch_size": 5, "workers": 0, "shard_items": 10, **changes,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "encode.yaml"
    path.write_text(yaml.safe_dump(spec))
    return str(path)


def encode(path):
    """Run the recipe in this process, as one of several if it is in the pool."""
    tiny.forget_processes()
    return tiny.recipe("encode.py").main(path)


def encode_in_pool(path):
    """Run the recipe on this process of several."""
    processes = tiny.join_pool()
    return {"processes": processes, "code": tiny.recipe("encode.py").main(path)}


def own(data, split="val", kind="pooled"):
    """Return the encoder's features of the pictures, one by one."""
    torch.manual_seed(0)
    encoder = build(image_encoders, IMAGE).eval()
    dataset = ManifestDataset(path=str(data / "tiny.jsonl"), split=split)
    pixels = torch.stack([encoder.transform(dataset.load_image(i)) for i in range(len(dataset))])
    with torch.no_grad():
        encoded = encoder(Visual(pixels))
    ids = [dataset[i].id for i in range(len(dataset))]
    return dict(zip(ids, getattr(encoded, kind)))


def close(store, expected):
    """Float16 on disk: 11 bits of each number."""
    for key, value in expected.items():
        torch.testing.assert_close(store[key], value, rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def finished(tiny_data, tmp_path_factory):
    """The store of a whole run on one process."""
    folder = tmp_path_factory.mktemp("encoded")
    assert encode(config(tiny_data, folder)) == 0
    return FeatureStore(folder / "store")


@pytest.mark.parametrize("kind", ["pooled", "tokens"])
def test_features_are_those_of_the_encoder(tiny_data, tmp_path, kind):
    assert encode(config(tiny_data, tmp_path, kind=kind, splits=["val"])) == 0
    store = FeatureStore(tmp_path / "store")
    assert (store.kind, len(store)) == (kind, 16)
    close(store, own(tiny_data, kind=kind))
    assert store.encoder["image"]["backbone"] == "test_vit"


def test_every_split_is_encoded_and_training_reads_the_store(tiny_data, tmp_path, finished):
    assert len(finished) == 96
    assert finished.verify() == []
    features = {"features": str(finished.folder)}
    sections = {
        "data": {"train": features},
        "model": {"image": {"width": finished.dim}},
        "run": {"steps": 2},
    }
    tiny.train(tiny.tree(tiny_data, tmp_path, **sections))
    assert len(tiny.metrics(tmp_path)) == 2


def test_views_begin_with_the_unchanged_picture_and_differ_by_seed(tiny_data, tmp_path):
    augment = {"colour": 0.5, "crop": 0.5}
    stores = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        given = {"kind": "views", "views": 3, "splits": ["val"], "augment": augment, "seed": seed}
        assert encode(config(tiny_data, tmp_path / name, **given)) == 0
        stores.append(FeatureStore(tmp_path / name / "store"))
    one, same, other = (torch.stack([s[k] for k in s.keys()]) for s in stores)  # noqa: SIM118
    assert one.shape == (16, 3, stores[0].dim)
    close({k: stores[0][k][0] for k in own(tiny_data)}, own(tiny_data))
    assert torch.equal(one, same)
    assert not torch.equal(one[:, 0], one[:, 1])
    assert not torch.equal(one[:, 1:], other[:, 1:])
    path = config(tiny_data, tmp_path / "c", **{**given, "seed": 2})
    with pytest.raises(DataError, match=r"another folder"):  # never mixed in one store
        encode(path)


def test_an_interrupted_run_goes_on_after_its_last_shard(
    tiny_data, tmp_path, monkeypatch, finished
):
    path = config(tiny_data, tmp_path)
    add, added = FeatureWriter.add, []

    def counted(writer, key, value, **about):
        if len(added) == 37:
            raise KeyboardInterrupt
        added.append(key)
        add(writer, key, value, **about)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureWriter, "add", counted)
        with pytest.raises(KeyboardInterrupt):
            encode(path)
    with pytest.raises(DataError, match=r"unfinished \(30 items so far\)"):
        FeatureStore(tmp_path / "store")
    first, added[:] = list(added), []

    def again(writer, key, value, **about):
        added.append(key)
        add(writer, key, value, **about)

    monkeypatch.setattr(FeatureWriter, "add", again)
    assert encode(path) == 0
    assert len(added) == 96 - 30
    assert not set(first[:30]) & set(added)
    same_store(FeatureStore(tmp_path / "store"), finished)


def test_a_finished_store_is_not_made_again(tiny_data, tmp_path, monkeypatch):
    path = config(tiny_data, tmp_path, splits=["val"])
    encode(path)
    monkeypatch.setattr(FeatureWriter, "add", lambda *given, **about: pytest.fail("encoded again"))
    assert encode(path) == 0
    assert len(FeatureStore(tmp_path / "store")) == 16


def test_another_encoder_does_not_continue_a_store(tiny_data, tmp_path):
    encode(config(tiny_data, tmp_path, splits=["val"]))
    other = {**IMAGE, "image_size": 64}
    with pytest.raises(DataError, match=r"another folder or delete this one"):
        encode(config(tiny_data, tmp_path, splits=["val"], image=other))


@pytest.mark.parametrize("shard_items", [5, 100])
def test_other_pictures_under_the_keys_of_a_store_are_refused(tiny_data, tmp_path, shard_items):
    given = {"splits": ["val"], "shard_items": shard_items}
    encode(config(tiny_data, tmp_path, **given))
    lines = (tiny_data / "tiny.jsonl").read_text().splitlines(keepends=True)[64:80]
    (tmp_path / "moved.jsonl").write_text("".join(lines))
    for i in range(16):
        shutil.copy(tiny_data / f"val{i}.png", tmp_path)
    (tmp_path / "val3.png").unlink()  # encoded and no longer needed
    moved = config(tiny_data, tmp_path, manifest=str(tmp_path / "moved.jsonl"), **given)
    assert encode(moved) == 0
    with (tmp_path / "val5.png").open("ab") as file:
        file.write(b"more")
    said = r"moved\.jsonl:6: .*store has features under the key 'val5'.*another folder"
    with pytest.raises(DataError, match=said):
        encode(moved)


def test_other_weights_in_the_same_place_do_not_continue_a_store(tiny_data, tmp_path):
    for seed in (0, 1):
        torch.manual_seed(seed)
        tower = build(image_encoders, IMAGE)
        save_file(tower.backbone.state_dict(), tmp_path / "model.safetensors")
        image = {**IMAGE, "weights": str(tmp_path / "model.safetensors")}
        path = config(tiny_data, tmp_path, splits=["val"], image=image)
        if seed == 0:
            assert encode(path) == 0
    with pytest.raises(DataError, match=r"weights='sha256:.*another folder"):
        encode(path)


def same_store(one, other):
    """Same keys, same values."""
    assert list(one.keys()) == list(other.keys())
    for key in other.keys():  # noqa: SIM118
        np.testing.assert_allclose(one[key], other[key], rtol=2e-3, atol=1e-3)


def test_two_processes_make_the_store_of_one(tiny_data, tmp_path, finished, processes):
    found = processes.run(2, encode_in_pool, config(tiny_data, tmp_path, batch_size=7))
    assert [result["processes"] for result in found] == [2, 2]
    assert [result["code"] for result in found] == [0, 0]
    same_store(FeatureStore(tmp_path / "store"), finished)


def test_two_processes_share_an_odd_number_and_a_picture_that_two_splits_have(
    tiny_data, tmp_path, processes
):
    lines = [json.loads(line) for line in (tiny_data / "tiny.jsonl").read_text().splitlines()]
    lines = [item for item in lines if item["split"] == "val"][:7]
    again = {**lines[0], "id": "again", "split": "test", "features": "val0", "captions": []}
    twice = {**lines[1], "id": "twice", "features": "val1", "captions": []}
    (tmp_path / "odd.jsonl").write_text(
        "".join(json.dumps(item) + "\n" for item in [again, *lines, twice])
    )
    for item in [again, *lines]:
        (tmp_path / item["image"]).write_bytes((tiny_data / item["image"]).read_bytes())
    path = config(tiny_data, tmp_path, manifest=str(tmp_path / "odd.jsonl"))
    found = processes.run(2, encode_in_pool, path)
    assert [result["processes"] for result in found] == [2, 2]
    store = FeatureStore(tmp_path / "store")
    assert sorted(store.keys()) == [f"val{i}" for i in range(7)]
    expected = own(tiny_data)
    close(store, {key: expected[key] for key in store.keys()})  # noqa: SIM118


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_stops_with_file_and_line(tiny_data, tmp_path, workers):
    lines = (tiny_data / "tiny.jsonl").read_text().splitlines(keepends=True)
    lines[66] = lines[66].replace('"val2.png"', '"gone.png"')
    (tmp_path / "bad.jsonl").write_text("".join(lines[64:80]))
    path = config(
        tiny_data, tmp_path, manifest=str(tmp_path / "bad.jsonl"), splits=["val"], workers=workers
    )
    for i in range(16):
        (tmp_path / f"val{i}.png").write_bytes((tiny_data / f"val{i}.png").read_bytes())
    with pytest.raises(DataError, match=r"bad\.jsonl:3: .*gone\.png"):
        encode(path)


# -- data sets, and the towers of saved models ----------------------------------------------------


DRAWN = {"name": "scenes", "size": 9, "image_size": 32, "cache": None}


@pytest.fixture(scope="module")
def saved(tiny_data, tmp_path_factory):
    """A saved model that reads pictures."""
    torch.manual_seed(3)
    spec = tiny.tree(tiny_data, tiny_data, **tiny.pictures(tiny_data))["model"]
    folder = tmp_path_factory.mktemp("saved") / "model"
    DualEncoder.from_config(spec).save_pretrained(folder)
    return folder


def of_model(folder, saved, **changes):
    """Write a config that encodes scenes by a saved model."""
    splits = [{**DRAWN, "split": "train"}, {**DRAWN, "split": "val", "size": 4}]
    spec = {"model": str(saved), "data": splits, "output": str(folder / "store"), "workers": 0}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "encode.yaml"
    path.write_text(yaml.safe_dump({**spec, **changes}))
    return str(path)


def test_scenes_are_encoded_by_the_tower_of_a_saved_model(saved, tmp_path):
    assert encode(of_model(tmp_path, saved)) == 0
    store = str(tmp_path / "store")
    model = DualEncoder.from_pretrained(saved).eval()
    for split, size in (("train", 9), ("val", 4)):
        dataset = build(datasets, {**DRAWN, "split": split, "size": size, "features": store})
        pixels = [model.image.transform(dataset.load_image(i)) for i in range(size)]
        with torch.no_grad():
            expected = model.image(Visual(torch.stack(pixels))).pooled
        close({i: dataset.load_features(i) for i in range(size)}, dict(enumerate(expected)))
    assert len(FeatureStore(store)) == 13


def test_two_processes_encode_scenes_as_one(saved, tmp_path, processes):
    assert encode(of_model(tmp_path / "one", saved)) == 0
    found = processes.run(2, encode_in_pool, of_model(tmp_path / "two", saved, batch_size=2))
    assert [result["code"] for result in found] == [0, 0]
    same_store(*(FeatureStore(tmp_path / name / "store") for name in ("two", "one")))


def test_a_store_knows_the_weights_of_the_model_and_not_its_folder(saved, tmp_path):
    encode(of_model(tmp_path, saved))
    moved = tmp_path / "moved"
    shutil.copytree(saved, moved)
    assert encode(of_model(tmp_path, moved)) == 0
    model = DualEncoder.from_pretrained(moved)
    next(model.image.parameters()).data += 1
    model.save_pretrained(moved)
    with pytest.raises(DataError, match=r"another folder or delete this one"):
        encode(of_model(tmp_path, moved))


def test_scenes_of_another_seed_do_not_get_into_the_same_store(saved, tmp_path):
    both = [{**DRAWN, "split": "val", "seed": seed} for seed in (0, 1)]
    with pytest.raises(ConfigError, match=r"same ids and other pictures"):
        encode(of_model(tmp_path, saved, data=both))
    encode(of_model(tmp_path, saved, data=both[:1]))
    with pytest.raises(DataError, match=r"another folder or delete this one"):
        encode(of_model(tmp_path, saved, data=both[1:]))


def test_a_key_that_stands_for_two_pictures_is_told(tiny_data, saved, tmp_path):
    lines = (tiny_data / "tiny.jsonl").read_text().splitlines(keepends=True)
    other = [line.replace('"val0.png"', '"val1.png"') for line in lines if '"val0"' in line]
    (tmp_path / "other.jsonl").write_text("".join(other))
    first = {"name": "manifest", "path": str(tiny_data / "tiny.jsonl"), "split": "val"}
    second = {**first, "path": str(tmp_path / "other.jsonl"), "image_root": str(tiny_data)}
    with pytest.raises(DataError, match=r"other\.jsonl:1: key 'val0' stands for .*val1\.png"):
        encode(of_model(tmp_path, saved, data=[first, second]))
    assert encode(of_model(tmp_path / "same", saved, data=[first, dict(first)])) == 0


def test_a_key_that_stands_for_two_pictures_of_one_manifest_is_told(tiny_data, saved, tmp_path):
    lines = (tiny_data / "tiny.jsonl").read_text().splitlines(keepends=True)
    line = next(line for line in lines if '"val0"' in line)
    (tmp_path / "twice.jsonl").write_text(line + line.replace('"val0.png"', '"val1.png"'))
    data = [{"name": "manifest", "path": str(tmp_path / "twice.jsonl"), "split": "val",
             "image_root": str(tiny_data)}]  # fmt: skip
    with pytest.raises(DataError, match=r"twice\.jsonl:2: key 'val0' stands for .*val1\.png"):
        encode(of_model(tmp_path, saved, data=data))


def test_a_model_of_features_has_no_tower_for_pictures(tiny_data, tmp_path):
    DualEncoder.from_config(tiny.tree(tiny_data, tmp_path)["model"]).save_pretrained(tmp_path / "m")
    with pytest.raises(ConfigError, match=r"reads features of width 8 and no pictures"):
        encode(of_model(tmp_path, tmp_path / "m"))
    with pytest.raises(FileNotFoundError, match="gone"):
        encode(of_model(tmp_path, tmp_path / "gone"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image": IMAGE}, "`image` or by `model`, one of the two; both are given"),
        ({"model": None}, "`image` or by `model`, one of the two; neither is given"),
        ({"manifest": "m.jsonl"}, "`manifest` or by `data`, one of the two; both are given"),
        ({"splits": ["val"]}, "`splits` goes with `manifest`"),
        ({"data": []}, "'data'"),
        ({"data": [{"name": "scene"}]}, "did you mean 'scenes'?"),
    ],
)
def test_what_encodes_and_what_is_encoded_are_said_once(saved, tmp_path, changes, said):
    with pytest.raises(ConfigError) as raised:
        encode(of_model(tmp_path, saved, **changes))
    assert said in str(raised.value)


# -- faults that are skipped ---------------------------------------------------------------------


@pytest.fixture
def spoilt(tiny_data, tmp_path):
    """The validation pictures with three faults: one gone, one cut short, one line of no item."""
    lines = [line for line in (tiny_data / "tiny.jsonl").read_text().splitlines() if '"val' in line]
    lines = lines[:15]  # odd, so that of two processes one repeats the first
    for i in range(15):
        (tmp_path / f"val{i}.png").write_bytes((tiny_data / f"val{i}.png").read_bytes())
    (tmp_path / "val0.png").unlink()
    (tmp_path / "val8.png").write_bytes((tiny_data / "val8.png").read_bytes()[:40])
    lines.insert(3, lines[3][:-5])
    (tmp_path / "bad.jsonl").write_text("\n".join([*lines, ""]))
    return tmp_path


def skipping(tiny_data, folder, **changes):
    """Write a config that skips faults."""
    given = {"manifest": str(folder / "bad.jsonl"), "on_error": "skip", "max_skipped": 0.2}
    return config(tiny_data, folder, **{**given, **changes})


def told(folder):
    """Return line, item and kind of what is in `skipped.jsonl`, sorted by line."""
    rows = map(json.loads, (folder / "store" / "skipped.jsonl").read_text().splitlines())
    found = [(int(row["where"].rpartition(":")[2]), row["item"], row["kind"]) for row in rows]
    return sorted(found)


FAULTS = [(1, "val0", "image_missing"), (4, "", "bad_line"), (10, "val8", "image_undecodable")]


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_pictures_are_skipped_and_listed_if_so_wished(tiny_data, spoilt, capsys, workers):
    path = skipping(tiny_data, spoilt, workers=workers)
    assert encode(path) == 0
    assert told(spoilt) == FAULTS
    assert "3 item(s) skipped, listed in" in capsys.readouterr().out
    store = FeatureStore(spoilt / "store")
    expected = own(tiny_data)
    assert sorted(store.keys()) == sorted(set(expected) - {"val0", "val8", "val15"})
    close(store, {key: expected[key] for key in store.keys()})  # noqa: SIM118


def test_a_second_picture_under_a_key_is_skipped_and_listed_if_so_wished(tiny_data, tmp_path):
    lines = [line for line in (tiny_data / "tiny.jsonl").read_text().splitlines() if '"val' in line]
    for i in range(len(lines)):
        (tmp_path / f"val{i}.png").write_bytes((tiny_data / f"val{i}.png").read_bytes())
    rows = [json.loads(line) for line in lines]
    rows[7]["features"] = "val3"
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="key 'val3' stands for"):
        encode(skipping(tiny_data, tmp_path, on_error="raise"))
    assert encode(skipping(tiny_data, tmp_path)) == 0
    assert told(tmp_path) == [(8, "val7", "duplicate_key")]
    close(FeatureStore(tmp_path / "store"),
          {k: v for k, v in own(tiny_data).items() if k != "val7"})  # fmt: skip


def test_a_picture_that_comes_back_is_added_by_the_next_run(tiny_data, spoilt):
    encode(skipping(tiny_data, spoilt))
    (spoilt / "val0.png").write_bytes((tiny_data / "val0.png").read_bytes())
    assert encode(skipping(tiny_data, spoilt)) == 0
    assert told(spoilt) == FAULTS[1:]
    close(FeatureStore(spoilt / "store"), {"val0": own(tiny_data)["val0"]})


def test_more_bad_pictures_than_allowed_stop_all_the_same(tiny_data, spoilt):
    with pytest.raises(DataError) as raised:
        encode(skipping(tiny_data, spoilt, max_skipped=0.18))
    assert "split 'val': 3 of 16 items can't be read so far, 18.8%" in str(raised.value)
    assert "bad.jsonl:1: image 'val0.png': no such file" in str(raised.value)
    with pytest.raises(DataError, match=r"bad\.jsonl:4: "):
        encode(skipping(tiny_data, spoilt, on_error="raise", splits=["val"]))


def test_two_processes_skip_alike(tiny_data, spoilt, processes):
    found = processes.run(2, encode_in_pool, skipping(tiny_data, spoilt, batch_size=3))
    assert [result["code"] for result in found] == [0, 0]
    assert told(spoilt) == FAULTS
    store, expected = FeatureStore(spoilt / "store"), own(tiny_data)
    assert sorted(store.keys()) == sorted(set(expected) - {"val0", "val8", "val15"})
    close(store, {key: expected[key] for key in store.keys()})  # noqa: SIM118


def test_an_untrained_tower_and_what_was_there_before_are_told(tiny_data, tmp_path, capsys):
    for said in (r"16 pictures are in [^,]*\n", "16 pictures are in .*, 16 of them from before"):
        assert encode(config(tiny_data, tmp_path, splits=["val"])) == 0
        out = capsys.readouterr().out
        assert re.search(said, out)
        assert "features of an untrained tower; `image.weights` names some" in out


def test_the_difference_to_a_store_is_told_and_not_all_of_its_settings(tiny_data, tmp_path):
    assert encode(config(tiny_data, tmp_path, splits=["val"])) == 0
    other = {**IMAGE, "image_size": 64}
    with pytest.raises(DataError, match=r"has encoder\.image\.image_size=32, not 64; .*choose"):
        encode(config(tiny_data, tmp_path, splits=["val"], image=other))
