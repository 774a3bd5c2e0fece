"""What a run says of its arithmetic: counted right, and without a trace on the run."""

import pytest
import tiny
import torch
from torch import nn

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
