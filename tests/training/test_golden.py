"""Twenty losses of a run, stored. Record anew, with a reason, by XLCM_RECORD_GOLDEN=1."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

GOLDEN = Path(__file__).with_name("golden.json")
HERE = {"torch": torch.__version__, "processor": torch.backends.cpu.get_cpu_capability()}


def test_twenty_steps_give_the_stored_losses(tiny_data, tmp_path):
    config = tiny.tree(tiny_data, tmp_path, run={"steps": 20}, optim={"lr": 0.003})
    tiny.train(config)
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
