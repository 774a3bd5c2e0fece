"""What a split is asked with: captions by language, and their translations for fused scores."""

from __future__ import annotations

import logging
from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from xlcm.data.dataset import Dataset
from xlcm.data.manifest import DataError
from xlcm.data.subset import Subset
from xlcm.evaluation.settings import EvaluationConfig, FusionConfig
from xlcm.types import Caption, Item

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Queries:
    """The captions that are asked with.

    Args:
        texts: by language.
        owners: by language, `(M,)` the numbers of the items that they describe.
        relevant: by language that has any, `(P, 2)` the number of a text and that of a further
            item that it describes.
        translations: by language other than the source, the translation of each of its texts;
            empty without fusion.
        visual: `video` if an item names one, `image` if any names one; None: neither.
    """

    texts: dict[str, list[str]]
    owners: dict[str, Tensor]
    relevant: dict[str, Tensor]
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
        relevant=_relevant(dataset, asked),
        translations=translations,
        visual="video" if video else "image" if image else None,
    )


def _relevant(
    dataset: Dataset, asked: Mapping[str, Sequence[tuple[int, Caption]]]
) -> dict[str, Tensor]:
    """Find the further items that captions describe; most data have none, and none are looked up.

    Items that were left out because they can't be used are no answers, and are counted.
    """
    named = {
        lang: [(n, i, caption) for n, (i, caption) in enumerate(found) if caption.relevant]
        for lang, found in asked.items()
    }
    if not any(named.values()):
        return {}
    numbers = {dataset[i].id: i for i in range(len(dataset))}
    left_out = _left_out(dataset, numbers)
    pairs: dict[str, list[tuple[int, int]]] = {lang: [] for lang in named}
    gone: list[str] = []
    for lang, rows in named.items():
        for n, i, caption in rows:
            for name in caption.relevant:
                if name in left_out:
                    gone.append(name)
                elif numbers.get(name, i) == i:
                    where = dataset[i].where or dataset.name
                    raise DataError(
                        f"{where}: caption {caption.id!r} names the relevant item {name!r}, and "
                        f"split {dataset.split!r} has no other item of this name: take it out of "
                        "`relevant`, or add the item (`xlcm data check` lists all such)"
                    )
                else:
                    pairs[lang].append((n, numbers[name]))
    if gone:
        log.warning(
            "%d right answers are items that are left out of %s, split %r, such as %r: their "
            "captions are asked with those that are there", len(gone), dataset.name,
            dataset.split, gone[0],
        )  # fmt: skip
    return {lang: torch.tensor(found) for lang, found in pairs.items() if found}


def _left_out(dataset: Dataset, there: Container[str]) -> frozenset[str]:
    """Return the ids that a subset leaves out of its whole."""
    if not isinstance(dataset, Subset):
        return frozenset()
    whole: Dataset = dataset
    while isinstance(whole, Subset):
        whole = whole.dataset
    names = set()
    for number in range(len(whole)):
        with suppress(DataError):  # a line that is no item was told of when it was left out
            names.add(whole[number].id)
    return frozenset(name for name in names if name not in there)


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
