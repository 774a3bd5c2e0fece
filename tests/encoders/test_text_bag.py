import pytest
import torch

from xlcm.config import ConfigError, build, check_part
from xlcm.encoders.tokenizer import SentencePieceTokenizer
from xlcm.registry import text_encoders
from xlcm.types import TextBatch

CONTEXTS = ["none", "conv", "gru", "attention"]
TEXTS = ["a red square", "", "two small blue circles above a large green triangle", "a"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    made = SentencePieceTokenizer(vocab_size=400, max_tokens=24).train(TEXTS * 5)
    folder = tmp_path_factory.mktemp("tokenizer")
    return {**made.save(folder), "path": str(folder)}


def make(tokenizer, **options):
    torch.manual_seed(0)
    spec = {"name": "bag", "tokenizer": tokenizer, "width": 16, "hidden": 8, **options}
    return build(text_encoders, spec)


@pytest.mark.parametrize("pooling", ["mean", "max", "cls", "last", "attention"])
@pytest.mark.parametrize("context", CONTEXTS)
def test_padding_changes_nothing(tokenizer, context, pooling):
    tower = make(tokenizer, context=context, pooling=pooling, context_layers=2).eval()
    batch = tower.tokenizer(TEXTS)
    together = tower(batch).pooled
    alone = torch.cat([tower(tower.tokenizer([text])).pooled for text in TEXTS])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    batch.ids[~batch.mask] = 7  # nor does what stands in the padding
    torch.testing.assert_close(tower(batch).pooled, together, rtol=0, atol=1e-6)


@pytest.mark.parametrize("context", CONTEXTS[1:])
def test_context_makes_word_order_matter(tokenizer, context):
    bag = make(tokenizer).eval()
    mixed = make(tokenizer, context=context).eval()
    batch = bag.tokenizer(["a red square"])
    turned = TextBatch(batch.ids.flip(1), batch.mask)
    assert torch.allclose(bag(batch).pooled, bag(turned).pooled, atol=1e-6)
    assert (mixed(batch).pooled - mixed(turned).pooled).abs().max() > 1e-3


@pytest.mark.parametrize("context", CONTEXTS)
def test_gradients_reach_every_parameter(tokenizer, context):
    tower = make(tokenizer, context=context, pooling="attention", token_dropout=0.3)
    tower(tower.tokenizer(TEXTS)).pooled.square().sum().backward()
    assert [n for n, p in tower.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("context", CONTEXTS)
def test_bfloat16_autocast_trains(tokenizer, context):
    tower = make(tokenizer, context=context, pooling="attention", dropout=0.0)
    batch = tower.tokenizer(TEXTS)
    exact = tower(batch).pooled
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = tower(batch).pooled
    rough.float().square().sum().backward()
    torch.testing.assert_close(rough.float(), exact, rtol=0, atol=0.1)
    assert all(p.grad.isfinite().all() for p in tower.parameters())


@pytest.mark.parametrize("context", CONTEXTS)
def test_layers_hold_every_parameter_once(tokenizer, context):
    tower = make(tokenizer, context=context, pooling="attention", context_layers=2)
    held = [id(p) for layer in tower.layers() for p in layer.parameters()]
    assert sorted(held) == sorted(id(p) for p in tower.parameters())
    assert len(tower.layers()) == (2 if context == "none" else 4)


def test_freezing_all_but_the_last_layer(tokenizer):
    tower = make(tokenizer, context="conv", freeze={"keep_last": 1}).train()
    trained = {n.partition(".")[0] for n, p in tower.named_parameters() if p.requires_grad}
    assert trained == {"mlp"}
    assert not tower.blocks[0].training
    assert tower.mlp.training
    assert tower.spec()["freeze"] == {"keep_last": 1}


@pytest.mark.parametrize("context", CONTEXTS)
def test_token_dropout_leaves_out_the_stated_share_in_training_only(tokenizer, context):
    tower = make(tokenizer, context=context, token_dropout=0.4)
    batch = TextBatch(torch.full((500, 20), 5), torch.arange(20) < torch.tensor([[20]]))
    batch.mask = batch.mask.expand(500, 20).clone()
    batch.mask[:100, 1:] = False
    kept = tower.train()(batch).mask
    assert kept.any(dim=1).all(), "a caption must keep a token"
    assert not (kept & ~batch.mask).any()
    # of 20 tokens 0.6 * 20 stay on average, and a hair more because one always does
    assert kept[100:].sum() / (400 * 20) == pytest.approx(0.6, abs=0.02)
    assert torch.equal(tower.eval()(batch).mask, batch.mask)


def test_an_untrained_tokenizer_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"without a model.*prepare_tokenizer.*path"):
        build(text_encoders, "bag")


def test_spec_rebuilds_the_same_tower(tokenizer):
    tower = make(tokenizer, context="conv", pooling="attention", freeze={"keep_last": 1})
    spec = tower.spec()
    assert check_part(text_encoders, spec) == spec
    again = build(text_encoders, spec)
    again.load_state_dict(tower.state_dict())
    batch = tower.tokenizer(TEXTS)
    assert torch.equal(again.eval()(batch).pooled, tower.eval()(batch).pooled)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"context": "conv", "kernel": 4}, "kernel"),
        ({"context": "gru", "width": 15}, "even width"),
        ({"context": "attention", "attention_heads": 3}, "attention_heads"),
    ],
)
def test_sizes_that_do_not_fit_are_named(tokenizer, options, word):
    with pytest.raises(ValueError, match=word):
        make(tokenizer, **options)


def test_ill_typed_options_stop_in_the_config(tokenizer):
    with pytest.raises(ConfigError, match="token_dropout"):
        make(tokenizer, token_dropout=1.0)


def test_an_empty_batch_gives_no_rows(tokenizer):
    tower = make(tokenizer, context="conv").eval()
    batch = TextBatch(torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, 3, dtype=torch.bool))
    assert tower(batch).pooled.shape == (0, 16)


def test_a_bag_summed_in_one_pass_equals_the_mean_of_its_tokens(tokenizer):
    plain = make(tokenizer, dropout=0.0)
    quick = make(tokenizer, dropout=0.0, tokens=False)
    quick.load_state_dict(plain.state_dict())
    batch = plain.tokenizer(TEXTS)
    expected, found = plain(batch), quick(batch)
    torch.testing.assert_close(found.pooled, expected.pooled)
    assert found.tokens is None
    expected.pooled.square().sum().backward()
    found.pooled.square().sum().backward()
    torch.testing.assert_close(quick.embedding.weight.grad, plain.embedding.weight.grad)


def test_a_bag_without_tokens_refuses_context_and_other_poolings(tokenizer):
    with pytest.raises(ConfigError, match="plain bag"):
        make(tokenizer, context="conv", tokens=False)
    with pytest.raises(ConfigError, match="plain bag"):
        make(tokenizer, pooling="max", tokens=False)
