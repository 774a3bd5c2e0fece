import io
import struct
import tarfile
import warnings
import zlib
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from xlcm.data import images
from xlcm.data.images import decode, load_image, load_pixels
from xlcm.data.manifest import DataError


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def picture(width: int = 64, height: int = 48) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def claiming(width: int, height: int) -> bytes:
    """A small PNG whose header says otherwise."""
    data = saved(picture())
    header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def pixel(data: bytes, at: tuple[int, int] = (0, 0)) -> tuple[int, int, int]:
    image = load_image(data)
    assert image.mode == "RGB"
    return image.getpixel(at)


def test_an_rgb_picture_comes_back_unchanged_without_a_note():
    image, note = decode(saved(picture()))
    assert np.array_equal(np.asarray(image), np.asarray(picture()))
    assert note is None


def test_exif_rotation_is_applied():
    # orientation 6: turn a quarter clockwise, so the stored top left becomes the top right
    stored = Image.new("RGB", (20, 10), "blue")
    stored.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = load_image(saved(stored, exif=exif))
    assert upright.size == (10, 20)
    assert upright.getpixel((9, 0)) == (255, 0, 0)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_does_not_hide_a_picture():
    data = saved(picture(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\xff\xff\x01\x12")
    assert load_image(data).size == (64, 48)


def test_16_bit_grey_is_scaled_and_not_clipped():
    values = np.array([[0, 200, 257, 128 * 257, 65535]], dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        image, note = decode(saved(Image.fromarray(values), kind))
        assert np.asarray(image)[0, :, 0].tolist() == [0, 1, 1, 128, 255]
        assert "scaled to 8 bits" in note


def test_32_bit_integers_in_16_bit_range_are_scaled_and_others_refused():
    values = np.array([[0, 65535]], dtype=np.int32)
    assert np.asarray(load_image(saved(Image.fromarray(values), "TIFF")))[0, :, 0].tolist() == [
        0,
        255,
    ]
    with pytest.raises(DataError, match="no agreed white"):
        load_image(saved(Image.fromarray(values * 2), "TIFF"))
    with pytest.raises(DataError, match="no agreed white"):
        load_image(saved(Image.fromarray(np.ones((2, 2), dtype=np.float32)), "TIFF"))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_parts_become_white(mode):
    clear = Image.new(mode, (2, 1), (0, 0, 0, 0) if mode == "RGBA" else (0, 0))
    assert pixel(saved(clear)) == (255, 255, 255)
    half = Image.new(mode, (2, 1), (0, 0, 0, 128) if mode == "RGBA" else (0, 128))
    assert pixel(saved(half)) == (127, 127, 127)
    assert "transparency" in decode(saved(half))[1]


def test_palettes_with_and_without_transparency():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    assert pixel(saved(image)) == (255, 0, 0)
    assert pixel(saved(image, transparency=1), (1, 0)) == (255, 255, 255)
    assert pixel(saved(image, transparency=1), (0, 0)) == (255, 0, 0)
    assert decode(saved(image))[1] == "P converted"


def test_cmyk_one_bit_and_grey():
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red, green, blue = pixel(saved(cmyk, "JPEG", quality=95))
    assert red > 240
    assert max(green, blue) < 15
    assert decode(saved(cmyk, "JPEG"))[1] == "CMYK converted"
    assert pixel(saved(Image.new("1", (3, 3), 1))) == (255, 255, 255)
    grey, note = decode(saved(Image.new("L", (3, 3), 7)))
    assert grey.getpixel((1, 1)) == (7, 7, 7)
    assert note is None


def test_one_pixel_and_several_frames():
    assert load_image(saved(Image.new("RGB", (1, 1), "red"))).getpixel((0, 0)) == (255, 0, 0)
    frames = [Image.new("RGB", (4, 4), c) for c in ("red", "blue")]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixel(data) == (255, 0, 0)


@pytest.mark.parametrize(
    ("data", "kind", "said"),
    [
        (b"", "image_empty", "empty (0 bytes)"),
        (b"\n <!DOCTYPE html><html>", "image_undecodable", "a web page, not a picture"),
        (b"GIF89", "image_undecodable", "not a picture that Pillow knows; it starts with b'GIF89'"),
        (saved(picture(), "JPEG")[:-300], "image_undecodable", "truncated"),
        (saved(picture(), "PNG")[:-300], "image_undecodable", "can't be decoded"),
        (saved(picture(), "WEBP")[:-300], "image_undecodable", "can't be decoded"),
        (saved(picture(), "GIF")[:-600], "image_undecodable", "can't be decoded"),
    ],
)
def test_a_broken_file_is_named_with_its_reason(tmp_path, data, kind, said):
    path = tmp_path / "x.jpg"
    path.write_bytes(data)
    with pytest.raises(DataError) as error:
        load_image(path)
    assert str(path) in str(error.value)
    assert said in str(error.value)
    assert error.value.kind == kind
    with pytest.raises(DataError, match="image 'photo 7': "):
        load_image(data, name="photo 7")


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(DataError, match=r"nope\.jpg': no such file") as error:
        load_image(tmp_path / "nope.jpg")
    assert error.value.kind == "image_missing"
    with pytest.raises(DataError, match="can't be read"):
        load_image(Path(tmp_path))


def test_a_decompression_bomb_is_an_error_at_any_size(monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match="too large") as error:
            load_image(claiming(30_000, 30_000))
        assert error.value.kind == "image_too_large"
        monkeypatch.setattr(images, "MAX_PIXELS", 47 * 64)
        with pytest.raises(DataError, match="64 x 48 pixels, at most 3,008"):
            load_image(saved(picture()))
        # Pillow would only warn here
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
        monkeypatch.setattr(images, "MAX_PIXELS", 3072)
        assert load_image(saved(picture())).size == (64, 48)


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(picture(), "JPEG", exif=exif)


ODD = {
    "progressive": saved(picture(), "JPEG", progressive=True, quality=30),
    "grey": saved(picture().convert("L"), "JPEG"),
    "CMYK": saved(picture().convert("CMYK"), "JPEG"),
    "stored as RGB": saved(picture(), "JPEG", keep_rgb=True),
    "one pixel": saved(picture(1, 1), "JPEG"),
    "PNG": saved(picture()),
    "transparent": saved(picture().convert("RGBA"), "PNG"),
    **{f"turned, {orientation}": turned(orientation) for orientation in range(10)},
}


@pytest.mark.parametrize("name", ODD)
def test_pixels_are_those_of_the_picture_whatever_the_file_is(name):
    pixels = load_pixels(ODD[name])
    assert pixels.dtype == torch.uint8
    assert np.array_equal(pixels.permute(1, 2, 0), np.asarray(load_image(ODD[name])))


def test_pixels_of_photographs_are_those_that_pillow_decodes(shared):
    with tarfile.open(shared / "data" / "photos" / "images.tar") as tar:
        for member in islice((m for m in tar if m.name.endswith(".jpg")), 200):
            data = tar.extractfile(member).read()
            assert np.array_equal(load_pixels(data).permute(1, 2, 0), np.asarray(load_image(data)))


def test_a_plain_header_is_read_without_pillow_and_tells_the_limit(monkeypatch):
    pillow = []
    monkeypatch.setattr(images, "_open", lambda *_: pillow.append(1))
    for name in ("progressive", "grey"):
        load_pixels(ODD[name])
    assert not pillow
    monkeypatch.undo()
    monkeypatch.setattr(images, "MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(DataError, match="too large: 64 x 48") as raised:
        load_pixels(ODD["progressive"])
    assert raised.value.kind == "image_too_large"


def test_only_plain_upright_jpegs_are_decoded_past_pillow(monkeypatch):
    def none(*_, **__):
        raise AssertionError("decoded by Pillow")

    monkeypatch.setattr(images, "decode", none)
    for name in ("progressive", "grey", "stored as RGB", "turned, 1"):
        load_pixels(ODD[name])
    for name in ("CMYK", "PNG", "turned, 6"):
        with pytest.raises(AssertionError, match="by Pillow"):
            load_pixels(ODD[name])


@pytest.mark.filterwarnings("ignore")
def test_damaged_jpegs_give_the_same_pixels_or_the_same_message():
    data = saved(picture(), "JPEG")
    random = np.random.default_rng(0)
    for _ in range(300):
        broken = bytearray(data)
        broken[int(random.integers(len(data)))] = int(random.integers(256))
        broken = bytes(broken[: int(random.integers(len(data) // 2, 2 * len(data)))])
        found = []
        for load in (load_image, load_pixels):
            try:
                found.append(load(broken))
            except DataError as error:
                found.append(str(error))
        image, pixels = found
        if isinstance(image, str):
            assert pixels == image
        else:
            assert np.array_equal(pixels.permute(1, 2, 0), np.asarray(image))
