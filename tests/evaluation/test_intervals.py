"""Bootstrap intervals cover the truth as often as they say, and respect clusters and pairs."""

import numpy as np
import pytest

from xlcm.evaluation.intervals import draws, interval, paired_difference, resample
from xlcm.evaluation.metrics import QueryStatistics, figures


def statistics(rank: np.ndarray, image: np.ndarray | None = None) -> QueryStatistics:
    images = np.arange(len(rank)) if image is None else image
    return QueryStatistics(
        rank.astype(float), 1 / rank, images, np.ones(len(rank), dtype=int), 1000
    )


def test_each_draw_takes_as_many_images_as_there_are() -> None:
    drawn = np.concatenate(list(draws(30, 120, seed=0)))
    assert drawn.shape == (120, 30)
    assert (drawn.sum(axis=1) == 30).all()
    assert np.array_equal(drawn, np.concatenate(list(draws(30, 120, seed=0))))
    assert not np.array_equal(drawn, np.concatenate(list(draws(30, 120, seed=1))))


def test_resampled_figures_equal_a_loop_over_copied_queries() -> None:
    random = np.random.default_rng(0)
    image = random.integers(0, 40, size=101)
    queries = statistics(random.integers(1, 60, size=101), image)
    found = resample(queries, images=45, resamples=70, seed=5)
    for i, weights in enumerate(np.concatenate(list(draws(45, 70, seed=5)))):
        rank = np.repeat(queries.rank, weights[image])
        expected = figures(statistics(rank))
        for name, values in found.items():
            assert values[i] == pytest.approx(expected[name]), name


def test_interval_covers_the_true_recall_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        rank = random.integers(1, 21, size=150)  # true R@5 is 25 %
        low, high = interval(
            resample(statistics(rank), images=150, resamples=300, seed=trial)["r5"]
        )
        covered += low <= 25 <= high
    assert 0.89 < covered / 200 < 0.99


def test_interval_covers_when_the_captions_of_an_image_succeed_together() -> None:
    """Drawing captions instead of images would cover in about 6 of 10 cases only."""
    random = np.random.default_rng(1)
    image = np.repeat(np.arange(100), 5)
    by_images = by_captions = 0
    for trial in range(150):
        rank = np.repeat(random.integers(1, 21, size=100), 5)
        low, high = interval(
            resample(statistics(rank, image), images=100, resamples=200, seed=trial)["r5"]
        )
        by_images += low <= 25 <= high
        low, high = interval(
            resample(statistics(rank), images=500, resamples=200, seed=trial)["r5"]
        )
        by_captions += low <= 25 <= high
    assert by_images / 150 > 0.88
    assert by_captions / 150 < 0.8


def test_paired_difference_finds_what_separate_intervals_miss() -> None:
    random = np.random.default_rng(0)
    hard = random.integers(1, 200, size=500).astype(float)
    better = np.maximum(1, hard - random.integers(0, 4, size=500))
    found = paired_difference(better, hard)
    assert found.mean == pytest.approx((better - hard).mean())
    assert found.clear
    assert found.high < 0
    low, high = interval(resample(statistics(hard), images=500)["mean_rank"])
    assert low < better.mean() < high


def test_paired_difference_of_equal_models_is_zero_and_not_clear() -> None:
    rank = np.arange(1, 51)
    found = paired_difference(rank, rank, at=5)
    assert (found.mean, found.low, found.high, found.clear) == (0, 0, 0, False)


def test_paired_difference_at_a_cutoff_is_in_percentage_points() -> None:
    found = paired_difference([1, 1, 1, 9], [1, 9, 9, 1], at=5)
    assert found.mean == 25


def test_paired_difference_draws_clusters_whole() -> None:
    """With one cluster every draw is the whole set."""
    found = paired_difference([1, 2, 9], [2, 2, 2], clusters=[7, 7, 7])
    assert found.low == found.high == pytest.approx(2)


def test_paired_difference_refuses_other_queries() -> None:
    with pytest.raises(ValueError, match="same queries on both sides"):
        paired_difference([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="clusters"):
        paired_difference([1, 2], [1, 2], clusters=[0])
