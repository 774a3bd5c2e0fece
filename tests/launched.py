"""What test_launch.py starts by `accelerate launch`: trains with each config of a JSON list, some up to a crash."""

import contextlib
import json
import sys
from functools import partial
from pathlib import Path

import tiny
import torch
import torch.nn.functional as F
from torch import nn

from xlcm.distributed import world
from xlcm.models import dual_encoder


def main(listed: str, processes: str) -> None:
    """Train in double precision, so that what differs between runs is not rounding."""
    torch.set_num_threads(1)
    for config in json.loads(Path(listed).read_text()):
        crash_before = config.pop("crash_before", None)
        with contextlib.suppress(tiny.Crash):
            tiny.train(config, wrap=double, crash_before=crash_before)
        torch.set_default_dtype(torch.float32)
        assert world() == int(processes), world()


def double(method: nn.Module) -> None:
    """Go on in double precision; what was built or remembered before stays as it is."""
    torch.set_default_dtype(torch.float64)
    method.double()
    dual_encoder._unit = partial(F.normalize, dim=-1)  # embeddings too, which are float32 else


if __name__ == "__main__":
    main(*sys.argv[1:])
