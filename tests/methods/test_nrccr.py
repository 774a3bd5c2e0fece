"""NRCCR whole: its total in slow loops, who gets a gradient from what, and in which order."""

import copy
import math
import re

import pytest
import small_models
import torch
from small_models import batch, model, part, refined
from torch import nn

from xlcm.config import ConfigError, build
from xlcm.encoders.heads import BatchNormHead
from xlcm.losses.info_nce import InfoNCELoss
from xlcm.losses.triplet import TripletLoss
from xlcm.methods.nrccr import NRCCR
from xlcm.models.discriminator import Discriminator
from xlcm.registry import methods

VIEWS = ("source", "target", "back")
TERMS = {
    "image_source": "source_weight",
    "image_target": "target_weight",
    "similarity": "similarity_weight",
    "feature": "feature_weight",
    "cycle": "cycle_weight",
    "adversarial": "adversarial_weight",
    "image_teacher": "teacher_weight",  # off by default
}
NOTHING = dict.fromkeys(TERMS.values(), 0.0)


def method(tower=None, **options) -> NRCCR:
    options.setdefault("pair_loss", TripletLoss(reduction="sum", legacy_same_image=True))
    return NRCCR(model(tower or refined()), **options).double()


def only(term: str, **options) -> NRCCR:
    return method(**{**NOTHING, TERMS[term]: 1.0}, **options)


# -- the formulas, pair by pair ------------------------------------------------------------------


def dot(a, b):
    return sum(x * y for x, y in zip(a, b))


def slow_triplet(a, b, margin=0.2):
    """Two directions, hardest negative, only the diagonal left out, summed over the batch."""
    count = range(len(a))
    total = 0.0
    for i in count:
        own = dot(b[i], a[i])
        total += max([max(0.0, margin + dot(b[i], a[j]) - own) for j in count if j != i], default=0)
        total += max([max(0.0, margin + dot(b[j], a[i]) - own) for j in count if j != i], default=0)
    return total


def slow_softmax(logits):
    exponentials = [math.exp(x) for x in logits]
    return [e / sum(exponentials) for e in exponentials]


def slow_similarity(image, target, teacher, temperature=0.07):
    count = range(len(image))
    total = 0.0
    for i in count:
        for row, by_teacher, by_student in (
            (image[i], teacher, target),  # an image against all captions
            (None, image, image),  # a caption against all images
        ):
            left = row or teacher[i]
            p = slow_softmax([dot(left, by_teacher[j]) / temperature for j in count])
            left = row or target[i]
            q = slow_softmax([dot(left, by_student[j]) / temperature for j in count])
            total -= sum(x * math.log(y) for x, y in zip(p, q)) / len(image) / 2
    return total


def slow_feature(target, teacher, beta=4.0):
    entries = [abs(x - y) for a, b in zip(target, teacher) for x, y in zip(a, b)]
    huber = [0.5 * d * d / beta if d < beta else d - beta / 2 for d in entries]
    return sum(huber) / len(huber)


def slow_cross_entropy(logits, label):
    values = [x for row in logits for x in row]
    right = [1 / (1 + math.exp(-x)) for x in values]
    return -sum(math.log(p if label else 1 - p) for p in right) / len(values)


def slow_adversarial(judge, source, target, lr=1e-3):
    """One step of torch's own Adam on a copy of the discriminator, then what fools it."""
    judge = copy.deepcopy(judge)
    for name, buffer in list(judge.named_buffers()):
        owner = judge.get_submodule(name.rpartition(".")[0])
        last = name.rpartition(".")[2]
        delattr(owner, last)
        owner.register_parameter(last, nn.Parameter(buffer.clone()))
    adam = torch.optim.Adam(judge.parameters(), lr=lr, betas=(0.9, 0.999), eps=1e-8)
    cross_entropy = nn.functional.binary_cross_entropy_with_logits
    real, fake = judge(*[s.detach() for s in source]), judge(*[t.detach() for t in target])
    loss = cross_entropy(real, torch.ones_like(real)) + cross_entropy(fake, torch.zeros_like(fake))
    (loss / 2).backward()
    adam.step()
    return slow_cross_entropy(judge(*target).tolist(), 1)


@pytest.mark.parametrize("strength", ["weak", "not_so_weak", "strong"])
def test_nrccr_total_is_the_published_sum_written_out_in_loops(strength):
    trained = method(discriminator=strength)
    rows = trained.encode(batch(*VIEWS))
    source, target = (
        [rows[k] for k in (f"{view}_states", f"{view}_mask") if k in rows]
        for view in ("source", "target")
    )
    adversarial = slow_adversarial(trained.opponent.module, source, target)
    v, s, t, h, b = (rows[k].tolist() for k in ("image", "source", "target", "teacher", "back"))
    slow = {
        "image_source": slow_triplet(s, v),
        "image_target": slow_triplet(t, v),
        "similarity": slow_similarity(v, t, h),
        "feature": slow_feature(t, h),
        "cycle": slow_triplet(s, b),
        "adversarial": adversarial,
    }
    terms = trained.losses(rows)
    assert terms.keys() == trained.weights.keys()
    assert {n: term.item() for n, term in terms.items()} == pytest.approx(slow, rel=1e-9)
    wanted = (
        slow["image_source"] + 0.6 * slow["image_target"] + 0.4 * slow["similarity"]
        + 0.1 * slow["feature"] + 0.5 * slow["cycle"] + 0.001 * slow["adversarial"]
    )  # fmt: skip
    assert trained.total(terms).item() == pytest.approx(wanted, rel=1e-5)


def test_nrccr_of_a_perfect_and_of_a_collapsed_batch_is_known():
    trained = method(adversarial_weight=0.0)
    eye = torch.eye(5, dtype=torch.float64)
    names = ("image", "source", "target", "teacher", "back")
    perfect = trained.losses({"ids": torch.arange(5), **dict.fromkeys(names, eye)})
    p = slow_softmax([1 / 0.07, 0, 0, 0, 0])
    entropy = -sum(x * math.log(x) for x in p)
    assert {n: t.item() for n, t in perfect.items()} == pytest.approx(
        {"image_source": 0, "image_target": 0, "similarity": entropy, "feature": 0, "cycle": 0}
    )
    one = eye[:1].expand(5, 5)
    collapsed = trained.losses({"ids": torch.arange(5), **dict.fromkeys(names, one)})
    tri = 2 * 5 * 0.2
    assert trained.total(collapsed).item() == pytest.approx(2.1 * tri + 0.4 * math.log(5))


@pytest.mark.parametrize("strength", ["weak", "not_so_weak", "strong"])
def test_a_discriminator_of_zeros_costs_a_thousandth_of_log_2(strength):
    trained = method(discriminator=strength).eval()
    for buffer in trained.opponent.module.buffers():
        buffer.zero_()
    rows = trained.encode(batch(*VIEWS))
    assert trained.losses(rows)["adversarial"].item() == pytest.approx(math.log(2))
    assert trained.weights["adversarial"] == 0.001


# -- rows ----------------------------------------------------------------------------------------


def test_nrccr_rows_are_the_models_embeddings_and_the_cross_branch():
    trained = method().eval()
    data = batch(*VIEWS)
    rows, kept = trained.encode(data), trained.retriever
    for view in VIEWS:
        torch.testing.assert_close(rows[view], kept.embed_text(data.text[view]))
    torch.testing.assert_close(rows["image"], kept.embed_visual(data.visual))
    source, target = (data.text[view] for view in ("source", "target"))
    for row in range(3):  # one caption at a time, without padding
        x, y = (
            kept.text.project(kept.text.states(small_models.TextBatch(t.ids[row : row + 1, :n],
                                                                      t.mask[row : row + 1, :n])))
            for t, n in ((t, int(t.mask[row].sum())) for t in (source, target))
        )  # fmt: skip
        asked = kept.text.block(
            x, torch.ones(x.shape[:2], dtype=torch.bool), y,
            torch.ones(y.shape[:2], dtype=torch.bool), residual=False,
        )  # fmt: skip
        pooled = torch.cat([asked, y], dim=1).mean(dim=1)
        torch.testing.assert_close(rows["teacher"][row], kept.map_text(pooled)[0])


@pytest.mark.parametrize("strength", ["weak", "not_so_weak", "strong"])
def test_nrccr_encodes_each_row_from_its_own_sample_only(strength):
    trained = method(discriminator=strength).eval()
    whole, some = batch(*VIEWS), part(batch(*VIEWS), slice(2, 5))
    all_rows, some_rows = trained.encode(whole), trained.encode(some)
    assert all_rows.keys() == some_rows.keys()
    for name, rows in all_rows.items():
        torch.testing.assert_close(rows[2:5], some_rows[name], rtol=0, atol=1e-12)


def padded(data, more=5):
    for text in data.text.values():
        text.ids = nn.functional.pad(text.ids, (0, more))
        text.mask = nn.functional.pad(text.mask, (0, more))
    return data


@pytest.mark.parametrize("strength", ["not_so_weak", "strong"])
def test_padding_changes_nothing_unless_the_released_behaviour_is_asked_for(strength):
    for legacy in (False, True):
        trained = method(refined(legacy_padding=legacy), discriminator=strength).eval()
        assert trained.opponent.module.legacy_padding == legacy
        plain, longer = (trained(data) for data in (batch(*VIEWS), padded(batch(*VIEWS))))
        for name in trained.weights:
            same = math.isclose(plain[name].item(), longer[name].item(), rel_tol=1e-9)
            assert same is not legacy, name


def test_the_text_head_is_called_for_source_target_teacher_and_back():
    trained = method()
    head, seen = BatchNormHead(12, 5, dropout=0.0).double(), []
    trained.retriever.text_head = head
    head.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach()))
    data = batch(*VIEWS)
    trained.encode(data)
    tower = trained.retriever.text
    states = {view: tower.states(data.text[view]) for view in VIEWS}
    inputs = {view: tower.project(state) for view, state in states.items()}
    pooled = {v: tower.refine(inputs[v], states[v].mask).pooled for v in VIEWS}
    pooled["teacher"] = tower.cross(
        inputs["source"], states["source"].mask, inputs["target"], states["target"].mask
    )
    order = ("source", "target", "teacher", "back")
    assert len(seen) == 4
    for one, name in zip(seen, order):
        torch.testing.assert_close(one, pooled[name])
    mean = torch.zeros(5, dtype=torch.float64)
    for name in order:  # each call averages in with momentum 0.1
        mean = 0.9 * mean + 0.1 * head.linear(pooled[name]).mean(dim=0)
    torch.testing.assert_close(head.norm.running_mean, mean)


# -- what is computed, and for whom --------------------------------------------------------------


@pytest.mark.parametrize(
    ("terms", "views", "image", "teacher"),
    [
        (["image_source"], ("source",), True, False),
        (["image_target"], ("target",), True, False),
        (["similarity"], ("source", "target"), True, True),
        (["feature"], ("source", "target"), False, True),
        (["cycle"], ("source", "back"), False, False),
        (["adversarial"], ("source", "target"), False, False),
        (["image_teacher"], ("source", "target"), True, True),
        (["image_source", "image_target", "similarity", "feature", "adversarial"],
         ("source", "target"), True, True),
        (list(TERMS), VIEWS, True, True),
    ],
)  # fmt: skip
def test_nrccr_asks_for_and_computes_only_what_has_a_weight(terms, views, image, teacher):
    trained = method(**{**NOTHING, **{TERMS[term]: 1.0 for term in terms}})
    assert trained.views == views
    crossings = []
    tower = trained.retriever.text
    cross = tower.cross
    tower.cross = lambda *a, **k: crossings.append(1) or cross(*a, **k)
    found = trained(batch(*views, visual=image))
    assert set(found) == set(trained.weights) == set(terms)
    assert len(crossings) == teacher
    assert (trained.opponent is not None) == ("adversarial" in terms)


@pytest.mark.parametrize(
    ("term", "vectors"),
    [("image_target", 1), ("cycle", 2), ("adversarial", 2), ("similarity", 3), ("feature", 3)],
)
def test_a_caption_that_is_read_moves_the_heads_averages_whether_a_term_uses_it_or_not(
    term, vectors
):
    trained = only(term)
    head = trained.retriever.text_head = BatchNormHead(trained.retriever.text.width, 5).double()
    trained(batch(*trained.views))
    assert head.norm.num_batches_tracked == vectors


def test_nrccr_says_what_a_batch_lacks():
    with pytest.raises(ValueError, match=r"no 'back' captions.*data\.views\.back.*weights"):
        method()(batch("source", "target"))
    with pytest.raises(ValueError, match="no images"):
        method()(batch(*VIEWS, visual=False))


def gradients(trained: NRCCR, term: str) -> dict[str, torch.Tensor | None]:
    """The gradient of one term at the rows that `losses` got."""
    rows = trained.encode(batch(*VIEWS))
    rows = {
        name: value.detach().requires_grad_() if value.is_floating_point() else value
        for name, value in rows.items()
    }
    trained.losses(rows)[term].backward()
    return {name: value.grad for name, value in rows.items() if value.is_floating_point()}


def reached(trained: NRCCR, term: str) -> set[str]:
    return {n for n, g in gradients(trained, term).items() if g is not None and g.any()}


def test_the_teachers_text_gets_no_gradient_from_similarity_and_the_images_do_through_it():
    assert reached(only("similarity"), "similarity") == {"image", "target"}
    through = gradients(only("similarity"), "similarity")["image"]
    without = gradients(only("similarity", similarity_detach_image=True), "similarity")["image"]
    assert (through - without).norm() > 1e-3 * through.norm()
    rows = only("similarity").encode(batch(*VIEWS))
    image = rows["image"].detach().requires_grad_()  # the same by hand
    target, teacher = rows["target"].detach(), rows["teacher"].detach()
    total = image.new_zeros(())
    for p_rows, q_rows in (
        (image @ teacher.T, image @ target.T),
        (teacher @ image.T, target @ image.T),
    ):
        p, q = (p_rows / 0.07).softmax(1), (q_rows / 0.07).log_softmax(1)
        total = total - (p * q).sum(1).mean() / 2
    total.backward()
    torch.testing.assert_close(through, image.grad)


def test_the_teacher_may_be_trained_by_a_triplet_of_its_own():
    assert "image_teacher" not in method().weights
    trained = only("image_teacher")
    assert reached(trained, "image_teacher") == {"image", "teacher"}
    rows = trained.encode(batch(*VIEWS))
    found = trained.losses(rows)["image_teacher"].item()
    wanted = slow_triplet(rows["teacher"].tolist(), rows["image"].tolist())
    assert found == pytest.approx(wanted, rel=1e-9)


def test_both_sides_of_the_feature_term_move_unless_the_teacher_is_detached():
    assert reached(only("feature"), "feature") == {"target", "teacher"}
    assert reached(only("feature", feature_detach_teacher=True), "feature") == {"target"}


def test_the_feature_term_may_be_freed_of_the_width():
    rows = only("feature").encode(batch(*VIEWS))
    mean, total = (
        only("feature", feature_reduction=how).losses(rows)["feature"] for how in ("mean", "sum")
    )
    assert total.item() == pytest.approx(5 * mean.item())
    squared = (rows["target"] - rows["teacher"]).square().sum(1).mean().item()
    assert total.item() == pytest.approx(squared / 8)


def test_the_teacher_may_be_read_without_the_targets_states_or_with_the_sources():
    data = batch(*VIEWS)
    released, alone, added = (
        method(**options).eval().encode(data)["teacher"]
        for options in ({}, {"concatenate": False}, {"residual": True})
    )
    assert not torch.allclose(released, alone, atol=1e-3)
    assert not torch.allclose(released, added, atol=1e-3)


# -- the discriminator ---------------------------------------------------------------------------


def watched(trained: NRCCR) -> list[str]:
    """What happens to the opponent, in order."""
    events, opponent = [], trained.opponent
    step, forward = opponent.step, opponent.forward

    def stepping(loss):
        before = snapshot(opponent.module)
        value = step(loss)
        moved = any(not torch.equal(a, b) for a, b in zip(before, snapshot(opponent.module)))
        events.append("step moved" if moved else "step")
        return value

    def judging(*arguments):
        events.append("fool")
        return forward(*arguments)

    opponent.step, opponent.forward = stepping, judging
    return events


def snapshot(module: nn.Module) -> list[torch.Tensor]:
    return [buffer.clone() for buffer in module.buffers()]


def test_the_discriminator_steps_first_and_the_generator_meets_the_new_one():
    trained = method()
    events = watched(trained)
    rows = trained.encode(batch(*VIEWS))
    old = copy.deepcopy(trained.opponent.module)
    term = trained.losses(rows)["adversarial"].item()
    assert events == ["step moved", "fool"]
    new = trained.opponent.module
    by = {name: slow_cross_entropy(judge(rows["target_states"]).tolist(), 1)
          for name, judge in (("old", old), ("new", new))}  # fmt: skip
    assert term == pytest.approx(by["new"], rel=1e-12)
    assert abs(by["new"] - by["old"]) > 1e-6


def test_the_discriminator_does_not_learn_in_evaluation():
    trained = method().eval()
    events, before = watched(trained), snapshot(trained.opponent)
    with torch.no_grad():
        trained(batch(*VIEWS))
    assert events == ["fool"]
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(trained.opponent)))


@pytest.mark.parametrize("strength", ["weak", "not_so_weak", "strong"])
def test_only_the_targets_states_are_told_to_fool_it(strength):
    trained = only("adversarial", discriminator=strength)
    assert reached(trained, "adversarial") == {"target_states"}


def test_the_main_optimiser_never_meets_the_discriminator():
    trained = method()
    assert not [name for name, _ in trained.named_parameters() if "opponent" in name]
    assert [name for name in trained.state_dict() if name.startswith("opponent.module.")]
    assert {"opponent.first_moment", "opponent.second_moment", "opponent.steps"} <= set(
        trained.state_dict()
    )
    terms = trained(batch(*VIEWS))
    trained.total(terms).backward()
    assert all(buffer.grad is None for buffer in trained.opponent.buffers())
    assert not [name for name in trained.retriever.state_dict() if "opponent" in name]


def test_every_parameter_of_the_model_gets_a_gradient():
    trained = method()
    trained.total(trained(batch(*VIEWS))).backward()
    for name, parameter in trained.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.any() or "key.bias" in name, name


# -- options, and what is refused ----------------------------------------------------------------


def test_nrccr_is_cacheable_unless_the_discriminator_reads_tokens():
    assert method().cacheable
    assert method(discriminator="weak").cacheable
    assert not method(discriminator="strong").cacheable
    assert method(discriminator="strong", adversarial_weight=0.0).cacheable


def test_nrccr_refuses_a_tower_without_the_attention_block():
    with pytest.raises(ValueError, match=r"a BagTextEncoder.*model\.text=\{name: refined"):
        NRCCR(model())


def test_nrccr_refuses_to_train_nothing_and_a_bias_that_nothing_trains():
    with pytest.raises(ValueError, match="all weights are 0"):
        method(**NOTHING)
    with pytest.raises(ValueError, match="TripletLoss would ignore it"):
        NRCCR(model(refined(), bias=-10.0))


def test_the_temperature_is_trained_only_where_a_loss_uses_it():
    assert not method().retriever.log_scale.requires_grad
    assert method(pair_loss=InfoNCELoss()).retriever.log_scale.requires_grad
    unused = only("feature", pair_loss=InfoNCELoss())
    assert not unused.retriever.log_scale.requires_grad


def test_captions_of_one_image_are_no_negatives_unless_asked_for():
    data = batch(*VIEWS)
    assert len(set(data.ids.tolist())) < len(data.ids)
    default, legacy = (
        method(pair_loss=loss).losses(method().encode(data))
        for loss in (None, TripletLoss(reduction="sum", legacy_same_image=True))
    )
    for name in ("image_source", "image_target", "cycle"):
        assert legacy[name].item() >= default[name].item()
    assert legacy["image_source"].item() > default["image_source"].item()


def test_nrccr_terms_are_float32_under_autocast():
    trained = NRCCR(model(refined()).float())
    data = batch(*VIEWS)
    data.visual.features = data.visual.features.float()
    with torch.autocast("cpu", torch.bfloat16):
        terms = trained(data)
    assert {term.dtype for term in terms.values()} == {torch.float32}
    trained.total(terms).backward()
    assert all(math.isfinite(term.item()) for term in terms.values())


def test_nrccr_is_built_from_a_config():
    spec = {
        "name": "nrccr",
        "pair_loss": {"name": "triplet", "reduction": "sum", "margin": 0.1},
        "discriminator": "strong",
        "cycle_weight": 0,
    }
    built = build(methods, spec, model(refined()))
    assert built.pair_loss.margin == 0.1
    assert built.views == ("source", "target")
    assert isinstance(built.opponent.module, Discriminator)
    with pytest.raises(ConfigError, match=re.escape("cycle_wieght")):
        build(methods, {"name": "nrccr", "cycle_wieght": 1.0}, model(refined()))
    with pytest.raises(ConfigError, match="adversarial_weight"):
        build(methods, {"name": "nrccr", "adversarial_weight": -1.0}, model(refined()))
