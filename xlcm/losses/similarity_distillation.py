"""A student's similarities inside the batch learn the distribution of its teachers'."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from xlcm.distributed import gather, world
from xlcm.losses.base import check_choice, full_precision, widen
from xlcm.losses.present import Present
from xlcm.losses.score_tiles import Tiled, in_tiles
from xlcm.losses.similarities import Reduction, both_ways, check_pairs, check_rows, reduce
from xlcm.losses.tiled_divergence import divergences

Divergence = Literal["kl", "cross_entropy", "smooth_l1"]
Pool = Literal["max", "min", "mean"]
Direction = Literal["both", "text_to_image", "image_to_text"]


class Targets(NamedTuple):
    """What teachers say of the local rows; made by `SimilarityDistillationLoss.targets`.

    Attributes:
        text: `(b, B)`, local texts against all images: log-probabilities, each row's sum 1 in
            probabilities; with `smooth_l1` the pooled cosines themselves.
        image: `(b, B)`, local images against all texts.
    """

    text: Tensor
    image: Tensor


class TeacherRows(NamedTuple):
    """What stands in the place of `Targets` for a large batch: the distributions come in tiles.

    Attributes:
        text: `(b, E)`, local texts, of each teacher; of those whose mean is learnt side by side.
        image: `(b, E)`, local images.
        all_text: `(B, E)`, those of all processes.
        all_image: `(B, E)`.
        scale: of the products.
    """

    text: tuple[Tensor, ...]
    image: tuple[Tensor, ...]
    all_text: tuple[Tensor, ...]
    all_image: tuple[Tensor, ...]
    scale: float


Taught = Targets | TeacherRows


class SimilarityDistillationLoss(nn.Module):
    """Each text's similarities to all images, and back, are pulled to those of teachers.

    With $Q_k$ the cosines of teacher k between all texts and all images, and $S$ the student's:
    $P = softmax(pool_k(Q_k) / T)$ and $L = D(P, softmax(S / T))$ along the rows, and the same
    along the columns; a mean over rows and columns. Teachers and student share no width, no
    tokenizer and no text: row i of all of them must only mean the same pair.

    Large batches are computed in tiles (`xlcm/losses/tiled_divergence.py`), without any score
    matrix; that form can't be differentiated twice. `smooth_l1` is computed plainly at any size.

    Args:
        temperature: T, of teachers and student alike; no factor $T^2$ makes up for it.
        divergence: `kl`: from teacher to student, in [0, inf), 0 when they agree.
            `cross_entropy`: larger than `kl` by the teacher's entropy; the same gradient at the
            student. `smooth_l1`: between the cosines, beta 1, mean over the B x B entries of the
            global batch; `temperature`, `direction` and `reduction` do not enter, as rows and
            columns hold the same entries.
        pool: of several teachers, per entry of their cosines, before the softmax.
        reduction: of the two directions; one direction alone is itself.
        direction: `text_to_image` compares the distributions of each text over images,
            `image_to_text` those of each image over texts.
        detach_teacher: whether `targets` cuts the gradient. If not, one hands over detached what
            shall get none.
        tiled: `auto`: in tiles from 1,024 x 1,024 scores a process on; `always` from the first.

    Source: NRCCR, Wang et al. 2022, https://arxiv.org/abs/2208.12526, similarity-view
    distillation: `cross_entropy`, mean, T 0.07, the visual side of the teacher not detached, as in
    the released code. C2KD, Rouditchenko et al. 2023, https://arxiv.org/abs/2210.03625: `kl`, sum,
    T 0.1; its released code calls the maximum over teachers "min" and the minimum "max", here
    they have their names. `smooth_l1`: TeachText, Croitoru et al. 2021,
    https://arxiv.org/abs/2104.08271, as an ablation of C2KD.
    """

    def __init__(
        self,
        *,
        temperature: Annotated[float, Field(gt=0)] = 0.07,
        divergence: Divergence = "kl",
        pool: Pool = "mean",
        reduction: Reduction = "mean",
        direction: Direction = "both",
        detach_teacher: bool = True,
        tiled: Tiled = "auto",
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        check_choice("divergence", divergence, Divergence)
        check_choice("pool", pool, Pool)
        check_choice("reduction", reduction, Reduction)
        check_choice("direction", direction, Direction)
        check_choice("tiled", tiled, Tiled)
        if divergence == "smooth_l1" and tiled == "always":
            raise ValueError(
                "divergence smooth_l1 holds whole score matrices, tiled='always' can't be had: "
                "leave `tiled` out, or take kl or cross_entropy"
            )
        self.temperature = temperature
        self.divergence = divergence
        self.pool = pool
        self.reduction = reduction
        self.direction = direction
        self.detach_teacher = detach_teacher
        self.tiled: Tiled = tiled

    def targets(self, teachers: Sequence[tuple[Tensor, Tensor]]) -> Taught:
        """Return what the student shall learn: made once, good for any number of `forward`s.

        Args:
            teachers: `(text, image)` of each teacher, `(b, D)` both and L2-normalised; the width
                may differ from teacher to teacher.

        Raises:
            ValueError: for no teacher, no rows, or shapes that don't fit, with the teacher.
        """
        if not teachers:
            raise ValueError("no teacher to learn from: hand over at least one (text, image)")
        for number, (text, image) in enumerate(teachers):
            named = {f"teachers[{number}].text": text, f"teachers[{number}].image": image}
            check_pairs(**named)
            check_rows(**{"teachers[0].text": teachers[0][0], **named})
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detach_teacher):
            rows = len(teachers[0][0])
            if self.divergence != "smooth_l1" and in_tiles(self.tiled, rows, world() * rows):
                return self._teacher_rows(teachers)
            sides = zip(*(both_ways(*teacher, scale=self._scale) for teacher in teachers))
            return Targets(*(self._target(list(side)) for side in sides))

    def _teacher_rows(self, teachers: Sequence[tuple[Tensor, Tensor]]) -> TeacherRows:
        text, image = (tuple(map(widen, side)) for side in zip(*teachers))
        if self.detach_teacher:
            text, image = (tuple(one.detach() for one in side) for side in (text, image))
        scale = self._scale
        if self.pool == "mean" and len(text) > 1:  # the mean of cosines is one product
            scale = scale / len(text)
            text, image = ((torch.cat(side, dim=1),) for side in (text, image))
        all_text, all_image = (tuple(map(gather, side)) for side in (text, image))
        return TeacherRows(text, image, all_text, all_image, scale)

    @full_precision
    def forward(
        self,
        text: Tensor,
        image: Tensor,
        targets: Taught,
        present: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of this process's rows: a float32 scalar.

        Its mean over processes is the loss of the global batch.

        Args:
            text: `(b, D)`, the student's, L2-normalised.
            image: `(b, D)`, the student's, L2-normalised; row i belongs to text i.
            targets: from `targets`, for the same rows in the same order.
            present: `(b,)` bool, rows whose text counts; the others are left out of rows and
                columns of student and teachers, and of the mean (`Present`). None: all count.

        Raises:
            ValueError: for no rows or shapes that don't fit.
        """
        check_pairs(text=text, image=image)
        some = None if present is None else Present(present, len(text))
        if isinstance(targets, TeacherRows):
            return self._in_tiles(text, image, targets, some)
        sides = both_ways(text, image, scale=self._scale)
        for name, target, side in zip(Targets._fields, targets, sides):
            if target.shape != side.shape:
                raise ValueError(
                    f"targets.{name} {tuple(target.shape)} are of another batch than the student's "
                    f"similarities {tuple(side.shape)}: make them of the same rows"
                )
        counted = (0,) if self.divergence == "smooth_l1" else self._counted
        terms = [self._diverge(targets[side], sides[side], some) for side in counted]
        return reduce(terms, self.reduction)

    def _in_tiles(
        self, text: Tensor, image: Tensor, targets: TeacherRows, some: Present | None
    ) -> Tensor:
        if len(targets.text[0]) != len(text):
            raise ValueError(
                f"targets of {len(targets.text[0])} rows are of another batch than the student's "
                f"{len(text)}: make them of the same rows"
            )
        student = (text, gather(image)), (image, gather(text))
        taught = [[one.to(text.dtype) for one in side] for side in targets[:4]]
        teachers = list(zip(taught[0], taught[3])), list(zip(taught[1], taught[2]))
        if some is not None:  # what is left of a distribution has a sum of 1 again
            student = some.pair(*student[0]), some.pair(*student[1])
            here = [[some.pair(*one) for one in side] for side in teachers]
            teachers = here[0], here[1]
        total = divergences(
            student,
            teachers,
            scales=(self._scale, targets.scale),
            kl=self.divergence == "kl",
            counted=self._counted,
            pool="min" if self.pool == "min" else "max",  # of a mean there is one left
        )
        total = total / len(text) if some is None else some.mean(total)
        return total / len(self._counted) if self.reduction == "mean" else total

    @property
    def _counted(self) -> tuple[int, ...]:
        return {"text_to_image": (0,), "image_to_text": (1,)}.get(self.direction, (0, 1))

    @property
    def _scale(self) -> float:
        return 1.0 if self.divergence == "smooth_l1" else 1.0 / self.temperature

    def _target(self, logits: list[Tensor]) -> Tensor:
        pooled = logits[0]
        for other in logits[1:]:
            if self.pool == "mean":
                pooled = pooled + other
            else:
                pooled = (torch.maximum if self.pool == "max" else torch.minimum)(pooled, other)
        if self.pool == "mean":
            pooled = pooled / len(logits)
        return pooled if self.divergence == "smooth_l1" else F.log_softmax(pooled, dim=1)

    def _diverge(self, teacher: Tensor, student: Tensor, some: Present | None) -> Tensor:
        teacher = teacher.to(student.dtype)
        if some is not None:  # what is left of a distribution is stretched to a sum of 1 again
            teacher, student = some.matrix(teacher), some.matrix(student)
            if self.divergence != "smooth_l1":
                teacher = F.log_softmax(teacher, dim=1)
        each = self._each(teacher, student)
        return each.mean() if some is None else some.mean(each)

    def _each(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Return the divergence of each row, `(b,)`."""
        if self.divergence == "smooth_l1":
            return F.smooth_l1_loss(student, teacher, reduction="none").mean(dim=1)
        if self.divergence == "cross_entropy":
            return F.cross_entropy(student, teacher.exp(), reduction="none")
        log_probability = F.log_softmax(student, dim=1)
        return F.kl_div(log_probability, teacher, reduction="none", log_target=True).sum(dim=1)
