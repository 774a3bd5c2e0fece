"""NRCCR's video tower: features of frames, projected, refined by one attention, averaged."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from xlcm.encoders.attention_block import (
    POOLINGS,
    AttentionBlock,
    InputProjection,
    blank,
    summary,
)
from xlcm.encoders.base import Freeze, ImageEncoder, KeepLast, masked
from xlcm.types import Encoded, Visual


class FrameAttentionEncoder(ImageEncoder):
    """Frame features -> projection with positions -> attention block -> one vector a video.

    Args:
        feature_width: size of a frame's feature vector.
        width: size of refined frames and of the pooled vector.
        heads: of the attention; must divide `width` and `key_width`.
        key_width: channels of queries and keys, over all heads.
        positions: rows of the table of positions; `max_frames` at least.
        max_frames: how many of a video's frames are read, from its first one on.
        dropout: behind both norms of the projection, on attention weights and their output.
        pooling: over refined frames: `mean` or `max`.
        legacy_padding: let padding be attended to by padding, and pooled, as the released code
            does: a video's vector then depends on how far its batch is padded.
        legacy_divisor: see `AttentionBlock`.
        freeze: see `Tower.freeze`; the layers are the projection and the block.

    Attributes:
        token_width: size of refined frames, the same as `width`.
        transform: None, as there is no picture to change.

    Raises:
        ValueError: if sizes don't fit.

    Source: NRCCR, Wang et al. 2022, https://arxiv.org/abs/2208.12526, as in the released code
    (1,024 wide, 64 frames, 80 positions). The masks that keep padding out are ours.
    """

    reads_features: ClassVar[bool] = True

    def __init__(
        self,
        *,
        feature_width: Annotated[int, Field(gt=0)],
        width: Annotated[int, Field(gt=0)] = 1024,
        heads: Annotated[int, Field(gt=0)] = 8,
        key_width: Annotated[int, Field(gt=0)] = 512,
        positions: Annotated[int, Field(gt=0)] = 80,
        max_frames: Annotated[int, Field(gt=0)] = 64,
        dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1,
        pooling: Literal["mean", "max"] = "mean",
        legacy_padding: bool = False,
        legacy_divisor: bool = False,
        freeze: Freeze = "none",
    ) -> None:
        super().__init__()
        if positions < max_frames:
            raise ValueError(
                f"positions={positions}, but max_frames={max_frames} frames are read: raise the "
                "one or lower the other"
            )
        self.feature_width = feature_width
        self.width = self.token_width = width
        self.max_frames = max_frames
        self.transform = None
        self.legacy_padding = legacy_padding
        self.projection = InputProjection(
            feature_width, width, positions=positions, dropout=dropout
        )
        self.block = AttentionBlock(
            width, heads=heads, key_width=key_width, dropout=dropout,
            legacy_divisor=legacy_divisor, legacy_padding=legacy_padding,
        )  # fmt: skip
        self.pooling = POOLINGS[pooling](width)
        self._options = {
            "feature_width": feature_width, "width": width, "heads": heads,
            "key_width": key_width, "positions": positions, "max_frames": max_frames,
            "dropout": dropout, "pooling": pooling, "legacy_padding": legacy_padding,
            "legacy_divisor": legacy_divisor,
        }  # fmt: skip
        self._freeze_spec = freeze
        self.freeze(freeze)

    def layers(self) -> list[nn.Module]:
        """Return the projection and the block."""
        return [self.projection, self.block]

    def spec(self) -> dict[str, Any]:
        """Return the config (with `name`) that rebuilds this tower."""
        freeze = self._freeze_spec
        return {
            "name": "frame_attention",
            **self._options,
            "freeze": freeze.model_dump() if isinstance(freeze, KeepLast) else freeze,
        }

    def forward(self, visual: Visual) -> Encoded:
        """Return `pooled (b, width)`, and `tokens (b, T, width)` with their mask `(b, T)`.

        T is the number of frames in the batch, at most `max_frames`.

        Raises:
            ValueError: if the batch has no features, or features of another shape.
        """
        frames = self._frames(visual)
        mask = masked(frames, None if visual.mask is None else visual.mask[:, : self.max_frames])
        if not self.legacy_padding:
            frames = blank(frames, mask)
        projected = self.projection(frames)
        tokens = self.block(projected, mask, projected, mask)
        pooled = summary(self.pooling, tokens, mask, legacy_padding=self.legacy_padding)
        return Encoded(pooled, tokens, mask)

    def _frames(self, visual: Visual) -> Tensor:
        features = visual.features
        if features is None:
            raise ValueError(
                "frame_attention reads features of frames, but the batch has none: give the "
                "items of the manifest a `features` key, or choose an image encoder that reads "
                "pixels (timm, hf)"
            )
        if features.ndim != 3 or features.shape[-1] != self.feature_width:
            raise ValueError(
                f"expected features (batch, frames, {self.feature_width}), got "
                f"{tuple(features.shape)}; set the encoder's `feature_width` to the features' "
                "last size; for one vector an item take the encoder `features`"
            )
        return features[:, : self.max_frames].to(self.projection.linear.weight.dtype)
