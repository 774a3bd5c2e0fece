"""Train any method of xlcm.

accelerate launch recipes/train.py configs/quickstart.yaml run.output=runs/mine optim.lr=1e-3

The folder run.output holds everything afterwards: config.yaml, metrics.jsonl, checkpoints/,
model/ (open it with `DualEncoder.from_pretrained`), report.json, report.md and plots/. The same
command continues an interrupted run. `--print-config` shows all that a run would use.
"""

import sys
from functools import partial

from xlcm.cli import recipe
from xlcm.config import load
from xlcm.training.loop import announce, fit
from xlcm.training.settings import TrainConfig
from xlcm.training.setup import build_loader, build_method, finish, open_data, start, validate


def main(path: str, *overrides: str) -> int:
    """Run one config; return the exit code."""
    config = load(TrainConfig, path, overrides)
    accelerator = start(config)
    data = open_data(accelerator, config)
    method = build_method(accelerator, config, data.rows)
    loader = build_loader(accelerator, config.data, config.run, data.rows, method)
    accelerator.print(announce(loader, config.run, method))

    trained = fit(
        accelerator,
        method,
        loader,
        config.optim,
        config.run,
        evaluate=partial(validate, config, data) if data.val is not None else None,
    )
    if trained.interrupted:
        accelerator.print("the same command goes on from the last checkpoint")
        accelerator.end_training()
        return 143
    result = finish(accelerator, config, data, trained.retriever)
    if result is not None:
        accelerator.print(result.report)
    accelerator.print(f"everything is in {config.run.output}")
    accelerator.end_training()
    return 0


if __name__ == "__main__":
    sys.exit(recipe(main, "xlcm.training.settings:TrainConfig", __doc__))
