"""C2KD's video tower: features of frames, gated, read by a small transformer's class token."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from xlcm.encoders.base import Freeze, ImageEncoder, KeepLast, masked
from xlcm.encoders.heads import GatedUnitHead
from xlcm.types import Encoded, Visual

EPSILON = 1e-6  # of every LayerNorm


class FrameTransformerEncoder(ImageEncoder):
    """Frame features -> gated unit -> transformer blocks -> the class token.

    Nothing tells the frames' order: they are a set. A video without frames is read as one trained
    token; a single vector an item (an image) as a video of one frame. What C2KD puts behind the
    class token, another gated unit, is the model's head (`gated`).

    Args:
        feature_width: size of a frame's feature vector.
        width: size of tokens and of the pooled vector.
        layers: transformer blocks.
        heads: of the attention; must divide `width`.
        mlp_ratio: width of a block's inner layer over `width`.
        max_frames: how many of a video's frames are read, from its first one on.
        norm: of each feature vector: `l2` (unit length; zero stays zero) or `none`.
        freeze: see `Tower.freeze`; the layers are the gated unit with the tokens, and each block.

    Attributes:
        token_width: size of a frame behind the blocks, the same as `width`.
        transform: None, as there is no picture to change.

    Raises:
        ValueError: if sizes don't fit.

    Source: C2KD, Rouditchenko et al. 2023, https://arxiv.org/abs/2210.03625, as in the released
    code, which has no LayerNorm behind the last block and no positions either.
    """

    reads_features: ClassVar[bool] = True

    def __init__(
        self,
        *,
        feature_width: Annotated[int, Field(gt=0)],
        width: Annotated[int, Field(gt=0)] = 512,
        layers: Annotated[int, Field(gt=0)] = 2,
        heads: Annotated[int, Field(gt=0)] = 4,
        mlp_ratio: Annotated[float, Field(gt=0)] = 1.0,
        max_frames: Annotated[int, Field(gt=0)] = 30,
        norm: Literal["l2", "none"] = "l2",
        freeze: Freeze = "none",
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads={heads} does not divide width={width}")
        self.feature_width = feature_width
        self.width = self.token_width = width
        self.max_frames = max_frames
        self.norm = norm
        self.transform = None
        self.frames = FrameTokens(feature_width, width)
        inner = max(round(mlp_ratio * width), 1)
        self.blocks = nn.ModuleList(Block(width, heads, inner) for _ in range(layers))
        self._options = {
            "feature_width": feature_width, "width": width, "layers": layers, "heads": heads,
            "mlp_ratio": mlp_ratio, "max_frames": max_frames, "norm": norm,
        }  # fmt: skip
        self._freeze_spec = freeze
        self.freeze(freeze)

    def layers(self) -> list[nn.Module]:
        """Return the gated unit with class and mask token, and each block."""
        return [self.frames, *self.blocks]

    def spec(self) -> dict[str, Any]:
        """Return the config (with `name`) that rebuilds this tower."""
        freeze = self._freeze_spec
        return {
            "name": "frame_transformer",
            **self._options,
            "freeze": freeze.model_dump() if isinstance(freeze, KeepLast) else freeze,
        }

    def forward(self, visual: Visual) -> Encoded:
        """Return `pooled (b, width)`, and frames `tokens (b, T, width)` with their mask `(b, T)`.

        T is the number of frames in the batch, at most `max_frames` and at least 1. In a video
        without frames the first token is the trained one and counts as real.

        Raises:
            ValueError: if the batch has no features, or features of another shape.
        """
        tokens, mask = self.frames(*self._features(visual))
        for block in self.blocks:
            tokens = block(tokens, mask)
        return Encoded(tokens[:, 0], tokens[:, 1:], mask[:, 1:])

    def _features(self, visual: Visual) -> tuple[Tensor, Tensor]:
        features = visual.features
        if features is None:
            raise ValueError(
                "frame_transformer reads features of frames, but the batch has none: give the "
                "items of the manifest a `features` key, or choose an image encoder that reads "
                "pixels (timm, hf)"
            )
        if features.ndim not in (2, 3) or features.shape[-1] != self.feature_width:
            raise ValueError(
                f"expected features (batch, frames, {self.feature_width}) or (batch, "
                f"{self.feature_width}), got {tuple(features.shape)}; set the encoder's "
                "`feature_width` to the features' last size"
            )
        if features.ndim == 2:
            features, mask = features[:, None], None
        else:
            features, mask = features[:, : self.max_frames], visual.mask
            mask = None if mask is None else mask[:, : self.max_frames]
        if not features.shape[1]:  # a batch of empty videos needs a place for the mask token
            features = features.new_zeros(len(features), 1, self.feature_width)
            mask = torch.zeros(features.shape[:2], dtype=torch.bool, device=features.device)
        mask = masked(features, mask)
        # padding may hold anything, and a product with 0 would keep NaN
        features = features.masked_fill(~mask[..., None], 0.0)
        features = features.to(self.frames.class_token.dtype)
        return (F.normalize(features, dim=-1) if self.norm == "l2" else features), mask


class FrameTokens(nn.Module):
    """Gated unit and LayerNorm of each frame, a class token in front, a token for no frame at all.

    Args:
        feature_width: size of a frame's feature vector.
        width: size of a token.
    """

    def __init__(self, feature_width: int, width: int) -> None:
        super().__init__()
        self.gated = GatedUnitHead(feature_width, width)
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        self.class_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02))
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02))

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens `(b, 1 + T, width)`, the class token first, and their mask.

        Args:
            features: `(b, T, feature_width)`, T at least 1.
            mask: `(b, T)` bool; not written to.
        """
        tokens = self.norm(self.gated(features))
        first = torch.zeros_like(mask)
        first[:, 0] = ~mask.any(dim=1)
        # `where` also where no video is empty: DDP waits for the gradient of the mask token
        tokens = torch.where(first[..., None], self.mask_token.to(tokens.dtype), tokens)
        opening = self.class_token.to(tokens.dtype).expand(len(tokens), 1, -1)
        real = torch.ones(len(mask), 1, dtype=torch.bool, device=mask.device)
        return torch.cat([opening, tokens], dim=1), torch.cat([real, mask | first], dim=1)


class Block(nn.Module):
    """A pre-norm transformer block: attention, then two linear layers with a GELU; no dropout.

    Args:
        width: size of a token.
        heads: must divide `width`.
        inner: width between the two linear layers.
    """

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width, eps=EPSILON)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=EPSILON)
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return `(b, L, width)`; every row of `mask (b, L)` has a real token."""
        tokens = tokens + self._attend(self.attention_norm(tokens), mask)
        return tokens + self.mlp(self.mlp_norm(tokens))

    def _attend(self, tokens: Tensor, mask: Tensor) -> Tensor:
        parts = self.query_key_value(tokens).unflatten(2, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # each (b, heads, L, width of a head)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None])
        return self.out(mixed.transpose(1, 2).flatten(2))
