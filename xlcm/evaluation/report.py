"""The report of an evaluation: figures by language and direction, as JSON and as a page."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlcm.evaluation.page import markdown, plain, table

if TYPE_CHECKING:
    from xlcm.evaluation.ranks import Ranks


@dataclass
class DirectionResult:
    """One language in one direction; recalls and `map` in percent, ranks from 1 on.

    Args:
        lang: BCP 47 code of the captions.
        direction: `text_to_image`, `image_to_text`, or the same with `video`.
        queries: how many were asked.
        gallery: how many candidates each was compared with.
        ci95: metric name -> `[low, high]`; empty without bootstrap.
        chance: metric name -> what a random order would reach.
    """

    lang: str
    direction: str
    queries: int
    gallery: int
    r1: float
    r5: float
    r10: float
    median_rank: float
    mean_rank: float
    map: float
    ci95: dict[str, list[float]] = field(default_factory=dict)
    chance: dict[str, float] = field(default_factory=dict)


@dataclass
class FusedResult:
    """Figures of the queries' scores fused with those of their machine translations.

    Args:
        weight: of the translations' scores, in [0, 1].
        results: a row for each language but the source, and direction.
        sum_r: by language.
        sum_r_ci95: by language `[low, high]`.
    """

    weight: float
    results: list[DirectionResult]
    sum_r: dict[str, float]
    sum_r_ci95: dict[str, list[float]] = field(default_factory=dict)


@dataclass
class RetrievalReport:
    """All that an evaluation found; what `report.json` holds.

    Args:
        dataset: name of the data.
        split: `val`, `test`, ...
        protocol: how it was measured: gallery, ties, intervals, whatever a reader needs to
            compare the figures with others.
        results: a row for each language and direction.
        sum_r: by language, the recalls of both directions added, at most 600.
        sum_r_ci95: by language `[low, high]`.
        mean_rank_variance: mean over both directions; None with one language. Which statistic,
            over how many images and the value of each direction stand in `protocol`.
        gap_to: `lang`, the source language, and by other language `sum_r` (its SumR minus that
            of the source, negative where it is worse) and `ci95` of that.
        fused: figures with the queries' translations, one entry a weight, where they were asked
            for; everything else in the report is without.
        ranks: by language, every rank and, if asked for, the best answers; not saved.
    """

    dataset: str
    split: str
    protocol: dict[str, Any]
    results: list[DirectionResult]
    sum_r: dict[str, float]
    sum_r_ci95: dict[str, list[float]] = field(default_factory=dict)
    mean_rank_variance: float | None = None
    gap_to: dict[str, Any] = field(default_factory=dict)
    fused: list[FusedResult] = field(default_factory=list)
    ranks: dict[str, Ranks] = field(default_factory=dict, repr=False, compare=False)

    @property
    def sum_r_mean(self) -> float:
        """SumR averaged over languages: the score that picks the best checkpoint."""
        return sum(self.sum_r.values()) / len(self.sum_r)

    @property
    def langs(self) -> list[str]:
        """The languages, in the order of the report."""
        return list(self.sum_r)

    @property
    def directions(self) -> list[str]:
        """The directions, text to picture first."""
        return list(dict.fromkeys(result.direction for result in self.results))

    def result(self, lang: str, direction: str | None = None) -> DirectionResult:
        """Return one row; by default from text to picture or video.

        Raises:
            KeyError: if there is none; the message names those that there are.
        """
        direction = direction or self.directions[0]
        for row in self.results:
            if (row.lang, row.direction) == (lang, direction):
                return row
        raise KeyError(
            f"the report has no row {lang} {direction}; languages: {', '.join(self.langs)}; "
            f"directions: {', '.join(self.directions)}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what `report.json` holds."""
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "ranks"}
        found["results"] = [asdict(row) for row in self.results]
        found["fused"] = [asdict(one) for one in self.fused]
        return found if self.fused else {k: v for k, v in found.items() if k != "fused"}

    def save(self, folder: str | Path) -> None:
        """Write `report.json` and `report.md`, each aside and then renamed."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        _replace(folder / "report.json", text + "\n")
        _replace(folder / "report.md", markdown(self))

    @classmethod
    def load(cls, path: str | Path) -> RetrievalReport:
        """Read a report from a `report.json` or the folder that holds one.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it is not a report; names the file and what is wrong.
        """
        path = Path(path)
        path = path / "report.json" if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(f"no report at {path}; `xlcm evaluate` writes one")
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            data["results"] = [DirectionResult(**row) for row in data["results"]]
            for one in data.get("fused", ()):
                one["results"] = [DirectionResult(**row) for row in one["results"]]
            data["fused"] = [FusedResult(**one) for one in data.get("fused", ())]
            return cls(**data)
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a retrieval report: {error!r}") from error

    def __str__(self) -> str:
        return plain(self)

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        yield table(self)


def _replace(path: Path, text: str) -> None:
    aside = path.with_name(path.name + ".part")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)
