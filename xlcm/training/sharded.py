"""What the loop must know of parameters that FSDP has spread over the processes."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor

from xlcm.methods.base import Method


def is_sharded(method: nn.Module) -> bool:
    """Return whether processes hold parts of the parameters."""
    return any(
        hasattr(p, "device_mesh") or "_flat_param" in n for n, p in method.named_parameters()
    )


def scalars_to_vectors(method: nn.Module) -> None:
    """Give the temperature and the like one dimension: FSDP refuses scalars."""
    for module in method.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.ndim == 0:
                vector = nn.Parameter(parameter.detach().reshape(1), parameter.requires_grad)
                setattr(module, name, vector)


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
