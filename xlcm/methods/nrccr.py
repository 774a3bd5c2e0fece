"""NRCCR: captions by machine translation, with four guards against their mistakes.

image ─────────────────────────────► v ◄── triplet ──► s            (image_source)
source ─► states ─► block ─► mean ─► s                              human caption
target ─► states ─► block ─► mean ─► t ◄── triplet ──► v            (image_target)
source asks target ─► cross block ─► h                              the teacher, in training alone
                                     h ──► t   over the images of the batch    (similarity)
                                     h ──► t   vector to vector                (feature)
back ───► states ─► block ─► mean ─► b ◄── triplet ──► s            (cycle)
states of target ─► discriminator: may it tell the language?        (adversarial)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from xlcm.config import Part
from xlcm.encoders.base import masked
from xlcm.encoders.text_refined import RefinedTextEncoder
from xlcm.losses.adversarial import discriminator_loss, fooling_loss
from xlcm.losses.base import PairLoss, widen
from xlcm.losses.feature_distillation import FeatureDistillationLoss
from xlcm.losses.similarity_distillation import SimilarityDistillationLoss
from xlcm.losses.triplet import TripletLoss
from xlcm.methods.base import Method
from xlcm.models.discriminator import Discriminator
from xlcm.models.opponent import Opponent
from xlcm.registry import losses
from xlcm.types import Batch, Encoded, Terms

Weight = Annotated[float, Field(ge=0)]


class NRCCR(Method):
    """Ranking losses, distillation from a cross-attended teacher, cycle loss, and a discriminator.

    All captions go through one text tower, a `RefinedTextEncoder`. The teacher `h` is what its
    attention block makes of the target caption when the source caption asks; what the translation
    got wrong finds no question. The defaults are the released ones, but for padding and for
    captions of one image (see `legacy_padding` of the tower and `legacy_same_image` of the triplet
    loss).

    Only terms with a weight are computed, and only what they read (`ROWS`) is asked for: no
    images where no term compares with them, `back` for `cycle` alone, the teacher's cross block
    for `similarity`, `feature` and `image_teacher` alone; without `adversarial` there is no
    discriminator. A caption that is read gets its vector, whether or not a term uses it: the
    source's for distillation and both for `adversarial` still move a batch-norm head's averages.
    The discriminator pads as the tower does: it takes `legacy_padding`
    from there. `cacheable` is False for the `strong` one, which reads tokens.

    Args:
        retriever: a `DualEncoder` whose text tower is `refined`.
        pair_loss: of `image_source`, `image_target` and `cycle`; None: the triplet loss with the
            hardest negatives, margin 0.2, summed over the batch.
        source_weight: of `image_source`.
        target_weight: of `image_target`.
        similarity_weight: of `similarity`.
        feature_weight: of `feature`.
        cycle_weight: of `cycle`.
        adversarial_weight: of `adversarial`.
        teacher_weight: of `image_teacher`, which trains the teacher itself. Ours: as published,
            nothing but a vanishing feature term does, and the teacher lives on what pretraining
            has put into the tower. A tower that is trained from scratch needs it.
        temperature: of the two similarity distributions.
        similarity_detach_image: whether the images' vectors are constants in the teacher's
            distribution. The released code lets gradient through; the teacher's text gets none.
        feature_beta: where the feature distance turns from square to linear.
        feature_reduction: `mean` over rows and channels, as released, is tiny for unit vectors
            (at most 4 / (8 width)); `sum` over channels, mean over rows, is not.
        feature_detach_teacher: pull the student alone. The released code pulls both.
        concatenate: pool the teacher over the target's states too, as released.
        residual: add the source's states to the teacher's. Not so in the released code.
        discriminator: its strength.
        discriminator_lr: rate of its own Adam.

    Raises:
        ValueError: if the text tower is another one, all weights are 0, or the retriever has a
            bias that no loss would train.

    Source: Wang et al. 2022, https://arxiv.org/abs/2208.12526, and its released code.
    """

    title = "nrccr"
    when_cacheable = "set method.discriminator to not_so_weak or weak, which read means of tokens"
    views: tuple[str, ...] = ("source", "target", "back")
    retriever: Any

    def __init__(
        self,
        retriever: Any,
        *,
        pair_loss: Annotated[PairLoss | None, Part(losses)] = None,
        source_weight: Weight = 1.0,
        target_weight: Weight = 0.6,
        similarity_weight: Weight = 0.4,
        feature_weight: Weight = 0.1,
        cycle_weight: Weight = 0.5,
        adversarial_weight: Weight = 0.001,
        teacher_weight: Weight = 0.0,
        temperature: Annotated[float, Field(gt=0)] = 0.07,
        similarity_detach_image: bool = False,
        feature_beta: Annotated[float, Field(gt=0)] = 4.0,
        feature_reduction: Literal["mean", "sum"] = "mean",
        feature_detach_teacher: bool = False,
        concatenate: bool = True,
        residual: bool = False,
        discriminator: Literal["weak", "not_so_weak", "strong"] = "not_so_weak",
        discriminator_lr: Annotated[float, Field(gt=0)] = 1e-3,
    ) -> None:
        super().__init__(retriever)
        tower = retriever.text
        if not isinstance(tower, RefinedTextEncoder):
            raise ValueError(
                f"nrccr: the text tower is a {type(tower).__name__}, but the teacher needs the "
                "attention block of `refined`: model.text={name: refined, encoder: ...}"
            )
        weights = {
            "image_source": source_weight,
            "image_target": target_weight,
            "similarity": similarity_weight,
            "feature": feature_weight,
            "cycle": cycle_weight,
            "adversarial": adversarial_weight,
            "image_teacher": teacher_weight,
        }
        self.weights = {name: weight for name, weight in weights.items() if weight > 0}
        if not self.weights:
            raise ValueError("nrccr: all weights are 0")
        self.has_teacher = bool({"similarity", "feature", "image_teacher"} & set(self.weights))
        needed = {row for term in self.weights for row in ROWS[term]}
        self.has_image = "image" in needed
        self.views = tuple(view for view in type(self).views if view in needed)
        self.pair_loss = TripletLoss(reduction="sum") if pair_loss is None else pair_loss
        self.similarity = SimilarityDistillationLoss(
            temperature=temperature, divergence="cross_entropy", detach_teacher=False
        )
        self.similarity_detach_image = similarity_detach_image
        self.feature = FeatureDistillationLoss(
            beta=feature_beta, reduction=feature_reduction, detach_teacher=feature_detach_teacher
        )
        self.concatenate, self.residual = concatenate, residual
        self.opponent: Opponent | None = None
        if adversarial_weight > 0:
            judge = Discriminator(
                tower.inner_width, strength=discriminator, legacy_padding=tower.legacy_padding
            )
            self.opponent = Opponent(judge, lr=discriminator_lr)
            self.summarise = None if judge.needs_tokens else judge.summarise
            # tokens of rows with other lengths can't be stacked as embeddings can
            self.cacheable = not judge.needs_tokens
        self.settle([self.pair_loss] if set(PAIRS) & set(self.weights) else [])

    @classmethod
    def cacheable_with(cls, options: Mapping[str, Any]) -> bool:
        """Return whether no loss reads the tokens of a row."""
        strong = options.get("discriminator") == "strong"
        return not strong or options.get("adversarial_weight") == 0

    # -- rows -----------------------------------------------------------------------------------

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Return `ids (b,)` and, as far as terms with a weight use them, the rows below.

        `image`, `source`, `target`, `teacher`, `back` `(b, D)` of length 1; for the discriminator
        `source_states`, `target_states` `(b, width)`, or `(b, L, width)` with `source_mask`,
        `target_mask` `(b, L)` for the strong one.

        Raises:
            ValueError: if the batch lacks images or captions that a term needs.
        """
        tower = self.retriever.text
        encoded = {"ids": batch.ids}
        if self.has_image:
            encoded["image"] = self.retriever.embed_visual(self.visual(batch))
        texts = {view: self.captions(batch, view) for view in self.views}
        states = {view: tower.states(text) for view, text in texts.items()}
        projected = {view: tower.project(state) for view, state in states.items()}
        # source, target, teacher, back: the head's batch norm averages over its calls in this order
        for view in ("source", "target"):
            if view in self.views:
                encoded[view] = self._embed(projected[view], states[view])
        if self.has_teacher:
            crossed = tower.cross(
                projected["source"], _mask(states["source"]),
                projected["target"], _mask(states["target"]),
                concatenate=self.concatenate, residual=self.residual,
            )  # fmt: skip
            encoded["teacher"] = self.retriever.map_text(crossed)
        if "back" in self.views:
            encoded["back"] = self._embed(projected["back"], states["back"])
        if self.opponent is not None:
            for view in ("source", "target"):
                encoded |= self._for_opponent(view, states[view])
        return encoded

    def _embed(self, projected: Tensor, states: Encoded) -> Tensor:
        pooled = self.retriever.text.refine(projected, _mask(states)).pooled
        return self.retriever.map_text(pooled)  # type: ignore[no-any-return]

    def _for_opponent(self, name: str, states: Encoded) -> dict[str, Tensor]:
        assert states.tokens is not None
        if self.summarise is not None:
            return {f"{name}_states": self.summarise(states.tokens, _mask(states))}
        return {f"{name}_states": states.tokens, f"{name}_mask": _mask(states)}

    # -- losses ---------------------------------------------------------------------------------

    def losses(self, encoded: dict[str, Tensor]) -> Terms:
        """Return the terms with a weight; in training the discriminator takes its step first."""
        terms: Terms = {}
        for name, (left, right) in PAIRS.items():
            if name in self.weights:
                terms[name] = self.between(
                    self.pair_loss, encoded[left], encoded[right], encoded["ids"]
                )
        if "similarity" in self.weights:
            image = encoded["image"]
            teacher_image = image.detach() if self.similarity_detach_image else image
            targets = self.similarity.targets([(encoded["teacher"].detach(), teacher_image)])
            terms["similarity"] = self.similarity(encoded["target"], image, targets)
        if "feature" in self.weights:
            terms["feature"] = self.feature(encoded["target"], encoded["teacher"])
        if self.opponent is not None:
            terms["adversarial"] = self._adversarial(self.opponent, encoded)
        return terms

    def _adversarial(self, opponent: Opponent, encoded: dict[str, Tensor]) -> Tensor:
        with torch.autocast(encoded["ids"].device.type, enabled=False):
            source, target = (
                [
                    widen(encoded[key])
                    for key in (f"{name}_states", f"{name}_mask")
                    if key in encoded
                ]
                for name in ("source", "target")
            )
            if self.training:
                real, fake = [s.detach() for s in source], [t.detach() for t in target]
                opponent.step(lambda run: discriminator_loss(run(*real), run(*fake)))
            return fooling_loss(opponent(*target))


PAIRS = {
    "image_source": ("image", "source"),
    "image_target": ("image", "target"),
    "image_teacher": ("image", "teacher"),
    "cycle": ("back", "source"),
}
"""Terms of the pair loss: what stands in the images' place, and the captions."""

ROWS = {
    "image_source": ("image", "source"),
    "image_target": ("image", "target"),
    "image_teacher": ("image", "source", "target"),
    "similarity": ("image", "source", "target"),
    "feature": ("source", "target"),
    "cycle": ("source", "back"),
    "adversarial": ("source", "target"),
}
"""What each term reads of a batch; the teacher is made of source and target."""


def _mask(states: Encoded) -> Tensor:
    assert states.tokens is not None
    return masked(states.tokens, states.mask)
