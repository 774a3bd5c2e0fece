import io
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm.data
import torch
import yaml
from PIL import Image

from xlcm.config import build, check_part
from xlcm.encoders.transform import ImageTransform, Normalise
from xlcm.registry import image_encoders, poolings


@pytest.fixture(scope="module")
def photos(shared: Path) -> list[Image.Image]:
    """Real photographs (128 x 128), and pieces of a mosaic of them in camera-like shapes."""
    pictures: list[Image.Image] = []
    with tarfile.open(shared / "data" / "photos" / "images.tar") as tar:
        for member in tar:
            if member.name.endswith(".jpg"):
                data = tar.extractfile(member)
                assert data is not None
                pictures.append(Image.open(io.BytesIO(data.read())).convert("RGB"))
            if len(pictures) == 16:
                break
    mosaic = Image.new("RGB", (512, 512))
    for place, picture in enumerate(pictures):
        mosaic.paste(picture, (place % 4 * 128, place // 4 * 128))
    shapes = [(500, 375), (333, 500), (499, 374), (375, 501), (224, 224), (127, 128), (512, 90)]
    return pictures[:3] + [mosaic.crop((0, 0, *shape)) for shape in shapes]


@pytest.mark.parametrize("size", [224, 160, 97])
@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 1.0])
@pytest.mark.parametrize(("interpolation", "mode"), [("bilinear", "center"), ("bicubic", "squash")])
def test_pixels_equal_timms_evaluation_transform_on_photographs(
    photos: list[Image.Image], size: int, crop_pct: float, interpolation: str, mode: str
) -> None:
    settings = {
        "input_size": (3, size, size), "crop_pct": crop_pct, "interpolation": interpolation,
        "crop_mode": mode,
    }  # fmt: skip
    reference = timm.data.create_transform(**settings, mean=(0, 0, 0), std=(1, 1, 1))
    transform = replace(ImageTransform.from_timm(settings), resizer="pillow")
    for photo in photos:
        pixels = transform(photo)
        assert pixels.dtype == torch.uint8
        assert pixels.shape == (3, size, size)
        assert torch.equal(pixels.float() / 255, reference(photo))


@pytest.mark.parametrize("size", [224, 97])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_torchs_pixels_are_within_a_grey_level_or_two_of_pillows(
    photos: list[Image.Image], size: int, interpolation: str
) -> None:
    fast = ImageTransform(size, 0.9, interpolation)
    slow = replace(fast, resizer="pillow")
    wide = photos[3].resize((2000, 90))  # squeezed eightfold and stretched at once
    for photo in [*photos, wide]:
        gap = (fast(photo).int() - slow(photo).int()).abs()
        assert gap.max() <= 2
        assert gap.float().mean() < 0.02


@pytest.mark.parametrize("resizer", ["torch", "pillow"])
def test_pixels_and_pictures_are_transformed_alike(resizer: str) -> None:
    values = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    transform = ImageTransform(32, resizer=resizer)
    pixels = torch.from_numpy(values).permute(2, 0, 1)
    assert torch.equal(transform(pixels), transform(Image.fromarray(values)))
    assert torch.equal(transform(pixels.contiguous()), transform(pixels))
    for wrong in (pixels[:1], pixels.float(), pixels[None]):
        with pytest.raises(ValueError, match=r"expected RGB pixels, uint8 \(3, H, W\)"):
            transform(wrong)


def test_squash_keeps_the_whole_picture_and_crop_its_middle() -> None:
    image = Image.fromarray(
        np.repeat(np.arange(100, dtype=np.uint8)[None, :, None], 50, 0).repeat(3, 2)
    )
    squashed = ImageTransform(50, squash=True)(image)
    cropped = ImageTransform(50)(image)
    assert squashed.min() <= 1
    assert squashed.max() >= 98
    assert (cropped.min().item(), cropped.max().item()) == (25, 74)


def test_a_picture_of_the_right_size_passes_unchanged() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert np.array_equal(ImageTransform(32)(Image.fromarray(pixels)).permute(1, 2, 0), pixels)


def test_spec_and_pickle_rebuild_it() -> None:
    transform = ImageTransform(64, 0.9, "bilinear", True)
    assert ImageTransform(**transform.spec()) == transform
    assert pickle.loads(pickle.dumps(transform)) == transform


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P", "I;16"])
def test_other_modes_are_refused(mode: str) -> None:
    with pytest.raises(ValueError, match="expected an RGB picture"):
        ImageTransform(32)(Image.new(mode, (40, 40)))


@pytest.mark.parametrize(
    "options", [{"size": 0}, {"size": 8, "crop_pct": 1.1}, {"size": 8, "interpolation": "nearest"}]
)
def test_values_out_of_range_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=r"crop_pct|interpolation"):
        ImageTransform(**options)


def test_image_processors_of_the_families_are_understood() -> None:
    clip = {"crop_size": {"height": 224, "width": 224}, "size": {"shortest_edge": 224},
            "do_center_crop": True, "resample": 3}  # fmt: skip
    assert ImageTransform.from_hf(clip) == ImageTransform(224, 1.0, "bicubic")
    old_clip = {"crop_size": 224, "size": 224, "do_center_crop": True, "resample": 3}
    assert ImageTransform.from_hf(old_clip) == ImageTransform(224, 1.0, "bicubic")
    siglip = {"size": {"height": 256, "width": 256}, "resample": 2, "do_center_crop": None}
    assert ImageTransform.from_hf(siglip) == ImageTransform(256, 1.0, "bilinear", squash=True)
    dinov2 = {**clip, "size": {"shortest_edge": 256}}
    assert ImageTransform.from_hf(dinov2) == ImageTransform(224, 0.875, "bicubic")


def test_resized_side_survives_the_rounding_of_its_share() -> None:
    for crop in range(200, 260):
        for side in range(crop, 300):
            processor = {"size": {"shortest_edge": side}, "crop_size": crop, "resample": 3}
            transform = ImageTransform.from_hf(processor)
            assert transform._resized(400, 900)[0] == side


@pytest.mark.parametrize(
    "processor",
    [
        {"size": {"shortest_edge": 224}, "do_center_crop": False},
        {"size": {"height": 224, "width": 336}},
        {"size": {"shortest_edge": 224}, "crop_size": 256},
        {"size": {"height": 224, "width": 224}, "resample": 0},
        {},
    ],
)
def test_image_processors_without_a_square_end_are_refused(processor: dict) -> None:
    with pytest.raises(ValueError, match="ends in a square"):
        ImageTransform.from_hf(processor)


def test_uint8_and_unit_floats_are_normalised_alike() -> None:
    normalise = Normalise((0.4, 0.5, 0.6), (0.1, 0.2, 0.3))
    pixels = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    expected = (pixels / 255.0 - torch.tensor([0.4, 0.5, 0.6])[:, None, None]) / torch.tensor(
        [0.1, 0.2, 0.3]
    )[:, None, None]
    torch.testing.assert_close(normalise(pixels, torch.float32), expected)
    torch.testing.assert_close(normalise(pixels / 255.0, torch.float32), expected)
    assert normalise(pixels, torch.bfloat16).dtype == torch.bfloat16


def test_mean_and_std_keep_float32_when_the_model_is_cast_and_are_not_saved() -> None:
    normalise = Normalise((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)).to(torch.bfloat16)
    assert normalise.mean.dtype == torch.float32
    assert normalise.mean[0].item() == pytest.approx(0.485, abs=1e-7)
    assert not normalise.state_dict()
    with torch.device("meta"):
        empty = Normalise((0.1, 0.2, 0.3), (1, 1, 1))
    assert empty.to_empty(device="cpu").mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (None, "batch has none"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), "expected pixels"),
        (torch.zeros(1, 4, 4, 3, dtype=torch.uint8), "expected pixels"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.int64), "int64"),
        (torch.full((1, 3, 4, 4), 255.0), r"0\.\.1, got 255"),
        (torch.full((1, 3, 4, 4), -1.0), r"0\.\.1, got -1"),
        (torch.full((1, 3, 4, 4), float("nan")), r"0\.\.1, got nan"),
    ],
)
def test_wrong_pixels_are_refused(pixels: torch.Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Normalise((0.5,) * 3, (0.5,) * 3)(pixels, torch.float32)


def test_examples_of_the_docs_page_are_valid() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/encoders/image.md").read_text(
        encoding="utf-8"
    )
    examples = [yaml.safe_load(part.split("```")[0]) for part in page.split("```yaml\n")[1:]]
    assert len(examples) == 8
    for example in examples:
        assert check_part(image_encoders, example)["name"] == example["name"]
    code = page.split("```python\n")[1].split("```")[0]
    exec(code, {})
    tokens = torch.tensor([[[1.0], [5.0], [2.0], [9.0]]])
    pooling = build(poolings, "median", 1)
    assert pooling(tokens, torch.tensor([[True, True, True, False]])).item() == 2.0
    del poolings._parts["median"]
