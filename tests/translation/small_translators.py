"""Tiny translation models with random weights, saved as real ones are."""

import json
from pathlib import Path

import sentencepiece
import torch

SENTENCES = [
    f"{article} {colour} {thing} {place}"
    for article in ("a", "two", "ein", "zwei", "deux")
    for colour in ("red", "blue", "rote", "blaue", "rouge")
    for thing in ("dog", "house", "Hund", "Haus", "maison")
    for place in ("stands here", "in the garden", "im Garten", "dans le jardin")
]


def _pieces(folder: Path) -> tuple[Path, list[str]]:
    model = folder / "spm"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_prefix=str(model), vocab_size=120,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    path = model.with_suffix(".model")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return path, [processor.id_to_piece(i) for i in range(3, processor.get_piece_size())]


def m2m(folder: Path) -> Path:
    """Save an M2M-100 of two layers; return its folder."""
    from transformers import M2M100Config, M2M100ForConditionalGeneration, M2M100Tokenizer

    folder.mkdir(parents=True)
    spm, words = _pieces(folder)
    vocabulary = {w: i for i, w in enumerate(["<s>", "<pad>", "</s>", "<unk>", *words])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    tokenizer = M2M100Tokenizer(str(folder / "vocab.json"), str(spm))
    torch.manual_seed(0)
    config = M2M100Config(
        vocab_size=len(vocabulary) + 120, d_model=32, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, max_position_embeddings=64, init_std=0.5,
    )  # fmt: skip
    return _save(M2M100ForConditionalGeneration(config), tokenizer, folder / "model")


def marian(folder: Path, seed: int = 0, marks: tuple[str, ...] = ()) -> Path:
    """Save a Marian model of one pair of languages, or with marks of several targets."""
    from transformers import MarianConfig, MarianMTModel, MarianTokenizer

    folder.mkdir(parents=True)
    spm, words = _pieces(folder)
    vocabulary = {w: i for i, w in enumerate(["</s>", "<unk>", *words, *marks, "<pad>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    tokenizer = MarianTokenizer(str(spm), str(spm), str(folder / "vocab.json"))
    torch.manual_seed(seed)
    pad = vocabulary["<pad>"]
    config = MarianConfig(
        vocab_size=len(vocabulary), d_model=32, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, max_position_embeddings=64, init_std=0.5, pad_token_id=pad,
        decoder_start_token_id=pad, eos_token_id=0, forced_eos_token_id=0,
    )  # fmt: skip
    return _save(MarianMTModel(config), tokenizer, folder / "model")


def nllb(folder: Path) -> Path:
    """Save an NLLB of one layer, whose pieces are letters; return its folder."""
    from transformers import M2M100Config, M2M100ForConditionalGeneration, NllbTokenizer

    letters = sorted(set("".join(SENTENCES)) | {"\u2581"})
    vocabulary = {w: i for i, w in enumerate(["<s>", "<pad>", "</s>", "<unk>", *letters])}
    tokenizer = NllbTokenizer(vocab=vocabulary, merges=[])
    torch.manual_seed(0)
    config = M2M100Config(
        vocab_size=len(tokenizer), d_model=32, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, max_position_embeddings=64, init_std=0.5,
    )  # fmt: skip
    return _save(M2M100ForConditionalGeneration(config), tokenizer, folder / "model")


def madlad(folder: Path) -> Path:
    """Save a T5 that is told its target by a first token, as MADLAD is; return its folder."""
    from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer

    letters = ["<pad>", "</s>", "<unk>", "\u2581", *sorted(set("".join(SENTENCES)) - {" "})]
    tokenizer = T5Tokenizer(vocab=[(w, -float(i)) for i, w in enumerate(letters)], extra_ids=0)
    tokenizer.add_tokens(["<2de>", "<2fr>"])
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2,
        decoder_start_token_id=0, initializer_factor=3.0,
    )  # fmt: skip
    return _save(T5ForConditionalGeneration(config), tokenizer, folder / "model")


def _save(model, tokenizer, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
