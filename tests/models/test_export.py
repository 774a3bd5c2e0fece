"""Exported towers say what the model says, for any number of rows and tokens."""

import importlib
import json
import shutil

import pytest
import torch
from small_models import FEATURES, Numbers, bag, captions, refined

from xlcm import cli
from xlcm.config import ConfigError
from xlcm.data.encode_settings import EncodeConfig
from xlcm.data.scenes import Scenes
from xlcm.encoders.features import FeatureEncoder
from xlcm.encoders.heads import LinearHead
from xlcm.encoders.image_hf import HFImageEncoder
from xlcm.encoders.image_timm import TimmImageEncoder
from xlcm.encoders.pooling import MeanPooling
from xlcm.encoders.text_bag import BagTextEncoder
from xlcm.encoders.text_hf import HFTextEncoder
from xlcm.encoders.tokenizer import SentencePieceTokenizer
from xlcm.evaluation.evaluate import evaluate
from xlcm.evaluation.settings import EvaluationConfig
from xlcm.evaluation.setup import open_model
from xlcm.models.dual_encoder import DualEncoder
from xlcm.models.export import export
from xlcm.models.exported import FACTS, ExportedModel, is_exported
from xlcm.models.fill_store import open_tower
from xlcm.models.fill_texts import open_text_tower
from xlcm.types import TextBatch, Visual

for needed in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(needed)

TEXTS = [
    "a red square",
    "zwei kleine blaue Kreise über einem grünen Dreieck",
    "红色的方块",
    "a",
    "",
]


class Saved(Numbers):
    """Numbers that can be written into a folder: nothing of them is read again here."""

    def spec(self):
        return {"name": "sentencepiece", "path": "."}

    def save(self, folder):
        return self.spec()


def transformer(model_type="xlm-roberta"):
    torch.manual_seed(0)
    architecture = {
        "model_type": model_type, "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 80,
    }  # fmt: skip
    return HFTextEncoder(architecture=architecture, tokenizer=Saved(), pooling=MeanPooling)


def saved(tower):
    (tower.encoder if hasattr(tower, "encoder") else tower).tokenizer = Saved()
    return tower


def vision():
    architecture = {
        "model_type": "clip_vision_model", "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "intermediate_size": 64, "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    return HFImageEncoder(architecture=architecture)


TOWERS = {
    "bag": lambda: (
        saved(bag()),
        TimmImageEncoder(backbone="test_vit", image_size=32, backbone_options={"patch_size": 8}),
    ),
    "hf": lambda: (transformer(), vision()),
    "refined": lambda: (
        saved(refined()),
        FeatureEncoder(width=FEATURES, tokens=True, pooling=MeanPooling),
    ),
}


def make(text, image):
    torch.manual_seed(0)
    return DualEncoder(
        image=image, text=text, width=12, image_head=LinearHead, text_head=LinearHead
    ).eval()


def visuals(image, rows):
    draw = torch.Generator().manual_seed(rows)
    if not image.reads_features:
        pixels = torch.randint(256, (rows, 3, 32, 32), generator=draw, dtype=torch.uint8)
        return Visual(pixels)
    mask = torch.arange(4)[None] < torch.tensor([4, 1, 2, 3, 4][:rows])[:, None]
    return Visual(features=torch.randn(rows, 4, FEATURES, generator=draw), mask=mask)


def opened(folder, monkeypatch):
    monkeypatch.setattr("xlcm.models.exported.build", lambda registry, spec: Saved())
    return ExportedModel(folder)


# seconds each: one of them stands for all in the fast suite
@pytest.mark.parametrize(
    "towers", ["bag", *(pytest.param(name, marks=pytest.mark.slow) for name in ("hf", "refined"))]
)
def test_a_graph_says_what_its_tower_says_for_any_rows_tokens_and_padding(
    towers, tmp_path, monkeypatch
):
    model = make(*TOWERS[towers]())
    cosines = export(model, tmp_path / "out")
    assert min(cosines.values()) > 0.99999
    graphs = opened(tmp_path / "out", monkeypatch)
    longest = Numbers().max_tokens - 2
    for rows, length in ((1, 1), (2, 3), (5, longest), (1, longest)):
        text = captions(rows, seed=rows, longest=length)
        with torch.no_grad():
            expected = model.embed_text(text), model.text(text).pooled
        for found, wanted in zip((graphs.embed_text(text), graphs.text(text).pooled), expected):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
        wider = TextBatch(*(torch.nn.functional.pad(t, (0, 2)) for t in (text.ids, text.mask)))
        if wider.ids.shape[1] <= Numbers().max_tokens:
            torch.testing.assert_close(graphs.embed_text(wider), expected[0], rtol=0, atol=1e-5)
        visual = visuals(model.image, rows)
        with torch.no_grad():
            wanted = model.embed_visual(visual), model.image(visual).pooled
        torch.testing.assert_close(graphs.embed_visual(visual), wanted[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(graphs.image(visual).pooled, wanted[1], rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return a model with a real tokenizer, as a user has it, in a folder."""
    folder = tmp_path_factory.mktemp("whole")
    tokenizer = SentencePieceTokenizer(vocab_size=400, max_tokens=32).train(TEXTS * 5)
    made = tokenizer.save(folder / "tokenizer")
    tokenizer = SentencePieceTokenizer(**{**drop(made), "path": str(folder / "tokenizer")})
    torch.manual_seed(0)
    text = BagTextEncoder(
        tokenizer=tokenizer, width=16, context="attention", attention_heads=2, pooling=MeanPooling
    )
    model = make(text, TimmImageEncoder(backbone="test_resnet", image_size=32))
    model.languages = ("en", "de")
    model.save_pretrained(folder / "model")
    return folder / "model"


def drop(spec):
    return {key: value for key, value in spec.items() if key != "name"}


@pytest.fixture(scope="module")
def graphs(whole, tmp_path_factory):
    """Return the folder of its export for ONNX Runtime."""
    folder = tmp_path_factory.mktemp("graphs") / "onnx"
    export(DualEncoder.from_pretrained(whole), folder)
    return folder


def agree(folder, whole, close):
    model, opened = DualEncoder.from_pretrained(whole), ExportedModel(folder)
    assert opened.languages == ("en", "de")
    pictures = [torch.randint(256, (3, 40, 50), dtype=torch.uint8) for _ in range(3)]
    found = opened.encode_text(TEXTS * 3, "de"), opened.encode_image(pictures, batch_size=2)
    wanted = model.encode_text(TEXTS * 3, "de"), model.encode_image(pictures)
    for rows, expected in zip(found, wanted):
        assert (rows.dtype, rows.shape) == (torch.float32, expected.shape)
        torch.testing.assert_close(rows, expected, rtol=0, atol=close)
        assert (rows.norm(dim=1) - 1).abs().max() < 1e-5
    assert opened.similarity(*found).shape == (15, 3)
    return (found[0] - wanted[0]).abs().max().item()


def test_an_export_encodes_texts_and_pictures_as_the_model_does(graphs, whole):
    agree(graphs, whole, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "close"), [("onnx-int8", 0.05), ("openvino", 1e-5)])
def test_the_command_exports_for_other_engines(engine, close, whole, tmp_path, capsys):
    if engine == "openvino":
        pytest.importorskip("openvino")
    out = tmp_path / "out"
    command = ["export", "--model", str(whole), "--engine", engine, "--out", str(out)]
    assert cli.main(command) == 0
    assert "text: smallest cosine to float32 " in capsys.readouterr().out
    assert is_exported(out)
    gap = agree(out, whole, close)
    assert engine == "openvino" or gap > 1e-5, "nothing was rounded to int8"
    files = [path for path in out.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in (".pkl", ".pt", ".pth")]
    assert not [path for path in files if path.name.startswith("float")]


def test_an_earlier_export_is_replaced_whole_or_not_at_all(graphs, whole, tmp_path, monkeypatch):
    model, out = DualEncoder.from_pretrained(whole), tmp_path / "out"
    shutil.copytree(graphs, out)

    def broken(model, folder, engine):
        (folder / "half").write_text("")
        raise OSError("disk full")

    monkeypatch.setattr("xlcm.models.export._write", broken)
    with pytest.raises(OSError, match="disk full"):
        export(model, out)
    assert ExportedModel(out).encode_text("a").shape == (1, 12)

    def written(model, folder, engine):
        (folder / FACTS).write_text("{}")
        return {"image": {"cosine": 1.0}, "text": {"cosine": 1.0}}

    monkeypatch.setattr("xlcm.models.export._write", written)
    export(model, out)
    assert [path.name for path in out.iterdir()] == [FACTS]
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "nothing is left beside it"


def test_a_folder_of_something_else_is_left_alone(whole, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="name another folder"):
        export(DualEncoder.from_pretrained(whole), tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_tower_that_cannot_be_exported_says_so_and_leaves_nothing(tmp_path):
    model = make(saved(bag(context="gru")), FeatureEncoder(width=FEATURES))
    with pytest.raises(ValueError, match=r"the text tower \(bag\) can't be exported.*use the mod"):
        export(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("engine", "extra"), [("onnx-int8", "onnx"), ("openvino", "openvino")])
def test_a_missing_engine_names_the_command_that_installs_it(
    engine, extra, tmp_path, monkeypatch, whole
):
    absent = {"onnx": "onnxruntime", "openvino": "openvino"}[extra]

    real = importlib.import_module

    def importing(name, *rest):
        if name == absent:
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr("importlib.import_module", importing)
    with pytest.raises(ImportError, match=rf"needs {absent}: pip install 'xlcm\[{extra}\]'"):
        export(DualEncoder.from_pretrained(whole), tmp_path / "out", engine=engine)


def test_broken_exports_and_what_an_engine_cannot_do_are_named(graphs, whole, tmp_path):
    with pytest.raises(ValueError, match="engine must be one of"):
        export(DualEncoder.from_pretrained(whole), tmp_path / "new", engine="tensorrt")
    out = tmp_path / "out"
    shutil.copytree(graphs, out)
    opened = ExportedModel(out)
    for wish in ({"precision": "bf16"}, {"device": "cuda"}):
        with pytest.raises(ConfigError, match="use the model itself"):
            opened.encode_text("a", **wish)
    with pytest.raises(ConfigError, match="kind=tokens"):
        opened.refuse(kind="tokens")
    assert cli.main(["export", "--model", str(out), "--out", str(tmp_path / "again")]) == 2
    facts = json.loads((out / FACTS).read_text())
    (out / FACTS).write_text("[]")
    with pytest.raises(ConfigError, match="export the model again"):
        ExportedModel(out)
    (out / FACTS).write_text(json.dumps({**facts, "format": 99}))
    with pytest.raises(ConfigError, match="format 99"):
        ExportedModel(out)
    (out / FACTS).write_text(json.dumps(facts))
    (out / "image" / "model.onnx").unlink()
    with pytest.raises(FileNotFoundError, match=r"image.model\.onnx"):
        ExportedModel(out)
    with pytest.raises(FileNotFoundError, match="`xlcm export` writes"):
        ExportedModel(tmp_path)


def test_an_export_is_evaluated_like_its_model(graphs, whole):
    scenes = Scenes(split="test", size=8, target_langs=["de"])
    config = EvaluationConfig(bootstrap=0)
    opened = open_model(str(graphs), "cpu")
    assert isinstance(opened, ExportedModel)
    found = evaluate(opened, scenes, config).report
    expected = evaluate(DualEncoder.from_pretrained(whole), scenes, config).report
    assert found.results == expected.results


def test_the_features_of_an_export_are_those_of_its_tower(graphs, whole):
    config = {"output": "-", "data": [{"name": "scenes", "split": "test", "size": 8}]}
    found, made_by = open_tower(EncodeConfig(model=str(graphs), **config))
    expected, by_model = open_tower(EncodeConfig(model=str(whole), **config))
    assert made_by["weights"] == by_model["weights"]
    assert made_by["image"] == {**by_model["image"], "engine": "onnx"}
    pixels = Visual(torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8))
    with torch.no_grad():
        wanted = expected(pixels).pooled
    torch.testing.assert_close(found(pixels).pooled, wanted, rtol=1e-5, atol=1e-5)
    reader, told = open_text_tower(EncodeConfig(model=str(graphs), captions=True, **config))
    assert told["text"]["engine"] == "onnx"
    assert reader(reader.tokenizer(TEXTS)).pooled.shape == (5, 16)
    with pytest.raises(ConfigError, match="compile"):
        open_tower(EncodeConfig(model=str(graphs), compile=True, **config))
