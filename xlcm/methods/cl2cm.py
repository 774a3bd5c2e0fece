"""CL2CM-style transfer: which caption fits which, as a text-only network sees it, taught to images.

 cross-lingual network (text alone)              cross-modal network (kept)
 source ─► a    target ─► b                      image ─► v   source ─► s   target ─► t
 sentence:  contrastive(a, b)                    image_source: contrastive(v, s)
 word:      words of a against words of b,       image_target: (1 - w) contrastive(v, t)
            by optimal transport
                    softmax(a . b)  ──────────►  distillation: w KL(softmax(a . b), softmax(v . t))

A reconstruction: the paper's equations and settings were not available. docs/methods/cl2cm.md says
what is published and what is ours.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor

from xlcm.config import Part
from xlcm.data.dataset import Dataset
from xlcm.data.document_frequency import inverse_document_frequency
from xlcm.data.views import Views
from xlcm.encoders.heads import HeadFactory, LinearHead
from xlcm.losses.base import PairLoss
from xlcm.losses.info_nce import InfoNCELoss
from xlcm.losses.relation_distillation import RelationDistillationLoss
from xlcm.losses.word_alignment import WordAlignmentLoss
from xlcm.methods.base import Method
from xlcm.models.cross_lingual import CrossLingualNetwork, Words, gather_words
from xlcm.registry import heads, losses
from xlcm.types import Batch, Encoded, Terms

Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Relation = Literal["target_image", "target_target", "image_image"]


class CL2CM(Method):
    """Contrastive cross-modal learning with the relations of a cross-lingual network as targets.

    The cross-lingual network has an encoder of its own, a copy of the retriever's text tower as
    it was at the start; it is thrown away after training. While it learns it is in training mode,
    as a teacher too: with dropout in its tower the relations that it teaches are noisy, and one
    that rests (`afterwards=freeze`, or no weight) teaches without. Predicting masked words by
    pointing at their translations, another way to learn from plans, is left out.

    Args:
        retriever: a model with `embed_visual`, `embed_text`, `scale` and `bias`; words need a
            text tower that returns tokens.
        image_loss: of `image_source`, `image_target` and `source_target`; None: InfoNCE.
        source_weight: of `image_source`.
        target_weight: of `image_target`; what distillation takes is subtracted.
        text_weight: of `source_target`: source and target captions in the cross-modal network.
        distillation_weight: w: of `distillation`; the share of it that replaces `image_target`.
        warmup_epochs: over which w rises from 0; counted from the end of the first stage.
        sentence_weight: of `sentence`; with 0 the cross-lingual head stays as it starts, and with
            `word_weight` 0 too the whole network: a fixed teacher.
        word_weight: of `word`.
        cross_lingual_width: of the cross-lingual sentence vectors; None: the retriever's width.
        cross_lingual_head: from its tower to them.
        cross_lingual_temperature: of the sentence level.
        share_encoder: use the retriever's text tower for both networks, with a head of their own.
        average_pieces: align words and not word pieces.
        word_loss: `pseudo_label`: transport plans as labels of a word-to-word softmax;
            `ot_distance`: the transport cost itself.
        solver: of the transport plan.
        marginals: mass of each word: alike, by the length of its vector, or by the inverse
            document frequency of its piece (of the mean over its pieces, if averaged) in the
            training captions of its view, counted before the first step.
        epsilon: entropic regularisation of `sinkhorn`.
        iterations: of the solver.
        threshold: least confidence of a pseudo-label.
        word_temperature: of the word-to-word softmax.
        temperature: of the distributions in the distillation.
        teacher_temperature: of the teacher's ones; None: `temperature`.
        direction: of the distillation: both, or one of them.
        teacher_mix: share of the identity in the teacher's distribution.
        detach_teacher: whether the distillation leaves the cross-lingual network alone; if not, it
            trains that one too.
        word_score: gamma: add gamma (1 - transport distance of the words) to the teacher's
            similarity of a source and a target caption, without gradient. Costs a transport plan
            for each of the B x B pairs of the global batch in each step, where the word level
            needs B, memory for the words of all processes, and gradient caching.
        relations: what is taught: `target_image` (source to target captions, for images to target
            captions); further `target_target` (among target captions) and `image_image` (among
            source captions, for images); the mean of those named.
        schedule: `joint`: both networks from the first step; `staged`: the cross-lingual network
            alone for `cross_lingual_epochs`, then the other.
        cross_lingual_epochs: length of the first stage.
        afterwards: what the cross-lingual network does in the second stage: `continue` to learn,
            or `freeze`. What rests is in evaluation mode.

    Raises:
        ValueError: if all weights are 0, the encoder is shared or nothing trains the cross-lingual
            network in a staged schedule, the retriever has a bias that no loss would train, a
            relation is named twice, or nothing would use `word_score`.

    Source: reconstruction after the abstract of Wang et al. 2024,
    https://arxiv.org/abs/2312.08984; the replacement form of the total follows the same group's
    LECCR, Wang et al. 2024, https://arxiv.org/abs/2409.19961.
    """

    title = "cl2cm"
    when_cacheable = "set method.word_score to 0"
    views: tuple[str, ...] = ("source", "target")
    retriever: Any
    idf: Tensor | None

    def __init__(
        self,
        retriever: Any,
        *,
        image_loss: Annotated[PairLoss | None, Part(losses)] = None,
        source_weight: Weight = 1.0,
        target_weight: Weight = 1.0,
        text_weight: Weight = 0.0,
        distillation_weight: Share = 0.5,
        warmup_epochs: Annotated[float, Field(ge=0)] = 1.0,
        sentence_weight: Weight = 1.0,
        word_weight: Weight = 0.1,
        cross_lingual_width: Annotated[int, Field(gt=0)] | None = None,
        cross_lingual_head: Annotated[HeadFactory, Part(heads, "linear")] = LinearHead,
        cross_lingual_temperature: Annotated[float, Field(gt=0)] = 0.07,
        share_encoder: bool = False,
        average_pieces: bool = False,
        word_loss: Literal["pseudo_label", "ot_distance"] = "pseudo_label",
        solver: Literal["sinkhorn", "ipot"] = "sinkhorn",
        marginals: Literal["uniform", "norm", "idf"] = "uniform",
        epsilon: Annotated[float, Field(gt=0)] = 0.1,
        iterations: Annotated[int, Field(gt=0)] = 50,
        threshold: Share = 0.5,
        word_temperature: Annotated[float, Field(gt=0)] = 0.1,
        temperature: Annotated[float, Field(gt=0)] = 0.07,
        teacher_temperature: Annotated[float, Field(gt=0)] | None = None,
        direction: Literal["both", "image_to_target", "target_to_image"] = "both",
        teacher_mix: Share = 0.0,
        detach_teacher: bool = True,
        word_score: Weight = 0.0,
        relations: Annotated[list[Relation], Field(min_length=1)] = ["target_image"],  # noqa: B006
        schedule: Literal["joint", "staged"] = "joint",
        cross_lingual_epochs: Annotated[float, Field(gt=0)] = 1.0,
        afterwards: Literal["continue", "freeze"] = "continue",
    ) -> None:
        super().__init__(retriever)
        self.image_loss = InfoNCELoss() if image_loss is None else image_loss
        self.sentence_loss = InfoNCELoss()
        self.sentence_scale = 1 / cross_lingual_temperature
        self.word_loss = WordAlignmentLoss(
            word_loss=word_loss, solver=solver, marginals=marginals, epsilon=epsilon,
            iterations=iterations, threshold=threshold, temperature=word_temperature,
        )  # fmt: skip
        self.relation_loss = RelationDistillationLoss(
            temperature=temperature,
            teacher_temperature=teacher_temperature,
            teacher_mix=teacher_mix,
            detach_teacher=detach_teacher,
            direction=DIRECTIONS[direction],
        )
        self.relations = list(relations)
        if len(set(relations)) < len(relations):
            raise ValueError(f"cl2cm: relations {self.relations} name one twice: once is enough")
        self.distillation_weight, self.target_weight = distillation_weight, target_weight
        self.warmup_epochs = warmup_epochs
        self.first_stage = cross_lingual_epochs if schedule == "staged" else 0.0
        self.afterwards = afterwards
        weights = {
            "image_source": source_weight,
            "image_target": target_weight,
            "source_target": text_weight,
            "sentence": sentence_weight,
            "word": word_weight,
            "distillation": distillation_weight,
        }
        self.full = {name: weight for name, weight in weights.items() if weight > 0}
        if not self.full:
            raise ValueError("cl2cm: all weights are 0")
        if schedule == "staged" and share_encoder:
            raise ValueError("cl2cm: a shared encoder can't rest while it is trained: joint")
        own = bool({"sentence", "word"} & set(self.full))  # terms of the cross-lingual network
        taught = "distillation" in self.full and not detach_teacher  # it learns from the other
        self.learns = own or taught
        if schedule == "staged" and not own:
            raise ValueError(
                "cl2cm: the first stage trains the cross-lingual network alone, but "
                "sentence_weight and word_weight are 0: schedule=joint"
            )
        self.crosses = bool({"sentence", "word", "distillation"} & set(self.full))
        self.word_score = word_score
        if word_score and ("distillation" not in self.full or "target_image" not in relations):
            raise ValueError(
                "cl2cm: word_score is part of what the relation target_image teaches: add it to "
                "relations and give distillation_weight a weight, or set word_score to 0"
            )
        self.reads_words = "word" in self.full or word_score > 0
        # words of rows with other lengths can't be stacked as embeddings can
        self.cacheable = not word_score
        self.register_buffer("idf", None, persistent=False)
        self.needs_idf = marginals == "idf" and self.reads_words
        if self.reads_words and not getattr(retriever.text, "returns_tokens", True):
            raise ValueError(NO_WORDS)
        sides = {side for term in self.full for side in PAIRS.get(term, ())}
        self.has_image = "image" in sides or "distillation" in self.full
        self.views = tuple(v for v in type(self).views if v in sides or self.crosses)
        self.share_encoder = share_encoder
        self.cross_lingual: CrossLingualNetwork | None = None
        if self.crosses:
            self.cross_lingual = CrossLingualNetwork(
                retriever.text if share_encoder else copy.deepcopy(retriever.text),
                cross_lingual_width or retriever.width,
                cross_lingual_head,
                own=not share_encoder,
                average_pieces=average_pieces,
            )
            # DDP waits for the gradient of every trained parameter
            if "sentence" not in self.full and not taught:
                self.cross_lingual.head.requires_grad_(False)
            if not self.learns:
                self.cross_lingual.requires_grad_(False)
        self.settle([self.image_loss] if set(PAIRS) & set(self.full) else [])
        self.begin(0.0)

    @classmethod
    def cacheable_with(cls, options: Mapping[str, Any]) -> bool:
        """Return whether no loss reads the words of a row."""
        return not options.get("word_score")

    def begin(self, epoch: float) -> None:
        """Set the weights of this moment: stage, and warm-up of w."""
        second = max(epoch - self.first_stage, 0.0)
        rise = min(second / self.warmup_epochs, 1.0) if self.warmup_epochs else 1.0
        share = rise * self.distillation_weight
        weights = {**self.full}
        if "distillation" in weights:
            weights["distillation"] = share
            if "image_target" in weights:
                weights["image_target"] = self.target_weight * (1 - share)
        self._resting: tuple[str, ...] = ()
        if epoch < self.first_stage:
            weights |= {name: 0.0 for name in (*PAIRS, "distillation") if name in weights}
            self._resting = ("retriever",)
        elif self.first_stage and self.afterwards == "freeze":
            weights |= {name: 0.0 for name in ("sentence", "word") if name in weights}
            self._resting = ("cross_lingual",)
        elif self.crosses and not self.learns:
            self._resting = ("cross_lingual",)
        self.weights = weights
        self.train(self.training)

    def train(self, mode: bool = True) -> CL2CM:
        """Set training mode, except for what rests: no dropout, no moving batch-norm averages."""
        super().train(mode)
        for name in self._resting:
            self.get_submodule(name).train(False)
        return self

    def resting(self) -> tuple[str, ...]:
        """Return the network that stands still in this stage, or always if no term trains it."""
        return self._resting

    def remember(
        self,
        dataset: Dataset,
        views: Views,
        *,
        fixed: bool,
        workers: int = 0,
        folder: Path | None = None,
    ) -> None:
        """Count in how many captions of its view each piece is, where masses need it."""
        if self.needs_idf:
            device, tokenizer = next(self.parameters()).device, self.retriever.text.tokenizer
            self.idf = inverse_document_frequency(
                dataset, views, self.views, tokenizer, device=device
            ).to(device)

    # -- rows -----------------------------------------------------------------------------------

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Return `ids (b,)` and the rows that the terms need.

        `image`, `source`, `target` `(b, D)` of the cross-modal network, `cross_source`,
        `cross_target` `(b, D')` of the other, all of length 1, and `word (b,)`, each pair's
        word-level loss; for `word_score` `source_words`, `target_words` `(b, L, d)` without
        gradient, their `_mask` and, if masses need them, `_idf` `(b, L)`.

        Raises:
            ValueError: if the batch lacks images or captions, or masses by idf were not counted.
        """
        encoded = {"ids": batch.ids}
        if self.has_image:
            encoded["image"] = self.retriever.embed_visual(self.visual(batch))
        crossed: dict[str, Encoded] = {}
        for view in self.views:
            text = self.captions(batch, view)
            states = self.retriever.text(text)
            encoded[view] = self.retriever.map_text(states.pooled)
            if self.cross_lingual is not None:
                crossed[view] = self.cross_lingual(text, states if self.share_encoder else None)
                encoded[f"cross_{view}"] = crossed[view].pooled
        if self.reads_words:
            words = {view: self._words(batch, view, crossed[view]) for view in self.views}
            if "word" in self.full:
                encoded["word"] = self.word_loss.each(
                    *words["source"][:2], *words["target"][:2],
                    words["source"][2], words["target"][2],
                )  # fmt: skip
            if self.word_score:
                for view, (tokens, mask, idf) in words.items():
                    encoded |= {f"{view}_words": tokens.detach(), f"{view}_words_mask": mask}
                    encoded |= {} if idf is None else {f"{view}_words_idf": idf}
        return encoded

    def _words(self, batch: Batch, view: str, crossed: Encoded) -> Words:
        if crossed.tokens is None or crossed.mask is None:
            raise ValueError(NO_WORDS)
        if not self.needs_idf:
            return crossed.tokens, crossed.mask, None
        if self.idf is None:
            raise ValueError(
                "cl2cm: marginals=idf needs the document frequencies of the training captions: "
                "call `remember(dataset, views, fixed=...)` before the first step, as training "
                "does, or choose marginals=uniform"
            )
        assert self.cross_lingual is not None
        rarity = self.idf[self.views.index(view)][batch.text[view].ids]
        return crossed.tokens, crossed.mask, self.cross_lingual.per_word(batch.text[view], rarity)

    # -- losses ---------------------------------------------------------------------------------

    def losses(self, encoded: dict[str, Tensor]) -> Terms:
        """Return the terms with a weight, also where this stage's weight is 0."""
        terms: Terms = {}
        for name, (left, right) in PAIRS.items():
            if name in self.full:
                terms[name] = self.between(
                    self.image_loss, encoded[left], encoded[right], encoded["ids"]
                )
        if "sentence" in self.full:
            terms["sentence"] = self.sentence_loss(
                encoded["cross_source"],
                encoded["cross_target"],
                group=encoded["ids"],
                scale=self.sentence_scale,
            )
        if "word" in self.full:
            terms["word"] = encoded["word"].mean()
        if "distillation" in self.full:
            relations = [self._relation(encoded, name) for name in self.relations]
            terms["distillation"] = sum(relations[1:], relations[0]) / len(relations)
        return terms

    def _relation(self, encoded: dict[str, Tensor], name: str) -> Tensor:
        left, right, teacher_left, teacher_right = RELATIONS[name]
        bonus = None
        taught = self.weights.get("distillation")  # 0 in a stage or a warm-up: no plan is needed
        if self.word_score and taught and name == "target_image":
            tokens, mask, idf = _words_of(encoded, "source")
            others, other_mask, other_idf = gather_words(*_words_of(encoded, "target"))
            distance = self.word_loss.distances(tokens, mask, others, other_mask, idf, other_idf)
            bonus = self.word_score * (1 - distance)
        return self.relation_loss(
            encoded[left], encoded[right], encoded[teacher_left], encoded[teacher_right], bonus
        )


def _words_of(encoded: dict[str, Tensor], view: str) -> Words:
    name = f"{view}_words"
    return encoded[name], encoded[f"{name}_mask"], encoded.get(f"{name}_idf")


NO_WORDS = (
    "cl2cm aligns words, but the text tower returns none: set model.text.tokens=true, or "
    "method.word_weight=0 and method.word_score=0"
)

DIRECTIONS: dict[str, Literal["both", "left_to_right", "right_to_left"]] = {
    "both": "both",
    "image_to_target": "left_to_right",
    "target_to_image": "right_to_left",
}

PAIRS = {
    "image_source": ("image", "source"),
    "image_target": ("image", "target"),
    "source_target": ("source", "target"),
}
"""Contrastive terms of the cross-modal network."""

RELATIONS = {
    "target_image": ("image", "target", "cross_source", "cross_target"),
    "target_target": ("target", "target", "cross_target", "cross_target"),
    "image_image": ("image", "image", "cross_source", "cross_source"),
}
"""Student's left and right, teacher's left and right."""
