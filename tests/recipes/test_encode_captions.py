"""recipes/encode.py on captions: the text tower's own features, by caption id."""

import json
import threading

import pytest
import tiny
import torch
import yaml

from xlcm.config import ConfigError, build
from xlcm.data.dataset import ManifestDataset
from xlcm.data.features import FeatureStore, FeatureWriter
from xlcm.data.manifest import DataError
from xlcm.models.dual_encoder import DualEncoder
from xlcm.registry import text_encoders


def tower(data, **changes):
    return {**tiny.tree(data, data)["model"]["text"], **changes}


def config(data, folder, /, **changes):
    spec = {
        "text": tower(data), "manifest": str(data / "tiny.jsonl"), "batch_size": 7,
        "output": str(folder / "store"), "shard_items": 20, **changes,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "encode.yaml").write_text(yaml.safe_dump(spec))
    return str(folder / "encode.yaml")


def encode(path):
    tiny.forget_processes()
    return tiny.recipe("encode.py").main(path)


def encode_in_pool(path):
    tiny.join_pool()
    return tiny.recipe("encode.py").main(path)


def own(data, encoder=None, splits=("train", "val", "test"), langs=("en", "de")):
    """Return the encoder's features of the captions, one by one."""
    torch.manual_seed(0)
    encoder = (encoder or build(text_encoders, tower(data))).eval()
    found = {}
    for split in splits:
        dataset = ManifestDataset(path=str(data / "tiny.jsonl"), split=split)
        for i in range(len(dataset)):
            for caption in dataset[i].captions:
                if caption.lang in langs:
                    text = encoder.tokenizer([caption.text], [caption.lang])
                    with torch.no_grad():
                        found[caption.id] = encoder(text)
    return found


def close(store, expected, kind="pooled"):
    assert sorted(store.keys()) == sorted(expected)
    for key, value in expected.items():
        torch.testing.assert_close(store[key], getattr(value, kind)[0], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("kind", ["pooled", "tokens"])
def test_captions_are_those_of_the_encoder_without_padding(tiny_data, tmp_path, kind):
    assert encode(config(tiny_data, tmp_path, kind=kind, splits=["val"])) == 0
    store = FeatureStore(tmp_path / "store")
    assert (store.kind, len(store)) == (kind, 32)
    close(store, own(tiny_data, splits=["val"]), kind)


def test_one_language_of_every_split_and_cut_captions_are_told(tiny_data, tmp_path, capsys):
    short = tower(tiny_data)
    short["tokenizer"] = {**short["tokenizer"], "max_tokens": 4}
    assert encode(config(tiny_data, tmp_path, langs=["de"], text=short)) == 0
    store = FeatureStore(tmp_path / "store")
    assert len(store) == 96
    assert all(key.endswith("de") for key in store.keys())  # noqa: SIM118
    assert "longer than 4 tokens and were cut" in capsys.readouterr().out


def test_two_processes_encode_captions_as_one(tiny_data, tmp_path, processes):
    assert processes.run(2, encode_in_pool, config(tiny_data, tmp_path, splits=["val"])) == [0, 0]
    close(FeatureStore(tmp_path / "store"), own(tiny_data, splits=["val"]))


def test_captions_that_two_data_sets_share_are_encoded_once_by_two_processes(
    tiny_data, tmp_path, processes
):
    data = [{"name": "manifest", "path": str(tiny_data / "tiny.jsonl"), "split": "val"}]
    lines = (tiny_data / "tiny.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "more.jsonl").write_text("".join(lines[64:67] + lines[80:85]))
    for split in ("val", "test"):
        data.append({"name": "manifest", "path": str(tmp_path / "more.jsonl"), "split": split})
    path = config(tiny_data, tmp_path, manifest=None, data=data)
    assert processes.run(2, encode_in_pool, path) == [0, 0]
    expected = own(tiny_data, splits=["val", "test"])
    store = FeatureStore(tmp_path / "store")
    assert len(store) == 32 + 10
    close(store, {key: expected[key] for key in store.keys()})  # noqa: SIM118


def test_another_text_under_an_id_of_the_store_is_refused(tiny_data, tmp_path):
    encode(config(tiny_data, tmp_path, splits=["val"]))
    lines = (tiny_data / "tiny.jsonl").read_text().splitlines()
    item = json.loads(lines[70])
    item["captions"][1]["text"] += " indeed"
    (tmp_path / "new.jsonl").write_text(json.dumps(item) + "\n")
    said = rf"caption '{item['captions'][1]['id']}': .*store has features .*another folder"
    with pytest.raises(DataError, match=said):
        encode(config(tiny_data, tmp_path, manifest=str(tmp_path / "new.jsonl"), splits=["val"]))


def test_an_interrupted_run_goes_on_after_its_last_shard(tiny_data, tmp_path, monkeypatch):
    path = config(tiny_data, tmp_path)
    add, added = FeatureWriter.add, []

    def counted(writer, key, value, **about):
        if len(added) == 55:
            raise KeyboardInterrupt
        added.append(key)
        add(writer, key, value, **about)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureWriter, "add", counted)
        with pytest.raises(KeyboardInterrupt):
            encode(path)
    first, added[:] = list(added), []

    def again(writer, key, value, **about):
        added.append(key)
        add(writer, key, value, **about)

    monkeypatch.setattr(FeatureWriter, "add", again)
    assert encode(path) == 0
    assert len(added) == 192 - 40
    assert not set(first[:40]) & set(added)
    close(FeatureStore(tmp_path / "store"), own(tiny_data))


def test_the_text_tower_of_a_saved_model_encodes_captions(tiny_data, tmp_path):
    torch.manual_seed(3)
    model = DualEncoder.from_config(tiny.tree(tiny_data, tmp_path)["model"])
    model.save_pretrained(tmp_path / "model")
    given = {"text": None, "model": str(tmp_path / "model"), "captions": True, "splits": ["val"]}
    assert encode(config(tiny_data, tmp_path, **given)) == 0
    store = FeatureStore(tmp_path / "store")
    close(store, own(tiny_data, model.text, splits=["val"]))
    assert store.encoder["weights"].startswith("sha256:")


@pytest.mark.parametrize("budget", [None, 40])
def test_captions_are_batched_and_tokenised_as_encode_text_does_it(
    tiny_data, tmp_path, monkeypatch, budget
):
    torch.manual_seed(3)
    model = DualEncoder.from_config(tiny.tree(tiny_data, tmp_path)["model"])
    model.save_pretrained(tmp_path / "model")
    tower, tokenizer = type(model.text), type(model.text.tokenizer)
    forward, tokenise, seen, told = tower.forward, tokenizer.__call__, [], []

    def watched(self, text):
        seen.append(text.ids.clone())
        return forward(self, text)

    def watched_tokens(self, texts, langs=()):
        told.append((threading.current_thread() is threading.main_thread(), list(texts)))
        return tokenise(self, texts, langs)

    monkeypatch.setattr(tower, "forward", watched)
    monkeypatch.setattr(tokenizer, "__call__", watched_tokens)
    given = {"text": None, "model": str(tmp_path / "model"), "captions": True, "splits": ["train"],
             "batch_size": None, "max_batch_tokens": budget}  # fmt: skip
    assert encode(config(tiny_data, tmp_path, **given)) == 0
    recipe, [(in_main_thread, texts)] = list(seen), told
    assert len(texts) == 128
    assert not in_main_thread, "nothing else can run while captions are tokenised"
    seen.clear()
    model.encode_text(texts, ["en", "de"] * 64, max_batch_tokens=budget)
    assert len(recipe) == len(seen) > 1
    assert all(torch.equal(one, other) for one, other in zip(recipe, seen))


def test_a_compiled_tower_gives_the_same_captions(tiny_data, tmp_path, monkeypatch):
    graphs, original = [], torch.nn.Module.compile

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    def compile_by(module, **options):
        assert options == {"dynamic": True}
        original(module, backend=backend, **options)

    torch.compiler.reset()
    monkeypatch.setattr(torch.nn.Module, "compile", compile_by)
    given = {"splits": ["val"], "batch_size": None, "max_batch_tokens": 60}
    assert encode(config(tiny_data, tmp_path, **given, compile=True)) == 0
    torch.compiler.reset()
    assert graphs
    close(FeatureStore(tmp_path / "store"), own(tiny_data, splits=["val"]))


def test_half_precision_is_told_and_never_mixed_into_another_store(tiny_data, tmp_path):
    assert encode(config(tiny_data, tmp_path, splits=["val"], precision="bf16")) == 0
    store = FeatureStore(tmp_path / "store")
    assert store.encoder["precision"] == "bf16"
    close(store, own(tiny_data, splits=["val"]))
    with pytest.raises(DataError, match="encoder"):
        encode(config(tiny_data, tmp_path, splits=["val"]))


def test_an_id_with_two_texts_is_told(tiny_data, tmp_path):
    lines = (tiny_data / "tiny.jsonl").read_text().splitlines(keepends=True)
    other = [line.replace('"text": "ein', '"text": "zwei') for line in lines if '"val0"' in line]
    (tmp_path / "other.jsonl").write_text("".join(other))
    files = [tiny_data / "tiny.jsonl", tmp_path / "other.jsonl"]
    both = [{"name": "manifest", "path": str(file), "split": "val"} for file in files]
    with pytest.raises(DataError, match=r"other\.jsonl:1: caption id 'val0de' has another text"):
        encode(config(tiny_data, tmp_path, manifest=None, data=both))


def test_bad_lines_and_captions_are_skipped_and_listed_if_so_wished(tiny_data, tmp_path, capsys):
    lines = [line for line in (tiny_data / "tiny.jsonl").read_text().splitlines() if '"val' in line]
    lines[2] = lines[2][:-5]
    lines[5] = lines[5].replace('"val5de"', '"val4de"')
    (tmp_path / "bad.jsonl").write_text("\n".join([*lines, ""]))
    given = {"manifest": str(tmp_path / "bad.jsonl"), "splits": ["val"]}
    with pytest.raises(DataError, match=r"bad\.jsonl:3: "):
        encode(config(tiny_data, tmp_path / "a", **given))
    skipping = {**given, "on_error": "skip"}
    with pytest.raises(DataError, match=r"2 of \d+ items can't be read"):
        encode(config(tiny_data, tmp_path / "b", **skipping))
    assert encode(config(tiny_data, tmp_path / "c", **skipping, max_skipped=0.2)) == 0
    assert "2 line(s) and caption(s) skipped, listed in" in capsys.readouterr().out
    store = tmp_path / "c" / "store"
    rows = [json.loads(line) for line in (store / "skipped.jsonl").read_text().splitlines()]
    assert [(row["where"][-1], row["caption"], row["kind"]) for row in rows] == [
        ("3", None, "bad_line"), ("6", "val4de", "duplicate_caption"),
    ]  # fmt: skip
    expected = own(tiny_data, splits=["val"])
    gone = {key for key in expected if key.startswith("val2") and key[4:5].isalpha()} | {"val5de"}
    close(FeatureStore(store), {k: v for k, v in expected.items() if k not in gone})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image": {"name": "timm", "backbone": "test_vit"}}, "leave `image` and `model` out"),
        ({"captions": True}, "`captions` goes with `model`"),
        ({"kind": "views", "views": 2}, "captions have neither `frames` nor `views`"),
        ({"frames": {"count": 2}}, "captions have neither `frames` nor `views`"),
        ({"text": None, "max_batch_tokens": 9, "image": {"name": "timm", "backbone": "test_vit"}},
         "`max_batch_tokens` goes with captions"),
        ({"manifest": None}, "`manifest` or by `data`, one of the two; neither is given"),
        ({"text": None, "langs": ["en"], "image": {"name": "timm", "backbone": "test_vit"}},
         "`langs` goes with captions"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together_are_told(tiny_data, tmp_path, changes, said):
    with pytest.raises(ConfigError) as raised:
        encode(config(tiny_data, tmp_path, **changes))
    assert said in str(raised.value)


def test_languages_that_are_none_or_that_no_caption_is_in_are_errors(tiny_data, tmp_path):
    with pytest.raises(ConfigError, match=r"langs.*'ger' is no BCP 47.*did you mean 'de'"):
        encode(config(tiny_data, tmp_path, langs=["en", "ger"]))
    with pytest.raises(DataError, match=r"no caption in sw; there are .*de, en"):
        encode(config(tiny_data, tmp_path, langs=["en", "sw"]))
    assert not (tmp_path / "store").exists()
