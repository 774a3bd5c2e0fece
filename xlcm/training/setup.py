"""What surrounds the loop: folder and processes, data and model, and what is left at the end."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from xlcm.config import ConfigError, build, dump
from xlcm.data.bad_rows import write_skipped
from xlcm.data.batching import Batching, RowStream
from xlcm.data.collate import Collator, TrainLoader
from xlcm.data.dataset import Dataset
from xlcm.data.mixing import layout
from xlcm.data.rows import Rows, open_splits, survey, training_texts
from xlcm.data.shares import CountingLoader, write_shares
from xlcm.data.stream_order import StreamBatching, enough_shards
from xlcm.encoders.base import ImageEncoder
from xlcm.encoders.tokenizer import prepare_tokenizer
from xlcm.evaluation.evaluate import SHEET_COLUMNS, SplitResult, evaluate, queries
from xlcm.evaluation.plots import save_plots
from xlcm.evaluation.report import RetrievalReport
from xlcm.methods.base import Method
from xlcm.registry import image_encoders, methods, models
from xlcm.training import checkpoint
from xlcm.training.continued import flat, same_run
from xlcm.training.fingerprint import fingerprint, models_named, same_data
from xlcm.training.launch import open_processes
from xlcm.training.settings import DataConfig, RunConfig, TrainConfig


def start(config: TrainConfig) -> Accelerator:
    """Open the run's folder and the processes; write the resolved config.

    Raises:
        ConfigError: if the folder holds a run of another config, or one that may not be resumed;
            for what the processes can't do.
    """
    run = config.run
    accelerator = open_processes(config)
    output = Path(str(run.output))
    kept = output / "config.yaml"
    going, _ = checkpoint.newest_good(output / "checkpoints")
    if going is not None:
        if run.resume == "never":
            raise ConfigError(
                f"{output} holds a run with checkpoints and run.resume is `never`: give another "
                "run.output, or run.resume=auto to continue it"
            )
        if kept.is_file():
            same_run(config, output)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        checkpoint.write_text(kept, dump(config))
    if run.trackers:
        accelerator.init_trackers(run.name, config=flat(config.model_dump(mode="json")))
    torch.manual_seed(run.seed)
    return accelerator


@dataclass
class Data:
    """The splits of a run.

    Args:
        rows: of the training split.
        val: for choosing the best checkpoint.
        test: for the report.
    """

    rows: Rows
    val: Dataset | None
    test: Dataset | None


def open_data(accelerator: Accelerator, config: TrainConfig) -> Data:
    """Open the splits, see to their faults, count the rows; tell what was left out.

    Raises:
        DataError: naming file and line; if a split has no captions that `evaluation` asks with.
        ConfigError: for rows that don't fill a batch, or fewer shards than processes that load;
            if the run goes on, and its data or its teachers are no longer those that it began with.
    """
    data = config.data
    specs = {name: getattr(data, name) for name in ("train", "val", "test")}
    specs = {name: spec for name, spec in specs.items() if spec is not None}
    encoder: type[ImageEncoder] = image_encoders.get(config.model["image"]["name"])
    # one process of each machine, whose disk keeps what it found, and the first of all before them
    with accelerator.main_process_first(), accelerator.local_main_process_first():
        opened, skipped = open_splits(
            list(specs.values()),
            visual="features" if encoder.reads_features else "image",
            on_error=data.on_error,
            max_skipped=data.max_skipped,
            workers=max(data.workers, 1),
        )
    splits = dict(zip(specs, opened))
    rows = survey(
        splits["train"],
        data.views,
        rows=data.rows,
        incomplete=data.incomplete,
        lengths=data.length_buckets > 0,
    )
    _arranged(accelerator, data, config.run, rows)  # faults now, not behind tokenizer and teachers
    output = Path(str(config.run.output))
    if accelerator.is_main_process and data.on_error == "skip":
        write_skipped(skipped, output / "skipped.jsonl")
        print(f"{len(skipped)} fault(s) skipped, listed in {output / 'skipped.jsonl'}")
    if rows.dropped:
        accelerator.print(
            f"{len(rows.dropped)} items lack a caption for some view and are left out, such as "
            f"{', '.join(rows.dropped[:3])}"
        )
    for name in ("val", "test"):
        if name in splits:  # now, rather than when the model is trained
            queries(splits[name], config.evaluation)
    val = splits.get("val")
    known = {**fingerprint(rows, val), **models_named(config.method)}
    same_data(output, known, write=accelerator.is_main_process)
    return Data(rows, val, splits.get("test"))


def build_method(accelerator: Accelerator, config: TrainConfig, rows: Rows) -> Method:
    """Train the tokenizer if need be, build the model with its weights and the method on it.

    The method comes on the process's device and with what it remembers of the data. A run that
    goes on keeps the tokenizer that it began with.

    Raises:
        ConfigError: if the method needs a view that `data.views` lacks.
        FileNotFoundError: if weights or a tokenizer can't be had.
    """
    output = Path(str(config.run.output))
    spec = [config.model]
    if accelerator.is_main_process:
        going, _ = checkpoint.newest_good(output / "checkpoints")
        spec = [
            prepare_tokenizer(
                config.model,
                lambda: training_texts(rows.dataset, rows.views),
                output / "tokenizer",
                keep=going is not None,
            )
        ]
    if accelerator.num_processes > 1:
        broadcast_object_list(spec)
    model = build(models, spec[0])
    model.load_weights()
    for side in ("image", "text"):
        if getattr(model, side).frozen_at_random():
            accelerator.print(
                f"model.{side}: `freeze` keeps layers as they were drawn at random, since no "
                "`weights` are named: name some, or set freeze: none"
            )
    method: Method = build(methods, config.method, model)
    missing = [view for view in method.views if view not in config.data.views]
    if missing:
        raise ConfigError(
            f"method {config.method['name']!r} needs data.views.{missing[0]}; "
            f"there are {', '.join(config.data.views)}"
        )
    method.to(accelerator.device)
    method.remember(
        rows.dataset,
        rows.views,
        fixed=_looks_alike(model, rows.dataset, config.data),
        workers=config.data.workers,
        folder=output / "teachers",
    )
    return method


def _looks_alike(model: Any, dataset: Dataset, data: DataConfig) -> bool:
    """Whether an item looks the same each time it is read: nothing about it is drawn."""
    if model.image.reads_features:  # several views come as a list, of which one is drawn
        stream = layout(dataset)
        firsts = [0] if stream is None else np.unique(stream.corpus, return_index=True)[1].tolist()
        return all(isinstance(dataset.load_features(i), torch.Tensor) for i in firsts)
    return not data.augment.active


def build_loader(
    accelerator: Accelerator, data: DataConfig, run: RunConfig, rows: Rows, method: Method
) -> TrainLoader:
    """Return this process's endless batches, with only the views that the method uses."""
    batching = _arranged(accelerator, data, run, rows)
    collate = Collator(
        rows.dataset,
        rows.views,
        method.retriever.text.tokenizer,
        method.retriever.image.transform,
        augment=data.augment,
        seed=run.seed,
        slot_view=rows.slot_view,
        only=method.views,
        extra=method.extra_texts,
    )
    mine = RowStream(batching, accelerator.process_index, accelerator.num_processes)
    loading: dict[str, Any] = {"workers": data.workers, "device": accelerator.device}
    if layout(rows.dataset) is None:
        return TrainLoader(mine, collate, **loading)
    report = partial(write_shares, Path(str(run.output))) if accelerator.is_main_process else None
    return CountingLoader(mine, collate, report=report, every=run.log_every, **loading)


def _arranged(accelerator: Accelerator, data: DataConfig, run: RunConfig, rows: Rows) -> Batching:
    options: dict[str, Any] = {
        "seed": run.seed,
        "same_image": data.same_image,
        "lengths": rows.lengths,
        "bucket_batches": data.length_buckets,
    }
    stream = layout(rows.dataset)
    if stream is None:
        return Batching(rows.slots, run.global_batch, **options)
    enough_shards(stream, accelerator.num_processes, data.workers)
    return StreamBatching(rows.slots, run.global_batch, stream, **options)


def validate(config: TrainConfig, data: Data, retriever: Any) -> RetrievalReport:
    """Return the validation report, without intervals: it only picks the best checkpoint."""
    assert data.val is not None
    fusion = config.evaluation.fusion if config.run.select == "fused_text_to_visual" else None
    quick = config.evaluation.model_copy(update={"bootstrap": 0, "fusion": fusion})
    return evaluate(retriever, data.val, quick, workers=config.data.workers, progress=False).report


def finish(
    accelerator: Accelerator, config: TrainConfig, data: Data, retriever: Any
) -> SplitResult | None:
    """Leave the model; evaluate it on the test split, leave report, plots and sheet as well.

    The model comes first and the ornaments last: whatever fails, hours of training are kept.
    """
    judged = data.test or data.val
    output = Path(str(config.run.output))
    save = partial(
        retriever.save_pretrained,
        output / "model",
        languages=data.rows.langs_seen,
        about={"method": config.method["name"], "data": data.rows.dataset.name},
        title=config.run.name,
    )
    if accelerator.is_main_process:
        save()
    result = None
    if judged is not None:
        result = evaluate(
            retriever, judged, config.evaluation, workers=config.data.workers, top_k=SHEET_COLUMNS
        )
    if accelerator.is_main_process:
        if result is not None:
            result.report.save(output)
            save(report=result.report.to_dict())
        save_plots(output)
        if result is not None:
            result.save_sheet(output / "plots" / "sheet.png", config.evaluation)
    accelerator.wait_for_everyone()
    return result
