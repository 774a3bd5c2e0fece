"""Data that lack what a model reads are refused by the width of the features, not of the tower."""

from types import SimpleNamespace

import pytest
import tiny

from xlcm.config import ConfigError
from xlcm.data.dataset import ManifestDataset
from xlcm.evaluation.setup import refuse_misfit


def dataset(folder, **options):
    return ManifestDataset(path=str(folder / "tiny.jsonl"), split="test", **options)


def model(**image):
    return SimpleNamespace(image=SimpleNamespace(width=1024, **image))


def test_a_tower_is_fitted_by_the_width_of_the_features_that_it_reads(tiny_data):
    fits = model(reads_features=True, feature_width=tiny.FEATURES)
    store = str(tiny_data / "store")
    refuse_misfit(fits, dataset(tiny_data, features=store))
    with pytest.raises(ConfigError, match="reads features of width 8, and none were given"):
        refuse_misfit(fits, dataset(tiny_data))
    other = model(reads_features=True, feature_width=2048)
    with pytest.raises(ConfigError, match=r"width 2048, those in .*store have width 8"):
        refuse_misfit(other, dataset(tiny_data, features=store))


def test_a_tower_of_pixels_takes_no_features(tiny_data):
    pixels = model(reads_features=False)
    refuse_misfit(pixels, dataset(tiny_data))
    with pytest.raises(ConfigError, match=r"reads pictures, the features in .*store"):
        refuse_misfit(pixels, dataset(tiny_data, features=str(tiny_data / "store")))
