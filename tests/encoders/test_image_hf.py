import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from xlcm.config import build
from xlcm.encoders import image_families
from xlcm.encoders.image_families import SPELLINGS
from xlcm.encoders.image_hf import HFImageEncoder
from xlcm.registry import image_encoders
from xlcm.types import Visual

SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
DINO = {**SMALL, "image_size": 48, "mlp_ratio": 2}
TOWERS: dict[str, dict[str, Any]] = {
    "clip": {"model_type": "clip_vision_model", **SMALL},
    "siglip": {"model_type": "siglip_vision_model", **SMALL},
    "dinov2": {"model_type": "dinov2", **DINO},
    "registers": {"model_type": "dinov2_with_registers", "num_register_tokens": 2, **DINO},
}
CLASSES = {
    "clip": "CLIPVision", "siglip": "SiglipVision", "dinov2": "Dinov2",
    "registers": "Dinov2WithRegisters",
}  # fmt: skip
every = pytest.mark.parametrize("family", list(TOWERS))
MAPS = {"mean": {"name": "mean"}, "attention": {"name": "attention", "heads": 2}}


def encoder(family: str, **options: Any) -> HFImageEncoder:
    torch.manual_seed(0)
    return build(
        image_encoders, {"name": "hf", "architecture": TOWERS[family], "image_size": 32, **options}
    )


def reference(family: str) -> Any:
    """transformers' own tower with weights that are nowhere zero."""
    torch.manual_seed(1)
    config = {key: value for key, value in TOWERS[family].items() if key != "model_type"}
    name = CLASSES[family]
    model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def pixels(side: int = 32, rows: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (rows, 3, side, side), dtype=torch.uint8, generator=generator)


def normalised(tower: HFImageEncoder, values: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(v)[:, None, None] for v in tower.normalise.values)
    return (values / 255.0 - mean) / std


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A local folder as the hub has them: config, weights, image processor."""
    family = request.param
    model = reference(family)
    model.save_pretrained(tmp_path)
    processor = {
        "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 2,
        "size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32},
    }  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(("folder", "family"), [(f, f) for f in TOWERS], indirect=["folder"])
def test_output_equals_transformers_own_tower(folder: Path, family: str) -> None:
    tower = HFImageEncoder(backbone=str(folder), weights=str(folder))
    tower.load_weights()
    tower.eval()
    own = reference(family)
    values = pixels()
    with torch.no_grad():
        expected = own(normalised(tower, values))
        out = tower(Visual(pixels=values))
        hidden = expected.last_hidden_state
        if family == "clip":
            hidden = getattr(own, "vision_model", own).post_layernorm(hidden)
    torch.testing.assert_close(out.pooled, expected.pooler_output, atol=1e-5, rtol=0)
    torch.testing.assert_close(out.tokens, hidden, atol=1e-5, rtol=0)
    assert out.pooled.shape == (2, tower.width)
    assert out.tokens.shape[2] == tower.token_width


@pytest.mark.parametrize("folder", ["clip"], indirect=True)
def test_folder_brings_its_input_settings_and_options_win(folder: Path) -> None:
    tower = HFImageEncoder(backbone=str(folder))
    assert tower.transform.spec() == {
        "size": 32,
        "crop_pct": 0.8,
        "interpolation": "bilinear",
        "squash": False,
        "resizer": "torch",
    }
    assert tower.normalise.values == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    other = HFImageEncoder(
        backbone=str(folder),
        mean=(0.5,) * 3,
        crop_pct=1.0,
        interpolation="bicubic",
        squash=True,
        resizer="pillow",
    )
    assert other.transform.spec() == {
        "size": 32,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "squash": True,
        "resizer": "pillow",
    }
    assert other.normalise.values == ((0.5,) * 3, (0.4, 0.5, 0.6))


def test_families_have_their_own_input_settings() -> None:
    clip, siglip = encoder("clip", image_size=None), encoder("siglip", image_size=None)
    dinov2 = encoder("dinov2", image_size=None)
    assert clip.normalise.values[0] == pytest.approx((0.4815, 0.4578, 0.4082), abs=1e-4)
    assert (clip.transform.size, clip.transform.squash) == (32, False)
    assert siglip.normalise.values == ((0.5,) * 3, (0.5,) * 3)
    assert (siglip.transform.size, siglip.transform.squash) == (32, True)
    assert (dinov2.transform.size, dinov2.transform.crop_pct) == (224, 0.875)


@every
@pytest.mark.parametrize("pooling", [None, "mean", "attention"])
def test_spec_round_trip_needs_no_folder_and_gives_the_same_output(
    family: str, pooling: str | None
) -> None:
    spec = MAPS[pooling] if pooling else None
    tower = encoder(family, pooling=spec, freeze={"keep_last": 2}, crop_pct=0.9).eval()
    assert tower.spec()["backbone"] is None
    json.dumps(tower.spec())
    again = build(image_encoders, tower.spec()).eval()
    again.load_state_dict(tower.state_dict())
    assert again.spec() == tower.spec()
    visual = Visual(pixels=pixels())
    assert torch.equal(tower(visual).pooled, again(visual).pooled)


@every
@pytest.mark.parametrize("pooling", [None, "mean", "attention"])
def test_every_parameter_gets_a_gradient_and_stands_in_one_layer(
    family: str, pooling: str | None
) -> None:
    tower = encoder(family, pooling=MAPS[pooling] if pooling else None)
    tower(Visual(pixels=pixels())).pooled.square().sum().backward()
    assert [name for name, p in tower.named_parameters() if p.grad is None] == []
    held = [id(p) for layer in tower.layers() for p in layer.parameters()]
    assert sorted(held) == sorted(id(p) for p in tower.parameters())
    assert len(tower.layers()) == 1 + 3 + 1


@every
def test_keep_last_trains_final_norm_and_pooling_and_then_the_last_blocks(family: str) -> None:
    tower = encoder(family, freeze={"keep_last": 3}, pooling=MAPS["attention"])
    trained = {name for name, p in tower.named_parameters() if p.requires_grad}
    assert all("embeddings" not in name and "pre_layrnorm" not in name for name in trained)
    assert not [n for n in trained if "layers.0." in n or "layer.0." in n]
    for part in ("layers.1." if family in ("clip", "siglip") else "layer.1.", "pooling.query"):
        assert any(part in name for name in trained)
    assert any("layernorm" in name.split("encoder")[0] for name in trained)
    tower(Visual(pixels=pixels())).pooled.sum().backward()
    assert {name for name, p in tower.named_parameters() if p.grad is not None} == trained
    with pytest.raises(ValueError, match="tower has 5 layers"):
        tower.freeze({"keep_last": 6})


@every
def test_frozen_tower_builds_no_graph_and_stays_in_evaluation(family: str) -> None:
    tower = encoder(family, freeze="all").train()
    out = tower(Visual(pixels=pixels()))
    assert tower.frozen
    assert not out.pooled.requires_grad
    assert not any(module.training for module in tower.modules())


@every
def test_gradient_checkpointing_changes_no_gradient(family: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        tower = encoder(
            family, gradient_checkpointing=checkpointing, freeze={"keep_last": 3}
        ).train()
        tower(Visual(pixels=pixels())).pooled.square().sum().backward()
        gradients.append({n: p.grad for n, p in tower.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_gradient_checkpointing_really_recomputes(family: str) -> None:
    tower = encoder(family, gradient_checkpointing=True).train()
    calls = []
    tower.layers()[1].layer_norm1.register_forward_hook(lambda *_: calls.append(1))
    tower(Visual(pixels=pixels())).pooled.sum().backward()
    assert len(calls) == 2


def test_of_a_whole_clip_only_the_vision_tower_is_read(tmp_path: Path) -> None:
    config = transformers.CLIPConfig(
        vision_config={k: v for k, v in TOWERS["clip"].items() if k != "model_type"},
        text_config={
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "vocab_size": 50, "max_position_embeddings": 8,
        },
    )  # fmt: skip
    torch.manual_seed(3)
    whole = transformers.CLIPModel(config).eval()
    whole.save_pretrained(tmp_path)
    tower = HFImageEncoder(backbone=str(tmp_path), weights="hub").eval()  # the folder's own
    tower.load_weights()
    values = pixels()
    with torch.no_grad():
        expected = whole.vision_model(normalised(tower, values)).pooler_output
        torch.testing.assert_close(tower(Visual(pixels=values)).pooled, expected, atol=1e-5, rtol=0)


def test_shards_are_read_and_a_missing_one_is_named(tmp_path: Path) -> None:
    model = reference("siglip")
    model.save_pretrained(tmp_path, max_shard_size="30KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    tower = encoder("siglip", weights=str(tmp_path))
    tower.load_weights()
    inner = getattr(model, "vision_model", model)
    assert torch.equal(tower.backbone.post_layernorm.weight, inner.post_layernorm.weight)
    shards[0].unlink()
    with pytest.raises(FileNotFoundError, match=shards[0].name):
        tower.load_weights()


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_positions_are_resampled_to_another_image_size(family: str, tmp_path: Path) -> None:
    model = reference(family)
    inner = getattr(model, "vision_model", model)
    prefix = 1 if family == "clip" else 0
    with torch.no_grad():  # a ramp stays one between its ends
        ramp = torch.arange(4.0).repeat(4)[:, None].expand(16, 32)
        inner.embeddings.position_embedding.weight[prefix:] = ramp
    model.save_pretrained(tmp_path)
    tower = encoder(family, image_size=64, weights=str(tmp_path))
    tower.load_weights()
    table = tower.backbone.embeddings.position_embedding.weight.detach()
    assert torch.equal(table[:prefix], inner.embeddings.position_embedding.weight[:prefix])
    grid = table[prefix:].view(8, 8, 32)
    torch.testing.assert_close(grid[0], grid[7])
    torch.testing.assert_close(grid[0, 3:5, 0], torch.tensor([1.25, 1.75]), atol=0.1, rtol=0)
    assert tower(Visual(pixels=pixels(64))).pooled.shape == (2, 32)


@pytest.mark.parametrize("gated", [False, True])
def test_dinov2_saved_under_another_transformers_loads(gated: bool) -> None:
    architecture = {**TOWERS["dinov2"], "use_swiglu_ffn": gated}
    tower = HFImageEncoder(architecture=architecture, image_size=32).eval()
    own = tower.state_dict()
    older = any("attention.attention.query" in key for key in own)
    other: dict[str, torch.Tensor] = {}
    for key, value in own.items():
        for before, after in SPELLINGS:
            key = key.replace(*((before, after) if older else (after, before)))
        if "gate_proj" in key:
            other[key.replace("gate_proj", "weights_in")] = torch.cat(
                [value, own[key.replace("gate_proj", "up_proj")]]
            )
        elif "weights_in" in key:
            (
                other[key.replace("weights_in", "gate_proj")],
                other[key.replace("weights_in", "up_proj")],
            ) = value.chunk(2)
        elif "up_proj" not in key:
            other[key] = value
    assert other.keys() != own.keys()
    again = HFImageEncoder(architecture=architecture, image_size=32).eval()
    model = torch.nn.ModuleDict({"image": again})  # as in a dual encoder
    model.load_state_dict({f"image.{key}": value for key, value in other.items()})
    visual = Visual(pixels=pixels())
    assert torch.equal(tower(visual).pooled, again(visual).pooled)


def test_misfitting_weights_are_listed(tmp_path: Path) -> None:
    state = dict(getattr(reference("clip"), "vision_model", reference("clip")).state_dict())
    state = {k: v.clone() for k, v in state.items() if "position_ids" not in k}
    del state["post_layernorm.bias"]
    state["stranger.weight"] = torch.zeros(2)
    state["pre_layrnorm.weight"] = torch.zeros(7)
    save_file(state, tmp_path / "model.safetensors")
    tower = encoder("clip", weights=str(tmp_path))
    with pytest.raises(ValueError, match="doesn't fit") as fault:
        tower.load_weights()
    text = str(fault.value)
    assert str(tmp_path) in text
    for part in (
        "1 missing: post_layernorm.bias",
        "1 unexpected: stranger.weight",
        "(7,) instead of (32,)",
    ):
        assert part in text


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config\.json in"):
        HFImageEncoder(backbone=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"expected .*model\.safetensors"):
        encoder("clip", weights=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no weights at"):
        encoder("clip", weights=str(tmp_path / "nowhere"))


def test_failing_hub_says_which_files_to_put_where(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(image_families, "cached_file", offline)
    with pytest.raises(
        FileNotFoundError, match=r"config\.json of some/clip .*no route.*into a folder"
    ):
        HFImageEncoder(backbone="some/clip")
    monkeypatch.setattr(
        image_families, "cached_file",
        lambda _, name, **__: str(tmp_path / name) if name == "config.json" else None,
    )  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(TOWERS["clip"]), encoding="utf-8")
    tower = HFImageEncoder(backbone="some/clip", weights="hub")
    monkeypatch.setattr(transformers.CLIPVisionModel, "from_pretrained", offline)
    with pytest.raises(FileNotFoundError, match=r"weights of some/clip .*no route.*into a folder"):
        tower.load_weights()


def test_weights_of_the_hub_are_those_of_the_backbone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = reference("siglip")
    (tmp_path / "config.json").write_text(json.dumps(TOWERS["siglip"]), encoding="utf-8")
    (tmp_path / "processor_config.json").write_text(
        json.dumps(
            {"image_processor": {"image_mean": [0.1] * 3, "size": {"height": 32, "width": 32}}}
        ),
        encoding="utf-8",
    )
    monkeypatch.setattr(
        image_families, "cached_file",
        lambda _, name, **__: str(tmp_path / name) if (tmp_path / name).is_file() else None,
    )  # fmt: skip
    monkeypatch.setattr(transformers.SiglipVisionModel, "from_pretrained", lambda _: own)
    tower = HFImageEncoder(backbone="some/siglip", weights="hub").eval()
    tower.load_weights()
    assert tower.normalise.values == ((0.1,) * 3, (0.5,) * 3)
    values = pixels()
    with torch.no_grad():
        expected = own(normalised(tower, values)).pooler_output
        torch.testing.assert_close(tower(Visual(pixels=values)).pooled, expected, atol=1e-5, rtol=0)


def test_other_families_and_contradicting_options_are_refused() -> None:
    with pytest.raises(ValueError, match="NaFlex"):
        HFImageEncoder(architecture={"model_type": "siglip2", "vision_config": {}})
    with pytest.raises(ValueError, match="got 'bert'"):
        HFImageEncoder(architecture={"model_type": "bert"})
    with pytest.raises(ValueError, match="either `backbone`"):
        HFImageEncoder()
    with pytest.raises(ValueError, match="needs `backbone`"):
        HFImageEncoder(architecture=TOWERS["clip"], weights="hub")
    with pytest.raises(ValueError, match="needs a class token"):
        encoder("siglip", pooling="cls")


def test_bfloat16_tower_takes_uint8_pixels() -> None:
    tower = encoder("clip").bfloat16()
    assert tower(Visual(pixels=pixels())).pooled.dtype == torch.bfloat16


def test_a_projected_clip_gives_the_image_embeddings_of_transformers(tmp_path):
    torch.manual_seed(3)
    config = transformers.CLIPVisionConfig(**SMALL, projection_dim=20)
    whole = transformers.CLIPVisionModelWithProjection(config).eval()
    save_file(dict(whole.state_dict()), tmp_path / "model.safetensors")
    options = {"architecture": {**TOWERS["clip"], "projection_dim": 20}, "projected": True}
    tower = encoder("clip", weights=str(tmp_path), **options).eval()
    tower.load_weights()
    assert (tower.width, tower.token_width) == (20, 32)
    with torch.no_grad():
        wanted = whole(normalised(tower, pixels())).image_embeds
        found = tower(Visual(pixels=pixels())).pooled
        again = build(image_encoders, tower.spec())
        again.load_state_dict(tower.state_dict())
        assert torch.equal(again.eval()(Visual(pixels=pixels())).pooled, found)
    assert torch.allclose(found, wanted, atol=1e-6)


def test_projected_is_refused_where_there_is_no_projection():
    with pytest.raises(ValueError, match="projected=true is for CLIP"):
        encoder("siglip", projected=True)
    with pytest.raises(ValueError, match="projected=true is for CLIP"):
        encoder("clip", projected=True, pooling={"name": "mean"})
