"""Translate-train: a contrastive term for the source caption and for each of its translations."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from xlcm.config import Part
from xlcm.losses.base import PairLoss
from xlcm.losses.info_nce import InfoNCELoss
from xlcm.methods.base import Method
from xlcm.registry import losses
from xlcm.types import Batch, Terms

Weight = Annotated[float, Field(ge=0)]
SOURCE = "source"
TARGETS = "targets."


class TranslateTrain(Method):
    """The sum, over the source language and all targets, of the loss between images and captions.

    The view `targets` is one with `every: true`: all of a row's captions are made from the same
    source caption, and each language has a term of its own, `contrastive.<language>`. The baseline
    that C2KD is compared with, and the way in which its teachers are trained. `Contrastive` draws
    one target language a row instead, which costs less a step with many languages.

    Args:
        retriever: a model with `embed_visual`, `embed_text`, `scale` and `bias`.
        image_loss: of each language; None: InfoNCE, summed over the two directions.
        source_weight: of `contrastive.source`.
        target_weight: of each `contrastive.<language>`.

    Raises:
        ValueError: if both weights are 0, or the retriever has a bias that no loss would train.

    Source: Rouditchenko et al. 2023, https://arxiv.org/abs/2210.03625, its baseline of that name.
    """

    title = "translate_train"
    views: tuple[str, ...] = ("source", "targets")
    retriever: Any

    def __init__(
        self,
        retriever: Any,
        *,
        image_loss: Annotated[PairLoss | None, Part(losses)] = None,
        source_weight: Weight = 1.0,
        target_weight: Weight = 1.0,
    ) -> None:
        super().__init__(retriever)
        self.image_loss = InfoNCELoss(reduction="sum") if image_loss is None else image_loss
        self.source_weight, self.target_weight = source_weight, target_weight
        if not source_weight and not target_weight:
            raise ValueError(f"{self.title}: source_weight and target_weight are both 0")
        weights = {"source": source_weight, "targets": target_weight}
        self.views = tuple(view for view in type(self).views if weights[view])
        self.settle([self.image_loss])

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Return `ids (b,)`, and `image`, `source`, `targets.<language>` `(b, D)` of length 1.

        Where some rows lack a language, `present.targets.<language> (b,)` says which have it.

        Raises:
            ValueError: if the batch lacks images, or captions that a term needs.
        """
        encoded = {"ids": batch.ids, "image": self.retriever.embed_visual(self.visual(batch))}
        names = [SOURCE] if SOURCE in self.views else []
        if "targets" in self.views:
            targets = [name for name in batch.text if name.startswith(TARGETS)]
            if not targets:
                raise ValueError(
                    f"{self.title}: the batch has no captions `targets.<language>`, only "
                    f"{sorted(batch.text)}; add data.views.targets: "
                    "{langs: [...], of: source, every: true}"
                )
            names += targets
        for name in names:
            text = self.captions(batch, name)
            encoded[name] = self.retriever.embed_text(text)
            if text.present is not None:
                encoded[f"present.{name}"] = text.present
        return encoded

    def losses(self, encoded: dict[str, Tensor]) -> Terms:
        """Return `contrastive.source` and `contrastive.<language>` where they have a weight."""
        terms: Terms = {}
        for name in captions(encoded):
            weight = self.source_weight if name == SOURCE else self.target_weight
            self.weights[f"contrastive.{label(name)}"] = weight
            terms[f"contrastive.{label(name)}"] = self.contrast(encoded, name)
        return terms

    def contrast(self, encoded: dict[str, Tensor], name: str) -> Tensor:
        """Return the loss between the images and the captions of one language."""
        return self.between(
            self.image_loss, encoded["image"], encoded[name], encoded["ids"],
            encoded.get(f"present.{name}"),
        )  # fmt: skip


def captions(encoded: dict[str, Tensor]) -> list[str]:
    """Return the names of the languages' embeddings, the source first."""
    return [name for name in encoded if name == SOURCE or name.startswith(TARGETS)]


def label(name: str) -> str:
    """Return what a language is called in the names of terms: `source`, or its code."""
    return name.removeprefix(TARGETS)
