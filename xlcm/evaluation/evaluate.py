"""A model on a split: encode pictures and captions, rank, report; on any number of processes."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from xlcm.data.dataset import Dataset
from xlcm.data.subset import Subset
from xlcm.data.visuals import visuals_of
from xlcm.distributed import gather, rank, world
from xlcm.evaluation.fusion import fused_results
from xlcm.evaluation.queries import Queries
from xlcm.evaluation.queries import queries as queries
from xlcm.evaluation.report import RetrievalReport
from xlcm.evaluation.retrieval import evaluate_embeddings
from xlcm.evaluation.settings import EvaluationConfig as EvaluationConfig
from xlcm.evaluation.sheet import retrieval_sheet, sheet_rows
from xlcm.losses.score_tiles import NO_FLOAT64
from xlcm.models.encoding import bar, inference
from xlcm.models.lengths import embed_texts
from xlcm.models.precision import lowered, refuse_overflow

log = logging.getLogger(__name__)

SHEET_COLUMNS = 5


class SplitResult:
    """The report of a split, with what a retrieval sheet needs.

    Args:
        report: the figures.
        texts: by language, the captions in the order of `report.ranks`.
        dataset: whose pictures were found.
    """

    def __init__(
        self, report: RetrievalReport, texts: dict[str, list[str]], dataset: Dataset
    ) -> None:
        self.report = report
        self.texts = texts
        self.dataset = dataset

    def save_sheet(self, path: str | Path, config: EvaluationConfig, seed: int = 0) -> Path | None:
        """Draw queries by lot with the pictures found.

        What can't be shown, pictures or languages, is told in the log. None if nothing can.
        """
        if not config.sheet_queries:
            return None
        langs = config.sheet_langs or list(self.texts)[:4]
        shown = {lang: self.texts[lang] for lang in langs if lang in self.texts}
        if absent := [lang for lang in langs if lang not in shown]:
            log.warning(
                "evaluation.sheet_langs: no queries in %s, so %s; there are %s",
                ", ".join(absent),
                "the sheet goes without" if shown else "there is no sheet of found pictures",
                ", ".join(self.texts),
            )
        if not shown:
            return None
        rows = sheet_rows(
            self.report, shown, queries=config.sheet_queries, columns=SHEET_COLUMNS, seed=seed
        )
        title = f"{self.report.dataset}, {self.report.split}: queries drawn by lot"
        return retrieval_sheet(rows, self.dataset.load_image, path, title=title)


def evaluate(
    retriever: Any,
    dataset: Dataset,
    config: EvaluationConfig | None = None,
    *,
    workers: int = 0,
    progress: bool | None = None,
    top_k: int = 0,
    protocol: dict[str, Any] | None = None,
) -> SplitResult:
    """Encode every picture and caption of a split and rank in both directions.

    The device of the model ranks too; what is reported is the same on any. On several processes
    each encodes its share, each ranks its share of the score matrix, and all get the whole report.

    Args:
        retriever: has `embed_visual`, `embed_text`, `image.transform` and `text.tokenizer`.
        dataset: the split.
        config: None: the defaults.
        workers: loading processes.
        progress: show a bar; None: if it takes long.
        top_k: best answers kept for a sheet.
        protocol: joins the report's.

    Raises:
        DataError: naming file and line of a picture or features that can't be had; if no caption
            fits; naming the caption that has no translation, where scores are fused.
    """
    config = config or EvaluationConfig()
    asked = queries(dataset, config)
    size = config.batch_size
    with inference(retriever), lowered(retriever.device, config.precision):
        image = _images(retriever, dataset, size, workers, progress)
        text = {
            lang: (_texts(retriever, texts, lang, size, progress), asked.owners[lang])
            for lang, texts in asked.texts.items()
        }
        translation = {
            lang: _texts(retriever, texts, config.source_lang, size, progress)
            for lang, texts in asked.translations.items()
        }
    for vectors in (image, *(rows for rows, _ in text.values()), *translation.values()):
        refuse_overflow(vectors, config.precision)
    rules: dict[str, Any] = {
        "visual": config.visual or _visual(asked, retriever, dataset),
        "gallery": config.gallery,
        "ties": config.ties,
        "official_queries": config.official_queries,
        "bootstrap": config.bootstrap,
        "shared": True,
    }
    notes = {"queries": "captions of origin " + ", ".join(config.origins)}
    if config.fusion is not None:
        notes["fusion"] = (
            "w times the scores of the machine translation + (1 - w) times those of the query, "
            "each scaled to [0, 1] over all pairs"
        )
    report = evaluate_embeddings(
        image,
        text,
        relevant=asked.relevant,
        dataset=dataset.name,
        split=dataset.split,
        source_lang=config.source_lang,
        top_k=top_k,
        protocol={**notes, **(protocol or {})},
        **rules,
    )
    if config.fusion is not None:
        report.fused = fused_results(
            image, text, translation, config.fusion.weights, relevant=asked.relevant, **rules
        )
    return SplitResult(report, asked.texts, dataset)


def _visual(asked: Queries, retriever: Any, dataset: Dataset) -> Literal["image", "video"]:
    """Return what items without a word about it are: features of frames come from videos."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    store = getattr(dataset, "store", None)
    frames = retriever.image.transform is None and store is not None and store.kind == "tokens"
    drawn = hasattr(dataset, "drawing")
    return asked.visual or ("video" if frames and not drawn else "image")


def _images(
    retriever: Any, dataset: Dataset, batch_size: int, workers: int, progress: bool | None
) -> Tensor:
    transform = retriever.image.transform
    mine = range(rank(), len(dataset), world())
    found = visuals_of(dataset, transform, mine, batch_size=batch_size, workers=workers)
    rows = []
    with bar(len(mine), "images", progress) as advance:
        for visual in found:
            rows.append(retriever.embed_visual(visual.to(retriever.device)).float())
            advance(len(rows[-1]))
    return _whole(rows, len(dataset), retriever)


def _texts(
    retriever: Any, texts: Sequence[str], lang: str, batch_size: int, progress: bool | None
) -> Tensor:
    mine = list(texts[rank() :: world()])
    if not mine:  # a rare language may have fewer captions than there are processes
        return _whole([], len(texts), retriever)
    with bar(len(mine), f"{lang} texts", progress) as advance:
        rows, _ = embed_texts(
            retriever, mine, [lang] * len(mine), batch_size=batch_size, advance=advance
        )
    return _whole([rows.to(retriever.device)], len(texts), retriever)


def _whole(rows: list[Tensor], total: int, retriever: Any) -> Tensor:
    """Put the shares of all processes (rank r has rows r, r + W, ...) into order.

    They stay on the model's device, which ranks them; ranking takes float64, so they go to the CPU
    where the device has none.
    """
    share = torch.cat(rows) if rows else torch.empty(0, retriever.width, device=retriever.device)
    ranker = "cpu" if share.device.type in NO_FLOAT64 else share.device
    if world() == 1:
        return share.to(ranker)
    most = math.ceil(total / world())
    padded = share.new_zeros(most, share.shape[1])
    padded[: len(share)] = share
    whole = gather(padded).to(ranker).reshape(world(), most, -1)
    return whole.transpose(0, 1).flatten(0, 1)[:total]
