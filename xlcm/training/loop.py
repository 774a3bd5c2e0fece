"""The one training loop: resume, step, guard, log, evaluate, save. Read it from top to bottom.

It knows the `Method` protocol and nothing else of a method. Random draws of a step are a function
of the seed, the step and the process, so that a checkpoint needs no generator states and a
resumed run equals an unbroken one: bit for bit, where kernels add in a fixed order as on CPUs.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from xlcm.batch_norm import joined_batch_norms
from xlcm.data.collate import TrainLoader
from xlcm.distributed import share_buffers, world
from xlcm.evaluation.report import RetrievalReport
from xlcm.launched import watched
from xlcm.methods.base import Method
from xlcm.pieces import Pieces, counts_of, cut, padding
from xlcm.training import checkpoint
from xlcm.training.batch_size import refuse_pieces, rows_a_time
from xlcm.training.caching import cached_step
from xlcm.training.flops import best_rate, compile_towers
from xlcm.training.guard import refuse_overflow, refuse_unused, refuse_vanished_scale, skip
from xlcm.training.optim import begin_moments, build_optimizer, lr_factor, rest, set_lr
from xlcm.training.progress import Progress, judge, out_of_patience, score
from xlcm.training.settings import OptimConfig, RunConfig
from xlcm.training.sharded import ready_to_shard, set_free, value_of, whole_retriever
from xlcm.training.signals import stop_signals
from xlcm.training.tracking import Journal
from xlcm.types import Batch

Evaluate = Callable[[Any], RetrievalReport]


@dataclass
class Trained:
    """What `fit` leaves.

    Args:
        retriever: with the best weights, on every process.
        progress: where the run ended.
        interrupted: a signal ended it; the same command continues.
    """

    retriever: Any
    progress: Progress
    interrupted: bool = False


def fit(
    accelerator: Accelerator,
    method: Method,
    loader: TrainLoader,
    optim: OptimConfig,
    run: RunConfig,
    *,
    evaluate: Evaluate | None = None,
) -> Trained:
    """Train a method; every process calls it.

    Args:
        accelerator: knows processes, devices and precision.
        method: not yet prepared.
        loader: this process's batches.
        optim: optimiser and schedule.
        run: length, checkpoints, guards.
        evaluate: gives the validation report of a retriever; None: the last weights are kept.

    Raises:
        ValueError: for parameters without gradient, or a checkpoint that doesn't fit.
        ConfigError: for a method whose rows can't be encoded in pieces as the run asks, or whose
            batch norm can't see the rows of all processes.
        FileNotFoundError: if a continued run's best weights are gone.
        FloatingPointError: after `run.max_nonfinite` bad steps in a row, or at the first one if
            float16 alone is to blame; if gradients overflow in float16 at any scale.
    """
    output = Path(str(run.output))
    steps = run.steps or math.ceil((run.epochs or 0) * loader.batches_per_epoch / run.accumulate)
    eval_every = run.eval_every or max(loader.batches_per_epoch // run.accumulate, 1)
    save_every = run.save_every or eval_every

    plain = method  # the method below DDP's wrapper
    refuse_pieces(accelerator, method, run)
    shadow = ready_to_shard(accelerator, method)
    method.to(accelerator.device)
    optimizer = build_optimizer(method, optim)
    method, optimizer = accelerator.prepare(method, optimizer)
    begin_moments(optimizer)

    progress = Progress()
    folder = output / "checkpoints"
    found, faults = checkpoint.newest_good(folder)
    for fault in faults:
        accelerator.print(fault)
    if found is not None:
        _, state = checkpoint.load(found, method, optimizer)
        progress = Progress(**state)
        if progress.best_step:  # now, rather than when all steps are done
            checkpoint.best_weights(folder, progress.best_step)
        loader.load_state_dict(progress.data)
        if accelerator.scaler is not None and progress.scaler:
            accelerator.scaler.load_state_dict(progress.scaler)
        accelerator.print(f"continuing from {found}")
    method.train()
    size, batches = rows_a_time(accelerator, plain, run, iter(loader), progress)
    rate = 0.0
    if progress.step < steps and not out_of_patience(progress, run):
        rate, batches = best_rate(accelerator, plain, run, batches)
    if run.compile:
        compile_towers(plain)
    journal = Journal(
        accelerator, output / "metrics.jsonl", progress.step, steps, run.log_every, rate
    )

    with joined_batch_norms(plain), stop_signals() as asked_to_stop, watched() as at_work:
        while progress.step < steps and not out_of_patience(progress, run):
            begin, waited = time.monotonic(), 0.0
            at_work(f"step {progress.step + 1}")
            epoch = progress.step * run.accumulate / loader.batches_per_epoch
            plain.begin(epoch)
            factor = lr_factor(progress.step, steps, optim, progress.drops, math.floor(epoch))
            set_lr(optimizer, optim.lr * factor)
            _seed(run.seed, progress.step, accelerator.process_index, accelerator.device)
            buffers = [buffer.detach().clone() for buffer in plain.buffers()]

            # -- forward and backward, run.accumulate times ------------------------------------
            figures: torch.Tensor | None = None
            names: list[str] = []
            counts = []
            for part in range(run.accumulate):
                at = time.monotonic()
                batch = next(batches)
                waited += time.monotonic() - at
                names += batch.names
                last = part == run.accumulate - 1
                seen = _moved(batch, accelerator.device, size)
                del batch  # `seen` has its rows, or copies of them in pieces
                counts.append(counts_of(seen))
                if isinstance(seen, Pieces) and run.micro_batch is not None:
                    terms, loss = cached_step(
                        accelerator, method, plain, seen, share=1 / run.accumulate, reduce=last
                    )
                else:
                    with contextlib.nullcontext() if last else accelerator.no_sync(method):
                        terms = method(seen)
                        loss = plain.total(terms)
                        accelerator.backward(loss / run.accumulate)
                stop = loss.new_tensor(float(asked_to_stop()))
                row = torch.stack([t.detach().float() for t in (*terms.values(), loss, stop)])
                figures = row if figures is None else figures + row
            assert figures is not None
            if progress.step == 0:
                refuse_unused(plain, getattr(accelerator, "touched", None))
            rest(plain, plain.resting())

            # -- guard: the mean over processes is finite only if all are, so all agree ---------
            norm = value_of(
                accelerator.clip_grad_norm_(method.parameters(), optim.clip_norm or float("inf"))
            )
            figures = accelerator.reduce(figures / run.accumulate, reduction="mean")
            *values, loss_value, stop_value = figures.tolist()
            scaled = accelerator.scaler is not None  # fp16: the scaler sees to its own overflows
            good = math.isfinite(loss_value) and (scaled or math.isfinite(norm))
            if good:
                optimizer.step()
                plain.retriever.clamp_()
                progress.nonfinite_in_row = 0
            else:  # batch norm has already averaged the bad rows in
                if progress.step == 0 and scaled and shadow is None:
                    refuse_overflow(accelerator, plain, seen)
                for buffer, before in zip(plain.buffers(), buffers):
                    buffer.detach().copy_(before)
                if accelerator.scaler is not None:  # it must forget the gradients it has unscaled
                    accelerator.scaler.update()
            del seen  # on a device where the next batch is on its way, and may be as large
            if accelerator.scaler is not None:
                progress.scaler = accelerator.scaler.state_dict()
            optimizer.zero_grad()
            progress.step += 1
            progress.data = loader.state_dict()

            # -- log ---------------------------------------------------------------------------
            step = progress.step
            if good:
                logged = {
                    "loss": loss_value,
                    **dict(zip(terms, values)),
                    "lr": optim.lr * factor,
                    "grad_norm": norm,
                    "scale": value_of(plain.retriever.scale.detach()),
                    **padding(counts),
                }
                items = run.global_batch * run.accumulate
                seconds = time.monotonic() - begin
                journal.step(step, logged, items=items, seconds=seconds, waited=waited)
            else:
                skip(accelerator, journal, progress, run, names, loss_value, norm)
            refuse_vanished_scale(accelerator, progress)

            # -- evaluate ----------------------------------------------------------------------
            stop_early = False
            if evaluate is not None and (step % eval_every == 0 or step == steps):
                at = time.monotonic()
                at_work(f"the validation after step {step}")
                share_buffers(plain)
                report = evaluate(whole_retriever(method, plain, shadow))
                method.train()
                judge(report, progress, optim, run)
                stop_early = out_of_patience(progress, run)
                if progress.best_step == step:
                    state_dict = whole_retriever(method, plain, shadow).state_dict()
                    if accelerator.is_main_process:
                        checkpoint.write_best(state_dict, folder, step)
                _log_report(journal, report, progress, run, time.monotonic() - at)
                journal.pause()

            # -- save --------------------------------------------------------------------------
            stopping = stop_early or stop_value > 0
            if step % save_every == 0 or step == steps or stopping:
                at_work(f"the checkpoint after step {step}")
                checkpoint.save(
                    accelerator, folder, step, method, optimizer, asdict(progress),
                    run.keep_checkpoints,
                )  # fmt: skip
                journal.pause()
            if stopping:
                interrupted = stop_value > 0 and not stop_early
                why = "a signal" if interrupted else f"{run.patience} evaluations without a gain"
                journal.say(f"stopped at step {step} after {why}")
                if interrupted:
                    return Trained(plain.retriever, progress, interrupted=True)
                break

    share_buffers(plain)
    retriever = set_free(whole_retriever(method, plain, shadow))
    accelerator.wait_for_everyone()
    if progress.best_step:
        retriever.load_state_dict(load_file(checkpoint.best_weights(folder, progress.best_step)))
    return Trained(retriever, progress)


def announce(loader: TrainLoader, run: RunConfig, method: Method) -> str:
    """Return the first line of a run: rows, right answers and negatives that each row sees."""
    batches = loader.stream.batching.batches(0)[:50, :, 0]
    right = float(np.mean([np.mean(np.unique(b, return_counts=True)[1] ** 2) * len(np.unique(b))
                           / len(b) for b in batches]))  # fmt: skip
    each = run.global_batch // world()
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    total = sum(p.numel() for p in method.parameters())
    size = -(-each // run.length_pieces) if run.length_pieces else run.micro_batch
    pieces = f", {size} of them at a time" if isinstance(size, int) and size < each else ""
    return (
        f"global batch {run.global_batch} = {world()} x {each} rows{pieces}; each image sees "
        f"{run.global_batch} captions a view: {right:.2f} right on average, "
        f"{run.global_batch - right:.2f} negatives; {loader.batches_per_epoch} batches an epoch; "
        f"{trained / 1e6:.2f} of {total / 1e6:.2f} M parameters are trained"
    )


def _seed(seed: int, step: int, process: int, device: torch.device) -> None:
    drawn = int(np.random.SeedSequence([seed, step, process]).generate_state(1)[0])
    if device.type == "cpu":  # all devices' cost milliseconds where there are none: a traceback
        torch.default_generator.manual_seed(drawn)
    else:
        torch.manual_seed(drawn)


def _moved(batch: Batch, device: torch.device, size: int) -> Batch | Pieces:
    """Return the batch on the device, where a GPU has it already; cut if there is a size."""
    moved: Batch = batch.to(device, non_blocking=True)
    return cut(moved, size) if size else moved


def _log_report(
    journal: Journal,
    report: RetrievalReport,
    progress: Progress,
    run: RunConfig,
    seconds: float,
) -> None:
    langs = {lang: round(value, 3) for lang, value in report.sum_r.items()}
    direction = report.directions[0]
    first = {lang: round(report.result(lang, direction).r1, 3) for lang in langs}
    journal.write(
        {"step": progress.step, "kind": "eval", "sum_r": langs, "r1": first,
         "sum_r_mean": round(report.sum_r_mean, 3), "score": round(score(report, run), 3)}
    )  # fmt: skip
    shown = "  ".join(f"{lang} {value:.1f}" for lang, value in langs.items())
    mark = "  (best so far)" if progress.best_step == progress.step else ""
    journal.say(f"step {progress.step}  SumR on {report.split}: {shown}  in {seconds:.1f} s{mark}")
