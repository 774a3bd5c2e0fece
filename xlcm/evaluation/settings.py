"""How a model is judged, and the config of `recipes/evaluate.py` and `xlcm evaluate`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from xlcm.config import Section, part_field
from xlcm.models.precision import Precision
from xlcm.registry import datasets
from xlcm.types import Origin


class FusionConfig(Section):
    """Scores of each query and of its translation into `source_lang` together.

    The queries' translations are captions of the split, made from the queries. Methods that do
    this call a translator for every query.

    Args:
        weights: of the translation's scores, each in [0, 1]; every one gives figures of its own.
        origins: which captions are translations.
        engine: the machine that made them, where several have; None: the only one.
    """

    weights: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=1)] = [0.2, 0.5]
    origins: Annotated[list[Origin], Field(min_length=1)] = ["mt"]
    engine: str | None = None


class EvaluationConfig(Section):
    """How a model is judged.

    Args:
        langs: languages of the queries; None: every language of the split.
        origins: which captions are queries.
        source_lang: the language that gaps are measured to.
        gallery: `all` images of the split, or only those `captioned` in the query's language.
        visual: what the directions are called by; None: `video` where items name videos, or
            only features of frames and no image.
        ties: a wrong answer with the right one's score counts half (`average`) or not at all
            (`favourable`).
        official_queries: captions that the benchmark asks with in a language, for recalls of text
            to image; those whose picture is missing here count as misses. None: those asked.
        fusion: figures of the queries together with their translations beside those without;
            None: not made.
        batch_size: images encoded at once, and captions at most: they are batched by their tokens.
        precision: what the towers encode in; `bf16` and `fp16` on a GPU, or a CPU that has
            instructions for it.
        bootstrap: resamples for the 95 % intervals.
        sheet_langs: languages shown on the sheet of found pictures; None: the first four.
        sheet_queries: queries a language on the sheet; 0: no sheet.
    """

    langs: list[str] | None = None
    origins: list[Origin] = ["human"]
    source_lang: str = "en"
    gallery: Literal["all", "captioned"] = "all"
    visual: Literal["image", "video"] | None = None
    ties: Literal["average", "favourable"] = "average"
    official_queries: Annotated[int, Field(gt=0)] | None = None
    fusion: FusionConfig | None = None
    batch_size: Annotated[int, Field(gt=0)] = 256
    precision: Precision = "fp32"
    bootstrap: Annotated[int, Field(ge=0)] = 1000
    sheet_langs: list[str] | None = None
    sheet_queries: Annotated[int, Field(ge=0)] = 2


class EvaluateConfig(Section):
    """Which model is judged, on what.

    Args:
        model: folder that `save_pretrained` wrote (of a run: its `model/`), or id on the hub.
        data: the split.
        evaluation: languages, gallery, intervals.
        workers: loading processes for each process.
        output: folder for the report, the plots and the sheet of found pictures; None: they are
            not written.
    """

    model: str
    data: part_field(datasets)  # type: ignore[valid-type]
    evaluation: EvaluationConfig = EvaluationConfig()
    workers: Annotated[int, Field(ge=0)] = 2
    output: str | None = None
