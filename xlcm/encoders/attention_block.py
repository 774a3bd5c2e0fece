"""The two parts that NRCCR's towers are made of: a projection with positions, and one attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from xlcm.encoders.pooling import MaxPooling, MeanPooling, Pooling
from xlcm.losses.base import widen

LEGACY_MASK = -10000.0
POOLINGS: dict[str, type[Pooling]] = {"mean": MeanPooling, "max": MaxPooling}


class InputProjection(nn.Module):
    """LayerNorm, dropout, linear layer, ReLU; plus trained positions; LayerNorm, dropout.

    Args:
        in_width: size of an incoming token.
        width: size of an outgoing one.
        positions: rows of the table of positions: the longest sequence that it takes.
        dropout: share of channels dropped at both places, in [0, 1).

    Raises:
        ValueError: if there are no positions.

    Source: NRCCR, Wang et al. 2022, https://arxiv.org/abs/2208.12526, as in the released code
    (250 positions for text, 80 for frames). The positions start at a deviation of 0.02, which is
    our choice.
    """

    def __init__(self, in_width: int, width: int, *, positions: int, dropout: float = 0.1) -> None:
        super().__init__()
        if positions < 1:
            raise ValueError(f"positions must be at least 1, got {positions}")
        self.in_norm = nn.LayerNorm(in_width)
        self.in_dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(in_width, width)
        self.positions = nn.Embedding(positions, width)
        self.out_norm = nn.LayerNorm(width)
        self.out_dropout = nn.Dropout(dropout)
        nn.init.normal_(self.positions.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return `(b, L, width)` of tokens `(b, L, in_width)`.

        Raises:
            ValueError: if there are more tokens than positions.
        """
        length, room = tokens.shape[1], self.positions.num_embeddings
        if length > room:
            raise ValueError(
                f"{length} tokens a row, but there are {room} positions: set `positions` to "
                f"{length} or more, or cut the rows (a tokenizer's `max_tokens`)"
            )
        projected = torch.relu(self.linear(self.in_dropout(self.in_norm(tokens))))
        return self.out_dropout(self.out_norm(projected + self.positions.weight[:length]))


class AttentionBlock(nn.Module):
    """Multi-head attention and one linear layer; no feed-forward network behind it.

    With a residual it refines a sequence by itself; without one, and with another sequence as
    keys, it is NRCCR's teacher, which reads a translation under the eyes of its source. Padding
    is seen by nobody, unless `legacy_padding` asks for it.

    Args:
        width: size of a token, of values and of the output.
        heads: must divide `width` and `key_width`.
        key_width: channels of queries and keys, over all heads.
        dropout: share of attention weights and of output channels dropped, in [0, 1).
        legacy_divisor: divide scores by the root of `width / heads` as the released code does,
            rather than by that of a key's own width: a temperature.
        legacy_padding: mask as the released code does: the product of both masks, -10,000 where
            it is 0. So a padded query attends to every key, padding included.

    Raises:
        ValueError: if the heads don't divide both widths.

    Source: NRCCR, Wang et al. 2022, https://arxiv.org/abs/2208.12526, figure 2, as in the
    released code.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int = 8,
        key_width: int = 512,
        dropout: float = 0.1,
        legacy_divisor: bool = False,
        legacy_padding: bool = False,
    ) -> None:
        super().__init__()
        for name, size in (("width", width), ("key_width", key_width)):
            if heads < 1 or size % heads:
                raise ValueError(f"heads={heads} does not divide {name}={size}")
        self.heads = heads
        self.scale = 1.0 / math.sqrt((width if legacy_divisor else key_width) / heads)
        self.legacy_padding = legacy_padding
        self.query = nn.Linear(width, key_width)
        self.key = nn.Linear(width, key_width)
        self.value = nn.Linear(width, width)
        self.weights_dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, width)
        self.out_dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        query: Tensor,
        query_mask: Tensor,
        key: Tensor,
        key_mask: Tensor,
        *,
        residual: bool = True,
    ) -> Tensor:
        """Return `(b, n, width)`: what each query token gathers from the keys.

        Args:
            query: `(b, n, width)`.
            query_mask: `(b, n)` bool, true on real tokens.
            key: `(b, m, width)`; keys and values are made from it.
            key_mask: `(b, m)` bool.
            residual: add the query's input before the norm.
        """
        if not self.legacy_padding:  # a product with 0 would keep NaN and inf
            query, key = blank(query, query_mask), blank(key, key_mask)
        mixed = self.context(query, query_mask, key, key_mask)
        out = self.out_dropout(self.out(mixed))
        return self.norm(out + query) if residual else self.norm(out)

    def context(self, query: Tensor, query_mask: Tensor, key: Tensor, key_mask: Tensor) -> Tensor:
        """Return the averages of values that the queries attend to, heads merged, `(b, n, width)`.

        A row without any key gives 0.
        """
        scores = self._split(self.query(query)) @ self._split(self.key(key)).transpose(2, 3)
        scores = scores * self.scale
        if self.legacy_padding:
            scores = widen(scores)  # next to -10,000 bfloat16 keeps steps of 64, float16 of 8
            both = (query_mask[:, None, :, None] & key_mask[:, None, None, :]).to(scores.dtype)
            scores = scores + (1.0 - both) * LEGACY_MASK
        else:
            nothing = ~key_mask.any(dim=1)[:, None, None, None]  # its softmax would be NaN
            scores = scores.masked_fill(~(key_mask[:, None, None, :] | nothing), -torch.inf)
        weights = self.weights_dropout(scores.softmax(dim=-1))
        value = self._split(self.value(key))
        mixed = (weights.to(value.dtype) @ value).transpose(1, 2).flatten(2)
        return mixed if self.legacy_padding else blank(mixed, key_mask.any(dim=1, keepdim=True))

    def _split(self, tokens: Tensor) -> Tensor:
        """Return `(b, heads, L, channels of a head)`."""
        return tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)


def blank(tokens: Tensor, mask: Tensor) -> Tensor:
    """Return tokens `(b, L, D)` with 0 where the mask `(b, L)` or `(b, 1)` is false."""
    return tokens.masked_fill(~mask[..., None], 0.0)


def summary(pooling: Pooling, tokens: Tensor, mask: Tensor, *, legacy_padding: bool) -> Tensor:
    """Return one vector a row, `(b, D)`; legacy: over padding too, as in the released code."""
    return pooling(tokens, torch.ones_like(mask) if legacy_padding else mask)
