"""Twenty losses of a run, stored. Record anew, with a reason, by XLCM_RECORD_GOLDEN=1.

Weights, words and rows come from numpy and from the data alone, so that the curve is that of any
version of torch and of sentencepiece.
"""

import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from xlcm.types import TextBatch

GOLDEN = Path(__file__).with_name("golden.json")
HERE = {"torch": torch.__version__, "processor": torch.backends.cpu.get_cpu_capability()}
WORDS = sorted({*tiny.COLOURS, *"01234567", "ein", "none"})


class Words(torch.nn.Module):
    """Whole words as token ids from 1 on; 0 pads."""

    def forward(self, texts, langs):
        rows = [torch.tensor([1 + WORDS.index(w) for w in text.split()]) for text in texts]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return TextBatch(ids, ids > 0, tuple(langs))


def simplify(method):
    """Replace what versions of libraries decide."""
    method.retriever.text.tokenizer = Words()
    with torch.no_grad():
        for name, parameter in method.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.ndim > 1:
                # of its own: the embedding has as many rows as sentencepiece found pieces
                random = np.random.default_rng(zlib.crc32(name.encode()))
                drawn = random.normal(size=parameter.shape) / np.sqrt(parameter[0].numel())
                parameter.copy_(torch.from_numpy(drawn))


def test_twenty_steps_give_the_stored_losses(tiny_data, tmp_path):
    model = {"text": {"dropout": 0.0}}
    config = tiny.tree(tiny_data, tmp_path, run={"steps": 20}, optim={"lr": 0.003}, model=model)
    tiny.train(config, wrap=simplify)
    losses = [record["loss"] for record in tiny.metrics(tmp_path)]
    if os.environ.get("XLCM_RECORD_GOLDEN"):
        GOLDEN.write_text(json.dumps({"made_with": HERE, "losses": losses}, indent=1) + "\n")
        pytest.skip(f"recorded {GOLDEN}")
    golden = json.loads(GOLDEN.read_text())
    gaps = np.abs(np.array(losses) - np.array(golden["losses"]))
    made_with = f"{golden['made_with']} then, {HERE} now"
    assert len(gaps) == 20
    assert gaps.max() < 1e-4, f"step {gaps.argmax() + 1}, {made_with}"
    if golden["made_with"] == HERE:
        assert gaps.mean() < 1e-6, made_with
