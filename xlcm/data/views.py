"""Which captions of an item a method gets: its views, drawn by language, origin and descent.

A config says what each view is; nothing else in the library knows where a caption came from:

    views:
      source: {langs: [en], origin: [human]}
      target: {langs: [de, zh], of: source, temperature: 2.0}
      back:   {langs: [en], of: target}
      targets: {langs: [de, zh], of: source, every: true}   # stands for targets.de and targets.zh
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Annotated

import numpy as np
from msgspec.structs import replace
from pydantic import Field, field_validator, model_validator

from xlcm.config import ConfigError, Section
from xlcm.data.cleaning import CLEANINGS, Cleaning
from xlcm.data.languages import language_fault
from xlcm.data.manifest import DataError
from xlcm.data.view_names import one_language_each, parents_first
from xlcm.registry import nearest
from xlcm.types import Caption, Item, Origin


class View(Section):
    """The captions that fit one view.

    Args:
        langs: BCP 47 codes; one is drawn for each row, or all with `every`.
        origin: allowed origins; None allows all.
        of: another view; only captions made from its caption (`Caption.of`) fit, so that the
            two say the same.
        temperature: a language that the item has is drawn with probability proportional to
            (its captions in the data) ** (1 / temperature): 1 follows the data, larger values
            lift the rare languages.
        clean: what is kept of a caption's text: `none` leaves it as it is; `letters`: unaccented
            Latin letters and digits, as NRCCR does with English; `words`: letters, digits and
            apostrophes, as C2KD does for its teachers.
        every: one caption in every language at once. The view stands for one view a language,
            `<name>.<language>`; with `of`, all of a row are made from the same caption and so
            translations of one another.
        optional: only with `every`: an item that lacks a language is trained on in the others.
    """

    langs: Annotated[list[str], Field(min_length=1)]
    origin: list[Origin] | None = None
    of: str | None = None
    temperature: Annotated[float, Field(gt=0)] = 1.0
    clean: Cleaning = "none"
    every: bool = False
    optional: bool = False

    @field_validator("langs")
    @classmethod
    def _known(cls, langs: list[str]) -> list[str]:
        faults = [fault for lang in langs if (fault := language_fault(lang))]
        if faults:
            raise ValueError("; ".join(faults))
        return langs

    @model_validator(mode="after")
    def _fits_together(self) -> View:
        if self.every and self.temperature != 1.0:
            raise ValueError(
                f"temperature={self.temperature:g} weighs languages against each other, but with "
                "every=true all are taken: leave one of the two out"
            )
        if self.every and len(set(self.langs)) < len(self.langs):
            raise ValueError(f"every=true, but langs={self.langs} names a language twice")
        if self.optional and not self.every:
            raise ValueError(
                "optional=true is for views with every=true; items without a caption for another "
                "view are left out with data.incomplete=drop"
            )
        return self


class Views:
    """Draws one caption a view for each row.

    Args:
        views: by name; `of` must name another of them, without going round in a circle.
        counts: by view, then language: captions in the data that fit, for the temperature;
            None: all alike.

    Attributes:
        views: the views that captions are drawn for, parents before their children: one with
            `every` is replaced by one a language.
        optional: names of those that an item may lack.

    Raises:
        ConfigError: if `of` names no view, one that has no single caption, or one that may lack
            it, or goes round in a circle; if two views have one name.
    """

    def __init__(
        self, views: Mapping[str, View], counts: Mapping[str, Mapping[str, int]] | None = None
    ) -> None:
        single, self._written = one_language_each(views)
        self.optional = frozenset(n for n in single if views[self._written[n]].optional)
        self.views = {name: single[name] for name in parents_first(views, single, self.optional)}
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

    @property
    def first(self) -> str | None:
        """Return the first view that every item has, whose captions rows may go over, if any."""
        return next((name for name in self.views if name not in self.optional), None)

    def names(self, name: str) -> tuple[str, ...]:
        """Return the views that a name of the config stands for.

        Raises:
            ConfigError: if there is no such view.
        """
        if name in self.views:
            return (name,)
        found = tuple(single for single, written in self._written.items() if written == name)
        if not found:
            known = list(dict.fromkeys([*self._written.values(), *self.views]))
            hint = nearest(name, known) or f"; there are {', '.join(known)}"
            raise ConfigError(f"data.views: no view is called {name!r}{hint}")
        return found

    def written(self, name: str) -> str:
        """Return the config's name of a view: `targets` for `targets.de`."""
        return self._written[name]

    def candidates(self, item: Item) -> dict[str, list[Caption]]:
        """Return the captions that fit each view; parents keep only those with all descendants.

        Raises:
            DataError: if `clean` leaves nothing of one.
        """
        return {
            name: [self._clean(name, item, caption) for caption in captions]
            for name, captions in self._fitting(item).items()
        }

    def _fitting(self, item: Item) -> dict[str, list[Caption]]:
        fitting = {name: self._own(name, item) for name in self.views}
        for name in reversed(self.views):  # children before their parents
            parent = self.views[name].of
            if parent is not None and name not in self.optional:
                made_from = {caption.of for caption in fitting[name]}
                fitting[parent] = [c for c in fitting[parent] if c.id in made_from]
        for name, view in self.views.items():  # and parents that lost captions, before children
            if view.of is not None:
                kept = {caption.id for caption in fitting[view.of]}
                fitting[name] = [c for c in fitting[name] if c.of in kept]
        return fitting

    def _own(self, name: str, item: Item) -> list[Caption]:
        """Return the captions of a view's languages and origins, whatever they are made from."""
        view = self.views[name]
        return [
            caption
            for caption in item.captions
            if caption.lang in view.langs and (view.origin is None or caption.origin in view.origin)
        ]

    def _clean(self, name: str, item: Item, caption: Caption) -> Caption:
        how = self.views[name].clean
        if how == "none":
            return caption
        text = CLEANINGS[how](caption.text)
        if not text:
            raise DataError(
                f"{item.where or 'data'}: data.views.{self.written(name)}.clean={how} leaves "
                f"nothing of caption {caption.id!r} ({caption.text!r}); take the caption out, or "
                "set clean to none"
            )
        return replace(caption, text=text)

    def missing(self, item: Item) -> list[str]:
        """Return the names of the views that the item has no caption for and must have one.

        Where all are optional, an item without any caption lacks them all.
        """
        return self.lacking(self._fitting(item))

    def lacking(self, fitting: Mapping[str, list[Caption]]) -> list[str]:
        """Return what `missing` does, for what `candidates` has found."""
        empty = [name for name, captions in fitting.items() if not captions]
        if len(empty) == len(self.views):
            return empty
        return [name for name in empty if name not in self.optional]

    def draw(
        self, item: Item, random: np.random.Generator, fixed: str | None = None
    ) -> dict[str, Caption]:
        """Return one caption a view, and none for optional views where there is none.

        Args:
            item: where the captions come from.
            random: this row's own generator.
            fixed: a caption id that the first view must take (rows that go over captions).

        Raises:
            DataError: if a view finds no caption, naming the item and the way out; if `clean`
                leaves nothing of one.
        """
        fitting = self._fitting(item)
        if self.lacking(fitting):
            raise DataError(self.lacks(item))
        drawn: dict[str, Caption] = {}
        for name, view in self.views.items():
            captions = fitting[name]
            if view.of is not None:
                captions = [c for c in captions if c.of == drawn[view.of].id]
            elif name == self.first and fixed is not None:
                captions = [c for c in captions if c.id == fixed]
            if captions:
                drawn[name] = self._clean(name, item, self._one(name, captions, random))
            elif name not in self.optional:  # such a row was numbered among other captions
                raise DataError(
                    f"{item.where or 'data'}: caption {fixed!r} of item {item.id!r} does not fit "
                    f"the view `{name}`"
                )
        return drawn

    def _one(self, name: str, captions: list[Caption], random: np.random.Generator) -> Caption:
        langs = list(dict.fromkeys(caption.lang for caption in captions))
        if len(langs) > 1:
            odds = np.array([self.odds[name][lang] for lang in langs])
            lang = langs[int(random.choice(len(langs), p=odds / odds.sum()))]
            captions = [caption for caption in captions if caption.lang == lang]
        if len(captions) == 1:  # a generator draws nothing of one, and need not even be made
            return captions[0]
        return captions[int(random.integers(len(captions)))]

    def lacks(self, item: Item) -> str:
        """Return the sentence for an item without a caption for a view, with the way out."""
        name, more = self._first_gap(item)
        has = Counter((c.lang, c.origin) for c in item.captions)
        listed = ", ".join(f"{n} x {lang} {origin}" for (lang, origin), n in sorted(has.items()))
        skip = ""
        if self.written(name) != name:
            skip = f"; data.views.{self.written(name)}.optional=true trains on its other languages"
        return (
            f"{item.where or 'data'}: item {item.id!r} has no caption for the view `{name}` "
            f"({'/'.join(self.views[name].langs)}{self.wanted(name)}){more}; it has "
            f"{listed or 'none'}. Make it by machine translation (`xlcm translate`), change "
            f"data.views, or leave such items out with data.incomplete=drop{skip}"
        )

    def _first_gap(self, item: Item) -> tuple[str, str]:
        """Return the first view, parents first, without a caption, and what one must have had."""
        ids: dict[str, set[str]] = {}
        for name, view in self.views.items():
            found = self._own(name, item)
            if view.of is not None:
                found = [caption for caption in found if caption.of in ids[view.of]]
            if not found and (name not in self.optional or self.first is None):
                return name, ""
            ids[name] = {caption.id for caption in found}
        children = [f"`{name}`" for name, view in self.views.items() if view.of is not None]
        return next(iter(self.lacking(self._fitting(item)))), (
            f" of which captions for all of {', '.join(children)} are made"
        )

    def wanted(self, name: str) -> str:
        """Return what a view asks of a caption beside its language, for messages."""
        view = self.views[name]
        origin = f" of origin {' or '.join(view.origin)}" if view.origin else ""
        if view.of is None:
            return origin
        same = [lang for lang in view.langs if lang in self.views[view.of].langs]
        own = f", whose own language {'/'.join(same)} is" if same else ""
        return f"{origin} made from its `{view.of}` caption{own}"
