"""Ranks of the right answers in both directions, by counting, in tiles of the score matrix.

How exact counting survives floating point. A matrix product may give the same pair another last
bit when the tile has another size, and a separate inner product of the right pair differs again,
so "greater than the right one" must not hang on float32 bits. Here the float32 tile decides only
what is clear: a score farther from the right one than the rounding error of the product can
reach. The few pairs within that band (about one in 10^5) are decided by their inner product in
float64. Hence the ranks depend on the embeddings alone: not on tile size, threads or device, and
duplicated embeddings tie.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from xlcm.evaluation.best import TopK
from xlcm.evaluation.scores import Scores, largest_norm
from xlcm.evaluation.tiles import count_ahead, tile_size

Ties: TypeAlias = Literal["average", "favourable"]
EQUAL: dict[Ties, float] = {"average": 0.5, "favourable": 0.0}


@dataclass(frozen=True)
class Ranks:
    """Ranks from 1 on, on the CPU, float64 because ties give halves.

    Args:
        text_to_image: `(M,)` best rank of a caption's right images among the N images:
            1 + wrong images with a greater score + half the wrong ones with an equal score (none
            of them with favourable ties). Right images never count against one another.
        image_to_text: `(Q,)` best rank of an image's right captions among the M captions:
            1 + wrong captions with a greater score + half the wrong ones with an equal score.
            Right captions never count against one another.
        average_precision: `(Q,)` of an image's captions, in [0, 1].
        images: `(Q,)` the images that have a caption, ascending; the queries of image to text.
        caption_image: `(M,)` the right image of each caption; the one it stands at, if several
            are right.
        gallery: N, the number of images.
        top_images: for each caption the best images, where `top_k` was asked for.
        top_captions: for each of the N images the best captions, likewise.
        relevant: `(P, 2)` caption and image of each further right pair; None: one image a caption.
        text_precision: `(M,)` average precision of a caption's images, in [0, 1]; None: each has
            one right image, so that it is 1 / rank.
    """

    text_to_image: Tensor
    image_to_text: Tensor
    average_precision: Tensor
    images: Tensor
    caption_image: Tensor
    gallery: int
    top_images: TopK | None = None
    top_captions: TopK | None = None
    relevant: Tensor | None = None
    text_precision: Tensor | None = None


def retrieval_ranks(
    image: Tensor,
    text: Tensor,
    caption_image: Tensor,
    *,
    relevant: Tensor | None = None,
    top_k: int = 0,
    ties: Ties = "average",
    tile: tuple[int, int] | None = None,
    shared: bool = False,
) -> Ranks:
    """Rank every right answer in both directions with one matrix product a tile.

    Memory beyond the embeddings is a few tiles, whatever N and M are. A score is the inner
    product, so cosine similarity wants L2-normalised rows. Other types than float32 are ranked
    by their float32 values (and copied once).

    Args:
        image: `(N, d)`, on any device.
        text: `(M, d)`, on the same device.
        caption_image: `(M,)` integers in [0, N): the image that each caption describes. Images
            without a caption stay in the gallery as wrong answers.
        relevant: `(P, 2)` integers: number of a caption, and of a further image that it describes
            as well as that of `caption_image`; no pair twice. None: there are none.
        top_k: how many of the best answers to keep for each query, cut to the gallery.
        ties: `average`: a wrong answer with the right one's score counts half; `favourable`: it
            doesn't count, which gives a collapsed model R@1 = 100 %.
        tile: images x captions whose scores exist at one time; any size gives the same ranks.
            None: 2,048 x 2,048, and 4,096 x 16,384 on a GPU.
        shared: every process of the group calls this with the same embeddings, ranks its share
            of the tiles, and gets the whole.

    Raises:
        ValueError: for NaN or infinity (says how many rows of which tensor), or shapes and
            indices that don't fit.
    """
    if tile is None:
        tile = tile_size(image.device)
    norms = _check(image, text, caption_image, top_k, tile)
    owner = caption_image.to(image.device, torch.int64)
    captions, shown = torch.arange(len(owner), device=owner.device), owner
    if relevant is not None and len(relevant):
        relevant = further_pairs(relevant, owner, len(image))
        captions = torch.cat([captions, relevant[:, 0]])
        shown = torch.cat([owner, relevant[:, 1]])
    else:
        relevant = None
    scores = Scores(image.detach().float(), text.detach().float(), shown, captions, norms)
    counted = count_ahead(scores, tile=tile, top_k=top_k, equal=EQUAL[ties], shared=shared)
    owner = owner.cpu()
    images, best, precision = _by_query(shown.cpu(), counted.captions.cpu())
    first, text_precision = counted.images.cpu(), None
    if relevant is not None:
        _, first, text_precision = _by_query(captions.cpu(), first)
    return Ranks(
        text_to_image=1.0 + first,
        image_to_text=1.0 + best,
        average_precision=precision,
        images=images,
        caption_image=owner,
        gallery=image.shape[0],
        top_images=counted.top_images,
        top_captions=counted.top_captions,
        relevant=None if relevant is None else relevant.cpu(),
        text_precision=text_precision,
    )


def further_pairs(relevant: Tensor, owner: Tensor, images: int) -> Tensor:
    """Return further right pairs `(P, 2)` as int64 where `owner` is.

    Args:
        relevant: `(P, 2)` integers, a caption and a further image that it describes.
        owner: `(M,)` the image that each caption stands at.
        images: how many there are.

    Raises:
        ValueError: for another shape, numbers out of range, or a pair that is there twice.
    """
    if relevant.ndim != 2 or relevant.shape[1] != 2 or relevant.is_floating_point():
        raise ValueError(
            "relevant must hold two integers a row, a caption and an image, got "
            f"{relevant.dtype} {tuple(relevant.shape)}"
        )
    pairs = relevant.to(owner.device, torch.int64)
    for name, column, size in (
        ("captions", pairs[:, 0], len(owner)),
        ("images", pairs[:, 1], images),
    ):
        if int(column.min()) < 0 or int(column.max()) >= size:
            raise ValueError(
                f"the {name} of relevant must lie in [0, {size}), found {int(column.min())} to "
                f"{int(column.max())}"
            )
    own = torch.arange(len(owner), device=owner.device) * images + owner
    numbers, counts = torch.unique(
        torch.cat([own, pairs[:, 0] * images + pairs[:, 1]]), return_counts=True
    )
    if len(twice := numbers[counts > 1]):
        caption, image = divmod(int(twice[0]), images)
        raise ValueError(
            f"caption {caption} has image {image} as a right one twice; relevant holds images "
            "besides that of caption_image, each once"
        )
    return pairs


def _by_query(query: Tensor, ahead: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the queries ascending, wrong answers before their best right one, average precision.

    The right answers of a query in order of score are its hits 1, 2, ...; hit h with w wrong
    answers ahead has precision h / (h + w), and the average precision is the mean over hits.

    Args:
        query: `(P,)` whose right answer each pair holds.
        ahead: `(P,)` wrong answers before it.
    """
    order = torch.argsort(ahead, stable=True)
    order = order[torch.argsort(query[order], stable=True)]  # by query, then by score
    queries, counts = torch.unique_consecutive(query[order], return_counts=True)
    starts = counts.cumsum(0) - counts
    hit = torch.arange(1, len(order) + 1) - starts.repeat_interleave(counts)
    precision = hit / (hit + ahead[order])
    total = torch.zeros(len(queries), dtype=torch.float64)
    total.index_add_(0, torch.arange(len(queries)).repeat_interleave(counts), precision)
    return queries, ahead[order][starts], total / counts


def _check(
    image: Tensor, text: Tensor, caption_image: Tensor, top_k: int, tile: tuple[int, int]
) -> tuple[float, float]:
    """Return the greatest length of an image's row and of a caption's."""
    for name, rows in (("image", image), ("text", text)):
        if rows.ndim != 2 or not rows.is_floating_point() or 0 in rows.shape:
            raise ValueError(
                f"{name} embeddings must be floats of shape (rows, width), at least one row; "
                f"got {rows.dtype} {tuple(rows.shape)}"
            )
    if image.shape[1] != text.shape[1]:
        raise ValueError(
            f"image embeddings have width {image.shape[1]}, text embeddings {text.shape[1]}: "
            "were they made by the same model?"
        )
    if image.device != text.device:
        raise ValueError(f"image embeddings are on {image.device}, text on {text.device}")
    if caption_image.shape != text.shape[:1] or caption_image.is_floating_point():
        raise ValueError(
            f"caption_image must hold one integer for each of the {len(text)} captions, got "
            f"{caption_image.dtype} {tuple(caption_image.shape)}"
        )
    low, high = int(caption_image.min()), int(caption_image.max())
    if low < 0 or high >= len(image):
        raise ValueError(
            f"caption_image must lie in [0, {len(image)}), the images given; found {low} to {high}"
        )
    if top_k < 0 or min(tile) < 1:
        raise ValueError(f"need top_k >= 0 and tile sides >= 1, got {top_k} and {tile}")
    norms = largest_norm(image), largest_norm(text)
    for name, rows, norm in zip(("image", "text"), (image, text), norms):
        if math.isfinite(norm):
            continue
        if bad := sum(int((~chunk.isfinite()).any(dim=1).sum()) for chunk in rows.split(4096)):
            raise ValueError(
                f"{bad} of {len(rows)} rows of the {name} embeddings hold NaN or infinity; "
                "such a model has no ranks"
            )
    return norms
