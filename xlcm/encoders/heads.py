"""From a tower's width to the width of the common space; the model normalises afterwards.

Every head takes both widths first: `build(heads, spec, in_width, out_width)`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import torch
from pydantic import Field
from torch import Tensor, nn

from xlcm.batch_norm import JoinedBatchNorm

Rate: TypeAlias = Annotated[float, Field(ge=0.0, lt=1.0)]
Activation: TypeAlias = Literal["gelu", "relu", "silu", "tanh"]
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


class Head(nn.Module):
    """`(b, in_width)` -> `(b, out_width)`.

    Args:
        in_width: width of the tower.
        out_width: width of the common space.

    Attributes:
        name: its name in the registry.
    """

    name: ClassVar[str]

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.in_width = in_width
        self.out_width = out_width

    def forward(self, pooled: Tensor) -> Tensor:
        """Return the vectors in the common space, not normalised, `(b, out_width)`."""
        raise NotImplementedError

    def spec(self) -> dict[str, Any]:
        """Return the config that rebuilds it, `name` included."""
        return {"name": self.name}


HeadFactory: TypeAlias = Callable[[int, int], Head]
"""What an option marked `Part(heads)` is handed: call it with both widths."""


class IdentityHead(Head):
    """The tower's own vector.

    Raises:
        ValueError: if the widths differ.
    """

    name = "identity"

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__(in_width, out_width)
        if in_width != out_width:
            raise ValueError(
                f"an identity head can't turn width {in_width} into {out_width}; set the model's "
                f"width to {in_width} or choose another head, such as linear"
            )

    def forward(self, pooled: Tensor) -> Tensor:
        """Return the input."""
        return pooled


class LinearHead(Head):
    """[LayerNorm], dropout, one linear layer: CLIP's projection when `bias` is false.

    Args:
        in_width: width of the tower.
        out_width: width of the common space.
        bias: whether the linear layer has one.
        dropout: share of input channels dropped in training, in [0, 1).
        layer_norm: normalise the input first, eps 1e-6.

    Source: Radford et al. 2021, https://arxiv.org/abs/2103.00020, figure 3 (`W_i`, `W_t`).
    """

    name = "linear"

    def __init__(
        self,
        in_width: int,
        out_width: int,
        *,
        bias: bool = True,
        dropout: Rate = 0.0,
        layer_norm: bool = False,
    ) -> None:
        super().__init__(in_width, out_width)
        self._options = {"bias": bias, "dropout": dropout, "layer_norm": layer_norm}
        self.norm = _norm(in_width, layer_norm)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(in_width, out_width, bias=bias)

    def forward(self, pooled: Tensor) -> Tensor:
        """Return the projection, `(b, out_width)`."""
        return self.linear(self.dropout(self.norm(pooled)))

    def spec(self) -> dict[str, Any]:
        """Return the config that rebuilds it, `name` included."""
        return {"name": self.name, **self._options}


class MLPHead(Head):
    """[LayerNorm], then linear layers with an activation and dropout between them.

    Args:
        in_width: width of the tower.
        out_width: width of the common space.
        hidden: width of the inner layers; None: `in_width`.
        layers: number of linear layers, from 2.
        activation: `gelu`, `relu`, `silu` or `tanh`.
        dropout: share of inner channels dropped in training, in [0, 1).
        layer_norm: normalise the input first, eps 1e-6.
        residual: add a linear projection of the (normalised) input to the output.

    Source: Chen et al. 2020, https://arxiv.org/abs/2002.05709, section 4.2 (non-linear head).
    """

    name = "mlp"

    def __init__(
        self,
        in_width: int,
        out_width: int,
        *,
        hidden: Annotated[int, Field(gt=0)] | None = None,
        layers: Annotated[int, Field(ge=2)] = 2,
        activation: Activation = "gelu",
        dropout: Rate = 0.0,
        layer_norm: bool = False,
        residual: bool = False,
    ) -> None:
        super().__init__(in_width, out_width)
        self._options = {
            "hidden": hidden, "layers": layers, "activation": activation, "dropout": dropout,
            "layer_norm": layer_norm, "residual": residual,
        }  # fmt: skip
        self.norm = _norm(in_width, layer_norm)
        widths = [in_width, *[hidden or in_width] * (layers - 1)]
        steps: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            steps += [nn.Linear(before, after), ACTIVATIONS[activation](), nn.Dropout(dropout)]
        self.mlp = nn.Sequential(*steps, nn.Linear(widths[-1], out_width))
        self.shortcut = nn.Linear(in_width, out_width, bias=False) if residual else None

    def forward(self, pooled: Tensor) -> Tensor:
        """Return the mapped vectors, `(b, out_width)`."""
        pooled = self.norm(pooled)
        mapped = self.mlp(pooled)
        return mapped if self.shortcut is None else mapped + self.shortcut(pooled)

    def spec(self) -> dict[str, Any]:
        """Return the config that rebuilds it, `name` included."""
        return {"name": self.name, **self._options}


class BatchNormHead(Head):
    """[Linear layer, activation], linear layer, batch normalisation, dropout.

    Each call in training moves the running statistics and uses those of its own rows, so that
    branches that share a head (source, target, back) are normalised apart, as published. On
    several processes `fit` lets a call see the rows of all of them (`xlcm.batch_norm`).

    Args:
        in_width: width of the tower.
        out_width: width of the common space.
        dropout: share of output channels dropped in training, in [0, 1).
        hidden: width of one more linear layer in front, as NRCCR has behind frozen images; None:
            none.
        activation: behind that layer: `relu` (a frozen CNN) or `none` (a frozen CLIP).

    Source: NRCCR, Wang et al. 2022, https://arxiv.org/abs/2208.12526, its mapping layer as in the
    released code (dropout 0.2; in front 2,048 channels with ReLU for a CNN, 1,024 without for
    CLIP); the L2 norm that follows there belongs to the model here.
    """

    name = "batch_norm"

    def __init__(
        self,
        in_width: int,
        out_width: int,
        *,
        dropout: Rate = 0.2,
        hidden: Annotated[int, Field(gt=0)] | None = None,
        activation: Literal["relu", "none"] = "relu",
    ) -> None:
        super().__init__(in_width, out_width)
        self._options = {"dropout": dropout, "hidden": hidden, "activation": activation}
        self.front = nn.Identity() if hidden is None else _front(in_width, hidden, activation)
        self.linear = nn.Linear(hidden or in_width, out_width)
        self.norm = nn.BatchNorm1d(out_width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, pooled: Tensor) -> Tensor:
        """Return the mapped vectors, `(b, out_width)`.

        Raises:
            ValueError: in training with a single row, which has no variance; on several processes
                if that is all that they have together.
        """
        if self.training and len(pooled) == 1 and not isinstance(self.norm, JoinedBatchNorm):
            raise ValueError(
                "a batch_norm head can't train on a batch of one row: use a larger batch, or "
                "another head"
            )
        return self.dropout(self.norm(self.linear(self.front(pooled))))

    def spec(self) -> dict[str, Any]:
        """Return the config that rebuilds it, `name` included."""
        return {"name": self.name, **self._options}


class GatedUnitHead(Head):
    """Gated embedding unit: `h = W1 x + b1`, then `h * sigmoid(W2 h + b2)`.

    Args:
        in_width: width of the tower.
        out_width: width of the common space.
        dropout: share of input channels dropped in training, in [0, 1).
        layer_norm: normalise the input first, eps 1e-6, as C2KD's text branch does.

    Source: Miech et al. 2018, https://arxiv.org/abs/1804.02516, equations 1 and 2, without the
    final L2 norm; as in C2KD, Rouditchenko et al. 2023, https://arxiv.org/abs/2210.03625.
    """

    name = "gated"

    def __init__(
        self, in_width: int, out_width: int, *, dropout: Rate = 0.0, layer_norm: bool = False
    ) -> None:
        super().__init__(in_width, out_width)
        self._options = {"dropout": dropout, "layer_norm": layer_norm}
        self.norm = _norm(in_width, layer_norm)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(in_width, out_width)
        self.gate = nn.Linear(out_width, out_width)

    def forward(self, pooled: Tensor) -> Tensor:
        """Return the gated vectors, `(b, out_width)`."""
        hidden = self.linear(self.dropout(self.norm(pooled)))
        return hidden * torch.sigmoid(self.gate(hidden))

    def spec(self) -> dict[str, Any]:
        """Return the config that rebuilds it, `name` included."""
        return {"name": self.name, **self._options}


def _front(in_width: int, hidden: int, activation: str) -> nn.Module:
    linear = nn.Linear(in_width, hidden)
    return linear if activation == "none" else nn.Sequential(linear, nn.ReLU())


def _norm(width: int, wanted: bool) -> nn.Module:
    return nn.LayerNorm(width, eps=1e-6) if wanted else nn.Identity()
