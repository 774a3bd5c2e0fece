"""Evaluate a saved model.

accelerate launch recipes/evaluate.py configs/evaluate/photos.yaml model=FOLDER output=DIR

Encodes pictures and captions of a split, ranks in both directions for each language, and leaves
report.json, report.md and plots/ (recall by language, a sheet of found pictures) in `output`. Any
number of processes share the work. Without a config: `xlcm evaluate MODEL MANIFEST`.
"""

import sys

from accelerate import Accelerator

from xlcm.cli import recipe
from xlcm.config import load
from xlcm.evaluation.settings import EvaluateConfig
from xlcm.evaluation.setup import judge, save
from xlcm.launched import patient


def main(path: str, *overrides: str) -> int:
    """Evaluate what the config names; return the exit code."""
    config = load(EvaluateConfig, path, overrides)
    accelerator = Accelerator(kwargs_handlers=patient())
    accelerator.print(f"{config.model} on {accelerator.num_processes} process(es)")
    result = judge(config, accelerator.device)
    accelerator.print(result.report)
    if config.output is not None:
        if accelerator.is_main_process:
            save(result, config)
        accelerator.print(f"report and plots are in {config.output}")
    accelerator.end_training()
    return 0


if __name__ == "__main__":
    sys.exit(recipe(main, "xlcm.evaluation.settings:EvaluateConfig", __doc__))
