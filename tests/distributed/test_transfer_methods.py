"""Methods with teachers and opponents under DDP: the gradients of one process on two and three.

Heads are linear; tests/test_batch_norm.py has those with batch norm.
"""

from unittest import mock

import pytest
import small_models
import torch
from torch.nn.parallel import DistributedDataParallel

from xlcm.config import build
from xlcm.distributed import local_rows, world
from xlcm.models import teacher
from xlcm.registry import methods

ROWS = 12  # with IDS of several rows an image, spread over processes
LANGS = ("de", "zh")
# of three processes the first has no row in the language
PRESENT = torch.tensor([False] * 4 + [True, True, False, True, False, True, True, True])
LEGACY = {"name": "triplet", "reduction": "sum", "legacy_same_image": True}
NRCCR = {
    **{f"nrccr_{strength}": {"discriminator": strength}
       for strength in ("weak", "not_so_weak", "strong")},
    "nrccr_options": {
        "pair_loss": LEGACY, "similarity_detach_image": True, "feature_reduction": "sum",
        "feature_detach_teacher": True, "adversarial_weight": 1.0,
    },
}  # fmt: skip
TAUGHT = {
    "translate_train": {"name": "translate_train"},
    "some_rows_lack_a_language": {"name": "translate_train"},
    "c2kd": {"contrastive_share": 0.3},
    "c2kd_some_rows": {"pool": "mean"},
    **{mode: {"targets": mode} for mode in ("multitask", "learned", "learned_pools")},
    "smooth_l1": {"divergence": "smooth_l1", "pool": "min"},
}
CL2CM = {
    "cl2cm": {},
    "cl2cm_shared": {"share_encoder": True, "average_pieces": True, "text_weight": 0.5},
    "cl2cm_options": {
        "relations": ["target_image", "target_target", "image_image"], "teacher_mix": 0.2,
        "word_loss": "ot_distance", "solver": "ipot", "direction": "image_to_target",
    },
    "cl2cm_teacher": {
        "detach_teacher": False, "teacher_temperature": 0.2, "word_score": 0.5, "teacher_mix": 0.2,
        "sentence_weight": 0.0, "marginals": "idf",
    },
}  # fmt: skip
NAMES = [*NRCCR, *TAUGHT, *CL2CM]


def method_of(name: str) -> torch.nn.Module:
    if name in NRCCR:
        spec, model = {"name": "nrccr", **NRCCR[name]}, small_models.model(small_models.refined())
    elif name in TAUGHT:
        spec = {"name": "c2kd", "teachers": ["small1", "small2"], **TAUGHT[name]}
        if spec["name"] != "c2kd":
            del spec["teachers"]
        model = small_models.model()
    else:
        spec, model = {"name": "cl2cm", **CL2CM[name]}, small_models.model()
    torch.manual_seed(5)
    built = build(methods, spec, model).double()
    built.begin(0.5)  # for a weight that rises
    if getattr(built, "needs_idf", False):  # as if counted over some captions
        built.idf = torch.linspace(0.5, 3.0, 2 * small_models.VOCABULARY).double().view(2, -1)
    return built


def batch_of(name: str):
    if name in TAUGHT:
        batch = small_models.translations(*LANGS, teachers=2, rows=ROWS)
    else:
        batch = small_models.batch("source", "target", "back", rows=ROWS)
    mine = local_rows(ROWS // world())
    batch = small_models.part(batch, mine)
    for text in batch.text.values():  # each process pads to its own longest caption
        length = int(text.mask.sum(dim=1).max())
        text.ids, text.mask = text.ids[:, :length], text.mask[:, :length]
    if "some_rows" in name:
        batch.text["targets.de"].present = PRESENT[mine]
    return batch


def step(name: str) -> dict:
    """Terms, gradients, and buffers after one step of this process."""
    with mock.patch.object(teacher.DualEncoder, "from_pretrained", small_models.saved):
        method = method_of(name)
    trained = DistributedDataParallel(method) if world() > 1 else method
    terms = trained(batch_of(name))
    method.total(terms).backward()
    return {
        "terms": {key: term.item() for key, term in terms.items()},
        "gradients": {
            key: None if parameter.grad is None else parameter.grad.tolist()
            for key, parameter in method.named_parameters()
        },
        "buffers": {key: buffer.tolist() for key, buffer in method.named_buffers()},
    }


def steps(names: list[str]) -> list[dict]:
    return [step(name) for name in names]


@pytest.fixture(scope="module")
def alone() -> dict[str, dict]:
    return {name: step(name) for name in NAMES}


@pytest.mark.parametrize("number", [2, 3])
def test_methods_have_the_gradients_of_one_process(processes, alone, number):
    by_rank = processes.run(number, steps, NAMES)
    for which, name in enumerate(NAMES):
        compare(name, alone[name], [results[which] for results in by_rank])


def compare(name: str, wanted: dict, found: list[dict]) -> None:
    for key, term in wanted["terms"].items():
        mean = sum(result["terms"][key] for result in found) / len(found)
        assert mean == pytest.approx(term, rel=1e-11), (name, key)
    for result in found:
        for kind in ("gradients", "buffers"):
            assert result[kind].keys() == wanted[kind].keys()
            for key, value in wanted[kind].items():
                label = (name, kind, key)
                if value is None:  # the temperature, which a triplet loss doesn't use
                    assert key == "retriever.log_scale", label
                    assert result[kind][key] is None, label
                    continue
                one, many = (
                    torch.tensor(v, dtype=torch.float64) for v in (value, result[kind][key])
                )
                # a bias of attention's keys has no effect, hence a gradient of rounding alone
                assert (many - one).norm() < 1e-11 * max(one.norm().item(), 1e-3), label


def test_the_test_would_see_a_process_that_keeps_its_own_discriminator(alone):
    moved = [k for k in alone["nrccr_weak"]["buffers"] if k.startswith("opponent.module.")]
    assert moved
    assert alone["nrccr_weak"]["buffers"]["opponent.steps"] == 1
    assert any(alone["nrccr_weak"]["buffers"]["opponent.first_moment"])


def test_all_gradients_that_are_compared_say_something(alone):
    for name, result in alone.items():
        for key, value in result["gradients"].items():
            if value is not None and not key.endswith("block.key.bias"):
                assert torch.tensor(value).abs().max() > 1e-9, (name, key)
