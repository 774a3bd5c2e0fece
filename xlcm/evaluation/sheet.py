"""The retrieval sheet: queries in many languages beside the pictures that a model finds."""

from __future__ import annotations

import logging
import random
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from xlcm.data.manifest import DataError
from xlcm.evaluation.fonts import BASE, families_for
from xlcm.evaluation.report import RetrievalReport
from xlcm.evaluation.style import COLOURS, GREY, figure

log = logging.getLogger(__name__)

RIGHT = COLOURS[2]
LINE_WIDTH = 28  # Latin letters; a Chinese character counts two
MAX_LINES = 5
PIXELS = 240  # of a picture's longer side on the sheet


@dataclass(frozen=True)
class SheetRow:
    """One query and what was found.

    Args:
        lang: BCP 47 code.
        text: the caption asked with.
        found: indices of the pictures, best first.
        scores: their similarity with the text.
        right: index of the picture that the caption describes; None where nobody knows.
        rank: its rank, from 1 on; that of the best one, if several are right.
        further: indices of other pictures that it describes as well.
    """

    lang: str
    text: str
    found: Sequence[int]
    scores: Sequence[float]
    right: int | None = None
    rank: float | None = None
    further: Sequence[int] = ()


def sheet_rows(
    report: RetrievalReport,
    texts: Mapping[str, Sequence[str]],
    *,
    queries: int = 4,
    columns: int = 5,
    seed: int = 0,
) -> list[SheetRow]:
    """Draw queries by lot, so that nobody picks the ones that look good.

    Every language asks for the same pictures, as far as each of them has a caption there.

    Args:
        report: made by `evaluate_embeddings(..., top_k=columns)`.
        texts: by language the captions, in the order in which they were embedded.
        queries: pictures to ask for; each is a row in every language.
        columns: pictures to show for each query.
        seed: of the lot.

    Raises:
        ValueError: if the report did not keep the best answers, or the number of texts differs
            from that of the embeddings.
    """
    langs = [lang for lang in report.ranks if lang in texts]
    for lang in langs:
        ranks = report.ranks[lang]
        if ranks.top_images is None:
            raise ValueError(
                "this report did not keep the pictures found; evaluate with "
                f"evaluate_embeddings(..., top_k={columns})"
            )
        if len(texts[lang]) != len(ranks.caption_image):
            raise ValueError(
                f"{len(texts[lang])} texts in {lang!r}, but {len(ranks.caption_image)} embeddings"
            )
    if not langs:
        raise ValueError(f"no language in common: report {list(report.ranks)}, texts {list(texts)}")
    owners = {lang: report.ranks[lang].caption_image.tolist() for lang in langs}
    shared = set.intersection(*(set(owner) for owner in owners.values()))
    pool = sorted(shared or set(owners[langs[0]]))
    chosen = random.Random(seed).sample(pool, min(queries, len(pool)))
    return [
        _row(report, lang, texts[lang], owners[lang].index(picture), columns)
        for picture in chosen
        for lang in langs
        if picture in owners[lang]
    ]


def _row(
    report: RetrievalReport, lang: str, texts: Sequence[str], caption: int, columns: int
) -> SheetRow:
    ranks = report.ranks[lang]
    best = ranks.top_images
    assert best is not None
    further: list[int] = []
    if ranks.relevant is not None:
        further = ranks.relevant[ranks.relevant[:, 0] == caption, 1].tolist()
    return SheetRow(
        lang,
        texts[caption],
        best.index[caption, :columns].tolist(),
        best.score[caption, :columns].tolist(),
        int(ranks.caption_image[caption]),
        float(ranks.text_to_image[caption]),
        further,
    )


def retrieval_sheet(
    rows: Sequence[SheetRow],
    image: Callable[[int], Image.Image],
    path: str | Path,
    *,
    title: str = "",
) -> Path | None:
    """Draw one line a query: its text, then the pictures found; the right one is framed.

    A picture that can't be had is a grey tile; how many there are stands in the log.

    Args:
        rows: from `sheet_rows` or a search.
        image: gives the picture of an index, or raises DataError; called once for each.
        path: the PNG file to write.
        title: above the sheet.

    Returns:
        The path; None, and no file, if not one picture can be had.

    Raises:
        ValueError: if there is no row.
    """
    if not rows:
        raise ValueError("a retrieval sheet needs at least one query")
    columns = max(len(row.found) for row in rows)
    pictures = _pictures({index for row in rows for index in row.found}, image)
    if not any(pictures.values()):
        return None
    families = families_for([title, *(row.text for row in rows)])
    side = 1.35
    head = 0.35 + 0.35 * bool(title)
    size = (2.75 + columns * (side + 0.1), head + len(rows) * (side + 0.32))
    with figure(path, size, families=families) as drawn:
        drawn.set_layout_engine("none")
        # the fonts that complete DejaVu Sans seldom come with a bold cut
        _title(drawn, title, size, "bold" if families == (BASE,) else "normal")
        for number, row in enumerate(rows):
            top = head + number * (side + 0.32)
            _query(drawn, row, top, size)
            for column, (index, score) in enumerate(zip(row.found, row.scores)):
                box = (2.7 + column * (side + 0.1), top, side, side)
                axes = _place(drawn, box, size)
                _picture(axes, pictures[index], f"{score:.2f}", index in _right(row))
    return Path(path)


def _right(row: SheetRow) -> set[int | None]:
    return {row.right, *row.further}


def _pictures(
    wanted: set[int], image: Callable[[int], Image.Image]
) -> dict[int, Image.Image | None]:
    pictures: dict[int, Image.Image | None] = {}
    faults: list[DataError] = []
    for index in sorted(wanted):
        try:
            pictures[index] = _small(image(index))
        except DataError as error:
            pictures[index] = None
            faults.append(error)
    if len(faults) == len(wanted):
        log.warning("no sheet of found pictures, since there are none to show: %s", faults[0])
    elif faults:
        log.warning("%d of %d pictures on the sheet of found pictures are grey tiles: %s",
                    len(faults), len(wanted), faults[0])  # fmt: skip
    return pictures


def _small(picture: Image.Image) -> Image.Image:
    picture = picture.convert("RGB")
    # squares of one size make a calm sheet; the rest of the picture is padded, not cut
    return ImageOps.pad(picture, (PIXELS, PIXELS), color="#f0f0f0")


def _place(
    drawn: Figure, box: tuple[float, float, float, float], size: tuple[float, float]
) -> Axes:
    """Return axes at `left, top, width, height`, inches from the upper left corner."""
    left, top, width, height = box
    return drawn.add_axes(
        (left / size[0], 1 - (top + height) / size[1], width / size[0], height / size[1])
    )


def _title(drawn: Figure, title: str, size: tuple[float, float], weight: str) -> None:
    if title:
        drawn.text(0.15 / size[0], 1 - 0.25 / size[1], title, weight=weight, size=12, va="center")
    key = "green frame: the picture that the caption describes · number: similarity"
    drawn.text(
        1 - 0.15 / size[0], 1 - 0.25 / size[1], key, size=8, color=GREY, ha="right", va="center"
    )


def _query(drawn: Figure, row: SheetRow, top: float, size: tuple[float, float]) -> None:
    x, y = 0.15 / size[0], 1 - (top + 0.02) / size[1]
    drawn.text(
        x + 0.02 / size[0], y, row.lang, size=9, family=BASE, weight="bold", color="white",
        va="top", bbox={"boxstyle": "round,pad=0.25", "color": COLOURS[0]},
    )  # fmt: skip
    if row.rank is not None:
        note = f"right picture: rank {row.rank:,g}"
        shown = not _right(row).isdisjoint(row.found)
        drawn.text(
            x + 0.5 / size[0], y, note, size=8, color=RIGHT if shown else COLOURS[1], va="top"
        )
    text = "\n".join(wrap(row.text))
    drawn.text(x, y - 0.3 / size[1], text, size=9.5, va="top", linespacing=1.25)


def _picture(axes: Axes, picture: Image.Image | None, score: str, right: bool) -> None:
    if picture is None:
        axes.set_facecolor("#d0d0d0")
        axes.text(0.5, 0.5, "no picture", size=8, family=BASE, color=GREY, ha="center", va="center")
    else:
        axes.imshow(picture)  # type: ignore[arg-type]
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set(color=RIGHT if right else "#cccccc", linewidth=3.5 if right else 0.6)
    axes.set_xlabel(
        f"✓ {score}" if right else score,
        size=8, family=BASE, labelpad=4, color=RIGHT if right else GREY,
        weight="bold" if right else "normal",
    )  # fmt: skip


def wrap(text: str, width: int = LINE_WIDTH, lines: int = MAX_LINES) -> list[str]:
    """Break a text between words, or anywhere in scripts that write none apart.

    Args:
        text: any text; line breaks in it count as spaces.
        width: of a line in Latin letters; wide characters (Chinese, Japanese) count two.
        lines: what is left after so many is cut and ends in `…`.
    """
    out, line = [], ""
    for piece in _pieces(" ".join(text.split())):
        if line and _cells(line + piece.rstrip()) > width:
            out.append(line.rstrip())
            line = piece.lstrip()
        else:
            line += piece
        while _cells(line.rstrip()) > width:  # a word longer than the line
            keep = max(1, next(i for i in range(len(line), 0, -1) if _cells(line[:i]) <= width))
            out.append(line[:keep])
            line = line[keep:]
    out.append(line.rstrip())
    if len(out) > lines:
        out = [*out[: lines - 1], out[lines - 1][: width - 1] + "…"]
    return out


def _pieces(text: str) -> list[str]:
    """Split into words with the space after them; wide characters stand alone."""
    pieces, word = [], ""
    for character in text:
        word += character
        if character == " " or unicodedata.east_asian_width(character) in "WF":
            pieces.append(word)
            word = ""
    return [*pieces, word] if word else pieces


def _cells(text: str) -> int:
    return sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in text)
