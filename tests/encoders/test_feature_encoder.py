import pytest
import torch

from xlcm.config import build
from xlcm.encoders.features import FeatureEncoder
from xlcm.registry import image_encoders
from xlcm.types import Visual

SPECS = [
    {"name": "features", "width": 8},
    {"name": "features", "width": 8, "norm": "layer", "freeze": "all"},
    {"name": "features", "width": 8, "tokens": True, "pooling": {"name": "attention", "heads": 2}},
    {
        "name": "features",
        "width": 8,
        "tokens": True,
        "norm": "l2",
        "dropout": 0.1,
        "freeze": {"keep_last": 1},
    },
]


@pytest.mark.parametrize("spec", SPECS)
def test_spec_round_trip_gives_the_same_output(spec: dict) -> None:
    encoder = build(image_encoders, spec).eval()
    again = build(image_encoders, encoder.spec()).eval()
    again.load_state_dict(encoder.state_dict())
    assert again.spec() == encoder.spec()
    shape = (3, 5, 8) if encoder.tokens else (3, 8)
    visual = Visual(features=torch.randn(shape))
    assert torch.equal(encoder(visual).pooled, again(visual).pooled)


def test_pooled_features_pass_unchanged_by_default() -> None:
    features = torch.randn(3, 8)
    out = FeatureEncoder(width=8)(Visual(features=features))
    assert torch.equal(out.pooled, features)
    assert out.tokens is None


def test_frames_are_averaged_over_real_ones() -> None:
    features = torch.randn(2, 4, 8)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]).bool()
    out = FeatureEncoder(width=8, tokens=True)(Visual(features=features, mask=mask))
    torch.testing.assert_close(out.pooled[0], features[0, :2].mean(0))
    assert out.tokens is not None
    assert out.tokens.shape == (2, 4, 8)
    assert out.mask is not None
    assert torch.equal(out.mask, mask)


def test_frames_without_a_mask_are_all_real() -> None:
    features = torch.randn(2, 4, 8)
    out = FeatureEncoder(width=8, tokens=True)(Visual(features=features))
    torch.testing.assert_close(out.pooled, features.mean(1))


def test_l2_norm_gives_unit_vectors_and_keeps_zero() -> None:
    features = torch.cat([torch.randn(2, 8) * 9, torch.zeros(1, 8)])
    pooled = FeatureEncoder(width=8, norm="l2")(Visual(features=features)).pooled
    torch.testing.assert_close(pooled.norm(dim=1), torch.tensor([1.0, 1.0, 0.0]))


def test_stored_half_precision_meets_the_dtype_of_the_model() -> None:
    visual = Visual(features=torch.randn(2, 8).half())
    assert FeatureEncoder(width=8)(visual).pooled.dtype == torch.float32
    assert FeatureEncoder(width=8).bfloat16()(visual).pooled.dtype == torch.bfloat16


@pytest.mark.parametrize(("tokens", "shape"), [(False, (2, 9)), (False, (2, 3, 8)), (True, (2, 8))])
def test_features_of_another_shape_are_refused(tokens: bool, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected features .*8\), got .*`width`"):
        FeatureEncoder(width=8, tokens=tokens)(Visual(features=torch.zeros(shape)))


def test_a_batch_of_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match="reads features, but the batch has none"):
        FeatureEncoder(width=8)(Visual(pixels=torch.zeros(1, 3, 4, 4, dtype=torch.uint8)))


def test_unreached_pooling_weights_are_not_built() -> None:
    spec = {"name": "features", "width": 8, "pooling": "attention"}
    assert not list(build(image_encoders, spec).parameters())


def test_freeze_all_stops_training_and_dropout() -> None:
    encoder = FeatureEncoder(width=8, norm="layer", dropout=0.5, freeze="all").train()
    assert encoder.frozen
    visual = Visual(features=torch.randn(4, 8))
    assert torch.equal(encoder(visual).pooled, encoder(visual).pooled)
    encoder.freeze("none")
    encoder.train()
    assert not encoder.frozen
    assert not torch.equal(encoder(visual).pooled, encoder(visual).pooled)
