"""Fonts that have the glyphs of a text: Chinese and Japanese captions on plots."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from matplotlib import font_manager

BASE = "DejaVu Sans"  # comes with matplotlib; Latin, Greek, Cyrillic, Arabic, Hebrew and more
PREFERRED = (
    "Noto Sans CJK",
    "Noto Sans SC",
    "Source Han Sans",
    "PingFang",
    "Hiragino Sans",
    "Microsoft YaHei",
    "WenQuanYi",
    "Droid Sans Fallback",
    "Arial Unicode",
    "Noto Sans",
)
PACKAGES = ("mplfonts", "matplotlib_fontja")  # Python packages that bring fonts along
VARIABLE = "XLCM_FONT"

_told: set[str] = set()
_log = logging.getLogger(__name__)


def families_for(texts: Iterable[str]) -> tuple[str, ...]:
    """Return font families that together have every character, DejaVu Sans first.

    Looks at the file that the environment variable `XLCM_FONT` names, then at matplotlib's font
    list, at fonts installed since that list was made, and at Python packages that carry fonts.
    If glyphs are still missing it logs a warning, once for each script, with the remedy; they
    are then drawn as boxes.

    Raises:
        FileNotFoundError: if `XLCM_FONT` names a file that is not there.
    """
    missing = {c for text in texts for c in text if c.isprintable() and not c.isspace()}
    chosen = []
    for name, glyphs in _candidates():
        if not missing:
            break
        if found := missing & glyphs:
            chosen.append(name)
            missing -= found
    if missing:
        _warn(missing)
    return tuple(chosen) if BASE in chosen else (*chosen, BASE)


def _candidates() -> Iterator[tuple[str, frozenset[str]]]:
    yield BASE, _glyphs(font_manager.findfont(BASE))
    own = os.environ.get(VARIABLE)
    if own:
        if not Path(own).is_file():
            raise FileNotFoundError(f"{VARIABLE} names the font {own}, which is not there")
        yield _enter(own), _glyphs(own)

    known = font_manager.fontManager.ttflist
    usable = [f for f in known if f.style == "normal" and _weight(f.weight) and _drawn(f.name)]
    for entry in sorted(usable, key=lambda entry: _preference(entry.name)):
        if Path(entry.fname).is_file():
            yield entry.name, _glyphs(entry.fname)
    listed = {entry.fname for entry in known}
    for path in [*font_manager.findSystemFonts(), *_packaged()]:
        if path not in listed and "Italic" not in path and "Bold" not in path:
            yield _enter(path), _glyphs(path)


def _weight(weight: object) -> bool:
    return weight in ("normal", "regular", "book", "roman", 400)


def _drawn(name: str) -> bool:
    return not name.startswith(("Last Resort", "STIX", "cm"))  # boxes, and fonts of formulas


def _preference(name: str) -> int:
    return next((i for i, start in enumerate(PREFERRED) if name.startswith(start)), len(PREFERRED))


def _packaged() -> Iterator[str]:
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            for path in sorted(Path(folder).rglob("*")):
                if path.suffix.lower() in (".ttf", ".otf", ".ttc"):
                    yield str(path)


def _enter(path: str) -> str:
    """Make a font file known to matplotlib; return its family."""
    if path not in {entry.fname for entry in font_manager.fontManager.ttflist}:
        font_manager.fontManager.addfont(path)
    return font_manager.FontProperties(fname=path).get_name()


@cache
def _glyphs(path: str) -> frozenset[str]:
    try:
        return frozenset(map(chr, font_manager.get_font(path).get_charmap()))
    except (RuntimeError, OSError):  # a file that FreeType can't open has no glyphs for us
        return frozenset()


def _warn(missing: set[str]) -> None:
    kinds = {_kind(c) for c in missing}
    if kinds <= _told:
        return
    _told.update(kinds)
    sample = "".join(sorted(missing)[:8])
    _log.warning(
        "no installed font has the characters %s (%d in all): they will be boxes on the plots. "
        "Install one (Debian, Ubuntu: apt-get install fonts-noto-cjk; anywhere: pip install "
        "mplfonts) or set %s to the path of a font file.",
        sample,
        len(missing),
        VARIABLE,
    )


def _kind(character: str) -> str:
    return hex(ord(character) // 0x1000)
