"""Distillation of relations is the KL divergence between two relations, whatever the sides are."""

import math

import pytest
import torch
from pairs import pairs, similarities
from relations import STUDENT, TEACHERS, embeddings, slow_rows, transposed

from xlcm.losses.relation_distillation import RelationDistillationLoss
from xlcm.losses.similarity_distillation import SimilarityDistillationLoss

DIRECTIONS = ["both", "left_to_right", "right_to_left"]
MIXES = [0.0, 0.3, 1.0]


def sides(rows: int = 8, dtype: torch.dtype = torch.float64):
    """Student and teacher, of different widths."""
    student = pairs(rows=rows, dtype=dtype)[:2]
    return (*student, *pairs(rows=rows, width=7, dtype=dtype, seed=9)[:2])


def slow(left, right, teacher_left, teacher_right, temperature, direction, mix, reduction):
    student, teacher = similarities(left, right), similarities(teacher_left, teacher_right)
    terms = []
    if direction != "right_to_left":
        terms.append(slow_rows(teacher, student, temperature, "kl", mix))
    if direction != "left_to_right":
        turned = transposed(teacher), transposed(student)
        terms.append(slow_rows(*turned, temperature, "kl", mix))
    return sum(terms) / (len(terms) if reduction == "mean" else 1)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_relation_distillation_matches_slow_loops(direction, mix, reduction):
    loss = RelationDistillationLoss(
        temperature=0.3, direction=direction, teacher_mix=mix, reduction=reduction
    )
    wanted = slow(*sides(), 0.3, direction, mix, reduction)
    assert loss(*sides()).item() == pytest.approx(wanted, rel=1e-10)


def test_relation_distillation_without_a_mix_is_similarity_distillation_by_kl():
    left, right, *teacher = sides()
    similarity = SimilarityDistillationLoss()
    wanted = similarity(left, right, similarity.targets([tuple(teacher)])).item()
    assert RelationDistillationLoss()(*sides()).item() == pytest.approx(wanted, rel=1e-10)


def test_relation_distillation_of_equal_relations_has_no_loss_and_no_gradient():
    left, right, _ = pairs()
    inputs = (left.requires_grad_(), right.requires_grad_())
    value = RelationDistillationLoss()(left, right, left, right)
    assert value.item() == pytest.approx(0.0, abs=1e-14)
    assert all(g.abs().max() < 1e-13 for g in torch.autograd.grad(value, inputs))


@pytest.mark.parametrize("mix", MIXES)
def test_relation_distillation_of_one_pair_is_zero(mix):
    assert RelationDistillationLoss(teacher_mix=mix)(*sides(rows=1)).item() == 0.0


def test_relation_distillation_of_a_uniform_student_and_a_one_hot_teacher_is_log_of_the_batch():
    same = torch.eye(5, dtype=torch.float64)[:1].expand(6, -1)
    sure = 100 * torch.eye(6, dtype=torch.float64)
    value = RelationDistillationLoss()(same, same, sure, torch.eye(6, dtype=torch.float64))
    assert value.item() == pytest.approx(math.log(6), rel=1e-12)
    told = RelationDistillationLoss(teacher_mix=1.0)(same, same, same, same)
    assert told.item() == pytest.approx(math.log(6), rel=1e-12)
    assert RelationDistillationLoss()(same, same, same, same).item() == pytest.approx(0, abs=1e-15)


def test_relation_distillation_is_never_negative():
    for seed in range(5):
        student, teacher = pairs(seed=seed)[:2], pairs(seed=seed + 50)[:2]
        assert RelationDistillationLoss()(*student, *teacher).item() > 0


@pytest.mark.parametrize(
    ("direction", "shift"), [("left_to_right", [[0.3], [-0.2]]), ("right_to_left", [[0.3, -0.2]])]
)
def test_relation_distillation_does_not_see_a_constant_on_a_row_or_a_column(direction, shift):
    teacher = embeddings(TEACHERS[0])
    student = torch.tensor(STUDENT, dtype=torch.float64)
    shifted = student + torch.tensor(shift, dtype=torch.float64)
    for loss, equal in (
        (RelationDistillationLoss(direction=direction), True),
        (RelationDistillationLoss(), False),
    ):
        one, other = (loss(*embeddings(s), *teacher).item() for s in (student, shifted))
        assert (other == pytest.approx(one, rel=1e-9)) is equal


@pytest.mark.parametrize("mix", MIXES)
def test_relation_distillation_sends_no_gradient_to_the_teacher(mix):
    inputs = [side.requires_grad_() for side in sides()]
    RelationDistillationLoss(teacher_mix=mix)(*inputs).backward()
    assert all(side.grad.norm() > 0 for side in inputs[:2])
    assert all(side.grad is None for side in inputs[2:])


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("mix", MIXES)
def test_relation_distillation_gradients_match_finite_differences(direction, mix):
    left, right, *teacher = sides(rows=4)
    loss = RelationDistillationLoss(temperature=0.5, direction=direction, teacher_mix=mix)
    inputs = (left.requires_grad_(), right.requires_grad_())
    assert torch.autograd.gradcheck(lambda a, b: loss(a, b, *teacher), inputs, atol=1e-6)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("mix", MIXES[:2])
def test_a_teacher_that_is_not_detached_has_the_same_loss_and_the_gradient_of_differences(
    direction, mix
):
    options = {"temperature": 0.5, "direction": direction, "teacher_mix": mix}
    loss = RelationDistillationLoss(**options, detach_teacher=False)
    given = sides(rows=4)
    assert loss(*given).item() == pytest.approx(
        RelationDistillationLoss(**options)(*given).item(), rel=1e-12
    )
    inputs = [side.requires_grad_() for side in given]
    assert torch.autograd.gradcheck(loss, inputs, atol=1e-6)


def test_a_sure_teacher_that_is_not_detached_has_finite_gradients():
    inputs = [side.float().requires_grad_() for side in sides()]
    loss = RelationDistillationLoss(teacher_temperature=0.001, detach_teacher=False)
    assert ((inputs[2] @ inputs[3].T) / 0.001).softmax(1).min() == 0  # or nothing is shown
    loss(*inputs).backward()
    assert all(side.grad.isfinite().all() for side in inputs)


def test_teacher_and_student_may_have_temperatures_of_their_own():
    student, teacher = similarities(*sides()[:2]), similarities(*sides()[2:])
    scaled = [[x * 0.3 / 0.8 for x in row] for row in teacher]
    wanted = sum(
        slow_rows(t, s, 0.3, "kl") / 2
        for t, s in ((scaled, student), (transposed(scaled), transposed(student)))
    )
    loss = RelationDistillationLoss(temperature=0.3, teacher_temperature=0.8)
    assert loss(*sides()).item() == pytest.approx(wanted, rel=1e-10)


def test_a_bonus_is_added_to_the_teachers_similarities_and_gets_no_gradient():
    left, right, teacher_left, teacher_right = sides()
    bonus = torch.rand(8, 8, dtype=torch.float64, requires_grad=True)
    eye = torch.eye(8, dtype=torch.float64)
    loss = RelationDistillationLoss(temperature=0.3, detach_teacher=False)
    found = loss(left, right, teacher_left.requires_grad_(), teacher_right, bonus)
    wanted = loss(left, right, teacher_left @ teacher_right.T + bonus, eye)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-10)
    found.backward()
    assert bonus.grad is None
    assert teacher_left.grad.norm() > 0
    with pytest.raises(ValueError, match=r"bonus \(7, 8\).*\(8, 8\)"):
        loss(left, right, teacher_left, teacher_right, bonus[:7])


def test_relation_distillation_inside_one_kind_takes_a_side_twice():
    left, _, teacher, _ = sides()
    loss = RelationDistillationLoss(temperature=0.3)
    wanted = slow(left, left, teacher, teacher, 0.3, "both", 0.0, "mean")
    assert loss(left, left, teacher, teacher).item() == pytest.approx(wanted, rel=1e-10)


def test_relation_distillation_under_autocast_is_exactly_that_of_float32():
    results = []
    for enabled in (False, True):
        left, right, *teacher = sides(dtype=torch.float32)
        inputs = (left.requires_grad_(), right.requires_grad_())
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            value = RelationDistillationLoss()(left, right, *teacher)
        results.append([value, *torch.autograd.grad(value, inputs)])
    for plain, autocast in zip(*results):
        assert autocast.dtype == torch.float32
        assert torch.equal(plain, autocast)


def test_relation_distillation_refuses_what_it_can_not_compute():
    left, right, *teacher = sides()
    loss = RelationDistillationLoss()
    with pytest.raises(ValueError, match=r"right \(8, 4\).*widths"):
        loss(left, right[:, :4], *teacher)
    with pytest.raises(ValueError, match=r"teacher_left \(7, 7\).*one batch"):
        loss(left, right, teacher[0][:7], teacher[1][:7])
    with pytest.raises(ValueError, match="without rows"):
        loss(*(side[:0] for side in sides()))
    with pytest.raises(ValueError, match=r"teacher_mix must be in \[0, 1\], got 1.5"):
        RelationDistillationLoss(teacher_mix=1.5)
    with pytest.raises(ValueError, match="temperature must be above 0, got -1"):
        RelationDistillationLoss(temperature=-1.0)
    with pytest.raises(ValueError, match="teacher_temperature must be above 0, got 0"):
        RelationDistillationLoss(teacher_temperature=0.0)
    with pytest.raises(ValueError, match=r"teacher_mix=1 leaves nothing.*detach_teacher=true"):
        RelationDistillationLoss(teacher_mix=1.0, detach_teacher=False)
