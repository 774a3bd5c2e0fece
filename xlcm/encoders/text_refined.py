"""NRCCR's text tower: another tower's tokens, projected, refined by one attention, averaged."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from xlcm.config import Part
from xlcm.encoders.attention_block import (
    POOLINGS,
    AttentionBlock,
    InputProjection,
    blank,
    summary,
)
from xlcm.encoders.base import Freeze, KeepLast, TextEncoder, Tokenizer, masked
from xlcm.registry import text_encoders
from xlcm.types import Encoded, TextBatch


class RefinedTextEncoder(TextEncoder):
    """Tokens of an inner tower -> projection with positions -> attention block -> one vector.

    `forward` is what a user gets. Training may go by its steps: `states` once a caption, then
    `project`, and from the same projection both `refine` and `cross`, in which a source caption
    reads its translation (NRCCR's teacher).

    Args:
        encoder: the inner tower; only its tokens are read, so it may have no weights behind them.
        width: size of refined tokens and of the pooled vector.
        heads: of the attention; must divide `width` and `key_width`.
        key_width: channels of queries and keys, over all heads.
        positions: rows of the table of positions; the tokenizer's `max_tokens` at least.
        dropout: behind both norms of the projection, on attention weights and their output.
        pooling: over refined tokens: `mean` or `max`.
        legacy_padding: let padding be attended to by padding, and pooled, as the released code
            does: a caption's vector then depends on how far its batch is padded.
        legacy_divisor: see `AttentionBlock`.
        freeze: see `Tower.freeze`; what is refined is one more layer on top of the inner tower's.
            Whatever the inner tower's own `freeze` stops stays stopped.

    Attributes:
        inner_width: size of the inner tower's tokens.
        token_width: size of refined tokens, the same as `width`.

    Raises:
        ValueError: if the inner tower returns no tokens, or has trained weights that no token
            comes from, or sizes don't fit.

    Source: NRCCR, Wang et al. 2022, https://arxiv.org/abs/2208.12526, figure 2, as in the
    released code (width 768). The masks that keep padding out are ours.
    """

    def __init__(
        self,
        *,
        encoder: Annotated[TextEncoder, Part(text_encoders)],
        width: Annotated[int, Field(gt=0)] = 768,
        heads: Annotated[int, Field(gt=0)] = 8,
        key_width: Annotated[int, Field(gt=0)] = 512,
        positions: Annotated[int, Field(gt=0)] = 250,
        dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1,
        pooling: Literal["mean", "max"] = "mean",
        legacy_padding: bool = False,
        legacy_divisor: bool = False,
        freeze: Freeze = "none",
    ) -> None:
        super().__init__()
        _check_inner(encoder)
        if positions < encoder.max_tokens:
            raise ValueError(
                f"positions={positions}, but the inner tokenizer lets captions have "
                f"{encoder.max_tokens} tokens: raise `positions` or lower its `max_tokens`"
            )
        self.encoder = encoder
        self.width = self.token_width = width
        self.inner_width = int(getattr(encoder, "token_width", encoder.width))
        self.legacy_padding = legacy_padding
        self.projection = InputProjection(
            self.inner_width, width, positions=positions, dropout=dropout
        )
        self.block = AttentionBlock(
            width, heads=heads, key_width=key_width, dropout=dropout,
            legacy_divisor=legacy_divisor, legacy_padding=legacy_padding,
        )  # fmt: skip
        self.pooling = POOLINGS[pooling](width)
        self._options = {
            "width": width, "heads": heads, "key_width": key_width, "positions": positions,
            "dropout": dropout, "pooling": pooling, "legacy_padding": legacy_padding,
            "legacy_divisor": legacy_divisor,
        }  # fmt: skip
        self._freeze_spec = freeze
        self.freeze(freeze)

    # -- the steps ------------------------------------------------------------------------------

    def forward(self, text: TextBatch) -> Encoded:
        """Return `tokens (b, L, width)`, `mask (b, L)` and `pooled (b, width)`."""
        states = self.states(text)
        assert states.tokens is not None
        return self.refine(self.project(states), masked(states.tokens, states.mask))

    def states(self, text: TextBatch) -> Encoded:
        """Return what the inner tower makes of captions: `tokens (b, L, inner_width)`, `mask`."""
        encoded: Encoded = self.encoder(text)
        return encoded

    def project(self, states: Encoded) -> Tensor:
        """Return projected tokens with their positions, `(b, L, width)`.

        Raises:
            ValueError: if there are no tokens, or more than positions.
        """
        tokens = states.tokens
        if tokens is None:
            raise ValueError("the inner text tower returned no tokens, which are refined here")
        if not self.legacy_padding:
            tokens = blank(tokens, masked(tokens, states.mask))
        return self.projection(tokens)  # type: ignore[no-any-return]

    def refine(self, projected: Tensor, mask: Tensor) -> Encoded:
        """Return the caption as read by itself: refined tokens, their mask, and the pooled vector.

        Args:
            projected: `(b, L, width)`, from `project`.
            mask: `(b, L)` bool, true on real tokens.
        """
        tokens = self.block(projected, mask, projected, mask)
        return Encoded(self._pool(tokens, mask), tokens, mask)

    def cross(
        self,
        source: Tensor,
        source_mask: Tensor,
        target: Tensor,
        target_mask: Tensor,
        *,
        concatenate: bool = True,
        residual: bool = False,
    ) -> Tensor:
        """Return the translation as read by its source, `(b, width)`: the teacher's vector.

        Args:
            source: `(b, L_s, width)` projected tokens of the source caption: the queries.
            source_mask: `(b, L_s)` bool.
            target: `(b, L_t, width)` projected tokens of its translation: keys and values.
            target_mask: `(b, L_t)` bool.
            concatenate: pool over what the queries gathered and the target's projected tokens
                together, `L_s + L_t` of them, as released; else over the former alone.
            residual: add the source's tokens to what they gathered; released without.
        """
        tokens = self.block(source, source_mask, target, target_mask, residual=residual)
        mask = source_mask
        if concatenate:
            tokens = torch.cat([tokens, target.to(tokens.dtype)], dim=1)
            mask = torch.cat([source_mask, target_mask], dim=1)
        return self._pool(tokens, mask)

    def _pool(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return summary(self.pooling, tokens, mask, legacy_padding=self.legacy_padding)

    def compile(self, *args: Any, **options: Any) -> None:
        """Have torch compile the parts that every step goes through, as for `nn.Module.compile`.

        Compiled as a whole, the tower would be fast by `forward` and as before by its steps.
        """
        for part in (self.encoder, self.projection, self.block):
            part.compile(*args, **options)

    # -- what every tower promises --------------------------------------------------------------

    @property
    def tokenizer(self) -> Tokenizer:  # type: ignore[override]
        """The inner tower's."""
        return self.encoder.tokenizer

    def layers(self) -> list[nn.Module]:
        """Return the inner tower's layers, then projection and block as one."""
        return [*self.encoder.layers(), nn.ModuleList([self.projection, self.block])]

    def load_weights(self) -> None:
        """Load the inner tower's pretrained weights, if its config names any."""
        self.encoder.load_weights()

    def frozen_at_random(self) -> bool:
        """Return whether the inner tower's layers are, whichever option froze them."""
        frozen = bool(self._frozen or self.encoder._frozen)
        return frozen and getattr(self.encoder, "weights", "") is None

    def freeze(self, how: Freeze | dict[str, int]) -> None:
        """Stop training of layers, on top of those that the inner tower's `freeze` stopped."""
        super().freeze(how)
        for layer in self.encoder._frozen:
            layer.requires_grad_(False)

    def spec(self) -> dict[str, Any]:
        """Return the config (with `name`) that rebuilds this tower offline, without weights."""
        freeze = self._freeze_spec
        return {
            "name": "refined",
            "encoder": self.encoder.spec(),
            **self._options,
            "freeze": freeze.model_dump() if isinstance(freeze, KeepLast) else freeze,
        }


def _check_inner(encoder: TextEncoder) -> None:
    if not getattr(encoder, "returns_tokens", True):
        raise ValueError("encoder.tokens=false: a refined tower reads the tokens; leave it true")
    output = getattr(encoder, "output", "pooled")
    if output != "pooled":
        raise ValueError(
            f"encoder.output={output!r} builds a pooler that nothing would "
            "reach, as a refined tower reads the tokens: set it to 'pooled'"
        )
    for option, name in (("pooling", "pooling"), ("hidden", "mlp")):
        part = getattr(encoder, name, None)
        if isinstance(part, nn.Module) and any(True for _ in part.parameters()):
            raise ValueError(
                f"encoder.{option} has weights behind the tokens, which nothing would train, as "
                f"a refined tower reads the tokens: take pooling mean, and no `hidden`"
            )
