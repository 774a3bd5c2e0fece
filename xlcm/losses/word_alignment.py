"""Words of a sentence find their translations: labels from transport plans, or the cost itself."""

from __future__ import annotations

import functools
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from xlcm.losses.base import check_choice, full_precision
from xlcm.losses.optimal_transport import ipot, sinkhorn, transport_distance

WordLoss = Literal["pseudo_label", "ot_distance"]
Solver = Literal["sinkhorn", "ipot"]
Marginals = Literal["uniform", "norm", "idf"]

SLACK = 1e-5
"""A confidence that equals the threshold but for the rounding of the plan is kept."""


class WordAlignmentLoss(nn.Module):
    r"""Each word of a caption learns which words of its translation it belongs to.

    Nobody says which: the cheapest way to move all words of one caption onto those of the other,
    at a cost of 1 - cosine, does. Unlike a softmax a plan has to use up both captions, so that
    words compete for their partners.

    `pseudo_label`: with cosines A and plan P, $R_{ij} = P_{ij} / a_i$ are labels of source word i
    over target words (a: the words' masses), learnt by $-\sum_j R_{ij} \log softmax_j(A_{ij} /
    T)$, and likewise for target words. A word without a partner spreads its mass and is left out:
    its largest label is below the threshold. A pair's loss is half the mean over kept source words
    plus half that over kept target words, in [0, inf); a side that keeps none counts as 0.

    `ot_distance`: $\sum P (1 - A)$, in [0, 2], 0 when every word finds its like.

    No gradient passes through the plan, in either.

    Args:
        word_loss: which one.
        solver: `sinkhorn`: a smooth plan; `ipot`: nearly the cheapest one, for `ot_distance`
            (proximal weight 0.5, one inner fit).
        epsilon: smoothness of `sinkhorn`, in units of 1 - cosine; `ipot` ignores it.
        iterations: of the solver.
        threshold: least confidence of a label that is learnt; 0 keeps all. `ot_distance` has none.
        temperature: T of the softmax over words; `ot_distance` has none.
        marginals: `uniform`: each word carries the same mass; `norm`: mass in proportion to the
            length of the word's vector, constant for the gradient; `idf`: in proportion to what
            the caller says of each word, such as its inverse document frequency.

    Source: a reconstruction. CL2CM, Wang et al. 2024, https://arxiv.org/abs/2312.08984, aligns
    words by optimal transport and self-supervision; both forms and all settings are ours.
    `ot_distance` with `ipot` as in UNITER, Chen et al. 2020, https://arxiv.org/abs/1909.11740,
    section 3.2; `norm`: Yokoi et al. 2020, https://arxiv.org/abs/2004.15003, section 4.
    """

    def __init__(
        self,
        *,
        word_loss: WordLoss = "pseudo_label",
        solver: Solver = "sinkhorn",
        epsilon: Annotated[float, Field(gt=0)] = 0.1,
        iterations: Annotated[int, Field(gt=0)] = 50,
        threshold: Annotated[float, Field(ge=0, le=1)] = 0.5,
        temperature: Annotated[float, Field(gt=0)] = 0.1,
        marginals: Marginals = "uniform",
    ) -> None:
        super().__init__()
        for name, value in {"epsilon": epsilon, "iterations": iterations}.items():
            if value <= 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be in [0, 1], got {threshold}")
        check_choice("word_loss", word_loss, WordLoss)
        check_choice("solver", solver, Solver)
        check_choice("marginals", marginals, Marginals)
        self.word_loss = word_loss
        self.solver = solver
        self.epsilon = epsilon
        self.iterations = iterations
        self.threshold = threshold
        self.temperature = temperature
        self.marginals = marginals

    def forward(
        self,
        source: Tensor,
        source_mask: Tensor | None,
        target: Tensor,
        target_mask: Tensor | None,
        source_idf: Tensor | None = None,
        target_idf: Tensor | None = None,
    ) -> Tensor:
        """Return the mean over this process's pairs, a float32 scalar; arguments as in `each`."""
        return self.each(source, source_mask, target, target_mask, source_idf, target_idf).mean()

    @full_precision
    def each(
        self,
        source: Tensor,
        source_mask: Tensor | None,
        target: Tensor,
        target_mask: Tensor | None,
        source_idf: Tensor | None = None,
        target_idf: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of each pair: `(b,)` float32, no row of which looks at another one.

        Args:
            source: `(b, n, d)` word vectors of any length.
            source_mask: `(b, n)` bool, true on words (not on padding, nor on marks of begin and
                end); None: all are words.
            target: `(b, m, d)`; row i is a translation of source row i.
            target_mask: `(b, m)` bool.
            source_idf: `(b, n)`, above 0 on words; for `idf` alone.
            target_idf: `(b, m)`, likewise.

        Raises:
            ValueError: for no pairs, shapes that don't fit, a caption without words, words that
                are not finite, for `norm` a caption whose words are all zero, for `idf` missing
                numbers or such as are not above 0.
        """
        source, source_mass = self._words("source", source, source_mask, source_idf)
        target, target_mass = self._words("target", target, target_mask, target_idf)
        if len(source) != len(target) or source.shape[2] != target.shape[2]:
            raise ValueError(
                f"source {tuple(source.shape)} and target {tuple(target.shape)} must be equally "
                "many captions with words of one width"
            )
        cosine = F.normalize(source, dim=2) @ F.normalize(target, dim=2).transpose(1, 2)
        plan = self._plan(1 - cosine.detach(), source_mass, target_mass)
        if self.word_loss == "ot_distance":
            return transport_distance(plan, 1 - cosine)
        logits = cosine / self.temperature
        forth = self._learn(plan, logits, source_mass, target_mass)
        back = self._learn(plan.mT, logits.mT, target_mass, source_mass)
        return (forth + back) / 2

    @full_precision
    @torch.no_grad()
    def distances(
        self,
        source: Tensor,
        source_mask: Tensor | None,
        target: Tensor,
        target_mask: Tensor | None,
        source_idf: Tensor | None = None,
        target_idf: Tensor | None = None,
    ) -> Tensor:
        """Return what the plan between any two captions costs: `(b, B)` in [0, 2], no gradient.

        A plan for each of b B pairs, which hold B n m cells at a time.

        Args:
            source: `(b, n, d)`, and further as in `each`.
            source_mask: `(b, n)`.
            target: `(B, m, d)`, of as many captions as you like.
            target_mask: `(B, m)`.
            source_idf: `(b, n)`.
            target_idf: `(B, m)`.

        Raises:
            ValueError: as `each`.
        """
        source, source_mass = self._words("source", source, source_mask, source_idf)
        target, target_mass = self._words("target", target, target_mask, target_idf)
        if source.shape[2] != target.shape[2]:
            raise ValueError(
                f"source {tuple(source.shape)} and target {tuple(target.shape)} must have words "
                "of one width"
            )
        source, target = F.normalize(source, dim=2), F.normalize(target, dim=2)
        rows = []
        for words, mass in zip(source, source_mass):
            cost = 1 - words @ target.transpose(1, 2)
            plan = self._plan(cost, mass.expand(len(target), -1), target_mass)
            rows.append(transport_distance(plan, cost))
        return torch.stack(rows)

    def _words(
        self, side: str, words: Tensor, mask: Tensor | None, idf: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return words with 0 for padding, and masses that sum to 1, 0 for padding."""
        if mask is None:
            mask = torch.ones(words.shape[:2], dtype=torch.bool, device=words.device)
        if words.ndim != 3 or mask.shape != words.shape[:2] or mask.is_floating_point():
            raise ValueError(
                f"{side} must be (batch, words, dim) with a mask (batch, words) of booleans, got "
                f"{tuple(words.shape)} and {tuple(mask.shape)} {mask.dtype}"
            )
        if len(words) == 0:
            raise ValueError("a batch without rows has no loss; drop it before the method sees it")
        mask = mask.bool()
        if not (real := mask.any(dim=1)).all():
            raise ValueError(
                f"{side} caption {int((~real).nonzero()[0])} of the batch has no word: leave "
                "captions without text out of the data, or set the weight of this loss to 0"
            )
        words = words.masked_fill(~mask[:, :, None], 0.0)
        if not words.isfinite().all():
            row, place, _ = (~words.isfinite()).nonzero()[0].tolist()
            raise ValueError(
                f"{side} caption {row} of the batch holds NaN or infinity at word {place}: look "
                "for what made it (a rate too high, half precision, weights that broke)"
            )
        mass = mask.to(words.dtype)
        if self.marginals == "norm":
            mass = words.detach().norm(dim=2)
        elif self.marginals == "idf":
            mass = _given(side, idf, mask).to(words.dtype)
        if (empty := mass.sum(dim=1) == 0).any():
            raise ValueError(
                f"{side} caption {int(empty.nonzero()[0])} of the batch has words of length 0 "
                "alone, to which marginals=norm gives no mass: choose marginals=uniform, or look "
                "for what made them"
            )
        return words, mass / mass.sum(dim=1, keepdim=True)

    def _plan(self, cost: Tensor, source_mass: Tensor, target_mass: Tensor) -> Tensor:
        """Return the detached plan; a word of no length has no mass and is left out."""
        solve = ipot
        if self.solver == "sinkhorn":
            solve = functools.partial(sinkhorn, epsilon=self.epsilon)
        return solve(
            cost,
            source_mass != 0,
            target_mass != 0,
            row_mass=source_mass,
            column_mass=target_mass,
            iterations=self.iterations,
        )

    def _learn(self, plan: Tensor, logits: Tensor, mass: Tensor, other_mass: Tensor) -> Tensor:
        """Return the mean over the kept words of the plan's rows: `(b,)`."""
        labels = plan / mass.masked_fill(mass == 0, 1.0)[:, :, None]
        kept = (labels.amax(dim=2) >= self.threshold - SLACK) & (mass > 0)
        partition = logits.masked_fill(other_mass[:, None, :] == 0, -torch.inf).logsumexp(dim=2)
        entropy = labels.sum(dim=2) * partition - (labels * logits).sum(dim=2)
        return (entropy * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)


def _given(side: str, idf: Tensor | None, mask: Tensor) -> Tensor:
    """Return the masses that the caller gives to words, 0 for padding."""
    if idf is None or idf.shape != mask.shape:
        raise ValueError(
            f"marginals=idf needs {side}_idf {tuple(mask.shape)}, a number above 0 for each word; "
            f"got {None if idf is None else tuple(idf.shape)}"
        )
    wrong = mask & ~((idf > 0) & idf.isfinite())
    if wrong.any():
        row, place = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"{side}_idf of caption {row} is {idf[row, place].item()} at word {place}; it must be "
            "above 0 and finite"
        )
    return idf.masked_fill(~mask, 0.0)
