import json
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
import transformers

from xlcm.config import ConfigError, build
from xlcm.encoders.tokenizer import HFTokenizer, SentencePieceTokenizer, prepare_tokenizer
from xlcm.encoders.tokenizer_sentencepiece import HAN
from xlcm.registry import tokenizers

CAPTIONS = [
    "a small red square above a blue circle",
    "ein kleines rotes Quadrat über einem blauen Kreis",
    "一个红色的小方块在蓝色的圆上面",
    "青い円の上に小さな赤い四角",
    "mraba mdogo mwekundu juu ya duara la bluu",
] * 8
LONG = " ".join(["Zwei Männer spielen Fußball"] * 40)


@pytest.fixture(scope="module")
def trained():
    return SentencePieceTokenizer(vocab_size=400, max_tokens=16).train(CAPTIONS)


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory):
    """A BERT vocabulary of the captions' words and letters."""
    words = " ".join(CAPTIONS[:5]).split()
    letters = sorted(set("".join(words) + "abcdefghijklmnopqrstuvwxyzZMFk[]</>"))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [
        *special,
        *letters,
        *(f"##{x}" for x in letters),
        *sorted({w for w in words if len(w) > 1}),
    ]
    path = tmp_path_factory.mktemp("wordpiece") / "vocab.txt"
    path.write_text("\n".join(pieces) + "\n", encoding="utf-8")
    return HFTokenizer(path=str(path), max_tokens=16)


@pytest.fixture(scope="module")
def mbert(shared):
    path = shared / "weights/text/bert-base-multilingual-cased.vocab.txt"
    return HFTokenizer(path=str(path), max_tokens=16)


def test_training_is_deterministic():
    again = [SentencePieceTokenizer(vocab_size=400).train(iter(CAPTIONS)) for _ in range(2)]
    assert again[0]._proto == again[1]._proto


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_trained_ids_have_their_promised_places(kind):
    tokenizer = SentencePieceTokenizer(vocab_size=350, kind=kind).train(CAPTIONS)
    batch = tokenizer(["a red square", ""])
    assert (tokenizer.pad_id, tokenizer._processor.unk_id()) == (0, 1)
    assert batch.ids[0, 0] == 2
    assert batch.ids[0, -1] == 3
    assert batch.ids[1].tolist() == [2, 3] + [0] * (batch.ids.shape[1] - 2)
    assert batch.mask.sum(1).tolist() == [batch.ids.shape[1], 2]
    assert batch.ids.dtype == torch.int64
    assert batch.mask.dtype == torch.bool


def test_scripts_that_training_never_saw_are_spelt_in_bytes(trained):
    ids = trained(["Ж ሰ"]).ids[0].tolist()
    assert 1 not in ids
    assert trained._processor.decode(ids) == "Ж ሰ"


def test_a_vocabulary_that_the_text_can_not_fill_is_smaller_and_reported(caplog):
    tokenizer = SentencePieceTokenizer(vocab_size=9000).train(CAPTIONS)
    assert tokenizer.vocab_size < 9000
    assert f"only {tokenizer.vocab_size} of 9000" in caplog.text
    assert int(tokenizer(CAPTIONS).ids.max()) < tokenizer.vocab_size


def test_a_vocabulary_too_small_for_the_characters_says_what_to_raise():
    with pytest.raises(ValueError, match=r"vocab_size=261 is too small.*are \d+ pieces"):
        SentencePieceTokenizer(vocab_size=261).train(CAPTIONS)


@pytest.mark.parametrize("texts", [[], ["", "  "]])
def test_training_on_nothing_says_so(texts):
    with pytest.raises(ValueError, match="no text to train"):
        SentencePieceTokenizer().train(texts)


def test_an_untrained_tokenizer_says_how_to_train_it():
    tokenizer = SentencePieceTokenizer()
    assert tokenizer.needs_training
    with pytest.raises(ValueError, match="train-tokenizer"):
        tokenizer(["a"])
    with pytest.raises(ValueError, match="train-tokenizer"):
        tokenizer.save("nowhere")


@pytest.mark.parametrize("which", ["trained", "wordpiece", "mbert"])
def test_cutting_keeps_the_closing_token_and_is_counted(which, request):
    tokenizer = request.getfixturevalue(which)
    batch = tokenizer([LONG, "kurz", LONG])
    opening, closing = tokenizer.bos_id, tokenizer.eos_id
    assert batch.cut == 2
    assert batch.ids.shape == (3, 16)
    assert batch.ids[0, 0] == opening
    assert batch.ids[0, -1] == closing
    count = int(batch.mask[1].sum())
    assert batch.ids[1, count - 1] == closing
    assert tokenizer.lengths([LONG, "kurz"])[1] == count
    assert tokenizer.lengths([LONG])[0] > 16


@pytest.mark.parametrize("which", ["trained", "wordpiece", "mbert"])
def test_length_exactly_at_the_bound_is_not_cut(which, request):
    tokenizer = request.getfixturevalue(which)
    words = "rot " * 40
    exact = max(
        (words[:n] for n in range(len(words))),
        key=lambda t: (tokenizer.lengths([t])[0] <= 16, tokenizer.lengths([t])[0]),
    )
    assert tokenizer.lengths([exact]) == [16]
    assert tokenizer([exact]).cut == 0


@pytest.mark.parametrize("which", ["trained", "wordpiece", "mbert"])
def test_empty_input_gives_empty_tensors(which, request):
    batch = request.getfixturevalue(which)([])
    assert batch.ids.shape == batch.mask.shape == (0, 0)


def test_no_row_is_ever_empty():
    bare = SentencePieceTokenizer(vocab_size=400, bos=False, eos=False).train(CAPTIONS)
    assert bare([""]).mask.sum() == 1


def test_languages_travel_with_the_batch(trained):
    assert trained(["a", "b"], ["en", "de"]).langs == ("en", "de")


def _encode(tokenizer):
    return tokenizer([*CAPTIONS[:5], LONG, "[SEP] </s>"]).ids.tolist()


@pytest.mark.parametrize("which", ["trained", "wordpiece", "mbert"])
def test_pickled_into_a_worker_it_gives_the_same_ids(which, request):
    tokenizer = request.getfixturevalue(which)
    expected = _encode(tokenizer)
    assert _encode(pickle.loads(pickle.dumps(tokenizer))) == expected
    with ProcessPoolExecutor(1) as pool:
        assert pool.submit(_encode, tokenizer).result(timeout=60) == expected


@pytest.mark.parametrize("which", ["trained", "wordpiece", "mbert"])
def test_saved_and_opened_again_it_gives_the_same_ids(which, request, tmp_path):
    tokenizer = request.getfixturevalue(which)
    spec = tokenizer.save(tmp_path)
    again = build(tokenizers, {**spec, "path": str(tmp_path / spec["path"])})
    assert _encode(again) == _encode(tokenizer)
    assert {**again.spec(), "path": None} == {**tokenizer.spec(), "path": None}
    assert (again.pad_id, again.vocab_size) == (tokenizer.pad_id, tokenizer.vocab_size)


def test_special_tokens_written_in_a_caption_are_only_text(wordpiece, trained):
    for tokenizer in (wordpiece, trained):
        row = tokenizer(["a [SEP] b </s>"]).ids[0].tolist()
        assert row.count(tokenizer.eos_id) == 1


def test_mbert_vocabulary_agrees_with_transformers(mbert, shared, tmp_path):
    shutil.copy(
        shared / "weights/text/bert-base-multilingual-cased.vocab.txt", tmp_path / "vocab.txt"
    )
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = HFTokenizer(path=str(tmp_path), max_tokens=16)
    texts = [*CAPTIONS[:5], "Žluťoučký kůň!", "नमस्ते दुनिया", LONG]
    expected = theirs(texts, truncation=True, max_length=16, padding=True)
    for tokenizer in (mbert, ours):
        batch = tokenizer(texts)
        assert batch.ids.tolist() == expected["input_ids"]
        assert batch.mask.int().tolist() == expected["attention_mask"]
    assert (mbert.vocab_size, mbert.pad_id) == (119_547, 0)


def test_ml28_sentencepiece_model_keeps_its_own_ids(shared):
    path = str(shared / "weights/text/ml28_unigram32k.model")
    tokenizer = SentencePieceTokenizer(path=path)
    assert not tokenizer.needs_training
    assert (tokenizer.vocab_size, tokenizer.pad_id) == (32_000, 0)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (2, 3)
    assert tokenizer(["สวัสดีชาวโลก", "안녕하세요"]).ids.max() < 32_000


def test_a_folder_with_only_a_sentencepiece_model_of_a_known_family_opens(trained, tmp_path):
    """XLM-R shifts the ids of its model by one; transformers knows that from config.json."""
    from sentencepiece import SentencePieceTrainer

    SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS),
        model_prefix=str(tmp_path / "sentencepiece.bpe"),
        vocab_size=100,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (tmp_path / "config.json").write_text('{"model_type": "xlm-roberta"}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "XLMRobertaTokenizer"}')
    tokenizer = HFTokenizer(path=str(tmp_path))
    batch = tokenizer(["a red square", ""])
    assert batch.ids[0, 0] == 0  # <s>
    assert batch.ids[1, :3].tolist() == [0, 2, 1]  # <s> </s> <pad>
    assert tokenizer.pad_id == 1


def test_a_bare_tokenizer_json_opens_and_its_padding_is_found(wordpiece, tmp_path):
    wordpiece.save(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    alone = HFTokenizer(path=str(tmp_path / "tokenizer.json"), max_tokens=16)
    assert _encode(alone) == _encode(wordpiece)
    assert alone.pad_id == wordpiece.pad_id


def test_a_saved_tokenizer_also_opens_in_transformers(wordpiece, tmp_path):
    wordpiece.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(CAPTIONS[:5])["input_ids"] == [
        row[mask].tolist()
        for batch in [HFTokenizer(path=str(tmp_path), max_tokens=99)(CAPTIONS[:5])]
        for row, mask in zip(batch.ids, batch.mask)
    ]
    assert theirs.pad_token == "[PAD]"


def test_prefix_is_put_in_front_of_every_text(wordpiece):
    prefixed = HFTokenizer(path=wordpiece.path, max_tokens=16, prefix="query: ")
    for texts in (["ein Hund", "two dogs"], [LONG]):
        expected = wordpiece([f"query: {text}" for text in texts])
        assert torch.equal(prefixed(texts).ids, expected.ids)
    assert prefixed.lengths(["ein Hund"]) == wordpiece.lengths(["query: ein Hund"])


def test_missing_files_say_what_was_expected(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"expected a .model file"):
        SentencePieceTokenizer(path=str(tmp_path / "nothing.model"))
    (tmp_path / "a.model").touch()
    (tmp_path / "b.model").touch()
    with pytest.raises(FileNotFoundError, match=r"2 .model files"):
        SentencePieceTokenizer(path=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"expected a hub id, a folder"):
        HFTokenizer(path=str(tmp_path / "nowhere"))


def test_options_out_of_range_stop_in_the_config():
    with pytest.raises(ConfigError, match="max_tokens"):
        build(tokenizers, {"name": "sentencepiece", "max_tokens": 2})
    with pytest.raises(ConfigError, match="did you mean 'coverage'"):
        build(tokenizers, {"name": "sentencepiece", "coverge": 1.0})


# -- trained on the spot ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "bag",
        {"name": "bag"},
        {"name": "bag", "tokenizer": "sentencepiece"},
        {"name": "hf", "tokenizer": {"name": "sentencepiece", "vocab_size": 8000}},
    ],
)
def test_prepare_tokenizer_trains_what_has_no_path(text, tmp_path):
    spec = {"width": 8, "text": text}
    prepared = prepare_tokenizer(spec, lambda: CAPTIONS, tmp_path / "made")
    path = prepared["text"]["tokenizer"]["path"]
    assert path == str(tmp_path / "made" / "sentencepiece.model")
    assert not build(tokenizers, prepared["text"]["tokenizer"]).needs_training
    assert spec == {"width": 8, "text": text}, "the given spec must not change"
    assert prepared["width"] == 8


def test_prepare_tokenizer_finds_the_one_of_a_tower_inside_another(tmp_path):
    spec = {"text": {"name": "refined", "width": 16, "encoder": "bag"}}
    made = prepare_tokenizer(spec, lambda: CAPTIONS, tmp_path)
    assert made["text"]["encoder"]["tokenizer"]["path"] == str(tmp_path / "sentencepiece.model")
    assert made["text"]["width"] == 16
    assert spec == {"text": {"name": "refined", "width": 16, "encoder": "bag"}}


@pytest.mark.parametrize(
    "text",
    [
        {"name": "hf", "backbone": "xlm-roberta-base"},
        {"name": "bag", "tokenizer": {"name": "sentencepiece", "path": "x.model"}},
        {"name": "bag", "tokenizer": {"name": "hf", "path": "x"}},
    ],
)
def test_prepare_tokenizer_leaves_others_and_asks_for_no_text(text, tmp_path):
    def fail():
        raise AssertionError("no captions are needed")

    spec = {"text": text}
    assert prepare_tokenizer(spec, fail, tmp_path) is spec
    assert not list(tmp_path.iterdir())


def test_saved_settings_name_the_special_tokens(wordpiece, tmp_path):
    wordpiece.save(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings["sep_token"] == "[SEP]"


def test_split_han_gives_every_chinese_character_a_piece_of_its_own(tmp_path):
    texts = ["两只小狗在草地上奔跑。", "一只小狗在雪地上。", "two small dogs run"] * 5
    whole = SentencePieceTokenizer(vocab_size=300, kind="bpe").train(texts)
    split = SentencePieceTokenizer(vocab_size=300, kind="bpe", split_han=True).train(texts)

    def longest(made):
        pieces = [made._processor.id_to_piece(i) for i in range(made.vocab_size)]
        return max(len(HAN.findall(piece)) for piece in pieces)

    assert longest(whole) > longest(split) == 1
    saved = split.save(tmp_path)
    again = SentencePieceTokenizer(
        **{**{k: v for k, v in saved.items() if k != "name"}, "path": str(tmp_path)}
    )
    assert torch.equal(again(["小狗 run"]).ids, split(["小狗 run"]).ids)
