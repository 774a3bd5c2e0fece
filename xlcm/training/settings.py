"""The sections of a training config. `xlcm schema` exports them for editors."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from xlcm.config import Section, part_field
from xlcm.data.batching import SameImage
from xlcm.data.transforms import Augment
from xlcm.data.views import View, Views
from xlcm.evaluation.evaluate import EvaluationConfig
from xlcm.registry import datasets, methods, models

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class DataConfig(Section):
    """What is read and how rows are made of it.

    Args:
        train: the training split.
        val: for choosing the best checkpoint; None: the last one is kept.
        test: for the report; None: the report is on `val`.
        views: which captions a method gets (`xlcm.data.views`).
        rows: `item`: an epoch has one row an item, with captions drawn anew each time;
            `caption`: one row for each caption of the first view.
        same_image: whether rows of one item may, must not or should meet in a batch.
        length_buckets: batches a pool that is sorted by caption length; 0: none.
        augment: random changes to training pictures.
        workers: loading processes for each training process.
        on_error: `raise` stops at the first bad row; `skip` checks every row before the start,
            lists the bad ones in `skipped.jsonl` and trains on the others.
        max_skipped: share of bad items above which `skip` stops all the same.
        incomplete: what to do with items that lack a caption for some view.
    """

    train: part_field(datasets)  # type: ignore[valid-type]
    val: part_field(datasets) | None = None  # type: ignore[valid-type]
    test: part_field(datasets) | None = None  # type: ignore[valid-type]
    views: dict[str, View]
    rows: Literal["item", "caption"] = "item"
    same_image: SameImage = "any"
    length_buckets: Count = 0
    augment: Augment = Augment()
    workers: Count = 2
    on_error: Literal["raise", "skip"] = "raise"
    max_skipped: Share = 0.01
    incomplete: Literal["error", "drop"] = "error"

    @model_validator(mode="after")
    def _fits_together(self) -> DataConfig:
        if not self.views:
            raise ValueError("data.views is empty: a run needs at least one")
        Views(self.views)  # `of` names another view, and not in a circle
        if self.length_buckets and self.same_image != "any":
            raise ValueError(
                f"data.length_buckets={self.length_buckets} reorders rows, so it can't keep "
                f"data.same_image={self.same_image}; use one of the two"
            )
        return self


class OptimConfig(Section):
    """AdamW and its schedule.

    Args:
        lr: highest learning rate.
        weight_decay: on matrices only: never on biases, norms, the temperature or the bias.
        betas: decay of the two moments.
        eps: added to the denominator.
        lr_scale: factor on `lr` by parameter prefix, the longest that fits (`image`, `text`,
            `image_head`, `log_scale`; names as in the retriever).
        layer_decay: by tower (`image`, `text`): each layer towards the input gets this factor
            on the rate of the layer above it; in (0, 1].
        schedule: after the warm-up.
        warmup: steps of linear rise from 0; below 1, a share of all steps.
        min_lr: lowest factor on `lr` at the end of `cosine` and `linear`.
        plateau_patience: for `plateau`: evaluations without a better score before the rate falls.
        plateau_factor: by which it falls.
        plateau_from: what the patience counts from. `best`: evaluations since the best score.
            `drop`: evaluations since the rate last fell, or since the start; it falls at one
            without a better score, and a better score between does not begin the count anew.
        epoch_decay: the rate times this after each epoch, on top of the schedule; 1: constant.
        clip_norm: largest norm of the whole gradient; None: no clipping.
    """

    lr: Annotated[float, Field(gt=0)] = 5e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    eps: Annotated[float, Field(gt=0)] = 1e-6
    lr_scale: dict[str, Annotated[float, Field(ge=0)]] = {}
    layer_decay: dict[Literal["image", "text"], Annotated[float, Field(gt=0, le=1)]] = {}
    schedule: Literal["cosine", "linear", "constant", "plateau"] = "cosine"
    warmup: Annotated[float, Field(ge=0)] = 0.05
    min_lr: Share = 0.0
    plateau_patience: Positive = 2
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    plateau_from: Literal["best", "drop"] = "best"
    epoch_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0


class RunConfig(Section):
    """One run.

    Args:
        name: for logs and the default folder.
        output: where everything goes; None: `runs/<name>`.
        seed: of everything random.
        steps: optimiser steps; give this or `epochs`.
        epochs: passes over the rows.
        global_batch: rows of one loss over all processes: results do not depend on their number.
        accumulate: global batches whose gradients are averaged before a step. It brings no
            negatives from one batch to another.
        micro_batch: rows that a process encodes at a time, with gradient caching: the gradient of
            the whole batch in the memory of so many rows; None: all at once. `auto`: as many as
            fit the device, found by trying before the first step (64 on a CPU); a run that goes
            on keeps what was found.
        length_pieces: without gradient caching, pieces of captions of like length that a process
            encodes one after the other, to save padding; 0: all at once. `micro_batch` sorts too.
        precision: `bf16` and `fp16` run the towers in half precision, the losses in float32.
        compile: all towers by `torch.compile`; the first steps take minutes, the others less.
        log_every: steps between lines on the screen; `metrics.jsonl` has every step.
        eval_every: steps between validations; 0: once an epoch.
        save_every: steps between checkpoints; 0: with every validation.
        keep_checkpoints: how many of the newest stay.
        patience: validations without a better score before training stops; 0: never.
        select: the score of a validation that picks the best weights, averaged over languages:
            `sum_r` of both directions, the recalls of `text_to_visual` alone, or those of
            queries fused with their translations at the first of `evaluation.fusion.weights`.
        resume: `auto` continues from the newest good checkpoint in the folder, if any; `never`
            refuses a folder that has one.
        max_nonfinite: steps in a row with a non-finite loss or gradient that are skipped
            before the run stops.
        timeout_minutes: how long a process waits for another, which may be training the tokenizer
            or looking through the data, before it takes it for dead and ends the run.
        trackers: beside `metrics.jsonl`.
    """

    name: str = "run"
    output: str | None = None
    seed: Count = 0
    steps: Positive | None = None
    epochs: Annotated[float, Field(gt=0)] | None = None
    global_batch: Annotated[int, Field(gt=1)] = 256
    accumulate: Positive = 1
    micro_batch: Positive | Literal["auto"] | None = None
    length_pieces: Count = 0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    log_every: Positive = 20
    eval_every: Count = 0
    save_every: Count = 0
    keep_checkpoints: Positive = 2
    patience: Count = 0
    select: Literal["sum_r", "text_to_visual", "fused_text_to_visual"] = "sum_r"
    resume: Literal["auto", "never"] = "auto"
    max_nonfinite: Positive = 10
    timeout_minutes: Annotated[float, Field(gt=0, le=525_600)] = 720
    trackers: list[Literal["tensorboard", "wandb"]] = []

    @model_validator(mode="after")
    def _one_length(self) -> RunConfig:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either run.steps or run.epochs")
        if self.output is None:
            self.output = f"runs/{self.name}"
        return self

    @model_validator(mode="after")
    def _one_way_of_pieces(self) -> RunConfig:
        if self.micro_batch is not None and self.length_pieces:
            raise ValueError(
                f"run.length_pieces={self.length_pieces} and run.micro_batch={self.micro_batch} "
                "both cut the batch; micro_batch sorts by length too: leave out length_pieces"
            )
        return self


class TrainConfig(Section):
    """A whole training run: `recipes/train.py`.

    Args:
        model: what is trained and kept.
        data: what is read, and how rows are made of it.
        method: the losses and how they are weighed.
        optim: optimiser and schedule.
        run: length, precision, checkpoints, where everything goes.
        evaluation: of the validation and of the report at the end.
    """

    model: part_field(models)  # type: ignore[valid-type]
    data: DataConfig
    method: part_field(methods)  # type: ignore[valid-type]
    optim: OptimConfig = OptimConfig()
    run: RunConfig
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _fused_if_selected(self) -> TrainConfig:
        if self.run.select == "fused_text_to_visual" and self.evaluation.fusion is None:
            raise ValueError(
                "run.select=fused_text_to_visual needs evaluation.fusion, which says how queries "
                "are fused with their translations"
            )
        return self
