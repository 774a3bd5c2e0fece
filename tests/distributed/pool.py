"""Four processes, started once, that run functions together over gloo.

The number of processes in the group changes from job to job: the first `world` workers build a
new default group, because `xlcm.distributed` speaks to the default one.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

TIMEOUT_S = 60.0


class Pool:
    """Workers that keep torch loaded between jobs.

    Args:
        size: the largest number of processes.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._folder = tempfile.TemporaryDirectory(prefix="xlcm-pool-")
        self._jobs = 0
        context = multiprocessing.get_context("spawn")  # fork breaks autograd's threads
        self._pipes: list[Connection] = []
        self._workers = []
        for rank in range(size):
            ours, theirs = context.Pipe()
            worker = context.Process(target=_serve, args=(theirs, rank), daemon=True)
            worker.start()
            theirs.close()
            self._pipes.append(ours)
            self._workers.append(worker)

    def run(self, world: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Call `function(*arguments)` on `world` processes; return the results by rank.

        `function` must be importable, and gives back plain numbers, lists and dicts.

        Raises:
            RuntimeError: with the traceback of the first process that failed.
            TimeoutError: if they hang; the workers are ended.
        """
        self._jobs += 1
        store = Path(self._folder.name) / f"store{self._jobs}"
        for pipe in self._pipes[:world]:
            pipe.send((world, str(store), function, arguments))
        results: dict[int, Any] = {}
        while len(results) < world:
            waiting = [pipe for rank, pipe in enumerate(self._pipes[:world]) if rank not in results]
            ready = wait(waiting, timeout=TIMEOUT_S)
            if not ready:
                self.close()
                raise TimeoutError(f"{len(waiting)} of {world} processes hang in {function}")
            for pipe in ready:
                rank = self._pipes.index(pipe)  # type: ignore[arg-type]
                failure, results[rank] = pipe.recv()  # type: ignore[union-attr]
                if failure:
                    self.close()  # the others wait for it in a collective
                    raise RuntimeError(f"process {rank} of {world}:\n{failure}")
        return [results[rank] for rank in range(world)]

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.kill()
            worker.join()
        self._folder.cleanup()


def _serve(pipe: Connection, rank: int) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    while True:
        world, store, function, arguments = pipe.recv()
        try:
            dist.init_process_group(
                "gloo", init_method=f"file://{store}", rank=rank, world_size=world
            )
            assert dist.get_world_size() == world, f"{dist.get_world_size()} processes"
            result = function(*arguments)
            dist.barrier()  # nobody leaves while another still needs it
            dist.destroy_process_group()
            pipe.send((None, result))
        except BaseException:  # goes to the test, which fails with it
            pipe.send((traceback.format_exc(), None))
