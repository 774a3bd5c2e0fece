"""The model that is judged is the model that is saved, on several processes too."""

import contextlib
import json

import pytest
import tiny
import torch

from xlcm.data.dataset import ManifestDataset
from xlcm.evaluation.evaluate import EvaluationConfig, evaluate
from xlcm.models.dual_encoder import DualEncoder
from xlcm.training import loop


def with_batch_norm(data, output, /, **sections):
    """Return a config with running averages."""
    model = {"image_head": {"name": "batch_norm"}, "text": {"dropout": 0.0}}
    return tiny.tree(data, output, model=model, **sections)


def averages(retriever):
    """Return the buffers of batch norm."""
    found = {name: buffer.tolist() for name, buffer in retriever.named_buffers()}
    return {name: value for name, value in found.items() if "running" in name}


def finished(path, config):
    """Run the recipe in a process of the pool; then train with a validation that looks.

    Each process averages its own rows, as a layer would that isn't known to average any.
    """
    loop.joined_batch_norms = contextlib.nullcontext
    processes = tiny.join_pool()
    assert tiny.recipe("train.py").main(str(path)) == 0
    seen = []

    def look(retriever):
        seen.append(averages(retriever))
        return tiny.report(0.0)

    tiny.train(config, evaluate=look)
    return {"processes": processes, "seen": seen}


def test_two_processes_report_the_model_that_they_save(tmp_path, processes):
    data = tiny.write_data(tmp_path / "data", train=64, held_out=64)
    test = {"data": {"test": tiny.held_out(data, "test")}}
    path = tiny.write_config(
        with_batch_norm(data, tmp_path / "run", **test), tmp_path / "config.yaml"
    )
    looking = with_batch_norm(data, tmp_path / "looking", run={"eval_every": 4})
    found = processes.run(2, finished, path, looking)
    assert [result["processes"] for result in found] == [2, 2]

    model = DualEncoder.from_pretrained(tmp_path / "run" / "model")
    dataset = ManifestDataset(
        path=str(data / "tiny.jsonl"), split="test", features=str(data / "store")
    )
    again = evaluate(model, dataset, EvaluationConfig(bootstrap=10)).report.to_dict()
    stored = json.loads((tmp_path / "run" / "report.json").read_text())
    assert again["results"] == stored["results"]

    first, second = (result["seen"] for result in found)
    assert len(first) == 3
    assert all(first[0].values())
    assert first == second
    weights = tiny.weights(tmp_path / "looking", 12)
    for name, value in first[-1].items():
        torch.testing.assert_close(weights[f"retriever.{name}"], torch.tensor(value))


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.float32])
def test_buffers_of_every_kind_are_shared(processes, kind):
    assert processes.run(2, shared, kind) == [[[1, 0]], [[1, 0]]]


def shared(kind):
    """Return a buffer that differs between processes, after it was shared."""
    from xlcm.distributed import rank, share_buffers

    module = torch.nn.Module()
    module.register_buffer("mine", torch.tensor([1, 0] if rank() == 0 else [0, 1]).to(kind))
    share_buffers(module)
    return [buffer.int().tolist() for buffer in module.buffers()]
