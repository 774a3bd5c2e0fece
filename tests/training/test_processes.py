"""Two processes train like one: the global batch is the promise."""

import math

import pytest
import tiny
import torch

from xlcm.config import merge


@pytest.fixture(scope="module")
def both(tiny_data, tmp_path_factory, processes):
    """Folders of the same runs on one process and on two: `plain` and with `accumulate`."""
    folder = tmp_path_factory.mktemp("processes")
    changes = {
        "plain": {"run": {"steps": 20}},
        "accumulate": {"run": {"steps": 5, "accumulate": 3}},
        "captions": {
            "run": {"steps": 5},
            "data": {"rows": "caption", "same_image": "together"},
            "method": {"text_weight": 0.5},
        },
    }
    configs = {
        world: {
            name: merge(
                tiny.tree(tiny_data, folder / world / name, model={"text": {"dropout": 0.0}}),
                change,
            )
            for name, change in changes.items()
        }
        for world in ("one", "two")
    }
    rows = [row for config in configs["one"].values() for row in tiny.train(config).names]
    found = processes.run(2, tiny.train_in_pool, list(configs["two"].values()))
    assert [result["processes"] for result in found] == [2, 2]
    halves = [left + right for left, right in zip(*(result["names"] for result in found))]
    assert halves == rows
    return folder


@pytest.mark.parametrize(("name", "steps"), [("plain", 20), ("accumulate", 5), ("captions", 5)])
def test_losses_and_parameters_are_those_of_one_process(both, name, steps):
    one, two = both / "one" / name, both / "two" / name
    left, right = tiny.metrics(one), tiny.metrics(two)
    assert len(left) == len(right) == steps
    for first, second in zip(left, right):
        assert second["loss"] == pytest.approx(first["loss"], rel=1e-6)
        assert second["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-5)
    first, second = tiny.weights(one, steps), tiny.weights(two, steps)
    assert set(first) == set(second)
    for key in first:
        torch.testing.assert_close(second[key], first[key], rtol=1e-5, atol=1e-5)


# -- faults on one of two processes --------------------------------------------------------------


def one_bad_process(config):
    """Spoil a row of the second process at its second and third batch."""
    processes = tiny.join_pool()
    rank = torch.distributed.get_rank()

    def spoil(method):
        forward, count = method.forward, [0]

        def spoiled(batch):
            count[0] += 1
            if rank == 1 and count[0] in (2, 3):
                batch.visual.features[0, 0] = math.inf
            return forward(batch)

        method.forward = spoiled

    error, names = "", []
    try:
        names = tiny.train(config, wrap=spoil).names
    except FloatingPointError as stopped:
        error = str(stopped)
    return {"processes": processes, "error": error, "names": names}


def test_a_non_finite_row_on_one_process_is_skipped_by_both(tiny_data, tmp_path, processes):
    config = tiny.tree(
        tiny_data, tmp_path, run={"steps": 4, "save_every": 1, "keep_checkpoints": 9}
    )
    found = processes.run(2, one_bad_process, config)
    assert [result["processes"] for result in found] == [2, 2]
    records = tiny.metrics(tmp_path, "nonfinite")
    assert [record["step"] for record in records] == [2, 3]
    for record in records:
        rows = [name for result in found for name in result["names"][record["step"] - 1]]
        assert record["rows"] == rows
    kept = [tiny.checkpoint(tmp_path, step)["model.safetensors"] for step in (1, 2, 3, 4)]
    assert kept[0] == kept[1] == kept[2] != kept[3]
    assert [record["step"] for record in tiny.metrics(tmp_path)] == [1, 4]


def test_both_processes_stop_after_too_many(tiny_data, tmp_path, processes):
    config = tiny.tree(tiny_data, tmp_path, run={"max_nonfinite": 2})
    found = processes.run(2, one_bad_process, config)
    assert [result["processes"] for result in found] == [2, 2]
    assert all("2 steps in a row were not finite" in result["error"] for result in found)


def test_a_global_batch_that_processes_do_not_divide_is_refused(tiny_data, tmp_path, processes):
    config = tiny.tree(tiny_data, tmp_path, run={"global_batch": 15})
    with pytest.raises(RuntimeError, match=r"global_batch=15 is not divisible by 2.*14 or 16"):
        processes.run(2, tiny.train_in_pool, [config])
