"""A model's towers as graphs for other engines: ONNX Runtime, in float32 or int8, and OpenVINO.

exported.json        engine, sizes, tokenizer, image transform, how close the graphs come
text/, image/        a graph each: model.onnx and its weights, or model.xml and model.bin
tokenizer/           the text tower's tokenizer

Nothing is pickled. `xlcm.models.exported` opens the folder.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlcm.encoders.text_spec import with_tokenizer
from xlcm.encoders.transform import ImageTransform
from xlcm.hub import TOKENIZER, version
from xlcm.models.dual_encoder import DualEncoder
from xlcm.models.encoding import inference
from xlcm.models.engines import GRAPHS, open_graph, require
from xlcm.models.exported import FACTS, FORMAT
from xlcm.models.weights import weights_digest
from xlcm.types import TextBatch, Visual

Engine: TypeAlias = Literal["onnx", "onnx-int8", "openvino"]
EXACT = 0.9999  # cosine under which a float32 graph is not the tower that it was made of
LONGEST = 12  # tokens of the texts that a graph is traced and compared with
QUANTISED = ["MatMul", "Gather"]  # a convolution in int8 is slower than in float32


def export(model: DualEncoder, folder: str | Path, *, engine: Engine = "onnx") -> dict[str, float]:
    """Write both towers, with their heads, as graphs; numbers of rows and tokens stay free.

    The folder is written aside and renamed. Each graph is run and compared with its tower.

    Args:
        model: on the CPU, in float32.
        folder: new, empty, or an earlier export, which is replaced.
        engine: `onnx`; `onnx-int8`, whose matrix products take int8 weights and round activations
            as they come (dynamic quantisation); or `openvino`.

    Returns:
        The smallest cosine between a vector of graph and tower, of `image` and `text`.

    Raises:
        ImportError: naming the command that installs what is missing.
        FileExistsError: if something else is in the folder.
        ValueError: if a tower can't be exported, or its graph gives other vectors.
    """
    if engine not in GRAPHS:
        raise ValueError(f"engine must be one of {', '.join(GRAPHS)}, got {engine!r}")
    require(engine, to_write=True)
    folder = Path(folder)
    if folder.exists() and (
        not folder.is_dir() or (any(folder.iterdir()) and not (folder / FACTS).is_file())
    ):
        raise FileExistsError(f"{folder} is there and no earlier export: name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    before = aside.with_name(f"{aside.name}-before")
    try:
        facts = _write(model, aside, engine)
        aside.chmod(0o755)
        if folder.exists():
            os.replace(folder, before)
        os.replace(aside, folder)
    finally:
        if before.exists() and not folder.exists():
            os.replace(before, folder)
        for left in (aside, before):
            shutil.rmtree(left, ignore_errors=True)
    return {tower: facts[tower]["cosine"] for tower in ("image", "text")}


def _write(model: DualEncoder, folder: Path, engine: Engine) -> dict[str, Any]:
    tokenizer = model.text.tokenizer.save(str(folder / TOKENIZER))
    tokenizer["path"] = (Path(TOKENIZER) / tokenizer["path"]).as_posix()
    transform = model.image.transform
    if not isinstance(transform, ImageTransform | None):
        raise ValueError(
            f"the image tower has a transform of its own, {type(transform).__name__}, which an "
            "export can't write down: use the model itself"
        )
    facts: dict[str, Any] = {
        "format": FORMAT, "xlcm_version": version(), "engine": engine, "width": model.width,
        "languages": list(model.languages),
        "image": {
            "transform": None if transform is None else transform.spec(),
            "reads_features": model.image.reads_features,
            "feature_width": getattr(model.image, "feature_width", None),
        },
        "text": {"tokenizer": tokenizer},
    }  # fmt: skip
    towers: dict[str, tuple[_Tower, list[tuple[Tensor, ...]]]] = {
        "text": (_Text(model), _texts(model)),
        "image": (_Image(model), _images(model)),
    }
    with inference(model):
        for name, (tower, samples) in towers.items():
            part = getattr(model, name)
            spec = part.spec()
            if name == "text":
                spec = with_tokenizer(spec, tokenizer)
            facts[name] |= {
                "width": part.width, "inputs": list(tower.names[: len(samples[0])]),
                "spec": spec,
                "weights": weights_digest(part),
            }  # fmt: skip
            target = folder / name
            target.mkdir()
            what = f"the {name} tower ({spec['name']})"
            _graph(tower, samples[0], target, engine, what)
            facts[name]["cosine"] = _compare(tower, samples, target, engine, what)
    (folder / FACTS).write_text(
        json.dumps(facts, ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
    )
    return facts


# -- towers as functions of tensors -------------------------------------------------------------


class _Tower(nn.Module):
    names: tuple[str, ...]

    def __init__(self, model: DualEncoder) -> None:
        super().__init__()
        self.model = model


class _Text(_Tower):
    names = ("ids", "mask")

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        pooled = self.model.text(TextBatch(ids, mask)).pooled
        return self.model.map_text(pooled), pooled


class _Image(_Tower):
    def __init__(self, model: DualEncoder) -> None:
        super().__init__(model)
        self.names = ("features", "mask") if model.image.reads_features else ("pixels",)

    def forward(self, values: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        reads_features = self.model.image.reads_features
        visual = Visual(features=values, mask=mask) if reads_features else Visual(values)
        pooled = self.model.image(visual).pooled
        return self.model.map_visual(pooled), pooled


def _texts(model: DualEncoder) -> list[tuple[Tensor, ...]]:
    """Return texts of made-up tokens, of several lengths and numbers."""
    tokenizer = model.text.tokenizer
    draw = torch.Generator().manual_seed(0)
    usual = torch.tensor([i for i in range(tokenizer.vocab_size) if i not in tokenizer.special_ids])
    most = min(LONGEST, tokenizer.max_tokens)
    found: list[tuple[Tensor, ...]] = []
    for counts in ([most - 1, 2, 1, 3], [most, most // 2], [3]):
        mask = torch.arange(max(counts))[None] < torch.tensor(counts)[:, None]
        ids = usual[torch.randint(len(usual), mask.shape, generator=draw)]
        found.append((ids.masked_fill(~mask, tokenizer.pad_id), mask))
    return found


def _images(model: DualEncoder) -> list[tuple[Tensor, ...]]:
    """Return noise in the shape that the image tower reads, in several numbers."""
    draw = torch.Generator().manual_seed(0)
    transform = model.image.transform
    if transform is not None:
        side = transform.size  # type: ignore[attr-defined]
        shapes = [(rows, 3, side, side) for rows in (2, 3, 1)]
        return [(torch.randint(256, s, generator=draw, dtype=torch.uint8),) for s in shapes]
    width = model.image.feature_width
    if not getattr(model.image, "tokens", True):
        return [(torch.randn(rows, width, generator=draw),) for rows in (2, 3, 1)]
    found: list[tuple[Tensor, ...]] = []
    for counts in ([5, 2], [3, 4, 1], [2]):
        mask = torch.arange(max(counts))[None] < torch.tensor(counts)[:, None]
        found.append((torch.randn(*mask.shape, width, generator=draw), mask))
    return found


# -- graphs -------------------------------------------------------------------------------------


def _graph(
    tower: _Tower, sample: tuple[Tensor, ...], folder: Path, engine: Engine, what: str
) -> None:
    """Write the graph of a tower for an engine."""
    file = folder / ("model.onnx" if engine == "onnx" else "float.onnx")
    free = torch.export.Dim.DYNAMIC
    names = tower.names[: len(sample)]
    # rows; of masked inputs also their number of tokens or frames
    shapes = tuple({0: free, 1: free} if len(sample) > 1 else {0: free} for _ in sample)
    with quiet():
        try:
            torch.onnx.export(
                tower, sample, str(file), input_names=list(names),
                output_names=["vectors", "pooled"], dynamic_shapes=shapes, dynamo=True,
            )  # fmt: skip
        except Exception as error:  # whatever torch.export trips over in a network
            cause = error
            while cause.__cause__ is not None:
                cause = cause.__cause__  # type: ignore[assignment]
            raise ValueError(
                f"{what} can't be exported, torch.onnx says {type(cause).__name__}: "
                f"{str(cause).strip().splitlines()[0] if str(cause).strip() else 'nothing'}; use "
                "the model itself, with precision or compile if it is too slow"
            ) from error
        if engine == "onnx-int8":
            from onnxruntime.quantization import QuantType, quantize_dynamic

            large = sum(part.stat().st_size for part in folder.iterdir()) > 1.8e9
            quantize_dynamic(
                file, folder / "model.onnx", weight_type=QuantType.QInt8,
                per_channel=True,  # one scale for a whole matrix costs a ViT-B/16 0.03 of cosine
                op_types_to_quantize=QUANTISED, use_external_data_format=large,
            )  # fmt: skip
        elif engine == "openvino":
            import openvino

            openvino.save_model(
                openvino.convert_model(str(file)), str(folder / "model.xml"), compress_to_fp16=False
            )
    if engine != "onnx":
        for part in folder.glob("float.onnx*"):
            part.unlink()


def _compare(
    tower: _Tower, samples: list[tuple[Tensor, ...]], folder: Path, engine: Engine, what: str
) -> float:
    """Return the smallest cosine of the graph's vectors with the tower's."""
    graph = open_graph(folder / GRAPHS[engine], engine)
    lowest = 1.0
    for sample in samples:
        found = graph(dict(zip(tower.names, sample)), "vectors")
        lowest = min(lowest, float(F.cosine_similarity(found, tower(*sample)[0]).min()))
    if engine != "onnx-int8" and not lowest >= EXACT:
        raise ValueError(
            f"{what} can't be exported: its graph gives other vectors, cosine {lowest:.4f}; use "
            "the model itself"
        )
    return lowest


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' many notes about their own workings off the screen."""
    names = ("torch.onnx", "onnxscript", "onnx_ir", "root", "torch.export", "torch.fx")
    loggers = [logging.getLogger(None if name == "root" else name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), open(os.devnull, "w", encoding="utf-8") as nowhere:
            warnings.simplefilter("ignore")
            with contextlib.redirect_stdout(nowhere):
                yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
