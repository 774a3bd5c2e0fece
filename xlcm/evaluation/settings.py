"""The config of `recipes/evaluate.py` and `xlcm evaluate`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from xlcm.config import Section, part_field
from xlcm.evaluation.evaluate import EvaluationConfig
from xlcm.registry import datasets


class EvaluateConfig(Section):
    """Which model is judged, on what.

    Args:
        model: folder that `save_pretrained` wrote (of a run: its `model/`), or id on the hub.
        data: the split.
        evaluation: languages, gallery, intervals.
        workers: loading processes for each process.
        output: folder for the report, the plots and the sheet of found pictures; None: they are
            not written.
    """

    model: str
    data: part_field(datasets)  # type: ignore[valid-type]
    evaluation: EvaluationConfig = EvaluationConfig()
    workers: Annotated[int, Field(ge=0)] = 2
    output: str | None = None
