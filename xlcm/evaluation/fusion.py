"""Scores of a query and of its machine translation together, without ever making their matrices.

With $S_1$ the scores of the translations and $S_2$ those of the queries as they are, `(M, N)`
each, and N(S) = (S - min S) / (max S - min S) over the whole matrix, the fused score is
w N(S_1) + (1 - w) N(S_2). Both matrices are inner products with the same images, so up to a
constant, which changes no rank in either direction, the fused score is the inner product of the
image with w t_1 / (max S_1 - min S_1) + (1 - w) t_2 / (max S_2 - min S_2). Only the two ranges
have to be found, tile by tile; then the fused queries are ranked like any others.

The ranges depend on the whole test set, so with 0 < w < 1 so do the ranks of one query.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from xlcm.evaluation import shares
from xlcm.evaluation.ranks import Ties
from xlcm.evaluation.report import FusedResult
from xlcm.evaluation.retrieval import captioned_images, evaluate_embeddings
from xlcm.evaluation.tiles import exact_products, tile_size

FLAT = 1e-6  # a range this small beside the scores is rounding: all are equal

Range = tuple[float, float]
Rows = tuple[Tensor, Tensor]


@torch.no_grad()
def score_range(
    image: Tensor, text: Tensor, *, tile: tuple[int, int] | None = None, shared: bool = False
) -> Range:
    """Return the least and the greatest inner product of any text with any image.

    Args:
        image: `(N, d)`.
        text: `(M, d)`, on the same device.
        tile: images x texts whose scores exist at one time; None: as the device likes it.
        shared: every process holds the same embeddings and looks at its share of the tiles; all
            get the whole range.
    """
    # a CPU's allocator keeps a tile of `tile_size`, which the ranks that follow then make beside it
    on_cpu = image.device.type == "cpu"
    height, width = tile or ((512, 4096) if on_cpu else tile_size(image.device))
    image, text = image.float(), text.float()
    cut = [(rows, columns) for rows in image.split(height) for columns in text.split(width)]
    least, most = float("inf"), float("-inf")
    with exact_products():
        for number, (rows, columns) in enumerate(cut):
            if not shared or shares.mine(number):
                low, high = torch.aminmax(rows @ columns.T)
                least, most = min(least, float(low)), max(most, float(high))
    return shares.extremes(least, most, image.device) if shared else (least, most)


def fuse(image: Tensor, target: Tensor, translation: Tensor, weight: float) -> Tensor:
    """Return query vectors whose scores are ranked as the fused scores are.

    With weight 1 they are the translations and with weight 0 the targets, bit for bit. Where all
    scores of one side are equal, that side says nothing and is left out.

    Args:
        image: `(N, d)`, the whole gallery.
        target: `(M, d)` the queries as they were asked.
        translation: `(M, d)` their translations.
        weight: of the translations, in [0, 1].

    Returns:
        `(M, d)` float32, not of length 1.

    Raises:
        ValueError: for a weight out of range, or shapes that don't fit.

    Source: NRCCR (Wang et al. 2022, https://arxiv.org/abs/2208.12526), as in the released code,
    which scales errors (negative cosines) to [-1, 0].
    """
    if target.shape != translation.shape or target.shape[1:] != image.shape[1:]:
        raise ValueError(
            "queries and translations must have one shape (M, d), images (N, d); got "
            f"{tuple(target.shape)}, {tuple(translation.shape)}, {tuple(image.shape)}"
        )
    ranges = score_range(image, target), score_range(image, translation)
    return _combine(target, translation, ranges, weight)


def _combine(
    target: Tensor, translation: Tensor, ranges: tuple[Range, Range], weight: float
) -> Tensor:
    if not 0.0 <= weight <= 1.0:
        raise ValueError(f"the weight of the translations must be in [0, 1], got {weight}")
    if weight in (0.0, 1.0):  # no rounding where nothing is added
        return (translation if weight else target).float()
    parts = ((target, ranges[0], 1 - weight), (translation, ranges[1], weight))
    return sum(
        (rows.float() * (share / (high - low)) for rows, (low, high), share in parts
         if high - low > FLAT * max(abs(low), abs(high))),
        torch.zeros_like(target, dtype=torch.float32),
    )  # fmt: skip


def fused_results(
    image: Tensor,
    target: Mapping[str, Rows],
    translation: Mapping[str, Tensor],
    weights: Sequence[float],
    *,
    relevant: Mapping[str, Tensor] | None = None,
    visual: Literal["image", "video"] = "image",
    gallery: Literal["all", "captioned"] = "all",
    ties: Ties = "average",
    official_queries: int | None = None,
    bootstrap: int = 1000,
    shared: bool = False,
) -> list[FusedResult]:
    """Rank by fused scores in both directions, for each weight and language.

    Args:
        image: `(N, d)`.
        target: by language the queries `(M, d)` and `(M,)` the image that each describes.
        translation: by language the queries' translations `(M, d)`.
        weights: of the translations, in [0, 1].
        relevant: by language the queries' further right images, as for `evaluate_embeddings`.
        visual: as the other options, see `evaluate_embeddings`.
        gallery: see there; scores are scaled over the gallery that is ranked.
        ties: see there.
        official_queries: see there.
        bootstrap: see there.
        shared: see there.

    Raises:
        ValueError: for a weight out of range, or as `evaluate_embeddings` does.
    """
    ranges: dict[str, tuple[Range, Range]] = {}
    relevant = relevant or {}
    for lang, rows in translation.items():
        queries, owner = target[lang]
        shown = image
        if gallery == "captioned":
            shown = image[captioned_images(owner, relevant.get(lang)).to(image.device)]
        ranges[lang] = (
            score_range(shown, queries, shared=shared),
            score_range(shown, rows, shared=shared),
        )
    found = []
    for weight in weights:
        text = {
            lang: (_combine(target[lang][0], rows, ranges[lang], weight), target[lang][1])
            for lang, rows in translation.items()
        }
        report = evaluate_embeddings(
            image,
            text,
            relevant={lang: pairs for lang, pairs in relevant.items() if lang in text},
            dataset="",
            split="",
            visual=visual,
            gallery=gallery,
            ties=ties,
            official_queries=official_queries,
            bootstrap=bootstrap,
            shared=shared,
        )
        found.append(FusedResult(weight, report.results, report.sum_r, report.sum_r_ci95))
    return found
