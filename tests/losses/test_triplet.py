"""The triplet loss does what its papers say, and never takes one's own image for a negative."""

import math

import pytest
import torch
from pairs import pairs, slow_triplet
from torch.utils._python_dispatch import TorchDispatchMode

from xlcm.losses.triplet import TripletLoss

NEGATIVES = ["hardest", "semi_hard", "all"]
REDUCTIONS = ["mean", "sum"]
DIRECTIONS = ["both", "image_to_text", "text_to_image"]


@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
def test_triplet_matches_double_loop(negatives, reduction, direction, dtype, tolerance):
    for seed, margin, rows in ((0, 0.2, 11), (1, 0.9, 11), (5, 0.9, 2)):
        image, text, group = pairs(rows=rows, dtype=dtype, seed=seed)
        options = {"negatives": negatives, "reduction": reduction, "direction": direction}
        loss = TripletLoss(margin=margin, **options)(image, text, group=group)
        slow = slow_triplet(image, text, group, margin, **options)
        assert slow > 0 or rows == 2
        assert loss.item() == pytest.approx(slow, rel=tolerance)


@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_triplet_without_negatives_is_zero_with_zero_gradient(negatives, reduction):
    for rows in (1, 4):
        image, text, _ = pairs(rows=rows)
        inputs = (image.requires_grad_(), text.requires_grad_())
        group = torch.zeros(rows, dtype=torch.int64)
        loss = TripletLoss(negatives=negatives, reduction=reduction)(image, text, group=group)
        assert loss.item() == 0.0
        assert all((g == 0).all() for g in torch.autograd.grad(loss, inputs))


@pytest.mark.parametrize(
    ("negatives", "reduction", "value"),
    [
        ("hardest", "mean", 2 * 0.2),
        ("hardest", "sum", 2 * 7 * 0.2),
        ("all", "mean", 2 * 0.2),
        ("all", "sum", 2 * 7 * 6 * 0.2),
        ("semi_hard", "mean", 0.0),  # none is less similar than the pair
    ],
)
def test_triplet_of_equal_embeddings_counts_margins(negatives, reduction, value):
    same = torch.eye(5, dtype=torch.float64)[:1].expand(7, -1)
    loss = TripletLoss(margin=0.2, negatives=negatives, reduction=reduction)
    assert loss(same, same, group=torch.arange(7)).item() == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("margin", "negatives", "value"),
    [(1.0, "hardest", 0.0), (1.3, "hardest", 4.8), (1.3, "semi_hard", 4.8), (1.3, "all", 33.6)],
)
def test_triplet_of_a_perfect_match_is_what_the_margin_exceeds(margin, negatives, value):
    eye = torch.eye(8, dtype=torch.float64)
    loss = TripletLoss(margin=margin, negatives=negatives, reduction="sum")
    assert loss(eye, eye, group=torch.arange(8)).item() == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_triplet_never_takes_a_caption_of_the_same_image_for_a_negative(negatives):
    eye = torch.eye(4, dtype=torch.float64)
    image = text = eye[[0, 0, 1, 2]]  # rows 0 and 1 show one image and are equally similar
    loss = TripletLoss(margin=0.2, negatives=negatives)
    assert loss(image, text, group=torch.tensor([0, 0, 1, 2])).item() == 0.0
    if negatives != "semi_hard":
        assert loss(image, text, group=torch.arange(4)).item() > 0.0


@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_triplet_in_legacy_mode_takes_all_but_its_own_column_for_negatives(
    negatives, reduction, direction
):
    image, text, group = pairs(rows=11)
    options = {"negatives": negatives, "reduction": reduction, "direction": direction}
    loss = TripletLoss(margin=0.9, legacy_same_image=True, **options)(image, text, group=group)
    slow = slow_triplet(image, text, torch.arange(11), 0.9, **options)
    assert loss.item() == pytest.approx(slow, rel=1e-10)
    kept_out = TripletLoss(margin=0.9, **options)(image, text, group=group)
    assert kept_out.item() != pytest.approx(slow, rel=1e-3)


def test_triplet_in_legacy_mode_of_one_duplicated_pair_is_four_margins():
    image = text = torch.eye(4, dtype=torch.float64)[[0, 0, 1, 2]]
    group = torch.tensor([0, 0, 1, 2])
    loss = TripletLoss(margin=0.2, reduction="sum", legacy_same_image=True)
    assert loss(image, text, group=group).item() == pytest.approx(0.8, rel=1e-12)


def test_triplet_in_legacy_mode_of_one_pair_is_zero():
    image, text, group = pairs(rows=1)
    assert TripletLoss(legacy_same_image=True)(image, text, group=group).item() == 0.0


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_triplet_of_both_directions_is_the_sum_and_swapping_sides_swaps_them(negatives):
    image, text, group = pairs()
    both, to_text, to_image = (
        TripletLoss(margin=0.9, negatives=negatives, reduction="sum", direction=direction)
        for direction in DIRECTIONS
    )
    forth, back = (loss(image, text, group=group).item() for loss in (to_text, to_image))
    assert both(image, text, group=group).item() == pytest.approx(forth + back, rel=1e-12)
    assert forth != pytest.approx(back, rel=1e-3)
    assert to_text(text, image, group=group).item() == pytest.approx(back, rel=1e-12)


@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_triplet_gradients_match_finite_differences(negatives, reduction):
    image, text, group = pairs(rows=4, width=5, seed=3)
    inputs = (image.requires_grad_(), text.requires_grad_())
    for legacy in (False, True):
        loss = TripletLoss(
            margin=0.5, negatives=negatives, reduction=reduction, legacy_same_image=legacy
        )
        assert any(g.any() for g in torch.autograd.grad(loss(image, text, group=group), inputs))
        assert torch.autograd.gradcheck(
            lambda i, t, loss=loss: loss(i, t, group=group), inputs, atol=1e-6
        )


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_triplet_under_autocast_is_exactly_that_of_float32(negatives):
    results = []
    for enabled in (False, True):
        image, text, group = pairs(rows=32, width=16, dtype=torch.float32)
        inputs = (image.requires_grad_(), text.requires_grad_())
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = TripletLoss(negatives=negatives)(image, text, group=group)
        results.append([loss, *torch.autograd.grad(loss, inputs)])
    for plain, autocast in zip(*results):
        assert autocast.dtype == torch.float32
        assert torch.equal(plain, autocast)


@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_triplet_shows_a_nan_instead_of_passing_over_it(negatives, direction):
    image, text, group = pairs()
    image[3, 2] = math.nan
    loss = TripletLoss(negatives=negatives, direction=direction)(image, text, group=group)
    assert math.isnan(loss.item())


def test_triplet_refuses_what_it_can_not_compute():
    image, text, group = pairs()
    with pytest.raises(ValueError, match="without rows"):
        TripletLoss()(image[:0], text[:0], group=group[:0])
    with pytest.raises(ValueError, match="bias would be dropped"):
        TripletLoss()(image, text, group=group, bias=torch.tensor(1.0))
    with pytest.raises(ValueError, match="margin"):
        TripletLoss(margin=-0.1)


class Matrices(TorchDispatchMode):
    """Keep every new float tensor of one shape, forward and backward."""

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__()
        self.shape, self.kept = shape, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            matrix = isinstance(tensor, torch.Tensor) and tuple(tensor.shape) == self.shape
            if matrix and tensor.is_floating_point():
                self.kept[tensor.untyped_storage().data_ptr()] = tensor
        return out


@pytest.mark.parametrize(
    ("negatives", "most"), [("hardest", (1, 1)), ("semi_hard", (1, 2)), ("all", (2, 9))]
)
def test_triplet_with_the_hardest_negatives_makes_one_matrix_for_both_directions(negatives, most):
    image, text, group = pairs(rows=8, width=5)
    image.requires_grad_()
    for direction, number in zip(("image_to_text", "both"), most):
        loss = TripletLoss(negatives=negatives, direction=direction)
        with Matrices((8, 8)) as seen:
            loss(image, text, group=group).backward()
        if negatives == "all":  # the watch sees more where there are more
            assert number <= len(seen.kept)
        else:
            assert len(seen.kept) == number
