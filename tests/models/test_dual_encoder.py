import logging
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from xlcm.config import ConfigError, check_part
from xlcm.encoders.tokenizer import SentencePieceTokenizer
from xlcm.models import lengths
from xlcm.models.dual_encoder import DualEncoder
from xlcm.registry import models, text_encoders
from xlcm.types import Visual

TEXTS = [
    "a red square",
    "",
    "zwei kleine blaue Kreise über einem großen grünen Dreieck",
    "红色的方块",
    "a",
]
CNN = {"name": "timm", "backbone": "resnet10t", "image_size": 32}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    made = SentencePieceTokenizer(vocab_size=400, max_tokens=32).train(TEXTS * 5).save(folder)
    tokenizer = {**made, "path": str(folder)}
    return {"name": "bag", "tokenizer": tokenizer, "width": 16, "context": "conv", "dropout": 0.5}


def make(text, **options):
    torch.manual_seed(0)
    spec = {"image": {"name": "features", "width": 8}, "text": text, "width": 12, **options}
    return DualEncoder.from_config(spec, load_weights=False)


@pytest.fixture(scope="module")
def seeing(text):
    return make(text, image=CNN)


@pytest.fixture
def picture():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (40, 50, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


# -- building -----------------------------------------------------------------------------------


def test_config_is_complete_and_rebuilds_the_same_model(text):
    model = make(text, bias=-10.0, image_head="mlp", temperature=0.05).eval()
    assert check_part(models, model.config) == model.config
    again = DualEncoder.from_config(model.config)
    assert again.config == model.config
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.encode_text(TEXTS), model.encode_text(TEXTS))


def test_unknown_options_stop_before_anything_is_built(text):
    with pytest.raises(ConfigError, match="did you mean 'temperature'"):
        make(text, temperatur=0.1)
    with pytest.raises(ConfigError, match=r"text\.widht"):
        make({**text, "widht": 3})


def test_from_config_loads_weights_only_if_asked(text, monkeypatch):
    called = []
    monkeypatch.setattr(DualEncoder, "load_weights", lambda self: called.append(self))
    spec = {"image": {"name": "features", "width": 8}, "text": text}
    DualEncoder.from_config(spec, load_weights=False)
    assert called == []
    model = DualEncoder.from_config(spec)
    assert called == [model]


def test_embeddings_have_length_one_and_gradients_reach_both_towers(text):
    model = make(text)
    image = model.embed_visual(Visual(features=torch.randn(5, 8)))
    words = model.embed_text(model.text.tokenizer(TEXTS))
    assert image.shape == words.shape == (5, 12)
    torch.testing.assert_close(image.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(words.norm(dim=1), torch.ones(5))
    (model.scale * image @ words.T).diagonal().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_embeddings_are_float32_under_autocast(text):
    model = make(text)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        words = model.embed_text(model.text.tokenizer(TEXTS))
    assert words.dtype == torch.float32
    torch.testing.assert_close(words.norm(dim=1), torch.ones(5))


# -- temperature --------------------------------------------------------------------------------


def test_scale_starts_at_the_inverse_temperature(text):
    assert make(text, temperature=0.07).scale.item() == pytest.approx(1 / 0.07)
    assert make(text, temperature=0.01).scale.item() == pytest.approx(100)
    with pytest.raises(ValueError, match="above max_scale"):
        make(text, temperature=0.009)


def test_scale_never_exceeds_its_bound_but_can_come_down_again(text):
    model = make(text, max_scale=100.0)
    with torch.no_grad():
        model.log_scale.fill_(6.0)
    assert model.scale.item() == 100.0
    model.scale.backward()
    assert model.log_scale.grad > 0, "without a gradient the scale is stuck at its bound"
    model.clamp_()
    assert model.log_scale.item() == pytest.approx(math.log(100))
    assert model.scale.item() == pytest.approx(100.0)
    model.log_scale.grad = None
    optimiser = torch.optim.SGD([model.log_scale], lr=1e-3)
    for _ in range(3):
        optimiser.zero_grad()
        model.scale.backward()
        optimiser.step()
        model.clamp_()
    assert model.scale.item() < 99


def test_scale_below_its_bound_has_the_gradient_of_the_exponential(text):
    model = make(text)
    model.scale.backward()
    assert model.log_scale.grad.item() == pytest.approx(1 / 0.07)


def test_a_fixed_temperature_is_no_parameter_but_is_saved(text):
    model = make(text, learn_temperature=False)
    assert "log_scale" not in dict(model.named_parameters())
    assert "log_scale" in model.state_dict()
    assert not model.scale.requires_grad


def test_bias_is_there_only_if_asked_for(text):
    assert make(text).bias is None
    model = make(text, bias=-10.0)
    assert model.bias.item() == -10.0
    assert model.bias.requires_grad


# -- texts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
def test_texts_give_the_same_rows_in_order_whatever_the_batch_size(text, batch_size):
    model = make(text)
    texts = [*TEXTS, *reversed(TEXTS)] * 3
    together = model.encode_text(texts, batch_size=batch_size)
    alone = torch.cat([model.encode_text([t]) for t in texts])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    assert together.dtype == torch.float32
    assert together.device.type == "cpu"
    assert not together.requires_grad


def test_order_holds_across_chunks(text, monkeypatch):
    model = make(text)
    expected = model.encode_text(TEXTS * 4)
    monkeypatch.setattr(lengths, "CHUNK", 7)
    torch.testing.assert_close(model.encode_text(TEXTS * 4), expected, rtol=0, atol=1e-6)


def test_one_text_gives_one_row_and_none_gives_none(text):
    model = make(text)
    assert model.encode_text("ein Hund").shape == (1, 12)
    assert model.encode_text([]).shape == (0, 12)
    assert model.encode_features(torch.zeros(0, 8)).shape == (0, 12)


def test_languages_reach_the_tower_with_their_texts(text, monkeypatch):
    model = make(text)
    seen = {}
    inner = model.embed_text

    def spy(batch):
        for row, mask, lang in zip(batch.ids, batch.mask, batch.langs, strict=True):
            seen[tuple(row[mask].tolist())] = lang
        return inner(batch)

    monkeypatch.setattr(model, "embed_text", spy)
    langs = ["en", "cs", "de", "zh", "fr"]
    model.encode_text(TEXTS, langs, batch_size=2)
    rows = [tuple(r.ids[0].tolist()) for r in (model.text.tokenizer([t]) for t in TEXTS)]
    assert [seen[row] for row in rows] == langs
    model.encode_text(TEXTS, "sw")
    assert set(seen.values()) == {"sw"}


def test_faulty_texts_are_named(text):
    model = make(text)
    with pytest.raises(TypeError, match=r"texts\[1\] is a NoneType"):
        model.encode_text(["a", None])
    with pytest.raises(ValueError, match="2 texts, but 1 languages"):
        model.encode_text(["a", "b"], ["en"])
    with pytest.raises(ValueError, match="batch_size"):
        model.encode_text(["a"], batch_size=0)


@pytest.mark.parametrize(
    ("lang", "said"),
    [
        ("klingon!", "'klingon!'"),
        (["de", "zh_Hant"], "did you mean 'zh-Hant'"),
        (["de", None], "None"),
    ],
)
def test_a_code_that_is_no_language_is_refused(text, lang, said):
    with pytest.raises(ValueError, match=f"lang: .*{said}"):
        make(text).encode_text(["a", "b"], lang)


def test_cut_texts_are_counted_in_the_log(text, caplog):
    with caplog.at_level(logging.WARNING):
        make(text).encode_text(["a " * 100, "b", "c " * 100])
    assert "2 of 3 texts are longer than the 32 tokens" in caplog.text


# -- features and pictures ----------------------------------------------------------------------


def test_features_with_a_mask_are_encoded_in_batches(text):
    model = make(text, image={"name": "features", "width": 8, "tokens": True})
    features, mask = torch.randn(5, 4, 8), torch.ones(5, 4, dtype=torch.bool)
    mask[2, 1:] = False
    together = model.encode_features(features, mask, batch_size=2)
    assert together.shape == (5, 12)
    shorter = model.encode_features(features[2:3, :1])
    torch.testing.assert_close(together[2:3], shorter, rtol=0, atol=1e-6)


def test_paths_pictures_and_tensors_of_a_picture_agree(seeing, picture, tmp_path):
    path = tmp_path / "picture.png"
    picture.save(path)
    tensor = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    rows = seeing.encode_image([path, str(path), picture, tensor], batch_size=3)
    assert rows.shape == (4, 12)
    torch.testing.assert_close(rows, rows[:1].expand(4, -1), rtol=0, atol=1e-6)
    for single in (path, str(path), picture, tensor):
        torch.testing.assert_close(seeing.encode_image(single), rows[:1], rtol=0, atol=1e-5)
    assert seeing.encode_image([]).shape == (0, 12)


def test_pictures_come_back_in_order(seeing, picture):
    pictures = [picture.rotate(angle) for angle in range(0, 360, 45)]
    together = seeing.encode_image(pictures, batch_size=3)
    alone = torch.cat([seeing.encode_image(p) for p in pictures])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_pictures_may_come_from_any_iterable(seeing, picture):
    pictures = [picture.rotate(angle) for angle in (0, 90, 180)]
    expected = seeing.encode_image(pictures, batch_size=2)
    assert torch.equal(seeing.encode_image((p for p in pictures), batch_size=2), expected)
    assert torch.equal(
        seeing.encode_image(dict(enumerate(pictures)).values(), batch_size=2), expected
    )


def test_a_turned_photograph_is_set_upright_from_file_and_from_memory(seeing, picture, tmp_path):
    path = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(path, exif=exif)
    upright = seeing.encode_image(picture.rotate(-90, expand=True))
    with Image.open(path) as opened:
        rows = seeing.encode_image([path, opened])
    torch.testing.assert_close(rows, upright.expand(2, -1), rtol=0, atol=1e-5)


def test_faulty_pictures_are_named(seeing, text, picture, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"broken\.jpg"):
        seeing.encode_image([picture, broken])
    with pytest.raises(ValueError, match=r"missing\.jpg"):
        seeing.encode_image(tmp_path / "missing.jpg")
    with pytest.raises(ValueError, match=r"images\[0\] is torch.float32"):
        seeing.encode_image([torch.zeros(3, 4, 4)])
    with pytest.raises(TypeError, match=r"images\[1\] is a int"):
        seeing.encode_image([picture, 3])
    with pytest.raises(ValueError, match="use encode_features"):
        make(text).encode_image([picture])


# -- around -------------------------------------------------------------------------------------


def test_modes_are_as_before_even_after_a_fault(text):
    model = make(text).train()
    model.text.embedding.eval()  # a mode that somebody set on purpose
    before = {name: m.training for name, m in model.named_modules()}
    first = model.encode_text(TEXTS)
    assert torch.equal(model.encode_text(TEXTS), first), "dropout must be off"
    with pytest.raises(TypeError):
        model.encode_text([None])
    with pytest.raises(ValueError, match="expected features"):
        model.encode_features(torch.zeros(2, 3))
    assert {name: m.training for name, m in model.named_modules()} == before
    assert torch.is_grad_enabled()


def test_similarity_is_the_cosine(text):
    model = make(text)
    a, b = torch.tensor([[2.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 3.0]])
    expected = torch.tensor([[0.0], [0.5**0.5]])
    torch.testing.assert_close(model.similarity(a, b), expected)
    with pytest.raises(ValueError, match="width 2 and 3"):
        model.similarity(a, torch.zeros(1, 3))


def test_progress_shows_throughput_if_asked_and_nothing_otherwise(text, capsys):
    model = make(text)
    model.encode_text(TEXTS)
    assert capsys.readouterr().err == ""
    model.encode_text(TEXTS, progress=True)
    shown = capsys.readouterr().err
    assert "5/5" in shown
    assert "texts/s" in shown


# -- docs ---------------------------------------------------------------------------------------


def test_examples_of_the_docs_pages_run(tmp_path, monkeypatch):
    docs = Path(__file__).resolve().parents[2] / "docs"
    monkeypatch.chdir(tmp_path)
    for page, count in (("models.md", 3), ("encoders/text.md", 1)):
        blocks = re.findall(r"```python\n(.*?)```", (docs / page).read_text("utf-8"), re.DOTALL)
        assert len(blocks) == count
        exec("\n".join(blocks), {})
    assert (tmp_path / "my-model" / "README.md").is_file()


def test_configs_of_the_docs_page_are_valid():
    page = Path(__file__).resolve().parents[2] / "docs/encoders/text.md"
    blocks = re.findall(r"```yaml\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 7
    for block in blocks:
        check_part(text_encoders, yaml.safe_load(block))
