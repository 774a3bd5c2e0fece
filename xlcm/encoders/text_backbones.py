"""What differs between the text models of transformers: classes, configs and layers."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import (
    AutoConfig,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    MT5EncoderModel,
    PretrainedConfig,
    PreTrainedModel,
    Siglip2TextConfig,
    Siglip2TextModel,
    SiglipTextConfig,
    SiglipTextModel,
    T5EncoderModel,
    UMT5EncoderModel,
)
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from xlcm.encoders.base import Tokenizer

# towers that AutoModel doesn't know, or knows with a decoder that is of no use here
ENCODERS: dict[str, type[PreTrainedModel]] = {
    "t5": T5EncoderModel,
    "mt5": MT5EncoderModel,
    "umt5": UMT5EncoderModel,
    "clip_text_model": CLIPTextModel,
    "siglip_text_model": SiglipTextModel,
    "siglip2_text_model": Siglip2TextModel,
}
TEXT_CONFIGS: dict[str, type[PretrainedConfig]] = {
    "clip_text_model": CLIPTextConfig,
    "siglip_text_model": SiglipTextConfig,
    "siglip2_text_model": Siglip2TextConfig,
}
DROPOUTS = (
    "hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout",
    "dropout_rate", "embedding_dropout", "mlp_dropout", "pooler_dropout", "activation_dropout",
)  # fmt: skip
FEEDS_ALL_BLOCKS = ("embed", "relative", "encoder.LayerNorm")  # listed behind DeBERTa's blocks


# -- configs ------------------------------------------------------------------------------------


def read_config(
    backbone: str | None,
    architecture: dict[str, Any] | None,
    revision: str | None,
    tokenizer: Tokenizer,
) -> PretrainedConfig:
    """Return the config of the text tower alone.

    Raises:
        ValueError: if there is neither backbone nor a `model_type`.
        FileNotFoundError: if the backbone's config can't be had.
    """
    if architecture is not None and "model_type" in architecture:
        given = dict(architecture)  # complete: nothing is asked of the hub
    elif backbone is not None:
        given = {**as_dict(_text_config(_fetch_config(backbone, revision))), **(architecture or {})}
    else:
        raise ValueError("text: give a `backbone`, or an `architecture` with its `model_type`")
    given.setdefault("vocab_size", tokenizer.vocab_size)
    given.setdefault("pad_token_id", tokenizer.pad_id)
    for role in ("bos", "eos"):  # CLIP's pooler looks for the end of the text
        if getattr(tokenizer, f"{role}_id", None) is not None:
            given.setdefault(f"{role}_token_id", getattr(tokenizer, f"{role}_id"))
    model_type = given.pop("model_type")
    if model_type in TEXT_CONFIGS:
        return TEXT_CONFIGS[model_type](**given)
    try:
        return _text_config(AutoConfig.for_model(model_type, **given))
    except ValueError as error:
        raise ValueError(f"text.architecture: {error}") from error


def _fetch_config(backbone: str, revision: str | None) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(backbone, revision=revision)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"no config.json to be had from {backbone!r}: expected a hub id, or a folder with "
            f"config.json and model.safetensors. Without a network, fetch the repository "
            f"elsewhere and name its folder, or give `architecture`. ({error})"
        ) from error


def _text_config(config: PretrainedConfig) -> PretrainedConfig:
    """Return the text half of a two-tower model's config, others as they are."""
    inner = getattr(config, "text_config", None)
    if not isinstance(inner, PretrainedConfig):
        return config
    if inner.model_type in ENCODERS and hasattr(config, "projection_dim"):
        inner.projection_dim = config.projection_dim
    return inner


def as_dict(config: PretrainedConfig) -> dict[str, Any]:
    """Return what rebuilds the network, in plain values: `read_config` takes it back."""
    left_out = (
        "transformers_version", "_name_or_path", "architectures", "torch_dtype", "dtype",
        "_attn_implementation_autoset",
    )  # fmt: skip
    values = {k: v for k, v in config.to_diff_dict().items() if k not in left_out}
    plain = json.loads(json.dumps({**values, "model_type": config.model_type}, default=str))
    return dict(plain)


def token_width(config: PretrainedConfig) -> int:
    """Return the size of a token that the network puts out."""
    for name in ("hidden_size", "d_model", "dim"):
        if isinstance(getattr(config, name, None), int):
            return int(getattr(config, name))
    raise ValueError(f"the config of {config.model_type} names no hidden_size")


def pooled_width(config: PretrainedConfig, output: str) -> int:
    """Return the size of the pooled vector; see `HFTextEncoder` for `output`."""
    if output == "projected":
        return int(config.projection_dim)
    if output == "own" and config.model_type.startswith("siglip"):
        return int(getattr(config, "projection_size", None) or token_width(config))
    return token_width(config)


def set_dropout(config: PretrainedConfig, rate: float) -> None:
    """Set every dropout rate that the config knows."""
    for name in DROPOUTS:
        if isinstance(getattr(config, name, None), float | int):
            setattr(config, name, rate)


def check_sizes(config: PretrainedConfig, tokenizer: Tokenizer) -> None:
    """Compare network and tokenizer.

    Raises:
        ValueError: if the tokenizer makes ids, or lengths, that the network has no row for.
    """
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the network only "
            f"{config.vocab_size} embeddings: they don't belong together"
        )
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and "roberta" in config.model_type:
        positions -= config.pad_token_id + 1  # positions there begin behind the padding's id
    if positions is not None and 0 < positions < tokenizer.max_tokens:
        raise ValueError(
            f"max_tokens={tokenizer.max_tokens}, but {config.model_type} has only {positions} "
            "positions; lower tokenizer.max_tokens"
        )


# -- networks -----------------------------------------------------------------------------------


def make(config: PretrainedConfig, output: str) -> PreTrainedModel:
    """Build the network with random float32 weights, without parts that `output` doesn't reach.

    Raises:
        ValueError: if there is no such network, or it has no such output.
    """
    known = ENCODERS.get(config.model_type) or MODEL_MAPPING.get(type(config), None)
    if known is None or isinstance(known, tuple):
        raise ValueError(f"transformers has no text encoder for model_type {config.model_type!r}")
    part = known
    if output == "projected":
        if config.model_type != "clip_text_model":
            raise ValueError(f"output: projected is CLIP's; {config.model_type} has none")
        part = CLIPTextModelWithProjection
    options: dict[str, Any] = {}
    if "add_pooling_layer" in inspect.signature(part.__init__).parameters:
        options["add_pooling_layer"] = output == "own"
    elif output == "own" and config.model_type not in TEXT_CONFIGS:
        raise ValueError(
            f"{known.__name__} has no pooler of its own; say output: pooled and choose a pooling"
        )
    config.is_decoder = False
    model = part(config, **options).float()
    if output == "pooled":
        _remove_poolers(model)
    return model


def _remove_poolers(model: nn.Module) -> None:
    """Take out poolers and SigLIP's head: weights that get no gradient stop DDP."""
    for name in ("pooler", "head"):
        for parent in (model, getattr(model, "text_model", None)):
            if isinstance(getattr(parent, name, None), nn.Module):
                setattr(parent, name, nn.Identity() if name == "head" else None)


def save_memory(model: PreTrainedModel) -> None:
    """Compute the blocks again in the backward pass, in place of keeping what is inside them."""
    # renamed in transformers 5; the old name warns there
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})


def layers(model: nn.Module, top: Sequence[nn.Module] = ()) -> list[nn.Module]:
    """Cut a network into embeddings, blocks and the rest; every parameter is in one of them.

    Args:
        model: any encoder of transformers.
        top: what follows the network, for the last layer.
    """
    stacks = _stacks(model)
    blocks = [nn.ModuleList(same) for same in zip(*stacks.values())]
    inside = {id(module) for block in blocks for module in block.modules()}
    bottom, rest = _Group(), _Group()
    below = True
    for name, module in model.named_modules():
        below = below and name not in stacks
        if id(module) in inside or name in stacks:
            continue
        low = below or any(word in name for word in FEEDS_ALL_BLOCKS)
        (bottom if low else rest).take(name, module)
    for module in top:
        rest.take(type(module).__name__, module, whole=True)
    named = [bottom, *(b[0] if len(b) == 1 else b for b in blocks), rest]
    return [layer for layer in named if any(True for _ in layer.parameters())]


class _Group(nn.Module):
    """Modules of one layer, gathered so that they can be frozen together."""

    def take(self, name: str, module: nn.Module, *, whole: bool = False) -> None:
        """Add a module, or, where it is more than a leaf, only the parameters of its own."""
        key = name.replace(".", "_")
        if whole or not any(True for _ in module.children()):
            self.add_module(key, module)
            return
        for leaf, parameter in module.named_parameters(recurse=False):
            self.register_parameter(f"{key}_{leaf}", parameter)


def _stacks(model: nn.Module) -> dict[str, nn.ModuleList]:
    """Return the lists of blocks: the first one met, and those as long beside it."""
    lists = {n: m for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)}
    first = next(iter(lists), None)
    if first is None:
        return {}
    parent, length = first.rpartition(".")[0], len(lists[first])
    return {n: m for n, m in lists.items() if n.rpartition(".")[0] == parent and len(m) == length}
