"""Texts are batched by tokens, tokenised ahead, and come back in order with the same vectors."""

import logging
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from tests.small_models import VOCABULARY, Numbers
from xlcm.encoders.features import FeatureEncoder
from xlcm.encoders.heads import LinearHead
from xlcm.encoders.pooling import MeanPooling
from xlcm.encoders.text_hf import HFTextEncoder
from xlcm.models import lengths
from xlcm.models.dual_encoder import DualEncoder
from xlcm.models.precision import lowered, refuse_overflow, supported, warn
from xlcm.types import TextBatch

CPU = torch.device("cpu")


def tokens(counts):
    width = max(counts)
    mask = torch.arange(width)[None] < torch.tensor(counts)[:, None]
    return TextBatch(torch.arange(len(counts) * width).reshape(len(counts), width), mask)


def test_a_batch_has_no_more_tokens_than_the_budget_padding_included():
    counts = [3, 9, 1, 4, 4, 30, 2, 0, 8, 8]
    batches = list(lengths.by_length(tokens(counts), budget=16))
    assert sorted(i for rows, _ in batches for i in rows.tolist()) == list(range(10))
    widths = [batch.ids.shape[1] for _, batch in batches]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] == 30, "a longer text is a batch of its own"
    assert len(batches[0][0]) == 1
    for rows, batch in batches[1:]:
        assert batch.ids.numel() <= 16
        assert batch.mask[0].sum() == max(counts[i] for i in rows)
    # nothing is left on the table: the next text would not have fitted
    for rows, batch in batches[1:-1]:
        assert (len(rows) + 1) * batch.ids.shape[1] > 16


def test_shorter_texts_get_a_batch_of_their_own_where_padding_costs_more():
    # 10 positions at most: beside 20, three of 17 need 9 and five of 15 need 25; 14 needs 5
    counts = [20] * 4 + [17] * 3 + [15] * 5 + [14] * 5
    batches = list(lengths.by_length(tokens(counts), budget=320, padding=10))
    assert [tuple(batch.ids.shape) for _, batch in batches] == [(7, 20), (10, 15)]
    assert [i for rows, _ in batches for i in rows.tolist()] == list(range(17))


def test_a_batch_size_bounds_the_texts_beside_the_budget():
    sizes = [len(rows) for rows, _ in lengths.by_length(tokens([2] * 10), 3, 16)]
    assert sizes == [3, 3, 3, 1]
    assert [len(rows) for rows, _ in lengths.by_length(tokens([2] * 10))] == [10]


def test_the_budget_follows_the_device():
    assert lengths.token_budget(CPU) == 1024
    assert lengths.token_budget(torch.device("cuda")) == 16_384
    assert lengths.token_budget(CPU, 77) == 77
    with pytest.raises(ValueError, match="max_batch_tokens must be at least 1, got 0"):
        lengths.token_budget(CPU, 0)


def transformer():
    torch.manual_seed(0)
    architecture = {
        "model_type": "xlm-roberta", "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 80,
    }  # fmt: skip
    text = HFTextEncoder(
        architecture=architecture, tokenizer=Numbers(max_tokens=32), pooling=MeanPooling
    )
    return DualEncoder(
        image=FeatureEncoder(width=4), text=text, width=12,
        image_head=LinearHead, text_head=LinearHead,
    ).eval()  # fmt: skip


def captions(count):
    draw = torch.Generator().manual_seed(1)
    sizes = torch.randint(1, 25, (count,), generator=draw).tolist()
    words = torch.randint(3, VOCABULARY, (count, 25), generator=draw).tolist()
    return [" ".join(map(str, row[:size])) for row, size in zip(words, sizes)]


@pytest.mark.parametrize("budget", [1, 40, 1024])
def test_a_transformer_gives_the_vectors_of_one_by_one_in_order(budget, monkeypatch):
    monkeypatch.setattr(lengths, "CHUNK", 16)
    model, texts = transformer(), captions(40)
    together = model.encode_text(texts, max_batch_tokens=budget)
    alone = torch.cat([model.encode_text(text) for text in texts])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    assert (together @ together.T).fill_diagonal_(0).max() < 0.99999, "rows must differ to tell"


def test_no_more_than_two_chunks_are_tokenised_ahead_of_the_model(monkeypatch):
    monkeypatch.setattr(lengths, "CHUNK", 4)
    done, made, furthest = [0], [0], [0]

    def tokenizer(texts, langs):
        made[0] += len(texts)
        return tokens([1] * len(texts))

    def embed_text(batch):
        time.sleep(0.005)  # the thread would run away here if nothing held it
        furthest[0] = max(furthest[0], made[0] - done[0])
        done[0] += len(batch.ids)
        return torch.zeros(len(batch.ids), 2)

    model = SimpleNamespace(
        text=SimpleNamespace(tokenizer=tokenizer), embed_text=embed_text, width=2, device=CPU
    )
    rows, cut = lengths.embed_texts(model, ["a"] * 40)
    assert (rows.shape, cut, done) == ((40, 2), 0, [40])
    assert furthest[0] == 8


def test_the_next_one_is_made_while_one_is_used():
    started = threading.Event()

    def make(number):
        if number == 1:
            started.set()
        return number

    for number in lengths.ahead(make, range(2)):
        assert number or started.wait(5), "nothing was made ahead"


def test_a_fault_of_the_tokenizer_is_raised_where_it_is_used(monkeypatch):
    monkeypatch.setattr(lengths, "CHUNK", 2)
    model = transformer()
    with pytest.raises(ValueError, match="invalid literal"):
        model.encode_text(["1", "2", "3", "not a number"])


# -- precision ----------------------------------------------------------------------------------


def test_half_precision_stays_close_and_returns_float32():
    model, texts = transformer(), captions(12)
    exact = model.encode_text(texts)
    half = model.encode_text(texts, precision="bf16")
    assert half.dtype == torch.float32
    assert not torch.equal(half, exact), "nothing was computed in bf16"
    assert (half * exact).sum(dim=1).min() > 0.999
    assert torch.equal(model.encode_text(texts), exact), "the model itself stays as it was"


def test_a_cpu_without_the_instructions_is_warned_about(monkeypatch, caplog):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert not supported(CPU, "bf16")
    warn.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            lowered(CPU, "bf16")
    assert caplog.text.count("this CPU has no instructions for bf16") == 1
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert supported(CPU, "bf16")


def test_another_word_for_precision_is_refused():
    with pytest.raises(ValueError, match="precision must be fp32, bf16 or fp16, got 'half'"):
        transformer().encode_text("1", precision="half")


def test_an_overflow_in_fp16_says_what_to_take():
    rows = torch.tensor([[0.0, torch.nan]])
    with pytest.raises(ValueError, match="overflows in fp16; encode with precision bf16 or fp32"):
        refuse_overflow(rows, "fp16")
    refuse_overflow(rows, "fp32")
