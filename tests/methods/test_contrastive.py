"""The method protocol, and what contrastive learning asks for and computes."""

import math
import re
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from xlcm.config import ConfigError, build, check_part
from xlcm.data.views import View
from xlcm.losses.info_nce import InfoNCELoss
from xlcm.losses.sigmoid import SigmoidLoss
from xlcm.losses.triplet import TripletLoss
from xlcm.methods.base import Method
from xlcm.methods.contrastive import Contrastive
from xlcm.registry import losses, methods
from xlcm.types import Batch, TextBatch, Visual

REPOSITORY = Path(__file__).resolve().parents[2]


class TinyRetriever(nn.Module):
    """Embeds by looking up a row; counts how often each tower runs."""

    def __init__(self, bias: float | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = nn.Linear(6, 5), nn.Embedding(20, 5)
        self.log_scale = nn.Parameter(torch.tensor(2.0))
        self.register_parameter("bias", None if bias is None else nn.Parameter(torch.tensor(bias)))
        self.runs = {"image": 0, "text": 0}

    @property
    def scale(self):
        return self.log_scale.exp()

    def embed_visual(self, visual):
        self.runs["image"] += 1
        return nn.functional.normalize(self.image(visual.features), dim=1)

    def embed_text(self, text):
        self.runs["text"] += 1
        return nn.functional.normalize(self.text(text.ids).mean(dim=1), dim=1)


def batch(*views: str, rows: int = 6, visual: bool = True) -> Batch:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(rows, 6, generator=generator)
    text = {
        view: TextBatch(
            torch.randint(20, (rows, 4), generator=generator), torch.ones(rows, 4, dtype=torch.bool)
        )
        for view in views
    }
    ids = torch.arange(rows) // 2
    return Batch(ids=ids, visual=Visual(features=features) if visual else None, text=text)


def test_contrastive_terms_are_the_losses_of_the_named_pairs():
    retriever = TinyRetriever()
    method = Contrastive(retriever, text_loss=TripletLoss(), text_weight=0.3, target_weight=2.0)
    data = batch("source", "target")
    terms = method(data)
    image = retriever.embed_visual(data.visual)
    source, target = (retriever.embed_text(data.text[view]) for view in ("source", "target"))
    options = {"group": data.ids, "scale": retriever.scale}
    assert list(terms) == ["image_source", "image_target", "source_target"]
    assert torch.equal(terms["image_source"], InfoNCELoss()(image, source, **options))
    assert torch.equal(terms["image_target"], InfoNCELoss()(image, target, **options))
    assert torch.equal(terms["source_target"], TripletLoss()(source, target, **options))
    wanted = terms["image_source"] + 2.0 * terms["image_target"] + 0.3 * terms["source_target"]
    assert method.total(terms).item() == pytest.approx(wanted.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("weights", "views", "terms", "image_runs"),
    [
        ({"target_weight": 0}, ("source",), ["image_source"], 1),
        ({"source_weight": 0}, ("target",), ["image_target"], 1),
        (
            {"source_weight": 0, "target_weight": 0, "text_weight": 1},
            ("source", "target"),
            ["source_target"],
            0,
        ),
        (
            {"source_weight": 0, "text_weight": 1},
            ("source", "target"),
            ["image_target", "source_target"],
            1,
        ),
    ],
)
def test_contrastive_asks_for_and_computes_only_what_has_weight(weights, views, terms, image_runs):
    retriever = TinyRetriever()
    method = Contrastive(retriever, **weights)
    assert method.views == views
    found = method(batch(*views, visual=image_runs > 0))
    assert list(found) == list(method.weights) == terms
    assert retriever.runs == {"image": image_runs, "text": len(views)}


def test_contrastive_encodes_each_row_from_its_own_sample_only():
    method = Contrastive(TinyRetriever())
    whole = batch("source", "target")
    part = Batch(
        ids=whole.ids[2:4],
        visual=Visual(features=whole.visual.features[2:4]),
        text={v: TextBatch(t.ids[2:4], t.mask[2:4]) for v, t in whole.text.items()},
    )
    all_rows, some_rows = method.encode(whole), method.encode(part)
    assert all_rows.keys() == some_rows.keys() == {"ids", "image", "source", "target"}
    for name in all_rows:
        torch.testing.assert_close(all_rows[name][2:4], some_rows[name], rtol=0, atol=1e-6)


def test_contrastive_trains_both_towers_and_the_scale():
    method = Contrastive(TinyRetriever())
    method.total(method(batch("source", "target"))).backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_contrastive_terms_are_float32_under_autocast():
    method = Contrastive(TinyRetriever(), text_weight=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        terms = method(batch("source", "target"))
    assert {term.dtype for term in terms.values()} == {torch.float32}
    assert all(term.shape == () and math.isfinite(term.item()) for term in terms.values())


def test_contrastive_says_what_a_batch_lacks():
    method = Contrastive(TinyRetriever())
    with pytest.raises(ValueError, match=r"no 'target' captions, only \['source'\].*views.target"):
        method(batch("source"))
    with pytest.raises(ValueError, match="no images"):
        method(batch("source", "target", visual=False))


def test_contrastive_refuses_a_bias_that_its_losses_would_ignore():
    with pytest.raises(ValueError, match=r"InfoNCELoss would ignore it; set model\.bias to null"):
        Contrastive(TinyRetriever(bias=-10.0))


def test_contrastive_with_the_sigmoid_loss_trains_scale_and_bias():
    method = build(methods, {"name": "contrastive", "image_loss": "sigmoid"}, TinyRetriever(-10.0))
    terms = method(batch("source", "target"))
    method.total(terms).backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    ids, options = torch.arange(6) // 2, {"scale": method.retriever.scale}
    encoded = method.encode(batch("source", "target"))
    wanted = SigmoidLoss()(
        encoded["image"], encoded["source"], group=ids, bias=method.retriever.bias, **options
    )
    assert torch.equal(terms["image_source"], wanted)


def test_contrastive_does_not_train_a_scale_that_no_loss_uses():
    assert Contrastive(TinyRetriever()).retriever.log_scale.requires_grad
    method = Contrastive(TinyRetriever(), image_loss=TripletLoss())
    assert not method.retriever.log_scale.requires_grad
    mixed = Contrastive(TinyRetriever(), image_loss=TripletLoss(), text_weight=1.0)
    assert mixed.retriever.log_scale.requires_grad


def test_contrastive_refuses_to_train_nothing():
    with pytest.raises(ValueError, match="are all 0"):
        Contrastive(TinyRetriever(), source_weight=0, target_weight=0)


def test_contrastive_is_built_from_a_config():
    spec = {"name": "contrastive", "image_loss": {"name": "triplet", "margin": 0.1}}
    method = build(methods, spec, TinyRetriever())
    assert isinstance(method.image_loss, TripletLoss)
    assert method.image_loss.margin == 0.1
    assert isinstance(method.text_loss, InfoNCELoss)
    with pytest.raises(ConfigError, match=r"source_wieght.*did you mean 'source_weight'"):
        build(methods, {"name": "contrastive", "source_wieght": 1.0}, TinyRetriever())
    with pytest.raises(ConfigError, match="source_weight"):
        build(methods, {"name": "contrastive", "source_weight": -1.0}, TinyRetriever())


def test_total_refuses_terms_without_weight_and_weights_without_term():
    method = Method(TinyRetriever())
    method.weights = {"image_source": 1.0, "image_target": 0.5}
    one = torch.tensor(1.0)
    assert method.total({"image_source": one, "image_target": one}).item() == 1.5
    with pytest.raises(ValueError, match="'image_sauce' has no weight; did you mean"):
        method.total({"image_source": one, "image_target": one, "image_sauce": one})
    with pytest.raises(ValueError, match=r"no term for the weights \['image_target'\]"):
        method.total({"image_source": one})


def test_the_examples_in_the_documentation_are_valid():
    page = (REPOSITORY / "docs" / "methods" / "contrastive.md").read_text(encoding="utf-8")
    examples = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page, re.S)]
    assert len(examples) == 2
    for example in examples:
        method = build(methods, example["method"], TinyRetriever())
        views = {
            name: View(**view) for name, view in example.get("data", {"views": {}})["views"].items()
        }
        assert set(views) <= set(method.views)


def test_the_options_in_the_documentation_are_those_of_the_code():
    page = (REPOSITORY / "docs" / "methods" / "contrastive.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| `?([\w.]+)`? \|", page, re.M))
    default = {
        name: value["name"] if isinstance(value, dict) else value
        for part in (check_part(methods, "contrastive"), check_part(losses, "triplet"))
        for name, value in part.items()
        if name != "name"
    }
    assert rows == {name: str(value) for name, value in default.items()}
