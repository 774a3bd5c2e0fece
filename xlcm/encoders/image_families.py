"""Families of vision towers in transformers: their classes, input settings and config files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils.hub import cached_file


@dataclass(frozen=True)
class Family:
    """What differs between the towers.

    Args:
        config: name of the configuration class in transformers.
        model: name of the tower's class.
        root: where the tower's keys stand in a checkpoint of the whole model.
        mean: of the channels, where no preprocessor_config.json says it.
        std: likewise.
        shrink: side of the crop as a share of the resized picture.
        squash: whether the resize keeps the aspect ratio.
        size: side of the input; None: what the position table was made for.
        prefix: tokens before the patches, registers not counted.
    """

    config: str
    model: str
    root: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    shrink: float
    squash: bool
    size: int | None
    prefix: int


CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
FAMILIES = {
    "clip_vision_model": Family(
        "CLIPVisionConfig", "CLIPVisionModel", "vision_model.",
        CLIP_MEAN, CLIP_STD, 1.0, False, None, 1,
    ),
    "siglip_vision_model": Family(
        "SiglipVisionConfig", "SiglipVisionModel", "vision_model.",
        HALF, HALF, 1.0, True, None, 0,
    ),
    "dinov2": Family(
        "Dinov2Config", "Dinov2Model", "dinov2.",
        IMAGENET_MEAN, IMAGENET_STD, 0.875, False, 224, 1,
    ),
    "dinov2_with_registers": Family(
        "Dinov2WithRegistersConfig", "Dinov2WithRegistersModel", "dinov2_with_registers.",
        IMAGENET_MEAN, IMAGENET_STD, 0.875, False, 224, 1,
    ),
}  # fmt: skip
SHAPE_KEYS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels",
    "image_size", "patch_size", "hidden_act", "layer_norm_eps", "attention_dropout", "mlp_ratio",
    "hidden_dropout_prob", "attention_probs_dropout_prob", "qkv_bias", "layerscale_value",
    "drop_path_rate", "use_swiglu_ffn", "num_register_tokens",
)  # fmt: skip

SPELLINGS = [  # of DINOv2: up to transformers 4, from 5 on
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
    ("mlp.weights_out", "mlp.down_proj"),
]
JOINED, APART = "mlp.weights_in", ("mlp.gate_proj", "mlp.up_proj")


def respelled(state: Mapping[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
    """Return DINOv2's weights under the wanted names; keys that no spelling fits stay.

    Args:
        state: weights in the spelling of any transformers.
        wanted: the keys of the module that shall take them.
    """
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        swaps = [key.replace(*pair) for s in SPELLINGS for pair in (s, s[::-1]) if pair[0] in key]
        gate, up = (key.replace(JOINED, part) for part in APART)
        if key in wanted:
            renamed[key] = value
        elif JOINED in key and gate in wanted:
            renamed[gate], renamed[up] = value.chunk(2)
        elif APART[0] in key and key.replace(APART[0], JOINED) in wanted:
            both = torch.cat([value, state[key.replace(*APART)]])
            renamed[key.replace(APART[0], JOINED)] = both
        elif not (APART[1] in key and key.replace(APART[1], JOINED) in wanted):  # went with gate
            renamed[next((swap for swap in swaps if swap in wanted), key)] = value
    return renamed


def vision_part(config: Mapping[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    """Return the family's name and the configuration of the vision tower alone.

    Raises:
        ValueError: for a family that this encoder doesn't know.
    """
    kind = config.get("model_type")
    if kind in ("clip", "siglip"):
        kind, config = f"{kind}_vision_model", config.get("vision_config", {})
    if kind not in FAMILIES:
        hint = (
            "; SigLIP 2 works in its fixed resolutions, not as NaFlex" if kind == "siglip2" else ""
        )
        known = ", ".join(["clip", "siglip", *FAMILIES])
        raise ValueError(f"{where}: model_type must be one of {known}; got {kind!r}{hint}")
    return str(kind), {key: value for key, value in config.items() if key != "model_type"}


def fetch_json(backbone: str, name: str, optional: bool = False) -> dict[str, Any] | None:
    """Return a file of a folder or of the hub; None if it may be missing and is.

    Raises:
        FileNotFoundError: naming the file, and where it was expected.
    """
    folder = Path(backbone).expanduser()
    if folder.is_dir():
        file: str | None = str(folder / name) if (folder / name).is_file() else None
    else:
        try:
            file = cached_file(backbone, name, _raise_exceptions_for_missing_entries=not optional)
        except OSError as error:
            raise FileNotFoundError(
                f"{name} of {backbone} can't be fetched ({error}); put config.json and "
                "model.safetensors into a folder and set `backbone` and `weights` to its path"
            ) from error
    if file is not None:
        return dict(json.loads(Path(file).read_text(encoding="utf-8")))
    if optional:
        return None
    raise FileNotFoundError(f"no {name} in {folder}: expected {folder / name}")


def processor_of(backbone: str) -> dict[str, Any]:
    """Return the image processor's settings that stand beside the config, or nothing."""
    alone = fetch_json(backbone, "preprocessor_config.json", optional=True)
    if alone is not None:
        return alone
    whole = fetch_json(backbone, "processor_config.json", optional=True) or {}
    return dict(whole.get("image_processor") or {})
