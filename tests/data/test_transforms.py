import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from xlcm.data.images import to_pixels
from xlcm.data.transforms import Augment


def picture(width: int = 40, height: int = 30) -> Image.Image:
    values = np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def changed(augment: Augment, seed: int, image: Image.Image | None = None) -> np.ndarray:
    return np.asarray(augment(image or picture(), np.random.default_rng(seed)))


def test_by_default_nothing_is_changed_and_nothing_drawn():
    augment, image, random = Augment(), picture(), np.random.default_rng(0)
    assert not augment.active
    assert augment(image, random) is image
    assert random.random() == np.random.default_rng(0).random()


@pytest.mark.parametrize(
    "option", [{"crop": 0.5}, {"flip": 0.5}, {"colour": 0.3}, {"grey": 0.1}], ids=str
)
def test_each_option_makes_it_active(option):
    assert Augment(**option).active


@given(
    crop=st.floats(0.01, 0.99),
    ratio=st.floats(1, 4),
    size=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=300, deadline=None)
def test_a_crop_keeps_the_asked_area_and_stays_inside(crop, ratio, size, seed):
    augment = Augment(crop=crop, ratio=ratio)
    left, top, right, low = augment._box(size, np.random.default_rng(seed))
    assert 0 <= left < right <= size[0]
    assert 0 <= top < low <= size[1]
    assert (right - left) * (low - top) >= crop * size[0] * size[1] * (1 - 1e-9)


def test_crops_cover_areas_ratios_and_places():
    augment = Augment(crop=0.2, ratio=2)
    boxes = np.array([augment._box((400, 200), np.random.default_rng(s)) for s in range(500)])
    wide, high = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    share = wide * high / 80_000
    assert share.min() < 0.25
    assert share.max() > 0.95
    assert abs(share.mean() - 0.6) < 0.05
    stretch = wide / high / 2
    assert 0.48 < stretch.min() < 0.6
    assert 1.7 < stretch.max() < 2.1
    assert abs(np.log(stretch).mean()) < 0.05
    assert (boxes[:, 0].min(), boxes[:, 1].min()) == (0, 0)
    assert (boxes[:, 2].max(), boxes[:, 3].max()) == (400, 200)


def test_the_crop_is_cut_from_the_picture_itself():
    augment = Augment(crop=0.3)
    left, top, right, low = augment._box((40, 30), np.random.default_rng(5))
    assert np.array_equal(changed(augment, 5), np.asarray(picture())[top:low, left:right])


def test_a_mirror_swaps_left_and_right_as_often_as_asked():
    assert np.array_equal(changed(Augment(flip=1), 0), np.asarray(picture())[:, ::-1])
    flipped = [
        not np.array_equal(changed(Augment(flip=0.3), seed), np.asarray(picture()))
        for seed in range(1000)
    ]
    assert abs(np.mean(flipped) - 0.3) < 4 * (0.3 * 0.7 / 1000) ** 0.5


def test_colour_stays_within_its_range():
    flat = Image.new("RGB", (4, 4), (100, 100, 100))  # contrast and saturation leave it alone
    values = np.array([changed(Augment(colour=0.2), seed, flat)[0, 0, 0] for seed in range(200)])
    assert values.min() >= 79
    assert values.max() <= 121
    assert values.min() < 85
    assert values.max() > 115


def test_grey_pictures_have_equal_channels_and_stay_rgb():
    grey = changed(Augment(grey=1), 0)
    assert grey.shape == (30, 40, 3)
    assert (grey == grey[..., :1]).all()


def test_the_generator_alone_decides_and_the_original_stays():
    augment = Augment(crop=0.4, flip=0.5, colour=0.4, grey=0.2)
    image = picture()
    for seed in range(20):
        assert np.array_equal(changed(augment, seed, image), changed(augment, seed, image))
    assert len({changed(augment, seed, image).tobytes() for seed in range(20)}) == 20
    assert np.array_equal(np.asarray(image), np.asarray(picture()))


@pytest.mark.parametrize(
    "option",
    [{"crop": 0}, {"crop": 1.1}, {"ratio": 0.9}, {"flip": 1.5}, {"colour": 1}, {"gray": 0.1}],
    ids=str,
)
def test_options_out_of_range_or_unknown_are_refused(option):
    with pytest.raises(ValidationError):
        Augment(**option)


@pytest.mark.parametrize("seed", range(8))
def test_pixels_are_changed_as_the_picture_is(seed):
    augment = Augment(crop=0.3, flip=0.5, colour=0.4, grey=0.3)
    for some in (augment, augment.model_copy(update={"colour": 0.0, "grey": 0.0})):
        pixels = some(to_pixels(picture()), np.random.default_rng(seed))
        assert np.array_equal(pixels.permute(1, 2, 0), changed(some, seed))
