"""Figures from ranks: closed forms, chance against simulation, spread over languages."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from xlcm.evaluation.metrics import (
    QueryStatistics,
    chance,
    figures,
    image_to_text,
    mean_rank_variance,
    recall_sum,
    text_to_image,
)
from xlcm.evaluation.ranks import retrieval_ranks


def statistics(rank: list, image: list | None = None, gallery: int = 100) -> QueryStatistics:
    ranks = np.asarray(rank, dtype=float)
    images = np.arange(len(ranks)) if image is None else np.asarray(image)
    return QueryStatistics(ranks, 1 / ranks, images, np.ones(len(ranks), dtype=int), gallery)


def test_figures_of_known_ranks() -> None:
    found = figures(statistics([1, 1.5, 5, 6, 10, 11, 100, 4]))
    assert found["r1"] == 12.5  # a rank of 1.5, a tie at the top, is no hit at 1
    assert found["r5"] == 50
    assert found["r10"] == 75
    assert found["median_rank"] == 5.5
    assert found["mean_rank"] == pytest.approx(17.3125)
    assert recall_sum([found, found]) == 275


def test_average_precision_of_several_right_captions() -> None:
    """Right captions in places 1 and 3 of 3: (1/1 + 2/3) / 2."""
    image = torch.eye(2)
    text = normalize(torch.tensor([[1.0, 0.0], [0.9, 0.5], [0.1, 0.9]]))
    ranks = retrieval_ranks(image, text, torch.tensor([0, 1, 0]))
    found = image_to_text(ranks)
    assert found.average_precision[0] == pytest.approx((1 + 2 / 3) / 2)
    assert found.right.tolist() == [2, 1]
    assert text_to_image(ranks).average_precision == pytest.approx(1 / ranks.text_to_image.numpy())


@pytest.mark.parametrize("right", [1, 2, 5])
def test_chance_is_what_random_orders_reach(right: int) -> None:
    size, trials = 20, 20_000
    random = np.random.default_rng(0)
    order = random.permuted(np.tile(np.arange(size) < right, (trials, 1)), axis=1)
    places = np.sort(np.argsort(~order, axis=1, kind="stable")[:, :right] + 1, axis=1)
    precision = (np.arange(1, right + 1) / places).mean(axis=1)
    queries = QueryStatistics(np.ones(1), np.ones(1), np.zeros(1, int), np.array([right]), size)
    expected = chance(queries)
    for k in (1, 5, 10):
        assert expected[f"r{k}"] == pytest.approx(100 * (places[:, 0] <= k).mean(), abs=1.2)
    assert expected["mean_rank"] == pytest.approx(places[:, 0].mean(), rel=0.02)
    assert expected["map"] == pytest.approx(100 * precision.mean(), rel=0.02)


def test_chance_in_a_gallery_smaller_than_the_cutoff_is_certain() -> None:
    queries = QueryStatistics(np.ones(1), np.ones(1), np.zeros(1, int), np.ones(1, int), 3)
    assert chance(queries)["r5"] == chance(queries)["r10"] == 100
    assert chance(queries)["r1"] == pytest.approx(100 / 3)


def test_chance_averages_over_queries_with_different_numbers_of_right_answers() -> None:
    queries = QueryStatistics(np.ones(2), np.ones(2), np.arange(2), np.array([1, 3]), 10)
    assert chance(queries)["r1"] == pytest.approx((10 + 30) / 2)


def test_mean_rank_variance_of_closed_forms() -> None:
    def spread(*columns: list, statistic: str = "std") -> float:
        return mean_rank_variance([statistics(c) for c in columns], statistic=statistic)[0]

    assert spread([3, 9], [3, 9], [3, 9]) == 0
    assert spread([2], [3], [4], [5]) == pytest.approx(1.118034)
    columns = [[1, 1, 1], [1, 2, 1], [1, 3, 1], [1, 4, 101]]
    assert spread(*columns) == pytest.approx(14.806435)
    assert spread(*columns, statistic="var") == pytest.approx(625.416667)
    assert spread([2], [4], statistic="sample_var") == 2


def test_mean_rank_variance_aligns_by_image_and_averages_captions() -> None:
    english = statistics([1, 3, 7, 9], image=[0, 0, 2, 5])
    german = statistics([9, 4, 50], image=[5, 0, 1])  # no image 2, other order
    value, shared = mean_rank_variance([english, german])
    assert shared == 2
    assert value == pytest.approx((1 + 0) / 2)  # image 0: 2 and 4, image 5: 9 and 9
    assert mean_rank_variance([english]) is None
    assert mean_rank_variance([english, statistics([1], image=[9])]) is None
