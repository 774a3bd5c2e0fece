"""Losses in tiles are those of the whole score matrix, and never hold one."""

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from pairs import Largest, pairs

from xlcm.losses import info_nce, score_tiles, sigmoid, tiled
from xlcm.losses.info_nce import InfoNCELoss
from xlcm.losses.score_tiles import Cut, Right, in_tiles
from xlcm.losses.sigmoid import SigmoidLoss
from xlcm.losses.tiled import cross_entropy

ROWS = 37  # ragged for tiles of 5 x 7
KEPT = {"none": 0, "some": 150, "all": 10**6}  # numbers kept for the second sweep


@pytest.fixture(autouse=True)
def small_tiles():
    with mock.patch.multiple(score_tiles, ROWS=5, COLUMNS=7), mock.patch.object(tiled, "SLICE", 2):
        yield


def half_alike(rows: int = ROWS, width: int = 6, dtype: torch.dtype = torch.float64):
    """Pairs whose right answers stand out, but not by so much that the loss is rounding."""
    image, text, group = pairs(rows, width, torch.float64)
    text = F.normalize(0.8 * image + text, dim=1)
    return image.to(dtype), text.to(dtype), group


def step(loss, image, text, group, scale, **options):
    """Value and gradients of image, text, scale and, if there is one, bias."""
    leaves = [x.detach().clone().requires_grad_() for x in (image, text)]
    numbers = [torch.tensor(scale, dtype=image.dtype, requires_grad=True)]
    if isinstance(loss, SigmoidLoss):
        numbers.append(torch.tensor(-4.0, dtype=image.dtype, requires_grad=True))
        options["bias"] = numbers[1]
    value = loss(*leaves, group=group, scale=numbers[0], **options)
    return [value.detach(), *torch.autograd.grad(value, (*leaves, *numbers))]


def gaps(found, wanted) -> list[float]:
    return [((a - b).norm() / b.norm()).item() for a, b in zip(found, wanted, strict=True)]


# -- the same numbers ---------------------------------------------------------------------------


@pytest.mark.parametrize("kept", KEPT.values(), ids=KEPT)
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0, 400.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_info_nce_in_tiles_is_the_plain_one_in_float64(kept, scale, smoothing):
    image, text, group = half_alike()
    for groups in (group, torch.arange(ROWS), torch.zeros(ROWS, dtype=torch.int64)):
        for present in (None, torch.arange(ROWS) % 3 > 0):
            options = {"label_smoothing": smoothing}
            arguments = (image, text, groups, scale)
            with mock.patch.object(tiled, "KEPT", kept):
                found = step(InfoNCELoss(tiled="always", **options), *arguments, present=present)
            wanted = step(InfoNCELoss(tiled="never", **options), *arguments, present=present)
            assert max(gaps(found, wanted)) < 1e-12


def test_sigmoid_in_tiles_is_the_plain_one_in_float64():
    image, text, group = half_alike()
    for groups in (group, torch.arange(ROWS), torch.zeros_like(group)):
        for present in (None, torch.arange(ROWS) % 3 > 0):
            for scale in (1.0, 10.0, 100.0):
                arguments = (image, text, groups, scale)
                found = step(SigmoidLoss(tiled="always"), *arguments, present=present)
                wanted = step(SigmoidLoss(tiled="never"), *arguments, present=present)
                assert max(gaps(found, wanted)) < 1e-12


@pytest.mark.parametrize("kind", [InfoNCELoss, SigmoidLoss])
def test_tiles_in_float32_are_as_exact_as_the_plain_form(kind):
    with mock.patch.multiple(score_tiles, ROWS=200, COLUMNS=256):
        image, text, _ = half_alike(900, 64, torch.float32)
        found = step(kind(tiled="always"), image, text, torch.arange(900), 10.0)
        plain = step(kind(tiled="never"), image, text, torch.arange(900), 10.0)
        assert max(gaps(found, plain)) < 1e-6
        exact = step(kind(tiled="never"), image.double(), text.double(), torch.arange(900), 10.0)
        assert max(gaps(found, exact)) < 1e-6


@pytest.mark.parametrize("kind", [InfoNCELoss, SigmoidLoss])
@pytest.mark.parametrize("scale", [50.0, 100.0])
def test_a_steep_scale_costs_no_precision_in_float32(kind, scale):
    image, text, _ = half_alike(120, 16, torch.float32)
    group = torch.arange(120)
    exact = step(kind(tiled="never"), image.double(), text.double(), group, scale)
    plain, found = (
        gaps(step(kind(tiled=way), image, text, group, scale), exact) for way in ("never", "always")
    )
    for many, one in zip(found, plain):
        assert many < max(2 * one, 1e-6)


@pytest.fixture(scope="module")
def large():
    """1,100 pairs, and by scale the float64 loss (about 0.4) and gradients."""
    image, text, _ = pairs(1100, 256)
    image = F.normalize(1.7 * image.float(), dim=1)  # in float32: lengths are 1 to rounding
    text = F.normalize(0.3 * image + text.float(), dim=1)
    found = {}

    def exact(scale, dtype):
        if (scale, dtype) not in found:
            rows = [side.to(dtype).double() for side in (image, text)]
            found[scale, dtype] = step(InfoNCELoss(tiled="never"), *rows, torch.arange(1100), scale)
        return found[scale, dtype]

    return image, text, exact


@pytest.mark.parametrize("scale", [83.9, 99.9, 100.0])
def test_a_large_batch_at_temperature_0_01_is_exact_in_float32(large, scale):
    image, text, exact = large
    wanted = exact(scale, torch.float32)
    with mock.patch.multiple(score_tiles, ROWS=300, COLUMNS=400):
        # a score of 100 is rounded to 4e-6: no float32 form comes closer with its gradients
        plain = step(InfoNCELoss(tiled="never"), image, text, torch.arange(1100), scale)
        plain = gaps(plain, wanted)
        assert 1e-6 < max(plain[1:3]) < 2e-6
        for kept, without in ((0, ()), (10**7, ()), (0, ("cpu",))):
            kept = mock.patch.object(tiled, "KEPT", kept)
            with kept, mock.patch.object(score_tiles, "NO_FLOAT64", without):
                loss = InfoNCELoss(tiled="always")
                found = gaps(step(loss, image, text, torch.arange(1100), scale), wanted)
            assert found[0] < 1e-6
            for many, one in zip(found[1:], plain[1:]):
                assert many < (2 if without else 1.2) * one


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_large_batch_in_half_precision_loses_what_its_gradients_are_rounded_to(large, dtype):
    image, text, exact = large
    image, text, wanted = image.to(dtype), text.to(dtype), exact(100.0, dtype)
    numbers = torch.tensor(100.0, requires_grad=True)
    leaves = [side.requires_grad_() for side in (image, text)]
    with mock.patch.multiple(score_tiles, ROWS=300, COLUMNS=400):
        loss = InfoNCELoss(tiled="always")(*leaves, group=torch.arange(1100), scale=numbers)
        slopes = torch.autograd.grad(loss, (*leaves, numbers))
    found = gaps([loss.detach(), *slopes], wanted)
    assert loss.dtype == torch.float32
    assert [slope.dtype for slope in slopes[:2]] == [dtype, dtype]
    assert found[0] < 1e-6
    assert max(found[1:3]) < torch.finfo(dtype).eps / 2
    assert found[3] < 1e-5


@pytest.mark.parametrize("scale", [70.0, 100.0])
def test_collapsed_embeddings_at_a_steep_scale_keep_their_gradients(scale):
    image, text, group = half_alike(dtype=torch.float32)  # weights over sums are smallest here
    image, text = (F.normalize(image[:1] + 0.03 * side, dim=1) for side in (image, text))
    exact = step(InfoNCELoss(tiled="never"), image.double(), text.double(), group, scale)
    plain = gaps(step(InfoNCELoss(tiled="never"), image, text, group, scale), exact)
    with mock.patch.object(tiled, "_first_sweep", side_effect=tiled._first_sweep) as sweep:
        found = gaps(step(InfoNCELoss(tiled="always"), image, text, group, scale), exact)
    assert sweep.call_count == 1
    for many, one in zip(found[:3], plain):
        assert many < max(3 * one, 1e-6)


def test_rows_whose_exponentials_would_vanish_take_the_safe_way():
    image, _, group = half_alike(dtype=torch.float32)
    text = -image[:1].expand(ROWS, -1)  # row 0: all cosines -1, at scale 100
    seen = []
    with mock.patch.object(tiled, "_first_sweep", side_effect=tiled._first_sweep) as sweep:
        found = step(InfoNCELoss(tiled="always"), image, text, group, 100.0)
        seen.append(sweep.call_count)
        step(InfoNCELoss(tiled="always"), image, text, group, 50.0)
        seen.append(sweep.call_count)
    assert seen == [2, 3]
    wanted = step(InfoNCELoss(tiled="never"), image.double(), text.double(), group, 100.0)
    assert max(gaps(found, wanted)) < 1e-5


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("scale", [5.0, 500.0])
def test_rows_and_columns_may_differ_in_number(smoothing, scale):
    rows, columns, _ = half_alike()
    rows, groups = rows[:12].requires_grad_(), torch.arange(ROWS) % 9
    target = (groups[:12, None] == groups).double()
    target = target / target.sum(dim=1, keepdim=True)
    logits = scale * rows @ columns.T
    wanted = F.cross_entropy(logits, target, label_smoothing=smoothing, reduction="sum")
    options = {"scale": scale, "row_group": groups[:12], "column_group": groups}
    found = cross_entropy(rows, columns, smoothing=smoothing, **options)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-12)
    one, other = (torch.autograd.grad(value, rows)[0] for value in (found, wanted))
    assert max(gaps([one], [other])) < 1e-12


def test_right_answers_are_found_in_every_tile():
    group, columns = torch.randint(4, (13,)), torch.randint(4, (17,))
    cut = Cut(13, 17)
    right = Right(group, columns, cut)
    found = torch.zeros(13, 17, dtype=torch.bool)
    for row, column in cut:
        at, to = right(row, column)
        found[row, column][at, to] = True
    assert torch.equal(found, group[:, None] == columns)
    assert torch.equal(right.counts, found.sum(dim=1))


@pytest.mark.parametrize("kind", [InfoNCELoss, SigmoidLoss])
def test_what_is_not_finite_is_not_hidden(kind):
    image, text, group = half_alike()
    image[3, 2] = torch.nan
    assert kind(tiled="always")(image, text, group=group, scale=3.0).isnan()


@pytest.mark.parametrize("kind", [InfoNCELoss, SigmoidLoss])
def test_nobody_present_costs_nothing_in_tiles(kind):
    image, text, group = half_alike()
    nobody = torch.zeros(ROWS, dtype=torch.bool)
    value, *gradients = step(kind(tiled="always"), image, text, group, 3.0, present=nobody)
    assert value.item() == 0.0
    assert not any(gradient.any() for gradient in gradients)


# -- gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [InfoNCELoss, SigmoidLoss])
def test_gradients_in_tiles_match_finite_differences(kind):
    image, text, group = pairs(rows=8, width=3)
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    inputs = (image.requires_grad_(), text.requires_grad_(), scale)
    run = lambda i, t, s: kind(tiled="always")(i, t, group=group, scale=s)  # noqa: E731
    assert torch.autograd.gradcheck(run, inputs, atol=1e-6)


@pytest.mark.parametrize("kind", [InfoNCELoss, SigmoidLoss])
def test_a_second_derivative_is_refused_in_tiles_and_given_by_the_plain_form(kind):
    image, text, group = pairs(rows=8, width=3)
    image.requires_grad_()
    run = lambda way: kind(tiled=way)(image, text, group=group, scale=3.0)  # noqa: E731
    with pytest.raises(RuntimeError, match=r"differentiated twice.*tiled='never'"):
        torch.autograd.grad(run("always"), image, create_graph=True)
    (slope,) = torch.autograd.grad(run("never"), image, create_graph=True)
    assert torch.autograd.grad(slope.square().sum(), image)[0].norm() > 0


@pytest.mark.parametrize("kept", KEPT.values(), ids=KEPT)
@pytest.mark.parametrize("kind", [InfoNCELoss, SigmoidLoss])
def test_backward_may_run_twice_and_is_linear(kind, kept):
    image, text, group = half_alike()
    image.requires_grad_()
    with mock.patch.object(tiled, "KEPT", kept):
        loss = kind(tiled="always")(image, text, group=group, scale=9.0)
        first, second = (
            torch.autograd.grad(loss, image, torch.tensor(w).double(), retain_graph=True)[0]
            for w in (1.0, -3.0)
        )
    torch.testing.assert_close(second, -3 * first)


@pytest.mark.parametrize("kind", [InfoNCELoss, SigmoidLoss])
@pytest.mark.parametrize("wanted", range(3))
def test_one_side_alone_gets_the_gradient_that_it_has_with_the_others(kind, wanted):
    image, text, group = half_alike()
    scale = torch.tensor(9.0, dtype=torch.float64)
    every = step(kind(tiled="always"), image, text, group, 9.0)
    inputs = [x.detach().clone() for x in (image, text, scale)]
    inputs[wanted].requires_grad_()
    bias = torch.tensor(-4.0) if kind is SigmoidLoss else None
    loss = kind(tiled="always")(*inputs[:2], group=group, scale=inputs[2], bias=bias)
    torch.testing.assert_close(torch.autograd.grad(loss, inputs[wanted])[0], every[1 + wanted])


@pytest.mark.parametrize("kind", [InfoNCELoss, SigmoidLoss])
def test_autocast_around_forward_and_backward_changes_nothing(kind):
    image, text, group = half_alike(dtype=torch.float32)
    plain = step(kind(tiled="always"), image, text, group, 90.0)
    with torch.autocast("cpu", torch.bfloat16):
        cast = step(kind(tiled="always"), image, text, group, 90.0)
        half = kind(tiled="always")(image.bfloat16(), text.bfloat16(), group=group, scale=90.0)
    assert all(torch.equal(a, b) and b.dtype == torch.float32 for a, b in zip(plain, cast))
    assert half.dtype == torch.float32


# -- memory -------------------------------------------------------------------------------------


def largest_and_saved(loss) -> tuple[int, int]:
    """Largest tensor, and all that is saved for the backward pass, in numbers of 8 bytes."""
    image, text, _ = half_alike(200)
    saved = {}

    def note(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 8
        return tensor

    with (
        mock.patch.multiple(score_tiles, ROWS=32, COLUMNS=50),
        mock.patch.object(tiled, "KEPT", 3200),
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        Largest() as mode,
    ):
        step(loss, image, text, torch.arange(200), 9.0)
    return mode.numbers, sum(saved.values())


@pytest.mark.parametrize("kind", [InfoNCELoss, SigmoidLoss])
def test_nothing_of_the_size_of_the_score_matrix_is_made_or_saved(kind):
    made, saved = largest_and_saved(kind(tiled="always"))
    assert made <= 32 * 50
    assert saved <= 2 * 200 * 6 + 3200 + 10 * 200
    made, saved = largest_and_saved(kind(tiled="never"))
    assert made >= 200 * 200
    assert saved >= 200 * 200


def test_a_large_batch_is_computed_in_tiles_and_a_small_one_is_not():
    assert in_tiles("auto", 1024, 1024)
    assert in_tiles("auto", 256, 4096)
    assert not in_tiles("auto", 1023, 1024)
    assert in_tiles("always", 1, 1)
    assert not in_tiles("never", 10**6, 10**6)
    image, text, group = half_alike()
    for pays, name in ((ROWS**2, "in tiles"), (ROWS**2 + 1, "plain")):
        with (
            mock.patch.object(score_tiles, "PAYS", pays),
            mock.patch.object(info_nce, "cross_entropy", wraps=cross_entropy) as softmax,
            mock.patch.object(sigmoid._Sigmoid, "apply", wraps=sigmoid._Sigmoid.apply) as pairwise,
        ):
            InfoNCELoss()(image, text, group=group, scale=1.0)
            SigmoidLoss()(image, text, group=group, scale=1.0)
        assert softmax.called == pairwise.called == (name == "in tiles")
