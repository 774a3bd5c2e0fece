"""From the views of a config to those that captions are drawn for: names, and parents first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from xlcm.config import ConfigError
from xlcm.registry import nearest

if TYPE_CHECKING:
    from xlcm.data.views import View


def one_language_each(views: Mapping[str, View]) -> tuple[dict[str, View], dict[str, str]]:
    """Return the views with `every` taken apart, and by their names those of the config.

    Raises:
        ConfigError: if two views have one name.
    """
    single: dict[str, View] = {}
    written: dict[str, str] = {}
    for name, view in views.items():
        for lang in view.langs if view.every else [None]:
            made = name if lang is None else f"{name}.{lang}"
            if made in single or (lang is not None and made in views):
                raise ConfigError(
                    f"data.views.{made}: {name!r} with every=true stands for a view of the same "
                    "name; rename one of the two"
                )
            alone = {"langs": [lang], "every": False, "optional": False}
            single[made] = view if lang is None else view.model_copy(update=alone)
            written[made] = name
    return single, written


def parents_first(
    views: Mapping[str, View], single: Mapping[str, View], optional: frozenset[str]
) -> list[str]:
    """Return the names of views with parents before their children, else in the config's order.

    Args:
        views: as the config has them.
        single: the same with `every` taken apart.
        optional: names of those that an item may lack.

    Raises:
        ConfigError: if `of` names no view, or one that can't be a parent, or goes in a circle.
    """
    for name, view in views.items():
        if view.of is None:
            continue
        key = f"data.views.{name}.of"
        if view.of in views and views[view.of].every:
            one = f"{view.of}.{views[view.of].langs[0]}"
            raise ConfigError(
                f"{key}: {view.of!r} has a caption in every language; name the one that it is "
                f"made from, such as {one!r}"
            )
        if view.of not in single:
            hint = nearest(view.of, single) or f"; there are {', '.join(single)}"
            raise ConfigError(f"{key}: no view is called {view.of!r}{hint}")
        if view.of in optional:
            raise ConfigError(
                f"{key}: an item may lack {view.of!r}, as it is optional; make it needed "
                "(optional=false), or take this view out"
            )
    ordered: list[str] = []
    waiting = list(single)
    while waiting:
        ready = [n for n in waiting if single[n].of is None or single[n].of in ordered]
        if not ready:
            among = ", ".join(waiting)
            raise ConfigError(f"data.views: `of` goes round in a circle among {among}")
        ordered += ready
        waiting = [n for n in waiting if n not in ready]
    return ordered
