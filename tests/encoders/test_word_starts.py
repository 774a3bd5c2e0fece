import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from xlcm.encoders.tokenizer import HFTokenizer, SentencePieceTokenizer
from xlcm.encoders.word_starts import BYTES, word_starts

CAPTIONS = [
    "two small dogs run over wet sand",
    "zwei kleine Hunde rennen über nassen Sand",
    "两只小狗在沙滩上奔跑",
    "小さな犬が走る",
    "สุนัขสองตัววิ่ง",
] * 4


@pytest.fixture(scope="module")
def trained():
    return SentencePieceTokenizer(vocab_size=380).train(CAPTIONS)


@pytest.fixture(scope="module")
def mbert(shared):
    return HFTokenizer(
        path=str(shared / "weights/text/bert-base-multilingual-cased.vocab.txt"), max_tokens=64
    )


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    backend.train_from_iterator(
        CAPTIONS,
        trainers.BpeTrainer(
            vocab_size=330,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    path = tmp_path_factory.mktemp("byte_level") / "tokenizer.json"
    backend.save(str(path))
    return HFTokenizer(path=str(path))


def grouped(tokenizer, text: str) -> list[str]:
    """Return the words that the pieces of a text come together to, special tokens left out."""
    starts, special = tokenizer.word_starts, tokenizer.special_ids
    groups: list[list[int]] = []
    for piece in tokenizer([text]).ids[0].tolist():
        if piece in special:
            continue
        if starts[piece] or not groups:
            groups.append([])
        groups[-1].append(piece)
    if isinstance(tokenizer, SentencePieceTokenizer):
        decode = tokenizer._processor.decode
    else:
        decode = tokenizer._backend.decode
    return [decode(group).strip() for group in groups]


@pytest.mark.parametrize("which", ["trained", "mbert", "byte_level"])
@pytest.mark.parametrize(
    "text",
    ["two unravelled dogs", "Žluťoučký kůň rennen nassen", "sandy x dogs"],
)
def test_pieces_come_together_to_the_words_between_blanks(which, text, request):
    assert grouped(request.getfixturevalue(which), text) == text.split()


def test_every_chinese_character_begins_a_word(mbert, byte_level):
    single = SentencePieceTokenizer(vocab_size=380, split_han=True).train(CAPTIONS)
    for tokenizer in (mbert, single):
        found = [word for word in grouped(tokenizer, "两只狗 on 沙") if word]
        assert found == ["两", "只", "狗", "on", "沙"]
    # what training never saw is spelt in bytes, of which the first begins the word
    for tokenizer in (single, byte_level):
        assert tokenizer.lengths(["龘"])[0] > 4
        assert [word for word in grouped(tokenizer, "two 龘龘") if word] == ["two", "龘", "龘"]


@pytest.mark.parametrize("text", ["两只小狗在沙滩上奔跑", "สวัสดีชาวโลก", "小さな赤い四角"])
def test_a_piece_of_a_script_without_blanks_begins_a_word_also_inside_a_text(text, shared):
    ml28 = SentencePieceTokenizer(path=str(shared / "weights/text/ml28_unigram32k.model"))
    words = [word for word in grouped(ml28, text) if word]
    assert len(words) >= 2
    assert "".join(words) == text


def test_a_mark_upon_the_letter_before_begins_no_word():
    pieces = {"▁": 0, "ส": 1, "ัว": 2, "ก": 3}
    assert word_starts(pieces, 4, frozenset()).tolist() == [True, True, False, True]


@pytest.mark.parametrize("which", ["trained", "mbert", "byte_level"])
def test_special_ids_are_those_around_a_text_and_the_mask(which, request):
    tokenizer = request.getfixturevalue(which)
    special = tokenizer.special_ids
    row = tokenizer(["a", "two small dogs run"]).ids[0].tolist()
    assert row[0] == tokenizer.bos_id
    assert row[-1] == tokenizer.pad_id
    assert {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id} <= special
    if which != "trained":
        mask = tokenizer._backend.token_to_id(tokenizer.special_tokens["mask_token"])
        assert special == {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, mask}
        unknown = tokenizer._backend.token_to_id(tokenizer.special_tokens["unk_token"])
        assert unknown not in special
    starts = tokenizer.word_starts
    assert (starts.shape, starts.dtype) == ((tokenizer.vocab_size,), torch.bool)
    assert not starts[sorted(special)].any()


def test_special_ids_do_not_hold_pieces_that_only_stand_in_for_padding(tmp_path, shared):
    path = str(shared / "weights/text/ml28_unigram32k.model")
    plain = SentencePieceTokenizer(path=path, bos=False, eos=False)
    assert plain.special_ids >= {2, 3}  # also where a text is not opened with them
    vocabulary = {piece: n for n, piece in enumerate(["a", "##b", "[UNK]"])}
    backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.save(str(tmp_path / "tokenizer.json"))
    bare = HFTokenizer(path=str(tmp_path / "tokenizer.json"))
    assert (bare.pad_id, bare.special_ids) == (0, frozenset())
    assert bare.word_starts.tolist() == [True, False, True]


def test_a_vocabulary_that_marks_ends_of_words_is_refused():
    with pytest.raises(ValueError, match="does not mark where words begin"):
        word_starts({"dog</w>": 0, "do": 1}, 2, frozenset())


def test_a_tokenizer_without_pieces_says_how_to_train_it():
    for ask in ("word_starts", "special_ids"):
        with pytest.raises(ValueError, match="train-tokenizer"):
            getattr(SentencePieceTokenizer(), ask)


def test_bytes_are_written_as_the_library_writes_them():
    assert sorted(BYTES) == sorted(pre_tokenizers.ByteLevel.alphabet())
    spelt = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("Ä 狗")
    assert bytes(BYTES[mark] for piece, _ in spelt for mark in piece).decode() == "Ä 狗"
