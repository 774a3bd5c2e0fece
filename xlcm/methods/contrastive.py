"""Contrastive learning between images and captions of the source and the target language."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from xlcm.config import Part
from xlcm.losses.base import PairLoss
from xlcm.losses.info_nce import InfoNCELoss
from xlcm.methods.base import Method, Retriever
from xlcm.registry import losses
from xlcm.types import Batch, Terms

Weight = Annotated[float, Field(ge=0)]


class Contrastive(Method):
    """Image with source caption, image with target caption, and source with target caption.

    The plain baseline that every method for noisy translations is compared with: each caption is
    trusted as it is. Only terms with a weight are computed, and only their captions are asked for.

    Args:
        retriever: a model with `embed_visual`, `embed_text`, `scale` and `bias`.
        image_loss: between images and captions; None: InfoNCE.
        text_loss: between source and target captions; None: InfoNCE.
        source_weight: of `image_source`.
        target_weight: of `image_target`.
        text_weight: of `source_target`; source captions take the place of the images.

    Raises:
        ValueError: if all weights are 0, or the retriever has a bias that no loss would train.

    Source: Radford et al. 2021, https://arxiv.org/abs/2103.00020, figure 3, once a language; the
    term between two captions of an image: Gella et al. 2017, https://arxiv.org/abs/1707.07601.
    """

    views: tuple[str, ...] = ("source", "target")
    title = "contrastive"
    retriever: Retriever

    def __init__(
        self,
        retriever: Retriever,
        *,
        image_loss: Annotated[PairLoss | None, Part(losses, "info_nce")] = None,
        text_loss: Annotated[PairLoss | None, Part(losses, "info_nce")] = None,
        source_weight: Weight = 1.0,
        target_weight: Weight = 1.0,
        text_weight: Weight = 0.0,
    ) -> None:
        super().__init__(retriever)
        self.image_loss = InfoNCELoss() if image_loss is None else image_loss
        self.text_loss = InfoNCELoss() if text_loss is None else text_loss
        weights = {
            "image_source": source_weight,
            "image_target": target_weight,
            "source_target": text_weight,
        }
        self.weights = {name: weight for name, weight in weights.items() if weight > 0}
        if not self.weights:
            raise ValueError("contrastive: source_weight, target_weight and text_weight are all 0")
        self._uses_image = source_weight > 0 or target_weight > 0
        wanted = {side for name in self.weights for side in name.split("_")}
        self.views = tuple(view for view in type(self).views if view in wanted)
        self._check_losses()

    def _check_losses(self) -> None:
        used = [self._loss(name) for name in self.weights]
        for loss in used:
            if not isinstance(loss, PairLoss):
                raise TypeError(f"contrastive: {type(loss).__name__} is not a loss between pairs")
        self.settle(used)

    def _loss(self, term: str) -> PairLoss:
        return self.text_loss if term == "source_target" else self.image_loss

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Return `ids (b,)` and the embeddings `(b, D)` that the terms need.

        Keys: `image`, `source`, `target`, as far as a term with a weight uses them.

        Raises:
            ValueError: if the batch lacks images or captions that a term needs.
        """
        encoded = {"ids": batch.ids}
        if self._uses_image:
            encoded["image"] = self.retriever.embed_visual(self.visual(batch))
        for view in self.views:
            encoded[view] = self.retriever.embed_text(self.captions(batch, view))
        return encoded

    def losses(self, encoded: dict[str, Tensor]) -> Terms:
        """Return the terms with a weight: `image_source`, `image_target`, `source_target`."""
        terms: Terms = {}
        for name in self.weights:
            left, right = name.split("_")
            terms[name] = self.between(
                self._loss(name), encoded[left], encoded[right], encoded["ids"]
            )
        return terms
