"""What test_launched.py starts on two processes: a recipe of which one fails."""

import sys

import torch
import torch.distributed as dist

from xlcm.cli import recipe
from xlcm.config import ConfigError, check
from xlcm.training.launch import _accelerator
from xlcm.training.settings import RunConfig


def main(timeout_minutes: str) -> int:
    """Say what was opened; fail on the second process while the first one waits for it."""
    run = check(RunConfig, {"steps": 1, "timeout_minutes": float(timeout_minutes)})
    accelerator = _accelerator(run)
    group = dist.distributed_c10d._get_default_group()._get_backend(torch.device("cpu"))
    accelerator.print(f"timeout {group.options._timeout.total_seconds():.1f} s", flush=True)
    accelerator.wait_for_everyone()
    if accelerator.process_index == 1:
        raise ConfigError("run.something: no such thing")
    accelerator.wait_for_everyone()
    return 0


if __name__ == "__main__":
    sys.exit(recipe(main, "xlcm.training.settings:TrainConfig", __doc__))
