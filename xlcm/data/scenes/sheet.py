"""Sheets to look at: pictures with captions in every language, and every kind of noise.

python -m xlcm.data.scenes.sheet --out docs/images/scenes_sheet.png
python -m xlcm.data.scenes.sheet --noise --item 19 --out docs/images/scenes_noise.png
"""

from __future__ import annotations

import argparse
import textwrap
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from xlcm.data.scenes.dataset import Scenes
from xlcm.data.scenes.grammar import LANGS
from xlcm.data.scenes.noise import NOISE_KINDS, NoiseKind
from xlcm.evaluation.fonts import families_for

INK, PALE = "#1c2430", "#6a7480"
DPI = 100
LINE = 15  # pixels
WIDE = ("zh", "ja")  # a character takes the place of two Latin letters


def caption_sheet(dataset: Scenes, indices: Sequence[int], path: str | Path) -> None:
    """Save pictures in two columns, each with its first caption in every language beside it."""
    items = [dataset[i] for i in indices]
    rows = (len(items) + 1) // 2
    figure = Figure(figsize=(14, 3.1 * rows), dpi=DPI)
    for place, (index, item) in enumerate(zip(indices, items)):
        left, top = 700 * (place // rows), 310 * (place % rows)
        _show(figure, dataset, index, left + 10, top + 10)
        rows_of_text = [(c.lang, c.text, c.lang) for c in item.captions if c.id.endswith(".0")]
        _write(figure, rows_of_text, left + 215, top + 8, 58)
    _save(figure, path, [c.text for item in items for c in item.captions])


def noise_rows(
    index: int, langs: Sequence[str] = ("de", "zh"), seed: int = 0
) -> list[tuple[str, dict[str, tuple[str, str]]]]:
    """Return for every kind of noise the caption of one item and its way back, by language.

    Returns:
        `(kind, {lang: (caption, back-translation)})`, the right caption first, as `right`.
    """
    rows: list[tuple[str, dict[str, tuple[str, str]]]] = []
    kinds: tuple[NoiseKind | None, ...] = (None, *NOISE_KINDS)
    for kind in kinds:
        dataset = Scenes(
            target_langs=list(langs), captions=1, seed=seed, cache=None,
            noise_rate=float(kind is not None),
            noise_kinds=None if kind is None else [kind],
        )  # fmt: skip
        captions = dataset[index].captions
        backs = {c.of: c.text for c in captions if c.origin == "back"}
        found = {c.lang: (c.text, backs[c.id]) for c in captions if c.origin == "mt"}
        rows.append((kind or "right", found))
    return rows


def noise_sheet(index: int, path: str | Path, langs: Sequence[str] = ("de", "zh")) -> None:
    """Save one picture with its captions under every kind of noise, each with its way back."""
    dataset = Scenes(target_langs=list(langs), captions=1, cache=None)
    rows = noise_rows(index, langs)
    source = dataset[index].captions[0]
    figure = Figure(figsize=(14, 0.95 * len(rows)), dpi=DPI)
    _show(figure, dataset, index, 10, 10)
    _write(figure, [("", source.text, source.lang)], -20, 212, 28)
    for row, (kind, found) in enumerate(rows):
        _write(figure, [("", kind.replace("_", " "), "en")], 200, 95 * row + 8, 30)
        for column, lang in enumerate(langs):
            there, back = found[lang]
            lines = [(lang, there, lang), ("back", back, "en")]
            _write(figure, lines, 360 + 520 * column, 95 * row + 8, 58)
    pairs = [pair for _, found in rows for pair in found.values()]
    _save(figure, path, [source.text, *(text for pair in pairs for text in pair)])


def noise_table(index: int, langs: Sequence[str] = ("de", "zh", "sw")) -> str:
    """Return a Markdown table: kinds of noise down, languages across, each with its way back."""
    head = " | ".join(["kind", *langs])
    lines = [f"| {head} |", "|---" * (len(langs) + 1) + "|"]
    for kind, found in noise_rows(index, langs):
        cells = [f"{there}<br>*{back}*" for there, back in (found[lang] for lang in langs)]
        lines.append(f"| {' | '.join([f'`{kind}`' if kind != 'right' else kind, *cells])} |")
    return "\n".join(lines)


def _show(figure: Figure, dataset: Scenes, index: int, left: int, top: int) -> None:
    """Put a picture on whole pixels, three times as large: sharp, and small in the file."""
    picture = dataset.load_image(index)
    side = 3 * dataset.image_size
    large = np.asarray(picture.resize((side, side), Image.Resampling.NEAREST))
    height = round(figure.get_figheight() * DPI)
    figure.figimage(large, xo=left, yo=height - top - side, origin="upper")


def _write(
    figure: Figure, rows: Sequence[tuple[str, str, str]], left: int, top: int, width: int
) -> None:
    """Write `(label, text, lang)` one below the other, wrapped to `width` Latin letters."""
    across, down = figure.get_figwidth() * DPI, figure.get_figheight() * DPI
    for label, text, lang in rows:
        wrapped = _wrap_wide(text, width // 2) if lang in WIDE else textwrap.wrap(text, width)
        figure.text(left / across, 1 - top / down, label, va="top", fontsize=8, color=PALE)
        for line in wrapped:
            figure.text((left + 34) / across, 1 - top / down, line, va="top", fontsize=9, color=INK)
            top += LINE
        top += 4


def _wrap_wide(text: str, width: int) -> list[str]:
    """Break between any two characters, but leave no mark at the start of a line."""
    lines = [""]
    for character in text:
        if len(lines[-1]) >= width and character not in "，、。":
            lines.append("")
        lines[-1] += character
    return lines


def _save(figure: Figure, path: str | Path, texts: Iterable[str]) -> None:
    """Write a PNG with fonts for these texts."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    families = families_for(texts)
    for text in figure.texts:
        text.set_fontfamily(families)
    with warnings.catch_warnings():
        # said once, with the remedy, by xlcm.evaluation.fonts
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(path, facecolor="white", pil_kwargs={"optimize": True})


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw one of the two sheets."""
    parser = argparse.ArgumentParser(description="Draw a sheet of scenes with their captions.")
    parser.add_argument("--out", help="the PNG to write; without it, --noise prints a table")
    parser.add_argument("--noise", action="store_true", help="kinds of noise instead of languages")
    parser.add_argument("--item", type=int, default=0, help="the item, or the first of them")
    parser.add_argument("--pictures", type=int, default=6, help="how many (without --noise)")
    chosen = parser.parse_args(arguments)
    if chosen.out is None:
        if not chosen.noise:
            parser.error("--out names the PNG to write")
        print(noise_table(chosen.item))
        return
    if chosen.noise:
        noise_sheet(chosen.item, chosen.out)
        return
    last = chosen.item + chosen.pictures
    dataset = Scenes(split="test", size=last, target_langs=LANGS[1:], captions=1, cache=None)
    caption_sheet(dataset, range(chosen.item, last), chosen.out)


if __name__ == "__main__":
    main()
