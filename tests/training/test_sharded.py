"""Parameters sharded over two processes (FSDP 2) train, stop and continue like one process.

accelerate shards on GPUs only: on a CPU it refuses FSDP 1 and takes FSDP 2 for plain data
parallelism, both without being asked. So the tests tell its state what it is.
"""

from inspect import signature

import accelerate
import pytest
import tiny
import torch
import yaml
from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from safetensors.torch import load_file
from tiny_methods import HEAD
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from xlcm.training import launch

LAUNCHER = tiny.REPOSITORY / "configs" / "accelerate" / "fsdp.yaml"
SHIPPED = yaml.safe_load(LAUNCHER.read_text())["fsdp_config"]["fsdp_auto_wrap_policy"]


def sharded(configs, crash_before):
    """Train with each config and its policy; the last one is first cut off and then continued."""
    found = {"processes": tiny.join_pool(), "units": []}
    accelerator = launch.Accelerator
    policies = {config["run"]["output"]: policy for config, policy in configs}
    scores = []

    def sharding(**options):
        made = accelerator(**options)
        for state in (PartialState(), made.state):
            state.distributed_type = DistributedType.FSDP
        plugin = made.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy=policies[options["project_dir"]]
        )
        if options["mixed_precision"] != "no":
            plugin.set_mixed_precision(options["mixed_precision"])
        return made

    def evaluate(retriever):
        scores.append(float(retriever.scale.detach()))
        return tiny.report(len(scores) % 3)

    launch.Accelerator = sharding
    try:
        with pytest.raises(tiny.Crash):
            tiny.train(configs[-1][0], crash_before=crash_before)
        for config, _ in configs:
            run = tiny.train(config, evaluate=evaluate)
            kinds = {isinstance(p, DTensor) for p in run.method.parameters()}
            found["sharded"] = found.get("sharded", True) and kinds == {True}
            found["units"].append(sum(isinstance(m, FSDPModule) for m in run.method.modules()))
            plain = {type(p) for p in run.trained.retriever.parameters()}
            found["whole"] = plain == {torch.nn.Parameter}
    finally:
        launch.Accelerator = accelerator
    return {**found, "scores": scores}


@pytest.mark.skipif(
    "fsdp_version" not in signature(FullyShardedDataParallelPlugin).parameters,
    reason=f"accelerate {accelerate.__version__} has no FSDP 2",
)
def test_sharded_training_is_that_of_one_process_and_resumes_bit_for_bit(
    tiny_data, tmp_path, processes
):
    run = {"steps": 8, "eval_every": 2, "save_every": 2, "keep_checkpoints": 9}
    model = {"text": {"dropout": 0.0, "context_layers": 3}}
    configs = [
        tiny.tree(tiny_data, tmp_path / name, run=run, model=model)
        for name in ("one", "normed_one", "normed", "pieces", "cached", "half", "whole", "cut")
    ]
    for config in configs[1:3]:
        config["model"]["image_head"] = HEAD
    configs[3]["run"]["length_pieces"] = 2
    configs[4]["run"]["micro_batch"] = 3
    configs[5]["run"]["precision"] = "bf16"
    policies = [SHIPPED, "NO_WRAP", *[SHIPPED] * 4]
    found = processes.run(2, sharded, list(zip(configs[2:], policies)), 5)
    assert SHIPPED == "TRANSFORMER_BASED_WRAP"
    assert [result["units"] for result in found] == [
        [4, 1, 4, 4, 4, 4]
    ] * 2  # the rest, and each block
    assert [result["processes"] for result in found] == [2, 2]
    assert [(result["sharded"], result["whole"]) for result in found] == [(True, True)] * 2
    assert found[0]["scores"] == found[1]["scores"]

    for config in configs[:2]:
        tiny.train(config)
    one, whole = tmp_path / "one", tmp_path / "whole"
    pairs = [
        ("one", "whole", 5e-6),
        ("one", "pieces", 5e-6),
        ("one", "cached", 5e-6),
        ("normed_one", "normed", 1e-5),
        ("one", "half", 0.02),
    ]
    for alone, other, limit in pairs:
        both = (tiny.metrics(tmp_path / name) for name in (alone, other))
        for left, right in zip(*both, strict=True):
            for key in ("loss", "grad_norm", "scale"):
                assert right[key] == pytest.approx(left[key], rel=limit), (other, key)
    left, right = tiny.weights(one, 8), tiny.weights(whole, 8)
    for name in left:  # the temperature has a dimension more
        torch.testing.assert_close(
            right[name].reshape(left[name].shape), left[name], rtol=1e-5, atol=1e-5
        )
    best_file = max((whole / "checkpoints").glob("best-*.safetensors"))
    best = load_file(best_file)
    assert best["log_scale"].shape == ()

    assert tiny.metrics(whole) == tiny.metrics(tmp_path / "cut")
    assert (
        tiny.checkpoint(whole, 8)["model.safetensors"]
        == (tiny.checkpoint(tmp_path / "cut", 8)["model.safetensors"])
    )
