"""From tokens to one vector: class token, mean, maximum, last token, learned attention.

Every pooling takes the width first, so that code builds any of them alike:
`build(poolings, spec, width)`. None of them sees padding: more of it, on either side and with any
content, changes nothing. A row without a real token gives the zero vector.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, TypeAlias

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn


class Pooling(nn.Module):
    """`tokens (b, L, width)`, `mask (b, L)` bool, true on real tokens -> `(b, width)`.

    Args:
        width: size of a token.

    Attributes:
        name: its name in the registry.
        reads_prefix: whether it reads class and register tokens in front of an image's patches,
            where a tower has some; averages are taken over patches alone.
        needs_order: whether one position is singled out, which means nothing in a CNN's map.
    """

    name: ClassVar[str]
    reads_prefix: ClassVar[bool] = False
    needs_order: ClassVar[bool] = False

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return one vector for each row, `(b, width)`, in the tokens' dtype."""
        raise NotImplementedError

    def spec(self) -> dict[str, Any]:
        """Return the config that rebuilds it, `name` included."""
        return {"name": self.name}


PoolingFactory: TypeAlias = Callable[[int], Pooling]
"""What an option marked `Part(poolings)` is handed: call it with the width."""


class ClsPooling(Pooling):
    """The first real token: BERT's `[CLS]`, XLM-R's `<s>`, a vision transformer's class token."""

    name = "cls"
    reads_prefix = True
    needs_order = True

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return the first real token of each row, `(b, width)`."""
        return _pick(tokens, mask, mask.int().argmax(dim=1))


class LastTokenPooling(Pooling):
    """The last real token, as decoders and CLIP's text tower (end of text) have it."""

    name = "last"
    needs_order = True

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return the last real token of each row, `(b, width)`."""
        return _pick(tokens, mask, mask.shape[1] - 1 - mask.flip(1).int().argmax(dim=1))


class MeanPooling(Pooling):
    """The average of the real tokens, summed in float32 at least.

    Source: Reimers and Gurevych 2019, https://arxiv.org/abs/1908.10084, section 3 (MEAN).
    """

    name = "mean"

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return the masked average, `(b, width)`."""
        total = _blank(tokens, mask).sum(
            dim=1, dtype=torch.promote_types(tokens.dtype, torch.float)
        )
        return (total / mask.sum(dim=1, keepdim=True).clamp(min=1)).to(tokens.dtype)


class MaxPooling(Pooling):
    """The largest value of each channel over the real tokens."""

    name = "max"

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return the masked maximum, `(b, width)`."""
        highest = tokens.masked_fill(~mask[..., None], -torch.inf).amax(dim=1)
        return highest.masked_fill(~mask.any(dim=1, keepdim=True), 0.0)


class AttentionPooling(Pooling):
    """One learned query attends to the real tokens; then a linear layer.

    Args:
        width: size of a token.
        heads: attention heads; must divide the width.

    Source: Lee et al. 2019, https://arxiv.org/abs/1810.00825, section 3.2 (PMA, one seed),
    without its feed-forward layer; the head of SigLIP's image tower is a sibling.
    """

    name = "attention"
    reads_prefix = True

    def __init__(self, width: int, *, heads: Annotated[int, Field(gt=0)] = 8) -> None:
        super().__init__(width)
        if heads < 1 or width % heads:
            raise ValueError(f"attention pooling: heads={heads} does not divide the width {width}")
        self.heads = heads
        self.query = nn.Parameter(torch.empty(heads, 1, width // heads))
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        nn.init.trunc_normal_(self.query, std=0.02)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return the attended average, mapped linearly, `(b, width)`."""
        rows, length, width = tokens.shape
        pairs = self.key_value(_blank(tokens, mask)).view(rows, length, 2, self.heads, -1)
        key, value = pairs.permute(2, 0, 3, 1, 4)  # each (b, heads, L, width / heads)
        some = mask.any(dim=1, keepdim=True)
        seen = (mask | ~some)[:, None, None]  # softmax over nothing would be NaN
        query = self.query.to(key.dtype).expand(rows, -1, -1, -1)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        return self.out(mixed.reshape(rows, width)).masked_fill(~some, 0.0)

    def spec(self) -> dict[str, Any]:
        """Return the config that rebuilds it, `name` included."""
        return {"name": self.name, "heads": self.heads}


def _blank(tokens: Tensor, mask: Tensor) -> Tensor:
    """Return the tokens with padding at 0; a product with the mask would keep NaN and inf."""
    return tokens.masked_fill(~mask[..., None], 0.0)


def _pick(tokens: Tensor, mask: Tensor, position: Tensor) -> Tensor:
    """Return the token at `position (b,)` of each row, zero where the row has no real token."""
    rows = torch.arange(len(tokens), device=tokens.device)
    return tokens[rows, position].masked_fill(~mask.any(dim=1, keepdim=True), 0.0)
