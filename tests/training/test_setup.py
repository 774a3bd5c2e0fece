"""The folder of a run belongs to one config; what does not fit stops before any training."""

import math

import pytest
import small_models
import tiny
import yaml
from safetensors.torch import save_file

from xlcm.config import ConfigError, build, check, load, merge
from xlcm.data.manifest import DataError
from xlcm.registry import image_encoders, methods, text_encoders
from xlcm.training.continued import MAY_CHANGE
from xlcm.training.settings import TrainConfig
from xlcm.training.setup import start


@pytest.fixture
def begun(tiny_data, tmp_path):
    """The config of a run that has a checkpoint."""
    config = tiny.tree(tiny_data, tmp_path / "run", run={"steps": 2})
    tiny.train(config)
    return config


def test_another_config_in_the_same_folder_is_refused_by_key(begun):
    for changed, said in (
        ({"optim": {"lr": 0.5}}, r"optim\.lr: 0\.01 -> 0\.5"),
        ({"run": {"seed": 3}}, r"run\.seed: 0 -> 3"),
        ({"run": {"global_batch": 8}}, r"run\.global_batch: 16 -> 8"),
        ({"model": {"text": {"dropout": 0.3}}}, r"model\.text\.dropout: 0\.1 -> 0\.3"),
        ({"data": {"views": {"target": {"langs": ["en"]}}}}, r"data\.views\.target\.langs"),
    ):
        with pytest.raises(ConfigError, match=f"another config.*{said}.*run.output"):
            tiny.train(merge(begun, changed))


def test_what_does_not_change_the_training_may_change(begun, tmp_path):
    changed = {
        "run": {"steps": 3, "log_every": 7, "keep_checkpoints": 5, "max_nonfinite": 2},
        "evaluation": {"bootstrap": 33},
    }
    again = tiny.train(merge(begun, changed))
    assert len(again.names) == 1
    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert kept["evaluation"]["bootstrap"] == 33


def test_what_validations_are_scored_by_may_not_change(tiny_data, tmp_path):
    val = {"data": {"val": tiny.held_out(tiny_data, "val")}, "run": {"steps": 2}}
    begun = tiny.tree(tiny_data, tmp_path / "judged", **val)
    tiny.train(begun)
    with pytest.raises(ConfigError, match=r"another config.*evaluation\.langs"):
        tiny.train(merge(begun, {"evaluation": {"langs": ["en"]}, "run": {"steps": 3}}))
    tiny.train(merge(begun, {"evaluation": {"bootstrap": 3}, "run": {"steps": 3}}))


def test_keys_that_may_change_exist():
    for section, keys in MAY_CHANGE.items():
        known = TrainConfig.model_fields[section].annotation.model_fields
        assert keys <= set(known)


def test_resume_never_refuses_a_folder_with_checkpoints_and_takes_a_new_one(begun, tmp_path):
    never = {"run": {"resume": "never"}}
    with pytest.raises(ConfigError, match=r"run.resume is `never`.*another run.output"):
        tiny.train(merge(begun, never))
    fresh = {"run": {"resume": "never", "output": str(tmp_path / "fresh")}}
    assert len(tiny.train(merge(begun, fresh)).names) == 2


def test_the_written_config_alone_repeats_the_run(begun, tmp_path):
    kept = tmp_path / "run" / "config.yaml"
    again = load(TrainConfig, kept, [f"run.output={tmp_path / 'again'}"])
    tiny.train(again.model_dump(mode="json"))
    assert tiny.metrics(tmp_path / "run") == tiny.metrics(tmp_path / "again")
    one, other = tiny.weights(tmp_path / "run", 2), tiny.weights(tmp_path / "again", 2)
    assert all((one[name] == other[name]).all() for name in one)


def test_a_folder_without_checkpoints_is_begun_anew(tiny_data, tmp_path):
    config = tiny.tree(tiny_data, tmp_path, run={"steps": 2, "save_every": 2})
    with pytest.raises(tiny.Crash):
        tiny.train(config, crash_before=1)
    assert len(tiny.metrics(tmp_path)) == 1
    tiny.train(merge(config, {"optim": {"lr": 0.02}}))
    assert [record["step"] for record in tiny.metrics(tmp_path)] == [1, 2]


def test_a_view_that_the_method_needs_is_asked_for(tiny_data, tmp_path):
    config = tiny.tree(tiny_data, tmp_path)
    del config["data"]["views"]["target"]
    with pytest.raises(
        ConfigError, match=r"'contrastive' needs data.views.target; there are source"
    ):
        tiny.train(config)


def test_items_without_a_view_stop_the_run_or_are_left_out_and_counted(tiny_data, tmp_path, capsys):
    lines = (tiny_data / "tiny.jsonl").read_text().splitlines(keepends=True)
    lines[3] = lines[3].replace('"lang": "de"', '"lang": "fr"')
    (tmp_path / "tiny.jsonl").write_text("".join(lines))
    train = {"path": str(tmp_path / "tiny.jsonl"), "image_root": str(tiny_data)}
    config = tiny.tree(tiny_data, tmp_path / "run", data={"train": train}, run={"steps": 4})
    with pytest.raises(DataError, match=r"tiny\.jsonl:4: item 'train3' has no caption.*`target`"):
        tiny.train(config)
    run = tiny.train(merge(config, {"data": {"incomplete": "drop"}}))
    assert "1 items lack a caption" in capsys.readouterr().out
    assert "train3" not in {name for names in run.names for name in names}


def test_a_config_stops_at_its_faults_before_anything_is_built(tiny_data, tmp_path):
    good = tiny.tree(tiny_data, tmp_path / "run")
    for changed, said in (
        ({"optim": {"lrr": 1}}, "unknown key 'optim.lrr'; did you mean 'lr'"),
        ({"optim": {"lr": -1}}, "'optim.lr'"),
        ({"run": {"epochs": 2}}, "either run.steps or run.epochs"),
        ({"model": {"text": {"name": "bog"}}}, "bog"),
        ({"optim": {"lr": math.inf}}, r"'optim\.lr'.*finite"),
        ({"model": {"max_scale": math.inf}}, r"'model\.max_scale'.*finite"),
        ({"run": {"timeout_minutes": 1e12}}, r"'run\.timeout_minutes'.*525600"),
    ):
        with pytest.raises(ConfigError, match=said):
            start(check(TrainConfig, merge(good, changed)))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"run": {"micro_batch": 17}}, r"run\.micro_batch=17, but a process has only 16 rows"),
        ({"run": {"micro_batch": 4}, "method": {"name": "cl2cm", "word_score": 1.0}},
         r"run\.micro_batch: cl2cm can't be trained in pieces.*method\.word_score to 0, or.*null"),
        ({"run": {"length_pieces": 4}, "method": {"name": "nrccr", "discriminator": "strong"}},
         r"run\.length_pieces: nrccr can't be trained in pieces.*method\.discriminator.*weak.*\(0\)"),
        ({"run": {"micro_batch": 4}, "model": {"text": {"name": "refined"}}},
         r"run\.micro_batch: with legacy_padding \(model\.text\).*false"),
    ],
)  # fmt: skip
def test_pieces_that_can_not_be_are_refused_before_data_are_read(
    tiny_data, tmp_path, changed, said
):
    gone = {"data": {"train": {"path": str(tmp_path / "gone.jsonl")}}}
    config = merge(tiny.tree(tiny_data, tmp_path / "out"), gone)
    with pytest.raises(FileNotFoundError, match=r"gone\.jsonl"):
        tiny.train(config)
    changed = merge(config, {**changed, "run": {**changed["run"], "output": str(tmp_path / "new")}})
    if changed["model"]["text"]["name"] == "refined":
        changed["model"]["text"] = {
            "name": "refined", "legacy_padding": True, "encoder": config["model"]["text"]
        }  # fmt: skip
    with pytest.raises(ConfigError, match=said):
        tiny.train(changed)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("contrastive", {}), ("translate_train", {}), ("cl2cm", {}), ("cl2cm", {"word_score": 1.0}),
        ("nrccr", {}), ("nrccr", {"discriminator": "strong"}),
        ("nrccr", {"discriminator": "strong", "adversarial_weight": 0}),
    ],
)  # fmt: skip
def test_what_a_config_says_of_pieces_is_what_the_built_method_says(name, options):
    config = {"name": name, **options}
    built = build(methods, config, small_models.model(small_models.refined()))
    assert methods.get(name).cacheable_with(config) is built.cacheable


def test_layers_that_are_frozen_as_they_were_drawn_are_told(tiny_data, tmp_path, capsys):
    said = "model.image: `freeze` keeps layers as they were drawn at random"
    tower = tiny.pictures(tiny_data)["model"]["image"]
    save_file(build(image_encoders, tower).backbone.state_dict(), tmp_path / "model.safetensors")
    for name, changed, told in (
        ("trained", {}, False),
        ("all", {"freeze": "all"}, True),
        ("some", {"freeze": {"keep_last": 1}}, True),
        ("pretrained", {"freeze": "all", "weights": str(tmp_path)}, False),
    ):
        model = merge(tiny.pictures(tiny_data)["model"], {"image": changed})
        config = tiny.tree(tiny_data, tmp_path / name, model=model, run={"steps": 1})
        tiny.train(config)
        assert (said in capsys.readouterr().out) is told, name


def test_a_frozen_tower_inside_another_is_told_as_well(tiny_data):
    tokenizer = tiny.tree(tiny_data, tiny_data)["model"]["text"]["tokenizer"]
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    inner = {
        "name": "hf", "weights": None, "tokenizer": tokenizer,
        "architecture": {"model_type": "bert", "num_attention_heads": 2, **sizes},
    }  # fmt: skip
    for changed, told in (({}, False), ({"freeze": "all"}, True)):
        spec = {"name": "refined", "width": 16, "heads": 2, "encoder": {**inner, **changed}}
        assert build(text_encoders, spec).frozen_at_random() is told
