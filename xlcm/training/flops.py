"""How much arithmetic a step asks for, and which share of the device's best that is.

Model FLOPs: those of the towers and heads on the rows as they are, forwards and backwards, without
what gradient caching or checkpointing does twice. The losses are left out: on 4,096 rows of 512
numbers their products are a hundredth of a base-sized tower's. So is a GRU on a GPU: one kernel,
into which torch doesn't look.
"""

from __future__ import annotations

import contextlib
import functools
import re
import time
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from xlcm.data.transfer import put_back
from xlcm.encoders.base import Tower
from xlcm.methods.base import Method
from xlcm.training.settings import RunConfig
from xlcm.training.sharded import is_sharded
from xlcm.types import Batch

ROWS = 8  # arithmetic grows with the rows, so a few tell of all
SECONDS = 0.3  # that measuring a device's best may take
PEAKS = {
    "H200 NVL": 835e12, "H200": 989e12, "GH200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12,
    "H100": 989e12, "A100": 312e12, "A800": 312e12, "L40S": 362e12, "L40": 181e12, "L4": 121e12,
    "A10G": 70e12, "A10": 125e12, "RTX 4090": 165e12, "RTX 3090": 71e12,
}  # fmt: skip
"""Dense FLOP/s in bf16 and fp16 alike by the makers' data sheets; the first name among the words of
the device's."""


def best_rate(
    accelerator: Accelerator, plain: Method, run: RunConfig, batches: Iterator[Batch]
) -> tuple[float, Iterator[Batch]]:
    """Return the rows a second that the devices could do at best, and the batches; say so.

    Args:
        accelerator: knows device and processes.
        plain: the method without a wrapper.
        run: says the precision.
        batches: of this process; a look is taken at the next one.

    Returns:
        0 where parameters are spread over processes, so that none can count alone.
    """
    if is_sharded(plain):
        return 0.0, batches
    first = next(batches)
    with accelerator.autocast():
        flops = flops_of_row(plain, first.to(accelerator.device))
    best, source = peak(accelerator.device, run.precision)
    accelerator.print(f"{flops / 1e9:.3g} GFLOP a row of training; mfu is the share of {source}")
    return (accelerator.num_processes * best / flops if flops else 0.0), put_back(first, batches)


def compile_towers(module: nn.Module) -> None:
    """Have torch compile every tower of a method, for captions of any length.

    Those are the retriever's two, and what a method has beside them, such as the text tower of a
    cross-lingual network.
    """
    for part in module.children():
        if isinstance(part, Tower):
            part.compile(dynamic=True)
        else:
            compile_towers(part)


def flops_of_row(method: Method, batch: Batch) -> float:
    """Count the products that one row of a batch costs in training, forwards and backwards.

    Nothing of the method changes: no gradient is stored, no random number is drawn, no average
    of batch norm moves. Of the batch a few rows are looked at, padded to the longest of them.

    Args:
        method: on the batch's device, before its towers are compiled.
        batch: any.

    Returns:
        FLOPs, a product and a sum counted as two; 0 where nothing is trained.
    """
    few = batch.select(torch.arange(min(ROWS, len(batch.ids))))
    trained = [p for p in method.parameters() if p.requires_grad]
    modes = {module: module.training for module in method.modules()}
    method.eval()
    counter = FlopCounterMode(display=False)
    try:
        with torch.enable_grad(), _attention_in_products(), counter:
            encoded = method.encode(few)
            tops = [t for t in encoded.values() if t.requires_grad]
            if tops and trained:
                ones = [torch.ones_like(top) for top in tops]
                torch.autograd.grad(tops, trained, ones, allow_unused=True)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return counter.get_total_flops() / len(few.ids)


@contextlib.contextmanager
def _attention_in_products() -> Iterator[None]:
    """Have attention done by the products that it is written with.

    Of its fused kernels torch counts those on GPUs, with the products that they do twice, and on
    CPUs none.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@functools.cache
def peak(device: torch.device, precision: str) -> tuple[float, str]:
    """Return the FLOP/s of a device that a share is taken of, and where the figure comes from.

    For half precision on a known GPU it is the maker's; else that of a matrix product, measured
    here in some tenths of a second.
    """
    if device.type == "cuda" and precision != "fp32":
        name = torch.cuda.get_device_name(device)
        for known, flops in PEAKS.items():
            if re.search(rf"\b{known}\b", name):  # an L40 is no L4, an RTX A1000 no A100
                return flops, f"the maker's {flops / 1e12:,.0f} TFLOP/s of {known}"
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    size = 4096 if device.type == "cuda" else 512
    left, right = (torch.full((size, size), 0.5, dtype=dtype, device=device) for _ in range(2))
    began, best = time.perf_counter(), float("inf")
    for _ in range(8):  # the first one warms up
        begin = time.perf_counter()
        product = left @ right
        float(product[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - begin)
        if time.perf_counter() - began > SECONDS:
            break
    flops = 2 * size**3 / best
    return flops, f"the {flops / 1e9:,.0f} GFLOP/s of a matrix product here"
