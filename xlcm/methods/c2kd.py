"""C2KD: in every language, the batch's similarities shall look as English teachers see them.

teachers, frozen:  similarities of source captions and images, one matrix each ─► pooled: Q
student:           similarities S_l of the captions of language l and the images
in each language:  lambda * contrastive(S_l) + (1 - lambda) * KL(softmax(Q / T) || softmax(S_l / T))
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from xlcm.config import Part
from xlcm.data.dataset import Dataset
from xlcm.data.views import Views
from xlcm.losses.base import PairLoss
from xlcm.losses.similarity_distillation import SimilarityDistillationLoss, Taught
from xlcm.methods.translate_train import SOURCE, TranslateTrain, captions, label
from xlcm.models.teacher import Teacher
from xlcm.registry import losses
from xlcm.types import Batch, Terms

Pool = Literal["max", "min", "mean"]
POOLS: tuple[Pool, ...] = ("max", "min", "mean")


class C2KD(TranslateTrain):
    """Contrastive and distillation term in each language, with any number of frozen teachers.

    Row i of every language says the same as row i of the source (`every: true` in the view
    `targets`), so one target, made of source captions and images, serves them all. Teachers are
    models that were trained and saved before, by any method and with any encoders; usually they
    are the first stages of the same config. What they make of a caption or an unchanged image is
    computed once and looked up.

    Args:
        retriever: a model with `embed_visual`, `embed_text`, `scale` and `bias`.
        teachers: folders of saved models, `stage:NAME` for stages of the same config.
        image_loss: contrastive loss of each language; None: InfoNCE, summed over both directions.
        contrastive_share: lambda: weight of each contrastive term; the distillation has the rest.
            With 1 there is none, and no teacher is opened, unless its weights are learned; with 0
            the temperature is not trained.
        count_source_twice: add the source's contrastive term once more, as released.
        temperature: T, of teachers and student in the distillation.
        pool: over teachers, elementwise, of cosines. Named by what is done: the released code
            takes the maximum where its command line says min, and the minimum for max.
        divergence: `kl`; `cross_entropy`, which adds the teachers' entropy and has the same
            gradient; `smooth_l1` between the cosines themselves, as in TeachText.
        targets: `pooled`; `multitask`: one distillation term a teacher, added; `learned`: a
            softmax over learned weights of teachers, without the factor 1 - lambda, as released;
            `learned_pools`: the same over the three ways of pooling (the released code keeps the
            mean alone by mistake). The released rate of these weights is 1e-2:
            `optim.lr_scale={target_logits: ...}`.

    Raises:
        ValueError: for no teacher, or one whose images, features or languages don't fit.

    Source: Rouditchenko et al. 2023, https://arxiv.org/abs/2210.03625, and its released code;
    smooth L1 on similarities: Croitoru et al. 2021, https://arxiv.org/abs/2104.08271.
    """

    title = "c2kd"

    def __init__(
        self,
        retriever: Any,
        *,
        teachers: Annotated[list[str], Field(min_length=1)],
        image_loss: Annotated[PairLoss | None, Part(losses)] = None,
        contrastive_share: Annotated[float, Field(ge=0, le=1)] = 0.5,
        count_source_twice: bool = True,
        temperature: Annotated[float, Field(gt=0)] = 0.1,
        pool: Pool = "max",
        divergence: Literal["kl", "cross_entropy", "smooth_l1"] = "kl",
        targets: Literal["pooled", "multitask", "learned", "learned_pools"] = "pooled",
    ) -> None:
        super().__init__(retriever, image_loss=image_loss)
        self.contrastive_share = contrastive_share
        self.source_share = contrastive_share * (2 if count_source_twice else 1)
        learned = {"learned": len(teachers), "learned_pools": len(POOLS)}.get(targets, 0)
        self.target_logits = nn.Parameter(torch.full((learned,), 1 / learned)) if learned else None
        self.distilled_share = 1.0 if learned else 1 - contrastive_share
        self.mode = targets
        self.distillations = [
            SimilarityDistillationLoss(
                temperature=temperature, divergence=divergence, pool=one, reduction="sum"
            )
            for one in (POOLS if targets == "learned_pools" else (pool,))
        ]
        self.teachers = [
            Teacher(source, number)
            for number, source in enumerate(teachers if self.distilled_share else [])
        ]
        for teacher in self.teachers:
            teacher.refuse_misfit(retriever)
        self.extra_texts = {
            teacher.text_name: (SOURCE, teacher.model.text.tokenizer) for teacher in self.teachers
        }
        if not contrastive_share:
            self.settle([])

    def remember(
        self,
        dataset: Dataset,
        views: Views,
        *,
        fixed: bool,
        workers: int = 0,
        folder: Path | None = None,
    ) -> None:
        """Let the teachers embed the source captions, and the images where they stay the same.

        Raises:
            ValueError: for a teacher that doesn't know the source's language, or cuts its captions.
        """
        device = next(self.retriever.parameters()).device
        for teacher in self.teachers:
            teacher.refuse_languages(views.views[SOURCE].langs)
            teacher.to(device).remember(
                dataset, views, SOURCE, images=fixed, workers=workers, folder=folder
            )
        self.extra_texts = {}  # no teacher reads a caption again

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Return the student's rows, and `teacher<k>.text`, `teacher<k>.image` `(b, D_k)`.

        The student's are those of `TranslateTrain.encode`; the teachers' have no gradient.
        """
        encoded = super().encode(batch)
        for teacher in self.teachers:
            text, image = teacher(batch, SOURCE)
            encoded |= {f"{teacher.text_name}.text": text, f"{teacher.text_name}.image": image}
        return encoded

    def losses(self, encoded: dict[str, Tensor]) -> Terms:
        """Return `contrastive.<language>` and `distillation.<language>`, `source` among them."""
        terms: Terms = {}
        targets = self._targets(encoded) if self.distilled_share else []  # once for all languages
        for name in captions(encoded):
            share = self.source_share if name == SOURCE else self.contrastive_share
            if share:
                self.weights[f"contrastive.{label(name)}"] = share
                terms[f"contrastive.{label(name)}"] = self.contrast(encoded, name)
            if self.distilled_share:
                self.weights[f"distillation.{label(name)}"] = self.distilled_share
                terms[f"distillation.{label(name)}"] = self._distil(encoded, name, targets)
        return terms

    def _targets(self, encoded: dict[str, Tensor]) -> list[Taught]:
        pairs = [
            (encoded[f"{teacher.text_name}.text"], encoded[f"{teacher.text_name}.image"])
            for teacher in self.teachers
        ]
        if self.mode in ("multitask", "learned"):
            return [self.distillations[0].targets([pair]) for pair in pairs]
        return [distillation.targets(pairs) for distillation in self.distillations]

    def _distil(self, encoded: dict[str, Tensor], name: str, targets: list[Taught]) -> Tensor:
        text, image, present = encoded[name], encoded["image"], encoded.get(f"present.{name}")
        each = torch.stack(
            [self.distillations[0](text, image, target, present) for target in targets]
        )
        if self.target_logits is None:
            return each.sum()
        return (self.target_logits.softmax(0) * each).sum()
