"""What test_deepspeed.py starts by `accelerate launch`: trains as each task of a JSON list says."""

import json
import sys
from pathlib import Path

import tiny
import torch
from torch import nn

from xlcm.distributed import rank, world

REDUCTIONS = (
    "all_reduce",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "reduce_scatter_fn",
)


def main(listed: str, processes: str) -> None:
    """Train; write down how many numbers DeepSpeed has reduced, and how many weights there are."""
    torch.set_num_threads(1)
    reduced = count_reductions()
    for task in json.loads(Path(listed).read_text()):
        output = Path(task["config"]["run"]["output"])
        reduced[:] = []
        try:
            run = tiny.train(
                task["config"],
                wrap=WRAPS[task.get("wrap", "nothing")],
                crash_before=task.get("crash_before"),
            )
        except tiny.Crash:
            torch.distributed.barrier()
            continue
        assert run.accelerator.num_processes == int(processes)
        assert run.accelerator.distributed_type == "DEEPSPEED"
        optimizer = run.accelerator.deepspeed_engine_wrapped.engine.optimizer.optimizer
        weights = sum(p.numel() for p in run.method.parameters() if p.requires_grad)
        moments = sum(m["exp_avg"].numel() for m in optimizer.state.values())
        if run.accelerator.is_main_process:
            run.trained.retriever.save_pretrained(output / "model", languages=["en"])
            found = {"reduced": sum(reduced), "weights": weights, "moments": moments}
            (output / "found.json").write_text(json.dumps(found))


def count_reductions() -> list[int]:
    """Return a list to which the size of each reduction that DeepSpeed makes is added."""
    from deepspeed import comm

    sizes: list[int] = []

    def counted(function):
        def reduce(tensor, *arguments, **options):
            sizes.append(tensor.numel())
            return function(tensor, *arguments, **options)

        return reduce

    for name in REDUCTIONS:
        setattr(comm, name, counted(getattr(comm, name)))
    return sizes


def spoil(method: nn.Module) -> None:
    """Make the loss of the third batch infinite, on the last process alone; no gradient sees it."""
    losses, seen = method.losses, []

    def spoiled(encoded):
        seen.append(None)
        terms = losses(encoded)
        if len(seen) == 3 and rank() == world() - 1:
            name = next(iter(terms))
            terms[name] = terms[name] + float("inf")
        return terms

    method.losses = spoiled


def clamp(method: nn.Module) -> None:
    """Bring the scale to e after the second step, as `clamp_` does to one that is too large."""
    calls = []

    def clamped():
        calls.append(None)
        if len(calls) == 2:
            method.retriever.log_scale.data.fill_(1.0)

    method.retriever.clamp_ = clamped


WRAPS = {"nothing": None, "spoil": spoil, "clamp": clamp}

if __name__ == "__main__":
    main(*sys.argv[1:])
