import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml

from xlcm import hub
from xlcm.data.features import FeatureWriter
from xlcm.encoders.text_spec import with_tokenizer
from xlcm.encoders.tokenizer import SentencePieceTokenizer
from xlcm.models.dual_encoder import DualEncoder
from xlcm.training.checkpoint import write_tensors

TEXTS = ["a red square", "ein rotes Quadrat", "红色的方块", ""]
REPORT = {
    "dataset": "scenes",
    "split": "test",
    "protocol": {"gallery": 1000},
    "results": [
        {"lang": lang, "direction": direction, "queries": 1000, "gallery": 900, "r1": r1,
         "r5": 70.25, "r10": 88.125, "median_rank": 2.0, "mean_rank": 4.5, "map": 55.0,
         "ci95": {"r1": [r1 - 2, r1 + 2]}}
        for lang, r1 in (("en", 48.5), ("de", 41.25))
        for direction in ("text_to_image", "image_to_text")
    ],
    "sum_r": {"en": 413.75, "de": 399.5},
}  # fmt: skip
BERT = {
    "model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 16,
}  # fmt: skip
MT5 = {"model_type": "mt5", "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
TEXT_TOWERS = {
    "bag": {"name": "bag", "width": 16, "context": "gru"},
    "bert": {"name": "hf", "architecture": BERT},
    "mt5": {"name": "hf", "architecture": MT5},  # embeddings tied under two names
    "refined": {"name": "refined", "width": 16, "key_width": 8, "heads": 2,
                "encoder": {"name": "bag", "width": 12}},
}  # fmt: skip


@pytest.fixture
def tokenizer(tmp_path):
    folder = tmp_path / "tokenizer of the run"
    made = SentencePieceTokenizer(vocab_size=400).train(TEXTS * 5).save(folder)
    return {**made, "path": str(folder)}


def make(tokenizer, tower="bag", **options):
    torch.manual_seed(0)
    text = with_tokenizer(TEXT_TOWERS[tower], tokenizer)
    spec = {"image": {"name": "features", "width": 8}, "text": text, "width": 12, **options}
    return DualEncoder.from_config(spec)


@pytest.fixture
def saved(tokenizer, tmp_path):
    model = make(tokenizer)
    return model, model.save_pretrained(tmp_path / "model", languages=["en", "de"])


# -- round trip ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tower", TEXT_TOWERS)
def test_round_trip_is_bit_for_bit(tokenizer, tmp_path, tower):
    model = make(tokenizer, tower, bias=-10.0, image_head="batch_norm", learn_temperature=False)
    model.save_pretrained(tmp_path / "model", languages=["en"], about={"data": "scenes"})
    os.rename(tokenizer["path"], tmp_path / "gone")  # the folder must stand on its own
    os.rename(tmp_path / "model", tmp_path / "elsewhere")
    again = DualEncoder.from_pretrained(tmp_path / "elsewhere")
    mine, theirs = model.state_dict(), again.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[k], theirs[k]) for k in mine)
    assert torch.equal(again.encode_text(TEXTS), model.encode_text(TEXTS))
    features = torch.randn(3, 8)
    assert torch.equal(again.encode_features(features), model.encode_features(features))
    assert (again.languages, again.about) == (("en",), {"data": "scenes"})
    assert not again.training


def test_round_trip_of_an_image_tower_keeps_its_transform(tokenizer, tmp_path):
    image = {"name": "timm", "backbone": "resnet10t", "image_size": 32, "mean": [0.1, 0.2, 0.3]}
    model = make(tokenizer, image=image)
    again = DualEncoder.from_pretrained(model.save_pretrained(tmp_path / "model"))
    picture = torch.randint(0, 256, (3, 45, 40), dtype=torch.uint8)
    assert torch.equal(again.encode_image(picture), model.encode_image(picture))


def test_a_fresh_process_without_network_opens_it(saved, tmp_path):
    model, folder = saved
    code = (
        "import sys, torch; from xlcm.models.dual_encoder import DualEncoder; "
        f"rows = DualEncoder.from_pretrained(sys.argv[1]).encode_text({TEXTS!r}); "
        "torch.save(rows, sys.argv[2])"
    )
    out = tmp_path / "rows.pt"
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(Path(hub.__file__).parents[1]),
    }
    subprocess.run([sys.executable, "-c", code, folder, out], check=True, env=environment)
    assert torch.equal(torch.load(out, weights_only=True), model.encode_text(TEXTS))


def test_a_model_opened_and_saved_again_stays_the_same(saved, tmp_path):
    _, folder = saved
    second = DualEncoder.from_pretrained(folder).save_pretrained(tmp_path / "second" / "model")
    for name in ("config.json", "model.safetensors", "README.md"):
        assert (second / name).read_bytes() == (folder / name).read_bytes(), name


def test_a_folder_holds_what_it_should_and_no_pickle(saved):
    _, folder = saved
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert names == {
        "README.md", "config.json", "model.safetensors", "tokenizer/sentencepiece.model",
    }  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    assert config["format"] == hub.FORMAT
    assert config["languages"] == ["en", "de"]
    assert config["model"]["text"]["tokenizer"]["path"] == "tokenizer/sentencepiece.model"
    assert str(folder.parent) not in (folder / "config.json").read_text()


# -- writing ------------------------------------------------------------------------------------


def test_saving_over_an_older_model_replaces_all_of_it_and_nothing_else(saved, tokenizer):
    model, folder = saved
    model.save_pretrained(folder, report=REPORT)
    (folder / "notes.txt").write_text("mine")
    other = make(tokenizer, width=4)
    other.save_pretrained(folder)
    assert not (folder / "report.json").exists(), "figures of another model must go"
    assert (folder / "notes.txt").read_text() == "mine"
    assert DualEncoder.from_pretrained(folder).width == 4
    assert not list(folder.glob(".saving-*"))


def test_a_fault_while_writing_leaves_the_older_model_whole(saved, tokenizer, monkeypatch):
    model, folder = saved

    def full(*_):
        raise OSError(28, "No space left on device", str(folder))

    monkeypatch.setattr(safetensors.torch, "save_model", full)
    with pytest.raises(OSError, match="No space left"):
        make(tokenizer, width=4).save_pretrained(folder)
    monkeypatch.undo()
    again = DualEncoder.from_pretrained(folder)
    assert torch.equal(again.encode_text(TEXTS), model.encode_text(TEXTS))
    assert not list(folder.glob(".saving-*"))


def test_a_stop_between_two_files_is_noticed(saved, tokenizer, monkeypatch):
    _, folder = saved
    moved, replace = [], os.replace

    def stop(source, target):
        if Path(target).parent == folder:
            moved.append(target)
            if len(moved) == 2:
                raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        make(tokenizer, width=4).save_pretrained(folder)
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError, match=r"config\.json.*interrupted"):
        DualEncoder.from_pretrained(folder)


def test_a_file_in_the_way_is_named(tokenizer, tmp_path):
    (tmp_path / "taken").touch()
    with pytest.raises(NotADirectoryError, match="taken is a file"):
        make(tokenizer).save_pretrained(tmp_path / "taken")


# -- reading ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer"])
def test_missing_files_are_named(saved, name):
    _, folder = saved
    (folder / name).rename(folder / "hidden")
    with pytest.raises(FileNotFoundError, match=name):
        DualEncoder.from_pretrained(folder)


def test_a_newer_format_says_to_upgrade(saved):
    _, folder = saved
    config = json.loads((folder / "config.json").read_text())
    config.update(format=hub.FORMAT + 1, xlcm_version="9.9")
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"written by xlcm 9\.9.*pip install --upgrade"):
        DualEncoder.from_pretrained(folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "bert"}'])
def test_a_config_of_something_else_is_refused(saved, text):
    _, folder = saved
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json is not"):
        DualEncoder.from_pretrained(folder)


def test_weights_of_another_model_or_cut_short_are_refused(saved, tokenizer, tmp_path):
    _, folder = saved
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="does not fit"):
        DualEncoder.from_pretrained(folder)
    other = make(tokenizer, text_head="mlp").save_pretrained(tmp_path / "other")
    (folder / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="does not fit"):
        DualEncoder.from_pretrained(folder)


def test_a_path_that_is_not_there_never_reaches_the_hub(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "_download", lambda *_: pytest.fail("a path was taken for a hub id"))
    for missing in (tmp_path / "no" / "such", "./gone", "gone", "runs/mine/model"):
        expected = rf"no folder .*expected {Path(missing)}/config\.json and .*model\.safetensors"
        with pytest.raises(FileNotFoundError, match=expected):
            DualEncoder.from_pretrained(missing)
    _, folder = saved
    with pytest.raises(FileNotFoundError, match=r"config\.json is a file: .*give the folder"):
        DualEncoder.from_pretrained(folder / "config.json")


def test_the_folder_of_a_run_is_told_from_its_model(saved):
    _, folder = saved
    with pytest.raises(FileNotFoundError, match=f"folder of a run: .*give its model, {folder}$"):
        DualEncoder.from_pretrained(folder.parent)


def test_a_name_that_is_neither_folder_nor_to_be_had_is_explained(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="'some/model': there is no such folder here"):
        DualEncoder.from_pretrained("some/model")


def test_from_the_hub_takes_the_folder_that_it_downloads(saved, monkeypatch):
    model, folder = saved
    asked = {}

    def download(repo, **options):
        asked.update(options, repo=repo)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    again = DualEncoder.from_pretrained("some/model", revision="v1")
    assert torch.equal(again.encode_text(TEXTS), model.encode_text(TEXTS))
    assert (asked["repo"], asked["revision"]) == ("some/model", "v1")


# -- card ---------------------------------------------------------------------------------------


def test_card_states_languages_towers_figures_and_how_to_load(tokenizer, tmp_path):
    about = {"data": "scenes, 20,000 pictures", "method": "contrastive", "licence": "apache-2.0"}
    folder = make(tokenizer).save_pretrained(
        tmp_path / "my-model", report=REPORT, languages=["en", "de", "zh-Hant"], about=about
    )
    card = (folder / "README.md").read_text(encoding="utf-8")
    matter = yaml.safe_load(card.split("---")[1])
    assert matter["library_name"] == "xlcm"
    assert matter["language"] == ["de", "en", "zh"]
    assert matter["license"] == "apache-2.0"
    index = matter["model-index"][0]["results"]
    assert len(index) == 4
    assert index[0]["metrics"][0] == {"type": "r1", "name": "R@1", "value": 48.5}
    assert "| de | text → image | 1000 | 900 | 41.2 [39.2, 43.2] | 70.2 | 88.1 | 2 |" in card
    for word in ("en, de, zh-Hant", "scenes, 20,000 pictures", "contrastive", "`bag`", "`features`",
                 'from_pretrained("my-model")', "SumR", "413.8", "not measured: zh-Hant"):  # fmt: skip
        assert word in card, word
    assert json.loads((folder / "report.json").read_text()) == REPORT


def test_card_names_a_tower_inside_another(tokenizer, tmp_path):
    folder = make(tokenizer, "refined").save_pretrained(tmp_path / "model")
    card = (folder / "README.md").read_text()
    assert "`refined` (width 16, on `bag` (width 12)), at most 64 tokens" in card


def test_card_without_a_report_says_so(saved):
    _, folder = saved
    card = (folder / "README.md").read_text()
    assert "Not evaluated." in card
    assert "model-index" not in card


def test_a_report_with_figures_that_json_lacks_is_still_saved(tokenizer, tmp_path):
    report = json.loads(json.dumps(REPORT))
    report["results"][0].update(r1=float("nan"), median_rank=torch.tensor(3.0))
    folder = make(tokenizer).save_pretrained(tmp_path / "model", report=report)
    first = json.loads((folder / "report.json").read_text())["results"][0]
    assert first["r1"] is None
    assert first["median_rank"] == 3.0


# -- sharing ------------------------------------------------------------------------------------


class FakeHub:
    """Takes the place of HfApi and keeps what it is given."""

    def __init__(self, token=None):
        type(self).token = token

    def create_repo(self, repo_id, **options):
        type(self).created = (repo_id, options)
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        opened = DualEncoder.from_pretrained(folder_path)
        card = (Path(folder_path) / "README.md").read_text(encoding="utf-8")
        type(self).uploaded = (repo_id, opened.languages, card, commit_message)


def test_push_creates_the_repository_and_uploads_a_whole_model(tokenizer, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", FakeHub)
    address = make(tokenizer).push_to_hub("me/model", token="secret", languages=["de"])
    assert address == "https://huggingface.co/me/model"
    assert FakeHub.token == "secret"
    assert FakeHub.created == ("me/model", {"private": True, "exist_ok": True})
    repo, languages, card, message = FakeHub.uploaded
    assert (repo, languages, message) == ("me/model", ("de",), "Upload an xlcm model")
    assert "# model\n" in card
    assert "secret" not in card


def test_push_explains_what_the_hub_refused(tokenizer, monkeypatch):
    class Refusing(FakeHub):
        def create_repo(self, repo_id, **options):
            raise OSError("403 Forbidden")

    monkeypatch.setattr("huggingface_hub.HfApi", Refusing)
    with pytest.raises(ConnectionError, match=r"403 Forbidden.*hf auth login"):
        make(tokenizer).push_to_hub("me/model")


@pytest.mark.skipif(os.name != "posix", reason="rights of files are POSIX's")
@pytest.mark.parametrize(("rights", "expected"), [(0o755, 0o644), (0o775, 0o664), (0o700, 0o600)])
def test_weights_are_for_those_who_may_read_their_folder(tokenizer, tmp_path, rights, expected):
    for name in ("model", "store", "run"):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(rights)
    make(tokenizer).save_pretrained(tmp_path / "model")
    with FeatureWriter(tmp_path / "store", kind="pooled", dim=2) as writer:
        writer.add("a", torch.ones(2))
    write_tensors({"a": torch.ones(2)}, tmp_path / "run" / "best.safetensors")
    found = {p.stat().st_mode & 0o777 for p in tmp_path.glob("*/*.safetensors")}
    assert found == {expected}
