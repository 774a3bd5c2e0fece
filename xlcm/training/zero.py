"""DeepSpeed's ZeRO 1 and 2 behind the calls that the loop makes of any Accelerator.

accelerate's own wrapper takes the step inside the backward pass, before anyone could look at loss
and norm. Here they are apart again: backward, norm, then the step or none. Weights stay in
float32 and half precision is autocast's, as elsewhere; moments, and with ZeRO 2 gradients, are
spread over the processes. Checkpoints are those of every other run, never DeepSpeed's pickles.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.utils import DeepSpeedPlugin, DistributedType, convert_to_fp32
from torch import Tensor, nn

from xlcm.config import ConfigError

MOMENTS = ("exp_avg", "exp_avg_sq")


class ZeroAccelerator(Accelerator):
    """An Accelerator under DeepSpeed whose backward pass is one and no more.

    Args:
        precision: `run.precision`.
        options: of `Accelerator`.

    Attributes:
        touched: names of the parameters that have got a gradient.

    Raises:
        ConfigError: for what can't be had under DeepSpeed, with the way out.
    """

    def __init__(self, precision: str, **options: Any) -> None:
        if find_spec("deepspeed") is None:
            raise ConfigError("DeepSpeed is not installed: pip install 'xlcm[deepspeed]'")
        super().__init__(mixed_precision="no", **options)
        if self.device.type == "cpu":  # where accelerate would have plain data parallelism
            for state in (PartialState(), self.state):
                state.distributed_type = DistributedType.DEEPSPEED
            self.state.deepspeed_plugins = DeepSpeedPlugin()
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        _refuse(self.deepspeed_plugin.deepspeed_config, precision)
        self.touched: set[str] = set()
        self._lowered = precision == "bf16"
        self._last = True
        self._passes: contextlib.ExitStack | None = None

    def prepare(self, method: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:  # type: ignore[override]
        """Return DeepSpeed's engine around the method, and an optimiser that steps when told."""
        for name, parameter in method.named_parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda _, n=name: self.touched.add(n))
        lower(method, self)
        names = {id(parameter): name for name, parameter in method.named_parameters()}
        groups = [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]
        self.deepspeed_plugin.deepspeed_config.update(
            train_micro_batch_size_per_gpu=1,  # for a counter of its own, which nobody reads
            gradient_accumulation_steps=1,  # `run.accumulate` says it
            gradient_clipping=0.0,  # `clip_grad_norm_` is told
        )
        scalars = [parameter for parameter in method.parameters() if parameter.ndim == 0]
        for scalar in scalars:  # it can't send them to other processes: marked as not to be sent
            dist.broadcast(scalar.data, src=0)
            scalar.ds_optim_param = True  # type: ignore[attr-defined]
        engine, _ = super().prepare(method, optimizer)
        for scalar in scalars:
            del scalar.ds_optim_param  # type: ignore[attr-defined]
        return engine, ZeroOptimizer(engine, groups)

    def autocast(self, *arguments: Any, **options: Any) -> Any:
        """Return the context in which the towers run."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._lowered)

    @contextlib.contextmanager
    def no_sync(self, model: nn.Module) -> Iterator[None]:
        """Within it a backward pass is not the last one of its step."""
        self._last = False
        try:
            yield
        finally:
            self._last = True

    def backward(self, loss: Tensor, **options: Any) -> None:
        """Add to the gradients; processes reduce them once a step, with its last pass."""
        engine = self.deepspeed_engine_wrapped.engine
        if not self._last and self._passes is None:
            self._passes = contextlib.ExitStack()
            self._passes.enter_context(engine.coalesce_grad_reduction())
        engine.set_gradient_accumulation_boundary(self._last)
        engine.backward(loss)
        if self._last and self._passes is not None:
            self._passes.close()  # reduces
            self._passes = None

    def clip_grad_norm_(self, parameters: Any, max_norm: float, norm_type: float = 2) -> Tensor:
        """Return the norm of the whole gradient, by which the optimiser's `step` will clip."""
        zero = self.deepspeed_engine_wrapped.engine.optimizer
        zero.clip_grad = max_norm if math.isfinite(max_norm) else 0.0
        norm = torch.as_tensor(zero.scaled_global_norm())
        return torch.where(norm < 0, math.nan, norm)  # -1 stands for one that is not finite


def lower(method: nn.Module, accelerator: Accelerator) -> None:
    """Run a method's forward pass under the accelerator's autocast; what it returns is float32."""
    forward = method.forward

    def lowered(*arguments: Any, **options: Any) -> Any:
        with accelerator.autocast():
            return convert_to_fp32(forward(*arguments, **options))

    method.forward = lowered


class ZeroOptimizer:
    """AdamW with its moments spread over processes; takes a step when asked, not before.

    Args:
        engine: DeepSpeed's, on ZeRO 1 or 2.
        names: of the parameters in each group.
    """

    def __init__(self, engine: Any, names: list[list[str]]) -> None:
        self.engine = engine
        self.zero = engine.optimizer
        self.names = names

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups, each with one tensor: this process's part of all its parameters."""
        return self.zero.optimizer.param_groups  # type: ignore[no-any-return]

    @property
    def state(self) -> dict[Any, Any]:
        """The moments of these parts."""
        return self.zero.optimizer.state  # type: ignore[no-any-return]

    def step(self) -> None:
        """Take the step."""
        self.engine.step()

    def zero_grad(self) -> None:
        """Forget gradients, whether the step was taken or not; keep a scale that was clamped."""
        from deepspeed.utils import safe_set_full_fp32_param

        for kept in (self.zero.averaged_gradients, self.zero.all_grad_tensors):
            for group in kept:
                kept[group] = None
        self.zero.zero_grad()
        for parameter in self.engine.module.parameters():
            if parameter.ndim == 0 and parameter.requires_grad:  # ZeRO steps a copy of it
                safe_set_full_fp32_param(parameter, parameter.detach())

    def whole_state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return weights and moments as they are without DeepSpeed; every process calls it.

        The first process gets the moments, on the CPU.
        """
        from deepspeed.utils import safe_get_full_optimizer_state

        weights = dict(self.engine.module.named_parameters())
        state: dict[str, Any] = {}
        groups = []
        self.zero._lazy_init_hp_params_optimizer_state()
        for group, names in zip(self.param_groups, self.names):
            step = self.state[group["params"][0]]["step"].cpu()
            for name in names:
                found = {k: safe_get_full_optimizer_state(weights[name], k) for k in MOMENTS}
                if dist.get_rank() == 0:
                    state[name] = {"step": step, **{k: v.cpu() for k, v in found.items()}}
            groups.append({**group, "params": names})
        return self.engine.module.state_dict(), {"state": state, "param_groups": groups}

    def fill(self, weights: Mapping[str, Tensor], moments: Mapping[str, Any]) -> None:
        """Take over what `whole_state` returned; every process calls it.

        Raises:
            KeyError, RuntimeError: if it is that of another model.
        """
        from deepspeed.utils import safe_set_full_optimizer_state

        self.engine.module.load_state_dict(weights)
        self.zero.refresh_fp32_params()
        self.zero._lazy_init_hp_params_optimizer_state()
        parameters = dict(self.engine.module.named_parameters())
        for group, names in zip(self.param_groups, self.names):
            for name in names:
                for key in MOMENTS:
                    whole = moments["state"][name][key].to(parameters[name].device)
                    safe_set_full_optimizer_state(parameters[name], whole, key)
            self.state[group["params"][0]]["step"].copy_(moments["state"][names[0]]["step"])


def _refuse(config: Mapping[str, Any], precision: str) -> None:
    """Refuse settings of DeepSpeed's under which a run was never seen to be right."""
    zero = config.get("zero_optimization", {})
    if zero.get("stage") not in (1, 2):
        raise ConfigError(
            f"zero_stage: {zero.get('stage')}: only 1 and 2; to spread weights too start with "
            "--config_file configs/accelerate/fsdp.yaml"
        )
    for key in ("offload_optimizer", "offload_param"):
        if (zero.get(key) or {}).get("device", "none") != "none":
            raise ConfigError(f"{key}_device: {zero[key]['device']}: only none")
    half = [key for key in ("bf16", "fp16") if config.get(key, {}).get("enabled") is True]
    if half or precision == "fp16":
        raise ConfigError(
            "under DeepSpeed run.precision is fp32 or bf16, and a file of DeepSpeed's own has "
            "neither fp16 nor bf16: autocast does it"
        )
