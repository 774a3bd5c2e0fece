"""`run.compile` reaches every call of a tower, whichever steps of it a method takes."""

from collections import Counter
from unittest import mock

import pytest
import small_models
import torch
from torch import nn

from xlcm.config import build
from xlcm.encoders.base import Tower
from xlcm.encoders.features import FeatureEncoder
from xlcm.models import teacher
from xlcm.registry import methods
from xlcm.training.flops import compile_towers

SPECS = {
    "contrastive": {},
    "nrccr": {},
    "nrccr_all_tokens": {"discriminator": "strong"},
    "translate_train": {},
    "c2kd": {"teachers": ["small1"]},
    "cl2cm": {},
    "cl2cm_shared": {"share_encoder": True},
}


def method_of(name: str) -> nn.Module:
    text = small_models.refined() if name.startswith("nrccr") else None
    image = FeatureEncoder(width=small_models.FEATURES, norm="layer")
    model = small_models.model(text, image=image)
    torch.manual_seed(5)
    spec = {"name": "_".join(name.split("_")[:2]) if name == "translate_train"
            else name.split("_")[0], **SPECS[name]}  # fmt: skip
    with mock.patch.object(teacher.DualEncoder, "from_pretrained", small_models.saved):
        built = build(methods, spec, model).double()
    built.begin(0.5)
    return built


def batch_of(name: str):
    if name in ("translate_train", "c2kd"):
        return small_models.translations("de", "zh", teachers=1)
    return small_models.batch("source", "target", "back")


def weighted(method: nn.Module) -> dict[str, nn.Module]:
    """The modules with weights of their own, within towers."""
    return {
        f"{path}.{inner}": part
        for path, tower in method.named_modules()
        if isinstance(tower, Tower)
        for inner, part in tower.named_modules()
        if not isinstance(part, Tower) and next(part.parameters(recurse=False), None) is not None
    }


def step(method: nn.Module, name: str):
    terms = method(batch_of(name))
    method.total(terms).backward()
    gradients = {key: p.grad for key, p in method.named_parameters() if p.grad is not None}
    return {key: term.detach() for key, term in terms.items()}, gradients


def with_backend(backend):
    original = nn.Module.compile
    return lambda self, **options: original(self, backend=backend, **options)


@pytest.mark.parametrize("name", SPECS)
def test_each_call_of_a_tower_is_compiled_and_gives_the_same(name, monkeypatch):
    plain, called = method_of(name), Counter()
    own = {id(part): path for path, part in weighted(plain).items()}  # an inner tower's come twice
    for part in plain.modules():
        if id(part) in own:
            path = own[id(part)]
            part.register_forward_hook(lambda *_, path=path: called.update([path]))
    expected = step(plain, name)

    compiled, handed = method_of(name), Counter()

    def backend(graph, inputs):
        def run(*given):
            handed.update(id(one) for one in given if isinstance(one, nn.Parameter))
            return graph(*given)

        return run

    torch.compiler.reset()
    monkeypatch.setattr(nn.Module, "compile", with_backend(backend))
    compile_towers(compiled)
    found = step(compiled, name)
    torch.compiler.reset()
    parts = weighted(compiled)
    reached = {path: handed[id(next(parts[path].parameters()))] for path in called}
    assert len(called) >= 4
    assert reached == dict(called)
    torch.testing.assert_close(found, expected)
