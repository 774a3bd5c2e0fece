"""`xlcm export`: the towers of a saved model as graphs for a faster engine on the CPU.

The folder goes where a model goes: `xlcm evaluate FOLDER DATA`, `model: FOLDER` in the configs of
recipes/encode.py and recipes/evaluate.py, `ExportedModel(FOLDER)` in Python.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `xlcm export`."""
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="a saved model, or its id on the hub"
    )
    parser.add_argument(
        "--engine",
        choices=["onnx", "onnx-int8", "openvino"],
        default="onnx",
        help="ONNX Runtime in float32, the same with int8 weights, or OpenVINO (default: onnx)",
    )
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="new folder, or that of an earlier export"
    )


def run(args: argparse.Namespace) -> int:
    """Export and print how close the graphs come; return the exit code."""
    from xlcm.config import ConfigError
    from xlcm.evaluation.setup import open_model
    from xlcm.models.dual_encoder import DualEncoder
    from xlcm.models.export import export

    model = open_model(args.model, "cpu")
    if not isinstance(model, DualEncoder):
        raise ConfigError(f"--model {args.model} is an export itself: name the model it is made of")
    try:
        cosines = export(model, args.out, engine=args.engine)
    except (ImportError, ValueError) as error:
        raise ConfigError(str(error)) from error
    for tower, cosine in cosines.items():
        print(f"{tower}: smallest cosine to float32 {cosine:.6f}, on made-up input")
    print(f"exported for {args.engine} to {args.out}")
    return 0
