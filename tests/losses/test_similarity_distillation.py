"""Distillation of similarities is what NRCCR and C2KD say, in every form that the two have."""

import math

import pytest
import torch
from pairs import pairs
from relations import STUDENT, TEACHERS, embeddings, slow_distillation

from xlcm.losses.info_nce import InfoNCELoss
from xlcm.losses.similarity_distillation import SimilarityDistillationLoss, Targets

DIVERGENCES = ["kl", "cross_entropy", "smooth_l1"]
POOLS = ["max", "min", "mean"]
LN_4 = math.log(4)


def teachers(rows: int = 8, dtype: torch.dtype = torch.float64):
    """Three teachers of different widths."""
    return [pairs(rows=rows, width=w, dtype=dtype, seed=w)[:2] for w in (3, 6, 4)]


def c2kd(temperature: float = 0.1, **options) -> SimilarityDistillationLoss:
    return SimilarityDistillationLoss(temperature=temperature, reduction="sum", **options)


def nrccr(**options) -> SimilarityDistillationLoss:
    options = {"detach_teacher": False, **options}
    return SimilarityDistillationLoss(divergence="cross_entropy", **options)


def distil(loss, student, *taught):
    """Value between similarity matrices."""
    return loss(*embeddings(student), loss.targets([embeddings(matrix) for matrix in taught]))


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("direction", ["both", "text_to_image", "image_to_text"])
def test_similarity_distillation_matches_slow_loops(divergence, pool, reduction, direction):
    text, image, _ = pairs()
    options = {
        "temperature": 0.3,
        "divergence": divergence,
        "pool": pool,
        "reduction": reduction,
        "direction": direction,
    }
    loss = SimilarityDistillationLoss(**options)
    slow = slow_distillation(text, image, teachers(), **options)
    assert loss(text, image, loss.targets(teachers())).item() == pytest.approx(slow, rel=1e-10)


@pytest.mark.parametrize(
    ("pool", "rows", "columns"),
    [
        ("max", 0.0066798091, 0.0),
        ("min", None, None),
        ("mean", 0.0100165168, 0.0032758153),
    ],
)
def test_c2kd_pools_by_true_maximum_minimum_and_mean(pool, rows, columns):
    value = {"max": 0.0066798091, "min": 0.0510755627, "mean": 0.0132923320}[pool]
    assert distil(c2kd(pool=pool), STUDENT, *TEACHERS).item() == pytest.approx(value, abs=5e-11)
    if rows is not None:
        by_rows = distil(c2kd(pool=pool, direction="text_to_image"), STUDENT, *TEACHERS)
        by_columns = distil(c2kd(pool=pool, direction="image_to_text"), STUDENT, *TEACHERS)
        assert by_rows.item() == pytest.approx(rows, abs=5e-11)
        assert by_columns.item() == pytest.approx(columns, abs=5e-11)


@pytest.mark.parametrize(
    ("pool", "total"), [("max", 0.0348046620), ("min", 0.0570025388), ("mean", 0.0381109235)]
)
def test_c2kd_total_of_english_alone_counts_its_contrastive_term_twice(pool, total):
    text, image = embeddings(STUDENT)
    nce = InfoNCELoss(reduction="sum")(image, text, group=torch.arange(2), scale=10.0)
    distilled = distil(c2kd(pool=pool), STUDENT, *TEACHERS)
    assert (0.5 * nce + 0.5 * nce + 0.5 * distilled).item() == pytest.approx(total, abs=5e-11)


def test_c2kd_student_equal_to_its_teacher_has_no_loss_and_no_gradient():
    text, image, _ = pairs()
    inputs = (text.requires_grad_(), image.requires_grad_())
    loss = c2kd()
    value = loss(text, image, loss.targets([(text, image)]))
    assert value.item() == pytest.approx(0.0, abs=1e-15)
    assert all(g.abs().max() < 1e-14 for g in torch.autograd.grad(value, inputs))


def test_c2kd_of_a_teacher_without_an_opinion_and_a_perfect_student():
    value = distil(c2kd(temperature=1.0), torch.eye(2), torch.full((2, 2), 0.4))
    assert value.item() == pytest.approx(0.2402290139, abs=5e-11)


@pytest.mark.parametrize("divergence", ["kl", "cross_entropy"])
def test_c2kd_does_not_see_a_constant_on_all_similarities(divergence):
    student, teacher = torch.tensor(STUDENT), torch.tensor(TEACHERS[0])
    loss = c2kd(divergence=divergence)
    value = distil(loss, student, teacher).item()
    assert distil(loss, student + 0.3, teacher).item() == pytest.approx(value, rel=1e-6)
    assert distil(loss, student, teacher - 0.2).item() == pytest.approx(value, rel=1e-6)


def test_c2kd_sees_a_constant_on_one_row_in_its_columns_only():
    student, teacher = torch.tensor(STUDENT), torch.tensor(TEACHERS[0])
    raised = student + torch.tensor([[0.3], [0.0]])
    rows, columns = c2kd(direction="text_to_image"), c2kd(direction="image_to_text")
    same, other = (
        [distil(loss, matrix, teacher).item() for matrix in (student, raised)]
        for loss in (rows, columns)
    )
    assert same[1] == pytest.approx(same[0], rel=1e-6)
    assert other[1] != pytest.approx(other[0], rel=1e-2)


@pytest.mark.parametrize("divergence", ["kl", "cross_entropy"])
def test_c2kd_gradient_is_the_difference_of_the_softmaxes(divergence):
    text, image = embeddings(STUDENT)
    text.requires_grad_()
    teacher = torch.tensor(TEACHERS[0], dtype=torch.float64)
    loss = c2kd(divergence=divergence)
    loss(text, image, loss.targets([embeddings(teacher)])).backward()
    gap = (
        (text / 0.1).softmax(1)
        - (teacher / 0.1).softmax(1)
        + (text / 0.1).softmax(0)
        - (teacher / 0.1).softmax(0)
    )
    torch.testing.assert_close(text.grad, gap.detach() / (2 * 0.1), rtol=1e-10, atol=1e-12)


def test_c2kd_teachers_get_no_gradient_and_both_sides_of_the_student_do():
    text, image, _ = pairs()
    taught = [tuple(side.requires_grad_() for side in teacher) for teacher in teachers()]
    loss = c2kd()
    targets = loss.targets(taught)
    assert not targets.text.requires_grad
    assert not targets.image.requires_grad
    loss(text.requires_grad_(), image.requires_grad_(), targets).backward()
    assert text.grad.norm() > 0
    assert image.grad.norm() > 0
    assert all(side.grad is None for teacher in taught for side in teacher)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_c2kd_order_of_teachers_and_of_rows_does_not_matter(pool, divergence):
    text, image, _ = pairs()
    loss = c2kd(pool=pool, divergence=divergence)
    value = loss(text, image, loss.targets(teachers())).item()
    turned = loss.targets(teachers()[::-1])
    assert loss(text, image, turned).item() == pytest.approx(value, rel=1e-12)
    order = torch.tensor([3, 0, 7, 1, 5, 2, 6, 4])
    permuted = loss.targets([(t[order], v[order]) for t, v in teachers()])
    assert loss(text[order], image[order], permuted).item() == pytest.approx(value, rel=1e-12)


def test_c2kd_of_one_teacher_is_the_same_for_every_pool():
    text, image, _ = pairs()
    values = []
    for pool in POOLS:
        loss = c2kd(pool=pool)
        values.append(loss(text, image, loss.targets(teachers()[:1])).item())
    assert values[0] == values[1] == values[2]


def test_c2kd_cross_entropy_is_kl_and_the_entropy_of_the_teacher():
    text, image, _ = pairs()
    taught = teachers()
    kl, cross_entropy = c2kd(), c2kd(divergence="cross_entropy")
    targets = kl.targets(taught)
    entropy = -sum((side.exp() * side).sum(1).mean() for side in targets)
    gap = cross_entropy(text, image, targets) - kl(text, image, targets)
    assert gap.item() == pytest.approx(entropy.item(), rel=1e-12)


def test_c2kd_of_a_row_of_zeros_is_finite():
    text, image, _ = pairs()
    text[2] = 0.0
    loss = c2kd()
    assert math.isfinite(loss(text, image, loss.targets(teachers())).item())


def test_teachtext_smooth_l1_is_the_mean_over_all_entries():
    loss = SimilarityDistillationLoss(divergence="smooth_l1", reduction="sum", temperature=0.1)
    assert distil(loss, [[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 3.0]]).item() == 2.0 / 4
    targets = loss.targets([embeddings(TEACHERS[0])])
    torch.testing.assert_close(targets.text, torch.tensor(TEACHERS[0], dtype=torch.float64))


def test_nrccr_of_equal_student_and_teacher_is_the_entropy_without_gradient():
    text, image, _ = pairs()
    text.requires_grad_()
    loss = nrccr(detach_teacher=True)
    targets = loss.targets([(text, image)])
    value = loss(text, image, targets)
    entropy = -sum((side.exp() * side).sum(1).mean() for side in targets) / 2
    assert value.item() == pytest.approx(entropy.item(), rel=1e-12)
    assert torch.autograd.grad(value, text)[0].abs().max() < 1e-14


def test_nrccr_of_equal_vectors_is_the_logarithm_of_the_batch():
    same = torch.eye(5, dtype=torch.float64)[:1].expand(4, -1)
    loss = nrccr()
    assert loss(same, same, loss.targets([(same, same)])).item() == pytest.approx(LN_4, rel=1e-12)
    assert loss(same[:1], same[:1], loss.targets([(same[:1], same[:1])])).item() == 0.0


def test_nrccr_images_learn_through_the_teacher_and_its_text_does_not():
    text, image, _ = pairs()
    teacher = pairs(seed=4)[0].requires_grad_()
    gradients = []
    for detach in (True, False):
        image = image.detach().requires_grad_()
        loss = nrccr(detach_teacher=detach)
        loss(text, image, loss.targets([(teacher.detach(), image)])).backward()
        gradients.append(image.grad)
    assert teacher.grad is None
    assert (gradients[0] - gradients[1]).norm() > 1e-3 * gradients[0].norm()


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("pool", POOLS)
def test_similarity_distillation_gradients_match_finite_differences(divergence, pool):
    loss = SimilarityDistillationLoss(
        temperature=0.5, divergence=divergence, pool=pool, detach_teacher=False
    )
    inputs = [
        side.requires_grad_()
        for side in (*pairs(rows=4)[:2], *(s for t in teachers(rows=4)[:2] for s in t))
    ]
    assert torch.autograd.gradcheck(
        lambda text, image, a, b, c, d: loss(text, image, loss.targets([(a, b), (c, d)])),
        inputs,
        atol=1e-6,
    )


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_similarity_distillation_under_autocast_is_exactly_that_of_float32(divergence):
    results = []
    for enabled in (False, True):
        text, image, _ = pairs(rows=32, width=16, dtype=torch.float32)
        inputs = (text.requires_grad_(), image.requires_grad_())
        loss = SimilarityDistillationLoss(divergence=divergence)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            targets = loss.targets(teachers(rows=32, dtype=torch.float32))
            value = loss(text, image, targets)
        results.append([value, *targets, *torch.autograd.grad(value, inputs)])
    for plain, autocast in zip(*results):
        assert autocast.dtype == torch.float32
        assert torch.equal(plain, autocast)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_similarity_distillation_of_half_precision_is_computed_in_float32(half):
    text, image, _ = pairs(dtype=half)
    loss = SimilarityDistillationLoss()
    targets = loss.targets(teachers(dtype=half))
    wide = loss.targets([(t.float(), v.float()) for t, v in teachers(dtype=half)])
    assert targets.text.dtype == targets.image.dtype == torch.float32
    assert torch.equal(targets.text, wide.text)
    value = loss(text, image, targets)
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(text.float(), image.float(), wide))


def test_similarity_distillation_refuses_what_it_can_not_compute():
    text, image, _ = pairs()
    loss = SimilarityDistillationLoss()
    targets = loss.targets(teachers())
    with pytest.raises(ValueError, match="no teacher"):
        loss.targets([])
    with pytest.raises(ValueError, match=r"teachers\[1\].text \(7, 5\).*one batch"):
        loss.targets([(text, image), (text[:7], image[:7])])
    with pytest.raises(ValueError, match=r"teachers\[0\].image \(8, 4\).*widths"):
        loss.targets([(text, image[:, :4])])
    with pytest.raises(ValueError, match=r"targets.text \(8, 8\).*another batch.*\(7, 7\)"):
        loss(text[:7], image[:7], targets)
    with pytest.raises(ValueError, match=r"targets\.image"):
        loss(text, image, Targets(targets.text, targets.image[:, :7]))
    with pytest.raises(ValueError, match="without rows"):
        loss(text[:0], image[:0], targets)
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        SimilarityDistillationLoss(temperature=0.0)
