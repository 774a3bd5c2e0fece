import json
import logging

import pytest
import safetensors.torch
import torch
import transformers
from torch import nn

from xlcm.config import build, check_part
from xlcm.encoders.text_weights import convert_bin
from xlcm.encoders.tokenizer import SentencePieceTokenizer
from xlcm.registry import text_encoders
from xlcm.types import TextBatch

SIZE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_heads": 2}
FAMILIES = {
    "bert": {**SIZE, "model_type": "bert"},  # mBERT, LaBSE
    "xlmr": {**SIZE, "model_type": "xlm-roberta"},  # XLM-R, multilingual E5
    "distilbert": {"model_type": "distilbert", "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 16},
    "mdeberta": {
        **SIZE, "model_type": "deberta-v2", "relative_attention": True, "position_buckets": 8,
        "pos_att_type": ["p2c", "c2p"], "share_att_key": True, "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
    },
    "mt5": {**T5, "model_type": "mt5"},
    "clip": {**SIZE, "model_type": "clip_text_model", "projection_dim": 8},
    "siglip": {**SIZE, "model_type": "siglip_text_model", "max_position_embeddings": 24},
}  # fmt: skip
OUTPUTS = [
    *((family, "pooled") for family in FAMILIES),
    *((family, "own") for family in ("bert", "xlmr", "clip", "siglip")),
    ("clip", "projected"),
]
TEXTS = ["a red square", "", "two small blue circles above a large green triangle", "a"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    made = SentencePieceTokenizer(vocab_size=400, max_tokens=24).train(TEXTS * 5)
    folder = tmp_path_factory.mktemp("tokenizer")
    return {**made.save(folder), "path": str(folder)}


def make(tokenizer, family="bert", seed=0, **options):
    torch.manual_seed(seed)
    spec = {"name": "hf", "architecture": FAMILIES[family], "tokenizer": tokenizer, **options}
    return build(text_encoders, spec)


def shake(model):
    """Give weights that start at 0 or 1 other values, so that none can be mixed up unseen."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


# -- outputs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "output"), OUTPUTS)
def test_padding_changes_nothing(tokenizer, family, output):
    tower = shake(make(tokenizer, family, output=output)).eval()
    batch = tower.tokenizer(TEXTS)
    together = tower(batch)
    alone = torch.cat([tower(tower.tokenizer([text])).pooled for text in TEXTS])
    torch.testing.assert_close(together.pooled, alone, rtol=0, atol=1e-5)
    assert together.pooled.shape == (4, tower.width)
    assert together.tokens.shape == (*batch.ids.shape, tower.token_width)
    assert torch.equal(together.mask, batch.mask)


@pytest.mark.parametrize(("family", "output"), OUTPUTS)
def test_gradients_reach_every_parameter(tokenizer, family, output):
    """A parameter without gradient stops data-parallel training."""
    tower = shake(make(tokenizer, family, output=output))
    tower(tower.tokenizer(TEXTS)).pooled.square().sum().backward()
    assert [n for n, p in tower.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(("family", "output"), OUTPUTS)
def test_bfloat16_autocast_stays_near(tokenizer, family, output):
    tower = make(tokenizer, family, output=output).eval()
    batch = tower.tokenizer(TEXTS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = tower(batch).pooled
    torch.testing.assert_close(rough.float(), tower(batch).pooled, rtol=0, atol=0.1)


@pytest.mark.parametrize(("family", "output"), OUTPUTS)
def test_layers_hold_every_parameter_once(tokenizer, family, output):
    tower = make(tokenizer, family, output=output, pooling="attention")
    held = [id(p) for layer in tower.layers() for p in layer.parameters()]
    assert sorted(held) == sorted(id(p) for p in tower.parameters())
    assert any("embed" in n or "shared" in n for n, _ in tower.layers()[0].named_parameters())


@pytest.mark.parametrize(
    ("family", "theirs", "output"),
    [
        ("bert", "BertModel", "last_hidden_state"),
        ("bert", "BertModel", "pooler_output"),
        ("xlmr", "XLMRobertaModel", "last_hidden_state"),
        ("mdeberta", "DebertaV2Model", "last_hidden_state"),
        ("mt5", "MT5EncoderModel", "last_hidden_state"),
        ("clip", "CLIPTextModel", "pooler_output"),
        ("clip", "CLIPTextModelWithProjection", "text_embeds"),
        ("siglip", "SiglipTextModel", "pooler_output"),
    ],
)
def test_outputs_equal_those_of_transformers_on_the_same_weights(
    tokenizer, tmp_path, family, theirs, output
):
    mode = {"last_hidden_state": "pooled", "pooler_output": "own", "text_embeds": "projected"}
    tower = shake(make(tokenizer, family, output=mode[output])).eval()
    other = shake(getattr(transformers, theirs)(tower.config)).eval()
    other.save_pretrained(tmp_path)
    reopened = make(tokenizer, family, output=mode[output], weights=str(tmp_path)).eval()
    reopened.load_weights()
    batch = tower.tokenizer(TEXTS[:2])
    ids, mask = batch.ids, batch.mask.long()
    if family == "siglip":  # as its processor does: full length, no mask
        room = 24 - ids.shape[1]
        expected = other(torch.nn.functional.pad(ids, (0, room), value=tower.tokenizer.pad_id))
        short = other(ids)
        assert not torch.allclose(short[output], expected[output], atol=1e-3)
    else:
        expected = other(input_ids=ids, attention_mask=mask)
    got = reopened(batch)
    ours = got.tokens if output == "last_hidden_state" else got.pooled
    torch.testing.assert_close(ours, expected[output], rtol=0, atol=1e-6)


def test_clip_pools_at_the_end_of_the_text(tokenizer):
    own = make(tokenizer, "clip", output="own").eval()
    last = make(tokenizer, "clip", pooling="last").eval()
    last.model.load_state_dict(own.model.state_dict())
    batch = own.tokenizer(TEXTS)
    torch.testing.assert_close(own(batch).pooled, last(batch).pooled)


def test_gradient_checkpointing_gives_the_same_gradients(tokenizer):
    plain = make(tokenizer, dropout=0.0).train()
    saving = make(tokenizer, dropout=0.0, gradient_checkpointing=True).train()
    assert any(getattr(m, "gradient_checkpointing", False) for m in saving.modules())
    for tower in (plain, saving):
        tower(tower.tokenizer(TEXTS)).pooled.square().sum().backward()
    for a, b in zip(plain.parameters(), saving.parameters()):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_replaces_every_rate(tokenizer, family):
    tower = make(tokenizer, family, dropout=0.35)
    rates = {m.p for m in tower.modules() if isinstance(m, nn.Dropout)}
    rates |= {
        float(m.dropout) for m in tower.modules() if isinstance(getattr(m, "dropout", 0), float)
    }
    assert rates - {0.0} == {0.35}


# -- freezing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "mdeberta", "distilbert", "xlmr"])
def test_keeping_the_last_layer_trains_the_last_block_alone(tokenizer, family):
    tower = make(tokenizer, family, freeze={"keep_last": 1}).train()
    trained = [n for n, p in tower.named_parameters() if p.requires_grad]
    assert trained
    assert all("layer.1." in name for name in trained), trained
    assert sum(p.requires_grad for p in tower.parameters()) * 2 == sum(
        "layer." in n for n, _ in tower.named_parameters()
    )
    assert not tower.model.embeddings.dropout.training


def test_clip_and_t5_have_a_final_norm_on_top(tokenizer):
    for family in ("clip", "mt5"):
        top = make(tokenizer, family).layers()[-1]
        assert {n.rpartition(".")[2] for n, _ in top.named_parameters()} <= {"weight", "bias"}
        assert all("final_layer_norm" in n for n, _ in top.named_parameters())


def test_freezing_everything(tokenizer):
    tower = make(tokenizer, freeze="all").train()
    assert tower.frozen
    assert not any(m.training for m in tower.modules())


# -- config -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "output"), OUTPUTS)
def test_spec_rebuilds_the_same_tower(tokenizer, family, output):
    tower = make(tokenizer, family, output=output, dropout=0.2, freeze={"keep_last": 1}).eval()
    spec = json.loads(json.dumps(tower.spec()))
    assert check_part(text_encoders, spec) == spec
    again = build(text_encoders, spec).eval()
    again.load_state_dict(tower.state_dict())
    batch = tower.tokenizer(TEXTS)
    assert torch.equal(again(batch).pooled, tower(batch).pooled)
    assert again.spec() == spec


def test_vocabulary_and_padding_come_from_the_tokenizer(tokenizer):
    tower = make(tokenizer)
    assert tower.config.vocab_size == tower.tokenizer.vocab_size
    assert tower.config.pad_token_id == tower.tokenizer.pad_id


def test_faults_of_the_config_are_explained(tokenizer):
    with pytest.raises(ValueError, match="give a `backbone`"):
        build(text_encoders, "hf")
    with pytest.raises(ValueError, match="without a model"):
        build(
            text_encoders,
            {"name": "hf", "architecture": FAMILIES["bert"], "tokenizer": "sentencepiece"},
        )
    with pytest.raises(ValueError, match="model_type"):
        build(text_encoders, {"name": "hf", "architecture": SIZE, "tokenizer": tokenizer})
    with pytest.raises(ValueError, match="berd"):
        build(
            text_encoders,
            {"name": "hf", "architecture": {"model_type": "berd"}, "tokenizer": tokenizer},
        )
    with pytest.raises(ValueError, match="projected is CLIP's"):
        make(tokenizer, "bert", output="projected")
    with pytest.raises(ValueError, match="no pooler of its own"):
        make(tokenizer, "mt5", output="own")


def test_a_tokenizer_that_does_not_fit_the_network_is_refused(tokenizer):
    for key, value, message in [
        ("vocab_size", 50, "only 50 embeddings"),
        ("max_position_embeddings", 10, "only 10 positions"),
    ]:
        with pytest.raises(ValueError, match=message):
            build(text_encoders, {"name": "hf", "architecture": {**FAMILIES["bert"], key: value}, "tokenizer": tokenizer})  # fmt: skip
    # XLM-R's positions start behind the padding's id: 25 of 26 rows can be used with id 0
    fits = {**FAMILIES["xlmr"], "max_position_embeddings": 25}
    build(text_encoders, {"name": "hf", "architecture": fits, "tokenizer": tokenizer})
    with pytest.raises(ValueError, match="only 23 positions"):
        build(text_encoders, {"name": "hf", "architecture": {**fits, "max_position_embeddings": 24}, "tokenizer": tokenizer})  # fmt: skip


# -- weights ------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tokenizer, tmp_path):
    """A folder as the hub has it: the whole BERT for pretraining, names with `bert.` in front."""
    config = make(tokenizer).config
    model = shake(transformers.BertForPreTraining(config))
    model.save_pretrained(tmp_path)
    return tmp_path, model


def rewrite(folder, change):
    file = folder / "model.safetensors"
    weights = change(safetensors.torch.load_file(file))
    safetensors.torch.save_file(weights, file, {"format": "pt"})


def equal_embeddings(tower, model):
    return torch.equal(
        tower.model.embeddings.word_embeddings.weight, model.bert.embeddings.word_embeddings.weight
    )


def test_a_local_backbone_brings_config_and_weights(tokenizer, checkpoint):
    folder, model = checkpoint
    tower = build(text_encoders, {"name": "hf", "backbone": str(folder), "tokenizer": tokenizer})
    assert not equal_embeddings(tower, model), "construction alone must not load"
    tower.load_weights()
    for name, parameter in tower.model.named_parameters():
        assert torch.equal(parameter, model.bert.get_parameter(name))
    assert tower.spec()["weights"] is None
    assert tower.spec()["architecture"]["hidden_size"] == 16


def test_old_names_of_norms_are_understood(tokenizer, checkpoint):
    """google-bert/bert-base-multilingual-cased stores gamma and beta."""
    folder, model = checkpoint
    rewrite(folder, lambda w: {
        k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
        for k, v in w.items()
    })  # fmt: skip
    tower = make(tokenizer, weights=str(folder))
    tower.load_weights()
    name = "encoder.layer.1.output.LayerNorm.weight"
    assert torch.equal(tower.model.get_parameter(name), model.bert.get_parameter(name))


def test_half_precision_weights_become_float32(tokenizer, checkpoint):
    folder, model = checkpoint
    rewrite(folder, lambda w: {k: v.half() for k, v in w.items()})
    tower = make(tokenizer, weights=str(folder / "model.safetensors"))
    tower.load_weights()
    weight = tower.model.embeddings.word_embeddings.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, model.bert.embeddings.word_embeddings.weight.half().float())


def test_a_text_tower_is_found_in_a_whole_clip(tokenizer, tmp_path):
    config = transformers.CLIPConfig(
        text_config={**SIZE, "vocab_size": 400, "eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 0},
        vision_config={**SIZE, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )  # fmt: skip
    clip = shake(transformers.CLIPModel(config)).eval()
    clip.save_pretrained(tmp_path)
    spec = {"name": "hf", "backbone": str(tmp_path), "tokenizer": tokenizer, "output": "projected"}
    tower = build(text_encoders, spec).eval()
    tower.load_weights()
    batch = tower.tokenizer(TEXTS)
    theirs = clip.get_text_features(input_ids=batch.ids, attention_mask=batch.mask.long())
    theirs = getattr(theirs, "pooler_output", theirs)  # a whole output from transformers 5 on
    torch.testing.assert_close(tower(batch).pooled, theirs, rtol=0, atol=1e-6)
    assert tower.width == 8


def test_tied_embeddings_of_t5_load_from_either_name(tokenizer, tmp_path):
    source = shake(make(tokenizer, "mt5"))
    weights = dict(source.model.state_dict())
    for name in ("shared.weight", "encoder.embed_tokens.weight"):
        stored = {
            k: v.clone()
            for k, v in weights.items()
            if "shared" not in k and "embed_tokens" not in k
        }
        stored[name] = source.model.get_input_embeddings().weight.detach().clone()
        file = tmp_path / f"{name}.safetensors"
        safetensors.torch.save_file(stored, file)
        tower = make(tokenizer, "mt5", seed=1, weights=str(file))
        tower.load_weights()
        assert torch.equal(
            tower.model.get_input_embeddings().weight, source.model.get_input_embeddings().weight
        )


def test_sharded_weights_are_read_whole_or_not_at_all(tokenizer, checkpoint):
    folder, model = checkpoint
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    index = {}
    for part, some in enumerate((names[::2], names[1::2])):
        safetensors.torch.save_file({n: weights[n] for n in some}, folder / f"{part}.safetensors")
        index.update(dict.fromkeys(some, f"{part}.safetensors"))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    tower = make(tokenizer, weights=str(folder))
    tower.load_weights()
    assert equal_embeddings(tower, model)
    (folder / "1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"1\.safetensors"):
        tower.load_weights()


def test_missing_weights_are_listed_and_nothing_is_half_loaded(tokenizer, checkpoint):
    folder, _ = checkpoint
    lost = "bert.encoder.layer.1.output.dense.weight"
    rewrite(folder, lambda w: {k: v for k, v in w.items() if k != lost})
    tower = make(tokenizer, weights=str(folder))
    before = {k: v.clone() for k, v in tower.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"1 of \d+ weights .* missing: encoder\.layer\.1\.output\.dense\.weight"
    ):
        tower.load_weights()
    assert all(torch.equal(v, before[k]) for k, v in tower.state_dict().items())


def test_a_vocabulary_of_another_size_is_explained(tokenizer, checkpoint):
    folder, _ = checkpoint
    key = "bert.embeddings.word_embeddings.weight"
    rewrite(folder, lambda w: {k: v[:100].clone() if k == key else v for k, v in w.items()})
    tower = make(tokenizer, weights=str(folder))
    with pytest.raises(ValueError, match=r"vocabulary has 100 entries, this one \d+"):
        tower.load_weights()


def test_pickled_weights_are_refused_and_can_be_converted(tokenizer, checkpoint):
    folder, model = checkpoint
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    tower = make(tokenizer, weights=str(folder))
    with pytest.raises(FileNotFoundError, match=r"a pickle.*convert_bin\('"):
        tower.load_weights()
    assert convert_bin(folder) == folder / "model.safetensors"
    tower.load_weights()
    assert equal_embeddings(tower, model)


def test_converting_runs_no_code(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (exec, ("raise SystemExit('code ran')",))

    torch.save({"weight": Bomb()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        convert_bin(tmp_path)


def test_missing_files_say_what_was_expected_and_where(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        make(tokenizer, weights=str(tmp_path)).load_weights()
    with pytest.raises(FileNotFoundError, match=r"no weights to be had from 'some/model'"):
        make(tokenizer, weights="some/model").load_weights()
    with pytest.raises(FileNotFoundError, match=r"no config\.json to be had"):
        build(text_encoders, {"name": "hf", "backbone": "some/model", "tokenizer": tokenizer})


def test_building_is_quiet(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        make(tokenizer, "clip")
    assert caplog.text == ""


def test_a_row_without_tokens_gives_zero(tokenizer):
    tower = make(tokenizer, "bert").eval()
    batch = TextBatch(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.bool))
    assert torch.equal(tower(batch).pooled, torch.zeros(2, 16))
