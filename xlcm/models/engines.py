"""The engines that run exported graphs: ONNX Runtime and OpenVINO, on the CPU."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

GRAPHS = {"onnx": "model.onnx", "onnx-int8": "model.onnx", "openvino": "model.xml"}
"""Engine -> file of a graph."""
EXTRAS = {"onnx": "onnx", "onnx-int8": "onnx", "openvino": "openvino"}
RUNS = {"onnx": ("onnxruntime",), "openvino": ("openvino",)}
WRITES = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
}

Graph: TypeAlias = Callable[[Mapping[str, Tensor], str], Tensor]
"""`graph({input: tensor}, output)` returns that output; only what it needs is computed."""


def require(engine: str, *, to_write: bool = False) -> None:
    """Import what an engine needs.

    Args:
        engine: a key of `GRAPHS`.
        to_write: also what writing a graph for it needs.

    Raises:
        ImportError: naming the command that installs it.
    """
    extra = EXTRAS[engine]
    for module in (WRITES if to_write else RUNS)[extra]:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ImportError(
                f"engine {engine} needs {module}: pip install 'xlcm[{extra}]'"
            ) from error


def open_graph(file: Path, engine: str) -> Graph:
    """Open a graph.

    Raises:
        ImportError: naming the command that installs the engine.
    """
    require(engine)
    return _openvino(file) if engine == "openvino" else _onnx(file)


def _onnx(file: Path) -> Graph:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # its warnings are about its own optimiser
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def run(inputs: Mapping[str, Tensor], output: str) -> Tensor:
        given = {name: value.cpu().contiguous().numpy() for name, value in inputs.items()}
        return torch.from_numpy(session.run([output], given)[0])

    return run


def _openvino(file: Path) -> Graph:
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",  # it would take bfloat16 where the CPU has it
    }
    compiled = openvino.Core().compile_model(str(file), "CPU", settings)
    request = compiled.create_infer_request()

    def run(inputs: Mapping[str, Tensor], output: str) -> Tensor:
        given = {name: value.cpu().contiguous().numpy() for name, value in inputs.items()}
        return torch.from_numpy(request.infer(given)[compiled.output(output)].copy())

    return run
