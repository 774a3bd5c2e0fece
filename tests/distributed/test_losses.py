"""Losses of teachers and opponents: the gradients of one process on two and three."""

from unittest import mock

import pytest
import torch
from torch import nn

import xlcm.losses.relation_distillation
import xlcm.losses.similarities
import xlcm.losses.similarity_distillation
from xlcm.distributed import gather, local_rows, world
from xlcm.losses.adversarial import discriminator_loss, fooling_loss
from xlcm.losses.feature_distillation import FeatureDistillationLoss
from xlcm.losses.info_nce import InfoNCELoss
from xlcm.losses.relation_distillation import RelationDistillationLoss
from xlcm.losses.sigmoid import SigmoidLoss
from xlcm.losses.similarity_distillation import SimilarityDistillationLoss
from xlcm.losses.triplet import TripletLoss

ROWS = 6  # divisible by 1, 2 and 3
GROUPS = [0, 1, 0, 2, 1, 3]
PRESENT = [False, False, True, True, False, True]  # of three processes the first has none
SIDES = {"image": 5, "text": 5, "taught": 5, "image_of_teacher": 4, "text_of_teacher": 4}


def similarity(steep=False, **options):
    temperature = 0.015 if steep else 0.3
    loss = SimilarityDistillationLoss(temperature=temperature, detach_teacher=False, **options)

    def run(rows):
        teachers = [
            (rows["taught"], rows["image"]),
            (rows["text_of_teacher"], rows["image_of_teacher"]),
        ]
        return loss(rows["text"], rows["image"], loss.targets(teachers))

    return run


def relation(**options):
    loss = RelationDistillationLoss(temperature=0.3, **options)
    names = ("image", "text", "image_of_teacher", "text_of_teacher")
    return lambda rows: loss(*(rows[name] for name in names))


def similarity_of_some(**options):
    loss = SimilarityDistillationLoss(temperature=0.3, reduction="sum", **options)

    def run(rows):
        targets = loss.targets([(rows["text_of_teacher"], rows["image_of_teacher"])])
        return loss(rows["text"], rows["image"], targets, rows["present"])

    return run


def sigmoid(**options):
    loss = SigmoidLoss(**options)

    def run(rows):
        scale, bias = rows["numbers"].exp(), rows["numbers"][:1] - 1.0
        options = {"group": rows["group"], "scale": scale, "present": rows["present"]}
        return loss(rows["image"], rows["text"], bias=bias, **options)

    return run


def pair(loss, **options):
    return lambda rows: loss(rows["image"], rows["text"], group=rows["group"], **options)


LOSSES = {
    **{
        f"similarity_{divergence}_{pool}": similarity(divergence=divergence, pool=pool)
        for divergence in ("kl", "cross_entropy", "smooth_l1")
        for pool in ("max", "min", "mean")
    },
    **{
        f"similarity_tiled_{divergence}_{direction}": similarity(
            divergence=divergence, direction=direction, tiled="always"
        )
        for divergence in ("kl", "cross_entropy")
        for direction in ("both", "text_to_image", "image_to_text")
    },
    **{
        f"similarity_tiled_{pool}_{scale}": similarity(pool=pool, tiled="always", steep=scale)
        for pool in ("max", "min")
        for scale in (False, True)
    },
    "similarity_sum": similarity(reduction="sum"),
    "similarity_of_texts": similarity(direction="text_to_image"),
    "similarity_of_images": similarity(direction="image_to_text"),
    **{f"relation_mix_{mix}": relation(teacher_mix=mix) for mix in (0.0, 0.4, 1.0)},
    "relation_tiled": relation(tiled="always"),
    "relation_tiled_both": relation(tiled="always", detach_teacher=False, reduction="sum"),
    "relation_right": relation(direction="right_to_left", teacher_mix=0.4),
    "feature_mean": lambda rows: FeatureDistillationLoss()(rows["text"], rows["taught"]),
    "feature_sum": lambda rows: FeatureDistillationLoss(reduction="sum", detach_teacher=True)(
        rows["text"], rows["taught"]
    ),
    "discriminator": lambda rows: discriminator_loss(rows["text"], rows["taught"]),
    "fooling": lambda rows: fooling_loss(rows["text"]),
    "info_nce_sum": pair(InfoNCELoss(reduction="sum"), scale=3.0),
    "info_nce_some": lambda rows: InfoNCELoss(label_smoothing=0.1)(
        rows["image"], rows["text"], group=rows["group"], scale=3.0, present=rows["present"]
    ),
    "info_nce_some_tiled": lambda rows: InfoNCELoss(label_smoothing=0.1, tiled="always")(
        rows["image"], rows["text"], group=rows["group"], scale=3.0, present=rows["present"]
    ),
    "sigmoid_bias": sigmoid(tiled="never"),
    "sigmoid_bias_tiled": sigmoid(tiled="always"),
    **{
        f"{divergence}_some": similarity_of_some(divergence=divergence)
        for divergence in ("kl", "smooth_l1")
    },
    "kl_some_tiled": similarity_of_some(divergence="kl", tiled="always"),
    **{
        f"triplet_legacy_{negatives}": pair(
            TripletLoss(margin=0.7, negatives=negatives, reduction="sum", legacy_same_image=True)
        )
        for negatives in ("hardest", "semi_hard", "all")
    },
}


def step(name: str) -> dict:
    """Loss and averaged gradients of linear towers, one a side, on this process's rows."""
    torch.manual_seed(0)
    towers = nn.ModuleDict({side: nn.Linear(6, width) for side, width in SIDES.items()}).double()
    numbers = nn.Parameter(torch.tensor([0.7], dtype=torch.float64))  # of scale and bias
    data = torch.randn(len(SIDES), ROWS, 6, dtype=torch.float64)
    mine = local_rows(ROWS // world())
    rows = {
        side: nn.functional.normalize(towers[side](x[mine]), dim=1) for side, x in zip(SIDES, data)
    }
    marks = {"group": torch.tensor(GROUPS)[mine], "present": torch.tensor(PRESENT)[mine]}
    loss = LOSSES[name]({**rows, **marks, "numbers": numbers})
    loss.backward()
    gradients = {}
    for key, parameter in [*towers.named_parameters(), ("numbers", numbers)]:
        if parameter.grad is not None:
            gradients[key] = gather(parameter.grad[None]).mean(dim=0).tolist()
    return {"loss": gather(loss.detach()[None]).mean().item(), "gradients": gradients}


def steps(names: list[str]) -> list[dict]:
    return [step(name) for name in names]


def steps_without_gradient_through_the_gather(names: list[str]) -> list[dict]:
    """The usual mistake: right values, wrong gradients."""
    plain = lambda x: gather(x.detach())  # noqa: E731
    with (
        mock.patch.object(xlcm.losses.similarities, "gather", plain),
        mock.patch.object(xlcm.losses.similarity_distillation, "gather", plain),
        mock.patch.object(xlcm.losses.relation_distillation, "gather", plain),
    ):
        return steps(names)


def furthest(wanted: dict, found: dict) -> float:
    """Largest relative distance between gradients."""
    assert list(wanted) == list(found)
    gaps = []
    for key in wanted:
        one, other = (torch.tensor(g[key], dtype=torch.float64) for g in (wanted, found))
        assert one.norm() > 0, key
        gaps.append(((one - other).norm() / one.norm()).item())
    return max(gaps)


@pytest.mark.parametrize("number", [2, 3])
def test_losses_have_the_gradients_of_one_process(processes, number):
    by_rank = processes.run(number, steps, list(LOSSES))
    for which, name in enumerate(LOSSES):
        wanted = step(name)
        for results in by_rank:
            found = results[which]
            assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-12), name
            assert furthest(wanted["gradients"], found["gradients"]) < 1e-12, name


def test_a_gather_without_gradient_is_seen(processes):
    names = [name for name in LOSSES if name.startswith(("similarity", "relation"))]
    by_rank = processes.run(2, steps_without_gradient_through_the_gather, names)
    for which, name in enumerate(names):
        wanted, found = step(name), by_rank[0][which]
        assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-12), name
        if list(wanted["gradients"]) == list(found["gradients"]):  # a side may get none at all
            assert furthest(wanted["gradients"], found["gradients"]) > 1e-2, name
