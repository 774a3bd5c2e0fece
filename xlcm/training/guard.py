"""What the loop refuses in its first step, and what it does with a step that was not finite."""

from __future__ import annotations

from collections.abc import Set

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from xlcm.distributed import gather_list
from xlcm.methods.base import Method
from xlcm.pieces import Pieces
from xlcm.training.progress import Progress
from xlcm.training.settings import RunConfig
from xlcm.training.sharded import is_sharded
from xlcm.training.tracking import Journal
from xlcm.types import Batch

LOWEST_SCALE = 1e-4
"""Of the loss in float16, from which on training stops: fairseq's `--min-loss-scale`."""


def refuse_unused(method: nn.Module, touched: Set[str] | None = None) -> None:
    """See that every trained parameter got a gradient.

    Args:
        method: without a wrapper.
        touched: names of those that got one, where gradients are already put away.

    Raises:
        ValueError: naming those that got none.
    """
    unused = [
        name
        for name, p in method.named_parameters()
        if p.requires_grad and (p.grad is None if touched is None else name not in touched)
    ]
    if unused and not is_sharded(method):
        shown = ", ".join(unused[:5]) + (f" and {len(unused) - 5} more" if len(unused) > 5 else "")
        raise ValueError(
            f"these parameters got no gradient in the first step: {shown}. Freeze them, or give "
            "the loss that trains them a weight (for the temperature: model.learn_temperature)"
        )


@torch.no_grad()
def refuse_overflow(accelerator: Accelerator, plain: Method, batch: Batch | Pieces) -> None:
    """See whether a first loss that was not finite is the fault of float16 alone.

    Towers such as T5's leave float16's range at once, in every step; the scaler of gradients
    can't help there, and the run would only skip steps. Every process calls it.

    Args:
        accelerator: in fp16.
        plain: the method without a wrapper.
        batch: of the step.

    Raises:
        FloatingPointError: naming what overflows and the way out.
    """
    lost: set[str] = set()
    for piece in batch.batches if isinstance(batch, Pieces) else (batch,):
        with accelerator.autocast():
            half = plain.encode(piece)
        with torch.autocast(accelerator.device.type, enabled=False):
            full = plain.encode(piece)
        lost |= {name for name in half if _finite(full[name]) and not _finite(half[name])}
    everywhere = sorted(set(gather_list(sorted(lost))))
    if everywhere:
        raise FloatingPointError(
            f"run.precision=fp16: {', '.join(everywhere)} of the first batch overflow in float16 "
            "and are finite in float32; steps like this one can't be taken: use "
            "run.precision=bf16, or fp32"
        )


def refuse_vanished_scale(accelerator: Accelerator, progress: Progress) -> None:
    """Stop a run in float16 whose gradients overflow in every step, however small their scale.

    The scaler passes over such steps and halves its scale; a run of which none is taken would go on
    to its end and learn nothing.

    Args:
        accelerator: every process of the run has the same scale.
        progress: where it is.

    Raises:
        FloatingPointError: saying what to try.
    """
    scale = 1.0 if accelerator.scaler is None else accelerator.scaler.get_scale()
    if scale < LOWEST_SCALE:
        raise FloatingPointError(
            f"run.precision=fp16: at step {progress.step} gradients still overflow at the scale "
            f"{scale:.1e}, so that no step is taken any more: use run.precision=bf16, or fp32"
        )


def _finite(rows: Tensor) -> bool:
    return bool(rows.isfinite().all())


def skip(
    accelerator: Accelerator,
    journal: Journal,
    progress: Progress,
    run: RunConfig,
    names: list[str],
    loss: float,
    norm: float,
) -> None:
    """Count and name a step that no process may take.

    Raises:
        FloatingPointError: after `run.max_nonfinite` such steps in a row.
    """
    progress.nonfinite += 1
    progress.nonfinite_in_row += 1
    everyone = gather_list(names)
    said = f"step {progress.step}: loss {loss}, gradient norm {norm}: skipped"
    journal.write(
        {"step": progress.step, "kind": "nonfinite", "loss": str(loss), "grad_norm": str(norm),
         "rows": everyone}
    )  # fmt: skip
    journal.say(f"{said}; rows {', '.join(everyone[:8])} ... (all in {journal.path.name})")
    if progress.nonfinite_in_row >= run.max_nonfinite:
        accelerator.wait_for_everyone()
        raise FloatingPointError(
            f"{run.max_nonfinite} steps in a row were not finite, the last one step "
            f"{progress.step} with rows {', '.join(everyone[:8])} ...; see {journal.path}. Lower "
            "optim.lr, use bf16 instead of fp16, or look at these rows"
        )
