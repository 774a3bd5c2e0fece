import math

import pytest
import torch

from xlcm.config import ConfigError, build
from xlcm.encoders.video_transformer import FrameTransformerEncoder
from xlcm.registry import image_encoders
from xlcm.types import Visual

WIDTH, FEATURES = 8, 6


def tower(**options) -> FrameTransformerEncoder:
    torch.manual_seed(0)
    sizes = {"feature_width": FEATURES, "width": WIDTH, "heads": 2}
    encoder = FrameTransformerEncoder(**{**sizes, **options}).double()
    for parameter in encoder.parameters():  # the small start would hide what a block does
        torch.nn.init.normal_(parameter, std=0.5)
    return encoder


def video(*lengths: int, frames: int = 5) -> Visual:
    """Frames of several videos; what stands under mask 0 is not zero."""
    torch.manual_seed(1)
    features = torch.randn(len(lengths), frames, FEATURES, dtype=torch.float64)
    mask = torch.arange(frames) < torch.tensor(lengths)[:, None]
    return Visual(features=features, mask=mask)


# -- the released code, in loops ----------------------------------------------------------------


def linear(vector, weight, bias):
    return torch.stack([(row * vector).sum() + b for row, b in zip(weight, bias)])


def layer_norm(vector, weight, bias):
    mean = vector.sum() / len(vector)
    variance = ((vector - mean) ** 2).sum() / len(vector)
    return (vector - mean) / (variance + 1e-6).sqrt() * weight + bias


def attended(tokens, weights, block, heads):
    """Multi-head attention of a list of real tokens: nobody sees padding, so it is not there."""
    size = WIDTH // heads
    normed = [layer_norm(t, *pair(weights, f"{block}.attention_norm")) for t in tokens]
    all_three = [linear(t, *pair(weights, f"{block}.query_key_value")) for t in normed]
    out = []
    for asking in all_three:
        mixed = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            query = asking[:WIDTH][part]
            scores = [
                torch.exp((query * told[WIDTH : 2 * WIDTH][part]).sum() / math.sqrt(size))
                for told in all_three
            ]
            mixed.append(
                sum(s * told[2 * WIDTH :][part] for s, told in zip(scores, all_three)) / sum(scores)
            )
        out.append(linear(torch.cat(mixed), *pair(weights, f"{block}.out")))
    return out


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def pair(weights, name):
    return weights[f"{name}.weight"], weights[f"{name}.bias"]


def frame_token(frame, weights):
    """Steps 1 to 3: unit length, gated unit, LayerNorm."""
    unit = frame / max(float((frame * frame).sum().sqrt()), 1e-12)
    hidden = linear(unit, *pair(weights, "frames.gated.linear"))
    gate = 1 / (1 + torch.exp(-linear(hidden, *pair(weights, "frames.gated.gate"))))
    return layer_norm(hidden * gate, *pair(weights, "frames.norm"))


def class_output(tokens, weights, *, layers, heads):
    """Steps 5 to 7 on a list of tokens."""
    tokens = [weights["frames.class_token"], *tokens]
    for number in range(layers):
        block = f"blocks.{number}"
        told = attended(tokens, weights, block, heads)
        tokens = [t + a for t, a in zip(tokens, told)]
        for place, token in enumerate(tokens):
            inner = layer_norm(token, *pair(weights, f"{block}.mlp_norm"))
            inner = gelu(linear(inner, *pair(weights, f"{block}.mlp.0")))
            tokens[place] = token + linear(inner, *pair(weights, f"{block}.mlp.2"))
    return tokens[0]


@pytest.mark.parametrize(("layers", "heads"), [(1, 1), (2, 4)])
def test_tower_agrees_with_the_released_one_in_loops(layers, heads):
    encoder = tower(layers=layers, heads=heads)
    weights = encoder.state_dict()
    visual = video(5, 1, 3, 0)
    pooled = encoder(visual).pooled
    for row, length in enumerate((5, 1, 3)):
        tokens = [frame_token(f, weights) for f in visual.features[row, :length]]
        expected = class_output(tokens, weights, layers=layers, heads=heads)
        torch.testing.assert_close(pooled[row], expected, atol=1e-12, rtol=1e-12)
    nothing = class_output([weights["frames.mask_token"]], weights, layers=layers, heads=heads)
    torch.testing.assert_close(pooled[3], nothing, atol=1e-12, rtol=1e-12)


# -- sets of frames -----------------------------------------------------------------------------


def test_permuting_valid_frames_leaves_the_embedding_unchanged():
    encoder, visual = tower(), video(4, 5)
    order = torch.tensor([2, 0, 3, 1, 4])
    shuffled = Visual(features=visual.features[:, order], mask=visual.mask)
    torch.testing.assert_close(encoder(shuffled).pooled, encoder(visual).pooled)


@pytest.mark.parametrize("filler", [0.0, 1e6, math.nan, math.inf])
def test_features_under_mask_0_leave_the_embedding_unchanged(filler):
    encoder, visual = tower(), video(3, 5, 0)
    spoilt = visual.features.masked_fill(~visual.mask[..., None], filler)
    expected, found = encoder(visual), encoder(Visual(features=spoilt, mask=visual.mask))
    assert torch.equal(found.pooled, expected.pooled)
    gradient = torch.autograd.grad(found.pooled.sum(), encoder.frames.gated.linear.weight)[0]
    assert gradient.isfinite().all()


def test_how_far_a_batch_is_padded_changes_nothing():
    encoder, visual = tower(), video(3, 2)
    short = Visual(features=visual.features[:, :3], mask=visual.mask[:, :3])
    torch.testing.assert_close(encoder(visual).pooled, encoder(short).pooled)


def test_an_empty_video_equals_a_video_of_the_mask_token_alone():
    encoder = tower()
    tokens = torch.stack([encoder.frames.class_token, encoder.frames.mask_token])[None]
    for block in encoder.blocks:
        tokens = block(tokens, torch.ones(1, 2, dtype=torch.bool))
    found = encoder(video(5, 0))
    torch.testing.assert_close(found.pooled[1], tokens[0, 0])
    torch.testing.assert_close(found.tokens[1, 0], tokens[0, 1])
    assert found.mask.tolist() == [[True] * 5, [True] + [False] * 4]
    only_empty = encoder(Visual(features=torch.zeros(2, 0, FEATURES), mask=torch.zeros(2, 0) > 0))
    torch.testing.assert_close(only_empty.pooled[1], tokens[0, 0])


def test_the_batch_is_never_written_into():
    visual = video(4, 0)
    before = visual.features.clone(), visual.mask.clone()
    tower()(visual)
    assert torch.equal(visual.features, before[0])
    assert torch.equal(visual.mask, before[1])


def test_only_the_first_frames_are_read():
    encoder, visual = tower(max_frames=3), video(5, 2)
    first = Visual(features=visual.features[:, :3], mask=visual.mask[:, :3])
    assert torch.equal(encoder(visual).pooled, encoder(first).pooled)
    assert encoder(visual).tokens.shape == (2, 3, WIDTH)


def test_one_vector_an_item_is_a_video_of_one_frame():
    encoder, visual = tower(), video(1, 1)
    image = Visual(features=visual.features[:, 0])
    torch.testing.assert_close(encoder(image).pooled, encoder(visual).pooled)
    unmasked = Visual(features=visual.features)
    assert encoder(unmasked).mask.all()


def test_unit_length_is_an_option_and_zero_stays_zero():
    visual = video(5, 4)
    longer = Visual(features=visual.features * 3, mask=visual.mask)
    assert torch.allclose(tower()(visual).pooled, tower()(longer).pooled)
    assert not torch.allclose(tower(norm="none")(visual).pooled, tower(norm="none")(longer).pooled)
    zero = Visual(features=torch.zeros(1, 2, FEATURES, dtype=torch.float64))
    assert tower()(zero).pooled.isfinite().all()


# -- training -----------------------------------------------------------------------------------


def test_gradient_is_that_of_finite_differences():
    encoder = tower(layers=1)
    visual = video(3, 0, frames=3)
    features = visual.features.requires_grad_()

    def pooled(frames, token):
        weights = {**dict(encoder.named_parameters()), "frames.mask_token": token}
        inner = Visual(features=frames, mask=visual.mask)
        return torch.func.functional_call(encoder, weights, (inner,)).pooled

    token = encoder.frames.mask_token.detach().requires_grad_()
    assert torch.autograd.gradcheck(pooled, (features, token))


@pytest.mark.parametrize("lengths", [(3, 5), (0, 5), (0, 0)])
def test_every_parameter_gets_a_gradient_whichever_videos_are_empty(lengths):
    encoder = tower()
    encoder(video(*lengths)).pooled.sum().backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None] == []
    moved = encoder.frames.mask_token.grad.abs().sum() > 0
    assert bool(moved) == (0 in lengths)


def test_half_precision_stays_finite_and_near():
    encoder, visual = tower().float(), video(3, 5, 0)
    whole = encoder(visual).pooled
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = encoder(visual).pooled
    assert torch.nn.functional.cosine_similarity(whole, half.float()).min() > 0.99


def test_the_start_is_the_published_one():
    torch.manual_seed(0)
    encoder = FrameTransformerEncoder(feature_width=64, width=64)
    for block in encoder.blocks:
        for linear_layer in (block.query_key_value, block.out, block.mlp[0], block.mlp[2]):
            assert 0.018 < linear_layer.weight.std().item() < 0.022
            assert not linear_layer.bias.any()
    assert 0.015 < encoder.frames.class_token.std().item() < 0.025
    assert 0.015 < encoder.frames.mask_token.std().item() < 0.025
    assert not torch.equal(encoder.frames.class_token, encoder.frames.mask_token)


def test_size_is_the_published_one():
    encoder = FrameTransformerEncoder(feature_width=512)
    assert sum(p.numel() for p in encoder.frames.gated.parameters()) == 525_312
    assert sum(p.numel() for p in encoder.blocks.parameters()) == 2 * 1_577_984


# -- the tower's promises -----------------------------------------------------------------------


@pytest.mark.parametrize("freeze", ["none", "all", {"keep_last": 1}])
def test_spec_round_trip_gives_the_same_output(freeze):
    spec = {
        "name": "frame_transformer", "feature_width": FEATURES, "width": WIDTH, "layers": 3,
        "heads": 2, "mlp_ratio": 1.5, "max_frames": 4, "norm": "none", "freeze": freeze,
    }  # fmt: skip
    encoder = build(image_encoders, spec)
    again = build(image_encoders, encoder.spec())
    again.load_state_dict(encoder.state_dict())
    assert again.spec() == encoder.spec() == spec
    visual = video(5, 2, 0)
    assert torch.equal(encoder(visual).pooled, again(visual).pooled)
    trained = [any(p.requires_grad for p in layer.parameters()) for layer in again.layers()]
    expected = {"none": [True] * 4, "all": [False] * 4}
    assert trained == expected.get(str(freeze), [False, False, False, True])
    assert (again.reads_features, again.feature_width, again.width) == (True, FEATURES, WIDTH)


def test_layers_hold_every_parameter_once():
    encoder = tower(layers=3)
    held = [id(p) for layer in encoder.layers() for p in layer.parameters()]
    assert len(encoder.layers()) == 4
    assert sorted(held) == sorted(id(p) for p in encoder.parameters())


def test_a_batch_that_does_not_fit_says_what_to_change():
    encoder = tower()
    with pytest.raises(ValueError, match="reads features of frames, but the batch has none"):
        encoder(Visual(pixels=torch.zeros(1, 3, 4, 4, dtype=torch.uint8)))
    for shape in ((2, 3, FEATURES + 1), (2, 2, 3, FEATURES)):
        with pytest.raises(ValueError, match=r"expected features \(batch, frames, 6\).*width"):
            encoder(Visual(features=torch.zeros(shape)))
    with pytest.raises(ValueError, match="heads=3 does not divide width=8"):
        tower(heads=3)
    with pytest.raises(ConfigError, match="mlp_ratio"):
        build(image_encoders, {"name": "frame_transformer", "feature_width": 6, "mlp_ratio": 0})
