"""AdamW with its parameter groups, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from xlcm.config import ConfigError
from xlcm.training.settings import OptimConfig

NEVER_DECAYED = ("log_scale", "bias")


def parameter_groups(method: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Group the trained parameters by learning rate and weight decay.

    Norms, biases, the temperature and all other vectors and scalars are not decayed; nor are
    embeddings of a position or class token with a single row. Each group carries `lr_factor`:
    `lr_scale` times `layer_decay` to the power of the layers above.

    Args:
        method: has a `retriever`; its `image` and `text` towers have `layers()`.
        config: rates and decay.

    Raises:
        ConfigError: if an `lr_scale` prefix fits no parameter, or nothing is trained.
    """
    retriever = getattr(method, "retriever", method)
    depth = _layer_factors(retriever, config)
    names = {id(p): name for name, p in retriever.named_parameters()}
    used: set[str] = set()
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in method.named_parameters():
        if not parameter.requires_grad:
            continue
        inner = names.get(id(parameter), name)
        factor = depth.get(id(parameter), 1.0)
        fitting = [p for p in config.lr_scale if inner == p or inner.startswith(p + ".")]
        if fitting:
            longest = max(fitting, key=len)
            used.add(longest)
            factor *= config.lr_scale[longest]
        decay = config.weight_decay if _decayed(inner, parameter) else 0.0
        group = groups.setdefault(
            (factor, decay), {"params": [], "lr_factor": factor, "weight_decay": decay}
        )
        group["params"].append(parameter)
    unused = sorted(set(config.lr_scale) - used)
    if unused:
        prefixes = sorted({n.split(".")[0] for n in names.values()})
        raise ConfigError(
            f"optim.lr_scale: {', '.join(unused)} fits no trained parameter; "
            f"prefixes are {', '.join(prefixes)}"
        )
    if not groups:
        raise ConfigError("nothing is trained: every parameter is frozen")
    return list(groups.values())


def _decayed(name: str, parameter: nn.Parameter) -> bool:
    last = name.rsplit(".", 1)[-1]
    return last not in NEVER_DECAYED and sum(size > 1 for size in parameter.shape) > 1


def _layer_factors(retriever: nn.Module, config: OptimConfig) -> dict[int, float]:
    factors: dict[int, float] = {}
    for tower, decay in config.layer_decay.items():
        layers = getattr(retriever, tower).layers()
        for position, layer in enumerate(layers):
            for parameter in layer.parameters():
                factors[id(parameter)] = decay ** (len(layers) - 1 - position)
    return factors


def rest(method: nn.Module, prefixes: Sequence[str]) -> None:
    """Take away the gradients of the parameters that rest in this step.

    So neither they nor their moments change, and the norm of the gradient is that of the others.

    Args:
        method: without a wrapper.
        prefixes: of names as in `named_parameters`.

    Raises:
        ValueError: if a prefix fits no parameter.
        ConfigError: under DeepSpeed, which steps all parameters of a group as one.
    """
    fitting = set()
    for name, parameter in method.named_parameters():
        for prefix in prefixes:
            if name == prefix or name.startswith(prefix.rstrip(".") + "."):
                fitting.add(prefix)
                parameter.grad = None
                if parameter.requires_grad and hasattr(parameter, "_hp_mapping"):
                    raise ConfigError(
                        f"{type(method).__name__} lets {prefix} rest, but DeepSpeed steps the "
                        "parameters of a group as one: start with plain data parallelism or FSDP"
                    )
    unknown = [prefix for prefix in prefixes if prefix not in fitting]
    if unknown:
        parts = sorted({name.split(".")[0] for name, _ in method.named_parameters()})
        raise ValueError(
            f"{type(method).__name__}.resting() names {', '.join(unknown)}, which fits no "
            f"parameter; they begin with {', '.join(parts)}"
        )


def build_optimizer(method: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Return AdamW over the parameter groups; its rates are set by `set_lr` at each step."""
    groups = parameter_groups(method, config)
    for group in groups:
        group["lr"] = config.lr * group["lr_factor"]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def lr_factor(step: int, steps: int, config: OptimConfig, drops: int = 0, epochs: int = 0) -> float:
    """Return the factor on `lr` at a step, from 0 on.

    Args:
        step: steps done.
        steps: of the whole run.
        config: warm-up and schedule.
        drops: how often a plateau was met.
        epochs: whole passes over the rows that are done.
    """
    return config.epoch_decay**epochs * _scheduled(step, steps, config, drops)


def _scheduled(step: int, steps: int, config: OptimConfig, drops: int) -> float:
    warmup = config.warmup if config.warmup >= 1 else config.warmup * steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "plateau":
        return config.plateau_factor**drops
    done = min((step - warmup) / max(steps - warmup, 1), 1.0)
    fall = (1 + math.cos(math.pi * done)) / 2 if config.schedule == "cosine" else 1 - done
    return config.min_lr + (1 - config.min_lr) * fall


def begin_moments(optimizer: torch.optim.Optimizer) -> None:
    """Give every parameter the moments that AdamW would give it in its first step.

    It would leave out those that rest, and a checkpoint that lacks some moments can't be loaded.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its share of the learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
