"""Vision towers of transformers: CLIP, SigLIP and SigLIP 2 (fixed resolution), DINOv2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import transformers
from pydantic import Field
from torch import Tensor, nn

from xlcm.config import Part
from xlcm.encoders import image_weights
from xlcm.encoders.base import Freeze, ImageEncoder, KeepLast
from xlcm.encoders.image_families import (
    FAMILIES,
    SHAPE_KEYS,
    fetch_json,
    processor_of,
    respelled,
    vision_part,
)
from xlcm.encoders.pooling import PoolingFactory
from xlcm.encoders.transform import ImageTransform, Interpolation, Normalise, Resizer
from xlcm.registry import poolings
from xlcm.types import Encoded, Visual

POSITIONS = "embeddings.position_embedding.weight"
PROJECTION = "visual_projection."


class HFImageEncoder(ImageEncoder):
    """A vision tower of transformers, without classifier, and without projection unless asked.

    Tokens are the last hidden states after the final norm (CLIP's own `last_hidden_state` lacks
    it), class and register tokens first. With a `pooling` of ours SigLIP's attention head is not
    built. Input settings come from the option, else from the folder's preprocessor_config.json,
    else from the family.

    Args:
        backbone: hub id, or a folder with config.json; read when the tower is built.
        architecture: the configuration itself, for building offline; one of the two is needed.
        weights: None (random), `hub` (those of `backbone`), a safetensors file, or a folder that
            holds model.safetensors or its shards; read by `load_weights`.
        image_size: side of the square input in pixels; position tables follow it.
        mean: of the channels, in 0..1.
        std: of the channels, in 0..1.
        crop_pct: share of the resized shorter side that the crop keeps, in (0, 1].
        interpolation: of the resize.
        squash: resize without keeping the aspect ratio.
        resizer: `torch`, or `pillow` for the very pixels that Pillow makes, more slowly.
        pooling: from tokens to one vector; None: the tower's own.
        projected: map CLIP's own pooled vector on to the space that it shares with its text tower,
            as published image embeddings of CLIP are.
        freeze: see `Tower.freeze`.
        gradient_checkpointing: recompute activations in the backward pass, for memory.

    Attributes:
        width: size of the pooled vector.
        token_width: size of a token, the same unless `projected`.

    Raises:
        ValueError: for another family, neither or both of `backbone` and `architecture`, or
            `projected` where there is no projection.
        FileNotFoundError: if config.json can't be had, or `weights` is a path without weights.
    """

    transform: ImageTransform

    def __init__(
        self,
        *,
        backbone: str | None = None,
        architecture: dict[str, Any] | None = None,
        weights: str | None = None,
        image_size: Annotated[int, Field(gt=0)] | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        crop_pct: Annotated[float, Field(gt=0.0, le=1.0)] | None = None,
        interpolation: Interpolation | None = None,
        squash: bool | None = None,
        resizer: Resizer = "torch",
        pooling: Annotated[PoolingFactory | None, Part(poolings)] = None,
        projected: bool = False,
        freeze: Freeze = "none",
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if (backbone is None) == (architecture is None):
            raise ValueError("set either `backbone` (hub id or folder) or `architecture`")
        if weights == "hub" and backbone is None:
            raise ValueError("weights: hub needs `backbone`, the id on the hub")
        if weights not in (None, "hub"):
            image_weights.locate(str(weights))
        self.name, self.weights = backbone, weights
        config = architecture or fetch_json(str(backbone), "config.json")
        kind, config = vision_part(config or {}, backbone or "architecture")
        self.family = FAMILIES[kind]
        self._config = getattr(transformers, self.family.config).from_dict(config)
        processor = {} if backbone is None else processor_of(backbone)
        default = self._transform(processor, image_size, crop_pct, interpolation, squash)
        self.transform = replace(default, resizer=resizer)
        if self.family.size is None:  # else the tower interpolates its positions itself
            self._config.image_size = self.transform.size
        self._architecture = {"model_type": kind} | {
            key: getattr(self._config, key) for key in SHAPE_KEYS if hasattr(self._config, key)
        }
        self.normalise = Normalise(
            mean or processor.get("image_mean") or self.family.mean,
            std or processor.get("image_std") or self.family.std,
        )
        self.width = self.token_width = int(self._config.hidden_size)
        self.pooling = None if pooling is None else pooling(self.width)
        self.prefix = self.family.prefix + getattr(self._config, "num_register_tokens", 0)
        if self.pooling is not None and self.pooling.needs_order and not self.prefix:
            raise ValueError(
                f"pooling {self.pooling.name!r} needs a class token and {kind} has none; choose "
                "mean, max or attention"
            )
        self.projection: nn.Linear | None = None
        if projected:
            if self.family.model != "CLIPVisionModel" or self.pooling is not None:
                raise ValueError(
                    f"projected=true is for CLIP with its own pooling, not for {kind} with pooling "
                    f"{'own' if self.pooling is None else self.pooling.name}: leave one of them out"
                )
            self.width = int(self._config.projection_dim)
            self._architecture["projection_dim"] = self.width
            self.projection = nn.Linear(self.token_width, self.width, bias=False)
        self.backbone = self._build(gradient_checkpointing)
        self.gradient_checkpointing = gradient_checkpointing
        self._freeze_spec = freeze
        self.freeze(freeze)

    def _transform(
        self,
        processor: Mapping[str, Any],
        image_size: int | None,
        crop_pct: float | None,
        interpolation: Interpolation | None,
        squash: bool | None,
    ) -> ImageTransform:
        family = self.family
        default = ImageTransform(
            family.size or int(self._config.image_size), family.shrink, "bicubic", family.squash
        )
        if processor:
            default = ImageTransform.from_hf(processor)
        built_for = None if family.size else int(self._config.image_size)
        return ImageTransform(
            image_size or built_for or default.size,
            crop_pct or default.crop_pct,
            interpolation or default.interpolation,
            default.squash if squash is None else squash,
        )

    def _build(self, gradient_checkpointing: bool) -> Any:
        if self.family.root == "vision_model." and self.pooling is not None:
            self._config.vision_use_head = False
        model = getattr(transformers, self.family.model)(self._config)
        if gradient_checkpointing:
            newer = getattr(model, "activation_checkpointing_enable", None)
            (newer or model.gradient_checkpointing_enable)({"use_reentrant": False})
        tower = getattr(model, "vision_model", model)  # a shell around it before transformers 5
        if getattr(tower.embeddings, "mask_token", None) is not None:
            tower.embeddings.mask_token = None  # of the pretraining; unused weights break DDP
        return tower

    def spec(self) -> dict[str, Any]:
        """Return the config (with `name`) that rebuilds this tower without folder or hub."""
        freeze, (mean, std) = self._freeze_spec, self.normalise.values
        transform = self.transform.spec()
        return {
            "name": "hf",
            "backbone": None,
            "architecture": dict(self._architecture),
            "weights": None,
            "image_size": transform.pop("size"),
            **transform,
            "mean": list(mean),
            "std": list(std),
            "pooling": None if self.pooling is None else self.pooling.spec(),
            "projected": self.projection is not None,
            "freeze": freeze.model_dump() if isinstance(freeze, KeepLast) else freeze,
            "gradient_checkpointing": self.gradient_checkpointing,
        }

    def load_weights(self) -> None:
        """Replace random weights by those that the option `weights` names; nothing for None.

        Of a whole CLIP or SigLIP only the vision tower is read; position tables of another size
        are resampled.

        Raises:
            FileNotFoundError: naming the file that was expected and where, or the hub's failure.
            ValueError: listing the keys that don't fit.
        """
        if self.weights is None:
            return
        path = self.name if self.weights == "hub" else self.weights
        if self.weights == "hub" and not Path(str(path)).is_dir():
            where, state = f"the hub's weights of {path}", self._fetch()
        else:
            files = image_weights.locate(str(path))
            where, state = str(files[0]), image_weights.read(files)
        if self.projection is not None:
            image_weights.load(self.projection, _part(state, PROJECTION), (), where)
            state = {k: v for k, v in state.items() if not k.startswith(PROJECTION)}
        if any(key.startswith(self.family.root) for key in state):
            state = _part(state, self.family.root)
        spare = ["embeddings.position_ids", "embeddings.mask_token"]
        spare += [] if self.pooling is None else ["head."]
        image_weights.load(self.backbone, self._renamed(self._resampled(state)), spare, where)

    def _fetch(self) -> dict[str, Tensor]:
        try:
            whole = "WithProjection" if self.projection is not None else ""
            model = getattr(transformers, self.family.model + whole).from_pretrained(self.name)
        except Exception as error:
            raise FileNotFoundError(
                f"the weights of {self.name} can't be fetched ({error}); put config.json and "
                "model.safetensors into a folder and set `backbone` and `weights` to its path, or "
                "set `weights: null` for random"
            ) from error
        return dict(model.state_dict())

    def _renamed(self, state: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
        """Return the state under the names that the installed transformers has for its layers.

        DINOv2's attention and gated layers are called otherwise from transformers 5 on; files on
        the hub keep the older names.
        """
        own = {prefix + key for key in self.backbone.state_dict()}
        return respelled(state, own) if self.family.model.startswith("Dinov2") else state

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """Read models saved under another transformers too; torch calls it on `load_state_dict`."""
        renamed = self._renamed(state_dict, f"{prefix}backbone.")
        if renamed is not state_dict:
            state_dict.clear()
            state_dict.update(renamed)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _resampled(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the state with CLIP's or SigLIP's position table at this tower's resolution."""
        wanted, table = self.backbone.state_dict().get(POSITIONS), state.get(POSITIONS)
        if wanted is None or table is None or wanted.shape == table.shape:
            return state
        prefix, patches = table.split([self.prefix, len(table) - self.prefix])
        before, after = (round((len(t) - self.prefix) ** 0.5) for t in (table, wanted))
        if before**2 != len(patches):
            return state  # not a square: the strict loading says what is wrong
        image = patches.float().T.reshape(1, -1, before, before)
        image = F.interpolate(image, (after, after), mode="bicubic", antialias=True)
        resized = torch.cat([prefix, image.flatten(2)[0].T.to(table.dtype)])
        return {**state, POSITIONS: resized}

    def layers(self) -> list[nn.Module]:
        """Return embeddings, each block, and what follows them (final norm, pooling)."""
        tower = self.backbone
        first = [tower.embeddings, getattr(tower, "pre_layrnorm", None)]
        blocks = getattr(tower.encoder, "layers", None) or tower.encoder.layer
        norm = getattr(tower, "post_layernorm", None) or tower.layernorm
        last = [norm, getattr(tower, "head", None), self.pooling, self.projection]
        ends = [nn.ModuleList([m for m in part if m is not None]) for part in (first, last)]
        return [ends[0], *blocks, ends[1]]

    def forward(self, visual: Visual) -> Encoded:
        """Return `pooled (b, width)` and `tokens (b, T, width)`; every token is real.

        Raises:
            ValueError: for no pixels, and pixels of another shape, dtype or range.
        """
        dtype = next(self.backbone.parameters()).dtype
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            out = self.backbone(self.normalise(visual.pixels, dtype))
            tokens = out.last_hidden_state
            if self.family.model == "CLIPVisionModel":
                tokens = self.backbone.post_layernorm(tokens)
            if self.pooling is None:
                pooled = out.pooler_output
                return Encoded(
                    pooled if self.projection is None else self.projection(pooled), tokens
                )
            seen = tokens if self.pooling.reads_prefix else tokens[:, self.prefix :]
            mask = torch.ones(seen.shape[:2], dtype=torch.bool, device=seen.device)
            return Encoded(self.pooling(seen, mask), tokens)


def _part(state: Mapping[str, Tensor], root: str) -> dict[str, Tensor]:
    return {key[len(root) :]: value for key, value in state.items() if key.startswith(root)}
