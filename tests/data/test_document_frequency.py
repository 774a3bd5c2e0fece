"""Rare pieces weigh more, counted once over the captions of the training data."""

import math

import pytest
import torch
from small_models import Numbers

from xlcm.data.document_frequency import inverse_document_frequency
from xlcm.data.views import View, Views
from xlcm.types import Caption, Item

SOURCE = ["3 4 4", "3 5", "3", "3 5 6"]
TARGET = ["7", "7 8", "4", "7 7 7"]


class Captions:
    name, split = "made up", "train"

    def __len__(self):
        return 4

    def __getitem__(self, index):
        source = Caption(f"{index}en", "en", SOURCE[index])
        target = Caption(f"{index}de", "de", TARGET[index], "mt", of=source.id)
        return Item(str(index), "train", (source, target, Caption(f"{index}fr", "fr", "9")))


def views():
    return Views({"source": View(langs=["en"]), "target": View(langs=["de"], of="source")})


def count():
    return inverse_document_frequency(
        Captions(), views(), ["source", "target"], Numbers(), device=torch.device("cpu")
    )


def test_a_piece_weighs_by_the_captions_of_its_view_that_hold_it():
    found = count()
    assert found.shape == (2, Numbers.vocab_size)
    expected = {
        (0, 3): 4, (0, 4): 1, (0, 5): 2, (0, 6): 1, (0, 9): 1, (0, 0): 1,
        (1, 7): 3, (1, 8): 1, (1, 4): 1, (1, 3): 1,
    }  # fmt: skip
    for place, frequency in expected.items():
        assert found[place].item() == pytest.approx(math.log(5 / frequency), rel=1e-6), place
    assert (found > 0).all()


def test_chunks_count_what_one_call_counts(monkeypatch):
    whole = count()
    monkeypatch.setattr("xlcm.data.document_frequency.CHUNK", 1)
    torch.testing.assert_close(count(), whole, rtol=0, atol=0)


def counted():
    return count().tolist()


@pytest.mark.parametrize("number", [2, 3])
def test_processes_share_the_counting_and_have_all_of_it(processes, number):
    wanted = counted()
    assert processes.run(number, counted) == [wanted] * number
