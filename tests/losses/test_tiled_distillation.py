"""Distillation in tiles is that of whole matrices, and never holds one."""

import itertools
from unittest import mock

import pytest
import torch
from pairs import Largest, pairs

from xlcm.losses import relation_distillation, score_tiles, tiled_divergence
from xlcm.losses.relation_distillation import RelationDistillationLoss
from xlcm.losses.similarity_distillation import (
    SimilarityDistillationLoss,
    Targets,
    TeacherRows,
)

ROWS = 37  # ragged for tiles of 5 x 7
KEPT = {"none": 0, "some": 300, "all": 10**6}
PRESENT = torch.arange(ROWS) % 3 > 0


@pytest.fixture(autouse=True)
def small_tiles():
    with mock.patch.multiple(score_tiles, ROWS=5, COLUMNS=7):
        yield


def sides(teachers: int = 1, rows: int = ROWS, dtype: torch.dtype = torch.float64):
    """Text and image of the student and of teachers of other widths, all wanting a gradient."""
    widths = (6, 4, 5)[: 1 + teachers]
    drawn = [side for w in widths for side in pairs(rows, w, dtype, seed=w)[:2]]
    return [side.requires_grad_() for side in drawn]


def step(loss, inputs, present=None):
    """Value and gradients; of a teacher that is detached there are none."""
    teachers = list(zip(inputs[2::2], inputs[3::2]))
    value = loss(*inputs[:2], loss.targets(teachers), present)
    wanted = inputs[:2] if loss.detach_teacher else inputs
    return [value.detach(), *torch.autograd.grad(value, wanted)]


def gaps(found, wanted) -> list[float]:
    return [((a - b).norm() / b.norm()).item() for a, b in zip(found, wanted, strict=True)]


@pytest.mark.parametrize("kept", KEPT.values(), ids=KEPT)
@pytest.mark.parametrize("divergence", ["kl", "cross_entropy"])
@pytest.mark.parametrize("direction", ["both", "text_to_image", "image_to_text"])
@pytest.mark.parametrize("detach_teacher", [True, False])
def test_distillation_in_tiles_is_the_plain_one(kept, divergence, direction, detach_teacher):
    options = {"divergence": divergence, "direction": direction, "detach_teacher": detach_teacher}
    pools = (1, "mean"), (2, "mean"), (2, "max"), (2, "min")
    for temperature, (teachers, pool), present in itertools.product(
        (0.005, 0.1), pools, (None, PRESENT)
    ):
        reduction = "sum" if present is None else "mean"
        options |= {"temperature": temperature, "reduction": reduction, "pool": pool}
        inputs = sides(teachers)
        with mock.patch.object(tiled_divergence, "KEPT", kept):
            found = step(SimilarityDistillationLoss(tiled="always", **options), inputs, present)
        wanted = step(SimilarityDistillationLoss(tiled="never", **options), inputs, present)
        assert max(gaps(found, wanted)) < 1e-12


@pytest.mark.parametrize("pool", ["max", "min"])
def test_equal_teachers_share_the_gradient_in_tiles_as_in_the_plain_form(pool):
    *student, text, image = sides()
    other = [side.detach().clone().requires_grad_() for side in (text, image)]
    found = []
    for way in ("always", "never"):
        loss = SimilarityDistillationLoss(tiled=way, pool=pool, detach_teacher=False)
        found.append(step(loss, [*student, text, image, *other]))
    assert max(gaps(*found)) < 1e-12


@pytest.mark.parametrize("divergence", ["kl", "cross_entropy"])
@pytest.mark.parametrize("temperature", [0.07, 0.01])
def test_distillation_in_tiles_of_float32_is_exact_to_a_millionth(divergence, temperature):
    options = {"divergence": divergence, "detach_teacher": False, "temperature": temperature}
    inputs = sides(rows=300, dtype=torch.float32)
    with mock.patch.multiple(score_tiles, ROWS=64, COLUMNS=100):
        found = step(SimilarityDistillationLoss(tiled="always", **options), inputs)
    wide = [side.detach().double().requires_grad_() for side in inputs]
    wanted = step(SimilarityDistillationLoss(tiled="never", **options), wide)
    if temperature > 0.02:
        assert max(gaps(found, wanted)) < 1e-6
        return
    plain = step(SimilarityDistillationLoss(tiled="never", **options), inputs)
    for many, one in zip(gaps(found, wanted), gaps(plain, wanted)):  # of scores of 100
        assert many < max(1.5 * one, 1e-6)


@pytest.mark.parametrize("direction", ["both", "left_to_right", "right_to_left"])
@pytest.mark.parametrize("detach_teacher", [True, False])
@pytest.mark.parametrize("teacher_temperature", [None, 0.03, 0.01])
def test_relations_in_tiles_are_the_plain_ones(direction, detach_teacher, teacher_temperature):
    inputs = sides()
    wanted = inputs[:2] if detach_teacher else inputs
    for reduction in ("mean", "sum"):
        options = {
            "direction": direction,
            "detach_teacher": detach_teacher,
            "teacher_temperature": teacher_temperature,
            "reduction": reduction,
        }
        found = []
        for way in ("always", "never"):
            value = RelationDistillationLoss(tiled=way, **options)(*inputs)
            found.append([value, *torch.autograd.grad(value, wanted)])
        assert max(gaps(*found)) < 1e-12
    RelationDistillationLoss(tiled="always", **options)(*inputs).backward()
    assert [side.grad is None for side in inputs[2:]] == [detach_teacher] * 2


def test_a_relation_inside_one_kind_is_the_plain_one_in_tiles():
    image, text, source, _ = sides()
    found = []
    for way in ("always", "never"):
        value = RelationDistillationLoss(tiled=way)(image, image, source, source)
        found.append([value, *torch.autograd.grad(value, image)])
    assert max(gaps(*found)) < 1e-12
    assert text.grad is None


def test_relations_with_a_mix_or_a_bonus_stay_plain_and_tiles_for_always_are_refused():
    inputs, bonus = sides(), torch.zeros(ROWS, ROWS)
    small = mock.patch.object(score_tiles, "PAYS", 1)
    with small, mock.patch.object(relation_distillation, "divergences") as tiles:
        RelationDistillationLoss(teacher_mix=0.2)(*inputs)
        RelationDistillationLoss()(*inputs, bonus=bonus)
        assert not tiles.called
        RelationDistillationLoss()(*inputs)
        assert tiles.called
    with pytest.raises(ValueError, match=r"teacher_mix=0.2 .*tiled='always'.*leave `tiled` out"):
        RelationDistillationLoss(tiled="always", teacher_mix=0.2)
    with pytest.raises(ValueError, match=r"bonus .*tiled='always'.*leave `tiled` out"):
        RelationDistillationLoss(tiled="always")(*inputs, bonus=bonus)


def test_a_detached_teacher_gets_no_gradient_in_tiles():
    text, image, *teacher = sides()
    loss = SimilarityDistillationLoss(tiled="always")
    targets = loss.targets([tuple(teacher)])
    assert isinstance(targets, TeacherRows)
    loss(text, image, targets).backward()
    assert [side.grad for side in teacher] == [None, None]
    assert text.grad.norm() > 0
    assert image.grad.norm() > 0


def test_one_side_may_be_student_and_teacher():
    image, text, _ = pairs(ROWS)
    taught = pairs(ROWS, seed=3)[0]
    found = []
    for way in ("always", "never"):
        loss = SimilarityDistillationLoss(
            tiled=way, divergence="cross_entropy", detach_teacher=False
        )
        both = image.detach().clone().requires_grad_()
        value = loss(text, both, loss.targets([(taught, both)]))
        found.append(torch.autograd.grad(value, both)[0])
    assert max(gaps(found[:1], found[1:])) < 1e-12


def test_what_has_no_tiled_form_stays_plain_and_tiles_for_always_are_refused():
    teachers = [(text, image) for text, image in zip(*[iter(sides(2)[2:])] * 2)]
    with mock.patch.object(score_tiles, "PAYS", 1):
        loss = SimilarityDistillationLoss(divergence="smooth_l1")
        assert isinstance(loss.targets(teachers), Targets)
    with pytest.raises(ValueError, match=r"smooth_l1 .*tiled='always'.*leave `tiled` out"):
        SimilarityDistillationLoss(divergence="smooth_l1", tiled="always")
    assert isinstance(SimilarityDistillationLoss().targets(teachers), Targets)  # a small batch
    with mock.patch.object(score_tiles, "PAYS", ROWS**2):
        assert isinstance(SimilarityDistillationLoss().targets(teachers), TeacherRows)
        assert isinstance(SimilarityDistillationLoss(tiled="never").targets(teachers), Targets)


def test_distillation_gradients_in_tiles_match_finite_differences():
    loss = SimilarityDistillationLoss(temperature=0.5, tiled="always", detach_teacher=False)
    assert torch.autograd.gradcheck(
        lambda a, b, c, d: loss(a, b, loss.targets([(c, d)])), sides(rows=8), atol=1e-6
    )


def test_backward_of_distillation_may_run_twice_but_is_not_differentiated_twice():
    loss, (text, image, *teacher) = SimilarityDistillationLoss(tiled="always"), sides()
    value = loss(text, image, loss.targets([tuple(teacher)]))
    one, other = (torch.autograd.grad(value, text, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(one, other)
    with pytest.raises(RuntimeError, match="differentiated twice"):
        torch.autograd.grad(value, text, create_graph=True)


def test_distillation_in_tiles_ignores_autocast_forward_and_backward():
    inputs, loss = sides(dtype=torch.float32), SimilarityDistillationLoss(tiled="always")
    plain = step(loss, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        cast = step(loss, inputs)
    assert all(torch.equal(a, b) and b.dtype == torch.float32 for a, b in zip(plain, cast))


def test_nobody_present_costs_nothing_in_tiles():
    loss = SimilarityDistillationLoss(tiled="always")
    value, *gradients = step(loss, sides(), torch.zeros(ROWS, dtype=torch.bool))
    assert value.item() == 0.0
    assert not any(gradient.any() for gradient in gradients)


def test_targets_of_another_batch_are_refused_in_tiles():
    text, image, *teacher = sides()
    loss = SimilarityDistillationLoss(tiled="always")
    with pytest.raises(ValueError, match=r"targets of 37 rows are of another batch .* 36"):
        loss(text[:36], image[:36], loss.targets([tuple(teacher)]))


@pytest.mark.parametrize("detach_teacher", [True, False])
@pytest.mark.parametrize("options", [{}, {"pool": "max"}, {"temperature": 0.005}], ids=str)
def test_no_distribution_of_the_batch_is_made(detach_teacher, options):
    made = {}
    for way in ("always", "never"):
        loss = SimilarityDistillationLoss(tiled=way, detach_teacher=detach_teacher, **options)
        inputs = sides(2, rows=200)
        with mock.patch.multiple(score_tiles, ROWS=32, COLUMNS=50), Largest() as mode:
            step(loss, inputs)
        made[way] = mode.numbers
    assert made["always"] <= max(32 * 50, 200 * 9)  # a tile; teachers side by side
    assert made["never"] >= 200 * 200
