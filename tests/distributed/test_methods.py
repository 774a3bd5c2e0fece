"""Whole methods under torch's own DistributedDataParallel: the gradients of one process."""

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from xlcm.config import build
from xlcm.distributed import local_rows, world
from xlcm.registry import methods
from xlcm.types import Batch, TextBatch, Visual

ROWS = 12
IDS = [0, 1, 2, 0, 3, 1, 0, 4, 5, 6, 5, 0]
SPECS = {
    "all_terms": {"name": "contrastive", "text_weight": 0.5},
    "source_only": {"name": "contrastive", "target_weight": 0.0, "source_weight": 2.0},
    "triplet": {
        "name": "contrastive",
        "image_loss": {"name": "triplet", "reduction": "sum"},
        "text_loss": {"name": "triplet"},
        "text_weight": 0.1,
    },
}


class TinyRetriever(nn.Module):
    """Two linear towers that average word vectors and project features."""

    bias = None

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(6, 5), nn.Linear(4, 5)
        self.words = nn.Embedding(20, 4)
        self.log_scale = nn.Parameter(torch.tensor(1.5))

    @property
    def scale(self):
        return self.log_scale.exp()

    def embed_visual(self, visual):
        return nn.functional.normalize(self.image(visual.features), dim=1)

    def embed_text(self, text):
        vectors = self.words(text.ids) * text.mask[..., None]
        mean = vectors.sum(dim=1) / text.mask.sum(dim=1, keepdim=True)
        return nn.functional.normalize(self.text(mean), dim=1)


def method_step(spec: dict) -> dict:
    """Terms and gradients of one step of this process, under DDP if there are several."""
    torch.manual_seed(0)
    method = build(methods, spec, TinyRetriever()).double()
    features = torch.randn(ROWS, 6).double()
    ids = {view: torch.randint(20, (ROWS, 7)) for view in ("source", "target")}
    mine = local_rows(ROWS // world())
    mask = torch.arange(7) < torch.randint(1, 8, (ROWS, 1))
    batch = Batch(
        ids=torch.tensor(IDS)[mine],
        visual=Visual(features=features[mine]),
        text={view: TextBatch(ids[view][mine], mask[mine]) for view in ids},
    )
    trained = DistributedDataParallel(method) if world() > 1 else method
    terms = trained(batch)
    method.total(terms).backward()
    return {
        "terms": {name: term.item() for name, term in terms.items()},
        "gradients": {
            name: None if parameter.grad is None else parameter.grad.tolist()
            for name, parameter in method.named_parameters()
        },
    }


def method_steps(specs: list[dict]) -> list[dict]:
    """Many steps in one job."""
    return [method_step(spec) for spec in specs]


@pytest.mark.parametrize("number", [2, 3, 4])
def test_contrastive_has_the_gradients_of_one_process(processes, number):
    specs = list(SPECS.values())
    by_rank = processes.run(number, method_steps, specs)
    for which, (name, spec) in enumerate(SPECS.items()):
        compare(name, method_step(spec), [results[which] for results in by_rank])


def compare(label: str, wanted: dict, found: list[dict]) -> None:
    """Terms: their mean over processes; gradients: on each process, as DDP left them."""
    for name, term in wanted["terms"].items():
        mean = sum(result["terms"][name] for result in found) / len(found)
        assert mean == pytest.approx(term, rel=1e-12), (label, name)
    for result in found:
        for name, gradient in wanted["gradients"].items():
            if gradient is None:  # the scale, where no loss uses it
                assert (name, result["gradients"][name]) == ("retriever.log_scale", None)
                continue
            one, many = (
                torch.tensor(values, dtype=torch.float64)
                for values in (gradient, result["gradients"][name])
            )
            assert one.norm() > 0, (label, name)
            assert (many - one).norm() / one.norm() < 1e-12, (label, name)
