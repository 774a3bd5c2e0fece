"""What makes a step fast and shows in no value: each is still there."""

from collections import Counter

import pytest
import tiny
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from xlcm.config import check
from xlcm.encoders.base import Tower
from xlcm.training import loop
from xlcm.training.optim import build_optimizer
from xlcm.training.settings import OptimConfig, TrainConfig
from xlcm.training.setup import build_loader, build_method, open_data, start
from xlcm.types import Batch, TextBatch, Visual


class Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def test_the_optimiser_takes_a_group_of_parameters_in_one_kernel():
    method = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    method.retriever = method[0]
    optimizer = build_optimizer(method, OptimConfig(weight_decay=0.1))
    method(torch.ones(2, 4)).sum().backward()
    with Calls() as calls:
        optimizer.step()
    assert len(optimizer.param_groups) == 2
    assert calls.seen["_fused_adamw_"] == 2
    assert not set(calls.seen) & {"addcmul_", "addcdiv_", "lerp_"}  # what it is made of else


class Travelling:
    """Stands in for a tensor, and tells how it was moved."""

    def __init__(self, told: list) -> None:
        self.told = told

    def to(self, device, non_blocking=False):
        self.told.append((device, non_blocking))
        return self

    def pin_memory(self):
        self.told.append("pinned")
        return self


def test_every_tensor_of_a_batch_is_pinned_and_copied_without_waiting():
    told: list = []
    texts = {
        name: TextBatch(*(Travelling(told) for _ in range(2))) for name in ("source", "target")
    }
    batch = Batch(Travelling(told), Visual(*(Travelling(told) for _ in range(3))), texts)
    batch.pin_memory()
    assert told == ["pinned"] * 8
    told.clear()
    loop._moved(batch, "some device", 0)
    assert told == [("some device", True)] * 8


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_batches_are_pinned_for_a_gpu_alone(tiny_data, tmp_path, monkeypatch, kind):
    tiny.forget_processes()
    config = check(TrainConfig, tiny.tree(tiny_data, tmp_path))
    accelerator = start(config)
    data = open_data(accelerator, config)
    method = build_method(accelerator, config, data.rows)
    monkeypatch.setattr(Accelerator, "device", torch.device(kind))
    loader = build_loader(accelerator, config.data, config.run, data.rows, method)
    assert loader.loader.pin_memory == (kind == "cuda")


def test_every_product_of_both_towers_is_in_bf16_under_autocast(tiny_data, tmp_path):
    found: dict[str, set] = {}

    def watch(method):
        for name in ("image", "text"):
            tower = getattr(method.retriever, name)
            assert isinstance(tower, Tower)
            for part in tower.modules():
                if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d):
                    part.register_forward_hook(
                        lambda part, given, out, name=name: found.setdefault(name, set()).add(
                            out.dtype
                        )
                    )

    sections = tiny.pictures(tiny_data)
    run = tiny.tree(tiny_data, tmp_path, **sections, run={"steps": 1, "precision": "bf16"})
    tiny.train(run, wrap=watch)
    assert found == {"image": {torch.bfloat16}, "text": {torch.bfloat16}}
