import copy
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import timm
import timm.data
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from xlcm.config import ConfigError, build, check_part
from xlcm.encoders import image_timm
from xlcm.encoders.image_timm import TimmImageEncoder
from xlcm.encoders.pooling import MeanPooling
from xlcm.registry import image_encoders
from xlcm.types import Visual

VIT = {"embed_dim": 32, "depth": 3, "num_heads": 2}
SWIN = {"embed_dim": 16, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 2, 2)}
TOWERS: dict[str, dict[str, Any]] = {
    "vit": {"backbone": "vit_tiny_patch16_224", "backbone_options": VIT},
    "registers": {"backbone": "vit_small_patch14_reg4_dinov2", "backbone_options": VIT, "image_size": 56},
    "siglip": {"backbone": "vit_base_patch16_siglip_224.webli", "backbone_options": VIT},
    "resnet": {"backbone": "resnet10t"},
    "convnext": {"backbone": "convnext_atto"},
    "mobilenetv2": {"backbone": "mobilenetv2_050"},
    "mobilenetv3": {"backbone": "mobilenetv3_small_050"},
    "mobilenetv1": {
        "backbone": "mobilenetv1_100", "backbone_options": {"channel_multiplier": 0.25, "pad_type": "same"},
    },
    "swin": {"backbone": "swin_tiny_patch4_window7_224", "backbone_options": SWIN},
    "efficientnet": {"backbone": "efficientnet_lite0"},
}  # fmt: skip
BLOCKS = {  # of the backbone, and what stands behind the last one
    "vit": (3, {"norm"}), "registers": (3, {"norm"}), "siglip": (3, {"norm", "attn_pool"}),
    "resnet": (4, set()), "convnext": (12, {"head"}), "mobilenetv2": (17, {"conv_head", "bn2"}),
    "mobilenetv3": (12, {"conv_head"}), "mobilenetv1": (13, set()), "swin": (5, {"norm"}),
    "efficientnet": (16, {"conv_head", "bn2"}),
}  # fmt: skip
POOLINGS = [None, {"name": "mean"}, {"name": "attention", "heads": 2}]
every = pytest.mark.parametrize("kind", list(TOWERS))
pooled_by = pytest.mark.parametrize("pooling", POOLINGS, ids=["own", "mean", "attention"])


def encoder(kind: str, **options: Any) -> TimmImageEncoder:
    torch.manual_seed(0)
    return build(image_encoders, {"name": "timm", "image_size": 64, **TOWERS[kind], **options})


def pixels(tower: TimmImageEncoder, rows: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    side = tower.transform.size
    return torch.randint(0, 256, (rows, 3, side, side), dtype=torch.uint8, generator=generator)


def inside(tower: TimmImageEncoder, layers: list[torch.nn.Module]) -> list[torch.nn.Module]:
    """The tower's own modules in some of its layers, without the lists that bundle them."""
    own = {id(module) for module in tower.modules()}
    found = [m for layer in layers for m in layer.modules() if id(m) in own]
    assert found
    return found


@pytest.fixture(scope="module")
def photos(shared: Path) -> list[Image.Image]:
    with tarfile.open(shared / "data" / "photos" / "images.tar") as tar:
        members = [tar.next() for _ in range(4)]
        files = [tar.extractfile(m) for m in members if m is not None]
        return [Image.open(io.BytesIO(f.read())).convert("RGB") for f in files if f is not None]


@pytest.mark.parametrize(
    ("file", "backbone", "size"),
    [
        ("mobilenetv2_100", "mobilenetv2_100", 224),
        ("mobilenetv1_050", "mobilenetv1_100", 160),
        ("mobilenetv1_025", "mobilenetv1_100", 128),
    ],
)
def test_features_of_photographs_equal_timms_own_pipeline(
    shared: Path, photos: list[Image.Image], file: str, backbone: str, size: int
) -> None:
    path = shared / "weights" / f"{file}.safetensors"
    tower = TimmImageEncoder(backbone=backbone, weights=str(path), resizer="pillow")
    tower.load_weights()
    tower.eval()
    if file == "mobilenetv2_100":
        own = timm.create_model(backbone, pad_type="same")
    else:
        narrow = timm.models.efficientnet._gen_mobilenet_v1
        own = narrow(backbone, float(f"0.{file[-2:]}"), pad_type="same")
    own.load_state_dict(load_file(path))
    own.eval()
    transform = timm.data.create_transform(
        (3, size, size), mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=0.875, interpolation="bilinear"
    )
    with torch.no_grad():
        maps = own.forward_features(torch.stack([transform(photo) for photo in photos]))
        expected = own.forward_head(maps, pre_logits=True)
        out = tower(Visual(pixels=torch.stack([tower.transform(photo) for photo in photos])))
    torch.testing.assert_close(out.pooled, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.tokens, maps.flatten(2).mT, atol=1e-5, rtol=1e-5)
    assert out.pooled.abs().max() > 0.5


@pytest.mark.parametrize("kind", ["vit", "siglip", "registers", "resnet", "swin", "mobilenetv3"])
def test_pooled_vector_equals_timms_own(kind: str) -> None:
    tower = encoder(kind).eval()
    values = pixels(tower)
    with torch.no_grad():
        out = tower(Visual(pixels=values))
        mean, std = (torch.tensor(v)[:, None, None] for v in tower.normalise.values)
        expected = tower.backbone((values / 255.0 - mean) / std)
    torch.testing.assert_close(out.pooled, expected, atol=1e-5, rtol=1e-5)


@every
@pooled_by
def test_every_parameter_gets_a_gradient_and_widths_are_as_announced(
    kind: str, pooling: dict | None
) -> None:
    tower = encoder(kind, pooling=pooling)
    out = tower(Visual(pixels=pixels(tower)))
    assert out.pooled.shape == (2, tower.width)
    assert out.tokens is not None
    assert out.tokens.ndim == 3
    assert out.tokens.shape[2] == tower.token_width
    out.pooled.square().sum().backward()
    assert [name for name, p in tower.named_parameters() if p.grad is None] == []


@every
@pooled_by
def test_layers_are_stem_blocks_and_the_rest_and_hold_every_parameter_once(
    kind: str, pooling: dict | None
) -> None:
    tower = encoder(kind, pooling=pooling)
    layers = tower.layers()
    held = [id(p) for layer in layers for p in layer.parameters()]
    assert sorted(held) == sorted(id(p) for p in tower.parameters())
    blocks, rest = BLOCKS[kind]
    rest = {f"backbone.{name}" for name in rest if not (pooling and name == "attn_pool")}
    rest |= (
        {f"pooling.{name}" for name, _ in tower.pooling.named_children()}
        if tower.pooling
        else set()
    )
    assert len(layers) == 1 + blocks + bool(rest)
    if rest:
        last = {id(p) for p in layers[-1].parameters()}
        names = {".".join(n.split(".")[:2]) for n, p in tower.named_parameters() if id(p) in last}
        assert names - {"pooling.query"} == rest


@every
def test_layers_are_ordered_from_input_to_output(kind: str) -> None:
    """A layer's activations can't change when a later layer's weights do."""
    tower = encoder(kind).eval()
    layers = tower.layers()
    seen: list[torch.Tensor] = []
    probe = next(m for m in layers[1].modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear))
    probe.register_forward_hook(lambda _m, _i, out: seen.append(out.detach().clone()))
    visual = Visual(pixels=pixels(tower))
    with torch.no_grad():
        tower(visual)
        for parameter in layers[2].parameters():
            parameter.add_(torch.randn_like(parameter))
        tower(visual)
        assert torch.equal(seen[0], seen[1])
        for parameter in layers[0].parameters():
            parameter.add_(torch.randn_like(parameter))
        tower(visual)
    assert not torch.equal(seen[1], seen[2])


@every
@pooled_by
def test_spec_round_trip_gives_the_same_output(kind: str, pooling: dict | None) -> None:
    tower = encoder(kind, pooling=pooling, freeze={"keep_last": 1}, std=(0.3, 0.4, 0.5)).eval()
    json.dumps(tower.spec())
    again = build(image_encoders, tower.spec()).eval()
    again.load_state_dict(tower.state_dict())
    assert again.spec() == tower.spec()
    visual = Visual(pixels=pixels(tower))
    assert torch.equal(tower(visual).pooled, again(visual).pooled)


def test_mean_pooling_leaves_class_and_register_tokens_out() -> None:
    tower = encoder("registers", pooling="mean").eval()
    out = tower(Visual(pixels=pixels(tower)))
    assert out.tokens is not None
    assert out.tokens.shape[1] == 5 + 16
    torch.testing.assert_close(out.pooled, out.tokens[:, 5:].mean(1))
    first = encoder("registers", pooling="cls").eval()(Visual(pixels=pixels(tower)))
    assert first.tokens is not None
    assert torch.equal(first.pooled, first.tokens[:, 0])


@every
def test_keep_last_freezes_the_rest_with_its_statistics(kind: str) -> None:
    tower = encoder(kind, freeze={"keep_last": 2}).train()
    layers = tower.layers()
    kept = {id(p) for layer in layers[-2:] for p in layer.parameters()}
    before = copy.deepcopy(tower.state_dict())
    tower(Visual(pixels=pixels(tower))).pooled.sum().backward()
    for name, parameter in tower.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in kept), name
    assert not any(m.training for m in inside(tower, layers[:-2]))
    own = {id(b) for layer in layers[-2:] for b in layer.buffers()}
    for name, buffer in tower.named_buffers():
        if id(buffer) not in own and name in before:
            assert torch.equal(buffer, before[name]), name


def test_freezing_all_builds_no_graph_and_moves_no_statistics() -> None:
    tower = encoder("mobilenetv2", freeze="all").train()
    before = copy.deepcopy(tower.state_dict())
    assert not tower(Visual(pixels=pixels(tower))).pooled.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in tower.state_dict().items())
    tower.freeze("none")
    tower.train()
    assert tower(Visual(pixels=pixels(tower))).pooled.requires_grad
    moved = tower.state_dict()["backbone.bn1.running_mean"]
    assert not torch.equal(moved, before["backbone.bn1.running_mean"])


def test_frozen_layers_survive_a_copy_of_the_tower() -> None:
    tower = copy.deepcopy(encoder("mobilenetv2", freeze={"keep_last": 2})).train()
    layers = tower.layers()
    assert not any(m.training for m in inside(tower, layers[:-2]))
    assert any(m.training for m in inside(tower, layers[-1:]))


@pytest.mark.parametrize("kind", ["vit", "resnet", "convnext", "mobilenetv2", "swin"])
@pytest.mark.parametrize("freeze", ["none", {"keep_last": 2}])
def test_gradient_checkpointing_changes_no_gradient(kind: str, freeze: Any) -> None:
    gradients = []
    for checkpointing in (False, True):
        tower = encoder(kind, gradient_checkpointing=checkpointing, freeze=freeze).train()
        torch.manual_seed(0)
        tower(Visual(pixels=pixels(tower))).pooled.square().sum().backward()
        gradients.append({n: p.grad for n, p in tower.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "last"), [("resnet", True), ("mobilenetv2", True), ("vit", False)]
)
def test_channels_lie_last_in_convolutional_towers_and_change_no_vector(
    kind: str, last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower = encoder(kind).eval()
    layouts = []
    forward = tower.backbone.forward_features

    def look(values: torch.Tensor) -> torch.Tensor:
        layouts.append(values.is_contiguous(memory_format=torch.channels_last))
        return forward(values)

    monkeypatch.setattr(tower.backbone, "forward_features", look)
    seen = Visual(pixels=pixels(tower))
    with torch.no_grad():
        found = tower(seen).pooled
        tower._layout = torch.contiguous_format
        torch.testing.assert_close(found, tower(seen).pooled, atol=1e-5, rtol=1e-4)
    assert layouts == [last, False]


@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet"])
def test_weights_lie_as_their_gradients_do_so_that_ddp_has_nothing_to_warn_of(
    backbone: str,
) -> None:
    tower = TimmImageEncoder(backbone=backbone, image_size=32)
    assert tower._layout is torch.channels_last
    tower(Visual(pixels=torch.zeros(2, 3, 32, 32, dtype=torch.uint8))).pooled.sum().backward()
    for name, weight in tower.backbone.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.stride() == weight.stride(), name
        assert weight.is_contiguous(), name  # files take no other


def test_metadata_wins_over_timm_and_options_win_over_both(shared: Path) -> None:
    path = str(shared / "weights" / "mobilenetv2_100.safetensors")
    plain = TimmImageEncoder(backbone="mobilenetv2_100")
    assert plain.transform.interpolation == "bicubic"
    assert plain.normalise.values[0] == (0.485, 0.456, 0.406)
    stored = TimmImageEncoder(backbone="mobilenetv2_100", weights=path)
    assert stored.transform.spec() == {
        "size": 224,
        "crop_pct": 0.875,
        "interpolation": "bilinear",
        "squash": False,
        "resizer": "torch",
    }
    assert stored.normalise.values == ((0.5,) * 3, (0.5,) * 3)
    assert stored.spec()["backbone_options"] == {"pad_type": "same"}
    option = TimmImageEncoder(
        backbone="mobilenetv2_100",
        weights=path,
        image_size=128,
        crop_pct=1.0,
        mean=(0.1, 0.2, 0.3),
        resizer="pillow",
    )
    assert option.transform.spec() == {
        "size": 128,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "squash": False,
        "resizer": "pillow",
    }
    assert option.normalise.values == ((0.1, 0.2, 0.3), (0.5,) * 3)


def test_folder_with_weights_and_classifier_loads(tmp_path: Path) -> None:
    own = timm.create_model("mobilenetv2_050", num_classes=7)
    save_file(own.state_dict(), tmp_path / "model.safetensors")
    tower = encoder("mobilenetv2", weights=str(tmp_path))
    assert not torch.equal(tower.backbone.conv_stem.weight, own.conv_stem.weight)
    tower.load_weights()
    assert torch.equal(tower.backbone.conv_stem.weight, own.conv_stem.weight)


def test_own_attention_pooling_in_the_file_is_dropped_with_another_pooling(tmp_path: Path) -> None:
    own = encoder("siglip").backbone
    save_file(own.state_dict(), tmp_path / "model.safetensors")
    tower = encoder("siglip", weights=str(tmp_path), pooling="mean")
    tower.load_weights()
    assert torch.equal(tower.backbone.norm.weight, own.norm.weight)
    assert not any("attn_pool" in name for name, _ in tower.named_parameters())


def test_position_tables_are_resampled_to_another_image_size(tmp_path: Path) -> None:
    own = encoder("vit").backbone
    save_file(own.state_dict(), tmp_path / "model.safetensors")
    tower = encoder("vit", weights=str(tmp_path), image_size=96)
    tower.load_weights()
    assert tower.backbone.pos_embed.shape == (1, 1 + 36, 32)
    assert torch.equal(tower.backbone.pos_embed[:, 0], own.pos_embed[:, 0])
    assert torch.equal(tower.backbone.blocks[0].attn.qkv.weight, own.blocks[0].attn.qkv.weight)


def test_misfitting_weights_are_listed(shared: Path, tmp_path: Path) -> None:
    path = shared / "weights" / "mobilenetv2_100.safetensors"
    state = load_file(path)
    del state["bn1.weight"]
    state["stranger.weight"] = torch.zeros(1)
    state["bn2.bias"] = torch.zeros(3)
    save_file(state, tmp_path / "model.safetensors")
    tower = TimmImageEncoder(backbone="mobilenetv2_100", weights=str(tmp_path))
    with pytest.raises(ValueError, match="doesn't fit") as fault:
        tower.load_weights()
    text = str(fault.value)
    assert str(tmp_path) in text
    for part in (
        "1 missing: bn1.weight",
        "1 unexpected: stranger.weight",
        "bn2.bias (3,) instead of (1280,)",
    ):
        assert part in text


def test_missing_weights_are_named_before_anything_is_built(tmp_path: Path) -> None:
    (tmp_path / "other.bin").touch()
    with pytest.raises(
        FileNotFoundError, match=r"expected .*model\.safetensors .*found other\.bin"
    ):
        encoder("vit", weights=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no weights at"):
        encoder("vit", weights=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"expected a \.safetensors file"):
        encoder("vit", weights=str(tmp_path / "other.bin"))


def test_unreadable_metadata_names_file_and_key(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"x": torch.zeros(1)}, file, metadata={"mean": "grey"})
    with pytest.raises(
        ValueError, match=r"model\.safetensors: metadata 'mean' can't be read: 'grey'"
    ):
        encoder("vit", weights=str(tmp_path))


def test_failing_hub_says_which_file_to_put_where(monkeypatch: pytest.MonkeyPatch) -> None:
    tower = encoder("vit", weights="hub")

    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(image_timm, "_create", offline)
    with pytest.raises(FileNotFoundError, match=r"no route.*put model\.safetensors into a folder"):
        tower.load_weights()


def test_unknown_names_and_options_are_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'convnext_atto'"):
        TimmImageEncoder(backbone="convnext_attto")
    with pytest.raises(ValueError, match=r"tag \(foo\).*vit_tiny_patch16_224\.augreg"):
        TimmImageEncoder(backbone="vit_tiny_patch16_224.foo")
    with pytest.raises(ValueError, match="nonsense"):
        TimmImageEncoder(backbone="vit_tiny_patch16_224", backbone_options={"nonsense": 1})
    with pytest.raises(ValueError, match="resnet10t has none"):
        encoder("resnet", pooling="cls")
    with pytest.raises(ConfigError, match="backbone_option"):
        check_part(image_encoders, {"name": "timm", "backbone": "resnet10t", "backbone_option": {}})


def test_backbones_that_insist_on_their_pooling_say_so() -> None:
    with pytest.raises(ValueError, match="efficientvit_b0 can't do without its own pooling"):
        TimmImageEncoder(backbone="efficientvit_b0", pooling=MeanPooling)


def test_backbones_without_layer_groups_are_cut_at_their_top_level() -> None:
    tower = TimmImageEncoder(backbone="pit_ti_224", freeze={"keep_last": 1})
    layers = tower.layers()
    held = [id(p) for layer in layers for p in layer.parameters()]
    assert sorted(held) == sorted(id(p) for p in tower.parameters())
    assert len(layers) > 2
    trained = {name.split(".")[1] for name, p in tower.named_parameters() if p.requires_grad}
    assert trained == {"norm"}


def test_own_input_settings_come_from_the_tag() -> None:
    tower = encoder("siglip", image_size=None)
    assert tower.transform.size == 224
    assert tower.normalise.values == ((0.5,) * 3, (0.5,) * 3)
    options = {**VIT, "img_size": 32}
    assert (
        TimmImageEncoder(backbone="vit_tiny_patch16_224", backbone_options=options).transform.size
        == 32
    )


def test_bfloat16_tower_takes_uint8_pixels() -> None:
    tower = encoder("vit").bfloat16()
    assert tower(Visual(pixels=pixels(tower))).pooled.dtype == torch.bfloat16
