"""The smallest whole training run: made-up features and captions that say what is in them.

Every function works alike in the test's own process and in one of a pool (`processes`).
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from PIL import Image

from xlcm.config import check, merge
from xlcm.data.collate import TrainLoader
from xlcm.data.features import FeatureWriter
from xlcm.encoders.tokenizer import SentencePieceTokenizer
from xlcm.evaluation.evaluate import SplitResult
from xlcm.evaluation.report import DirectionResult, RetrievalReport
from xlcm.methods.base import Method
from xlcm.registry import Registry
from xlcm.training import setup
from xlcm.training.loop import Trained, fit
from xlcm.training.settings import TrainConfig
from xlcm.training.setup import build_loader, build_method, open_data, start
from xlcm.training.workers import forget_processes

REPOSITORY = Path(__file__).resolve().parents[1]
FEATURES = 8
COLOURS = ("red", "green", "blue", "white", "black", "brown", "pink", "grey")
CPU_PROCESSES = REPOSITORY / "configs" / "accelerate" / "cpu.yaml"
"""With ACCELERATE_USE_CPU=true it starts as many processes on a CPU as it is told to."""


class Crash(Exception):
    """The power went out."""


# -- data ----------------------------------------------------------------------------------------


def write_data(folder: Path, train: int = 64, held_out: int = 16) -> Path:
    """Write two manifests with a feature store, small pictures and a tokenizer.

    `tiny.jsonl` has human captions in English and German, `translated.jsonl` machine translations.
    """
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    words: list[str] = []
    with (
        (folder / "tiny.jsonl").open("w") as manifest,
        (folder / "translated.jsonl").open("w") as translated,
        FeatureWriter(folder / "store", kind="pooled", dim=FEATURES, dtype="float32") as store,
    ):
        for split, count in (("train", train), ("val", held_out), ("test", held_out)):
            for number in range(count):
                item, digits, colour = _item(split, number, random)
                words += [caption["text"] for caption in item["captions"]]
                manifest.write(json.dumps(item) + "\n")
                translated.write(json.dumps({**item, "captions": _translations(item)}) + "\n")
                store.add(item["id"], torch.tensor(digits, dtype=torch.float32) / 4 - 1)
                pixels = np.full((32, 32, 3), colour, dtype=np.uint8)
                Image.fromarray(pixels).save(folder / item["image"])
    tokenizer = SentencePieceTokenizer(vocab_size=320, max_tokens=32).train(words)
    tokenizer.save(folder / "tokenizer")
    return folder


def _item(split: str, number: int, random: np.random.Generator) -> tuple[dict, list[int], list]:
    digits = random.integers(0, 8, FEATURES).tolist()
    name = f"{split}{number}"
    # captions differ in length, or sorting them by length would prove nothing
    named = [f"{word} {digit}" for word, digit in zip(COLOURS, digits) if digit > 1] or ["none"]
    captions = [
        {"id": f"{name}{lang}", "lang": lang, "text": " ".join(said), "origin": "human"}
        for lang, said in (("en", named), ("de", ["ein", *reversed(named)]))
    ]
    item = {"id": name, "split": split, "image": f"{name}.png", "captions": captions}
    return item, digits, [digit * 36 for digit in digits[:3]]


def _translations(item: dict) -> list[dict]:
    """Two English captions, each in two languages by a machine, and back again."""
    said = item["captions"][0]["text"].split(" ")
    captions = []
    for number, words in enumerate((said, said[2:] or said)):
        source = f"{item['id']}en{number}"
        text = " ".join(words)
        captions.append({"id": source, "lang": "en", "text": text, "origin": "human"})
        for lang, article in (("de", "ein"), ("fr", "un")):
            there, back = f"{source}2{lang}", f"{source}2{lang}2en"
            text = " ".join([article, *reversed(words)])
            machine = {"engine": "tiny"}
            captions += [
                {"id": there, "lang": lang, "text": text, "origin": "mt", "of": source, **machine},
                {"id": back, "lang": "en", "text": " ".join(sorted(words)), "origin": "back",
                 "of": there, **machine},
            ]  # fmt: skip
    return captions


def translated(data: Path, **views: Any) -> dict[str, Any]:
    """Return sections for `tree` with captions by machine translation; `views` beside `source`."""
    source = {"langs": ["en"], "origin": ["human"]}
    return {
        "data": {
            "train": {"path": str(data / "translated.jsonl")},
            "views": {"source": source, **views},
        }
    }


def tree(data: Path, output: Path, /, **sections: Any) -> dict[str, Any]:
    """Return a config as nested dicts; `run={"steps": 3}` and the like lie over the defaults."""
    split = {"name": "manifest", "path": str(data / "tiny.jsonl"), "features": str(data / "store")}
    tokenizer = data / "tokenizer" / "sentencepiece.model"
    base = {
        "model": {
            "name": "dual_encoder",
            "width": 16,
            "image": {"name": "features", "width": FEATURES},
            "text": {
                "name": "bag",
                "width": 16,
                "context": "conv",
                "dropout": 0.1,
                "tokenizer": {"name": "sentencepiece", "path": str(tokenizer), "max_tokens": 32},
            },
        },
        "data": {
            "train": {**split, "split": "train"},
            "views": {"source": {"langs": ["en"]}, "target": {"langs": ["de"]}},
            "workers": 0,
        },
        "method": {"name": "contrastive"},
        "optim": {"lr": 0.01},
        "run": {"name": "tiny", "output": str(output), "steps": 12, "global_batch": 16},
        "evaluation": {"bootstrap": 10},
    }
    return merge(base, sections)


def held_out(data: Path, split: str) -> dict[str, Any]:
    """Return the spec of a split for `data.val` or `data.test`."""
    return {**tree(data, data)["data"]["train"], "split": split}


def pictures(data: Path, backbone: str = "test_vit") -> dict[str, Any]:
    """Return sections for `tree` that read the pictures."""
    return {
        "model": {
            "image": {"name": "timm", "backbone": backbone, "image_size": 32},
            "text": {"dropout": 0.0},
        }
    }


# -- runs ----------------------------------------------------------------------------------------


@dataclass
class Run:
    """What a run in this process left beside its folder."""

    trained: Trained
    method: Method
    accelerator: Accelerator
    names: list[tuple[str, ...]] = field(default_factory=list)


class Recorder:
    """Passes batches on, remembers their rows, and crashes where it is told to."""

    def __init__(self, loader: TrainLoader, crash_before: int | None) -> None:
        self.loader = loader
        self.crash_before = crash_before
        self.names: list[tuple[str, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.loader)
        while len(self.names) != self.crash_before:
            batch = next(batches)
            self.names.append(batch.names)
            used = [batch]
            del batch  # as the loader lets go of it
            yield used.pop()
        raise Crash(self.names)


def train(
    config: dict[str, Any],
    *,
    evaluate: Callable[[Any], Any] | None = None,
    wrap: Callable[[Method], None] | None = None,
    crash_before: int | None = None,
) -> Run:
    """Do what recipes/train.py does, up to the end of `fit`.

    Args:
        config: as `tree` makes it.
        evaluate: in place of the validation.
        wrap: may change the method before it is trained.
        crash_before: batches of this process that are had before it fails.
    """
    forget_processes()
    checked = check(TrainConfig, config)
    accelerator = start(checked)
    data = open_data(accelerator, checked)
    method = build_method(accelerator, checked, data.rows)
    if wrap is not None:
        wrap(method)
    loader = Recorder(
        build_loader(accelerator, checked.data, checked.run, data.rows, method), crash_before
    )
    trained = fit(
        accelerator, method, loader, checked.optim, checked.run, evaluate=evaluate  # type: ignore
    )  # fmt: skip
    return Run(trained, method, accelerator, loader.names)


def join_pool() -> int:
    """Make a process of the pool one that accelerate takes for launched; return how many."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    os.environ.update(
        ACCELERATE_USE_CPU="true", RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world),
        LOCAL_WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT="29500",
        OMP_NUM_THREADS="1",
    )  # fmt: skip
    forget_processes()
    return Accelerator().num_processes


def train_in_pool(configs: Sequence[dict[str, Any]], crash_before: int | None = None) -> dict:
    """Train with several configs, one after the other, in a process of the pool.

    `crash_before` is for the first one alone: give it twice and it is continued.
    """
    processes = join_pool()
    names: list[tuple[str, ...]] = []
    for number, config in enumerate(configs):
        try:
            names += train(config, crash_before=None if number else crash_before).names
        except Crash as crash:
            names += crash.args[0]
            torch.distributed.barrier()
    return {"processes": processes, "names": names}


def blank_plots(patch: Any) -> None:
    """Let runs of this process write empty files for plots.

    What is in them is for test_train.py, test_finish.py, test_plots.py and test_docs_pages.py.
    """

    def touch(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    patch.setattr(setup, "save_plots", lambda folder: touch(Path(folder, "plots", "curves.png")))
    patch.setattr(SplitResult, "save_sheet", lambda self, path, *_, **__: touch(Path(path)))


def report(score: float) -> RetrievalReport:
    """Return a validation report whose SumR is the score."""
    row = DirectionResult("en", "text_to_image", 4, 4, 25.0, 50.0, 75.0, 2, 2, 40.0)
    return RetrievalReport("tiny", "val", {}, [row], {"en": score})


# -- what a run leaves ---------------------------------------------------------------------------


def metrics(output: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """Return the records of `metrics.jsonl` without speeds: steps, or those of a kind."""
    lines = (output / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    drop = ("items_per_s", "data_share", "mfu")
    return [
        {k: v for k, v in record.items() if k not in drop}
        for record in records
        if record.get("kind") == kind
    ]


def checkpoint(output: Path, step: int) -> dict[str, bytes]:
    """Return every file of a checkpoint."""
    folder = output / "checkpoints" / f"step-{step:08d}"
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def weights(output: Path, step: int) -> dict[str, torch.Tensor]:
    """Return the parameters in a checkpoint."""
    from safetensors.torch import load_file

    return load_file(output / "checkpoints" / f"step-{step:08d}" / "model.safetensors")


# -- commands ------------------------------------------------------------------------------------


def write_config(config: dict[str, Any], path: Path) -> Path:
    """Write a config for a recipe."""
    path.write_text(yaml.safe_dump(config))
    return path


def free_port() -> str:
    """Return a port that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def command(script: str, *arguments: str, processes: int = 1) -> tuple[list[str], dict[str, str]]:
    """Return the command that runs a recipe on so many processes, and its environment.

    `script` is a recipe's name, or the path of another script.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    environment["ACCELERATE_USE_CPU"] = "true"
    launcher: list[str] = []
    if processes > 1:
        launcher = [
            "-m", "accelerate.commands.launch", "--config_file", str(CPU_PROCESSES),
            "--num_processes", str(processes), "--main_process_port", free_port(),
        ]  # fmt: skip
    return [
        sys.executable,
        *launcher,
        str(REPOSITORY / "recipes" / script),
        *arguments,
    ], environment


def built_in(registry: Registry) -> set[str]:
    """Return the names of the library's own parts: other tests enter parts of theirs."""
    return {name for name in registry if registry.get(name).__module__.startswith("xlcm.")}


def recipe(name: str) -> Any:
    """Return a recipe as a module."""
    specification = importlib.util.spec_from_file_location(
        f"recipe_{Path(name).stem}", REPOSITORY / "recipes" / name
    )
    module = importlib.util.module_from_spec(specification)
    sys.modules[module.__name__] = module
    specification.loader.exec_module(module)
    return module
