"""What surrounds the evaluation of a saved model: open model and split, write what was found."""

from __future__ import annotations

from pathlib import Path

import torch

from xlcm.config import ConfigError, build
from xlcm.data.dataset import Dataset
from xlcm.evaluation.evaluate import SHEET_COLUMNS, SplitResult, evaluate
from xlcm.evaluation.plots import save_plots
from xlcm.evaluation.settings import EvaluateConfig
from xlcm.models.dual_encoder import DualEncoder
from xlcm.models.exported import ExportedModel, open_saved
from xlcm.registry import datasets


def judge(config: EvaluateConfig, device: str | torch.device) -> SplitResult:
    """Evaluate a saved model on a split; on several processes each takes a share.

    Raises:
        FileNotFoundError: naming the file of the model or of the data that is missing.
        ConfigError: if the model can't be opened, or reads what the data doesn't give.
        DataError: naming file and line of a picture or features that can't be had.
    """
    model = open_model(config.model, device)
    dataset: Dataset = build(datasets, config.data)
    refuse_misfit(model, dataset)
    if isinstance(model, ExportedModel):
        model.refuse(precision=config.evaluation.precision)
    return evaluate(
        model,
        dataset,
        config.evaluation,
        workers=config.workers,
        top_k=SHEET_COLUMNS if config.output else 0,
        protocol={"model": config.model},
    )


def open_model(source: str, device: str | torch.device) -> DualEncoder | ExportedModel:
    """Open a saved model, or an export of one.

    Args:
        source: folder, or id on the hub.
        device: where it goes; an export always computes on the CPU.

    Raises:
        FileNotFoundError: saying which file was expected where.
        ConfigError: if its files don't fit together, or a newer version wrote them, or the engine
            of an export isn't installed.
    """
    model = open_saved(source)
    return model if isinstance(model, ExportedModel) else model.to(device)


def refuse_misfit(model: DualEncoder | ExportedModel, dataset: Dataset) -> None:
    """Stop before anything is encoded if the data lack what the model reads.

    Raises:
        ConfigError: saying what the model reads and what to do.
    """
    where = f"{dataset.name}, split {dataset.split!r}"
    store = getattr(dataset, "store", None)
    if not model.image.reads_features:
        if store is not None:
            raise ConfigError(
                f"this model reads pictures, the features in {store.folder} would not be used: "
                "leave --features (data.features) out"
            )
        return
    width = model.image.feature_width
    if store is None:
        raise ConfigError(
            f"this model reads features of width {width}, and none were given for {where}: write "
            "them by `accelerate launch recipes/encode.py CONFIG` with the image encoder that "
            "made those of its training, and name their folder by --features (data.features)"
        )
    if store.dim != width:
        made = store.encoder.get("image", {})
        backbone = made.get("backbone") or made.get("name", "an unnamed encoder")
        raise ConfigError(
            f"this model reads features of width {width}, those in {store.folder} have width "
            f"{store.dim} and are by {backbone}: give those of the encoder that its training used"
        )


def save(result: SplitResult, config: EvaluateConfig) -> None:
    """Write report.json, report.md, the plots and the sheet; on one process only."""
    assert config.output is not None
    output = Path(config.output)
    result.report.save(output)
    result.save_sheet(output / "plots" / "sheet.png", config.evaluation)
    save_plots(output)
