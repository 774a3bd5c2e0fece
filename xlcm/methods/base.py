"""The protocol that training knows of a method: encode each row, then losses over all rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from xlcm.data.dataset import Dataset
from xlcm.data.views import Views
from xlcm.encoders.base import Tokenizer
from xlcm.losses.base import PairLoss
from xlcm.pieces import Pieces
from xlcm.registry import nearest
from xlcm.types import Batch, Terms, TextBatch, Visual


class Retriever(Protocol):
    """What a method with two towers asks of a model; `DualEncoder` has it."""

    @property
    def scale(self) -> Tensor:
        """The inverse temperature, `()`."""
        ...

    @property
    def bias(self) -> Tensor | None:
        """A constant on the similarities, `()`, or None."""
        ...

    def embed_visual(self, visual: Visual) -> Tensor:
        """Return `(b, D)`, L2-normalised."""
        ...

    def embed_text(self, text: TextBatch) -> Tensor:
        """Return `(b, D)`, L2-normalised."""
        ...

    def map_text(self, pooled: Tensor) -> Tensor:
        """Return `(b, D)`, L2-normalised, for what the text tower pooled."""
        ...


class Method(nn.Module):
    """One way to train a retriever: encoders and losses put together.

    A subclass takes the retriever as its positional argument (code hands it over) and its options
    as keyword-only ones (a config may set them), fills `weights` and writes `encode` and `losses`.
    `encode` works row by row and `losses` over the global batch: from this come equal gradients
    on any number of processes, gradient caching, and losses that can be tested on bare tensors.

    Args:
        retriever: what is trained, kept, saved and evaluated.

    Attributes:
        title: its name in messages.
        views: names of the captions that it needs; an instance may need fewer than its class.
        cacheable: whether `losses` only reads what `encode` returned and the retriever's
            temperature, bias and other weights that `encode` doesn't read, and whether rows can be
            stacked whose captions were padded to another length. A method that runs towers again
            in `losses`, or hands it tokens, says False: gradient caching and pieces of like
            length refuse it. It says nothing of layers that look beyond a row, such as batch norm
            in a head: those are found and refused by themselves.
        when_cacheable: what to change in a config so that it is, for the message that refuses it.
        weights: factor of each term in the total; `begin` may change them.
        extra_texts: captions of a view once more, for another tokenizer (a teacher's): name in
            `Batch.text` -> (view, tokenizer).
    """

    title: str = "method"
    views: tuple[str, ...] = ()
    cacheable: bool = True
    when_cacheable: str = "take another method"
    weights: dict[str, float]
    extra_texts: dict[str, tuple[str, Tokenizer]]
    retriever: Any

    def __init__(self, retriever: Any) -> None:
        super().__init__()
        self.retriever = retriever
        self.weights = {}
        self.extra_texts = {}

    @classmethod
    def cacheable_with(cls, options: Mapping[str, Any]) -> bool:
        """Return what `cacheable` will be with a config's options: known before it is built."""
        return cls.cacheable

    def settle(self, used: Iterable[object]) -> None:
        """Bring the model's temperature and bias in line with the losses that have a weight.

        A bias that none would train is refused. A temperature that none uses is no longer
        trained: DDP waits for the gradient of every trained parameter, and it would get none.

        Raises:
            ValueError: for a bias that no loss would train.
        """
        pairs = [loss for loss in used if isinstance(loss, PairLoss)]
        if self.retriever.bias is not None and not any(loss.uses_bias for loss in pairs):
            names = ", ".join(sorted({type(loss).__name__ for loss in pairs})) or "every term"
            raise ValueError(
                f"{self.title}: the model has a bias, but {names} would ignore it; set model.bias "
                "to null, or choose a loss that trains it (sigmoid)"
            )
        log_scale = getattr(self.retriever, "log_scale", None)
        if isinstance(log_scale, nn.Parameter) and not any(loss.uses_scale for loss in pairs):
            log_scale.requires_grad_(False)

    def captions(self, batch: Batch, view: str) -> TextBatch:
        """Return the batch's captions of a view.

        Raises:
            ValueError: if it has none.
        """
        if view not in batch.text:
            raise ValueError(
                f"{self.title}: the batch has no {view!r} captions, only {sorted(batch.text)}; "
                f"add data.views.{view}, or set the weights of the terms that need it to 0"
            )
        return batch.text[view]

    def visual(self, batch: Batch) -> Visual:
        """Return the batch's images.

        Raises:
            ValueError: if it has none.
        """
        if batch.visual is None:
            raise ValueError(f"{self.title}: the batch has no images, but image terms a weight")
        return batch.visual

    def between(
        self,
        loss: PairLoss,
        image: Tensor,
        text: Tensor,
        ids: Tensor,
        present: Tensor | None = None,
    ) -> Tensor:
        """Return a loss between pairs, with the retriever's temperature, and bias if it has one.

        Args:
            loss: which one.
            image: `(b, D)`, or what stands in its place.
            text: `(b, D)`.
            ids: `(b,)`, the items.
            present: `(b,)` bool, rows that have a text; None: all.

        Raises:
            ValueError: if rows lack a text and the loss can't leave them out.
        """
        options: dict[str, Any] = {"group": ids, "scale": self.retriever.scale}
        if loss.uses_bias:
            options["bias"] = self.retriever.bias
        if present is not None:
            if not loss.takes_present:
                raise ValueError(
                    f"{self.title}: some rows lack a caption in a language, and "
                    f"{type(loss).__name__} can't leave them out: take image_loss=info_nce, or "
                    "leave such items out with data.incomplete=drop"
                )
            options["present"] = present
        return loss(image, text, **options)  # type: ignore[no-any-return]

    def begin(self, epoch: float) -> None:
        """Set what depends on the time; the loop calls it before each step.

        Args:
            epoch: passes over the rows that are done, with their fraction.
        """

    def resting(self) -> tuple[str, ...]:
        """Return prefixes of parameters (as in `named_parameters`) whose rate is 0 in this step."""
        return ()

    def remember(
        self,
        dataset: Dataset,
        views: Views,
        *,
        fixed: bool,
        workers: int = 0,
        folder: Path | None = None,
    ) -> None:
        """Compute once what no step changes, such as a frozen teacher's embeddings.

        Called before the first step, on every process.

        Args:
            dataset: the training split.
            views: which of its captions the method will get.
            fixed: whether an item looks the same each time (`Batch.fixed`).
            workers: processes that may read pictures, for each training process.
            folder: where it may be kept for when the run goes on.
        """

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Return named tensors `(b, ...)`, each row computed from its own sample only."""
        raise NotImplementedError

    def losses(self, encoded: dict[str, Tensor]) -> Terms:
        """Return unweighted float32 scalars, one for each name in `weights`.

        Each is this process's share: its mean over processes is the term of the global batch.
        """
        raise NotImplementedError

    def forward(self, batch: Batch | Pieces, *, only_encode: bool = False) -> dict[str, Tensor]:
        """Return the terms of a batch. Training calls this, so that DDP sees a forward pass.

        Args:
            batch: whole, or cut into pieces, which are encoded one after the other and put together
                in the order of the batch: the losses are those of the whole one.
            only_encode: return the rows that `losses` would get instead.
        """
        if isinstance(batch, Pieces):
            parts = [self.encode(piece) for piece in batch.batches]
            encoded = {name: batch.whole([part[name] for part in parts]) for name in parts[0]}
        else:
            encoded = self.encode(batch)
        return encoded if only_encode else self.losses(encoded)

    def total(self, terms: Terms) -> Tensor:
        """Return the weighted sum of the terms: what is differentiated.

        Raises:
            ValueError: if a term has no weight or a weight no term.
        """
        who = type(self).__name__
        for name in terms:
            if name not in self.weights:
                hint = nearest(name, self.weights)
                raise ValueError(
                    f"{who}: term {name!r} has no weight{hint} (weights: {list(self.weights)})"
                )
        missing = [name for name in self.weights if name not in terms]
        if missing or not terms:
            raise ValueError(f"{who}: no term for the weights {missing}; got {list(terms)}")
        return torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
