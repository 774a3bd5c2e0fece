"""How far a run has come, and what a validation changes in that."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from xlcm.evaluation.report import RetrievalReport
from xlcm.training.settings import OptimConfig, RunConfig


@dataclass
class Progress:
    """What a checkpoint knows beside weights and moments."""

    step: int = 0
    best_step: int = 0
    best_score: float = 0.0  # nothing found is no gain
    since_best: int = 0
    since_drop: int = 0
    drops: int = 0
    nonfinite: int = 0
    nonfinite_in_row: int = 0
    data: dict[str, int] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)  # of fp16
    micro_batch: int = 0  # what `auto` found


def score(report: RetrievalReport, run: RunConfig) -> float:
    """Return what picks the best weights, averaged over languages."""
    if run.select == "sum_r":
        return report.sum_r_mean
    results = report.fused[0].results if run.select == "fused_text_to_visual" else report.results
    rows = [row for row in results if row.direction.startswith("text_to_")]
    return sum(row.r1 + row.r5 + row.r10 for row in rows) / len(rows)


def judge(report: RetrievalReport, progress: Progress, optim: OptimConfig, run: RunConfig) -> None:
    """Note whether this is the best yet, and whether the rate falls if it is not."""
    progress.since_drop += 1
    found = score(report, run)
    if found > progress.best_score:
        progress.best_score, progress.best_step = found, progress.step
        progress.since_best = 0
        return
    progress.since_best += 1
    if optim.plateau_from == "best":
        falls = progress.since_best % optim.plateau_patience == 0
    else:
        falls = progress.since_drop >= optim.plateau_patience
    if falls:
        progress.drops += 1
        progress.since_drop = 0


def out_of_patience(progress: Progress, run: RunConfig) -> bool:
    """Return whether training ends before its last step."""
    return bool(run.patience) and progress.since_best >= run.patience
