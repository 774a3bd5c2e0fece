"""Batches on their way to a GPU: when each is sent, what arrives, and where a run goes on."""

import weakref

import pytest
import tiny
import torch

from xlcm.config import check
from xlcm.data.manifest import DataError
from xlcm.data.transfer import Copies, ahead, tensors_of
from xlcm.training import setup
from xlcm.training.settings import TrainConfig
from xlcm.types import Batch, TextBatch, Visual


class Way:
    """Stands for a GPU: notes what is sent and what arrives."""

    def __init__(self):
        self.said = []
        self.number = 0

    def send(self, batch):
        self.said.append(("sent", self.number))
        self.number += 1
        return self.number - 1, batch

    def arrive(self, sent):
        self.said.append(("there", sent[0]))
        return sent[1]


def test_the_next_batch_is_sent_before_this_one_is_used():
    way = Way()
    found = []
    for batch in ahead(["a", "b", "c"], way.send, way.arrive):
        way.said.append(("used", len(found)))
        found.append(batch)
    assert found == ["a", "b", "c"]
    assert way.said == [
        ("sent", 0), ("sent", 1), ("there", 0), ("used", 0), ("sent", 2), ("there", 1), ("used", 1),
        ("there", 2), ("used", 2),
    ]  # fmt: skip


def test_a_batch_that_was_used_is_held_by_nobody():
    refs = []

    def made():
        for number in range(4):
            batch = Batch(ids=torch.full((2,), number))
            refs.append(weakref.ref(batch.ids))
            yield batch
            del batch

    way = Way()
    found = ahead(made(), way.send, way.arrive)
    for number in range(3):
        batch = next(found)
        assert batch.ids.tolist() == [number] * 2
        del batch
        assert refs[number]() is None
        assert refs[number + 1]() is not None


class Stream:
    """Stands for a stream; so does its module."""

    def __init__(self, said):
        self.said = said

    def record_event(self):
        self.said.append("copied")
        return "event"

    def wait_event(self, event):
        self.said.append(f"waits for {event}")


def test_a_copy_is_made_on_its_own_stream_and_waited_for_on_the_models(monkeypatch):
    said = []
    module = torch.get_device_module("cpu")
    monkeypatch.setattr(module, "Stream", lambda device: Stream(said))
    monkeypatch.setattr(module, "current_stream", lambda device: Stream(said))

    class Within:
        def __init__(self, stream):
            pass

        def __enter__(self):
            said.append("in")

        def __exit__(self, *_):
            said.append("out")

    monkeypatch.setattr(module, "stream", Within)
    kept = []
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: kept.append(tensor))
    text = TextBatch(ids=torch.ones(2, 3), mask=torch.ones(2, 3, dtype=torch.bool), keys=("a", "b"))
    batch = Batch(torch.arange(2), Visual(torch.zeros(2, 3, 4, 4)), {"source": text}, ("x", "y"))
    copies = Copies(torch.device("cpu"))
    sent = copies.send(batch)
    assert said == ["in", "copied", "out"]
    there = copies.arrive(sent)
    assert said[3:] == ["waits for event"]
    assert len(kept) == len(list(tensors_of(batch))) == 4
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(there), tensors_of(batch)))
    assert there.names == ("x", "y")
    fault = DataError("a:1: gone")
    assert copies.arrive(copies.send(fault)) is fault


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_that_copies_ahead_has_the_batches_and_the_place_of_one_that_does_not(
    tiny_data, tmp_path, workers
):
    config = check(TrainConfig, tiny.tree(tiny_data, tmp_path, data={"workers": workers}))
    tiny.forget_processes()
    accelerator = setup.start(config)
    rows = setup.open_data(accelerator, config).rows
    method = setup.build_method(accelerator, config, rows)

    plain, other = (
        setup.build_loader(accelerator, config.data, config.run, rows, method) for _ in range(2)
    )
    assert plain.copies is None  # on a CPU
    other.copies = Way()
    for number, (one, two) in enumerate(zip(iter(plain), iter(other)), start=1):
        assert one.names == two.names
        assert all(torch.equal(a, b) for a, b in zip(tensors_of(one), tensors_of(two)))
        assert plain.state_dict() == other.state_dict()
        assert other.copies.said[-1] == ("there", number - 1)
        assert other.copies.number == number + 1  # one more is under way, and doesn't count
        if number == 6:  # in the second epoch
            break
