"""Plots are drawn from what there is, with fonts that have the glyphs."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from xlcm.data.manifest import DataError
from xlcm.evaluation import fonts
from xlcm.evaluation.plots import plot_curves, read_metrics, save_plots
from xlcm.evaluation.report import RetrievalReport
from xlcm.evaluation.retrieval import evaluate_embeddings
from xlcm.evaluation.sheet import SheetRow, retrieval_sheet, sheet_rows, wrap
from xlcm.evaluation.style import figure

STEPS = [
    {"step": s, "loss": 3 / s, "image_source": 2 / s, "image_target": 1 / s, "lr": 1e-3}
    for s in range(1, 9)
]
EVALS = [{"step": s, "kind": "eval", "sum_r": {"en": 30.0 * s, "de": 20.0 * s}} for s in (4, 8)]


def report(top_k: int = 0, bootstrap: int = 20) -> RetrievalReport:
    draw = torch.Generator().manual_seed(0)
    image = normalize(torch.randn(30, 8, generator=draw))
    text = {}
    for lang, images in (("en", 30), ("zh", 28)):
        owner = torch.arange(images).repeat_interleave(2)
        text[lang] = (normalize(image[owner] + torch.randn(len(owner), 8, generator=draw)), owner)
    return evaluate_embeddings(
        image, text, dataset="Scenes", split="test", bootstrap=bootstrap, top_k=top_k
    )


def ink(path: Path) -> float:
    """The share of pixels that are not white; fails if the file is no picture."""
    return float((np.asarray(Image.open(path).convert("L")) < 250).mean())


def test_a_run_folder_gets_its_plots(tmp_path: Path) -> None:
    lines = [json.dumps(record) for record in (*STEPS, *EVALS)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    report().save(tmp_path)
    written = save_plots(tmp_path)
    assert [path.name for path in written] == ["curves.png", "languages.png"]
    assert sorted(p.name for p in (tmp_path / "plots").iterdir()) == ["curves.png", "languages.png"]
    assert all(0.005 < ink(path) < 0.5 for path in written)


def test_a_folder_without_figures_gets_no_plots(tmp_path: Path) -> None:
    assert save_plots(tmp_path) == []


@pytest.mark.parametrize(
    "records",
    [
        [{"step": 1, "loss": 2.0}],
        [{"step": 1}],
        [{"loss": 2.0}, {"step": 3, "loss": None, "lr": float("nan")}],
        [{"step": 5, "kind": "eval", "r1": {"en": 12.0}}],
        [{"step": 5, "kind": "eval", "r1": 12.0}],
        [{"step": 1, "terms": {"a": 1.0, "b": 2.0}, "loss": 3.0}, {"step": 2, "loss": 2.5}],
    ],
)
def test_curves_are_lenient_about_missing_keys(tmp_path: Path, records: list) -> None:
    assert plot_curves(records, tmp_path / "curves.png").is_file()


def test_metrics_of_a_killed_run_lose_only_the_half_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1, "loss": 2.0}]
    path.write_text('{"step": 1}\n{"step": 2, "lo\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: not a record"):
        read_metrics(path)


def test_a_failed_plot_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), figure(tmp_path / "a.png", (1, 1)):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_sheet_frames_the_right_picture(tmp_path: Path) -> None:
    asked = []

    def picture(index: int) -> Image.Image:
        asked.append(index)
        return Image.new("L", (40, 20), 200)

    row = SheetRow("de", "Ein Hund", [3, 1], [0.9, 0.8], right=1, rank=2)
    retrieval_sheet([row, row], picture, tmp_path / "right.png")
    assert sorted(asked) == [1, 3]  # each picture is loaded once
    other = SheetRow("de", "Ein Hund", [3, 1], [0.9, 0.8], right=7, rank=2)
    retrieval_sheet([other, other], picture, tmp_path / "wrong.png")

    def green(name: str) -> int:
        pixels = np.asarray(Image.open(tmp_path / name).convert("RGB")).astype(int)
        return int((np.abs(pixels - (0, 158, 115)).sum(axis=2) < 30).sum())

    assert green("right.png") > 4000 > green("wrong.png")


def test_a_picture_that_can_not_be_had_is_a_grey_tile_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def picture(index: int) -> Image.Image:
        if index != 3:
            raise DataError(f"photos.jsonl:{index}: no such picture")
        return Image.new("RGB", (40, 20), "red")

    row = SheetRow("de", "Ein Hund", [3, 1, 4], [0.9, 0.8, 0.7], right=1, rank=2)
    path = tmp_path / "sheet.png"
    assert retrieval_sheet([row], picture, path) == path
    told = "2 of 3 pictures on the sheet of found pictures are grey tiles: photos.jsonl:1: no such"
    assert told in caplog.text
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    grey = (np.abs(pixels - 0xD0).sum(axis=2) == 0).mean()
    red = (np.abs(pixels - (255, 0, 0)).sum(axis=2) < 30).mean()
    assert grey > 2 * red > 0.02  # the red picture is padded to a square

    none = SheetRow("de", "Ein Hund", [1, 4], [0.8, 0.7])
    assert retrieval_sheet([none], picture, tmp_path / "none.png") is None
    assert not (tmp_path / "none.png").exists()
    assert "no sheet of found pictures, since there are none to show: photos.jsonl:1" in caplog.text


def test_sheet_rows_ask_for_the_same_pictures_in_every_language() -> None:
    found = report(top_k=5)
    texts = {lang: [f"{lang} {i}" for i in range(n)] for lang, n in (("en", 60), ("zh", 56))}
    rows = sheet_rows(found, texts, queries=3, columns=4)
    assert [row.lang for row in rows] == ["en", "zh"] * 3
    assert [row.right for row in rows[::2]] == [row.right for row in rows[1::2]]
    for row in rows:
        assert len(row.found) == 4
        assert (row.rank <= 4) == (row.right in row.found)
        assert row.text == f"{row.lang} {2 * row.right}"
    assert rows == sheet_rows(found, texts, queries=3, columns=4)


def test_sheet_says_what_it_lacks() -> None:
    with pytest.raises(ValueError, match=r"top_k=5"):
        sheet_rows(report(), {"en": [""] * 60})
    with pytest.raises(ValueError, match="59 texts in 'en', but 60"):
        sheet_rows(report(top_k=5), {"en": [""] * 59})
    with pytest.raises(ValueError, match="no language in common"):
        sheet_rows(report(top_k=5), {"fr": []})
    with pytest.raises(ValueError, match="at least one query"):
        retrieval_sheet([], lambda index: Image.new("L", (1, 1)), "none.png")


def test_text_wraps_between_words_and_anywhere_in_chinese() -> None:
    assert wrap("a small red circle", 8) == ["a small", "red", "circle"]
    assert wrap("一个小红圆圈在左边", 8) == ["一个小红", "圆圈在左", "边"]
    assert wrap("Donaudampfschiff faehrt", 10) == ["Donaudampf", "schiff", "faehrt"]
    assert wrap("a b c d e f", 1, lines=2) == ["a", "…"]
    assert wrap("") == [""]


def test_missing_glyphs_are_reported_once_with_the_remedy(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fonts, "_candidates", lambda: iter([(fonts.BASE, frozenset("abc"))]))
    monkeypatch.setattr(fonts, "_told", set())
    row = SheetRow("zh", "一个", [0], [0.5])
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            retrieval_sheet([row], lambda index: Image.new("L", (4, 4)), tmp_path / "sheet.png")
    told = [record.getMessage() for record in caplog.records if record.name == fonts.__name__]
    assert len(told) == 1
    assert "fonts-noto-cjk" in told[0]
    assert "XLCM_FONT" in told[0]


def test_the_fewest_fonts_that_have_the_glyphs_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    there = [(fonts.BASE, frozenset("ab")), ("Kana", frozenset("abあ")), ("Han", frozenset("一"))]
    monkeypatch.setattr(fonts, "_candidates", lambda: iter(there))
    assert fonts.families_for(["a b"]) == (fonts.BASE,)
    assert fonts.families_for(["a一"]) == (fonts.BASE, "Han")
    assert fonts.families_for(["a一", "あ"]) == (fonts.BASE, "Kana", "Han")


def test_a_font_of_ones_own_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLCM_FONT", "/nowhere/font.otf")
    with pytest.raises(FileNotFoundError, match=r"XLCM_FONT names the font /nowhere/font\.otf"):
        fonts.families_for(["一"])
