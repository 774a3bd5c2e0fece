"""C2KD whole: totals in slow loops, pooled teachers, and what its options change."""

import math
import re

import pytest
import small_models
import torch
from small_models import model, part, translations

from xlcm.config import ConfigError, build
from xlcm.methods.c2kd import C2KD
from xlcm.methods.translate_train import TranslateTrain
from xlcm.models import teacher as teachers
from xlcm.registry import methods

LANGS = ("de", "zh")
ALL = ("source", *LANGS)
S = torch.tensor([[0.8, 0.1], [0.3, 0.6]], dtype=torch.float64)
Q1 = torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=torch.float64)
Q2 = torch.tensor([[0.5, 0.3], [0.4, 0.6]], dtype=torch.float64)


@pytest.fixture(autouse=True)
def _small_teachers(monkeypatch):
    monkeypatch.setattr(
        teachers.DualEncoder, "from_pretrained", staticmethod(lambda name: small_models.saved(name))
    )


def method(*, opened=("small1", "small2"), temperature_of_model=0.1, **options) -> C2KD:
    retriever = model(temperature=temperature_of_model)
    return C2KD(retriever, teachers=list(opened), **options).double()


def data(rows=8):
    return translations(*LANGS, teachers=2, rows=rows)


# -- the formulas, row by row --------------------------------------------------------------------


def softmax(logits):
    partition = sum(math.exp(x) for x in logits)
    return [math.exp(x) / partition for x in logits]


def transposed(matrix):
    return [list(column) for column in zip(*matrix)]


def slow_contrastive(matrix, tau, ids):
    """NCE of both directions, added; captions of one image share the mass."""
    total = 0.0
    for side in (matrix, transposed(matrix)):
        for i, row in enumerate(side):
            probability = softmax([x / tau for x in row])
            right = [j for j in range(len(row)) if ids[j] == ids[i]]
            total -= sum(math.log(probability[j]) for j in right) / len(right) / len(side)
    return total


def slow_divergence(student, teacher, temperature):
    total = 0.0
    for left, right in ((student, teacher), (transposed(student), transposed(teacher))):
        for s, q in zip(left, right):
            mine, wanted = (
                softmax([x / temperature for x in s]),
                softmax([x / temperature for x in q]),
            )
            total += sum(p * math.log(p / m) for p, m in zip(wanted, mine)) / len(left)
    return total


def slow_smooth(student, teacher):
    gaps = [abs(s - q) for row, other in zip(student, teacher) for s, q in zip(row, other)]
    return sum(0.5 * d * d if d < 1 else d - 0.5 for d in gaps) / len(gaps)


def slow_pool(matrices, how):
    pool = {"max": max, "min": min, "mean": lambda values: sum(values) / len(values)}[how]
    return [[pool(entries) for entries in zip(*rows)] for rows in zip(*matrices)]


def cosines(rows):
    """The student's matrix of each language, and each teacher's, as lists."""
    students = {n: (rows[f"targets.{n}" if n in LANGS else n] @ rows["image"].T).tolist()
                for n in ALL}  # fmt: skip
    taught = [(rows[f"teacher{k}.text"] @ rows[f"teacher{k}.image"].T).tolist() for k in (0, 1)]
    return students, taught


@pytest.mark.parametrize("pool", ["max", "min", "mean"])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_c2kd_total_is_the_published_sum_written_out_in_loops(pool, share):
    trained = method(pool=pool, contrastive_share=share)
    rows = trained.encode(data())
    students, taught = cosines(rows)
    target, ids = slow_pool(taught, pool), rows["ids"].tolist()
    wanted = share * slow_contrastive(students["source"], 0.1, ids)
    for matrix in students.values():
        wanted += share * slow_contrastive(matrix, 0.1, ids)
        wanted += (1 - share) * slow_divergence(matrix, target, 0.1)
    terms = trained.losses(rows)
    assert set(terms) == {f"{kind}.{n}" for kind in ("contrastive", "distillation") for n in ALL}
    assert trained.total(terms).item() == pytest.approx(wanted, rel=1e-6)


def bare(student, *taught):
    """Encoded rows whose similarities are the given matrices; texts are rows."""
    eye = torch.eye(len(student), dtype=torch.float64)
    rows = {"ids": torch.arange(len(student)), "image": eye, "source": student}
    for number, matrix in enumerate(taught):
        rows |= {f"teacher{number}.text": matrix, f"teacher{number}.image": eye}
    return rows


@pytest.mark.parametrize(
    ("pool", "value"), [("max", 0.0348046620), ("min", 0.0570025388), ("mean", 0.0381109235)]
)
def test_c2kd_total_of_one_language_has_its_known_value(pool, value):
    trained = method(pool=pool)
    found = trained.total(trained.losses(bare(S, Q1, Q2))).item()
    assert found == pytest.approx(value, abs=2e-9)
    once = method(pool=pool, count_source_twice=False)
    fewer = once.total(once.losses(bare(S, Q1, Q2))).item()
    assert found - fewer == pytest.approx(0.5 * 0.0314647575, rel=1e-6)


def test_with_lambda_1_the_total_is_translate_train_and_the_source_once_more():
    trained = method(contrastive_share=1.0)
    assert trained.teachers == []
    assert trained.extra_texts == {}
    plain = TranslateTrain(model(temperature=0.1)).double()
    terms, found = plain(data()), trained(data())
    assert set(found) == {f"contrastive.{n}" for n in ALL}
    wanted = plain.total(terms) + terms["contrastive.source"]
    assert trained.total(found).item() == pytest.approx(wanted.item(), rel=1e-9)


def test_with_lambda_0_the_total_is_distillation_alone():
    trained = method(contrastive_share=0.0)
    rows = trained.encode(data())
    students, taught = cosines(rows)
    target = slow_pool(taught, "max")
    terms = trained.losses(rows)
    assert set(terms) == {f"distillation.{n}" for n in ALL}
    wanted = sum(slow_divergence(matrix, target, 0.1) for matrix in students.values())
    assert trained.total(terms).item() == pytest.approx(wanted, rel=1e-6)
    assert not trained.retriever.log_scale.requires_grad  # nothing would train it


def test_of_one_teacher_all_ways_of_pooling_are_the_same():
    totals = []
    for pool in ("max", "min", "mean"):
        trained = method(opened=["small1"], pool=pool)
        totals.append(trained.total(trained(data())).item())
    assert totals == pytest.approx([totals[0]] * 3, rel=1e-12)


@pytest.mark.parametrize("pool", ["max", "min", "mean"])
def test_the_order_of_teachers_and_of_rows_changes_nothing(pool):
    one, other = method(pool=pool), method(opened=("small2", "small1"), pool=pool)
    total = one.total(one(data())).item()
    assert other.total(other(data())).item() == pytest.approx(total, rel=1e-12)
    shuffled = part(data(), torch.tensor([3, 0, 7, 1, 6, 2, 5, 4]))
    assert one.total(one(shuffled)).item() == pytest.approx(total, rel=1e-9)


# -- variants ------------------------------------------------------------------------------------


def test_smooth_l1_compares_the_cosines_once():
    trained = method(divergence="smooth_l1", contrastive_share=0.1)
    rows = trained.encode(data())
    students, taught = cosines(rows)
    terms = trained.losses(rows)
    for name, matrix in students.items():
        wanted = slow_smooth(matrix, slow_pool(taught, "max"))
        assert terms[f"distillation.{name}"].item() == pytest.approx(wanted, rel=1e-6)
        assert trained.weights[f"distillation.{name}"] == pytest.approx(0.9)


def test_cross_entropy_has_the_gradient_of_kl():
    gradients = []
    for divergence in ("kl", "cross_entropy"):
        trained = method(divergence=divergence, contrastive_share=0.0)
        trained.total(trained(data())).backward()
        gradients.append(trained.retriever.image_head.linear.weight.grad)
    torch.testing.assert_close(*gradients)


def test_multitask_adds_one_distillation_a_teacher():
    trained = method(targets="multitask", contrastive_share=0.3)
    rows = trained.encode(data())
    students, taught = cosines(rows)
    terms = trained.losses(rows)
    for name, matrix in students.items():
        wanted = sum(slow_divergence(matrix, target, 0.1) for target in taught)
        assert terms[f"distillation.{name}"].item() == pytest.approx(wanted, rel=1e-6)
        assert trained.weights[f"distillation.{name}"] == pytest.approx(0.7)


@pytest.mark.parametrize("mode", ["learned", "learned_pools"])
def test_learned_weights_begin_alike_are_trained_and_replace_the_share(mode):
    trained = method(targets=mode, contrastive_share=0.3)
    count = {"learned": 2, "learned_pools": 3}[mode]
    assert trained.target_logits.tolist() == pytest.approx([1 / count] * count)
    with torch.no_grad():
        trained.target_logits.copy_(torch.arange(count) / 2.0)
    rows = trained.encode(data())
    students, taught = cosines(rows)
    targets = taught if mode == "learned" else [
        slow_pool(taught, how) for how in ("max", "min", "mean")
    ]  # fmt: skip
    weights = softmax([number / 2.0 for number in range(count)])
    terms = trained.losses(rows)
    for name, matrix in students.items():
        wanted = sum(w * slow_divergence(matrix, t, 0.1) for w, t in zip(weights, targets))
        assert terms[f"distillation.{name}"].item() == pytest.approx(wanted, rel=1e-6)
        assert trained.weights[f"distillation.{name}"] == 1.0
    trained.total(terms).backward()
    assert trained.target_logits.grad.any()


# -- teachers, rows and gradients ----------------------------------------------------------------


def test_teachers_get_no_gradient_and_are_part_of_nothing():
    trained = method()
    assert not [name for name in trained.state_dict() if not name.startswith("retriever.")]
    assert not [name for name, _ in trained.named_modules() if "teacher" in name]
    trained.train()
    assert not any(teacher.model.training for teacher in trained.teachers)
    trained.total(trained(data())).backward()
    for teacher in trained.teachers:
        assert not any(p.requires_grad or p.grad is not None for p in teacher.model.parameters())


def test_gradients_reach_the_students_sides_and_no_teachers():
    trained = method(contrastive_share=0.0)
    rows = {
        name: value.detach().requires_grad_() if value.is_floating_point() else value
        for name, value in trained.encode(data()).items()
    }
    trained.total(trained.losses(rows)).backward()
    got = {name for name, value in rows.items() if value.grad is not None and value.grad.any()}
    assert got == {"image", "source", "targets.de", "targets.zh"}


def test_a_row_of_zeros_is_similar_to_nothing_and_spoils_nothing():
    rows = method().encode(data())
    rows = {n: v.detach().clone().requires_grad_(v.is_floating_point()) for n, v in rows.items()}
    for name in ("image", "targets.de", "teacher0.text"):
        rows[name].data[1] = 0.0
    trained = method()
    total = trained.total(trained.losses(rows))
    total.backward()
    assert math.isfinite(total.item())
    assert all(v.grad.isfinite().all() for v in rows.values() if v.grad is not None)


def test_rows_without_a_language_are_left_out_of_its_terms_alone():
    trained, has = method(), torch.arange(8) % 3 != 1
    lacking = data()
    lacking.text["targets.de"].present = has
    terms, plain, fewer = trained(lacking), trained(data()), trained(part(data(), has))
    for name in terms:
        wanted = fewer if name.endswith(".de") else plain
        assert terms[name].item() == pytest.approx(wanted[name].item(), rel=1e-9), name


def test_c2kd_asks_for_the_sources_captions_in_its_teachers_tokens():
    trained = method()
    assert list(trained.extra_texts) == ["teacher0", "teacher1"]
    for teacher in trained.teachers:
        view, tokenizer = trained.extra_texts[teacher.text_name]
        assert view == "source"
        assert tokenizer is teacher.model.text.tokenizer
    lacking = data()
    del lacking.text["teacher1"]
    with pytest.raises(ValueError, match=r"teacher small2 was not shown.*'teacher1'"):
        trained(lacking)


def test_c2kd_encodes_each_row_from_its_own_sample_only():
    trained = method()
    whole, some = trained.encode(data()), trained.encode(part(data(), slice(2, 5)))
    assert whole.keys() == some.keys()
    for name, rows in whole.items():
        torch.testing.assert_close(rows[2:5], some[name], rtol=0, atol=1e-12)


def test_c2kd_terms_are_float32_under_autocast():
    trained, made = method().float(), data()
    for teacher in trained.teachers:
        teacher.model.float()
    made.visual.features = made.visual.features.float()
    with torch.autocast("cpu", torch.bfloat16):
        terms = trained(made)
    assert {term.dtype for term in terms.values()} == {torch.float32}
    trained.total(terms).backward()


def test_c2kd_is_cacheable_and_built_from_a_config():
    assert method().cacheable
    spec = {"name": "c2kd", "teachers": ["small1"], "pool": "min", "contrastive_share": 0.1}
    built = build(methods, spec, model())
    assert built.distillations[0].pool == "min"
    assert built.image_loss.reduction == "sum"
    for wrong, word in (
        ({"teachers": []}, "teachers"),
        ({}, "teachers"),
        ({"teachers": ["small1"], "contrastive_share": 1.5}, "contrastive_share"),
        ({"teachers": ["small1"], "pool": "median"}, "pool"),
    ):
        with pytest.raises(ConfigError, match=re.escape(word)):
            build(methods, {"name": "c2kd", **wrong}, model())
