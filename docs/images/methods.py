"""Draws the pictures of the methods' pages: `python docs/images/methods.py` writes them anew.

Each lies on a panel of its own colour, so that it reads alike on a light and on a dark page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
INK, FAINT, PANEL = "#1f2933", "#66727f", "#fbfbf8"
KEPT, TEACHER, TERM = "#2563a8", "#7a7f87", "#c2410c"
FILLS = {KEPT: "#e3eefa", TEACHER: "#eeeef0", TERM: "#fdeee3"}
SIZE = 13
GLYPH = 0.62  # mean width of a letter over the font's size, in the widest of the usual fonts


class Picture:
    """An SVG that grows by shapes; lengths are pixels.

    Args:
        width: of the whole.
        height: of the whole.
        title: what it shows, for those who can't see it.
    """

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height = width, height
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img" '
            'font-family="DejaVu Sans, Verdana, Helvetica, Arial, sans-serif">',
            f"<title>{escape(title)}</title>",
            "<defs>",
            *(
                f'<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
                f'markerHeight="7" orient="auto-start-reverse"><path d="M0 0L10 5L0 10z" '
                f'fill="{colour}"/></marker>'
                for name, colour in (("ink", FAINT), ("term", TERM), ("kept", KEPT))
            ),
            "</defs>",
            f'<rect width="{width}" height="{height}" rx="10" fill="{PANEL}" stroke="#c9cdd2"/>',
        ]

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: float = SIZE,
        colour: str = INK,
        anchor: str = "middle",
        bold: bool = False,
        italic: bool = False,
    ) -> None:
        """Write one line, its middle line at y."""
        left = {"start": x, "middle": x - width(words, size) / 2, "end": x - width(words, size)}
        if left[anchor] < 0 or left[anchor] + width(words, size) > self.width:
            raise ValueError(f"{words!r} does not fit into the picture")
        style = (' font-weight="bold"' if bold else "") + (' font-style="italic"' if italic else "")
        self.parts.append(
            f'<text x="{x:g}" y="{y + size * 0.36:g}" font-size="{size:g}" fill="{colour}" '
            f'text-anchor="{anchor}"{style}>{escape(words)}</text>'
        )

    def box(
        self,
        x: float,
        y: float,
        w: float,
        h: float,
        lines: Sequence[str],
        *,
        colour: str = KEPT,
        dashed: bool = False,
        size: float = SIZE,
    ) -> None:
        """Draw a box with its upper left corner at (x, y), and lines of text in its middle.

        Raises:
            ValueError: if a line is wider than the box.
        """
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="6" '
            f'fill="{FILLS[colour]}" stroke="{colour}" stroke-width="1.5"{dash}/>'
        )
        for number, line in enumerate(lines):
            if width(line, size) > w - 6:
                raise ValueError(f"{line!r} does not fit into {w:g} pixels")
            middle = y + h / 2 + (number - (len(lines) - 1) / 2) * size * 1.35
            self.text(x + w / 2, middle, line, size=size)

    def card(self, x: float, y: float, w: float, caption: str, kind: str) -> None:
        """Draw a caption with what it is above it."""
        self.text(x, y - 27, kind, size=11, colour=FAINT, anchor="start")
        self.parts.append(
            f'<rect x="{x:g}" y="{y - 17:g}" width="{w:g}" height="34" rx="4" fill="#ffffff" '
            'stroke="#c9cdd2"/>'
        )
        if width(caption, 12) > w - 8:
            raise ValueError(f"{caption!r} does not fit into {w:g} pixels")
        self.text(x + w / 2, y, caption, size=12, italic=True)

    def dot(self, x: float, y: float, name: str, *, colour: str = KEPT) -> None:
        """Draw a vector: a circle of radius 17 with its symbol."""
        self.parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="17" fill="{colour}"/>')
        self.text(x, y, name, size=16, colour="#ffffff", bold=True, italic=True)

    def arrow(
        self,
        *points: tuple[float, float],
        kind: str = "ink",
        both: bool = False,
        thick: float = 1.6,
    ) -> None:
        """Draw a line through the points with a head at its end, or at both ends."""
        colour = {"ink": FAINT, "term": TERM, "kept": KEPT}[kind]
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        start = f' marker-start="url(#{kind})"' if both else ""
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{thick:g}" '
            f'marker-end="url(#{kind})"{start}/>'
        )

    def matrix(
        self,
        x: float,
        y: float,
        cell: float,
        values: Sequence[Sequence[float]],
        *,
        colour: str,
        marked: Sequence[tuple[int, int]] = (),
    ) -> None:
        """Draw cells from white (0) to the colour (1), upper left corner at (x, y)."""
        for row, line in enumerate(values):
            for column, value in enumerate(line):
                edge = TERM if (row, column) in marked else "#b8bec6"
                self.parts.append(
                    f'<rect x="{x + column * cell:g}" y="{y + row * cell:g}" width="{cell:g}" '
                    f'height="{cell:g}" fill="{blend(colour, value)}" stroke="{edge}"/>'
                )

    def scene(self, x: float, y: float, *, scale: float = 1.0) -> None:
        """Draw the image: a red ball on grass, 90 x 70 times the scale."""
        w, h = 90 * scale, 70 * scale
        self.parts += [
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" fill="#cfe6f5" '
            'stroke="#9aa5b1"/>',
            f'<rect x="{x:g}" y="{y + h * 0.62:g}" width="{w:g}" height="{h * 0.38:g}" '
            'fill="#7fb069"/>',
            f'<circle cx="{x + w * 0.5:g}" cy="{y + h * 0.58:g}" r="{h * 0.2:g}" fill="#d33a2c"/>',
        ]

    def legend(self, y: float, entries: Sequence[tuple[str, bool, str]], x: float = 24) -> None:
        """Explain colours: (colour, dashed, words)."""
        for colour, dashed, words in entries:
            dash = ' stroke-dasharray="4 3"' if dashed else ""
            self.parts.append(
                f'<rect x="{x:g}" y="{y - 7:g}" width="20" height="14" rx="3" '
                f'fill="{FILLS[colour]}" stroke="{colour}" stroke-width="1.5"{dash}/>'
            )
            self.text(x + 28, y, words, size=12, anchor="start")
            x += 28 + width(words, 12) + 26

    def svg(self) -> str:
        """Return the file's text."""
        return "\n".join([*self.parts, "</svg>"]) + "\n"


def width(words: str, size: float) -> float:
    """Return about how wide a line is; never less than it is in the usual fonts."""
    return sum(1.0 if letter > "\u2e80" else GLYPH for letter in words) * size


def blend(colour: str, share: float) -> str:
    """Return a mixture of white and a colour."""
    channels = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(255 + (c - 255) * share):02x}" for c in channels)


def similar(seed: float, sharp: float = 0.75) -> list[list[float]]:
    """Return a 4 x 4 matrix of similarities whose diagonal is strong, by no random generator."""
    return [
        [
            min(1.0, (sharp if i == j else 0.12) + 0.16 * (1 + math.sin(seed + 2.3 * i + 3.7 * j)))
            for j in range(4)
        ]
        for i in range(4)
    ]


# -- the methods --------------------------------------------------------------------------------


def nrccr() -> Picture:
    """Draw the branches of a training step and the terms between them."""
    picture = Picture(1000, 560, "NRCCR: captions, branches of the text tower, and loss terms")
    rows = {"back": 70, "source": 175, "teacher": 275, "target": 375}
    picture.card(20, rows["back"], 236, "A red ball lies on glass.", "back: translated back")
    picture.card(20, rows["source"], 236, "A red ball lies on grass.", "source: by a person")
    picture.card(
        20, rows["target"], 236, "Ein roter Ball liegt auf Glas.", "target: by a machine, wrong"
    )
    for name in ("back", "source", "target"):
        y = rows[name]
        picture.arrow((256, y), (292, y))
        picture.box(292, y - 24, 112, 48, ["tower,", "projection"])
        picture.arrow((404, y), (446, y))
        picture.box(446, y - 24, 128, 48, ["attention block,", "mean, head"], size=12)
        picture.arrow((574, y), (617, y))
    y = rows["teacher"]
    picture.box(446, y - 24, 128, 48, ["the same block", "and head"], colour=TEACHER, dashed=True)
    picture.arrow((424, rows["source"]), (424, y - 10), (446, y - 10))
    picture.arrow((424, rows["target"]), (424, y + 10), (446, y + 10))
    picture.text(414, y - 24, "asks", size=12, colour=FAINT, anchor="end")
    picture.text(414, y + 26, "is read", size=12, colour=FAINT, anchor="end")
    picture.arrow((574, y), (617, y))
    for name, symbol in (("back", "b"), ("source", "s"), ("teacher", "h"), ("target", "t")):
        colour = KEPT if name in ("source", "target") else TEACHER
        picture.dot(636, rows[name], symbol, colour=colour)
    picture.scene(885, 240)
    picture.text(930, 326, "image", size=12, colour=FAINT)
    picture.arrow((885, 275), (859, 275))
    picture.dot(840, 275, "v")
    picture.arrow((656, 182), (824, 262), kind="term", both=True, thick=2)
    picture.arrow((656, 368), (824, 288), kind="term", both=True, thick=2)
    picture.text(748, 190, "image_source", colour=TERM, anchor="start")
    picture.text(748, 360, "image_target", colour=TERM, anchor="start")
    picture.arrow((636, 90), (636, 155), kind="term", both=True, thick=2)
    picture.text(650, 122, "cycle", colour=TERM, anchor="start")
    picture.arrow((636, 295), (636, 355), kind="term", thick=2)
    picture.text(650, 314, "similarity", colour=TERM, anchor="start")
    picture.text(650, 334, "feature", colour=TERM, anchor="start")
    picture.box(
        446, 440, 264, 48, ["discriminator:", "which language is it?"], colour=TEACHER, dashed=True
    )
    picture.arrow((348, 399), (348, 474), (446, 474))
    picture.arrow((348, 199), (348, 225), (274, 225), (274, 454), (446, 454))
    picture.text(726, 464, "adversarial: it shall not know", colour=TERM, anchor="start")
    picture.legend(
        528,
        [
            (KEPT, False, "kept: what searches"),
            (TEACHER, True, "in training alone"),
            (TERM, False, "terms of the loss"),
        ],
    )
    return picture


def c2kd() -> Picture:
    """Draw the teachers' matrices, their pool, and the student's matrix in each language."""
    picture = Picture(
        1000, 500, "C2KD: pooled similarities of English teachers teach each language"
    )
    cell = 19
    side = 4 * cell
    picture.text(24, 28, "teachers, frozen: English captions", anchor="start", bold=True)
    seeds = (0.3, 1.9, 4.4)
    for number, seed in enumerate(seeds):
        y = 56 + number * 108
        picture.box(
            24, y + 12, 112, 52, [f"teacher {number + 1}", "text, image"],
            colour=TEACHER, dashed=True,
        )  # fmt: skip
        picture.arrow((136, y + 38), (172, y + 38))
        picture.matrix(174, y, cell, similar(seed), colour=TEACHER)
        picture.text(174 + side + 18, y + 38, f"Q{number + 1}", colour=FAINT, italic=True)
        picture.arrow((174 + side + 36, y + 38), (340, y + 38), (378, 202))
    picture.text(212, 384, "rows: captions, columns: images", size=11, colour=FAINT)
    pooled = [
        [max(similar(seed)[i][j] for seed in seeds) for j in range(4)] for i in range(4)
    ]  # fmt: skip
    picture.matrix(382, 164, cell, pooled, colour=TEACHER)
    picture.text(420, 146, "pooled: Q", bold=True)
    picture.text(434, 258, "max, min or mean,", size=12, colour=FAINT)
    picture.text(434, 275, "cell by cell", size=12, colour=FAINT)
    picture.text(980, 28, "student, kept: every language", anchor="end", bold=True)
    picture.box(888, 166, 92, 72, ["student", "text,", "image"])
    for number, (lang, seed) in enumerate((("en", 2.6), ("de", 5.0), ("zh", 0.9))):
        y = 56 + number * 108
        picture.arrow((888, 202), (862, 202), (862, y + 38), (826, y + 38), kind="kept")
        picture.matrix(
            748, y, cell, similar(seed, 0.6 - 0.06 * number), colour=KEPT,
            marked=[(i, i) for i in range(4)],
        )  # fmt: skip
        picture.text(728, y + 38, f"S {lang}", colour=KEPT, italic=True)
        picture.arrow((464, 202), (560, 202), (600, y + 38), (706, y + 38), kind="term", thick=2)
    picture.text(648, 56, "distillation", colour=TERM)
    picture.text(648, 75, "KL of rows, of columns", size=12, colour=FAINT)
    picture.text(786, 384, "contrastive: the diagonal wins", colour=TERM)
    picture.text(
        500, 420, "Row i says the same in every language, so one Q serves them all.", colour=INK
    )
    picture.legend(
        466,
        [
            (KEPT, False, "kept: what searches"),
            (TEACHER, True, "trained before, then frozen"),
            (TERM, False, "terms of the loss"),
        ],
    )
    return picture


def cl2cm() -> Picture:
    """Draw both networks, their relations, and the transport between words."""
    picture = Picture(1000, 540, "CL2CM: a cross-lingual network's relations teach images")
    cell = 21
    side = 4 * cell
    picture.text(24, 28, "cross-lingual network: text alone", anchor="start", bold=True)
    picture.text(976, 28, "cross-modal network", anchor="end", bold=True)
    # sentences of the left network
    picture.box(24, 130, 190, 40, ["source captions"], colour=TEACHER, dashed=True)
    picture.box(24, 210, 190, 40, ["target captions"], colour=TEACHER, dashed=True)
    picture.dot(258, 150, "a", colour=TEACHER)
    picture.dot(258, 230, "b", colour=TEACHER)
    picture.arrow((214, 150), (239, 150))
    picture.arrow((214, 230), (239, 230))
    picture.arrow((258, 169), (258, 211), kind="term", both=True, thick=2)
    picture.text(248, 190, "sentence", colour=TERM, anchor="end")
    picture.matrix(338, 148, cell, similar(0.3, 0.8), colour=TEACHER)
    picture.text(380, 132, "a · b", italic=True, colour=FAINT)
    picture.arrow((277, 155), (330, 180))
    picture.arrow((277, 225), (330, 200))
    # relations of the right network
    picture.matrix(578, 148, cell, similar(2.2, 0.6), colour=KEPT)
    picture.text(620, 132, "v · t", italic=True, colour=KEPT)
    picture.arrow((338 + side + 6, 190), (572, 190), kind="term", thick=2.5)
    picture.text(498, 172, "distillation", colour=TERM)
    picture.text(498, 209, "KL, both ways", size=12, colour=FAINT)
    picture.dot(738, 70, "s")
    picture.dot(738, 150, "v")
    picture.dot(738, 230, "t")
    picture.arrow((719, 155), (670, 180), kind="kept")
    picture.arrow((719, 225), (670, 200), kind="kept")
    picture.box(836, 50, 140, 40, ["source captions"])
    picture.scene(861, 115)
    picture.box(836, 210, 140, 40, ["target captions"])
    picture.arrow((836, 70), (758, 70), kind="kept")
    picture.arrow((861, 150), (758, 150), kind="kept")
    picture.arrow((836, 230), (758, 230), kind="kept")
    picture.arrow((738, 90), (738, 130), kind="term", both=True, thick=2)
    picture.text(752, 110, "image_source", colour=TERM, anchor="start", size=12)
    picture.arrow((738, 170), (738, 210), kind="term", both=True, thick=2)
    picture.text(752, 190, "image_target", colour=TERM, anchor="start", size=12)
    # words
    source = ["a", "red", "ball", "in", "grass"]
    target = ["ein", "roter", "Ball", "im", "Glas"]
    plan = [[0.92 if i == j and i < 4 else 0.0 for j in range(5)] for i in range(5)]
    plan[4] = [0.18] * 4 + [0.3]
    for i in range(4):
        plan[i][4] = 0.12
    picture.text(24, 296, "word: optimal transport moves one caption's words", anchor="start")
    picture.text(24, 316, "onto the other's; its plan gives the labels", anchor="start")
    left, top = 122, 368
    picture.matrix(left, top, cell, plan, colour=TERM)
    for i, word in enumerate(source):
        picture.text(left - 8, top + (i + 0.5) * cell, word, size=12, anchor="end", italic=True)
    for j, word in enumerate(target):
        x, y = left + (j + 0.5) * cell, top - 8
        picture.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="12" fill="{INK}" font-style="italic" '
            f'transform="rotate(-40 {x:g} {y:g})">{word}</text>'
        )
    picture.text(left + 5 * cell + 16, top + 1.5 * cell, "sure: learnt", anchor="start", colour=INK)
    picture.text(
        left + 5 * cell + 16, top + 4.5 * cell, "spread, left out: a wrong translation",
        anchor="start", colour=INK,
    )  # fmt: skip
    picture.text(740, 360, "The relation of images to target captions is learnt", size=12)
    picture.text(740, 378, "from that of their source captions to them:", size=12)
    picture.text(740, 396, "the same modality, the smaller gap.", size=12)
    picture.legend(
        510,
        [
            (KEPT, False, "kept: what searches"),
            (TEACHER, True, "thrown away after training"),
            (TERM, False, "terms of the loss"),
        ],
    )
    return picture


PICTURES = {"nrccr.svg": nrccr, "c2kd.svg": c2kd, "cl2cm.svg": cl2cm}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (FOLDER / name).write_text(draw().svg(), encoding="utf-8")
