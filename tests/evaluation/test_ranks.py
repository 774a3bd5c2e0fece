"""Ranks by counting in tiles equal the full matrix, whatever the tile, ties included."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from xlcm.evaluation import best, tiles
from xlcm.evaluation.blocks import Tile
from xlcm.evaluation.ranks import Ranks, retrieval_ranks


def reference(image: Tensor, text: Tensor, owner: Tensor) -> tuple[list, list, list]:
    """Sort the full float64 matrix and walk down each list, groups of equal scores as one."""
    scores = (image.double() @ text.double().T).numpy().round(12)
    to_image, to_text, precisions = [], [], []
    for caption, right in enumerate(owner.tolist()):
        column = scores[:, caption]
        order = (-column).argsort(kind="stable")
        places = [1 + i for i, other in enumerate(order) if column[other] == column[right]]
        to_image.append(sum(places) / len(places))  # the average place of the tied group
    for one in sorted(set(owner.tolist())):
        row, mine = scores[one], owner.numpy() == one
        ahead = sorted((row[~mine] > s).sum() + 0.5 * (row[~mine] == s).sum() for s in row[mine])
        to_text.append(1 + ahead[0])
        precisions.append(sum(h / (h + w) for h, w in enumerate(ahead, 1)) / len(ahead))
    return to_image, to_text, precisions


def assert_same(ranks: Ranks, image: Tensor, text: Tensor, owner: Tensor) -> None:
    to_image, to_text, precisions = reference(image, text, owner)
    assert ranks.text_to_image.tolist() == to_image
    assert ranks.image_to_text.tolist() == to_text
    assert ranks.average_precision.tolist() == pytest.approx(precisions, rel=1e-12)


def case(seed: int = 0, images: int = 41, captions: int = 120, width: int = 24) -> tuple:
    """Uneven numbers of captions, some images without one, shuffled."""
    draw = torch.Generator().manual_seed(seed)
    image = normalize(torch.randn(images, width, generator=draw))
    owner = torch.randint(0, images - 3, (captions,), generator=draw)
    noise = torch.randn(captions, width, generator=draw)
    return image, normalize(image[owner] + 0.4 * noise), owner


def with_ties(seed: int = 0) -> tuple:
    """Copies of images, of right and of wrong captions."""
    image, text, owner = case(seed)
    image[5] = image[2]
    image[30] = image[31]
    text[60:90] = text[:30]  # copies that (mostly) belong to other images
    text[100:104] = text[7]
    owner[100:102] = owner[7]  # equal right captions
    return image, text, owner


@pytest.mark.parametrize("seed", range(3))
def test_ranks_equal_sorting_of_the_full_matrix(seed: int) -> None:
    image, text, owner = case(seed)
    assert_same(retrieval_ranks(image, text, owner), image, text, owner)


@pytest.mark.parametrize("seed", range(3))
def test_duplicated_embeddings_tie(seed: int) -> None:
    image, text, owner = with_ties(seed)
    ranks = retrieval_ranks(image, text, owner)
    assert_same(ranks, image, text, owner)
    assert (ranks.text_to_image % 1 == 0.5).any()
    assert (ranks.image_to_text % 1 == 0.5).any()


@pytest.mark.parametrize("tile", [(1, 17), (20, 1), (7, 3), (16, 64), (41, 120), (512, 4096)])
@pytest.mark.parametrize("width", [24, 512])
def test_ranks_do_not_depend_on_the_tile(tile: tuple[int, int], width: int) -> None:
    image, text, owner = case(width=width)
    image[5], text[60:90] = image[2], text[:30]
    whole, tiled = (
        retrieval_ranks(image, text, owner),
        retrieval_ranks(image, text, owner, tile=tile),
    )
    for name in ("text_to_image", "image_to_text", "average_precision"):
        assert torch.equal(getattr(whole, name), getattr(tiled, name)), name


def test_scores_closer_than_float32_can_tell_are_decided_exactly() -> None:
    """Images that differ in one last bit: float32 products of 512 terms can't order them."""
    draw = torch.Generator().manual_seed(1)
    base = normalize(torch.randn(1, 512, generator=draw))
    image = base.repeat(40, 1)
    image[torch.arange(40), torch.arange(40)] *= 1 + 2.0**-22
    text = normalize(torch.randn(40, 512, generator=draw))
    owner = torch.arange(40)
    exact = image.double() @ text.double().T
    expected = 1 + (exact > exact.diagonal() + 1e-12).sum(0).double()
    expected += 0.5 * ((exact - exact.diagonal()).abs() <= 1e-12).sum(0) - 0.5
    for tile in ((512, 4096), (8, 8)):
        assert torch.equal(retrieval_ranks(image, text, owner, tile=tile).text_to_image, expected)


def test_equal_right_captions_do_not_hurt_each_other() -> None:
    image = torch.eye(2)
    text = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    ranks = retrieval_ranks(image, text, torch.tensor([0, 0, 1]))
    assert ranks.image_to_text.tolist() == [1, 1]
    assert ranks.average_precision.tolist() == [1, 1]


def test_a_collapsed_model_gets_the_middle_rank_not_the_first() -> None:
    image, text = torch.ones(60, 8), torch.ones(120, 8)
    ranks = retrieval_ranks(image, text, torch.arange(60).repeat_interleave(2))
    assert ranks.text_to_image.unique().tolist() == [30.5]
    assert ranks.image_to_text.unique().tolist() == [1 + 118 / 2]


def test_zero_embeddings_tie_too() -> None:
    ranks = retrieval_ranks(torch.zeros(5, 8), torch.zeros(5, 8), torch.arange(5))
    assert ranks.text_to_image.tolist() == [3.0] * 5


def test_random_embeddings_have_ranks_of_chance() -> None:
    draw = torch.Generator().manual_seed(0)
    image, text = torch.randn(1000, 16, generator=draw), torch.randn(1000, 16, generator=draw)
    ranks = retrieval_ranks(normalize(image), normalize(text), torch.arange(1000))
    for found in (ranks.text_to_image, ranks.image_to_text):
        for k in (1, 5, 10, 100):
            expected = k / 1000
            sigma = (expected * (1 - expected) / 1000) ** 0.5
            assert abs((found <= k).double().mean().item() - expected) < 3 * sigma


def test_perfect_embeddings_rank_first() -> None:
    owner = torch.arange(50).repeat_interleave(3)
    ranks = retrieval_ranks(torch.eye(50), torch.eye(50)[owner], owner)
    assert ranks.text_to_image.unique().tolist() == [1]
    assert ranks.image_to_text.unique().tolist() == [1]
    assert ranks.average_precision.unique().tolist() == [1]


def test_permuting_the_gallery_changes_nothing() -> None:
    image, text, owner = with_ties()
    plain = retrieval_ranks(image, text, owner)
    mixed = torch.randperm(len(image), generator=torch.Generator().manual_seed(3))
    position = torch.argsort(mixed)
    shuffled = retrieval_ranks(image[mixed], text, position[owner])
    assert torch.equal(plain.text_to_image, shuffled.text_to_image)
    back = torch.argsort(mixed[shuffled.images])
    assert torch.equal(plain.image_to_text, shuffled.image_to_text[back])
    captions = torch.randperm(len(text), generator=torch.Generator().manual_seed(4))
    shuffled = retrieval_ranks(image, text[captions], owner[captions])
    assert torch.equal(plain.image_to_text, shuffled.image_to_text)
    assert torch.equal(plain.text_to_image[captions], shuffled.text_to_image)


def test_a_single_pair_has_rank_one() -> None:
    ranks = retrieval_ranks(torch.randn(1, 4), torch.randn(1, 4), torch.tensor([0]))
    assert ranks.text_to_image.tolist() == ranks.image_to_text.tolist() == [1]


def test_images_without_caption_stay_as_wrong_answers_and_ask_nothing() -> None:
    image = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    ranks = retrieval_ranks(image, torch.tensor([[0.7, 0.7]]), torch.tensor([0]))
    assert ranks.text_to_image.tolist() == [2.5]  # one wrong image ahead, the other one ties
    assert ranks.images.tolist() == [0]
    assert ranks.image_to_text.tolist() == [1]


def test_top_k_holds_the_best_of_the_full_matrix() -> None:
    image, text, owner = case()
    scores = image @ text.T
    for tile in ((512, 4096), (7, 9), (16, 64), (24, 40)):
        ranks = retrieval_ranks(image, text, owner, top_k=5, tile=tile)
        assert torch.equal(ranks.top_images.index, scores.T.topk(5, dim=1).indices)
        assert torch.equal(ranks.top_captions.index, scores.topk(5, dim=1).indices)
        assert torch.allclose(ranks.top_images.score, scores.T.topk(5, dim=1).values)
    assert retrieval_ranks(image, text, owner, top_k=1000).top_images.index.shape == (120, 41)


@pytest.mark.parametrize("read", [-1.0, 1.0])
def test_top_k_of_equal_and_rising_scores(read: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tile is better than the one before, or all are equal: the worst cases of a border."""
    monkeypatch.setattr(best, "READ_SHARE", read)
    rising = torch.arange(1.0, 121.0)[:, None]
    image, owner = torch.tensor([[1.0], [2.0]]), torch.arange(120) % 2
    ranks = retrieval_ranks(image, rising, owner, top_k=4, tile=(2, 32))
    assert ranks.top_captions.index.tolist() == [[119, 118, 117, 116]] * 2
    assert ranks.top_captions.score.tolist() == [[120, 119, 118, 117], [240, 238, 236, 234]]
    equal = retrieval_ranks(torch.ones(60, 8), torch.ones(120, 8), owner, top_k=4, tile=(24, 40))
    assert equal.top_images.score.unique().tolist() == [8]
    assert all(len(set(row)) == 4 for row in equal.top_images.index.tolist())


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("shape", [(16, 24), (21, 37), (5, 3)])
def test_scores_that_reach_a_border_are_all_found_and_no_others(dim, shape) -> None:
    scores = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    border = torch.linspace(-0.5, 1.5, shape[1 - dim])
    border[1] = torch.inf
    none = torch.empty(0, dtype=torch.int64)
    hits = Tile(scores, 0, 0, rows=none, columns=none).reach(border, dim, most=1e9)
    seen = scores if dim else scores.T
    expected = (seen >= border[:, None]).nonzero().tolist()
    found = torch.stack([hits.query, hits.answer], dim=1).tolist()
    assert sorted(found) == expected
    assert hits.value.tolist() == seen[hits.query, hits.answer].tolist()
    assert Tile(scores, 0, 0, rows=none, columns=none).reach(border, dim, most=0) is None


def test_half_precision_embeddings_are_ranked_by_their_values() -> None:
    image, text, owner = case()
    image, text = image.bfloat16(), text.bfloat16()
    assert_same(retrieval_ranks(image, text, owner), image.float(), text.float(), owner)


def test_low_precision_products_do_not_change_the_ranks() -> None:
    image, text, owner = case(width=256)
    expected = retrieval_ranks(image, text, owner).text_to_image
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(retrieval_ranks(image, text, owner).text_to_image, expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_tiles_are_of_a_size_for_the_device() -> None:
    assert tiles.tile_size(torch.device("cpu")) == (2048, 2048)
    assert tiles.tile_size(torch.device("cuda", 1)) == (4096, 16384)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_rows_are_counted_and_named(value: float) -> None:
    image, text, owner = case()
    text[3, 2] = text[50, 0] = text[50, 1] = value
    with pytest.raises(ValueError, match="2 of 120 rows of the text embeddings"):
        retrieval_ranks(image, text, owner)
    image[0, 0] = value
    with pytest.raises(ValueError, match="1 of 41 rows of the image embeddings"):
        retrieval_ranks(image, text, owner)


def test_shapes_and_indices_that_do_not_fit_are_refused() -> None:
    image, text, owner = case()
    with pytest.raises(ValueError, match=r"\[0, 41\).*found 0 to 41"):
        retrieval_ranks(image, text, torch.cat([torch.tensor([0, 41]), owner[2:].clamp(max=30)]))
    with pytest.raises(ValueError, match="width 24, text embeddings 23"):
        retrieval_ranks(image, text[:, :-1], owner)
    with pytest.raises(ValueError, match="each of the 120 captions"):
        retrieval_ranks(image, text, owner[:-1])
    with pytest.raises(ValueError, match="at least one row"):
        retrieval_ranks(image, text[:0], owner[:0])


@pytest.mark.parametrize("read", [-1.0, 9.0])
@pytest.mark.parametrize("share", [-1.0, 2.0])
def test_crowded_and_sparse_tiles_are_decided_alike(
    share: float, read: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Share -1: the float64 tile decides all; 2: pair by pair. Read -1: every score is compared."""
    monkeypatch.setattr(tiles, "DENSE_SHARE", share)
    monkeypatch.setattr(tiles, "READ_SHARE", read)
    monkeypatch.setattr(tiles, "READ_MOST", abs(read))
    image, text, owner = with_ties()
    for tile in ((512, 4096), (7, 9)):
        assert_same(retrieval_ranks(image, text, owner, tile=tile), image, text, owner)
    image[:], text[:20] = image[0], text[0]
    assert_same(retrieval_ranks(image, text, owner), image, text, owner)


# -- several processes ---------------------------------------------------------------------------


TILES = [(16, 32), (16, 64), (8, 40), None]  # None: one tile, so that a process has nothing to do


def ranked_in_pool() -> list[dict]:
    """Rank on this process of several; return values and the tiles that it multiplied."""
    torch.set_num_threads(1)
    swept: list[int] = []
    add = tiles._Sweep.add
    tiles._Sweep.add = lambda self, tile: (swept.append(tile.top), add(self, tile))  # type: ignore
    found = [values(retrieval_ranks(*with_ties(), top_k=5, tile=t, shared=True)) for t in TILES]
    return [*found, {"tiles": len(swept)}]


def values(ranks: Ranks) -> dict[str, list]:
    names = ("text_to_image", "image_to_text", "average_precision", "images")
    best = {"to_image": ranks.top_images.score, "to_text": ranks.top_captions.score}
    found = {name: getattr(ranks, name) for name in names} | best
    return {name: value.tolist() for name, value in found.items()}


def test_processes_that_share_the_matrix_get_the_ranks_of_one(processes) -> None:
    whole = [values(retrieval_ranks(*with_ties(), top_k=5, tile=tile)) for tile in TILES]
    one, other = processes.run(2, ranked_in_pool)
    assert one[:-1] == other[:-1] == whole
    assert one[-1]["tiles"] + other[-1]["tiles"] == 12 + 6 + 18 + 1
    assert abs(one[-1]["tiles"] - other[-1]["tiles"]) <= 1
