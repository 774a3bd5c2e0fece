"""The distributed tests run on as many processes as they say, and fail when a process does."""

import os

import pool
import pytest
import torch.distributed as dist


def who() -> dict:
    return {
        "rank": dist.get_rank(),
        "world": dist.get_world_size(),
        "backend": dist.get_backend(),
        "pid": os.getpid(),
    }


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_job_runs_on_that_many_processes(processes, number):
    found = processes.run(number, who)
    assert [result["rank"] for result in found] == list(range(number))
    assert {(result["world"], result["backend"]) for result in found} == {(number, "gloo")}
    assert len({os.getpid(), *(result["pid"] for result in found)}) == number + 1


def fail_on_last() -> None:
    if dist.get_rank() == dist.get_world_size() - 1:
        raise ValueError("the last one fails")
    dist.barrier()


def die_on_first() -> None:
    if dist.get_rank() == 0:
        os._exit(3)
    dist.barrier()


def hang() -> None:
    if dist.get_rank() == 0:
        dist.barrier()


def test_a_job_fails_when_one_process_fails_dies_or_hangs(processes, monkeypatch):
    with pytest.raises(RuntimeError, match=r"process 1 of 2:(.|\n)*the last one fails"):
        processes.run(2, fail_on_last)
    with pytest.raises(RuntimeError, match=r"process [01] of 2"):
        processes.run(2, die_on_first)
    monkeypatch.setattr(pool, "TIMEOUT_S", 3.0)
    with pytest.raises(TimeoutError, match="1 of 2 processes hang"):
        processes.run(2, hang)
