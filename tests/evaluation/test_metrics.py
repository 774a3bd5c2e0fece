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
from xlcm.evaluation.retrieval import evaluate_embeddings


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


# -- published protocols -------------------------------------------------------------------------


def test_a_match_one_place_lower_for_each_query_gives_the_known_figures() -> None:
    """Twelve one-to-one queries; the match of query i is in place i + 1."""
    text = torch.eye(12, dtype=torch.float64)
    scores = torch.full((12, 12), -1.0, dtype=torch.float64)
    for query in range(12):
        others = [i for i in range(12) if i != query]
        order = [*others[:query], query, *others[query:]]
        scores[query, order] = torch.arange(12, 0, -1, dtype=torch.float64)
    ranks = retrieval_ranks(scores.T, text, torch.arange(12))
    assert ranks.text_to_image.tolist() == list(range(1, 13))
    found = figures(text_to_image(ranks))
    assert found["r1"] == pytest.approx(100 / 12)
    assert found["r5"] == pytest.approx(500 / 12)
    assert found["r10"] == pytest.approx(1000 / 12)
    assert found["median_rank"] == found["mean_rank"] == 6.5
    assert found["map"] == pytest.approx(25.86, abs=0.005)
    perfect = figures(
        text_to_image(retrieval_ranks(torch.eye(12), torch.eye(12), torch.arange(12)))
    )
    assert set(perfect.values()) == {1.0, 100.0}


@pytest.mark.parametrize(
    ("relevance", "expected"), [([1, 0, 1, 0, 0, 1, 0, 0], 0.7222), ([0, 1, 0, 1, 1], 0.5333)]
)
def test_average_precision_of_known_orders(relevance: list, expected: float) -> None:
    image = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    text = torch.tensor([[10.0 - place, 0.0] for place in range(len(relevance))])
    owner = torch.tensor([1 - right for right in relevance])
    ranks = retrieval_ranks(image, text, owner)
    assert float(ranks.average_precision[0]) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("images", [4, 7])
def test_equal_scores_are_hits_with_favourable_ties_and_the_middle_otherwise(images: int) -> None:
    """Counted from 0, as the C2KD evaluation does, the averaged rank is (n - 1) / 2."""
    same, owner = torch.ones(images, 3), torch.arange(images)
    favourable = retrieval_ranks(same, same, owner, ties="favourable")
    for statistics_of in (text_to_image, image_to_text):
        assert figures(statistics_of(favourable))["r1"] == 100
    averaged = retrieval_ranks(same, same, owner)
    assert set(averaged.text_to_image.tolist()) == {(images - 1) / 2 + 1}
    assert set(averaged.image_to_text.tolist()) == {(images - 1) / 2 + 1}


def test_favourable_ties_change_nothing_where_there_are_none() -> None:
    draw = torch.Generator().manual_seed(0)
    image = normalize(torch.randn(40, 8, generator=draw))
    text = normalize(torch.randn(40, 8, generator=draw))
    text[5] = text[4]  # the one pair that ties, in the direction from images
    average, favourable = (
        retrieval_ranks(image, text, torch.arange(40), ties=ties)
        for ties in ("average", "favourable")
    )
    assert torch.equal(average.text_to_image, favourable.text_to_image)
    gap = average.image_to_text - favourable.image_to_text
    assert gap.nonzero().squeeze(1).tolist() == [4, 5]
    assert set(gap[4:6].tolist()) == {0.5}


def test_missing_videos_are_misses_out_of_the_official_number() -> None:
    image = torch.eye(968)
    ranks = retrieval_ranks(image, image, torch.arange(968))
    found = figures(text_to_image(ranks, official=1000))
    assert found["r1"] == pytest.approx(96.8)
    assert found["r10"] == pytest.approx(96.8)
    assert found["median_rank"] == found["mean_rank"] == 1
    with pytest.raises(ValueError, match="official_queries is 900, but 968 captions"):
        text_to_image(ranks, official=900)


def test_an_official_number_scales_intervals_and_chance_of_recalls_alone() -> None:
    draw = torch.Generator().manual_seed(1)
    image, text = torch.randn(2, 60, 4, generator=draw)
    whole, counted = (
        evaluate_embeddings(
            image, {"en": (text, torch.arange(60))}, dataset="d", split="test", bootstrap=50,
            official_queries=official,
        )
        for official in (None, 80)
    )  # fmt: skip
    one, other = whole.result("en"), counted.result("en")
    assert other.r10 == pytest.approx(0.75 * one.r10)
    assert other.ci95["r10"] == pytest.approx([0.75 * end for end in one.ci95["r10"]])
    assert other.chance["r10"] == pytest.approx(0.75 * one.chance["r10"])
    assert (other.mean_rank, other.map, other.queries) == (one.mean_rank, one.map, 60)
    assert counted.protocol["official_queries"] == 80
    back = counted.result("en", "image_to_text")
    assert back == whole.result("en", "image_to_text")
    parts = [other.r1, other.r5, other.r10, back.r1, back.r5, back.r10]
    assert counted.sum_r["en"] == pytest.approx(sum(parts))
