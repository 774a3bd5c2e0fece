"""A model on a split: encode pictures and captions, rank, report; on any number of processes."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from xlcm.config import Section
from xlcm.data.collate import stack_visuals
from xlcm.data.dataset import Dataset
from xlcm.data.manifest import DataError
from xlcm.distributed import gather, rank, world
from xlcm.evaluation.report import RetrievalReport
from xlcm.evaluation.retrieval import evaluate_embeddings
from xlcm.evaluation.sheet import retrieval_sheet, sheet_rows
from xlcm.models.encoding import bar, by_length, inference
from xlcm.types import Origin, Visual

log = logging.getLogger(__name__)

SHEET_COLUMNS = 5


class EvaluationConfig(Section):
    """How a model is judged.

    Args:
        langs: languages of the queries; None: every language of the split.
        origins: which captions are queries.
        source_lang: the language that gaps are measured to.
        gallery: `all` images of the split, or only those `captioned` in the query's language.
        batch_size: images or captions encoded at once.
        bootstrap: resamples for the 95 % intervals.
        sheet_langs: languages shown on the sheet of found pictures; None: the first four.
        sheet_queries: queries a language on the sheet; 0: no sheet.
    """

    langs: list[str] | None = None
    origins: list[Origin] = ["human"]
    source_lang: str = "en"
    gallery: Literal["all", "captioned"] = "all"
    batch_size: Annotated[int, Field(gt=0)] = 256
    bootstrap: Annotated[int, Field(ge=0)] = 1000
    sheet_langs: list[str] | None = None
    sheet_queries: Annotated[int, Field(ge=0)] = 2


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

    On several processes each encodes its share and all get the whole report.

    Args:
        retriever: has `embed_visual`, `embed_text`, `image.transform` and `text.tokenizer`.
        dataset: the split.
        config: None: the defaults.
        workers: loading processes.
        progress: show a bar; None: if it takes long.
        top_k: best answers kept for a sheet.
        protocol: joins the report's.

    Raises:
        DataError: naming file and line of a picture or features that can't be had; or if no
            caption fits.
    """
    config = config or EvaluationConfig()
    texts, owners = queries(dataset, config)
    with inference(retriever):
        image = _images(retriever, dataset, config.batch_size, workers, progress)
        text = {
            lang: (_texts(retriever, texts[lang], lang, config.batch_size, progress), owners[lang])
            for lang in texts
        }
    report = evaluate_embeddings(
        image,
        text,
        dataset=dataset.name,
        split=dataset.split,
        source_lang=config.source_lang,
        gallery=config.gallery,
        bootstrap=config.bootstrap,
        top_k=top_k,
        protocol={"queries": "captions of origin " + ", ".join(config.origins), **(protocol or {})},
    )
    return SplitResult(report, texts, dataset)


def queries(
    dataset: Dataset, config: EvaluationConfig
) -> tuple[dict[str, list[str]], dict[str, Tensor]]:
    """Return by language the captions that are asked with, and the numbers of their items.

    Raises:
        DataError: if there are none, in a language that was asked for or at all.
    """
    texts: dict[str, list[str]] = {lang: [] for lang in config.langs or ()}
    owners: dict[str, list[int]] = {lang: [] for lang in config.langs or ()}
    for index in range(len(dataset)):
        for caption in dataset[index].captions:
            if caption.origin not in config.origins:
                continue
            if config.langs is not None and caption.lang not in texts:
                continue
            texts.setdefault(caption.lang, []).append(caption.text)
            owners.setdefault(caption.lang, []).append(index)
    empty = [lang for lang, found in texts.items() if not found]
    if empty or not texts:
        which = f"in {', '.join(empty)}" if empty else "at all"
        raise DataError(
            f"{dataset.name}, split {dataset.split!r}: no captions of origin "
            f"{'/'.join(config.origins)} {which}; set evaluation.langs or evaluation.origins"
        )
    return texts, {lang: torch.tensor(owner) for lang, owner in owners.items()}


class _Visuals(TorchDataset):
    """Picture or first view of the features by number; a fault travels as a value."""

    def __init__(self, dataset: Dataset, transform: Callable[[Image.Image], Tensor] | None) -> None:
        self.dataset = dataset
        self.transform = transform

    def __getitem__(self, index: int) -> Tensor | DataError:
        try:
            if self.transform is not None:
                return self.transform(self.dataset.load_image(index))
            features = self.dataset.load_features(index)
            return features if isinstance(features, Tensor) else features[0]
        except DataError as error:
            return error


def _images(
    retriever: Any, dataset: Dataset, batch_size: int, workers: int, progress: bool | None
) -> Tensor:
    transform = retriever.image.transform
    mine = range(rank(), len(dataset), world())
    loader = DataLoader(
        _Visuals(dataset, transform),
        sampler=mine,
        batch_size=batch_size,
        collate_fn=list,
        num_workers=workers,
    )
    rows = []
    with bar(len(mine), "images", progress) as advance:
        for found in loader:
            faults = [one for one in found if isinstance(one, DataError)]
            if faults:
                raise faults[0]
            visual = stack_visuals(found) if transform is None else Visual(torch.stack(found))
            rows.append(retriever.embed_visual(visual.to(retriever.device)).float())
            advance(len(found))
    return _whole(rows, len(dataset), retriever)


def _texts(
    retriever: Any, texts: Sequence[str], lang: str, batch_size: int, progress: bool | None
) -> Tensor:
    mine = list(texts[rank() :: world()])
    if not mine:  # a rare language may have fewer captions than there are processes
        return _whole([], len(texts), retriever)
    tokens = retriever.text.tokenizer(mine, [lang] * len(mine))
    numbers, rows = [], []
    with bar(len(mine), f"{lang} texts", progress) as advance:
        for number, batch in by_length(tokens, batch_size):
            numbers.append(number)
            rows.append(retriever.embed_text(batch.to(retriever.device)).float())
            advance(len(number))
    shuffled = torch.cat(rows)
    ordered = torch.empty_like(shuffled)
    ordered[torch.cat(numbers)] = shuffled
    return _whole([ordered], len(texts), retriever)


def _whole(rows: list[Tensor], total: int, retriever: Any) -> Tensor:
    """Put the shares of all processes (rank r has rows r, r + W, ...) into order, on the CPU."""
    share = torch.cat(rows) if rows else torch.empty(0, retriever.width, device=retriever.device)
    if world() == 1:
        return share.cpu()
    most = math.ceil(total / world())
    padded = share.new_zeros(most, share.shape[1])
    padded[: len(share)] = share
    return gather(padded).cpu().reshape(world(), most, -1).transpose(0, 1).flatten(0, 1)[:total]
