"""What a run says of its arithmetic: counted right, and without a trace on the run."""

import pytest
import tiny
import torch
from torch import nn

from tests.small_models import Numbers, bag
from xlcm.encoders.image_timm import TimmImageEncoder
from xlcm.encoders.pooling import MeanPooling
from xlcm.encoders.text_hf import HFTextEncoder
from xlcm.training import flops
from xlcm.types import Batch, TextBatch, Visual


class Products(nn.Module):
    """A method of two linear towers, of which one may be frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(8, 4, bias=False), nn.Linear(6, 4, bias=False)
        self.dropout = nn.Dropout(0.5)

    def encode(self, batch):
        words = batch.text["source"].ids.double()
        return {
            "ids": batch.ids,
            "image": self.image(self.dropout(batch.visual.features)),
            "source": self.text(words),
        }


def batch(rows=3):
    text = TextBatch(torch.ones(rows, 6, dtype=torch.int64), torch.ones(rows, 6, dtype=torch.bool))
    features = torch.ones(rows, 8, dtype=torch.float64)
    return Batch(torch.arange(rows), Visual(features=features), {"source": text})


def test_a_row_costs_its_products_forwards_and_those_of_the_weights_backwards():
    # inputs need no gradient, so backwards each weight costs one product as large as forwards
    assert flops.flops_of_row(Products().double(), batch()) == 2 * 2 * (8 * 4 + 6 * 4)


def test_a_frozen_tower_costs_its_forward_pass_alone():
    method = Products().double()
    method.image.requires_grad_(False)
    assert flops.flops_of_row(method, batch()) == 2 * 8 * 4 + 2 * 2 * 6 * 4


class Alone(nn.Module):
    """A method of one tower."""

    def __init__(self, tower) -> None:
        super().__init__()
        self.tower = tower

    def encode(self, batch):
        return {"pooled": self.tower(batch.visual or batch.text["source"]).pooled}


def captions(lengths):
    longest = max(lengths)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    ids = torch.where(mask, torch.randint(3, 40, mask.shape), 0)
    return Batch(torch.arange(len(lengths)), text={"source": TextBatch(ids, mask)})


def forwards(length, width, inner):
    """FLOPs of a transformer's block on a row: four maps, scores and mixing, two layers."""
    return 2 * length * 4 * width**2 + 2 * 2 * length**2 * width + 2 * 2 * length * width * inner


@pytest.mark.parametrize("lengths", [[9, 9], [9, 4]], ids=["no padding", "padding"])
def test_a_transformers_row_costs_its_products_attention_included(lengths):
    architecture = {
        "model_type": "xlm-roberta", "hidden_size": 16, "num_hidden_layers": 2, "pad_token_id": 0,
        "num_attention_heads": 4, "intermediate_size": 24, "max_position_embeddings": 40,
    }  # fmt: skip
    text = HFTextEncoder(architecture=architecture, tokenizer=Numbers(), pooling=MeanPooling)
    # each product of the forward pass has two of its size in the backward pass
    assert flops.flops_of_row(Alone(text), captions(lengths)) == 3 * 2 * forwards(9, 16, 24)


def test_a_vision_transformer_costs_its_products_attention_included():
    tower = TimmImageEncoder(backbone="test_vit", image_size=32)
    pixels = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    vit = tower.backbone
    width, inner, tokens = vit.embed_dim, vit.blocks[0].mlp.fc1.out_features, 1 + 2 * 2
    patches = 2 * 4 * width * 3 * 16 * 16  # whose pixels get no gradient
    expected = 3 * len(vit.blocks) * forwards(tokens, width, inner) + 2 * patches
    batch = Batch(torch.arange(2), Visual(pixels))
    assert flops.flops_of_row(Alone(tower), batch) == expected


def test_a_frozen_transformer_costs_its_forward_pass_though_it_is_one_kernel():
    text = bag(context="attention", attention_heads=2, freeze="all")
    fused = torch.backends.mha.get_fastpath_enabled()
    assert flops.flops_of_row(Alone(text), captions([7, 7])) == forwards(7, 8, 16)
    assert torch.backends.mha.get_fastpath_enabled() == fused


def test_counting_leaves_gradients_modes_and_random_numbers_alone():
    method = Products().double().train()
    method.text.eval()
    torch.manual_seed(0)
    flops.flops_of_row(method, batch())
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))
    assert all(p.grad is None for p in method.parameters())
    assert (method.training, method.dropout.training, method.text.training) == (True, True, False)


def test_every_step_says_its_share_of_the_devices_best(tiny_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(flops, "peak", lambda device, precision: (1e9, "what was said"))
    tiny.train(tiny.tree(tiny_data, tmp_path, run={"steps": 2, "log_every": 1}))
    said = capsys.readouterr().out
    assert "GFLOP a row of training; mfu is the share of what was said" in said
    assert "items/s  mfu " in said
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2
    assert all('"mfu": ' in line for line in lines)


@pytest.mark.parametrize(
    ("name", "known", "tflops"),
    [
        ("NVIDIA H100 PCIe", "H100 PCIe", 756),
        ("NVIDIA H100 80GB HBM3", "H100", 989),
        ("NVIDIA A100-SXM4-80GB", "A100", 312),
        ("NVIDIA L40", "L40", 181),
        ("NVIDIA L4", "L4", 121),
        ("NVIDIA A10G", "A10G", 70),
    ],
)
def test_a_known_device_is_measured_by_its_makers_figure(monkeypatch, name, known, tflops):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    found, source = flops.peak.__wrapped__(torch.device("cuda"), "bf16")
    assert found == tflops * 1e12
    assert source.endswith(f" of {known}")


@pytest.mark.parametrize("name", ["NVIDIA RTX A1000", "NVIDIA L400", "Tesla T4"])
def test_a_device_that_is_not_known_whole_is_not_taken_for_another(monkeypatch, name):
    def measures(*_, **__):
        raise LookupError

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch, "full", measures)
    with pytest.raises(LookupError):
        flops.peak.__wrapped__(torch.device("cuda"), "bf16")


def test_compiled_towers_train_to_the_same_weights(tiny_data, tmp_path, monkeypatch):
    compiled = []

    def remember(module, **options):
        compiled.append(type(module).__name__)
        assert options == {"dynamic": True}
        original(module, backend="eager", **options)

    original = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", remember)
    for name in ("plain", "compiled"):
        run = {"steps": 3, "compile": name == "compiled"}
        tiny.train(tiny.tree(tiny_data, tmp_path / name, run=run))
    assert compiled == ["FeatureEncoder", "BagTextEncoder"]
    plain, other = (tiny.weights(tmp_path / name, 3) for name in ("plain", "compiled"))
    for key, value in plain.items():
        torch.testing.assert_close(other[key], value, msg=key)
