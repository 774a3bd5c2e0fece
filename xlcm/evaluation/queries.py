"""What a split is asked with: captions by language, and their translations for fused scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from xlcm.data.dataset import Dataset
from xlcm.data.manifest import DataError
from xlcm.evaluation.settings import EvaluationConfig, FusionConfig
from xlcm.types import Caption, Item


@dataclass(frozen=True)
class Queries:
    """The captions that are asked with.

    Args:
        texts: by language.
        owners: by language, `(M,)` the numbers of the items that they describe.
        translations: by language other than the source, the translation of each of its texts;
            empty without fusion.
        visual: `video` if an item names one, `image` if any names one; None: neither.
    """

    texts: dict[str, list[str]]
    owners: dict[str, Tensor]
    translations: dict[str, list[str]]
    visual: Literal["image", "video"] | None


def queries(dataset: Dataset, config: EvaluationConfig) -> Queries:
    """Find the captions that a split is asked with.

    Raises:
        DataError: if there are none, in a language that was asked for or at all; if scores are
            fused and one has no translation, or several.
    """
    asked: dict[str, list[tuple[int, Caption]]] = {lang: [] for lang in config.langs or ()}
    translations: dict[str, list[str]] = {}
    video = image = False
    for index in range(len(dataset)):
        item = dataset[index]
        video, image = video or item.video is not None, image or item.image is not None
        for caption in item.captions:
            if caption.origin not in config.origins:
                continue
            if config.langs is not None and caption.lang not in asked:
                continue
            asked.setdefault(caption.lang, []).append((index, caption))
            if config.fusion is not None and caption.lang != config.source_lang:
                found = _translation(dataset, item, caption, config.source_lang, config.fusion)
                translations.setdefault(caption.lang, []).append(found)
    _refuse_silence(dataset, config, asked, translations)
    return Queries(
        texts={lang: [caption.text for _, caption in found] for lang, found in asked.items()},
        owners={lang: torch.tensor([i for i, _ in found]) for lang, found in asked.items()},
        translations=translations,
        visual="video" if video else "image" if image else None,
    )


def _translation(
    dataset: Dataset, item: Item, query: Caption, lang: str, fusion: FusionConfig
) -> str:
    found = [
        caption
        for caption in item.captions
        if caption.of == query.id
        and caption.lang == lang
        and caption.origin in fusion.origins
        and fusion.engine in (None, caption.engine)
    ]
    if len(found) == 1:
        return found[0].text
    where = f"{item.where or dataset.name}: item {item.id!r}, caption {query.id!r} ({query.lang})"
    if found:
        engines = ", ".join(str(caption.engine) for caption in found)
        raise DataError(
            f"{where}: evaluation.fusion wants one translation into {lang}, and there are "
            f"{len(found)} (engines: {engines}): name one by evaluation.fusion.engine"
        )
    by = "" if fusion.engine is None else f" by {fusion.engine}"
    raise DataError(
        f"{where}: evaluation.fusion needs its translation into {lang}, and no caption of origin "
        f"{'/'.join(fusion.origins)}{by} was made `of` it: make it by machine translation (`xlcm "
        "translate`; scenes: set `query_translations: true`), or leave evaluation.fusion out"
    )


def _refuse_silence(
    dataset: Dataset,
    config: EvaluationConfig,
    asked: dict[str, list[tuple[int, Caption]]],
    translations: dict[str, list[str]],
) -> None:
    empty = [lang for lang, found in asked.items() if not found]
    if empty or not asked:
        which = f"in {', '.join(empty)}" if empty else "at all"
        raise DataError(
            f"{dataset.name}, split {dataset.split!r}: no captions of origin "
            f"{'/'.join(config.origins)} {which}; set evaluation.langs or evaluation.origins"
        )
    if config.fusion is not None and not translations:
        raise DataError(
            f"{dataset.name}, split {dataset.split!r}: all queries are in the source language, "
            f"{config.source_lang}, so there is nothing to fuse: leave evaluation.fusion out, or "
            "set evaluation.langs or evaluation.source_lang"
        )
