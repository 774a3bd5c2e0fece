"""The text-only network of CL2CM, which knows which source sentence belongs to which target."""

from __future__ import annotations

from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlcm.distributed import gather, world
from xlcm.encoders.base import TextEncoder
from xlcm.encoders.heads import HeadFactory
from xlcm.losses.base import widen
from xlcm.types import Encoded, TextBatch

Words: TypeAlias = "tuple[Tensor, Tensor, Tensor | None]"
"""Vectors `(b, n, d)`, mask `(b, n)` and inverse document frequencies `(b, n)`, where needed."""


class CrossLingualNetwork(nn.Module):
    """Sentence vectors and word states of captions in both languages.

    Args:
        tower: the text encoder, of captions in both languages.
        width: size of the sentence vectors.
        head: from the tower's width to it.
        own: whether the network holds the tower; if not, `read` is handed what it returned.
        average_pieces: make one vector of the pieces of a word.
    """

    special: Tensor
    starts: Tensor

    def __init__(
        self,
        tower: TextEncoder,
        width: int,
        head: HeadFactory,
        *,
        own: bool = True,
        average_pieces: bool = False,
    ) -> None:
        super().__init__()
        self.text = tower if own else None
        self.head = head(tower.width, width)
        special = torch.zeros(tower.tokenizer.vocab_size, dtype=torch.bool)
        special[sorted(tower.tokenizer.special_ids)] = True
        self.register_buffer("special", special, persistent=False)
        self.average_pieces = average_pieces
        starts = tower.tokenizer.word_starts if average_pieces else None
        self.register_buffer("starts", starts, persistent=False)

    def forward(self, text: TextBatch, states: Encoded | None = None) -> Encoded:
        """Return sentences `pooled (b, width)` of length 1; words `tokens (b, n, d)`, `mask`.

        Args:
            text: captions of either language.
            states: what the tower returned for them, where the network does not hold it.
        """
        if states is None:
            assert self.text is not None
            states = self.text(text)
        sentences = F.normalize(widen(self.head(states.pooled)), dim=-1)
        if states.tokens is None:
            return Encoded(sentences)
        return Encoded(sentences, *self._words(text, states.tokens))

    def per_word(self, text: TextBatch, values: Tensor) -> Tensor:
        """Return numbers of pieces `(b, L)` as numbers of what `forward` calls words `(b, n)`."""
        if not self.average_pieces:
            return values
        real = text.mask.bool() & ~self.special[text.ids]
        return average_pieces(values[..., None], real, self.starts[text.ids])[0][..., 0]

    def _words(self, text: TextBatch, tokens: Tensor) -> tuple[Tensor, Tensor]:
        # the batch's mask and not the tower's, whose `token_dropout` may hide every word
        real = text.mask.bool() & ~self.special[text.ids]
        if not self.average_pieces:
            return tokens, real
        return average_pieces(tokens, real, self.starts[text.ids])


def average_pieces(tokens: Tensor, mask: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of each word's pieces.

    Args:
        tokens: `(b, n, d)`.
        mask: `(b, n)` bool, true on pieces.
        starts: `(b, n)` bool, true on the pieces that begin a word; a row's first piece does.

    Returns:
        Words `(b, n, d)`, each row's words in front, and their mask `(b, n)`.
    """
    first = mask & (mask.int().cumsum(1) == 1)
    number = ((starts & mask) | first).int().cumsum(1) - 1  # which word a piece belongs to
    weight = F.one_hot(number.clamp(min=0).long(), tokens.shape[1]).to(tokens.dtype)
    weight = weight * mask[..., None]  # (b, pieces, words)
    count = weight.sum(1)
    words = weight.transpose(1, 2) @ tokens / count.clamp(min=1)[..., None]
    return words, count > 0


def gather_words(tokens: Tensor, mask: Tensor, idf: Tensor | None = None) -> Words:
    """Return the words of all processes, padded to the longest caption of any of them.

    Args:
        tokens: `(b, n, d)`, b being the same on every process and n not.
        mask: `(b, n)` bool.
        idf: `(b, n)`, or None on every process.
    """
    if world() == 1:
        return tokens, mask, idf
    mine = tokens.shape[1]
    more = int(gather(torch.tensor([mine], device=tokens.device)).max()) - mine
    longer = F.pad(tokens, (0, 0, 0, more)), F.pad(mask, (0, more))
    rarity = None if idf is None else gather(F.pad(idf, (0, more)))
    return gather(longer[0]), gather(longer[1]), rarity
