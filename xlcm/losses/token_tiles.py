"""Means of the best matches between tokens, tile by tile, with their own backward.

A tile holds the products of all tokens of some images with all tokens of some captions: 2 D
operations a number. For the gradients it's enough to know which token was the best match of which:
the places, one byte each, are kept from the forward pass, `KEPT` bytes at most; beyond them tiles
are made again. A tile that is 0 but at these places then gives both sides' gradients, as products.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

IMAGE_TOKENS, TEXT_TOKENS = 512, 1024
"""Of a tile at most, unless one image or caption has more: 2 MB in float32 stay in a cache."""
KEPT = 2**27
"""Bytes of places kept for the gradients at most."""

Pair = tuple[Tensor, Tensor]
Masks = tuple[Tensor | None, Tensor | None]
TO_TEXT, TO_IMAGE = 2, 1
"""Dimensions of a tile that the two directions look for the best match in."""


def best_matches(sides: Pair, weights: Pair, masks: Masks, wanted: tuple[bool, bool]) -> Pair:
    """Return sums of the best matches of images' tokens, and of captions' tokens: `(b, c)` each.

    Args:
        sides: `(b, n, D)` of images and `(c, m, D)` of captions; finite also where masked.
        weights: `(b, n)` and `(c, m)`, of the tokens in their sum; 0 where masked.
        masks: `(b, n)` and `(c, m)` bool, false on tokens that match nothing; None: all match.
        wanted: which of the two to compute; the other one is empty.
    """
    return _BestMatches.apply(*sides, *weights, *masks, *wanted)  # type: ignore[no-any-return, no-untyped-call]


class _Tiles:
    """Products of the tokens of some images and some captions: `(images, n, m, captions)`.

    With the captions last both maxima are over vectors of numbers that lie side by side.
    """

    def __init__(
        self, image: Tensor, text: Tensor, image_mask: Tensor | None, text_mask: Tensor | None
    ) -> None:
        self.image, self.text = image.contiguous(), text
        self._image_mask, self._text_mask = image_mask, text_mask
        self.rows = _cut(len(image), image.shape[1], IMAGE_TOKENS)
        self.columns = _cut(len(text), text.shape[1], TEXT_TOKENS)
        most = [max(map(_size, parts), default=0) for parts in (self.rows, self.columns)]
        self._largest = most[0] * image.shape[1] * most[1] * text.shape[1]

    def scratch(self) -> Tensor:
        """Return memory for a tile."""
        return self.image.new_empty(self._largest)

    def shaped(self, row: slice, column: slice, scratch: Tensor) -> Tensor:
        """Return scratch memory as a tile; what is in it is left over."""
        shape = _size(row), self.image.shape[1], self.text.shape[1], _size(column)
        return scratch[: shape[0] * shape[1] * shape[2] * shape[3]].view(shape)

    def of_images(self, row: slice) -> Tensor:
        """Return the tokens of some images: `(images * n, D)`."""
        return self.image[row].flatten(0, 1)

    def of_texts(self, column: slice) -> Tensor:
        """Return the tokens of some captions: `(m * captions, D)`, a copy."""
        return self.text[column].transpose(0, 1).flatten(0, 1)

    def tile(self, row: slice, column: slice, texts: Tensor, scratch: Tensor) -> Tensor:
        """Return a tile, written to `scratch`; what matches nothing is -inf."""
        tile = self.shaped(row, column, scratch)
        torch.mm(self.of_images(row), texts.T, out=tile.view(-1, len(texts)))
        if self._image_mask is not None:
            tile.masked_fill_(~self._image_mask[row, :, None, None], -torch.inf)
        if self._text_mask is not None:
            tile.masked_fill_(~self._text_mask[column].T, -torch.inf)
        return tile


class _BestMatches(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        text: Tensor,
        image_weight: Tensor,
        text_weight: Tensor,
        image_mask: Tensor | None,
        text_mask: Tensor | None,
        to_text: bool,
        to_image: bool,
    ) -> Pair:
        tiles = _Tiles(image, text, image_mask, text_mask)
        size = len(image), len(text)
        forth = image.new_empty(size if to_text else (0,))
        back = image.new_empty(size if to_image else (0,))
        budget = KEPT if any(ctx.needs_input_grad) else 0
        first = tiles.scratch()
        second = tiles.scratch() if budget else first
        kept: list[Tensor] = []
        directions = _directions(to_text, to_image)
        for column in tiles.columns:
            texts = tiles.of_texts(column)
            for row in tiles.rows:
                tile = tiles.tile(row, column, texts, first)
                best = [_best(tile, d) for d in directions]
                if budget:
                    places = [_places(tile, one, d, second) for one, d in zip(best, directions)]
                    used = sum(one.nbytes for one in places)
                    if budget < used:
                        budget = 0  # only the first ones, without a gap
                    else:
                        budget -= used
                        kept += places
                if to_text:
                    matched = best[0].squeeze(TO_TEXT)
                    forth[row, column] = _weighed(matched, image_weight[row, :, None]).sum(dim=1)
                if to_image:
                    matched = best[-1].squeeze(TO_IMAGE)
                    back[row, column] = _weighed(matched, text_weight[column].T).sum(dim=1)
        ctx.save_for_backward(image, text, image_weight, text_weight, image_mask, text_mask, *kept)
        ctx.wanted = to_text, to_image
        return forth, back

    @staticmethod
    def backward(ctx: Any, of_forth: Tensor, of_back: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if torch.is_grad_enabled():
            raise RuntimeError(
                "token-wise similarities can't be differentiated twice (create_graph=True)"
            )
        image, text, image_weight, text_weight, *masks = ctx.saved_tensors[:6]
        kept = iter(ctx.saved_tensors[6:])
        to_text, to_image = ctx.wanted
        directions = _directions(to_text, to_image)
        with torch.autocast(image.device.type, enabled=False):
            tiles = _Tiles(image, text, *masks)
            of_image = torch.zeros_like(tiles.image) if ctx.needs_input_grad[0] else None
            of_text = torch.empty_like(text) if ctx.needs_input_grad[1] else None
            first, second = tiles.scratch(), tiles.scratch()
            for column in tiles.columns:
                texts = tiles.of_texts(column)
                total = None if of_text is None else torch.zeros_like(texts)
                for row in tiles.rows:
                    places = [place for _, place in zip(directions, kept)]
                    if len(places) < len(directions):
                        tile = tiles.tile(row, column, texts, first)
                        places = [_places(tile, _best(tile, d), d, second) for d in directions]
                    gradient = tiles.shaped(row, column, first).zero_()
                    if to_text:
                        given = of_forth[row, None, column] * image_weight[row, :, None]
                        at = places[0].long()
                        gradient.scatter_(TO_TEXT, at, given.unsqueeze(TO_TEXT))
                    if to_image:
                        given = of_back[row, None, column] * text_weight[column].T
                        at = places[-1].long()
                        gradient.scatter_add_(TO_IMAGE, at, given.unsqueeze(TO_IMAGE))
                    flat = gradient.view(-1, len(texts))
                    if of_image is not None:
                        of_image[row].flatten(0, 1).addmm_(flat, texts)
                    if total is not None:
                        total.addmm_(flat.T, tiles.of_images(row))
                if of_text is not None and total is not None:
                    in_tile = total.view(text.shape[1], _size(column), text.shape[2])
                    of_text[column] = in_tile.transpose(0, 1)
        return of_image, of_text, None, None, None, None, None, None


def _directions(to_text: bool, to_image: bool) -> list[int]:
    return [TO_TEXT] * to_text + [TO_IMAGE] * to_image


def _best(tile: Tensor, direction: int) -> Tensor:
    return tile.amax(direction, keepdim=True)


def _places(tile: Tensor, best: Tensor, direction: int, scratch: Tensor) -> Tensor:
    """Return the last place where each best match is reached, in as small integers as hold it.

    Three passes over vectors, which are faster than a maximum that tells its place.
    """
    size = tile.shape[direction]
    shape = [1] * tile.ndim
    shape[direction] = size
    numbers = torch.arange(1, size + 1, dtype=tile.dtype, device=tile.device).view(shape)
    reached = scratch[: tile.numel()].view(tile.shape)
    torch.eq(tile, best, out=reached)
    place = reached.mul_(numbers).amax(direction, keepdim=True).sub_(1)
    # NaN is nowhere reached: any place will do, for its gradient is NaN as well.
    return place.clamp_(min=0).to(torch.uint8 if size <= 256 else torch.int32)


def _weighed(best: Tensor, weight: Tensor) -> Tensor:
    """Return weighted best matches; of padding, which may have none, 0."""
    return best.masked_fill_(weight == 0, 0.0).mul_(weight)  # 0 * -inf is no number


def _cut(size: int, tokens: int, most: int) -> list[slice]:
    step = max(1, most // max(1, tokens))
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def _size(part: slice) -> int:
    return int(part.stop - part.start)
