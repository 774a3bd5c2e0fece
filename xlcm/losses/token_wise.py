"""Token-wise similarity of images and captions: each token looks for its best match.

The four-dimensional tensor of all tokens' products never exists: tiles of it give the similarities
and the places of the best matches (`token_tiles.py`).
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from xlcm.distributed import gather, world
from xlcm.losses.base import check_choice, full_precision
from xlcm.losses.similarities import Reduction
from xlcm.losses.token_tiles import best_matches

Padding = Literal["excluded", "zero"]


@full_precision
def token_wise_similarity(
    image: Tensor,
    text: Tensor,
    image_mask: Tensor | None = None,
    text_mask: Tensor | None = None,
    *,
    padding: Padding = "excluded",
) -> tuple[Tensor, Tensor]:
    r"""Return how each image finds its tokens in each caption, and each caption in each image.

    $s_{ij} = \frac{1}{n} \sum_k \max_r x_{ik} \cdot y_{jr}$ over real tokens k of image i and r of
    caption j, and $t_{ij} = \frac{1}{m} \sum_r \max_k x_{ik} \cdot y_{jr}$: two different matrices.
    Where several tokens match equally well, one of them gets the gradient. Memory beyond the inputs
    is that of their gradients, a few tiles and at most 128 MB of places of the best matches. It
    can't be differentiated twice.

    Args:
        image: `(b, n, D)`, L2-normalised.
        text: `(c, m, D)`, L2-normalised.
        image_mask: `(b, n)` bool, true on real tokens; None: all are. What others hold is ignored.
        text_mask: `(c, m)` bool, likewise.
        padding: `excluded`: padded tokens match nothing; `zero`: they count as vectors of 0, so
            that no match on a side with padding is below 0, as in the released code of Wukong.

    Returns:
        `(b, c)` s and `(b, c)` t, in float32, or float64 for such tokens.

    Raises:
        ValueError: for shapes that don't fit, and an image or caption without a real token.

    Source: FILIP, Yao et al. 2022, https://arxiv.org/abs/2111.07783, equations 3 to 5; Wukong, Gu
    et al. 2022, https://arxiv.org/abs/2202.06767.
    """
    check_choice("padding", padding, Padding)
    return _compute(*_sides((image, image_mask), (text, text_mask)), padding)


class TokenWiseLoss(nn.Module):
    """InfoNCE of token-wise similarities: images among captions by s, captions among images by t.

    Rows that share a `group` share the target mass: they are right answers, never negatives. The
    value is the mean over local rows, in [0, inf); ln(columns) a direction when all are alike.

    It takes tokens and not embeddings, so no method of the library builds it by name: a token-wise
    model keeps all tokens of an item for retrieval.

    Args:
        label_smoothing: share of the target mass that is spread over all columns alike.
        reduction: of the two directions.
        padding: `excluded`: padded tokens match nothing; `zero`: they count as vectors of 0, so
            that no match on a side with padding is below 0.

    Source: as `token_wise_similarity`; the paper doesn't say what padding matches.
    """

    def __init__(
        self,
        *,
        label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        reduction: Reduction = "mean",
        padding: Padding = "excluded",
    ) -> None:
        super().__init__()
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
        check_choice("reduction", reduction, Reduction)
        check_choice("padding", padding, Padding)
        self.label_smoothing = label_smoothing
        self.reduction = reduction
        self.padding: Padding = padding

    @full_precision
    def forward(
        self,
        image: Tensor,
        text: Tensor,
        image_mask: Tensor | None = None,
        text_mask: Tensor | None = None,
        *,
        group: Tensor,
        scale: Tensor | float,
    ) -> Tensor:
        """Return the mean loss of this process's rows: a float32 scalar.

        Its mean over processes is the loss of the global batch.

        Args:
            image: `(b, n, D)`, L2-normalised.
            text: `(b, m, D)`, L2-normalised; row i belongs to image i. Processes may have other
                lengths.
            image_mask: `(b, n)` bool, true on real tokens; None: all are.
            text_mask: `(b, m)` bool, likewise.
            group: `(b,)` int64 ids of the visual items; equal ids are never negatives.
            scale: `()`, the inverse temperature.

        Raises:
            ValueError: as `token_wise_similarity`; for no rows, and ids or a scale that don't fit.
        """
        if len(image) != len(text) or group.shape != image.shape[:1]:
            raise ValueError(
                f"image {tuple(image.shape)}, text {tuple(text.shape)} and group "
                f"{tuple(group.shape)} must have one row a pair"
            )
        if len(image) == 0:
            raise ValueError("a batch without rows has no loss; drop it before the method sees it")
        if isinstance(scale, Tensor) and scale.numel() != 1:
            raise ValueError(f"scale must be one number for all rows, got {tuple(scale.shape)}")
        images, texts = _sides((image, image_mask), (text, text_mask))
        if world() == 1:
            forth, back = _compute(images, texts, self.padding)
        else:
            forth, _ = _compute(images, _gathered(texts), self.padding, to_image=False)
            _, back = _compute(_gathered(images), texts, self.padding, to_text=False)
        right = (group[:, None] == gather(group)).to(forth.dtype)
        target = right / right.sum(dim=1, keepdim=True)  # each row finds itself: never 0 / 0
        total = forth.new_zeros(())
        for matrix in (forth, back.T):
            smoothing = self.label_smoothing
            total = total + F.cross_entropy(scale * matrix, target, label_smoothing=smoothing)
        return total if self.reduction == "sum" else total / 2


# -- sides --------------------------------------------------------------------------------------


class _Side(NamedTuple):
    """Tokens `(b, n, D)`, 0 where they are padding; their mask, None if all are real."""

    tokens: Tensor
    mask: Tensor | None

    def weights(self) -> Tensor:
        """Return `(b, n)` shares of the tokens in their mean."""
        b, n, _ = self.tokens.shape
        if self.mask is None:
            return self.tokens.new_full((b, n), 1 / n)
        real = self.mask.to(self.tokens.dtype)
        return real / real.sum(dim=1, keepdim=True)


def _sides(
    image: tuple[Tensor, Tensor | None], text: tuple[Tensor, Tensor | None]
) -> tuple[_Side, _Side]:
    sides = _side("image", *image), _side("text", *text)
    shapes = [tuple(side.tokens.shape) for side in sides]
    if shapes[0][2] != shapes[1][2]:
        raise ValueError(f"image {shapes[0]} and text {shapes[1]} must have tokens of one width")
    return sides


def _side(name: str, tokens: Tensor, mask: Tensor | None) -> _Side:
    if tokens.ndim != 3 or not tokens.is_floating_point():
        raise ValueError(
            f"{name} must be (batch, tokens, dim) of floats, got {tuple(tokens.shape)} "
            f"{tokens.dtype}"
        )
    if mask is None:
        if tokens.shape[1] == 0 < len(tokens):
            raise ValueError(f"{name} 0 of the batch has no token")
        return _Side(tokens, None)
    if mask.shape != tokens.shape[:2] or mask.is_floating_point():
        raise ValueError(
            f"{name}_mask must be {tuple(tokens.shape[:2])} booleans, true on real tokens, got "
            f"{tuple(mask.shape)} {mask.dtype}"
        )
    mask = mask.bool()
    if mask.all() and tokens.shape[1]:
        return _Side(tokens, None)
    if not (real := mask.any(dim=1)).all():
        raise ValueError(
            f"{name} {int((~real).nonzero()[0])} of the batch has no token: all are masked; leave "
            "such items out of the data"
        )
    return _Side(tokens.masked_fill(~mask[:, :, None], 0.0), mask)


def _gathered(side: _Side) -> _Side:
    """Return the side of all processes, padded to the longest."""
    tokens, mask = side
    mine = tokens.shape[1]
    # Every process takes part in every gather, also one that has no padding.
    longest = int(gather(torch.tensor([mine], device=tokens.device)).max())
    if mask is None:
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    tokens = gather(F.pad(tokens, (0, 0, 0, longest - mine)))
    mask = gather(F.pad(mask, (0, longest - mine)))
    return _Side(tokens, None if mask.all() else mask)


def _compute(
    image: _Side, text: _Side, padding: Padding, *, to_text: bool = True, to_image: bool = True
) -> tuple[Tensor, Tensor]:
    """Return both matrices; one that isn't asked for is empty."""
    masks = (image.mask, text.mask) if padding == "excluded" else (None, None)
    return best_matches(
        (image.tokens, text.tokens), (image.weights(), text.weights()), masks, (to_text, to_image)
    )
