"""Translate-train: one contrastive term a language, added."""

import pytest
import torch
from small_models import bag, model, part, translations

from xlcm.config import build
from xlcm.losses.info_nce import InfoNCELoss
from xlcm.losses.triplet import TripletLoss
from xlcm.methods.translate_train import TranslateTrain
from xlcm.registry import methods

LANGS = ("de", "zh", "sw")


def method(**options) -> TranslateTrain:
    return TranslateTrain(model(), **options)


def test_translate_train_is_the_sum_over_languages_of_both_directions():
    trained = method()
    rows = trained.encode(translations(*LANGS))
    terms = trained.losses(rows)
    assert list(terms) == ["contrastive.source", *(f"contrastive.{lang}" for lang in LANGS)]
    same = rows["ids"][:, None] == rows["ids"]
    target = same.double() / same.sum(1, keepdim=True)
    total = 0.0
    for name in ("source", *(f"targets.{lang}" for lang in LANGS)):
        logits = trained.retriever.scale * rows[name] @ rows["image"].T
        value = sum(-(target * x.log_softmax(1)).sum(1).mean() for x in (logits, logits.T))
        assert terms[f"contrastive.{name.removeprefix('targets.')}"].item() == pytest.approx(
            value.item(), rel=1e-9
        )
        total += value.item()
    assert trained.total(terms).item() == pytest.approx(total, rel=1e-9)


def test_the_weights_of_source_and_targets():
    trained = method(source_weight=2.0, target_weight=0.5)
    terms = trained(translations("de", "zh"))
    assert trained.weights == {
        "contrastive.source": 2.0, "contrastive.de": 0.5, "contrastive.zh": 0.5,
    }  # fmt: skip
    wanted = 2.0 * terms["contrastive.source"]
    wanted += 0.5 * (terms["contrastive.de"] + terms["contrastive.zh"])
    assert trained.total(terms).item() == pytest.approx(wanted.item())


@pytest.mark.parametrize(
    ("off", "views", "terms"),
    [
        ("target_weight", ("source",), ["contrastive.source"]),
        ("source_weight", ("targets",), ["contrastive.de", "contrastive.zh"]),
    ],
)
def test_translate_train_asks_for_and_computes_only_what_has_a_weight(off, views, terms):
    trained = method(**{off: 0.0})
    assert trained.views == views
    data = translations("de", "zh")
    data.text = {name: text for name, text in data.text.items() if name.split(".")[0] in views}
    assert list(trained(data)) == terms


def test_rows_without_a_language_are_left_out_of_its_term_alone():
    trained = method()
    data = translations("de", "zh")
    has = torch.tensor([True, False, True, True, False, True, True, True])
    data.text["targets.de"].present = has
    terms = trained(data)
    plain, fewer = trained(translations("de", "zh")), trained(part(translations("de", "zh"), has))
    for name in ("contrastive.source", "contrastive.zh"):
        assert terms[name].item() == plain[name].item()
    assert terms["contrastive.de"].item() == pytest.approx(fewer["contrastive.de"].item(), rel=1e-9)
    assert terms["contrastive.de"].item() != pytest.approx(plain["contrastive.de"].item())
    trained.total(terms).backward()
    with pytest.raises(ValueError, match=r"TripletLoss can't leave them out.*info_nce"):
        method(image_loss=TripletLoss())(data)


def test_translate_train_says_what_a_batch_lacks():
    with pytest.raises(ValueError, match=r"no captions `targets.<language>`.*every: true"):
        method()(translations())
    data = translations("de")
    del data.text["source"]
    with pytest.raises(ValueError, match=r"no 'source' captions"):
        method()(data)
    data = translations("de")
    data.visual = None
    with pytest.raises(ValueError, match="no images"):
        method()(data)


def test_translate_train_encodes_each_row_from_its_own_sample_only():
    trained = method()
    whole, some = (trained.encode(d) for d in (
        translations("de"), part(translations("de"), slice(2, 5))
    ))  # fmt: skip
    assert whole.keys() == some.keys() == {"ids", "image", "source", "targets.de"}
    for name, rows in whole.items():
        torch.testing.assert_close(rows[2:5], some[name], rtol=0, atol=1e-12)


def test_translate_train_is_cacheable_and_built_from_a_config():
    spec = {"name": "translate_train", "image_loss": {"name": "info_nce", "label_smoothing": 0.1}}
    built = build(methods, spec, model())
    assert isinstance(built.image_loss, InfoNCELoss)
    assert built.image_loss.reduction == "mean"  # what the config says stands
    assert method().image_loss.reduction == "sum"
    assert built.cacheable


def test_translate_train_refuses_to_train_nothing_and_a_bias_that_nothing_trains():
    with pytest.raises(ValueError, match="are both 0"):
        method(source_weight=0, target_weight=0)
    with pytest.raises(ValueError, match="InfoNCELoss would ignore it"):
        TranslateTrain(model(bag(), bias=-10.0))
