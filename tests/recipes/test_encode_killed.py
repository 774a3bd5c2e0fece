"""recipes/encode.py killed by SIGKILL at any moment: the same command makes the whole store."""

import os
import signal

import pytest
import tiny
import torch
from test_encode import config, encode

from xlcm.data.features import FeatureStore
from xlcm.encoders.image_timm import TimmImageEncoder


def killed(path, victims, batches):
    """Run the recipe on this process of several; victims die with so many batches encoded."""
    import torch.distributed as dist

    tiny.join_pool()
    forward, seen = TimmImageEncoder.forward, [0]

    def watched(self, visual):
        seen[0] += 1
        if dist.get_rank() in victims and seen[0] > batches:
            os.kill(os.getpid(), signal.SIGKILL)
        return forward(self, visual)

    TimmImageEncoder.forward = watched
    return tiny.recipe("encode.py").main(path)


def dies_as_it_writes(path, shard):
    """Run the recipe; it is killed between a shard's bytes and its name."""
    tiny.join_pool()
    replace = os.replace

    def watched(source, target, **options):
        if str(target).endswith(f"shard-{shard:05d}.safetensors"):
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(source, target, **options)

    os.replace = watched
    return tiny.recipe("encode.py").main(path)


def assert_same(folder, other):
    one, two = FeatureStore(folder), FeatureStore(other)
    assert one.verify() == two.verify() == []
    assert sorted(one.keys()) == sorted(two.keys())
    for key in one.keys():  # noqa: SIM118 -- a store is no mapping
        assert torch.equal(one[key], two[key]), key


@pytest.fixture(scope="module")
def whole(tiny_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert encode(config(tiny_data, folder)) == 0
    return folder / "store"


@pytest.mark.parametrize(("victims", "batches"), [((0,), 3), ((1,), 5), ((0, 1), 0)])
def test_processes_that_were_killed_leave_a_store_that_the_same_command_completes(
    tiny_data, tmp_path, processes, whole, victims, batches
):
    path = config(tiny_data, tmp_path)
    with pytest.raises(RuntimeError, match="ended without a result"):
        processes.run(2, killed, path, victims, batches)
    assert processes.run(2, killed, path, (), 0) == [0, 0]
    assert_same(tmp_path / "store", whole)


def test_a_kill_while_a_shard_gets_its_name_loses_no_more_than_that_shard(
    tiny_data, tmp_path, processes, whole
):
    path = config(tiny_data, tmp_path)
    with pytest.raises(RuntimeError, match="ended without a result"):
        processes.run(1, dies_as_it_writes, path, 4)
    assert processes.run(1, killed, path, (), 0) == [0]
    assert_same(tmp_path / "store", whole)
