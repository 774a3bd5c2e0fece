"""From embeddings to a report: every language, both directions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from xlcm.evaluation import metrics
from xlcm.evaluation.best import TopK
from xlcm.evaluation.intervals import interval, resample
from xlcm.evaluation.metrics import METRICS, Floats, QueryStatistics
from xlcm.evaluation.ranks import EQUAL, Ranks, Ties, further_pairs, retrieval_ranks
from xlcm.evaluation.report import DirectionResult, RetrievalReport

RECALLS = METRICS[:3]
TIES: dict[Ties, str] = {
    "average": "average: 1 + greater + equal / 2",
    "favourable": "favourable: 1 + greater",
}
Draws = dict[str, Floats]


def evaluate_embeddings(
    image: Tensor,
    text: Mapping[str, tuple[Tensor, Tensor]],
    *,
    relevant: Mapping[str, Tensor] | None = None,
    dataset: str,
    split: str,
    source_lang: str = "en",
    visual: Literal["image", "video"] = "image",
    gallery: Literal["all", "captioned"] = "all",
    ties: Ties = "average",
    official_queries: int | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    top_k: int = 0,
    protocol: Mapping[str, Any] | None = None,
    shared: bool = False,
) -> RetrievalReport:
    """Rank in both directions in every language and sum up.

    Scores are inner products: give L2-normalised embeddings for cosine similarity.

    Args:
        dataset: name of the data, for the report.
        split: `val`, `test`, ...
        image: `(N, d)`, one row a picture or video.
        text: by language the captions' embeddings `(M, d)` and `(M,)` the index in [0, N) of
            the picture that each describes. Languages may differ in M and leave pictures out.
        relevant: by language `(P, 2)` the number of a caption and of a further picture that is as
            right as the one in `text`; languages where each caption has one right picture may be
            left out. A caption's rank is that of its best right picture, and a picture's that of
            the best caption it is right for.
        source_lang: the language that `gap_to` compares with.
        visual: what the directions are called by.
        gallery: `all` ranks every caption against all N pictures, also against those without a
            caption in its language, so that languages are compared on the same gallery.
            `captioned` leaves such pictures out, as benchmarks do that publish a smaller
            gallery for some language. Captions are ranked against those of their language.
        ties: how a wrong answer counts that scores as much as the right one; see
            `retrieval_ranks`.
        official_queries: how many captions of a language the benchmark asks with. Where fewer can
            be asked because pictures are missing, recalls of text to image count the others as
            misses; ranks and mAP are of those asked.
        bootstrap: resamples of the 95 % intervals; 0 for none.
        seed: of the resamples.
        top_k: keep the best answers to each query in `report.ranks`, by index into `image` or
            the language's captions.
        protocol: what else a reader must know; joins the report's.
        shared: every process of the group calls this with the same embeddings; each ranks its
            share of the score matrix, and all get the whole report.

    Raises:
        ValueError: for no language, or (naming the language) NaN, infinity or shapes that don't
            fit.
    """
    relevant = relevant or {}
    if extra := sorted(relevant.keys() - text.keys()):
        raise ValueError(f"relevant has captions in {', '.join(extra)}, text has none")
    if not text:
        raise ValueError("no captions in any language: `text` is empty")
    if gallery not in ("all", "captioned"):
        raise ValueError(f"gallery must be 'all' or 'captioned', got {gallery!r}")
    if ties not in EQUAL:
        raise ValueError(f"ties must be one of {', '.join(EQUAL)}, got {ties!r}")
    options: dict[str, Any] = {"top_k": top_k, "ties": ties, "shared": shared}
    ranks: dict[str, Ranks] = {}
    asked: dict[str, QueryStatistics] = {}
    for lang, (rows, owner) in text.items():
        try:
            right = {**options, "relevant": relevant.get(lang)}
            ranks[lang] = _ranks(image, rows, owner, gallery == "captioned", right)
            asked[lang] = metrics.text_to_image(ranks[lang], official=official_queries)
        except ValueError as error:
            raise ValueError(f"captions in {lang!r}: {error}") from error

    names = (f"text_to_{visual}", f"{visual}_to_text")
    queries = {
        names[0]: asked,
        names[1]: {lang: metrics.image_to_text(found) for lang, found in ranks.items()},
    }
    draws = {
        (direction, lang): resample(one, images=len(image), resamples=bootstrap, seed=seed)
        for direction, by_lang in queries.items()
        for lang, one in by_lang.items()
        if bootstrap
    }
    results = [
        _result(lang, direction, one, draws.get((direction, lang)))
        for direction, by_lang in queries.items()
        for lang, one in by_lang.items()
    ]
    sums = {
        lang: metrics.recall_sum([vars(row) for row in results if row.lang == lang])
        for lang in ranks
    }
    sum_draws: Draws = {}
    if bootstrap:
        for lang in ranks:
            parts = [draws[direction, lang][r] for direction in names for r in RECALLS]
            sum_draws[lang] = np.sum(parts, axis=0)
    spread, spread_notes = _spread(queries)
    return RetrievalReport(
        dataset=dataset,
        split=split,
        protocol={
            "gallery": gallery,
            "ties": TIES[ties],
            **_several(ranks),
            "intervals": f"{bootstrap} bootstrap resamples of images, seed {seed}"
            if bootstrap
            else "none",
            **({} if official_queries is None else {"official_queries": official_queries}),
            **spread_notes,
            **(protocol or {}),
        },
        results=results,
        sum_r=sums,
        sum_r_ci95={lang: interval(values) for lang, values in sum_draws.items()},
        mean_rank_variance=spread,
        gap_to=_gap(sums, sum_draws, source_lang),
        ranks=ranks,
    )


def _ranks(
    image: Tensor, text: Tensor, owner: Tensor, captioned: bool, options: dict[str, Any]
) -> Ranks:
    further = options["relevant"]
    if further is not None:
        further = further_pairs(further, owner, len(image)).cpu() if len(further) else None
    kept = captioned_images(owner, further)
    if not captioned or len(kept) == len(image) or not len(kept):
        return retrieval_ranks(image, text, owner, **options)
    if int(kept[0]) < 0 or int(kept[-1]) >= len(image):
        return retrieval_ranks(image, text, owner, **options)  # which says what is wrong
    inner = torch.searchsorted(kept, owner.cpu())
    if further is not None:
        shown = torch.searchsorted(kept, further[:, 1].contiguous())
        options = {**options, "relevant": torch.stack([further[:, 0], shown], dim=1)}
    found = retrieval_ranks(image[kept.to(image.device)], text, inner, **options)
    best, further = found.top_images, found.relevant
    if further is not None:
        further[:, 1] = kept[further[:, 1]]
    return replace(  # numbers of the caller's images again
        found,
        images=kept[found.images],
        caption_image=kept[found.caption_image],
        top_images=None if best is None else TopK(kept[best.index], best.score),
        relevant=further,
    )


def captioned_images(owner: Tensor, relevant: Tensor | None) -> Tensor:
    """Return the images that a caption describes, ascending, on the CPU.

    Args:
        owner: `(M,)` the image of each caption.
        relevant: `(P, 2)` caption and image of further right pairs.
    """
    if relevant is None:
        return torch.unique(owner.cpu())
    return torch.unique(torch.cat([owner.cpu(), relevant.cpu()[:, 1]]))


def _several(ranks: Mapping[str, Ranks]) -> dict[str, Any]:
    """Return for the protocol how many right pictures captions have, where one has several."""
    shares = {
        lang: 1 + len(one.relevant) / len(one.caption_image)
        for lang, one in ranks.items()
        if one.relevant is not None
    }
    notes = {"counted": "the best-ranked one", "pictures_a_caption": shares}
    return {"several_right_pictures": notes} if shares else {}


def _result(
    lang: str, direction: str, queries: QueryStatistics, draws: Draws | None
) -> DirectionResult:
    return DirectionResult(
        lang=lang,
        direction=direction,
        queries=len(queries.rank),
        gallery=queries.gallery,
        **metrics.figures(queries),
        ci95={} if draws is None else {name: interval(draws[name]) for name in METRICS},
        chance=metrics.chance(queries),
    )


def _spread(
    queries: Mapping[str, Mapping[str, QueryStatistics]],
) -> tuple[float | None, dict[str, Any]]:
    found = {
        direction: metrics.mean_rank_variance(list(by_lang.values()))
        for direction, by_lang in queries.items()
    }
    values = {direction: value[0] for direction, value in found.items() if value}
    if not values:
        return None, {}
    shared = min(value[1] for value in found.values() if value)
    notes = {"statistic": "std", "images": shared, **values}
    return float(np.mean(list(values.values()))), {"mean_rank_variance": notes}


def _gap(sums: Mapping[str, float], draws: Mapping[str, Any], source: str) -> dict[str, Any]:
    if source not in sums:
        return {"lang": source}
    others = [lang for lang in sums if lang != source]
    gap: dict[str, Any] = {"lang": source, "sum_r": {o: sums[o] - sums[source] for o in others}}
    if draws:
        gap["ci95"] = {lang: interval(draws[lang] - draws[source]) for lang in others}
    return gap
