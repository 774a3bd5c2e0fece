"""Figures of retrieval from ranks: recalls, median, mean, mAP, chance, spread over languages.

A direction of a language is a `QueryStatistics`: one row a query. Everything else is a mean over
rows, so that intervals (`xlcm.evaluation.intervals`) only need to weigh the rows anew.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from xlcm.evaluation.ranks import Ranks

CUTOFFS = (1, 5, 10)
METRICS = ("r1", "r5", "r10", "median_rank", "mean_rank", "map")

Floats = NDArray[np.float64]
Spread = Literal["std", "var", "sample_var"]


@dataclass(frozen=True)
class QueryStatistics:
    """What one direction says about each of its queries.

    Args:
        rank: `(Q,)` from 1 on, halves where scores tie.
        average_precision: `(Q,)` in [0, 1].
        image: `(Q,)` the image that a query is, or that it stands at; intervals draw images.
        right: `(Q,)` how many right answers the gallery holds for it.
        gallery: how many candidates were ranked.
        official: how many queries recalls are shares of; those beyond Q are misses. None: Q.
    """

    rank: Floats
    average_precision: Floats
    image: NDArray[np.int64]
    right: NDArray[np.int64]
    gallery: int
    official: int | None = None

    @property
    def present(self) -> float:
        """The share of the official queries that could be asked, in (0, 1]."""
        return 1.0 if self.official is None else len(self.rank) / self.official


def text_to_image(ranks: Ranks, *, official: int | None = None) -> QueryStatistics:
    """Each caption looks for its image; where it has several, its rank is that of the best one.

    Args:
        ranks: of one language.
        official: how many captions the benchmark asks with, for recalls; None: those ranked.

    Raises:
        ValueError: if more were ranked than there officially are.
    """
    rank = ranks.text_to_image.numpy()
    owner = ranks.caption_image.numpy()
    if official is not None and official < len(rank):
        raise ValueError(
            f"official_queries is {official:,}, but {len(rank):,} captions were asked with: give "
            "the number of the whole benchmark, or leave it out"
        )
    right = np.ones_like(owner)
    if ranks.relevant is None or ranks.text_precision is None:
        return QueryStatistics(rank, 1 / rank, owner, right, ranks.gallery, official)
    right += np.bincount(ranks.relevant[:, 0].numpy(), minlength=len(owner))
    precision = ranks.text_precision.numpy()
    return QueryStatistics(rank, precision, owner, right, ranks.gallery, official)


def image_to_text(ranks: Ranks) -> QueryStatistics:
    """Each captioned image looks for its captions; its rank is that of the best one.

    Its captions are all that it is a right image of.
    """
    owner = shown = ranks.caption_image.numpy()
    if ranks.relevant is not None:
        shown = np.concatenate([owner, ranks.relevant[:, 1].numpy()])
    images, right = np.unique(shown, return_counts=True)
    return QueryStatistics(
        ranks.image_to_text.numpy(), ranks.average_precision.numpy(), images, right, len(owner)
    )


def figures(queries: QueryStatistics) -> dict[str, float]:
    """Return recalls in percent, `median_rank`, `mean_rank`, and `map` in percent.

    Recalls are shares of the official queries, the others are means over those asked: missing
    pictures have no rank.
    """
    rank = queries.rank
    found = {f"r{k}": 100 * float(np.mean(rank <= k)) * queries.present for k in CUTOFFS}
    return found | {
        "median_rank": float(np.median(rank)),
        "mean_rank": float(np.mean(rank)),
        "map": 100 * float(np.mean(queries.average_precision)),
    }


def chance(queries: QueryStatistics) -> dict[str, float]:
    """Return what a random order of the gallery is expected to reach, in the same units.

    With c right answers among G: R@k is 1 - C(G-c, k) / C(G, k), the best rank (G+1) / (c+1),
    average precision H/G + (c-1) (G-H) / (G (G-1)), where H is the G-th harmonic number.
    """
    size = queries.gallery
    kinds, counts = np.unique(queries.right, return_counts=True)
    weights = counts / counts.sum()
    harmonic = math.fsum(1 / i for i in range(1, size + 1))

    def missed(right: int, k: int) -> float:
        return math.prod(max(0, size - right - i) / (size - i) for i in range(min(k, size)))

    def precision(right: int) -> float:
        more = (right - 1) * (size - harmonic) / (size - 1) if right > 1 else 0.0
        return (harmonic + more) / size

    def mean(values: Sequence[float]) -> float:
        return float(np.dot(weights, values))

    found = {
        f"r{k}": 100 * mean([1 - missed(int(c), k) for c in kinds]) * queries.present
        for k in CUTOFFS
    }
    return found | {
        "mean_rank": mean([(size + 1) / (int(c) + 1) for c in kinds]),
        "map": 100 * mean([precision(int(c)) for c in kinds]),
    }


def recall_sum(directions: Sequence[Mapping[str, float]]) -> float:
    """Return SumR: the recalls at 1, 5 and 10 of all directions added, at most 600 for two."""
    return sum(found[f"r{k}"] for found in directions for k in CUTOFFS)


def mean_rank_variance(
    languages: Sequence[QueryStatistics], *, statistic: Spread = "std"
) -> tuple[float, int] | None:
    """Return how much the rank of one image moves between languages, and over how many images.

    Per image the ranks of the languages are compared, and their spread is averaged over the
    images that every language has. An image with several captions in a language counts with
    their mean rank. Alignment is by image, never by row.

    The figure says nothing of quality (equally bad ranks have none) and grows with the gallery.

    Args:
        languages: the same direction in at least two languages.
        statistic: `std`, the population standard deviation, is what the field's tables hold
            despite the name; `var` and `sample_var` are the variances.

    Returns:
        None with fewer than two languages or without a shared image.

    Source: CCRK (Nie et al. 2024, https://arxiv.org/abs/2406.18254), evaluation code.
    """
    if len(languages) < 2:
        return None
    shared = np.unique(languages[0].image)
    for queries in languages[1:]:
        shared = np.intersect1d(shared, queries.image)
    if not len(shared):
        return None
    table = np.stack([_mean_by_image(queries, shared) for queries in languages])
    if statistic == "std":
        spread = table.std(axis=0)
    else:
        spread = table.var(axis=0, ddof=int(statistic == "sample_var"))
    return float(spread.mean()), len(shared)


def _mean_by_image(queries: QueryStatistics, shared: NDArray[np.int64]) -> Floats:
    total = np.bincount(queries.image, weights=queries.rank)
    return (total[shared] / np.bincount(queries.image)[shared]).astype(np.float64)
