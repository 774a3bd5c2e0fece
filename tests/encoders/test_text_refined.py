import math

import pytest
import released
import torch

from xlcm.config import ConfigError, build
from xlcm.encoders.text_refined import RefinedTextEncoder
from xlcm.encoders.tokenizer import SentencePieceTokenizer
from xlcm.registry import text_encoders
from xlcm.types import Encoded, TextBatch

TEXTS = ["a red square", "two small blue circles above a large green triangle", "a", ""]
BACK = ["ein rotes Quadrat", "zwei kleine blaue Kreise", "ein", "ein Kreis ueber allem"]
BERT = {
    "model_type": "bert", "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 16, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
INNER = {
    "bag": {"name": "bag", "width": 12, "context": "conv"},
    "hf": {"name": "hf", "architecture": BERT},
}
LEGACY = {"legacy_padding": True, "legacy_divisor": True}
HEADS = 2


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    made = SentencePieceTokenizer(vocab_size=400, max_tokens=24).train((TEXTS + BACK) * 5)
    folder = tmp_path_factory.mktemp("tokenizer")
    return {**made.save(folder), "path": str(folder)}


def make(tokenizer, inner="bag", inner_options=(), **options):
    torch.manual_seed(0)
    encoder = {**INNER[inner], "tokenizer": tokenizer, **dict(inner_options)}
    spec = {"name": "refined", "encoder": encoder, "width": 16, "heads": HEADS, "key_width": 8}
    return build(text_encoders, {**spec, **options}).double()


def padded(batch: TextBatch, extra: int, content: int = 7) -> TextBatch:
    """The same captions, further padded."""
    rows = len(batch.ids)
    ids = batch.ids.masked_fill(~batch.mask, content)
    return TextBatch(
        torch.cat([ids, ids.new_full((rows, extra), content)], dim=1),
        torch.cat([batch.mask, batch.mask.new_zeros(rows, extra)], dim=1),
    )


def teacher(tower, source: TextBatch, target: TextBatch, **options):
    """What a method does: states once, a projection once, then the cross branch."""
    states = [tower.states(text) for text in (source, target)]
    one, other = (tower.project(s) for s in states)
    return tower.cross(one, states[0].mask, other, states[1].mask, **options)


# -- the released behaviour ---------------------------------------------------------------------


@pytest.mark.parametrize("inner", INNER)
def test_legacy_branches_equal_the_released_ones_in_loops(tokenizer, inner):
    tower = make(tokenizer, inner, **LEGACY).eval()
    source, target = tower.tokenizer(TEXTS[:3]), tower.tokenizer(BACK[:3])
    weights = tower.state_dict()
    states = [tower.states(text).tokens.detach() for text in (source, target)]
    masks = [text.mask.int().tolist() for text in (source, target)]
    own, crossed = tower(source).pooled, teacher(tower, source, target)
    for row in range(3):
        slow = released.own_branch(states[0][row], masks[0][row], weights, HEADS)
        torch.testing.assert_close(own[row], slow, atol=1e-5, rtol=0)
        slow = released.cross_branch(
            states[0][row], masks[0][row], states[1][row], masks[1][row], weights, HEADS
        )
        torch.testing.assert_close(crossed[row], slow, atol=1e-5, rtol=0)


def test_released_vectors_depend_on_padding_which_the_switch_brings_back(tokenizer):
    tower = make(tokenizer, **LEGACY).eval()
    batch = tower.tokenizer(TEXTS)
    moved = (tower(batch).pooled - tower(padded(batch, 5)).pooled).abs().amax(dim=1)
    assert (moved > 1e-3).all()


@pytest.mark.parametrize("legacy", [False, True])
def test_cross_branch_with_a_block_of_zeros_is_the_share_of_the_target(tokenizer, legacy):
    tower = make(tokenizer, legacy_padding=legacy).eval()
    with torch.no_grad():  # LayerNorm without weight and bias
        tower.block.norm.weight.zero_()
        tower.block.norm.bias.zero_()
    source, target = torch.randn(2, 3, 16).double(), torch.randn(2, 5, 16).double()
    every = [torch.ones(2, n, dtype=torch.bool) for n in (3, 5)]
    pooled = tower.cross(source, every[0], target, every[1])
    torch.testing.assert_close(pooled, 5 / (3 + 5) * target.mean(dim=1))


def test_cross_branch_alone_is_what_the_queries_gathered(tokenizer):
    tower = make(tokenizer).eval()
    source, target = torch.randn(2, 3, 16).double(), torch.randn(2, 5, 16).double()
    masks = [torch.ones(2, 3, dtype=torch.bool), torch.arange(5) < torch.tensor([[5], [2]])]
    alone = tower.cross(source, masks[0], target, masks[1], concatenate=False)
    block = tower.block(source, masks[0], target, masks[1], residual=False)
    torch.testing.assert_close(alone, block.mean(dim=1))
    other = tower.cross(source, masks[0], target, masks[1], residual=True)
    both = tower.block(source, masks[0], target, masks[1])
    total = both.sum(dim=1) + (target * masks[1][..., None]).sum(dim=1)
    torch.testing.assert_close(other, total / (3 + masks[1].sum(dim=1, keepdim=True)))


def test_the_head_has_the_published_number_of_parameters(tokenizer):
    tower = make(tokenizer, inner_options={"width": 768}, width=768, heads=8, key_width=512)
    count = sum(p.numel() for p in tower.layers()[-1].parameters())
    assert round(count / 1e6, 2) == 2.76


# -- padding ------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["mean", "max"])
@pytest.mark.parametrize("inner", INNER)
def test_more_padding_changes_no_vector_and_no_gradient(tokenizer, inner, pooling):
    tower = make(tokenizer, inner, pooling=pooling).eval()
    source, target = tower.tokenizer(TEXTS), tower.tokenizer(BACK)

    def run(extra: int):
        texts = [padded(text, extra) for text in (source, target)]
        out = [tower(texts[0]).pooled, teacher(tower, *texts)]
        tower.zero_grad()
        sum(o.square().sum() for o in out).backward()
        return [*(o.detach() for o in out), *(p.grad.clone() for p in tower.parameters())]

    for before, after in zip(run(0), run(6)):
        torch.testing.assert_close(after, before, atol=1e-10, rtol=0)


def test_what_stands_in_the_states_of_padding_reaches_nothing(tokenizer):
    tower = make(tokenizer).eval()
    states = tower.states(tower.tokenizer(TEXTS))
    spoilt = states.tokens.detach().masked_fill(~states.mask[..., None], float("nan"))
    spoilt.requires_grad_()
    projected = tower.project(Encoded(states.pooled, spoilt, states.mask))
    pooled = tower.refine(projected, states.mask).pooled
    expected = tower.refine(tower.project(states), states.mask).pooled
    torch.testing.assert_close(pooled, expected)
    pooled.square().sum().backward()
    assert spoilt.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in tower.layers()[-1].parameters())


def test_a_caption_alone_has_the_vector_it_has_in_a_batch(tokenizer):
    tower = make(tokenizer).eval()
    together = tower(tower.tokenizer(TEXTS)).pooled
    alone = torch.cat([tower(tower.tokenizer([text])).pooled for text in TEXTS])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-10)


# -- a tower like any other ---------------------------------------------------------------------


@pytest.mark.parametrize("inner", INNER)
def test_spec_rebuilds_the_tower(tokenizer, inner):
    options = {"pooling": "max", "positions": 30, "dropout": 0.2, **LEGACY}
    tower = make(tokenizer, inner, freeze={"keep_last": 1}, **options).eval()
    again = build(text_encoders, tower.spec()).double().eval()
    again.load_state_dict(tower.state_dict())
    assert again.spec() == tower.spec()
    assert {k: again.spec()[k] for k in options} == options
    batch = tower.tokenizer(TEXTS)
    assert torch.equal(tower(batch).pooled, again(batch).pooled)
    assert [p.requires_grad for p in again.parameters()] == [
        p.requires_grad for p in tower.parameters()
    ]


def test_it_is_the_inner_tower_in_tokenizer_weights_and_limits(tokenizer, monkeypatch):
    tower = make(tokenizer)
    assert tower.tokenizer is tower.encoder.tokenizer
    assert tower.max_tokens == 24
    assert (tower.width, tower.token_width, tower.inner_width) == (16, 16, 12)
    out = tower(tower.tokenizer(TEXTS))
    assert out.tokens.shape == (*out.mask.shape, 16)
    called = []
    monkeypatch.setattr(type(tower.encoder), "load_weights", lambda self: called.append(self))
    tower.load_weights()
    assert called == [tower.encoder]


@pytest.mark.parametrize("inner", INNER)
def test_layers_hold_every_parameter_once(tokenizer, inner):
    tower = make(tokenizer, inner)
    held = [id(p) for layer in tower.layers() for p in layer.parameters()]
    assert sorted(held) == sorted(id(p) for p in tower.parameters())
    assert len(tower.layers()) == len(tower.encoder.layers()) + 1


@pytest.mark.parametrize("inner", INNER)
def test_gradients_reach_every_parameter(tokenizer, inner):
    tower = make(tokenizer, inner)
    tower(tower.tokenizer(TEXTS)).pooled.square().sum().backward()
    assert [n for n, p in tower.named_parameters() if p.grad is None] == []


def trained(tower) -> set[str]:
    return {n.partition(".")[0] for n, p in tower.named_parameters() if p.requires_grad}


def test_what_the_inner_tower_froze_stays_frozen(tokenizer):
    tower = make(tokenizer, inner_options={"freeze": "all"}).train()
    assert trained(tower) == {"projection", "block"}
    assert not tower.encoder.training
    assert tower.block.training
    tower.freeze({"keep_last": 2})
    assert trained(tower) == {"projection", "block"}


def test_keep_last_counts_the_refinement_as_the_last_layer(tokenizer):
    tower = make(tokenizer, freeze={"keep_last": 1}).train()
    assert trained(tower) == {"projection", "block"}
    assert not tower.encoder.blocks[0].training
    tower.freeze({"keep_last": 2})
    names = {n for n, p in tower.encoder.named_parameters() if p.requires_grad}
    assert all(n.startswith("blocks.0") for n in names)
    assert names
    tower.freeze("all")
    assert tower.frozen
    assert not tower.train().block.training


def test_bfloat16_autocast_trains(tokenizer):
    tower = make(tokenizer, dropout=0.0, inner_options={"dropout": 0.0}).float()
    batch = tower.tokenizer(TEXTS)
    exact = teacher(tower, batch, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = teacher(tower, batch, batch)
    rough.float().square().sum().backward()
    torch.testing.assert_close(rough.float(), exact, rtol=0, atol=0.1)
    assert all(p.grad.isfinite().all() for p in tower.layers()[-1].parameters())


def test_gradients_are_those_of_finite_differences(tokenizer):
    tower = make(tokenizer, width=4, key_width=4).eval()
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()

    def both(source, target):
        crossed = tower.cross(source, mask, target, mask[:, :2])
        return crossed, tower.refine(source, mask).pooled

    inputs = [torch.randn(2, n, 4, dtype=torch.float64, requires_grad=True) for n in (3, 2)]
    assert torch.autograd.gradcheck(both, inputs)


# -- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inner", "options", "message"),
    [
        ("bag", {"tokens": False, "context": "none"}, r"encoder\.tokens=false"),
        ("bag", {"hidden": 8}, r"encoder\.hidden has weights behind the tokens"),
        ("bag", {"pooling": {"name": "attention", "heads": 2}}, r"encoder\.pooling has weights"),
        ("hf", {"output": "own"}, r"encoder\.output='own' builds a pooler"),
    ],
)
def test_an_inner_tower_whose_weights_no_token_reaches_is_refused(
    tokenizer, inner, options, message
):
    with pytest.raises(ConfigError, match=message):
        make(tokenizer, inner, options)


def test_an_inner_tower_without_tokens_is_named_when_it_runs(tokenizer):
    tower = make(tokenizer)
    with pytest.raises(ValueError, match="returned no tokens"):
        tower.project(Encoded(torch.zeros(2, 12)))


def test_fewer_positions_than_tokens_are_refused(tokenizer):
    with pytest.raises(ConfigError, match=r"positions=23, .* 24 tokens: raise `positions`"):
        make(tokenizer, positions=23)


def test_config_rejects_what_is_out_of_range(tokenizer):
    for options in ({"dropout": 1.0}, {"heads": 0}, {"pooling": "cls"}, {"widht": 3}):
        with pytest.raises(ConfigError):
            make(tokenizer, **options)
    with pytest.raises(ConfigError, match="heads=3 does not divide width=16"):
        make(tokenizer, heads=3)


def test_positions_start_small(tokenizer):
    tower = RefinedTextEncoder(encoder=make(tokenizer).encoder, width=64, heads=2, key_width=8)
    assert math.isclose(tower.projection.positions.weight.std().item(), 0.02, rel_tol=0.05)
