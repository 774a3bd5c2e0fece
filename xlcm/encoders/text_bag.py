"""A small, fast text tower trained from scratch: embedded word pieces, a little mixing, pooling."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from xlcm.config import Part
from xlcm.encoders.base import Freeze, KeepLast, TextEncoder, Tokenizer
from xlcm.encoders.pooling import MeanPooling, PoolingFactory
from xlcm.registry import poolings, tokenizers
from xlcm.types import Encoded, TextBatch

Rate = Annotated[float, Field(ge=0.0, lt=1.0)]


class BagTextEncoder(TextEncoder):
    """Token embeddings, optionally mixed with their neighbours, then pooled to one vector.

    Args:
        tokenizer: what makes its tokens.
        width: size of tokens and of the pooled vector.
        context: how tokens see one another: `none` (a bag), `conv` (a window of `kernel`),
            `gru` (both directions) or `attention` (pre-norm transformer blocks).
        context_layers: blocks of mixing, each with a residual connection.
        kernel: tokens that one convolution sees; odd.
        attention_heads: of `attention`; must divide the width.
        hidden: width of the residual MLP behind the pooling; None: none.
        dropout: share of channels dropped behind the embedding, in each block and in the MLP.
        token_dropout: share of a caption's tokens that training hides from mixing and pooling;
            at least one stays.
        pooling: from tokens to one vector.
        tokens: whether the tokens are returned beside the pooled vector. Without them a plain bag
            (no context, mean pooling) is summed in one pass and never holds a `(b, L, width)`
            tensor, many times faster; `dropout` then falls on the sum.
        freeze: see `Tower.freeze`.

    Raises:
        ValueError: if the tokenizer is still to be trained, or sizes don't fit.
    """

    def __init__(
        self,
        *,
        tokenizer: Annotated[Tokenizer, Part(tokenizers, "sentencepiece")],
        width: Annotated[int, Field(gt=0)] = 512,
        context: Literal["none", "conv", "gru", "attention"] = "none",
        context_layers: Annotated[int, Field(ge=1)] = 1,
        kernel: Annotated[int, Field(ge=1)] = 3,
        attention_heads: Annotated[int, Field(gt=0)] = 8,
        hidden: Annotated[int, Field(gt=0)] | None = None,
        dropout: Rate = 0.1,
        token_dropout: Rate = 0.0,
        pooling: Annotated[PoolingFactory, Part(poolings, "mean")],
        tokens: bool = True,
        freeze: Freeze = "none",
    ) -> None:
        super().__init__()
        if getattr(tokenizer, "needs_training", False):
            raise ValueError(
                "text.tokenizer is a sentencepiece tokenizer without a model: "
                "recipes/train.py trains it on the captions (prepare_tokenizer); elsewhere give "
                "the `path` of a .model file, as `xlcm data train-tokenizer` writes it"
            )
        self.tokenizer = tokenizer
        self.width = width
        self.token_dropout = token_dropout
        self._options = {
            "width": width, "context": context, "context_layers": context_layers,
            "kernel": kernel, "attention_heads": attention_heads, "hidden": hidden,
            "dropout": dropout, "token_dropout": token_dropout, "tokens": tokens,
        }  # fmt: skip
        self.embedding = nn.Embedding(tokenizer.vocab_size, width, padding_idx=tokenizer.pad_id)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.dropout = nn.Dropout(dropout)
        self.positions = (
            nn.Embedding(tokenizer.max_tokens, width) if context == "attention" else None
        )
        if self.positions is not None:
            nn.init.normal_(self.positions.weight, std=width**-0.5)
        self.blocks = nn.ModuleList()
        for _ in range(context_layers if context != "none" else 0):
            self.blocks.append(_block(context, width, kernel, attention_heads, dropout))
        self.pooling = pooling(width)
        self.returns_tokens = tokens
        if not tokens and (context != "none" or not isinstance(self.pooling, MeanPooling)):
            raise ValueError("text.tokens=false is for a plain bag: context none, pooling mean")
        self.mlp = _ResidualMLP(width, hidden, dropout) if hidden is not None else None
        self._freeze_spec = freeze
        self.freeze(freeze)

    def layers(self) -> list[nn.Module]:
        """Return embeddings, mixing blocks, and pooling with MLP, from input to output."""
        bottom = [m for m in (self.embedding, self.positions, self.dropout) if m is not None]
        top = nn.ModuleList([m for m in (self.pooling, self.mlp) if m is not None])
        layers = [nn.ModuleList(bottom), *self.blocks]
        return [*layers, top] if any(True for _ in top.parameters()) else layers

    def spec(self) -> dict[str, Any]:
        """Return the config (with `name`) that rebuilds this tower."""
        freeze = self._freeze_spec
        return {
            "name": "bag",
            "tokenizer": self.tokenizer.spec(),
            **self._options,
            "pooling": self.pooling.spec(),
            "freeze": freeze.model_dump() if isinstance(freeze, KeepLast) else freeze,
        }

    def forward(self, text: TextBatch) -> Encoded:
        """Return `pooled (b, width)`, and `tokens (b, L, width)` with `mask (b, L)` if asked."""
        mask = self._drop_tokens(text.mask) if self.training else text.mask
        if not self.returns_tokens:
            pooled = self.dropout(self._sum_in_one_pass(text.ids, mask))
            return Encoded(pooled if self.mlp is None else self.mlp(pooled))
        tokens = self.embedding(text.ids)
        if self.positions is not None:
            tokens = tokens + self.positions.weight[: tokens.shape[1]]
        tokens = self.dropout(tokens)
        for block in self.blocks:
            tokens = block(tokens, mask)
        pooled = self.pooling(tokens, mask)
        return Encoded(pooled if self.mlp is None else self.mlp(pooled), tokens, mask)

    def _sum_in_one_pass(self, ids: Tensor, mask: Tensor) -> Tensor:
        weight = self.embedding.weight
        share = mask.to(weight.dtype) / mask.sum(dim=1, keepdim=True).clamp(min=1)
        return nn.functional.embedding_bag(
            ids, weight, mode="sum", per_sample_weights=share, padding_idx=self.tokenizer.pad_id
        )

    def _drop_tokens(self, mask: Tensor) -> Tensor:
        if not self.token_dropout:
            return mask
        draw = torch.rand(mask.shape, device=mask.device).masked_fill(~mask, -1.0)
        stays = draw == draw.amax(dim=1, keepdim=True)  # the luckiest token always stays
        return mask & ((draw >= self.token_dropout) | stays)


class _Conv(nn.Module):
    def __init__(self, width: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Conv1d(width, width, kernel, padding=kernel // 2)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        # a border of padding must look like the zeros behind the end of the batch
        blank = self.norm(tokens).masked_fill(~mask[..., None], 0.0)
        mixed = self.conv(blank.transpose(1, 2)).transpose(1, 2)
        return tokens + self.dropout(torch.nn.functional.gelu(mixed))


class _Gru(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.gru = nn.GRU(width, width // 2, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        # dropped tokens leave gaps: the real ones are brought to the front and back again
        order = (~mask).int().argsort(dim=1, stable=True)[..., None].expand_as(tokens)
        counts = mask.sum(dim=1).clamp(min=1).cpu()
        front = self.norm(tokens).gather(1, order)
        packed = pack_padded_sequence(front, counts, batch_first=True, enforce_sorted=False)
        mixed, _ = pad_packed_sequence(
            self.gru(packed)[0], batch_first=True, total_length=tokens.shape[1]
        )
        mixed = torch.zeros_like(mixed).scatter(1, order, mixed)
        return tokens + self.dropout(mixed)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout, "gelu", batch_first=True, norm_first=True
        )

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        unseen = ~mask & mask.any(dim=1, keepdim=True)  # softmax over nothing would be NaN
        return self.layer(tokens, src_key_padding_mask=unseen)


class _ResidualMLP(nn.Module):
    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, width),
        )

    def forward(self, pooled: Tensor) -> Tensor:
        return pooled + self.layers(pooled)


def _block(context: str, width: int, kernel: int, heads: int, dropout: float) -> nn.Module:
    if context == "conv":
        if kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, so that it has a middle; got {kernel}")
        return _Conv(width, kernel, dropout)
    if context == "gru":
        if width % 2:
            raise ValueError(f"a gru of both directions needs an even width, got {width}")
        return _Gru(width, dropout)
    if width % heads:
        raise ValueError(f"attention_heads={heads} does not divide the width {width}")
    return _Attention(width, heads, dropout)
