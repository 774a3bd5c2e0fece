"""The word loss is that of slow loops, and its plans decide what is learnt and what is left out."""

import functools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transport import slow_ipot, slow_sinkhorn, slow_word_loss

from xlcm.distributed import local_rows, world
from xlcm.losses.word_alignment import WordAlignmentLoss

UNIT = torch.eye(6, dtype=torch.float64)
FORMS = [
    {},
    {"threshold": 0.0, "temperature": 0.3},
    {"threshold": 0.8, "epsilon": 0.03},
    {"marginals": "norm", "threshold": 0.4},
    {"solver": "ipot"},
    {"word_loss": "ot_distance"},
    {"word_loss": "ot_distance", "solver": "ipot", "marginals": "norm"},
]


def captions(
    rows: int = 4, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Words whose translations are near them, in another order; masks with padding at the end."""
    generator = torch.Generator().manual_seed(seed)
    draw = functools.partial(torch.randn, dtype=torch.float64, generator=generator)
    source = draw(rows, 5, 6)
    target = torch.cat([source.flip(1) + 0.4 * draw(rows, 5, 6), draw(rows, 2, 6)], dim=1)
    target = target * torch.rand(rows, 7, 1, dtype=torch.float64, generator=generator).add(0.5)
    source_mask = torch.arange(5) < torch.tensor([5, 3, 1, 4])[torch.arange(rows) % 4, None]
    target_mask = torch.arange(7) < torch.tensor([7, 6, 4, 1])[torch.arange(rows) % 4, None]
    return source.to(dtype), source_mask, target.to(dtype), target_mask


def slowly(form: dict, source, source_mask, target, target_mask) -> list[float]:
    options = {
        "word_loss": "pseudo_label", "marginals": "uniform", "threshold": 0.5, "temperature": 0.1,
        "solver": "sinkhorn", "epsilon": 0.1, "iterations": 50, **form,
    }  # fmt: skip
    solver, epsilon, iterations = (options.pop(k) for k in ("solver", "epsilon", "iterations"))
    if solver == "ipot":
        solve = functools.partial(slow_ipot, proximal=0.5, iterations=iterations, inner=1)
    else:
        solve = functools.partial(slow_sinkhorn, epsilon=epsilon, iterations=iterations)
    return [
        slow_word_loss(s[m].tolist(), t[k].tolist(), **options, solve=solve)
        for s, m, t, k in zip(source, source_mask, target, target_mask)
    ]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_word_loss_is_the_slow_loop_and_the_mean_over_pairs(form):
    given = captions()
    wanted = slowly(form, *given)
    loss = WordAlignmentLoss(**form)
    assert loss.each(*given).tolist() == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    assert loss(*given).item() == pytest.approx(sum(wanted) / 4, rel=1e-9)


def test_the_forms_keep_some_words_and_drop_others():
    """Otherwise the comparison above would not see the threshold."""
    given = captions()
    values = [slowly({"threshold": threshold}, *given)[0] for threshold in (0.0, 0.5, 0.8, 1.0)]
    assert len(set(values)) == 4
    assert values[3] == 0


# -- known cases --------------------------------------------------------------------------------


def test_identical_sentences_have_the_identity_as_labels_and_keep_all_words():
    words = UNIT[None, :5]
    confidence = 1 / (1 + 4 * math.exp(-10))  # of each word, 0.99982
    partition = math.log(math.exp(10) + 4)
    entropy = partition - 10 * confidence
    for threshold in (0.5, 0.9998):
        found = WordAlignmentLoss(threshold=threshold)(words, None, words, None).item()
        assert found == pytest.approx(entropy, rel=1e-9)
    assert WordAlignmentLoss(threshold=0.9999)(words, None, words, None).item() == 0


def test_an_extra_word_is_kept_at_half_confidence_and_dropped_above():
    """Two source words, three target words, of which the third is like none: shared equally."""
    source, target = UNIT[None, :2].float(), UNIT[None, :3].float()
    log = math.log(math.exp(10) + 1) - 10, math.log(math.exp(10) + 2) - 10
    forth = log[1] + 10 / 3  # labels (2/3, 0, 1/3): the third word's cosine is 0
    own, extra = log[0], math.log(2)
    for threshold, kept in ((0.5, [own, own, extra]), (0.51, [own, own])):
        loss = WordAlignmentLoss(threshold=threshold, epsilon=0.05)
        found = loss(source, None, target, None).item()
        assert found == pytest.approx((forth + sum(kept) / len(kept)) / 2, rel=1e-5)


@pytest.mark.parametrize(("epsilon", "figure"), [(1.0, 0.268941), (0.1, 4.5398e-5)])
def test_distance_of_two_words_and_themselves_is_the_formula(epsilon, figure):
    loss = WordAlignmentLoss(word_loss="ot_distance", epsilon=epsilon)
    words = UNIT[None, :2]
    assert loss(words, None, words, None).item() == pytest.approx(figure, rel=1e-5)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_padding_changes_neither_loss_nor_gradient_whatever_it_holds(form):
    source, source_mask, target, target_mask = captions()
    loss = WordAlignmentLoss(**form)
    plain = [side.clone().requires_grad_() for side in (source, target)]
    wanted = loss(plain[0], source_mask, plain[1], target_mask)
    wanted.backward()
    longer = [
        torch.cat([torch.where(mask[..., None], side, math.nan), side.new_full((4, 3, 6), 1e9)], 1)
        for side, mask in ((source, source_mask), (target, target_mask))
    ]
    longer = [side.requires_grad_() for side in longer]
    masks = [nn.functional.pad(mask, (0, 3)) for mask in (source_mask, target_mask)]
    found = loss(longer[0], masks[0], longer[1], masks[1])
    found.backward()
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=0)
    for short, long, mask in zip(plain, longer, masks):
        torch.testing.assert_close(long.grad[:, : short.shape[1]], short.grad)
        assert long.grad[~mask].count_nonzero() == 0


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_word_order_does_not_matter(form):
    source, source_mask, target, target_mask = captions()
    order = torch.tensor([4, 1, 6, 0, 3, 2, 5])
    loss = WordAlignmentLoss(**form)
    found = loss(source, source_mask, target[:, order], target_mask[:, order])
    wanted = loss(source, source_mask, target, target_mask)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=0)


def test_a_pair_that_keeps_no_word_gives_exactly_nothing():
    source = torch.ones(2, 5, 6).requires_grad_()
    target = torch.ones(2, 7, 6).requires_grad_()
    each = WordAlignmentLoss().each(source, None, target, None)
    assert each.tolist() == [0.0, 0.0]
    each.sum().backward()
    assert source.grad.count_nonzero() == target.grad.count_nonzero() == 0


def test_the_length_of_words_counts_only_as_their_mass():
    source, source_mask, target, target_mask = captions()
    longer = source * torch.arange(1.0, 6.0)[:, None]
    for marginals, same in (("uniform", True), ("norm", False)):
        loss = WordAlignmentLoss(marginals=marginals)
        found = [loss(side, source_mask, target, target_mask).item() for side in (source, longer)]
        assert (found[0] == pytest.approx(found[1], rel=1e-9)) == same


def test_words_may_be_given_their_mass():
    source, source_mask, target, target_mask = captions()
    given = captions()[0].norm(dim=2), captions()[2].norm(dim=2)
    wanted = WordAlignmentLoss(marginals="norm").each(source, source_mask, target, target_mask)
    loss = WordAlignmentLoss(marginals="idf")
    found = loss.each(source, source_mask, target, target_mask, *given)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match=r"needs source_idf \(4, 5\).*got None"):
        loss(source, source_mask, target, target_mask)
    given[1][1, 2] = 0.0
    with pytest.raises(ValueError, match=r"target_idf of caption 1 is 0.0 at word 2"):
        loss(source, source_mask, target, target_mask, *given)


@pytest.mark.parametrize("form", [{}, {"solver": "ipot"}, {"marginals": "norm"}], ids=str)
def test_distances_between_all_captions_are_those_of_pair_after_pair(form):
    source, source_mask, target, target_mask = captions()
    more = captions(rows=6, seed=1)
    loss = WordAlignmentLoss(**form)
    found = loss.distances(source.requires_grad_(), source_mask, more[2], more[3])
    assert not found.requires_grad
    pairs = WordAlignmentLoss(word_loss="ot_distance", **form)
    for i in range(4):
        for j in range(6):
            one = (
                source[i : i + 1],
                source_mask[i : i + 1],
                more[2][j : j + 1],
                more[3][j : j + 1],
            )
            assert found[i, j].item() == pytest.approx(pairs(*one).item(), rel=1e-9, abs=1e-12)
    with pytest.raises(ValueError, match="of one width"):
        loss.distances(source, source_mask, target[..., :5], target_mask)


# -- gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_gradient_is_that_of_differences_with_plan_and_masses_held_still(form, monkeypatch):
    source, source_mask, target, target_mask = captions()
    loss = WordAlignmentLoss(**form)
    plan, words = loss._plan, loss._words
    masses = {
        "source": words("source", source, source_mask)[1],
        "target": words("target", target, target_mask)[1],
    }
    kept: list[Tensor] = []
    monkeypatch.setattr(loss, "_plan", lambda *given: kept.append(plan(*given)) or kept[0])
    monkeypatch.setattr(loss, "_words", lambda s, *given: (words(s, *given)[0], masses[s]))
    inputs = source.requires_grad_(), target.requires_grad_()
    assert torch.autograd.gradcheck(lambda s, t: loss(s, source_mask, t, target_mask), inputs)


@pytest.mark.parametrize("form", [{}, {"word_loss": "ot_distance"}], ids=str)
def test_descending_brings_translations_together(form):
    source, source_mask, target, target_mask = captions()
    trained = target.clone().requires_grad_()
    optimiser = torch.optim.Adam([trained], lr=0.05)
    loss = WordAlignmentLoss(**form)
    values = []
    for _ in range(40):
        optimiser.zero_grad()
        value = loss(source, source_mask, trained, target_mask)
        value.backward()
        optimiser.step()
        values.append(value.item())
    assert values[-1] < 0.5 * values[0]


class Words(nn.Module):
    """A linear layer over word vectors, and the loss."""

    def __init__(self, form: dict) -> None:
        super().__init__()
        self.map = nn.Linear(6, 4)
        self.loss = WordAlignmentLoss(**form)

    def forward(self, source, source_mask, target, target_mask):
        return self.loss(self.map(source), source_mask, self.map(target), target_mask)


def word_step(form: dict) -> dict:
    """Loss and gradient of this process's pairs, under DDP if there are several processes."""
    torch.manual_seed(0)
    model = Words(form).double()
    mine = local_rows(6 // world())
    trained = DistributedDataParallel(model) if world() > 1 else model
    loss = trained(*(side[mine] for side in captions(rows=6)))
    loss.backward()
    return {"loss": loss.item(), "gradient": model.map.weight.grad.tolist()}


def word_steps() -> list[dict]:
    return [word_step(form) for form in FORMS]


@pytest.mark.parametrize("number", [2, 3])
def test_word_loss_has_the_gradients_of_one_process(processes, number):
    by_rank = processes.run(number, word_steps)
    for which, form in enumerate(FORMS):
        wanted, found = word_step(form), [results[which] for results in by_rank]
        mean = sum(result["loss"] for result in found) / number
        assert mean == pytest.approx(wanted["loss"], rel=1e-12), form
        one = torch.tensor(wanted["gradient"], dtype=torch.float64)
        assert one.norm() > 0
        for result in found:
            many = torch.tensor(result["gradient"], dtype=torch.float64)
            assert (many - one).norm() < 1e-12 * one.norm(), form


# -- precision, refusals ------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_half_precision_is_widened_also_under_autocast(form):
    source, source_mask, target, target_mask = captions(dtype=torch.bfloat16)
    loss = WordAlignmentLoss(**form)
    wanted = loss(source.float(), source_mask, target.float(), target_mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(source, source_mask, target, target_mask)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def spoilt(words: Tensor, row: int, place: int, value: float) -> Tensor:
    words = words.clone()
    words[row, place, 4] = value
    return words


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_caption_whose_words_are_all_zero_has_no_mass_by_their_length(side):
    source, source_mask, target, target_mask = captions()
    (source if side == "source" else target)[3] = 0.0
    with pytest.raises(ValueError, match=rf"{side} caption 3 .* length 0 .*marginals=uniform"):
        WordAlignmentLoss(marginals="norm")(source, source_mask, target, target_mask)
    assert WordAlignmentLoss()(source, source_mask, target, target_mask).isfinite()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, m, t, k: (s, m & (torch.arange(4) != 2)[:, None], t, k), "source caption 2 of"),
        (lambda s, m, t, k: (s, m, t, k & (torch.arange(4) != 1)[:, None]), "target caption 1 of"),
        (lambda s, m, t, k: (s[:0], m[:0], t[:0], k[:0]), "batch without rows"),
        (lambda s, m, t, k: (s, m, t[:3], k[:3]), "equally many captions"),
        (lambda s, m, t, k: (s, m, t[..., :5], k), "of one width"),
        (lambda s, m, t, k: (s, m[:, :4], t, k), r"got \(4, 5, 6\) and \(4, 4\)"),
        (lambda s, m, t, k: (s, m.float(), t, k), "booleans, got .*float32"),
        (lambda s, m, t, k: (spoilt(s, 1, 2, math.nan), m, t, k), "source caption 1 .* at word 2"),
        (lambda s, m, t, k: (s, m, spoilt(t, 2, 3, math.inf), k), "target caption 2 .* at word 3"),
    ],
)
@pytest.mark.parametrize("marginals", ["uniform", "norm"])
def test_batches_without_a_plan_are_refused_with_their_place(change, message, marginals):
    with pytest.raises(ValueError, match=message):
        WordAlignmentLoss(marginals=marginals)(*change(*captions()))


@pytest.mark.parametrize(
    "options",
    [{"epsilon": 0.0}, {"iterations": 0}, {"temperature": -1.0}, {"threshold": 1.5}],
    ids=str,
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        WordAlignmentLoss(**options)
