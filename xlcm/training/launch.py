"""The processes of a run, as they were launched; what they can't do is said at once."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from datetime import timedelta
from importlib.util import find_spec
from typing import Any

import torch
from accelerate import Accelerator

from xlcm.config import ConfigError
from xlcm.launched import patient
from xlcm.training.batch_size import refuse_pieces_of, rows_of_process
from xlcm.training.settings import RunConfig, TrainConfig
from xlcm.training.zero import ZeroAccelerator


def open_processes(config: TrainConfig) -> Accelerator:
    """Return the Accelerator of a run, before anything is read or written.

    Raises:
        ConfigError: if a tracker is not installed; for a global batch that processes don't divide,
            pieces that the batch, the method or the way of launching has no room for, and
            float16 on a CPU.
    """
    run = config.run
    for tracker in run.trackers:  # accelerate would go on without it and say nothing
        if find_spec(tracker) is None:
            raise ConfigError(
                f"run.trackers: {tracker} is not installed; pip install {tracker} (or xlcm[track]) "
                "or leave it out"
            )
    accelerator = _accelerator(run)
    if run.precision == "fp16" and accelerator.device.type == "cpu":  # it would go on in float32
        raise ConfigError(
            "run.precision=fp16: there is no GPU here, and float16 is trained on GPUs only: use "
            "run.precision=fp32, or bf16"
        )
    rows_of_process(run, accelerator.num_processes)
    refuse_pieces_of(accelerator, config)
    if run.precision == "bf16" and accelerator.device.type == "cpu" and not _bf16_on_cpu():
        warnings.warn(
            "run.precision=bf16: this processor has no bf16 instructions, which makes it many "
            "times slower than fp32",
            stacklevel=3,  # who called `start`
        )
    return accelerator


def refuse_later(stages: Sequence[TrainConfig]) -> None:
    """See, before the first of several stages trains, that the processes can do all of them.

    Args:
        stages: those that are still to be done.

    Raises:
        ConfigError: as `open_processes`, naming the stage's folder.
    """
    for config in stages if len(stages) > 1 else ():
        try:
            open_processes(config)
        except ConfigError as error:
            raise ConfigError(f"stage in {config.run.output}: {error}") from error


def _accelerator(run: RunConfig) -> Accelerator:
    options: dict[str, Any] = {
        "project_dir": run.output,
        "log_with": list(run.trackers) or None,
        "kwargs_handlers": patient(timedelta(minutes=run.timeout_minutes)),
    }
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        return ZeroAccelerator(run.precision, **options)
    precision = "no" if run.precision == "fp32" else run.precision
    return Accelerator(mixed_precision=precision, **options)


def _bf16_on_cpu() -> bool:
    asked = [
        getattr(torch.cpu, name, None)
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    ]
    return any(ask() for ask in asked if ask is not None)
