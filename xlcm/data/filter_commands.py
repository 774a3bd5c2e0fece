"""`xlcm data filter`: leave out translations by their signals of quality."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from msgspec.structs import replace

from xlcm.data.languages import indistinct, language_fault
from xlcm.data.manifest import DataError, ManifestWriter, read_manifest
from xlcm.data.moving import Moving
from xlcm.registry import nearest
from xlcm.types import Caption, Item

Actions = argparse._SubParsersAction


def add_filter(actions: Actions[argparse.ArgumentParser]) -> None:
    """Declare `xlcm data filter`."""
    text = "leave out translations, and what was made of them, by their signals of quality"
    parser = actions.add_parser("filter", help=text, description=text)
    parser.add_argument("path", help="the manifest")
    parser.add_argument("--out", required=True, help="the manifest without them")
    parser.add_argument("--min", nargs="+", default=[], metavar="SIGNAL=VALUE",
                        help="such as back_chrf=40; for Chinese: zh:back_chrf=40")  # fmt: skip
    parser.add_argument("--max", nargs="+", default=[], metavar="SIGNAL=VALUE",
                        help="such as copied=0.5")  # fmt: skip
    parser.add_argument("--language", action="store_true",
                        help="leave out what is identified as another language")  # fmt: skip
    parser.add_argument("--missing", choices=["error", "keep", "drop"], default="error",
                        help="translations without a signal (default: error)")  # fmt: skip
    parser.add_argument("--drop-engine", nargs="+", default=[], metavar="ENGINE",
                        help="leave out all captions of these engines")  # fmt: skip
    parser.add_argument("--keep-paths", action="store_true",
                        help="write image paths as they are, for use with `image_root` (default: "
                        "they start from the folder of --out)")  # fmt: skip
    parser.set_defaults(run=_filter)


@dataclass(frozen=True)
class Bound:
    """What a signal may be: at least (`lowest`) or at most a value, in one language or in all."""

    signal: str
    value: float
    lowest: bool
    lang: str | None = None

    @classmethod
    def parse(cls, text: str, lowest: bool) -> Bound:
        """Read `back_chrf=40` or `zh:back_chrf=40`.

        Raises:
            DataError: if it is neither, or of a language that there is not.
        """
        name, _, value = text.partition("=")
        lang, colon, signal = name.rpartition(":")
        option = "--min" if lowest else "--max"
        if colon and (fault := language_fault(lang)):
            raise DataError(f"{option} {text}: {fault}")
        try:
            number = float(value)
            if math.isnan(number):
                raise ValueError
            return cls(signal, number, lowest, lang if colon else None)
        except ValueError:
            raise DataError(
                f"{option} {text}: expected SIGNAL=NUMBER or LANG:SIGNAL=NUMBER, such as "
                "back_chrf=40"
            ) from None

    def __str__(self) -> str:
        return f"{self.signal} {'<' if self.lowest else '>'} {self.value:g}"


def reason(
    caption: Caption, bounds: list[Bound], *, language: bool, missing: str, where: str
) -> str | None:
    """Return why a translation is to be left out; None: it stays.

    A bound for the caption's language takes the place of the same one for all languages.

    Raises:
        DataError: if it lacks a signal and `missing` is `error`.
    """
    signals = caption.quality
    own = {(b.signal, b.lowest) for b in bounds if b.lang == caption.lang}
    for bound in bounds:
        general = bound.lang is None and (bound.signal, bound.lowest) not in own
        if not general and bound.lang != caption.lang:
            continue
        value = signals.get(bound.signal)
        if value is None:
            if _lacks(caption, bound.signal, missing, where):
                return f"no {bound.signal}"
        elif isinstance(value, str):
            raise DataError(f"{where}: {bound.signal!r} is the word {value!r} and has no bounds")
        elif value < bound.value if bound.lowest else value > bound.value:
            return str(bound)
    if language:
        found = signals.get("language")
        if found is None:
            return "no language" if _lacks(caption, "language", missing, where) else None
        wanted = caption.lang.partition("-")[0]
        if indistinct(str(found)) != indistinct(wanted):
            return "another language"
    return None


def _lacks(caption: Caption, signal: str, missing: str, where: str) -> bool:
    if missing == "error":
        known = list(caption.quality)
        raise DataError(
            f"{where}: caption {caption.id!r} has no signal {signal!r}{nearest(signal, known)}; it "
            f"has {', '.join(known) or 'none'}. `--missing keep` or `--missing drop` says what "
            "becomes of such captions"
        )
    return missing == "drop"


def _filter(args: argparse.Namespace) -> int:
    from xlcm.data.tables import say, table

    bounds = [Bound.parse(text, True) for text in args.min]
    bounds += [Bound.parse(text, False) for text in args.max]
    if not bounds and not args.language and not args.drop_engine:
        raise DataError("nothing to filter by: give --min, --max, --language or --drop-engine")
    there, left = Counter[str](), Counter[tuple[str, str]]()
    engines: set[str] = set()
    signals = Counter[tuple[str, str]]()  # (language, signal)
    move = Moving(args.path, args.path if args.keep_paths else args.out)
    with ManifestWriter(args.out, made_from=args.path) as writer:
        for item in read_manifest(args.path):
            engines.update(c.engine for c in item.captions if c.engine is not None)
            out = dict(_dropped(item, bounds, args))
            kept = tuple(c for c in item.captions if c.id not in out)
            there.update(c.lang for c in item.captions if c.origin == "mt")
            langs = {c.id: c.lang for c in item.captions if c.origin == "mt"}
            signals.update(
                (c.lang, name) for c in item.captions if c.origin == "mt" for name in c.quality
            )
            left.update((langs[i], why) for i, why in out.items() if i in langs)
            writer.write(move(replace(item, captions=kept)))
        _all_known(args.drop_engine, engines, args.path)
        if there:
            _all_met(bounds, args, there, signals)
    rows = [[lang, there[lang], why, n, f"{100 * n / there[lang]:.1f} %"]
            for (lang, why), n in sorted(left.items())]  # fmt: skip
    if rows:
        table("Left out", ["language", "translations", "because", "number", "share"], rows)
    total = sum(left.values())
    say(f"{args.out}: {total:,} of {sum(there.values()):,} translations left out, with what was "
        f"made of them; {writer.captions:,} captions stay")  # fmt: skip
    if move.moved:
        say(move.tell())
    return 0


def _all_known(named: list[str], engines: set[str], path: str) -> None:
    """Refuse an engine that the manifest doesn't have: misspelt, all its captions would stay."""
    for name in named:
        if name not in engines:
            known = ", ".join(sorted(engines)) or "none, no caption names one"
            raise DataError(
                f"--drop-engine {name}: no caption of {path} is of it"
                f"{nearest(name, sorted(engines))}; engines there: {known}"
            )


def _all_met(
    bounds: list[Bound],
    args: argparse.Namespace,
    there: Mapping[str, int],
    signals: Mapping[tuple[str, str], int],
) -> None:
    """Refuse a signal that no translation has, and a bound for a language that none is in.

    Misspelt, it would bound nothing, or with `--missing drop` leave out all.
    """
    asked = [(("--min " if b.lowest else "--max ") + b.signal, b.signal, b.lang) for b in bounds]
    asked += [("--language", "language", None)] if args.language else []
    for option, signal, lang in asked:
        if lang is not None and lang not in there:
            raise DataError(f"{option} for {lang!r}: no translation of {args.path} is in it; there "
                            f"are {', '.join(sorted(there))}")  # fmt: skip
        known = sorted({name for code, name in signals if lang in (None, code)})
        if signal not in known:
            raise DataError(f"{option}: no translation of {args.path} has the signal {signal!r}"
                            f"{nearest(signal, known)}; signals there: "
                            f"{', '.join(known) or 'none'}")  # fmt: skip


def _dropped(
    item: Item, bounds: list[Bound], args: argparse.Namespace
) -> Iterator[tuple[str, str]]:
    """Yield (caption id, why) of an item: bad translations, then all that was made of them."""
    out: dict[str, str] = {}
    for caption in item.captions:
        why = None
        if caption.engine is not None and caption.engine in args.drop_engine:
            why = f"engine {caption.engine}"
        elif caption.origin == "mt":
            why = reason(caption, bounds, language=args.language, missing=args.missing,
                         where=item.where)  # fmt: skip
        if why:
            out[caption.id] = why
    yield from _with_made_of(item, out).items()


def _with_made_of(item: Item, out: Mapping[str, str]) -> dict[str, str]:
    found = dict(out)
    while more := [c for c in item.captions if c.of in found and c.id not in found]:
        found.update((c.id, "made of one left out") for c in more)
    return found
