"""Train any method of xlcm.

accelerate launch recipes/train.py configs/quickstart.yaml run.output=runs/mine optim.lr=1e-3

The folder run.output holds everything afterwards: config.yaml, metrics.jsonl, checkpoints/,
model/ (open it with `DualEncoder.from_pretrained`), report.json, report.md and plots/. The same
command continues an interrupted run. `--print-config` shows all that a run would use. A config
with `stages` is gone through stage by stage, all but the last in run.output/stages/.
"""

import os
import sys
from functools import partial

from xlcm.cli import recipe
from xlcm.training.launch import refuse_later
from xlcm.training.loop import announce, fit
from xlcm.training.settings import TrainConfig
from xlcm.training.setup import build_loader, build_method, finish, open_data, start, validate
from xlcm.training.stages import is_done, mark_done, read_stages


def main(path: str, *overrides: str) -> int:
    """Run one config; return the exit code."""
    *earlier, last = read_stages(path, overrides)
    refuse_later([*(stage for stage in earlier if not is_done(stage)), last])
    for stage in earlier:
        if is_done(stage):
            if os.environ.get("RANK", "0") == "0":  # accelerate is not asked before it is set up
                print(f"{stage.run.name} is done: {stage.run.output}")
            continue
        code = train(stage, last=False)
        if code != 0:
            return code
    return train(last)


def train(config: TrainConfig, *, last: bool = True) -> int:
    """Do one run, of a stage or the only one; return the exit code."""
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
    if last:
        accelerator.end_training()
    else:
        mark_done(accelerator, config)
    return 0


if __name__ == "__main__":
    sys.exit(recipe(main, "xlcm.training.stages:shown", __doc__))
