"""Compare methods: a grid of training runs, a table with intervals, a plot.

python recipes/benchmark.py configs/benchmarks/noise.yaml jobs=2

Trains each method at each value of an axis (such as the noise rate) with each seed, `jobs` runs at
a time. It may be stopped or killed at any moment: the same command keeps finished runs and goes on
with the others. A run that fails is named at the end; the others are done all the same.
"""

import os
import sys
from pathlib import Path

from xlcm.cli import recipe
from xlcm.config import ConfigError, load
from xlcm.evaluation.comparison import around_tables, save_comparison
from xlcm.training.grid import plan_runs, rows, take_stock
from xlcm.training.grid_settings import GridConfig
from xlcm.training.grid_work import LOG, alone_in, go_through
from xlcm.training.prepare import prepare
from xlcm.training.signals import stop_signals


def main(path: str, *overrides: str) -> int:
    """Run a grid; return the exit code: 1 if a run failed, 143 if it was stopped."""
    config = load(GridConfig, path, overrides)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("start it by python and say jobs=N: its runs have one process each")
    with alone_in(Path(config.output)) as lock, stop_signals() as asked_to_stop:
        plan_runs(config)  # faults now, rather than after hours
        around_tables(config.page)
        prepared = prepare(config, Path(__file__).parent, lock=lock, asked_to_stop=asked_to_stop)
        if prepared is None:
            return 143
        runs = plan_runs(config, prepared)
        take_stock(runs, changed=config.changed, keep=config.keep)
        bad = go_through(config, runs, asked_to_stop=asked_to_stop)
        found = rows(config, runs)
        if found:
            print(
                save_comparison(
                    found,
                    axis=config.axis.name,
                    baseline=config.baseline,
                    average=config.average,
                    page=config.page,
                    plot=config.plot,
                    plotted=config.plotted,
                    title=config.name,
                )
            )
    folders = {run.name: run.folder for run in runs}
    faults = [outcome for outcome in bad if outcome.fault is not None]
    for outcome in faults:
        print(f"FAILED  {outcome.name}: {outcome.fault}  ({folders[outcome.name] / LOG})")
    if asked_to_stop():
        print("stopped; the same command goes on")
        return 143
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(recipe(main, "xlcm.training.grid_settings:GridConfig", __doc__))
