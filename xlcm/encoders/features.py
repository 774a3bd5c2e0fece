"""A tower for vectors that another model computed: one an image, or one a frame or region."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from xlcm.config import Part
from xlcm.encoders.base import Freeze, ImageEncoder, KeepLast, masked
from xlcm.encoders.pooling import MeanPooling, PoolingFactory
from xlcm.registry import poolings
from xlcm.types import Encoded, Visual


class FeatureEncoder(ImageEncoder):
    """Normalises, drops and pools given features; has weights only where an option brings some.

    Args:
        width: size of a feature vector.
        tokens: whether an item is `(T, width)` frames or regions rather than one vector.
        pooling: from frames to one vector, where `tokens` is true.
        norm: of each vector: `none`, `l2` (unit length; zero stays zero) or `layer` (LayerNorm).
        dropout: share of channels dropped in training, in [0, 1).
        freeze: see `Tower.freeze`.

    Attributes:
        feature_width: size of the vectors that it reads, the same as `width`.
        token_width: size of a token, the same as `width`.
        transform: None, as there is no picture to change.
    """

    reads_features: ClassVar[bool] = True
    _like: Tensor

    def __init__(
        self,
        *,
        width: Annotated[int, Field(gt=0)],
        tokens: bool = False,
        pooling: Annotated[PoolingFactory, Part(poolings, "mean")] = MeanPooling,
        norm: Literal["none", "l2", "layer"] = "none",
        dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0,
        freeze: Freeze = "none",
    ) -> None:
        super().__init__()
        self.width = self.token_width = self.feature_width = width
        self.transform = None
        self.tokens = tokens
        self.norm = norm
        self.layer_norm = nn.LayerNorm(width) if norm == "layer" else None
        self.dropout = nn.Dropout(dropout)
        built = pooling(width)
        self._pooling_spec = built.spec()
        self.pooling = built if tokens else None  # weights that nothing reaches would break DDP
        self.register_buffer("_like", torch.zeros(()), persistent=False)  # the module's dtype
        self._freeze_spec = freeze
        self.freeze(freeze)

    def layers(self) -> list[nn.Module]:
        """Return the one layer that there is: this tower."""
        return [self]

    def spec(self) -> dict[str, Any]:
        """Return the config (with `name`) that rebuilds this tower."""
        freeze = self._freeze_spec
        return {
            "name": "features",
            "width": self.width,
            "tokens": self.tokens,
            "pooling": self._pooling_spec,
            "norm": self.norm,
            "dropout": self.dropout.p,
            "freeze": freeze.model_dump() if isinstance(freeze, KeepLast) else freeze,
        }

    def forward(self, visual: Visual) -> Encoded:
        """Return `pooled (b, width)`, and `tokens (b, T, width)` with their mask, if any.

        Raises:
            ValueError: if the batch has no features, or features of another shape.
        """
        features = visual.features
        if features is None:
            raise ValueError("this encoder reads features, but the batch has none: give the items "
                             "of the manifest a `features` key, or choose an image encoder that "
                             "reads pixels (timm, hf)")  # fmt: skip
        wanted = f"(batch, {'tokens, ' if self.tokens else ''}{self.width})"
        if features.ndim != 2 + self.tokens or features.shape[-1] != self.width:
            raise ValueError(
                f"expected features {wanted}, got {tuple(features.shape)}; set the encoder's "
                f"`width` to the features' last size and `tokens` to whether an item has several"
            )
        features = features.to(self._like.dtype)
        if self.norm == "l2":
            features = F.normalize(features, dim=-1)
        elif self.layer_norm is not None:
            features = self.layer_norm(features)
        features = self.dropout(features)
        if self.pooling is None:
            return Encoded(pooled=features)
        mask = masked(features, visual.mask)
        return Encoded(self.pooling(features, mask), features, mask)
