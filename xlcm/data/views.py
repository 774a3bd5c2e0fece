"""Which captions of an item a method gets: its views, drawn by language, origin and descent.

A config says what each view is; nothing else in the library knows where a caption came from:

    views:
      source: {langs: [en], origin: [human]}
      target: {langs: [de, zh], of: source, temperature: 2.0}
      back:   {langs: [en], of: target}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Annotated

import numpy as np
from pydantic import Field, field_validator

from xlcm.config import ConfigError, Section
from xlcm.data.languages import language_fault
from xlcm.data.manifest import DataError
from xlcm.registry import nearest
from xlcm.types import Caption, Item, Origin


class View(Section):
    """The captions that fit one view.

    Args:
        langs: BCP 47 codes; one is drawn for each row.
        origin: allowed origins; None allows all.
        of: another view; only captions made from its caption (`Caption.of`) fit, so that the
            two say the same.
        temperature: a language that the item has is drawn with probability proportional to
            (its captions in the data) ** (1 / temperature): 1 follows the data, larger values
            lift the rare languages.
    """

    langs: Annotated[list[str], Field(min_length=1)]
    origin: list[Origin] | None = None
    of: str | None = None
    temperature: Annotated[float, Field(gt=0)] = 1.0

    @field_validator("langs")
    @classmethod
    def _known(cls, langs: list[str]) -> list[str]:
        faults = [fault for lang in langs if (fault := language_fault(lang))]
        if faults:
            raise ValueError("; ".join(faults))
        return langs


class Views:
    """Draws one caption a view for each row.

    Args:
        views: by name; `of` must name another of them, without going round in a circle.
        counts: by view, then language: captions in the data that fit, for the temperature;
            None: all alike.

    Raises:
        ConfigError: if `of` names no view or goes round in a circle.
    """

    def __init__(
        self, views: Mapping[str, View], counts: Mapping[str, Mapping[str, int]] | None = None
    ) -> None:
        self.views = {name: views[name] for name in _parents_first(views)}
        self.odds = {
            name: {
                lang: max(counts[name].get(lang, 0), 1) ** (1 / view.temperature) if counts else 1.0
                for lang in view.langs
            }
            for name, view in self.views.items()
        }

    @property
    def langs(self) -> list[str]:
        """Return every language that some view draws from, in the order of the config."""
        return list(dict.fromkeys(lang for view in self.views.values() for lang in view.langs))

    def candidates(self, item: Item) -> dict[str, list[Caption]]:
        """Return the captions that fit each view; parents keep only those with all descendants."""
        fitting = {
            name: [
                caption
                for caption in item.captions
                if caption.lang in view.langs
                and (view.origin is None or caption.origin in view.origin)
            ]
            for name, view in self.views.items()
        }
        for name in reversed(self.views):  # children before their parents
            parent = self.views[name].of
            if parent is not None:
                made_from = {caption.of for caption in fitting[name]}
                fitting[parent] = [c for c in fitting[parent] if c.id in made_from]
        for name, view in self.views.items():  # and parents that lost captions, before children
            if view.of is not None:
                kept = {caption.id for caption in fitting[view.of]}
                fitting[name] = [c for c in fitting[name] if c.of in kept]
        return fitting

    def missing(self, item: Item) -> list[str]:
        """Return the names of the views that the item has no caption for."""
        return [name for name, captions in self.candidates(item).items() if not captions]

    def draw(
        self, item: Item, random: np.random.Generator, fixed: str | None = None
    ) -> dict[str, Caption]:
        """Return one caption a view.

        Args:
            item: where the captions come from.
            random: this row's own generator.
            fixed: a caption id that the first view must take (rows that go over captions).

        Raises:
            DataError: if a view finds no caption, naming the item and the way out.
        """
        fitting = self.candidates(item)
        drawn: dict[str, Caption] = {}
        for position, (name, view) in enumerate(self.views.items()):
            captions = fitting[name]
            if view.of is not None:
                captions = [c for c in captions if c.of == drawn[view.of].id]
            elif position == 0 and fixed is not None:
                captions = [c for c in captions if c.id == fixed]
            if not captions:
                raise DataError(lacks(item, name, view))
            drawn[name] = self._one(name, captions, random)
        return drawn

    def _one(self, name: str, captions: list[Caption], random: np.random.Generator) -> Caption:
        langs = list(dict.fromkeys(caption.lang for caption in captions))
        if len(langs) > 1:
            odds = np.array([self.odds[name][lang] for lang in langs])
            lang = langs[int(random.choice(len(langs), p=odds / odds.sum()))]
            captions = [caption for caption in captions if caption.lang == lang]
        return captions[int(random.integers(len(captions)))]


def lacks(item: Item, name: str, view: View) -> str:
    """Return the sentence for an item without a caption for a view, with the way out."""
    made = f" made from its `{view.of}` caption" if view.of else ""
    origin = f" of origin {' or '.join(view.origin)}" if view.origin else ""
    has = Counter((c.lang, c.origin) for c in item.captions)
    listed = ", ".join(f"{n} x {lang} {origin}" for (lang, origin), n in sorted(has.items()))
    return (
        f"{item.where or 'data'}: item {item.id!r} has no caption for the view `{name}` "
        f"({'/'.join(view.langs)}{origin}{made}); it has {listed or 'none'}. Make the missing "
        "captions by machine translation, change data.views, or leave such items out with "
        "data.incomplete=drop"
    )


def _parents_first(views: Mapping[str, View]) -> Iterable[str]:
    for name, view in views.items():
        if view.of is not None and view.of not in views:
            hint = nearest(view.of, views) or f"; there are {', '.join(views)}"
            raise ConfigError(f"data.views.{name}.of: no view is called {view.of!r}{hint}")
    ordered: list[str] = []
    waiting = list(views)
    while waiting:
        ready = [n for n in waiting if views[n].of is None or views[n].of in ordered]
        if not ready:
            among = ", ".join(waiting)
            raise ConfigError(f"data.views: `of` goes round in a circle among {among}")
        ordered += ready
        waiting = [n for n in waiting if n not in ready]
    return ordered
