"""What loop and checkpoints must know of parameters and moments spread over the processes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from torch.distributed.tensor import DTensor

from xlcm.methods.base import Method
from xlcm.training.zero import ZeroOptimizer, lower

STACKS = (nn.ModuleList, nn.Sequential)
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def is_fsdp2(accelerator: Accelerator) -> bool:
    """Return whether weights are spread by FSDP 2."""
    if accelerator.distributed_type != DistributedType.FSDP:
        return False
    return getattr(accelerator.state.fsdp_plugin, "fsdp_version", 1) == 2


def is_sharded(method: nn.Module) -> bool:
    """Return whether processes hold parts of the parameters."""
    return any(
        hasattr(p, "device_mesh") or "_flat_param" in n for n, p in method.named_parameters()
    )


def ready_to_shard(accelerator: Accelerator, method: Method) -> nn.Module | None:
    """Prepare a method for FSDP, if there is any; return a copy of its retriever as it is now."""
    if accelerator.distributed_type != DistributedType.FSDP:
        return None
    shadow: nn.Module = copy.deepcopy(method.retriever)
    scalars_to_vectors(method)
    name_blocks(accelerator, method)
    if is_fsdp2(accelerator):
        # accelerate would gather weights in half precision, the temperature too, and return such
        # losses; and it can't lower pixels or features that come in a `Batch`
        accelerator.state.fsdp_plugin.mixed_precision_policy = None
        lower(method, accelerator)
    return shadow


def scalars_to_vectors(method: nn.Module) -> None:
    """Give the temperature and the like one dimension: FSDP refuses scalars."""
    for module in method.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.ndim == 0:
                vector = nn.Parameter(parameter.detach().reshape(1), parameter.requires_grad)
                setattr(module, name, vector)


def name_blocks(accelerator: Accelerator, method: nn.Module) -> None:
    """Have FSDP make a unit of each block of the towers, where its config asks for units.

    A unit's weights are gathered when its turn comes and given up behind it. Blocks are what a
    network has several of in a row, and is made of parts itself; accelerate would know them of
    models that are transformers' own, and of this one takes the names of their classes.

    Args:
        accelerator: with FSDP. Another policy than `TRANSFORMER_BASED_WRAP`, or names that the
            config gives, stay.
        method: not yet prepared.
    """
    plugin = accelerator.state.fsdp_plugin
    if plugin.auto_wrap_policy is not transformer_auto_wrap_policy:
        return
    if not plugin.transformer_cls_names_to_wrap:
        plugin.transformer_cls_names_to_wrap = sorted(
            {
                type(entry).__name__
                for stack in method.modules()
                if isinstance(stack, STACKS) and len(stack) > 1
                for entry in stack
                if not isinstance(entry, STACKS) and any(True for _ in entry.children())
            }
        )


def value_of(figure: Any) -> float:
    """Return a figure of which FSDP may have left each process a part."""
    return float(figure.full_tensor() if isinstance(figure, DTensor) else figure)


def whole_retriever(method: nn.Module, plain: Method, shadow: nn.Module | None) -> Any:
    """Return the retriever with the weights of now; every process calls it.

    Args:
        method: as prepared by accelerate.
        plain: the same without a wrapper.
        shadow: under FSDP a copy of the retriever made before it was sharded, which is filled
            and returned; None: there is nothing to gather.
    """
    if shadow is None:
        return plain.retriever
    options = StateDictOptions(full_state_dict=True)
    whole: dict[str, Any] = get_model_state_dict(method, options=options)
    prefix = "retriever."
    shadow.load_state_dict(
        {k.removeprefix(prefix): v for k, v in whole.items() if k.startswith(prefix)}
    )
    return shadow.to(next(iter(whole.values())).device)


def set_free(retriever: Any) -> Any:
    """Return it with memory of its own for each weight that ZeRO had laid into a larger piece.

    So it can be saved, and holds on to no more than it is.
    """
    for parameter in retriever.parameters():
        if hasattr(parameter, "_hp_mapping"):
            parameter.data = parameter.data.clone()
    return retriever


# -- what a checkpoint holds ---------------------------------------------------------------------


def whole_state(model: nn.Module, optimizer: Any) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return weights and moments by the parameters' names, whole; every process calls it.

    Args:
        model: as prepared by accelerate.
        optimizer: the same.
    """
    if isinstance(optimizer, ZeroOptimizer):
        return optimizer.whole_state()
    return get_state_dict(model, getattr(optimizer, "optimizer", optimizer), options=WHOLE)


def names_of_state(model: nn.Module) -> list[str]:
    """Return the names of the weights that `whole_state` gives."""
    return list(get_model_state_dict(getattr(model, "module", model)))


def fill_state(
    model: nn.Module, optimizer: Any, weights: Mapping[str, Any], moments: Mapping[str, Any]
) -> None:
    """Take over what `whole_state` returned, on this or another number of processes.

    Raises:
        KeyError, RuntimeError: if it is that of another model.
    """
    if isinstance(optimizer, ZeroOptimizer):
        optimizer.fill(weights, moments)
        return
    set_state_dict(
        model,
        getattr(optimizer, "optimizer", optimizer),
        model_state_dict=cast("dict[str, Any]", weights),
        optim_state_dict=cast("Any", moments),
        options=WHOLE,
    )
