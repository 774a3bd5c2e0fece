"""How many rows are encoded at a time: what fits a method, a batch, processes and the memory."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from xlcm.batch_norm import trained_batch_norms
from xlcm.config import ConfigError
from xlcm.data.batching import share_of
from xlcm.data.transfer import put_back
from xlcm.distributed import gather
from xlcm.methods.base import Method
from xlcm.registry import methods
from xlcm.training.caching import random_state, set_random_state
from xlcm.training.progress import Progress
from xlcm.training.settings import RunConfig, TrainConfig
from xlcm.training.sharded import is_fsdp2
from xlcm.types import Batch, TextBatch

ON_A_CPU = 64
"""Rows that `auto` takes where memory can't be asked for."""

SPARE = 0.1
"""Share of the device's memory that a try leaves free, for losses and fragments."""


def rows_of_process(run: RunConfig, processes: int) -> int:
    """Return the rows of the global batch that each process has.

    Raises:
        ConfigError: if processes don't divide the batch, or a piece would have more rows.
    """
    rows = share_of(run.global_batch, processes)
    pieces = {"micro_batch": run.micro_batch, "length_pieces": run.length_pieces}
    for option, asked in pieces.items():
        if isinstance(asked, int) and asked > rows:
            raise ConfigError(
                f"run.{option}={asked}, but a process has only {rows} rows (run.global_batch="
                f"{run.global_batch} on {processes} process{'es' if processes > 1 else ''}): take "
                f"at most {rows}, or leave it out"
            )
    return rows


def refuse_pieces(accelerator: Accelerator, method: Method, run: RunConfig) -> None:
    """See whether a method's rows may be encoded in pieces, as the run asks for.

    Args:
        accelerator: knows how parameters are spread.
        method: without a wrapper.
        run: with `micro_batch` or `length_pieces`, or nothing is refused.

    Raises:
        ConfigError: naming what stands in the way and the way out.
    """
    if run.micro_batch is None and not run.length_pieces:
        return
    _refuse(accelerator, run, method, method.cacheable)
    option, off = _asked(run)
    norms = list(trained_batch_norms(method))
    if norms:
        raise ConfigError(
            f"{option}: {', '.join(norms[:3])} normalises over the rows that it is given at once, "
            "so that a batch in pieces would give other vectors: take another head (linear, mlp, "
            f"gated) or tower, freeze the tower that it is in, or {off}"
        )
    padded = [n for n, m in method.named_modules() if getattr(m, "legacy_padding", False)]
    if padded:
        raise _padded(run, padded[0])


def refuse_pieces_of(accelerator: Accelerator, config: TrainConfig) -> None:
    """Say what the config alone tells of what `refuse_pieces` would find: before data are read.

    Args:
        accelerator: knows how parameters are spread.
        config: checked.

    Raises:
        ConfigError: naming what stands in the way and the way out.
    """
    run = config.run
    if run.micro_batch is None and not run.length_pieces:
        return
    method: type[Method] = methods.get(config.method["name"])
    _refuse(accelerator, run, method, method.cacheable_with(config.method))
    text = config.model.get("text")
    if isinstance(text, dict) and text.get("legacy_padding"):
        raise _padded(run, "model.text")


def _asked(run: RunConfig) -> tuple[str, str]:
    """Return the option that cuts the batch, and how it is left out."""
    option = "run.length_pieces" if run.micro_batch is None else "run.micro_batch"
    return option, f"leave {option} out ({'0' if run.micro_batch is None else 'null'})"


def _refuse(
    accelerator: Accelerator, run: RunConfig, method: Method | type[Method], cacheable: bool
) -> None:
    option, off = _asked(run)
    if not cacheable:
        raise ConfigError(
            f"{option}: {method.title} can't be trained in pieces with these options, as its "
            "losses read more than one vector a row (tokens, or a tower once more): "
            f"{method.when_cacheable}, or {off}"
        )
    spread = accelerator.distributed_type
    in_each_pass = spread == DistributedType.FSDP and not is_fsdp2(accelerator)
    if run.micro_batch is not None and (in_each_pass or spread == DistributedType.MEGATRON_LM):
        raise ConfigError(
            f"run.micro_batch: not with {spread.value}, which reduces gradients in each backward "
            "pass: take fsdp_version: 2, as configs/accelerate/fsdp.yaml does, or plain data "
            f"parallelism, or {off}"
        )
    if run.micro_batch == "auto" and spread in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise ConfigError(
            f"run.micro_batch=auto: with {spread.value} processes talk to each other in every "
            "pass, so that none can try what fits: give a number of rows"
        )


def _padded(run: RunConfig, where: str) -> ConfigError:
    option, off = _asked(run)
    return ConfigError(
        f"{option}: with legacy_padding ({where}) a caption's vector depends on the longest one "
        f"beside it: set legacy_padding to false, or {off}"
    )


def rows_a_time(
    accelerator: Accelerator,
    plain: Method,
    run: RunConfig,
    batches: Iterator[Batch],
    progress: Progress,
) -> tuple[int, Iterator[Batch]]:
    """Return the rows of a piece, 0 where all go at once, and the batches.

    Args:
        accelerator: knows device and processes.
        plain: the method without a wrapper, in training mode.
        run: what was asked for.
        batches: of this process; `auto` takes a look at the next one.
        progress: holds what `auto` found, before the run was cut off or now.
    """
    rows = rows_of_process(run, accelerator.num_processes)
    if run.length_pieces:
        return -(-rows // run.length_pieces) if run.length_pieces > 1 else 0, batches
    size = run.micro_batch or rows
    if size == "auto":
        first = next(batches)
        batches = put_back(first, batches)
        there = first.to(accelerator.device, non_blocking=True)
        size = choose(accelerator, plain, there, rows, min(progress.micro_batch, rows))
        progress.micro_batch = size
        accelerator.print(f"run.micro_batch=auto: {size} of a process's {rows} rows at a time")
    return (size if size < rows else 0), batches


def choose(accelerator: Accelerator, plain: Method, batch: Batch, rows: int, start: int) -> int:
    """Return what `run.micro_batch=auto` stands for: rows that are encoded at a time.

    On a device the largest of all rows and the powers of two below them whose forward and
    backward pass fits, on every process, with captions as long as the tokenizer lets them be and
    a tenth of the memory kept free. On a CPU 64: little memory at little cost of time.

    Args:
        accelerator: knows the device.
        plain: the method without a wrapper, in training mode.
        batch: the first one of this process, on the device.
        rows: of a process.
        start: the largest size that is tried; 0: all rows.

    Raises:
        ConfigError: if not even one row fits.
    """
    if accelerator.device.type == "cpu":
        return start or min(rows, ON_A_CPU)
    size = largest_that_fits(lambda n: _fits(plain, batch, n), start or rows, accelerator.device)
    if size == 0:
        raise ConfigError(
            "run.micro_batch=auto: not even one row fits into the memory of every device; take "
            "smaller towers, shorter captions, or gradient_checkpointing"
        )
    return size


def largest_that_fits(fits: Callable[[int], bool], rows: int, device: torch.device) -> int:
    """Return the first of `rows` and the powers of two below that fits on every process; or 0."""
    below = [1 << power for power in reversed(range(rows.bit_length())) if 1 << power < rows]
    for size in (rows, *below):
        mine = torch.tensor([fits(size)], device=device)
        if bool(gather(mine).all()):
            return size
    return 0


def _fits(plain: Method, batch: Batch, size: int) -> bool:
    """Try a piece of the longest captions; weights, buffers and generators stay as they were.

    Beside it are in memory, as in a step, the moments, which the optimiser has from the start, and
    a gradient of each weight: from the second piece on they are there when a piece is encoded.
    """
    device = batch.ids.device
    drawn = random_state(device)
    buffers = [buffer.detach().clone() for buffer in plain.buffers()]
    trained = [parameter for parameter in plain.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        _try(plain, _longest(plain, batch.select(torch.arange(size))), device)
        fitted = True
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "ALLOC_FAILED" not in str(error):
            raise
        fitted = False  # and leave first: the traceback holds on to what is to be freed
    for parameter in trained:
        parameter.grad = None
    with torch.no_grad():
        for buffer, before in zip(plain.buffers(), buffers):
            buffer.copy_(before)
    set_random_state(drawn, device)
    if device.type != "cpu":
        gc.collect()
        torch.get_device_module(device).empty_cache()
    return fitted


def _try(plain: nn.Module, piece: Batch, device: torch.device) -> None:
    free = 0
    if device.type == "cuda":
        free = int(SPARE * torch.cuda.mem_get_info(device)[1])
    spare = torch.empty(free, dtype=torch.uint8, device=device)
    encoded: dict[str, Tensor] = plain(piece, only_encode=True)
    torch.stack([t.float().sum() for t in encoded.values() if t.requires_grad]).sum().backward()
    del spare


def _longest(plain: Method, batch: Batch) -> Batch:
    """Return the batch with captions as long as their tokenizers let them be."""
    tokenizers = {name: tokenizer for name, (_, tokenizer) in plain.extra_texts.items()}
    own = plain.retriever.text.tokenizer
    text = {
        name: _lengthened(text, int(tokenizers.get(name.partition(".")[0], own).max_tokens))
        for name, text in batch.text.items()
    }
    return replace(batch, text=text)


def _lengthened(text: TextBatch, length: int) -> TextBatch:
    times = -(-length // text.ids.shape[1])
    ids = text.ids.repeat(1, times)[:, :length]
    return replace(text, ids=ids, mask=torch.ones_like(ids, dtype=torch.bool))
