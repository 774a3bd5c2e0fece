from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from xlcm.data.scenes.draw import LIGHT, PIXELS, RGB, draw
from xlcm.data.scenes.shapes import OUTLINES, shape_masks, texture_mask
from xlcm.data.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    TEXTURES,
    UNSEEN,
    Group,
    Scene,
    random_scene,
)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def near(picture: NDArray[np.uint8], colour: str) -> NDArray[np.bool_]:
    """Where the hue is a colour's, whatever the tint and brightness of one object."""
    names = list(RGB)
    palette = np.array([RGB[name] for name in names] + [(250, 250, 250)], np.float32)
    distance = np.linalg.norm(picture[:, :, None].astype(np.float32) - palette, axis=-1)
    return (distance.argmin(-1) == names.index(colour)) & (distance.min(-1) < 45)


def test_same_state_gives_same_picture_and_another_gives_another():
    scene = random_scene(generator(3))
    first, again, other = (draw(scene, generator(seed)) for seed in (1, 1, 2))
    assert first.dtype == np.uint8
    assert first.shape == (64, 64, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_every_group_is_there_in_its_colour_with_its_area_and_in_its_order():
    checked = 0
    for seed in range(150):
        scene = random_scene(generator(seed))
        plain = tuple(replace(g, texture="plain") for g in scene.groups)
        scene = replace(scene, groups=plain, background="white")
        picture = draw(scene, generator(seed + 1000))
        along = []
        for group in scene.groups:
            where = near(picture, group.colour)
            least, most = PIXELS[group.size]
            pixels = where.sum() / group.count
            # a slender moon covers a quarter of its box, half of what is left may be its rim
            assert 0.1 * least**2 < pixels < 1.1 * most**2, (seed, group)
            rows, columns = np.nonzero(where)
            along.append(np.median(columns if scene.axis == "horizontal" else rows))
            checked += 1
        assert along == sorted(along), seed
    assert checked > 250


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("size", ["small", "large"])
def test_area_tells_count_and_size_of_squares(count, size):
    scene = Scene((Group("square", "red", count, size, "plain"),), "horizontal", "white")
    areas = [near(draw(scene, generator(seed)), "red").sum() for seed in range(20)]
    side = np.mean(PIXELS[size])
    assert np.mean(areas) == pytest.approx(count * (0.8 * side) ** 2, rel=0.2)


def test_large_objects_are_at_least_one_and_two_thirds_as_wide_as_small_ones():
    assert PIXELS["large"][0] >= 5 / 3 * PIXELS["small"][1] - 1e-9
    assert 3 * PIXELS["large"][1] <= 64


@pytest.mark.parametrize("size", [32, 33, 47, 64, 128])
def test_three_groups_of_two_large_objects_fit_at_every_size(size):
    colours = ("red", "green", "black")
    groups = tuple(Group("square", colour, 2, "large", "plain") for colour in colours)
    for seed in range(10):
        for axis in ("horizontal", "vertical"):
            picture = draw(Scene(groups, axis, "white"), generator(seed), size)
            assert picture.shape == (size, size, 3)
            areas = [near(picture, colour).sum() for colour in colours]
            assert min(areas) > 0.6 * max(areas)  # nothing covers anything


def test_textures_of_one_object_differ_by_their_share_of_the_second_colour():
    shares = {}
    for texture in TEXTURES:
        scene = Scene((Group("square", "blue", 1, "large", texture),), "horizontal", "grey")
        found = []
        for seed in range(20):
            picture = draw(scene, generator(seed)).astype(int)
            blue, pale = near(picture.astype(np.uint8), "blue").sum(), (picture.min(-1) > 190).sum()
            found.append(pale / (pale + blue))
        shares[texture] = np.mean(found)
    assert shares["plain"] == 0
    assert 0.1 < shares["dotted"] < shares["striped"]
    assert 0.3 < shares["striped"] < 0.6


def test_texture_masks_have_runs_along_stripes_only():
    striped = texture_mask("striped", 20, 3.0, 0)
    chequered = texture_mask("chequered", 20, 3.0, 0)
    assert np.ptp(striped, axis=0).max() == 0
    assert np.ptp(striped, axis=1).min() == 1
    assert np.ptp(chequered, axis=0).max() == 1
    assert chequered.mean() == pytest.approx(0.5, abs=0.06)


def test_masks_of_shapes_fill_their_box_and_no_two_are_alike():
    masks = {shape: shape_masks(shape, 20, 0, False, 1)[0] for shape in SHAPES}
    assert set(OUTLINES) == set(SHAPES)
    for shape, mask in masks.items():
        assert mask.min() == 0, shape
        assert mask.max() == 1, shape
        across, down = np.flatnonzero(mask.max(0) > 0.3), np.flatnonzero(mask.max(1) > 0.3)
        assert max(np.ptp(across), np.ptp(down)) >= 14, shape
    for i, one in enumerate(SHAPES):
        for other in SHAPES[i + 1 :]:
            assert np.abs(masks[one] - masks[other]).mean() > 0.06, (one, other)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_colours_stand_out_from_their_backgrounds(background):
    empty = draw(
        Scene((Group("moon", "pink", 1, "small", "plain"),), "vertical", background), generator(0)
    )
    common = np.median(empty.reshape(-1, 3), axis=0)
    for colour in COLOURS:
        if colour not in UNSEEN[background]:
            assert np.linalg.norm(common - np.array(RGB[colour])) > 60, colour


def test_backgrounds_differ_from_picture_to_picture_and_from_each_other():
    group = Group("circle", "red", 1, "small", "plain")
    means = []
    for background in BACKGROUNDS:
        scene = Scene((group,), "horizontal", background)
        one, other = draw(scene, generator(1)), draw(scene, generator(2))
        assert not np.array_equal(one, other)
        means.append(one.reshape(-1, 3).mean(0))
    gaps = [np.linalg.norm(a - b) for i, a in enumerate(means) for b in means[i + 1 :]]
    assert min(gaps) > 20


def test_colours_with_dark_textures_are_the_bright_ones():
    brightness = {name: np.dot(rgb, (0.3, 0.59, 0.11)) for name, rgb in RGB.items()}
    assert min(brightness[c] for c in LIGHT) > max(brightness[c] for c in set(RGB) - LIGHT)
