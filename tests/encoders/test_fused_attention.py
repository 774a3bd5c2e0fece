"""Attention of whole towers goes through torch's fused kernel, with padding and without.

A config that a tower passes on, or a mask of the wrong kind, would bring back the plain form, which
holds every pair of tokens, and no value would tell.
"""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.small_models import Numbers
from xlcm.config import build
from xlcm.encoders.pooling import MeanPooling
from xlcm.encoders.text_backbones import as_dict
from xlcm.encoders.text_hf import HFTextEncoder
from xlcm.registry import image_encoders
from xlcm.types import Visual

SIZE = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
}  # fmt: skip
TEXT = {
    "bert": {**SIZE, "model_type": "bert"},
    "xlmr": {**SIZE, "model_type": "xlm-roberta", "max_position_embeddings": 40},
    "distilbert": {
        "model_type": "distilbert", "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 16,
    },
    "clip": {**SIZE, "model_type": "clip_text_model", "projection_dim": 8},
    "siglip": {**SIZE, "model_type": "siglip_text_model", "max_position_embeddings": 24},
}  # fmt: skip
PATCHES = {**SIZE, "image_size": 32, "patch_size": 8}
HF = {"name": "hf", "image_size": 32}
IMAGE = {
    "clip": {**HF, "architecture": {"model_type": "clip_vision_model", **PATCHES}},
    "siglip": {  # whose own pooling attends with one query, in the plain form
        **HF,
        "architecture": {"model_type": "siglip_vision_model", **PATCHES},
        "pooling": "mean",
    },
    "dinov2": {**HF, "architecture": {"model_type": "dinov2", "mlp_ratio": 2, **PATCHES}},
    "timm": {"name": "timm", "backbone": "test_vit", "image_size": 32},
}


class Kernels(TorchDispatchMode):
    """Counts fused attention, and products of batches of matrices, of which plain attention is made."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if "scaled_dot_product" in name or name in ("bmm", "baddbmm"):
            self.seen["fused" if "flash" in name else "plain"] += 1
        return func(*args, **(kwargs or {}))


def kernels(tower, given):
    with torch.no_grad(), Kernels() as kernels:
        tower(given)
    return dict(kernels.seen)


@pytest.mark.parametrize("texts", [["7 3 12", "9"], ["7 3", "4 9"]], ids=["padding", "none"])
@pytest.mark.parametrize("family", TEXT)
def test_text_towers_attend_by_the_fused_kernel(family, texts):
    architecture = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **TEXT[family]}
    given = {"tokenizer": Numbers(), "pooling": MeanPooling}
    tower = HFTextEncoder(architecture=architecture, **given).eval()
    again = HFTextEncoder(architecture=as_dict(tower.config), **given).eval()  # as when saved
    for one in (tower, again):
        assert kernels(one, one.tokenizer(texts)) == {"fused": 2}


@pytest.mark.parametrize("family", IMAGE)
def test_image_towers_attend_by_the_fused_kernel(family):
    tower = build(image_encoders, IMAGE[family]).eval()
    pixels = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    blocks = len(tower.backbone.blocks) if family == "timm" else 2
    for one in (tower, build(image_encoders, tower.spec()).eval()):
        assert kernels(one, Visual(pixels)) == {"fused": blocks}
