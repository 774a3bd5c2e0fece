"""CL2CM whole: total in slow loops, who teaches whom, and what happens when in a staged run."""

import copy
import math
import re

import pytest
import torch
from small_models import Numbers, bag, batch, model, part

from xlcm.config import ConfigError, build
from xlcm.data.views import View, Views
from xlcm.encoders.heads import BatchNormHead
from xlcm.losses.triplet import TripletLoss
from xlcm.methods.cl2cm import CL2CM
from xlcm.methods.contrastive import Contrastive
from xlcm.models.dual_encoder import DualEncoder
from xlcm.registry import methods
from xlcm.types import Caption, Item

NO_TRANSFER = {"distillation_weight": 0.0, "sentence_weight": 0.0, "word_weight": 0.0}
TEMPERATURE = 0.2  # of the cross-modal network


def method(tower=None, **options) -> CL2CM:
    options.setdefault("warmup_epochs", 0.0)
    return CL2CM(model(tower, temperature=TEMPERATURE), **options).double()


def data(rows=8):
    made = batch("source", "target", rows=rows)
    made.ids = torch.arange(rows)  # every image once, as in the formulas
    return made


# -- the formulas, pair by pair ------------------------------------------------------------------


def softmax(logits):
    partition = sum(math.exp(x) for x in logits)
    return [math.exp(x) / partition for x in logits]


def columns(matrix):
    return [list(column) for column in zip(*matrix)]


def slow_nce(matrix, tau):
    total = 0.0
    for side in (matrix, columns(matrix)):
        for i, row in enumerate(side):
            total -= math.log(softmax([x / tau for x in row])[i]) / len(side) / 2
    return total


def slow_relation(student, teacher, tau):
    total = 0.0
    for left, right in ((student, teacher), (columns(student), columns(teacher))):
        for s, a in zip(left, right):
            p, q = softmax([x / tau for x in a]), softmax([x / tau for x in s])
            total += sum(x * math.log(x / y) for x, y in zip(p, q)) / len(left) / 2
    return total


def slow_plan(cost, epsilon, iterations):
    n, m = len(cost), len(cost[0])
    kernel = [[math.exp(-c / epsilon) for c in row] for row in cost]
    u, v = [1.0] * n, [1.0] * m
    for _ in range(iterations):
        v = [1 / m / sum(kernel[i][j] * u[i] for i in range(n)) for j in range(m)]
        u = [1 / n / sum(kernel[i][j] * v[j] for j in range(m)) for i in range(n)]
    return [[u[i] * kernel[i][j] * v[j] for j in range(m)] for i in range(n)]


def slow_distance(source, target):
    unit = [[(w / w.norm()).detach() for w in words] for words in (source, target)]
    cost = [[1 - float(x @ y) for y in unit[1]] for x in unit[0]]
    plan = slow_plan(cost, 0.1, 50)
    return sum(p * c for line, costs in zip(plan, cost) for p, c in zip(line, costs))


def slow_words(source, target, epsilon=0.1, iterations=50, threshold=0.5, tau=0.1):
    """Words `(n, d)` and `(m, d)` of one pair."""
    unit = [[(w / w.norm()).detach() for w in words] for words in (source, target)]
    cosine = [[float(x @ y) for y in unit[1]] for x in unit[0]]
    plan = slow_plan([[1 - c for c in row] for row in cosine], epsilon, iterations)
    total = 0.0
    for labels, logits in ((plan, cosine), (columns(plan), columns(cosine))):
        kept = []
        for row, scores in zip(labels, logits):
            label = [p * len(labels) for p in row]
            if max(label) >= threshold:
                q = softmax([s / tau for s in scores])
                kept.append(-sum(r * math.log(x) for r, x in zip(label, q)))
        total += sum(kept) / len(kept) / 2 if kept else 0.0
    return total


def slow_word_mean(trained, made):
    net, total = trained.cross_lingual, 0.0
    source, target = (net(made.text[view]) for view in ("source", "target"))
    for row in range(len(made.ids)):
        total += slow_words(
            source.tokens[row][source.mask[row]], target.tokens[row][target.mask[row]]
        )
    return total / len(made.ids)


def product(rows, left, right):
    return (rows[left] @ rows[right].T).tolist()


def test_cl2cm_total_is_the_reconstruction_written_out_in_loops():
    trained, made = method(), data()
    rows = trained.encode(made)
    image_target = product(rows, "image", "target")
    slow = {
        "image_source": slow_nce(product(rows, "image", "source"), TEMPERATURE),
        "image_target": slow_nce(image_target, TEMPERATURE),
        "sentence": slow_nce(product(rows, "cross_source", "cross_target"), 0.07),
        "word": slow_word_mean(trained, made),
        "distillation": slow_relation(
            image_target, product(rows, "cross_source", "cross_target"), 0.07
        ),
    }
    terms = trained.losses(rows)
    assert {n: t.item() for n, t in terms.items()} == pytest.approx(slow, rel=1e-5)
    wanted = (
        slow["sentence"] + 0.1 * slow["word"] + slow["image_source"]
        + 0.5 * slow["image_target"] + 0.5 * slow["distillation"]
    )  # fmt: skip
    assert trained.total(terms).item() == pytest.approx(wanted, rel=1e-5)


def test_without_transfer_it_is_exactly_the_baseline():
    trained = method(**NO_TRANSFER)
    assert trained.cross_lingual is None
    plain = Contrastive(model(temperature=TEMPERATURE)).double()
    terms, found = plain(data()), trained(data())
    assert {n: t.item() for n, t in found.items()} == {n: t.item() for n, t in terms.items()}
    assert trained.total(found).item() == plain.total(terms).item()
    assert set(trained.state_dict()) == set(plain.state_dict())


def test_the_text_term_of_the_cross_modal_network():
    trained = method(text_weight=0.7, **NO_TRANSFER)
    rows = trained.encode(data())
    terms = trained.losses(rows)
    wanted = slow_nce(product(rows, "source", "target"), TEMPERATURE)
    assert terms["source_target"].item() == pytest.approx(wanted, rel=1e-9)
    assert trained.weights["source_target"] == 0.7


def test_relations_inside_a_side_are_averaged_with_the_first():
    names = ["target_image", "target_target", "image_image"]
    trained = method(relations=names)
    rows = trained.encode(data())
    pairs = [
        (("image", "target"), ("cross_source", "cross_target")),
        (("target", "target"), ("cross_target", "cross_target")),
        (("image", "image"), ("cross_source", "cross_source")),
    ]
    slow = [slow_relation(product(rows, *s), product(rows, *t), 0.07) for s, t in pairs]
    found = trained.losses(rows)["distillation"].item()
    assert found == pytest.approx(sum(slow) / 3, rel=1e-6)


@pytest.mark.parametrize(
    ("direction", "left"), [("image_to_target", True), ("target_to_image", False)]
)
def test_one_direction_of_the_transfer(direction, left):
    trained = method(direction=direction)
    rows = trained.encode(data())
    student, teacher = (
        rows[x] @ rows[y].T / 0.07
        for x, y in (("image", "target"), ("cross_source", "cross_target"))
    )
    if not left:
        student, teacher = student.T, teacher.T
    wanted = (teacher.softmax(1) * (teacher.log_softmax(1) - student.log_softmax(1))).sum(1).mean()
    found = trained.losses(rows)["distillation"]
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)


def test_the_teacher_may_have_a_temperature_of_its_own():
    rows = method().encode(data())
    student, teacher = (
        product(rows, "image", "target"),
        product(rows, "cross_source", "cross_target"),
    )
    scaled = [[x * 0.07 / 0.3 for x in row] for row in teacher]
    found = method(teacher_temperature=0.3).losses(rows)["distillation"].item()
    assert found == pytest.approx(slow_relation(student, scaled, 0.07), rel=1e-6)


def test_words_may_have_a_say_in_what_is_taught():
    trained, made = method(word_score=0.4, word_weight=0.0), data()
    rows = trained.encode(made)
    source, target = (trained.cross_lingual(made.text[view]) for view in ("source", "target"))
    teacher = product(rows, "cross_source", "cross_target")
    for i in range(8):
        for j in range(8):
            words = source.tokens[i][source.mask[i]], target.tokens[j][target.mask[j]]
            teacher[i][j] += 0.4 * (1 - slow_distance(*words))
    wanted = slow_relation(product(rows, "image", "target"), teacher, 0.07)
    assert trained.losses(rows)["distillation"].item() == pytest.approx(wanted, rel=1e-6)
    plain = method(word_weight=0.0)
    assert wanted != pytest.approx(plain.losses(rows)["distillation"].item(), rel=1e-3)
    assert not trained.cacheable  # words of other lengths


def test_no_plans_of_all_pairs_are_solved_while_nothing_is_taught(monkeypatch):
    trained, solved = method(word_score=0.4, word_weight=0.0, warmup_epochs=1.0), []
    real = trained.word_loss.distances
    monkeypatch.setattr(
        trained.word_loss, "distances", lambda *a, **k: solved.append(1) or real(*a, **k)
    )
    rows = trained.encode(data())
    for epoch, times in ((0.0, 0), (0.5, 1)):
        trained.begin(epoch)
        trained.losses(rows)
        assert len(solved) == times


class Corpus:
    """A data set of the captions of a batch."""

    name, split = "corpus", "train"
    source, target = ["3 4 4", "3 5", "3"], ["7 8", "7", "8 8 9"]

    def __len__(self):
        return 3

    def __getitem__(self, index):
        first = Caption(f"{index}en", "en", self.source[index])
        return Item(
            str(index), "train",
            (first, Caption(f"{index}de", "de", self.target[index], "mt", of=first.id)),
        )  # fmt: skip


def counted(**options):
    trained = method(marginals="idf", **options)
    views = Views({"source": View(langs=["en"]), "target": View(langs=["de"], of="source")})
    trained.remember(Corpus(), views, fixed=True)
    made = data(rows=3)
    made.text = {
        "source": Numbers()(Corpus.source), "target": Numbers()(Corpus.target),
    }  # fmt: skip
    return trained, made


@pytest.mark.parametrize("pieces_averaged", [False, True])
def test_rare_pieces_may_carry_more_mass(pieces_averaged, monkeypatch):
    trained, made = counted(average_pieces=pieces_averaged)
    seen = []
    monkeypatch.setattr(
        trained.word_loss, "each", lambda *given: seen.extend(given) or torch.zeros(3)
    )
    trained.encode(made)
    rare = {name: math.log(4 / f) for name, f in {"3": 3, "4": 1, "5": 1, "7": 2, "8": 2}.items()}
    first, second = seen[4:]
    if pieces_averaged:  # even pieces go on: 3 4 4 is one word, and so is 7 8
        wanted = [(rare["3"] + 2 * rare["4"]) / 3], [(rare["7"] + rare["8"]) / 2]
        found = first[0, seen[1][0]], second[0, seen[3][0]]
    else:
        wanted = [rare["3"], rare["4"], rare["4"]], [rare["7"], rare["8"]]
        found = first[0, seen[1][0]], second[0, seen[3][0]]
    for one, other in zip(found, wanted):
        assert one.tolist() == pytest.approx(other, rel=1e-6)


def test_masses_by_frequency_train_and_are_refused_before_they_are_counted():
    for options in ({}, {"word_score": 0.5}, {"average_pieces": True, "word_score": 0.5}):
        trained, made = counted(**options)
        total = trained.total(trained(made))
        total.backward()
        assert math.isfinite(total.item())
        assert not [name for name in trained.state_dict() if "idf" in name]  # counted anew
    with pytest.raises(ValueError, match=r"marginals=idf needs .*`remember\("):
        method(marginals="idf")(data())
    unused = method(marginals="idf", word_weight=0.0)
    unused.remember(None, None, fixed=True)  # nothing would read it
    unused(data())


# -- two networks --------------------------------------------------------------------------------


def reached(trained, term):
    """Whether a term's gradient reaches the kept model and the other network."""
    trained.losses(trained.encode(data()))[term].backward()
    found = {
        name.split(".")[0]
        for name, parameter in trained.named_parameters()
        if parameter.grad is not None and parameter.grad.any()
    }
    return found


@pytest.mark.parametrize(
    ("term", "wanted"),
    [
        ("sentence", {"cross_lingual"}),
        ("word", {"cross_lingual"}),
        ("distillation", {"retriever"}),
        ("image_source", {"retriever"}),
        ("image_target", {"retriever"}),
    ],
)
def test_no_gradient_crosses_from_one_network_to_the_other(term, wanted):
    assert reached(method(), term) == wanted


def test_a_teacher_that_is_not_detached_learns_from_what_it_teaches():
    options = {"detach_teacher": False, "word_score": 0.5}
    assert reached(method(**options), "distillation") == {"retriever", "cross_lingual"}
    for weights in ({}, {"sentence_weight": 0.0}, {"sentence_weight": 0.0, "word_weight": 0.0}):
        for shared in (False, True):
            trained = method(**options, **weights, share_encoder=shared)
            assert trained.resting() == ()
            trained.total(trained(data())).backward()
            assert not [n for n, p in trained.named_parameters() if p.grad is None]
    with pytest.raises(ValueError, match="first stage"):  # whose weight of distillation is 0
        method(**options, schedule="staged", sentence_weight=0.0, word_weight=0.0)


def test_a_shared_encoder_learns_from_both_and_the_teachers_head_from_its_own():
    assert reached(method(share_encoder=True), "sentence") == {"retriever", "cross_lingual"}
    assert reached(method(share_encoder=True), "distillation") == {"retriever"}
    trained = method(share_encoder=True)
    names = [n for n, _ in trained.named_parameters() if n.startswith("cross_lingual")]
    assert all(name.startswith("cross_lingual.head.") for name in names)


def test_every_parameter_gets_a_gradient_in_every_stage():
    for options in ({}, {"share_encoder": True}, {"schedule": "staged", "afterwards": "freeze"}):
        trained = method(**options)
        for epoch in (0.0, 0.5, 1.0, 2.5):
            trained.begin(epoch)
            trained.zero_grad()
            trained.total(trained(data())).backward()
            missing = [n for n, p in trained.named_parameters() if p.grad is None]
            assert not missing, (options, epoch)


def test_the_other_network_begins_as_a_copy_of_the_text_tower():
    trained = method()
    mine, other = trained.retriever.text, trained.cross_lingual.text
    assert other is not mine
    for name, value in mine.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    assert not {id(p) for p in mine.parameters()} & {id(p) for p in other.parameters()}


def test_the_kept_model_embeds_the_same_without_the_other_network():
    trained, made = method().eval(), data()
    kept = copy.deepcopy(trained.retriever)
    with torch.no_grad():
        for parameter in trained.cross_lingual.parameters():
            parameter.fill_(float("nan"))
    for view in ("source", "target"):
        found = trained.retriever.embed_text(made.text[view])
        torch.testing.assert_close(found, kept.embed_text(made.text[view]), rtol=0, atol=0)
    found = trained.retriever.embed_visual(made.visual)
    torch.testing.assert_close(found, kept.embed_visual(made.visual), rtol=0, atol=0)
    assert isinstance(kept, DualEncoder)
    assert not [name for name in kept.state_dict() if "cross" in name]


def test_cl2cm_encodes_each_row_from_its_own_sample_only():
    trained = method()
    whole, some = trained.encode(data()), trained.encode(part(data(), slice(2, 5)))
    assert whole.keys() == some.keys()
    assert whole["word"].shape == (8,)
    for name, rows in whole.items():
        torch.testing.assert_close(rows[2:5], some[name], rtol=0, atol=1e-9)


def test_padding_changes_no_term():
    trained, longer = method(), data()
    for text in longer.text.values():
        text.ids = torch.nn.functional.pad(text.ids, (0, 4))
        text.mask = torch.nn.functional.pad(text.mask, (0, 4))
    one, other = trained(data()), trained(longer)
    for name in one:
        assert one[name].item() == pytest.approx(other[name].item(), rel=1e-9), name


def test_words_may_be_made_of_their_pieces():
    pieces, words = (method(average_pieces=how)(data())["word"].item() for how in (False, True))
    assert pieces != pytest.approx(words, rel=1e-3)


# -- what is computed, and when ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "views", "image", "terms"),
    [
        ({**NO_TRANSFER, "source_weight": 0.0}, ("target",), True, ["image_target"]),
        ({**NO_TRANSFER, "target_weight": 0.0}, ("source",), True, ["image_source"]),
        ({"word_weight": 0.0, "distillation_weight": 0.0, "source_weight": 0.0,
          "target_weight": 0.0}, ("source", "target"), False, ["sentence"]),
        ({"word_weight": 0.0, "source_weight": 0.0, "target_weight": 0.0},
         ("source", "target"), True, ["distillation", "sentence"]),
    ],
)  # fmt: skip
def test_cl2cm_asks_for_and_computes_only_what_has_a_weight(weights, views, image, terms):
    trained = method(**weights)
    assert trained.views == views
    found = trained(batch(*views, visual=image))
    assert sorted(found) == sorted(trained.weights) == terms


def test_the_weight_of_distillation_rises_and_replaces_that_of_the_pair():
    trained = CL2CM(model(), distillation_weight=0.4, target_weight=2.0)  # one epoch by default
    for epoch, share in ((0.0, 0.0), (0.25, 0.1), (1.0, 0.4), (7.3, 0.4)):
        trained.begin(epoch)
        assert trained.weights == pytest.approx(
            {
                "image_source": 1.0, "image_target": 2.0 * (1 - share), "sentence": 1.0,
                "word": 0.1, "distillation": share,
            }
        )  # fmt: skip
        assert trained.resting() == ()


def test_a_staged_run_trains_the_teacher_first_and_then_both():
    trained = method(schedule="staged", cross_lingual_epochs=2, warmup_epochs=1.0)
    for epoch in (0.0, 1.99):
        trained.begin(epoch)
        assert trained.resting() == ("retriever",)
        assert {n for n, w in trained.weights.items() if w} == {"sentence", "word"}
    shares = []
    for epoch in (2.0, 2.5, 3.0, 9.0):
        trained.begin(epoch)
        assert trained.resting() == ()
        assert trained.weights["sentence"] == 1.0
        assert trained.weights["image_target"] == 1 - trained.weights["distillation"]
        shares.append(trained.weights["distillation"])
    assert shares == [0.0, 0.25, 0.5, 0.5]


def test_a_staged_run_may_freeze_the_teacher():
    trained = method(schedule="staged", cross_lingual_epochs=1, afterwards="freeze")
    trained.begin(0.5)
    assert trained.resting() == ("retriever",)
    trained.begin(1.0)
    assert trained.resting() == ("cross_lingual",)
    assert {n for n, w in trained.weights.items() if w} == {
        "image_source", "image_target", "distillation",
    }  # fmt: skip
    assert trained.weights["distillation"] == 0.5  # no warm-up
    prefixes = {name.split(".")[0] for name, _ in trained.named_parameters()}
    assert prefixes == {"retriever", "cross_lingual"}  # what rests is all there is of a network


def test_a_network_that_rests_has_neither_dropout_nor_moving_averages():
    head = {"name": "batch_norm", "dropout": 0.5}
    spec = {"name": "cl2cm", "schedule": "staged", "afterwards": "freeze"}
    trained = build(methods, {**spec, "cross_lingual_head": head}, model(temperature=TEMPERATURE))
    trained.retriever.text_head = BatchNormHead(trained.retriever.text.width, 5)
    trained = trained.double()

    def moved() -> set[str]:
        before = {name: buffer.clone() for name, buffer in trained.named_buffers()}
        first, again = trained.encode(data()), trained.encode(data())
        for name in ("target", "cross_target"):
            noisy = not torch.equal(first[name], again[name])
            assert noisy == (name.startswith("cross") != (trained.resting() == ("cross_lingual",)))
        return {
            n.split(".")[0] for n, b in trained.named_buffers() if not torch.equal(b, before[n])
        }

    for epoch, learns in ((0.0, "cross_lingual"), (1.0, "retriever"), (0.5, "cross_lingual")):
        trained.begin(epoch)
        trained.train()  # as the loop does behind a validation
        assert moved() == {learns}
    trained.eval().begin(1.0)
    assert not any(module.training for module in trained.modules())


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("off", [["sentence"], ["word"], ["sentence", "word"]])
def test_without_a_term_of_the_teacher_all_that_is_trained_gets_a_gradient(off, shared):
    trained = method(share_encoder=shared, **{f"{term}_weight": 0.0 for term in off})
    trained.total(trained(data())).backward()
    for name, parameter in trained.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    fixed = not any(p.requires_grad for p in trained.cross_lingual.parameters())
    assert fixed == (len(off) == 2 or (shared and "sentence" in off))
    assert trained.retriever.text.training
    assert trained.cross_lingual.training == (len(off) < 2)


def test_begin_depends_on_the_epoch_alone():
    trained = method(schedule="staged", afterwards="freeze", warmup_epochs=2.0)
    told = []
    for epoch in (0.3, 2.0, 0.3, 5.0, 2.0):
        trained.begin(epoch)
        told.append((epoch, dict(trained.weights), trained.resting()))
    assert told[0] == told[2]
    assert told[1] == told[4]


# -- options, and what is refused ----------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"word_loss": "ot_distance", "solver": "ipot"},
        {"marginals": "norm", "threshold": 0.0, "epsilon": 0.05},
        {"teacher_mix": 0.3, "cross_lingual_width": 3},
        {"image_loss": TripletLoss()},
        {"share_encoder": True, "average_pieces": True},
    ],
)
def test_every_option_trains(options):
    trained = method(**options)
    total = trained.total(trained(data()))
    total.backward()
    assert math.isfinite(total.item())


def test_cl2cm_refuses_words_of_a_tower_that_returns_none():
    tower = bag(context="none", tokens=False)
    with pytest.raises(ValueError, match=r"returns none.*tokens=true.*word_weight=0"):
        method(tower)
    with pytest.raises(ValueError, match=r"returns none.*word_score=0"):
        method(tower, word_weight=0.0, word_score=0.5)
    trained = method(bag(context="none", tokens=False), word_weight=0.0)
    assert "word" not in trained(data())


def test_cl2cm_refuses_what_can_not_be_trained():
    with pytest.raises(ValueError, match="all weights are 0"):
        method(source_weight=0, target_weight=0, **NO_TRANSFER)
    with pytest.raises(ValueError, match="shared encoder"):
        method(share_encoder=True, schedule="staged")
    with pytest.raises(ValueError, match=r"first stage .* are 0: schedule=joint"):
        method(schedule="staged", sentence_weight=0, word_weight=0)
    with pytest.raises(ValueError, match=r"relations .* name one twice"):
        method(relations=["target_image", "image_image", "target_image"])
    for wrong in ({"relations": ["image_image"]}, {"distillation_weight": 0.0}):
        with pytest.raises(ValueError, match=r"word_score is part of .* target_image"):
            method(word_score=0.5, **wrong)
    with pytest.raises(ValueError, match="InfoNCELoss would ignore it"):
        CL2CM(model(bias=-10.0))


def test_the_temperature_is_not_trained_where_no_loss_uses_it():
    assert method().retriever.log_scale.requires_grad
    assert not method(image_loss=TripletLoss()).retriever.log_scale.requires_grad


def test_cl2cm_says_what_a_batch_lacks():
    with pytest.raises(ValueError, match=r"no 'target' captions.*data\.views\.target"):
        method()(batch("source"))
    with pytest.raises(ValueError, match="no images"):
        method()(batch("source", "target", visual=False))


def test_cl2cm_terms_are_float32_under_autocast():
    trained, made = CL2CM(model().float()), data()
    made.visual.features = made.visual.features.float()
    with torch.autocast("cpu", torch.bfloat16):
        terms = trained(made)
    assert {term.dtype for term in terms.values()} == {torch.float32}
    trained.total(terms).backward()


def test_cl2cm_is_cacheable_and_built_from_a_config():
    assert method().cacheable
    spec = {
        "name": "cl2cm", "schedule": "staged", "cross_lingual_head": "mlp",
        "relations": ["target_image", "image_image"],
    }  # fmt: skip
    built = build(methods, spec, model())
    assert built.resting() == ("retriever",)
    for wrong in ({"relations": []}, {"distillation_weight": 1.5}, {"relations": ["texts"]}):
        with pytest.raises(ConfigError, match=re.escape(next(iter(wrong)))):
            build(methods, {"name": "cl2cm", **wrong}, model())
