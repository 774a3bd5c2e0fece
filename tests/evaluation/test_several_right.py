"""Captions with several right pictures: figures equal plain loops over the score matrix."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from relevance import case, one_side, right_pairs
from torch import Tensor
from torch.nn.functional import normalize

from xlcm.evaluation import metrics, tiles
from xlcm.evaluation.fusion import fused_results
from xlcm.evaluation.intervals import draws, resample
from xlcm.evaluation.ranks import Ranks, retrieval_ranks
from xlcm.evaluation.report import RetrievalReport
from xlcm.evaluation.retrieval import evaluate_embeddings
from xlcm.evaluation.sheet import retrieval_sheet, sheet_rows

NAMES = ("text_to_image", "text_precision", "images", "image_to_text", "average_precision")


def assert_same(ranks: Ranks, image: Tensor, text: Tensor, owner: Tensor, relevant: Tensor) -> None:
    scores = (text.double() @ image.double().T).numpy().round(12)
    right = right_pairs(owner, relevant, len(image))
    _, best, precision = one_side(scores, right)
    assert ranks.text_to_image.tolist() == best
    assert ranks.text_precision.tolist() == pytest.approx(precision, rel=1e-12)
    images, best, precision = one_side(scores.T, right.T)
    assert ranks.images.tolist() == images
    assert ranks.image_to_text.tolist() == best
    assert ranks.average_precision.tolist() == pytest.approx(precision, rel=1e-12)


def report(image: Tensor, text: Tensor, owner: Tensor, relevant: Tensor, **options):
    return evaluate_embeddings(
        image, {"zh": (text, owner)}, relevant={"zh": relevant}, dataset="Shop", split="val",
        **{"source_lang": "zh", "bootstrap": 0, **options},
    )  # fmt: skip


# -- against plain loops -------------------------------------------------------------------------


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_ranks_and_precision_equal_loops_over_the_matrix(seed: int, ties: bool) -> None:
    given = case(seed, ties=ties)
    assert_same(retrieval_ranks(*given[:3], relevant=given[3]), *given)


@pytest.mark.parametrize("tile", [(1, 17), (7, 3), (16, 64), (41, 70)])
def test_several_right_pictures_do_not_depend_on_the_tile(tile: tuple[int, int]) -> None:
    image, text, owner, relevant = case(ties=True)
    whole = retrieval_ranks(image, text, owner, relevant=relevant)
    tiled = retrieval_ranks(image, text, owner, relevant=relevant, tile=tile)
    for name in NAMES:
        assert torch.equal(getattr(whole, name), getattr(tiled, name)), name


@pytest.mark.parametrize("read", [-1.0, 9.0])
@pytest.mark.parametrize("share", [-1.0, 2.0])
def test_every_way_to_count_gives_the_same(share: float, read: float, monkeypatch) -> None:
    """Share -1: the float64 tile decides all; 2: pair by pair. Read -1: every score is compared."""
    monkeypatch.setattr(tiles, "DENSE_SHARE", share)
    monkeypatch.setattr(tiles, "READ_SHARE", read)
    monkeypatch.setattr(tiles, "READ_MOST", abs(read))
    given = case(ties=True)
    assert_same(retrieval_ranks(*given[:3], relevant=given[3], tile=(16, 64)), *given)


def test_figures_are_means_over_the_loops() -> None:
    image, text, owner, relevant = case(3)
    found = report(image, text, owner, relevant)
    scores, right = (text @ image.T).numpy(), right_pairs(owner, relevant, len(image))
    for direction, asked in (("text_to_image", (scores, right)),
                             ("image_to_text", (scores.T, right.T))):  # fmt: skip
        _, ranks, precisions = one_side(*asked)
        row = found.result("zh", direction)
        for k in (1, 5, 10):
            share = 100 * np.mean(np.array(ranks) <= k)
            assert getattr(row, f"r{k}") == pytest.approx(share)
        assert row.median_rank == np.median(ranks)
        assert row.mean_rank == pytest.approx(np.mean(ranks))
        assert row.map == pytest.approx(100 * np.mean(precisions))
        assert (row.queries, row.gallery) == (len(ranks), asked[0].shape[1])


def test_a_hit_is_any_right_picture_among_the_first_k() -> None:
    """The rule as published for MUGE: sorted, not counted."""
    image, text, owner, relevant = case(4)
    order = (text @ image.T).argsort(dim=1, descending=True)
    right = torch.from_numpy(right_pairs(owner, relevant, len(image)))
    row = report(image, text, owner, relevant).result("zh")
    for k in (1, 5, 10):
        hits = right.gather(1, order[:, :k]).any(dim=1)
        assert getattr(row, f"r{k}") == pytest.approx(100 * hits.double().mean().item())


# -- closed forms --------------------------------------------------------------------------------


def test_one_right_picture_each_gives_the_figures_without_further_ones() -> None:
    image, text, owner, _ = case()
    plain = evaluate_embeddings(image, {"zh": (text, owner)}, dataset="Shop", split="val",
                                source_lang="zh", bootstrap=20)  # fmt: skip
    none = report(image, text, owner, torch.empty(0, 2, dtype=torch.int64), bootstrap=20)
    assert none == plain
    assert "several_right_pictures" not in plain.protocol


def test_perfect_groups_reach_everything_in_both_directions() -> None:
    """Pictures 0..2 are right for captions 0 and 1, pictures 3 and 4 for caption 2."""
    points = torch.eye(2)
    image, text = points[[0, 0, 0, 1, 1]], points[[0, 0, 1]]
    relevant = torch.tensor([[0, 1], [0, 2], [1, 0], [1, 2], [2, 3]])
    found = report(image, text, torch.tensor([0, 1, 4]), relevant, bootstrap=20)
    assert found.sum_r == {"zh": 600}
    assert [(row.map, row.queries, row.gallery) for row in found.results] == [
        (100, 3, 5), (100, 5, 3),
    ]  # fmt: skip


def test_a_collapsed_model_gets_the_middle_rank_of_the_wrong_ones() -> None:
    """With c right answers among G, G - c wrong ones tie with the best: rank 1 + (G - c) / 2."""
    image, text = torch.ones(20, 4), torch.ones(10, 4)
    relevant = torch.tensor([[c, 10 + c] for c in range(10)] + [[0, 5]])
    ranks = retrieval_ranks(image, text, torch.arange(10), relevant=relevant)
    assert ranks.text_to_image.tolist() == [1 + 17 / 2] + [10.0] * 9
    assert ranks.image_to_text.tolist() == [5.5] * 5 + [5.0] + [5.5] * 14
    assert report(image, text, torch.arange(10), relevant).result("zh").r1 == 0
    won = report(image, text, torch.arange(10), relevant, ties="favourable")
    assert won.result("zh").r1 == 100


def test_right_pictures_never_count_against_one_another() -> None:
    """Scores 0.9 (right), 0.8 (right), 0.7 (wrong), 0.6 (right): precision 1, 1 and 3/4."""
    image = torch.tensor([[0.9], [0.8], [0.7], [0.6]])
    ranks = retrieval_ranks(image, torch.ones(1, 1), torch.tensor([3]),
                            relevant=torch.tensor([[0, 0], [0, 1]]))  # fmt: skip
    assert ranks.text_to_image.tolist() == [1]
    assert ranks.text_precision.tolist() == [pytest.approx(11 / 12)]
    assert ranks.image_to_text.tolist() == [1, 1, 1]


def test_chance_counts_every_right_picture() -> None:
    image, text, owner, relevant = case()
    right = right_pairs(owner, relevant, len(image)).sum(axis=1)
    row = report(image, text, owner, relevant).result("zh")
    assert row.chance["r1"] == pytest.approx(100 * np.mean(right / len(image)))
    assert row.chance["mean_rank"] == pytest.approx(np.mean((len(image) + 1) / (right + 1)))


def test_scores_of_chance_have_the_recall_of_chance() -> None:
    draw = torch.Generator().manual_seed(0)
    image, text = torch.randn(200, 16, generator=draw), torch.randn(2000, 16, generator=draw)
    relevant = torch.stack([torch.arange(2000).repeat(3), torch.arange(6000) % 200], dim=1)
    relevant[:, 1] = (relevant[:, 0] + 1 + torch.arange(3).repeat_interleave(2000)) % 200
    row = report(normalize(image), normalize(text), torch.arange(2000) % 200, relevant).result("zh")
    assert row.chance["r1"] == pytest.approx(2)
    assert abs(row.r1 - 2) < 3 * (2 * 98 / 2000) ** 0.5


# -- what goes with it ---------------------------------------------------------------------------


def test_intervals_draw_the_picture_that_a_caption_stands_at() -> None:
    image, text, owner, relevant = case(5)
    ranks = retrieval_ranks(image, text, owner, relevant=relevant)
    found = resample(metrics.text_to_image(ranks), images=41, resamples=60, seed=7)
    for i, weights in enumerate(np.concatenate(list(draws(41, 60, seed=7)))):
        asked = np.repeat(ranks.text_to_image.numpy(), weights[owner.numpy()])
        precision = np.repeat(ranks.text_precision.numpy(), weights[owner.numpy()])
        assert found["r1"][i] == pytest.approx(100 * np.mean(asked <= 1))
        assert found["map"][i] == pytest.approx(100 * np.mean(precision))
    row = report(image, text, owner, relevant, bootstrap=200).result("zh")
    assert row.ci95["r5"][0] < row.r5 < row.ci95["r5"][1]


def test_pictures_that_are_only_further_right_ones_stay_in_a_captioned_gallery() -> None:
    image, text, owner, relevant = case(6)
    captioned = report(image, text, owner, relevant, gallery="captioned", top_k=3)
    ranks = captioned.ranks["zh"]
    shown = sorted({*owner.tolist(), *relevant[:, 1].tolist()})
    assert (ranks.images.tolist(), ranks.gallery) == (shown, len(shown))
    assert len(set(owner.tolist())) < len(shown) < len(image)
    assert torch.equal(ranks.relevant, relevant)  # numbers of the caller's images again
    right = right_pairs(owner, relevant, len(image))
    first = ranks.top_images.index[:, 0]
    assert ((ranks.text_to_image == 1).numpy() == right[np.arange(len(text)), first]).all()


def test_the_best_answers_are_those_of_the_matrix() -> None:
    image, text, owner, relevant = case()
    scores = image @ text.T
    for tile in (None, (7, 9), (16, 64)):
        ranks = retrieval_ranks(image, text, owner, relevant=relevant, top_k=5, tile=tile)
        assert torch.equal(ranks.top_images.index, scores.T.topk(5, dim=1).indices)
        assert torch.equal(ranks.top_captions.index, scores.topk(5, dim=1).indices)


@pytest.mark.parametrize("gallery", ["all", "captioned"])
def test_fused_figures_at_both_ends_are_those_of_each_side(gallery: str) -> None:
    image, text, owner, relevant = case(1)
    other = case(2)[1]
    fused = fused_results(image, {"zh": (text, owner)}, {"zh": other}, [0.0, 1.0],
                          relevant={"zh": relevant}, gallery=gallery, bootstrap=0)  # fmt: skip
    for one, rows in zip(fused, (text, other)):
        expected = report(image, rows, owner, relevant, gallery=gallery)
        assert one.results == expected.results


def ranked_in_pool() -> list[dict]:
    torch.set_num_threads(1)
    image, text, owner, relevant = case(ties=True)
    found = [retrieval_ranks(image, text, owner, relevant=relevant, top_k=5, tile=t, shared=True)
             for t in ((16, 32), None)]  # fmt: skip
    return [values(ranks) for ranks in found]


def values(ranks: Ranks) -> dict[str, list]:
    kept = {name: getattr(ranks, name).tolist() for name in NAMES}
    return kept | {"top": ranks.top_images.score.tolist()}


def test_processes_that_share_the_matrix_count_further_pictures_as_one_does(processes) -> None:
    image, text, owner, relevant = case(ties=True)
    whole = values(retrieval_ranks(image, text, owner, relevant=relevant, top_k=5))
    for found in processes.run(2, ranked_in_pool):
        assert found == [whole, whole]


def test_the_report_says_so_and_comes_back_from_disk(tmp_path: Path) -> None:
    image, text, owner, relevant = case()
    found = report(image, text, owner, relevant, bootstrap=20)
    share = 1 + len(relevant) / len(owner)
    assert found.protocol["several_right_pictures"]["pictures_a_caption"] == {"zh": share}
    found.save(tmp_path)
    assert RetrievalReport.load(tmp_path) == found
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert f"pictures a caption zh {share:.2f}" in page


def test_pairs_that_do_not_fit_are_refused_with_the_reason() -> None:
    image, text, owner, _ = case()
    right = torch.tensor([[3, 40]])
    for pairs, said in (
        (
            torch.tensor([[70, 1]]),
            r"'zh': the captions of relevant must lie in \[0, 70\), found 70",
        ),
        (torch.tensor([[0, -1], [1, 4]]), r"images of relevant must lie in \[0, 41\), found -1 to"),
        (torch.cat([right, right]), "caption 3 has image 40 as a right one twice"),
        (torch.tensor([[9, int(owner[9])]]), f"caption 9 has image {int(owner[9])} as a right one"),
        (torch.tensor([1, 2]), r"two integers a row, a caption and an image, got torch.int64 \(2,"),
        (torch.tensor([[1.0, 2.0]]), "two integers a row, .* got torch.float32"),
    ):
        for gallery in ("all", "captioned"):
            with pytest.raises(ValueError, match=said):
                report(image, text, owner, pairs, gallery=gallery)
    with pytest.raises(ValueError, match="relevant has captions in de, text has none"):
        evaluate_embeddings(image, {"zh": (text, owner)}, relevant={"de": right}, dataset="d",
                            split="t")  # fmt: skip


def test_the_sheet_frames_every_right_picture(tmp_path: Path) -> None:
    found = report(torch.eye(4), torch.tensor([[0.9, 0.8, 0.7, 0.0]]), torch.tensor([3]),
                   torch.tensor([[0, 0], [0, 2]]), top_k=3)  # fmt: skip
    row = sheet_rows(found, {"zh": ["船"]}, queries=1)[0]
    assert (row.right, row.further, row.rank, row.found) == (3, [0, 2], 1, [0, 1, 2])

    def green(name: str, further: list[int]) -> int:
        shown = sheet_rows(found, {"zh": ["boat"]}, queries=1)[0].__class__(
            "zh", "boat", row.found, row.scores, row.right, row.rank, further
        )
        retrieval_sheet([shown], lambda _: Image.new("L", (40, 20), 200), tmp_path / name)
        pixels = np.asarray(Image.open(tmp_path / name).convert("RGB")).astype(int)
        return int((np.abs(pixels - (0, 158, 115)).sum(axis=2) < 30).sum())

    assert green("two.png", [0, 2]) > 1.7 * green("one.png", [0]) > 1.7 * green("none.png", [])
