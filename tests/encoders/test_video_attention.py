import pytest
import released
import torch

from xlcm.config import ConfigError, build
from xlcm.encoders.video_attention import FrameAttentionEncoder
from xlcm.registry import image_encoders
from xlcm.types import Visual

HEADS = 2


def make(**options) -> FrameAttentionEncoder:
    torch.manual_seed(0)
    spec = {"name": "frame_attention", "feature_width": 6, "width": 8, "heads": HEADS,
            "key_width": 12, "positions": 9, "max_frames": 7, **options}  # fmt: skip
    return build(image_encoders, spec).double()


def frames(length: int = 5):
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(3, length, 6, generator=generator, dtype=torch.float64)
    mask = torch.arange(length) < torch.tensor([[length], [2], [1]])
    return features.masked_fill(~mask[..., None], 0.0), mask


def test_legacy_tower_equals_the_released_one_in_loops():
    tower = make(legacy_padding=True, legacy_divisor=True).eval()
    features, mask = frames()
    pooled = tower(Visual(features=features, mask=mask)).pooled
    for row in range(3):
        slow = released.own_branch(
            features[row], mask[row].int().tolist(), tower.state_dict(), HEADS
        )
        torch.testing.assert_close(pooled[row], slow, atol=1e-5, rtol=0)


def test_a_tower_for_vatex_has_the_published_number_of_parameters():
    tower = FrameAttentionEncoder(feature_width=1024)
    assert round(sum(p.numel() for p in tower.parameters()) / 1e6, 2) == 4.29


@pytest.mark.parametrize("content", [0.0, 1e4, float("nan")])
@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_more_padding_changes_no_vector_and_no_gradient(pooling, content):
    tower = make(pooling=pooling).eval()
    features, mask = frames(4)

    def run(extra: int):
        wide = torch.full((3, 4 + extra, 6), content, dtype=torch.float64)
        wide[:, :4] = features.masked_fill(~mask[..., None], content)
        seen = torch.cat([mask, mask.new_zeros(3, extra)], dim=1)
        pooled = tower(Visual(features=wide.requires_grad_(), mask=seen)).pooled
        tower.zero_grad()
        pooled.square().sum().backward()
        return [pooled.detach(), wide.grad[seen], *(p.grad.clone() for p in tower.parameters())]

    for before, after in zip(run(0), run(3)):
        torch.testing.assert_close(after, before, atol=1e-12, rtol=0)


def test_released_vectors_depend_on_padding_which_the_switch_brings_back():
    tower = make(legacy_padding=True).eval()
    features, mask = frames(4)
    wide = torch.cat([features, features.new_zeros(3, 3, 6)], dim=1)
    seen = torch.cat([mask, mask.new_zeros(3, 3)], dim=1)
    moved = (
        tower(Visual(features=wide, mask=seen)).pooled
        - tower(Visual(features=features, mask=mask)).pooled
    )
    assert (moved.abs().amax(dim=1) > 1e-3).all()


def test_the_first_frames_are_read_and_no_more():
    tower = make(max_frames=3).eval()
    features, _ = frames(5)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]]).bool()
    out = tower(Visual(features=features, mask=mask))
    first = tower(Visual(features=features[:, :3], mask=mask[:, :3]))
    assert torch.equal(out.pooled, first.pooled)
    assert out.tokens.shape == (3, 3, 8)
    assert torch.equal(out.mask, mask[:, :3])


def test_frames_without_a_mask_are_all_real():
    tower = make().eval()
    features, _ = frames()
    every = torch.ones(3, 5, dtype=torch.bool)
    torch.testing.assert_close(
        tower(Visual(features=features)).pooled,
        tower(Visual(features=features, mask=every)).pooled,
    )


def test_order_of_frames_matters():
    tower = make().eval()
    features, _ = frames()
    turned = tower(Visual(features=features.flip(1))).pooled
    assert (turned - tower(Visual(features=features)).pooled).abs().max() > 1e-4


def test_spec_rebuilds_the_tower():
    tower = make(
        pooling="max", dropout=0.2, legacy_padding=True, legacy_divisor=True,
        freeze={"keep_last": 1},
    ).eval()  # fmt: skip
    again = build(image_encoders, tower.spec()).double().eval()
    again.load_state_dict(tower.state_dict())
    assert again.spec() == tower.spec()
    features, mask = frames()
    visual = Visual(features=features, mask=mask)
    assert torch.equal(tower(visual).pooled, again(visual).pooled)


def test_it_says_that_it_reads_features_and_of_what_width():
    tower = make()
    assert tower.reads_features
    assert image_encoders.get("frame_attention").reads_features
    assert (tower.feature_width, tower.width, tower.transform) == (6, 8, None)


def test_layers_hold_every_parameter_once_and_freeze():
    tower = make(freeze={"keep_last": 1}).train()
    held = [id(p) for layer in tower.layers() for p in layer.parameters()]
    assert sorted(held) == sorted(id(p) for p in tower.parameters())
    trained = {n.partition(".")[0] for n, p in tower.named_parameters() if p.requires_grad}
    assert trained == {"block"}
    assert not tower.projection.training
    assert tower.block.training


def test_gradients_reach_every_parameter():
    tower = make().train()
    features, mask = frames()
    tower(Visual(features=features, mask=mask)).pooled.square().sum().backward()
    assert [n for n, p in tower.named_parameters() if p.grad is None] == []


def test_stored_half_precision_meets_the_dtype_of_the_model():
    visual = Visual(features=torch.randn(2, 3, 6).half())
    assert make()(visual).pooled.dtype == torch.float64
    assert make().bfloat16()(visual).pooled.dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(2, 6), (2, 3, 7)])
def test_features_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected features \(batch, frames, 6\), got .*width"):
        make()(Visual(features=torch.zeros(shape)))


def test_a_batch_of_pixels_is_refused():
    with pytest.raises(ValueError, match="frame_attention reads features of frames, but"):
        make()(Visual(pixels=torch.zeros(1, 3, 4, 4, dtype=torch.uint8)))


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="positions=9, but max_frames=10"):
        make(max_frames=10)
    with pytest.raises(ConfigError, match="heads=3 does not divide width=8"):
        make(heads=3)
    with pytest.raises(ConfigError, match="max_frames"):
        make(max_frames=0)
