"""Every config that ships: it loads, fits its schema, prints itself, and its parts are built."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

from xlcm import cli
from xlcm.config import ConfigError, build, check_part, dump, load, read
from xlcm.data.scenes import Scenes
from xlcm.encoders.tokenizer import SentencePieceTokenizer
from xlcm.models.dual_encoder import DualEncoder
from xlcm.registry import Registry, image_encoders, losses, methods, models, text_encoders
from xlcm.schema import DIALECT, SECTIONS, argument_docs, export
from xlcm.training.stages import read_stages, shown

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIGS = REPOSITORY / "configs"
SHIPPED = {
    "contrastive/own.yaml": "train",
    "contrastive/photos.yaml": "train",
    "contrastive/photos_floor.yaml": "train",
    "c2kd/msrvtt.yaml": "train",
    "c2kd/photos.yaml": "train",
    "c2kd/rudder.yaml": "train",
    "c2kd/scenes.yaml": "train",
    "c2kd/vatex.yaml": "train",
    "c2kd/youcook2.yaml": "train",
    "cl2cm/mscoco_ja.yaml": "train",
    "cl2cm/mscoco_zh.yaml": "train",
    "cl2cm/multi30k_cs.yaml": "train",
    "cl2cm/multi30k_de.yaml": "train",
    "cl2cm/multi30k_fr.yaml": "train",
    "cl2cm/photos.yaml": "train",
    "cl2cm/scenes.yaml": "train",
    "cl2cm/vatex_zh.yaml": "train",
    "nrccr/mscoco_ja.yaml": "train",
    "nrccr/mscoco_zh.yaml": "train",
    "nrccr/msrvtt_cn_zh.yaml": "train",
    "nrccr/multi30k_de_legacy.yaml": "train",
    "nrccr/multi30k_task1_cs.yaml": "train",
    "nrccr/multi30k_task1_cs_resnet.yaml": "train",
    "nrccr/multi30k_task1_de.yaml": "train",
    "nrccr/multi30k_task1_fr.yaml": "train",
    "nrccr/multi30k_task2_cs.yaml": "train",
    "nrccr/multi30k_task2_de.yaml": "train",
    "nrccr/multi30k_task2_fr.yaml": "train",
    "nrccr/photos.yaml": "train",
    "nrccr/scenes.yaml": "train",
    "nrccr/vatex_zh.yaml": "train",
    "benchmarks/noise.yaml": "benchmark",
    "benchmarks/photos_mt.yaml": "benchmark",
    "benchmarks/photos_teacher.yaml": "train",
    "benchmarks/photos_text.yaml": "train",
    "benchmarks/scenes_features.yaml": "encode",
    "benchmarks/scenes_teacher.yaml": "train",
    "benchmarks/scenes_text.yaml": "train",
    "benchmarks/scenes_tower.yaml": "train",
    "encode/photos.yaml": "encode",
    "encode/photos_128.yaml": "encode",
    "evaluate/photos.yaml": "evaluate",
    "evaluate/scenes.yaml": "evaluate",
    "translate/nllb.yaml": "translate",
    "translate/scenes.yaml": "translate",
    "quickstart.yaml": "train",
}
"""Every file under configs/ and the recipe that reads it. A new config joins here."""

BASES = {
    "nrccr/base.yaml", "nrccr/base_image.yaml", "nrccr/base_video.yaml", "c2kd/base.yaml",
    "cl2cm/base.yaml", "cl2cm/base_image.yaml", "cl2cm/base_video.yaml",
}  # fmt: skip
"""Files that others extend, and that name no data of their own."""

LAUNCHERS = {
    "cpu.yaml": "MULTI_GPU",
    "gpus.yaml": "MULTI_GPU",
    "nodes.yaml": "MULTI_GPU",
    "fsdp.yaml": "FSDP",
    "deepspeed.yaml": "DEEPSPEED",
}
"""Files for `accelerate launch --config_file`, in configs/accelerate/; what they start."""

STANDS_FOR = {
    "google-bert/bert-base-multilingual-cased": "bert",
    "google-bert/bert-base-multilingual-uncased": "bert",
    "sentence-transformers/LaBSE": "bert",
    "sentence-transformers/distiluse-base-multilingual-cased-v2": "distilbert",
    "FacebookAI/xlm-roberta-base": "xlm-roberta",
    "openai/clip-vit-base-patch32": "clip_vision_model",
}
"""Kind of each backbone of the hub; without options transformers builds it as wide and deep."""


def section(recipe: str) -> Any:
    module, _, name = SECTIONS[recipe].partition(":")
    return getattr(__import__(module, fromlist=[name]), name)


def runs(name: str) -> list[Any]:
    """Return what a config does: one run, or one for each stage."""
    recipe = SHIPPED[name]
    return (
        read_stages(CONFIGS / name)
        if recipe == "train"
        else [load(section(recipe), CONFIGS / name)]
    )


def offline(spec: dict, tokenizer: str) -> dict:
    """Return a tower's config without the hub and files that may not be here, as large as it was."""
    spec = dict(spec)
    if "encoder" in spec:
        spec["encoder"] = offline(spec["encoder"], tokenizer)
    if spec["name"] == "hf":
        architecture = {"model_type": STANDS_FOR[spec["backbone"]]}
        spec |= {"backbone": None, "weights": None, "architecture": architecture}
    own = spec.get("tokenizer")
    if own is not None and not Path(str(own.get("path"))).exists():
        limit = own["max_tokens"]
        spec["tokenizer"] = {"name": "sentencepiece", "path": tokenizer, "max_tokens": limit}
    return spec


def tree(config: Any) -> dict:
    return config.model_dump(mode="json")  # a tuple that was a default comes back as a list


@pytest.fixture(scope="module")
def schemas() -> dict[str, dict]:
    return {recipe: export(recipe) for recipe in SECTIONS}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    SentencePieceTokenizer(vocab_size=400).train(["a red square", "ein rotes Quadrat"] * 5).save(
        folder
    )
    return str(folder)


# -- loading and building -----------------------------------------------------------------------


def test_the_list_of_configs_is_whole():
    found = {path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.y*ml")}
    assert found == {*SHIPPED, *BASES, *(f"accelerate/{name}" for name in LAUNCHERS)}


@pytest.mark.parametrize("name", LAUNCHERS)
def test_accelerate_takes_every_launcher_file_and_leaves_the_precision_to_the_run(name):
    path = CONFIGS / "accelerate" / name
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    config = load_config_from_file(str(path))
    assert str(config.distributed_type.value) == LAUNCHERS[name]
    assert config.mixed_precision == "no"
    known = {field.name for field in dataclasses.fields(config)}
    assert set(given) <= known  # accelerate drops unknown keys of some versions in silence
    spread = {**given.get("fsdp_config", {}), **given.get("deepspeed_config", {})}
    known = launch_command_parser()._option_string_actions
    assert {f"--{key}" for key in spread} <= set(known)
    if name == "deepspeed.yaml":
        assert spread["zero_stage"] in (1, 2)  # what ZeroAccelerator takes
        assert {spread[f"offload_{what}_device"] for what in ("optimizer", "param")} == {"none"}
    if name == "fsdp.yaml":
        assert spread["fsdp_version"] == 2


def extended(path: Path) -> Iterator[Path]:
    """Yield the files that a config extends, and those that they do."""
    parents = plain(path.relative_to(CONFIGS).as_posix()).get("extends", [])
    for parent in [parents] if isinstance(parents, str) else parents:
        above = (path.parent / parent).resolve()
        yield above
        yield from extended(above)


def test_every_base_is_extended_by_a_config_that_is_run():
    used = {above for name in SHIPPED for above in extended(CONFIGS / name)}
    assert {CONFIGS / name for name in BASES} <= used


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_config_loads_and_what_it_prints_loads_to_the_same(name, tmp_path):
    printed = tmp_path / "printed.yaml"
    if SHIPPED[name] == "train":
        printed.write_text(shown(CONFIGS / name), encoding="utf-8")
        again = read_stages(printed)
    else:
        (config,) = runs(name)
        printed.write_text(dump(config), encoding="utf-8")
        again = [load(type(config), printed)]
    assert [tree(one) for one in again] == [tree(one) for one in runs(name)]


@pytest.mark.parametrize("name", [name for name, recipe in SHIPPED.items() if recipe == "train"])
def test_every_model_and_method_is_built(name, tokenizer, monkeypatch):
    """Without weights, with architectures of the hub's sizes and a small tokenizer.

    Stages are built one on another, so that a teacher that doesn't fit is found.
    """
    monkeypatch.chdir(REPOSITORY)
    built: dict[str, DualEncoder] = {}
    monkeypatch.setattr(DualEncoder, "from_pretrained", built.__getitem__)
    for config in runs(name):
        spec = {tower: offline(config.model[tower], tokenizer) for tower in ("image", "text")}
        with torch.device("meta"):
            model = build(models, {**config.model, **spec})
            method = build(methods, config.method, model)
        assert method.retriever is model
        assert set(method.views) <= set(config.data.views)
        langs = {lang for view in config.data.views.values() for lang in view.langs}
        assert config.evaluation.source_lang in langs
        assert set(config.evaluation.langs or ()) <= langs
        built[f"{config.run.output}/model"] = model


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("nrccr/multi30k_task1_de.yaml", 3), ("nrccr/multi30k_task2_cs.yaml", 3),
        ("nrccr/multi30k_de_legacy.yaml", 3), ("nrccr/mscoco_ja.yaml", 3),
        ("nrccr/vatex_zh.yaml", 5), ("nrccr/msrvtt_cn_zh.yaml", 5),
    ],
)  # fmt: skip
def test_nrccr_trains_the_published_blocks_of_mbert_and_no_clip(name, first, tokenizer):
    (config,) = runs(name)
    with torch.device("meta"):
        text = build(text_encoders, offline(config.model["text"], tokenizer))
        image = build(image_encoders, offline(config.model["image"], tokenizer))
    embeddings, *blocks, refined = text.layers()
    trained = [any(p.requires_grad for p in layer.parameters()) for layer in blocks]
    assert trained == [number >= first for number in range(12)]
    assert not any(p.requires_grad for p in embeddings.parameters())
    assert all(p.requires_grad for p in refined.parameters())
    assert image.frozen == (config.model["image"]["name"] == "hf")


def test_teachers_of_c2kd_are_the_three_that_were_published():
    *teachers, student = runs("c2kd/msrvtt.yaml")
    assert [STANDS_FOR[one.model["text"]["backbone"]] for one in teachers] == [
        "distilbert", "bert", "xlm-roberta",
    ]  # fmt: skip
    assert student.method["teachers"] == [f"{one.run.output}/model" for one in teachers]
    assert {one.model["temperature"] for one in teachers} == {0.05}
    assert student.model["temperature"] == 0.1


@pytest.mark.parametrize("name", [name for name, recipe in SHIPPED.items() if recipe == "encode"])
def test_every_encoder_is_built_or_left_by_a_shipped_run(name):
    config = load(section("encode"), CONFIGS / name)
    if config.model is not None:
        trained = [runs(other)[-1] for other, recipe in SHIPPED.items() if recipe == "train"]
        assert config.model in {f"{run.run.output}/model" for run in trained}
        return
    with torch.device("meta"):
        assert build(image_encoders, {**config.image, "weights": None}).width > 0


def test_what_the_noise_benchmark_prepares_is_what_its_runs_read():
    """Steps are tied together by folders alone, so a renamed one would show hours later."""
    grid = load(section("benchmark"), CONFIGS / "benchmarks/noise.yaml")
    steps = [step.train or step.encode for step in grid.prepare]
    assert all((REPOSITORY / path).is_file() for path in [*steps, grid.base])
    tower, base = runs("benchmarks/scenes_tower.yaml")[-1], runs("benchmarks/scenes_text.yaml")[-1]
    store = load(section("encode"), CONFIGS / "benchmarks/scenes_features.yaml")
    with torch.device("meta"):
        width = build(image_encoders, tower.model["image"]).width
    assert base.model["image"]["width"] == width
    assert base.model["text"]["encoder"]["tokenizer"]["path"].startswith(f"{tower.run.output}/")
    sizes = {split["split"]: split["size"] for split in store.data}
    for split in (base.data.train, base.data.val, base.data.test):
        if split is not None:
            assert split["features"] == store.output
            assert split["size"] <= sizes[split["split"]]
    prepared = {f"runs/benchmarks/{Path(path).stem}/model" for path in steps}
    for method in grid.methods.values():
        for teacher in (method.method or {}).get("teachers", ()):
            assert teacher.startswith("stage:") or teacher in prepared


def test_features_of_the_photographs_fit_the_model_that_reads_them():
    encode = load(section("encode"), CONFIGS / "encode/photos.yaml")
    train = load(section("train"), CONFIGS / "contrastive/photos.yaml")
    with torch.device("meta"):
        width = build(image_encoders, {**encode.image, "weights": None}).width
    assert train.model["image"]["width"] == width
    assert train.data.train["features"] == encode.output


def test_the_config_for_own_data_trains_on_a_manifest_of_pictures(tiny_data, tmp_path):
    """With small pictures and random weights; the rest is what the user gets."""
    import tiny

    manifest = tiny_data / "tiny.jsonl"
    overrides = [f"data.{split}.path={manifest}" for split in ("train", "val", "test")]
    overrides += [
        "data.views.target.langs=[de]", "data.workers=0", "model.image.weights=null",
        "model.image.image_size=32", "model.text.tokenizer.vocab_size=320", "run.epochs=1",
        "run.global_batch=32", f"run.output={tmp_path}", "evaluation.bootstrap=10",
    ]  # fmt: skip
    tiny.forget_processes()
    main = tiny.recipe("train.py").main
    assert main(str(CONFIGS / "contrastive/own.yaml"), *overrides) == 0
    assert DualEncoder.from_pretrained(tmp_path / "model").encode_text("rot", "de").shape == (
        1,
        256,
    )


# -- the command line ---------------------------------------------------------------------------


def test_print_config_prints_what_loads_again_to_the_same(tmp_path, capsys, monkeypatch):
    arguments = [str(CONFIGS / "quickstart.yaml"), "run.seed=7", "model.text_head=mlp"]
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments, "--print-config"])
    assert cli.recipe(lambda *_: pytest.fail("it ran"), SECTIONS["train"], None) == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out, encoding="utf-8")
    config = load(section("train"), printed)
    assert tree(config) == tree(load(section("train"), arguments[0], arguments[1:]))
    assert config.run.seed == 7
    assert config.model["text_head"]["layers"] == 2  # the default is written out


def forbidden(constructor):
    """A constructor that fails the test; it keeps the signature, which is the part's schema."""

    @functools.wraps(constructor)
    def built(*_, **__):
        pytest.fail("something was built before the config was checked")

    return built


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optim.learning_rate=1", "unknown key 'optim.learning_rate'"),
        ("run.global_bach=4", "unknown key 'run.global_bach'; did you mean 'global_batch'?"),
        ("run.steps=5", "give either run.steps or run.epochs"),
        ("model.image.name=tim", "no image encoder is called 'tim'; did you mean 'timm'?"),
        ("model.text.widht=4", "unknown key 'model.text.widht'; did you mean 'width'?"),
        ("method.target_weight=-1", "'method.target_weight'"),
        ("data.train.split=trian", "'data.train.split'"),
        ("data.views.source.langs=en", "'data.views.source.langs'"),
        ("data.views=null", "'data.views'"),
    ],
)
def test_a_wrong_config_stops_before_data_or_model_is_touched(override, said, monkeypatch, capsys):
    for part in (DualEncoder, Scenes, Accelerator):
        monkeypatch.setattr(part, "__init__", forbidden(part.__init__))
    path = str(CONFIGS / "quickstart.yaml")
    monkeypatch.setattr(sys, "argv", ["train.py", path, override])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(REPOSITORY / "recipes" / "train.py"), run_name="__main__")
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"train.py: {path}: ")
    assert said in error
    assert "Traceback" not in error


# -- the schema for editors ---------------------------------------------------------------------


def violations(node: Any, schema: dict, root: dict, at: str = "") -> Iterator[str]:
    """Yield where a tree breaks a schema: the keywords that we write, and no others."""
    if "$ref" in schema:
        yield from violations(
            node, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root, at
        )
    if "if" in schema:
        met = not list(violations(node, schema["if"], root, at))
        yield from violations(node, schema["then" if met else "else"], root, at)
    if "anyOf" in schema and not any(
        not list(violations(node, inner, root, at)) for inner in schema["anyOf"]
    ):
        yield f"{at}: fits none of {len(schema['anyOf'])}"
    if "const" in schema and node != schema["const"]:
        yield f"{at}: not {schema['const']}"
    if "enum" in schema and node not in schema["enum"]:
        yield f"{at}: none of {schema['enum']}"
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
    kind = schema.get("type")
    number = isinstance(node, int | float) and not isinstance(node, bool)
    if kind in kinds and not isinstance(node, kinds[kind]):
        yield f"{at}: no {kind}"
    if kind in ("integer", "number") and not (
        number and (kind == "number" or float(node).is_integer())
    ):
        yield f"{at}: no {kind}"
    if number and not (
        schema.get("minimum", -math.inf) <= node <= schema.get("maximum", math.inf)
        and schema.get("exclusiveMinimum", -math.inf)
        < node
        < schema.get("exclusiveMaximum", math.inf)
    ):
        yield f"{at}: {node} is out of range"
    if isinstance(node, list):
        if not schema.get("minItems", 0) <= len(node) <= schema.get("maxItems", math.inf):
            yield f"{at}: {len(node)} entries"
        each = schema.get("prefixItems", [schema.get("items", {})] * len(node))
        for i, (value, inner) in enumerate(zip(node, each)):
            yield from violations(value, inner, root, f"{at}.{i}")
    if isinstance(node, dict):
        yield from (f"{at}: lacks {key}" for key in schema.get("required", []) if key not in node)
        for key, value in node.items():
            inner = schema.get("properties", {}).get(key, schema.get("additionalProperties", {}))
            if inner is False:
                yield f"{at}: unknown key {key}"
            elif isinstance(inner, dict):
                names = schema.get("propertyNames", {})
                yield from violations(key, names, root, f"{at}.{key}")
                yield from violations(value, inner, root, f"{at}.{key}")


def plain(name: str) -> dict:
    return yaml.safe_load((CONFIGS / name).read_text(encoding="utf-8"))


KEYWORDS = {
    "$schema", "$defs", "$ref", "title", "description", "default", "type", "if", "then", "else",
    "anyOf", "const", "enum", "properties", "additionalProperties", "propertyNames", "required",
    "items", "prefixItems", "minItems", "maxItems", "minimum", "maximum", "exclusiveMinimum",
    "exclusiveMaximum",
}  # fmt: skip


def nodes(schema: Any) -> Iterator[dict]:
    """Yield every schema inside a schema."""
    if isinstance(schema, dict):
        yield schema
        for key in ("properties", "$defs"):
            for inner in schema.get(key, {}).values():
                yield from nodes(inner)
        for key in ("anyOf", "prefixItems"):
            for inner in schema.get(key, []):
                yield from nodes(inner)
        for key in ("items", "additionalProperties", "propertyNames", "if", "then", "else"):
            yield from nodes(schema.get(key))


@pytest.mark.parametrize("recipe", SECTIONS)
def test_a_schema_is_valid_by_its_dialect(schemas, recipe):
    schema = json.loads(json.dumps(schemas[recipe], allow_nan=False))
    assert schema["$schema"] == DIALECT
    for node in nodes(schema):
        assert set(node) <= KEYWORDS, set(node) - KEYWORDS
        assert node.get("$ref", "#/$defs/").removeprefix("#/$defs/") in {"", *schema["$defs"]}
        known = {"extends", "stages"}
        assert set(node.get("required", ())) <= set(node.get("properties", known))
        assert isinstance(node.get("anyOf", [1]), list)
        assert node.get("anyOf") != []
    try:
        from jsonschema import Draft202012Validator
    except ImportError:
        return
    Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("name", [*SHIPPED, *sorted(BASES)])
def test_every_shipped_config_fits_the_schema(schemas, name):
    schema = schemas[SHIPPED.get(name, "train")]
    if name in BASES:  # what it lacks comes from the files that extend it
        assert list(violations({"extends": [], **plain(name)}, schema, schema)) == []
        return
    assert list(violations(plain(name), schema, schema)) == []
    try:
        from jsonschema import Draft202012Validator
    except ImportError:
        return
    Draft202012Validator(schema).validate(plain(name))


def put(name: str, key: str, value: Any) -> dict:
    *sections, last = key.split(".")
    tree = here = plain(name)
    for step in sections:
        here = here[step]
    here[last] = value
    return tree


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trian", 1), ("run.global_bach", 4), ("model.image.backbon", "x"), ("data.val.siez", 1),
        ("model.text.tokenizer.vocabulary", 3), ("data.views.source.lang", "en"),
        ("optim.lr", 0), ("optim.lr", "fast"), ("run.precision", "fp8"), ("run.epochs", 0),
        ("data.train.noise_rate", 1.5), ("model.image.name", "tim"), ("method", "contrastve"),
        ("method", {"name": "contrastive", "image_loss": {"name": "triplet", "margin": -1}}),
        ("method", {"source_weight": 1.0}), ("model.text", "bagg"), ("optim.betas", [0.9]), ("extends", 3),
        ("model.image.freeze", {"keep_first": 1}), ("model", {"name": "dual_encoder"}),
        ("data.train", "manifest"), ("data.workers", 1.5),
    ],
)  # fmt: skip
def test_a_schema_refuses_what_the_config_refuses(schemas, key, value, tmp_path):
    changed = put("quickstart.yaml", key, value)
    assert list(violations(changed, schemas["train"], schemas["train"])), "the schema lets it pass"
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(changed), encoding="utf-8")
    with pytest.raises(ConfigError):
        load(section("train"), tmp_path / "wrong.yaml")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("method", "contrastive"),
        ("method", {"name": "contrastive", "image_loss": "triplet"}),
        ("model.image.freeze", {"keep_last": 2}), ("model.image.freeze", "all"),
        ("model.text.pooling", {"name": "attention", "heads": 4}), ("model.text_head", "gated"),
        ("data.val", None), ("optim.clip_norm", None), ("optim.lr_scale", {"image": 0.1}),
        ("run.trackers", ["tensorboard"]), ("optim.layer_decay", {"image": 0.7}),
    ],
)  # fmt: skip
def test_a_schema_takes_what_the_config_takes(schemas, key, value, tmp_path):
    changed = put("quickstart.yaml", key, value)
    assert list(violations(changed, schemas["train"], schemas["train"])) == []
    (tmp_path / "right.yaml").write_text(yaml.safe_dump(changed), encoding="utf-8")
    load(section("train"), tmp_path / "right.yaml")


def test_a_file_that_extends_another_may_leave_out_but_not_misspell(schemas):
    schema = schemas["train"]
    small = {"extends": "quickstart.yaml", "model": {"text": {"width": 64}}, "run": {"seed": 1}}
    assert list(violations(small, schema, schema)) == []
    assert list(violations({**small, "extends": ["a.yaml", "b.yaml"]}, schema, schema)) == []
    assert list(violations({k: v for k, v in small.items() if k != "extends"}, schema, schema))
    assert list(violations({**small, "run": {"sed": 1}}, schema, schema))
    assert list(violations({**small, "model": {"text": {"widht": 64}}}, schema, schema))


def staged(**second: Any) -> dict:
    """Return the quickstart as two stages, of which only the first one says what is trained."""
    whole = plain("quickstart.yaml")
    return {"run": whole.pop("run"), "stages": [{"name": "a", **whole}, {"name": "b", **second}]}


def test_a_file_with_stages_may_leave_out_but_not_misspell(schemas):
    schema = schemas["train"]
    assert list(violations(staged(optim={"lr": 0.1}), schema, schema)) == []
    for wrong in (
        staged(optim={"lrr": 0.1}),
        staged(stages=[]),
        {**staged(), "stages": []},
        {**staged(), "trian": 1},
        {**staged(), "stages": [{"method": "contrastive"}]},
    ):
        assert list(violations(wrong, schema, schema)), wrong
    assert "properties" in schema["$defs"]["extending.Stage"]
    assert "name" in schema["$defs"]["extending.Stage"]["properties"]


def test_every_option_of_every_part_is_described(schemas):
    bare = [
        f"{name}.{option}"
        for schema in schemas.values()
        for name, definition in schema["$defs"].items()
        for option, inner in definition.get("properties", {}).items()
        if option != "name" and not inner.get("description", "").strip()
    ]
    assert bare == []


def test_every_registered_part_is_in_the_schema_with_its_defaults(schemas):
    from xlcm import registry

    definitions = {k: v for schema in schemas.values() for k, v in schema["$defs"].items()}
    for kind in vars(registry).values():
        for name in kind if isinstance(kind, Registry) else ():
            part = definitions[f"{kind.kind}.{name}".replace(" ", "_")]
            assert part["properties"]["name"] == {"const": name}
            if part["required"] != ["name"]:
                continue
            told = {k: v["default"] for k, v in part["properties"].items() if "default" in v}
            full = check_part(kind, {"name": name, **told})
            assert json.dumps(full) == json.dumps(check_part(kind, name))


def test_words_of_an_option_come_from_the_docstring():
    assert argument_docs(
        """One line.

        Args:
            first: of two lines,
                joined.
            second: with: a colon.

        Returns:
            third: not an argument.
        """
    ) == {"first": "of two lines, joined.", "second": "with: a colon."}


def test_the_command_prints_a_schema_with_parts_of_ones_own(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_parts.py").write_text(
        "from xlcm.registry import losses\n"
        "@losses.register('my_loss')\n"
        "class MyLoss:\n"
        '    """Mine.\n\n    Args:\n        power: how strong.\n    """\n'
        "    def __init__(self, *, power: float = 2.0) -> None: ...\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(losses, "_parts", dict(losses._parts))
    assert cli.main(["schema", "train", "--import", "my_parts"]) == 0
    mine = json.loads(capsys.readouterr().out)["$defs"]["loss.my_loss"]
    assert mine["properties"]["power"] == {
        "type": "number", "default": 2.0, "description": "how strong.",
    }  # fmt: skip


def test_a_module_that_is_not_there_is_told(capsys):
    assert cli.main(["schema", "train", "--import", "no_such_module"]) == 2
    assert "--import no_such_module" in capsys.readouterr().err


def test_read_does_not_check(tmp_path):
    (tmp_path / "any.yaml").write_text("anything: 1\n", encoding="utf-8")
    assert read(tmp_path / "any.yaml") == {"anything": 1}
