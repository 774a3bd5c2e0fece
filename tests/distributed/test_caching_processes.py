"""Gradient caching on several processes: the gradients of one, in one reduction and one gather."""

import contextlib
from unittest import mock

import pytest
import small_models
import tiny
import torch
from accelerate import Accelerator
from test_transfer_methods import LANGS, PRESENT, method_of
from torch.nn.parallel import DistributedDataParallel

from xlcm import distributed
from xlcm.distributed import local_rows, world
from xlcm.models import teacher
from xlcm.pieces import cut
from xlcm.training.batch_size import largest_that_fits
from xlcm.training.caching import cached_step

ROWS = 12
NAMES = ["c2kd_some_rows", "learned", "cl2cm", "nrccr_weak"]


def built(name: str) -> torch.nn.Module:
    """Return a method with its teachers, in place of saved ones."""
    with mock.patch.object(teacher.DualEncoder, "from_pretrained", small_models.saved):
        return method_of(name)


def batch_of(name: str):
    if name.startswith(("cl2cm", "nrccr")):
        batch = small_models.batch("source", "target", "back", rows=ROWS)
    else:
        batch = small_models.translations(*LANGS, teachers=2, rows=ROWS)
    if "some_rows" in name:
        batch.text["targets.de"].present = PRESENT
    return batch.select(local_rows(ROWS // world()))


def counting(state: list[int], bucket):
    """Reduce as DDP does by itself, and count it."""
    state[0] += 1
    reduced = torch.distributed.all_reduce(bucket.buffer().div_(world()), async_op=True)
    return reduced.get_future().then(lambda future: future.value()[0])


def step(name: str, size: int) -> dict:
    """Terms, gradients and what was sent in two steps of this process, the second of two parts."""
    method = built(name)
    trained, reductions = method, [0]
    if world() > 1:
        trained = DistributedDataParallel(method)  # these models' gradients fill one bucket
        trained.register_comm_hook(reductions, counting)
    assert tiny.join_pool() == world()
    accelerator = Accelerator()
    pieces = cut(batch_of(name), size)
    with counted_gathers() as gathers:
        terms, _ = cached_step(accelerator, trained, method, pieces)
    found = {
        "terms": {key: term.item() for key, term in terms.items()},
        "gradients": {
            key: parameter.grad.tolist()
            for key, parameter in method.named_parameters()
            if parameter.grad is not None
        },
        "reductions": reductions[0],
        "gathers": gathers[0],
    }
    for part in range(2):
        cached_step(accelerator, trained, method, pieces, share=0.5, reduce=part == 1)
    found["reductions_of_two_parts"] = reductions[0] - found["reductions"]
    with counted_gathers() as gathers, torch.no_grad():
        whole(name)
    return {**found, "gathers_of_whole": gathers[0]}


@contextlib.contextmanager
def counted_gathers():
    count, gather = [0], torch.distributed.all_gather

    def counted(*given, **options):
        count[0] += 1
        return gather(*given, **options)

    torch.distributed.all_gather = counted
    yield count
    torch.distributed.all_gather = gather


def whole(name: str) -> torch.nn.Module:
    """The losses of the whole batch on this process, with the gradients of one process alone."""
    method = built(name)
    loss = method.total(method(batch_of(name)))
    if torch.is_grad_enabled():
        loss.backward()
    return method


def steps(names: list[str], size: int) -> list[dict]:
    return [step(name, size) for name in names]


def test_processes_have_the_gradients_of_one_and_reduce_and_gather_once(processes):
    by_rank = processes.run(2, steps, NAMES, 4)  # pieces of four rows and of two
    for which, name in enumerate(NAMES):
        alone = dict(whole(name).named_parameters())
        for result in (results[which] for results in by_rank):
            assert result["reductions"] == result["reductions_of_two_parts"] == 1, name
            assert result["gathers"] == result["gathers_of_whole"] > 0, name
            assert result["gradients"].keys() == {n for n, p in alone.items() if p.requires_grad}
            for key, value in result["gradients"].items():
                wanted, found = alone[key].grad, torch.tensor(value, dtype=torch.float64)
                # a bias of attention's keys has no effect, hence a gradient of rounding alone
                size = max(wanted.norm().item(), 1e-3)
                assert (found - wanted).norm() < 1e-11 * size, (name, key)


def train_counting(config) -> dict:
    """Train in a process of the pool and count reductions of gradients."""
    processes = tiny.join_pool()
    reductions, wrapped = [0], []
    begin = DistributedDataParallel.__init__

    def counted(self, *given, **options):
        begin(self, *given, **options)
        self.register_comm_hook(reductions, counting)
        wrapped.append(self)

    DistributedDataParallel.__init__ = counted
    tiny.train(config)
    return {"processes": processes, "wrapped": len(wrapped), "reductions": reductions[0]}


def test_a_cached_run_on_two_processes_is_that_of_one_with_one_reduction_a_step(
    tiny_data, tmp_path, processes
):
    model = {"text": {"dropout": 0.0}}
    run = {"steps": 5, "accumulate": 2}
    config = tiny.tree(tiny_data, tmp_path / "one", run=run, model=model)
    tiny.train(config)
    cached = tiny.tree(tiny_data, tmp_path / "two", run={**run, "micro_batch": 3}, model=model)
    found = processes.run(2, train_counting, cached)
    assert found == [{"processes": 2, "wrapped": 1, "reductions": 5}] * 2
    for left, right in zip(tiny.metrics(tmp_path / "one"), tiny.metrics(tmp_path / "two")):
        assert right["loss"] == pytest.approx(left["loss"], rel=1e-6)
        assert right["grad_norm"] == pytest.approx(left["grad_norm"], rel=1e-5)


def tried() -> dict:
    """What `auto` finds where the processes' memories differ, and what each of them tried."""
    sizes, most = [], 4 if distributed.rank() == 0 else 2

    def fits(size: int) -> bool:
        sizes.append(size)
        return size <= most

    found = largest_that_fits(fits, 6, torch.device("cpu"))
    return {"found": found, "sizes": sizes}


def test_auto_takes_what_fits_on_every_process(processes):
    assert processes.run(2, tried) == [{"found": 2, "sizes": [6, 4, 2]}] * 2
