"""95 % bootstrap intervals: how far a figure moves if the test images were drawn again.

*Images* are drawn, with all their captions, not captions. Five captions of one photograph succeed
and fail together; drawn one by one they would pass for five independent trials and the interval
would come out too narrow. As both directions and all languages share each draw, sums (SumR) and
gaps between languages get their intervals from the same draws, with the covariance between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xlcm.evaluation.metrics import CUTOFFS, METRICS, Floats, QueryStatistics

CHUNK = 50  # draws that are in memory at one time


def draws(images: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yield `(at most CHUNK, images)`: how often each image is in each resample."""
    random = np.random.default_rng(seed)
    for at in range(0, resamples, CHUNK):
        rows = min(CHUNK, resamples - at)
        picked = random.integers(images, size=(rows, images))
        picked += np.arange(rows)[:, None] * images
        yield np.bincount(picked.ravel(), minlength=rows * images).reshape(rows, images)


def resample(
    queries: QueryStatistics, *, images: int, resamples: int = 1000, seed: int = 0
) -> dict[str, Floats]:
    """Return for every metric its value in each resample, `(resamples,)`.

    The gallery stays whole; what is drawn are the questions.

    Args:
        queries: one direction of one language.
        images: number of images that `queries.image` counts in, so that the same seed draws the
            same images for every direction and language.
        resamples: how many draws.
        seed: of the draws.
    """
    rank = queries.rank
    hits = [(rank <= k) * queries.present for k in CUTOFFS]
    columns = np.stack([*hits, rank, queries.average_precision, np.ones_like(rank)], axis=1)
    by_image = np.zeros((images, columns.shape[1]))
    np.add.at(by_image, queries.image, columns)
    order = np.argsort(rank, kind="stable")
    sorted_rank, sorted_image = rank[order], queries.image[order]

    means, medians = [], []
    for weights in draws(images, resamples, seed):
        sums = weights @ by_image
        # a draw without a single query (only possible for tiny sets) has no figures
        with np.errstate(invalid="ignore"):
            means.append(sums[:, :-1] / sums[:, -1:])
        # take keeps rows contiguous, which indexing does not: the sums run 3 times faster
        medians.append(_medians(sorted_rank, weights.astype(np.int32).take(sorted_image, axis=1)))
    r1, r5, r10, mean_rank, precision = np.concatenate(means).T
    values = (100 * r1, 100 * r5, 100 * r10, np.concatenate(medians), mean_rank, 100 * precision)
    return dict(zip(METRICS, values))


def _medians(rank: Floats, weights: NDArray[np.int32]) -> Floats:
    """Return the median of sorted `rank (Q,)`, each taken `weights (b, Q)` times."""
    reached = np.cumsum(weights, axis=1, dtype=np.int32)
    total = reached[:, -1]
    lower = [np.searchsorted(row, (n - 1) // 2, side="right") for row, n in zip(reached, total)]
    upper = [np.searchsorted(row, n // 2, side="right") for row, n in zip(reached, total)]
    last = len(rank) - 1
    middle = (rank[np.minimum(lower, last)] + rank[np.minimum(upper, last)]) / 2
    return np.where(total > 0, middle, np.nan)


def interval(values: Floats, *, level: float = 0.95) -> list[float]:
    """Return `[low, high]`, the percentiles that leave `1 - level` outside, half on each side."""
    tail = 50 * (1 - level)
    low, high = np.nanpercentile(values, [tail, 100 - tail])
    return [float(low), float(high)]


@dataclass(frozen=True)
class Difference:
    """How much larger the first is than the second.

    Args:
        mean: difference of the two figures.
        low: lower end of the interval.
        high: upper end; the interval is clear of 0 where the difference is more than luck.
    """

    mean: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether 0 lies outside the interval."""
        return self.low > 0 or self.high < 0


def paired_difference(
    first: ArrayLike,
    second: ArrayLike,
    *,
    at: int | None = None,
    clusters: ArrayLike | None = None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """Compare two models on the same queries, by a paired bootstrap.

    Each resample takes the same queries for both, so that what makes a query hard for both
    cancels; the interval is far narrower than two separate ones suggest.

    Args:
        first: `(Q,)` ranks of one model (or any figure per query, without `at`).
        second: `(Q,)` ranks of the other, of the same queries in the same order.
        at: compare R@`at` in percentage points; None compares the means as they are.
        clusters: `(Q,)` integers, for text to image the image of each caption: drawn whole.
        resamples: how many draws.
        seed: of the draws.
        level: of the interval.

    Raises:
        ValueError: if the lengths differ.
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(
            f"a paired comparison needs the same queries on both sides, got {a.shape} and {b.shape}"
        )
    gap = a - b if at is None else 100.0 * (a <= at) - 100.0 * (b <= at)
    names = np.arange(len(gap)) if clusters is None else np.asarray(clusters)
    if names.shape != gap.shape:
        raise ValueError(f"clusters must name one of each of {len(gap)} queries: {names.shape}")
    _, group = np.unique(names, return_inverse=True)
    sums, sizes = np.bincount(group, weights=gap), np.bincount(group)
    values = [(w @ sums) / (w @ sizes) for w in draws(len(sums), resamples, seed)]
    low, high = interval(np.concatenate(values), level=level)
    return Difference(float(gap.mean()), low, high)
