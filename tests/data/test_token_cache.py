import pickle

import pytest
import torch

from xlcm.data.collate import Collator
from xlcm.data.token_cache import RowTokenizer, TokenCache
from xlcm.data.views import View, Views
from xlcm.encoders.tokenizer import SentencePieceTokenizer

TEXTS = ["two dogs", "a red cat", "a dog and a cat and a cow and a horse", "", "Kühe", "two dogs"]


@pytest.fixture(scope="module")
def tokenizer():
    texts = [f"{n} {what}" for n in ("a", "two", "three") for what in ("dog", "cat", "cow")]
    return SentencePieceTokenizer(vocab_size=300, max_tokens=12).train(texts)


class Counting:
    """A tokenizer that notes what it is asked."""

    def __init__(self, inner):
        self.inner, self.pad_id, self.asked = inner, inner.pad_id, []

    def __call__(self, texts, langs=()):
        raise AssertionError("rows alone are asked for")

    def rows(self, texts):
        self.asked += texts
        return self.inner.rows(texts)


def same(found, expected):
    assert torch.equal(found.ids, expected.ids)
    assert torch.equal(found.mask, expected.mask)
    assert (found.ids.dtype, found.mask.dtype) == (torch.int64, torch.bool)
    assert (found.langs, found.cut) == (expected.langs, expected.cut)


@pytest.mark.parametrize("most", [100, 2, 0])
def test_batches_are_those_of_the_tokenizer_however_much_is_kept(tokenizer, most):
    cache = TokenCache(tokenizer, most)
    for texts in (TEXTS, TEXTS[::-1], TEXTS[:1], TEXTS[1:3], [], TEXTS):
        langs = [f"l{len(text)}" for text in texts]
        same(cache(texts, langs), tokenizer(texts, langs))
    assert tokenizer(TEXTS).cut == 1
    assert len(cache._rows) <= most


def test_each_text_is_tokenised_once_and_beyond_the_limit_each_time(tokenizer):
    counting = Counting(tokenizer)
    cache = TokenCache(counting, most=3)
    for _ in range(3):
        cache(["a dog", "a cat", "a dog"])
    assert counting.asked == ["a dog", "a cat"]
    for _ in range(2):
        cache(["a cow", "a dog", "two cows"])  # both no longer fit
    assert counting.asked == ["a dog", "a cat", *["a cow", "two cows"] * 2]


def test_a_copy_for_a_worker_begins_empty(tokenizer):
    cache = TokenCache(tokenizer)
    cache(TEXTS)
    copy = pickle.loads(pickle.dumps(cache))
    assert not copy._rows
    same(copy(TEXTS), cache(TEXTS))


def test_collators_remember_where_a_tokenizer_gives_rows(tokenizer):
    views = Views({"source": View(langs=["en"]), "target": View(langs=["de"])})
    made = Collator([], views, tokenizer, None, extra={"once more": ("source", tokenizer)})
    assert isinstance(made.tokenizer, TokenCache)
    assert all(reader is made.tokenizer for _, reader in made.texts.values())
    assert isinstance(tokenizer, RowTokenizer)
    assert Collator([], views, len, None).tokenizer is len
