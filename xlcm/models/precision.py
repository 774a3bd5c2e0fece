"""Encoding in bfloat16 or float16, where the machine has instructions for it."""

from __future__ import annotations

import contextlib
import functools
import logging
import platform
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from xlcm.config import ConfigError

log = logging.getLogger(__name__)

Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def lowered(
    device: torch.device, precision: Precision
) -> contextlib.AbstractContextManager[object]:
    """Return the context in which towers compute in this precision; vectors stay float32.

    On a CPU without the instructions it is many times slower than float32, which the log says.

    Raises:
        ValueError: for another word.
    """
    if precision == "fp32":
        return contextlib.nullcontext()
    if precision not in DTYPES:
        raise ValueError(f"precision must be fp32, bf16 or fp16, got {precision!r}")
    if not supported(device, precision):
        warn(device.type, precision)
    return torch.autocast(device.type, DTYPES[precision])


@functools.cache
def warn(device: str, precision: Precision) -> None:
    """Say once that a device lacks the instructions."""
    log.warning(
        "this %s has no instructions for %s: encoding in it is many times slower than in fp32",
        device.upper() if device == "cpu" else device, precision,
    )  # fmt: skip


def supported(device: torch.device, precision: Precision) -> bool:
    """Whether a device has instructions for matrix products in this precision."""
    if precision == "fp32":
        return True
    if device.type == "cuda":
        return precision == "fp16" or torch.cuda.is_bf16_supported()
    if device.type != "cpu":
        return True  # not known: it will say so itself
    if platform.machine().lower() in ("arm64", "aarch64"):
        return True
    names = {
        "bf16": ("_is_avx512_bf16_supported", "_is_amx_tile_supported"),
        "fp16": ("_is_amx_fp16_supported", "_is_avx512_fp16_supported"),
    }[precision]
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)


def refuse_overflow(vectors: Tensor, precision: Precision) -> None:
    """Stop if float16, whose largest number is 65,504, was too small for a tower.

    Raises:
        ConfigError: saying what to take in its place.
    """
    if precision == "fp16" and not bool(vectors.isfinite().all()):
        raise ConfigError(
            "vectors are not finite: a tower overflows in fp16; encode with precision bf16 or fp32"
        )
