"""Runs a function on several processes that speak gloo, quickly.

Each job has fresh processes, forked from a server that has imported what most jobs need and done
nothing else: each process would import it for two seconds.
Workers that live on and change their default group do not work: in torch 2.6
`destroy_process_group` now and then waits for ever for a gloo thread that waits for the GIL.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pytest

TIMEOUT_S = 90.0
TESTS = Path(__file__).resolve().parents[1]
LOADED = [
    "torch._dynamo", "pytest", "timm", "tiny", "xlcm.methods.contrastive", "xlcm.losses.triplet",
    "xlcm.encoders.image_timm", "xlcm.encoders.text_bag",
]  # fmt: skip
"""What the server imports ahead; DDP would import the first one in each process."""


class Pool:
    """Starts the server; `run` is all there is."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(LOADED)
        with pytest.MonkeyPatch.context() as patch:  # the server is not told our sys.path
            patch.setenv("PYTHONPATH", str(TESTS), prepend=os.pathsep)
            forkserver.ensure_running()

    def run(self, world: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Call `function(*arguments)` on `world` processes; return the results by rank.

        `function` must be importable, and gives back plain numbers, lists and dicts.

        Raises:
            RuntimeError: with the traceback of the first process that failed.
            TimeoutError: if they take longer than `TIMEOUT_S`.
        """
        pipes: list[Connection] = []
        workers = []
        with tempfile.TemporaryDirectory(prefix="xlcm-pool-") as folder:
            try:
                for rank in range(world):
                    ours, theirs = self._context.Pipe()
                    job = (theirs, f"{folder}/store", rank, world, function, arguments)
                    workers.append(self._context.Process(target=_work, args=job, daemon=True))
                    workers[-1].start()
                    theirs.close()
                    pipes.append(ours)
                return _collect(pipes, function)
            finally:
                for pipe in pipes:
                    pipe.close()  # lets the processes go
                for worker in workers:
                    worker.kill()
                    worker.join()


def _collect(pipes: list[Connection], function: Callable[..., Any]) -> list[Any]:
    results: dict[int, Any] = {}
    end = time.monotonic() + TIMEOUT_S
    while len(results) < len(pipes):
        waiting = [pipe for rank, pipe in enumerate(pipes) if rank not in results]
        ready = wait(waiting, timeout=max(0.0, end - time.monotonic()))
        if not ready:
            raise TimeoutError(f"{len(waiting)} of {len(pipes)} processes hang in {function}")
        for rank in [rank for rank, pipe in enumerate(pipes) if pipe in ready]:
            try:
                failure, results[rank] = pipes[rank].recv()
            except EOFError:
                failure = "it ended without a result"
            if failure:  # the others would wait for it in a collective
                raise RuntimeError(f"process {rank} of {len(pipes)}:\n{failure}")
    return [results[rank] for rank in range(len(pipes))]


def _work(
    pipe: Connection,
    store: str,
    rank: int,
    world: int,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
        assert dist.get_world_size() == world, f"{dist.get_world_size()} processes, not {world}"
        pipe.send((None, function(*arguments)))
    except BaseException:  # goes to the test, which fails with it
        pipe.send((traceback.format_exc(), None))
    pipe.poll(TIMEOUT_S)  # until all have their result: nobody leaves while another needs it
    os._exit(0)  # without the destructors of gloo
