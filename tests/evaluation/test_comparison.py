"""Tables and plots of methods over an axis and seeds, against figures worked out by hand."""

import math

import numpy as np
import pytest
from PIL import Image

from xlcm.config import ConfigError
from xlcm.evaluation.comparison import (
    BEGIN,
    END,
    Comparison,
    around_tables,
    estimate,
    save_comparison,
    t_quantile,
)


def rows(figures, axis="noise"):
    """`{(method, label, lang): [by seed]}` as rows."""
    return [
        {"method": method, axis: label, "seed": seed, "lang": lang, "sum_r": value}
        for (method, label, lang), values in figures.items()
        for seed, value in enumerate(values)
    ]


TWO = {
    ("contrastive", 0.0, "de"): [100.0, 110.0, 120.0],
    ("nrccr", 0.0, "de"): [105.0, 116.0, 127.0],
    ("contrastive", 0.4, "de"): [50.0, 60.0, 70.0],
    ("nrccr", 0.4, "de"): [70.0, 60.0, 50.0],
}


@pytest.mark.parametrize(
    ("freedom", "level", "published"),
    [(1, 0.95, 12.706), (2, 0.95, 4.303), (3, 0.95, 3.182), (4, 0.95, 2.776), (9, 0.95, 2.262),
     (30, 0.95, 2.042), (1, 0.9, 6.314), (2, 0.99, 9.925), (10, 0.99, 3.169)],
)  # fmt: skip
def test_the_quantiles_are_those_of_the_printed_tables(freedom, level, published):
    assert t_quantile(freedom, level) == pytest.approx(published, abs=6e-4)


def test_an_interval_is_the_mean_and_t_standard_errors():
    found = estimate([10.0, 12.0, 14.0])  # deviation 2
    assert (found.mean, found.seeds) == (12.0, 3)
    assert found.half == pytest.approx(4.302653 * 2 / math.sqrt(3), rel=1e-6)
    assert str(found) == "12.0 ± 5.0"


def test_one_seed_has_no_interval_and_is_never_clear():
    found = estimate([12.0])
    assert str(found) == "12.0"
    assert math.isinf(found.half)
    assert not found.clear


def test_no_seed_is_an_error():
    with pytest.raises(ValueError, match="no values"):
        estimate([])


def test_differences_are_paired_by_seed():
    comparison = Comparison(rows(TWO), axis="noise", baseline="contrastive")
    paired = comparison.difference("nrccr", 0.0, ("", "de"))
    assert paired.mean == pytest.approx(6.0)  # 5, 6, 7: what the seeds share drops out
    assert paired.half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert paired.clear
    assert comparison.mean("nrccr", 0.0, ("", "de")).half > 20
    assert not comparison.difference("nrccr", 0.4, ("", "de")).clear


def test_a_seed_that_one_of_the_two_lacks_is_left_out_of_their_difference():
    short = {**TWO, ("nrccr", 0.0, "de"): [105.0, 116.0]}
    paired = Comparison(rows(short), axis="noise", baseline="contrastive").difference(
        "nrccr", 0.0, ("", "de")
    )
    assert (paired.mean, paired.seeds) == (5.5, 2)


def test_a_cell_of_fewer_seeds_than_the_table_says_so():
    short = {**TWO, ("nrccr", 0.0, "de"): [105.0, 116.0]}
    tables = Comparison(rows(short), axis="noise", baseline="contrastive").markdown()
    assert "the number of seeds stands in brackets" in tables
    assert "| nrccr | 110.5 ± 69.9 (2) | 60.0 ± 24.8 |" in tables
    assert "| nrccr | +5.5 ± 6.4 (2) | +0.0 ± 49.7 |" in tables
    whole = Comparison(rows(TWO), axis="noise", baseline="contrastive").markdown()
    assert "(2)" not in whole
    assert "brackets" not in whole


def test_the_tables_hold_means_and_bold_differences():
    tables = Comparison(rows(TWO), axis="noise", baseline="contrastive").markdown().splitlines()
    assert "| noise | 0.0 | 0.4 |" in tables
    assert "| contrastive | 110.0 ± 24.8 | 60.0 ± 24.8 |" in tables
    assert "| nrccr | **+6.0 ± 2.5** | +0.0 ± 49.7 |" in tables
    assert not [line for line in tables if line.startswith("| contrastive | **")]


def test_values_of_the_axis_are_sorted_if_they_are_numbers():
    numbers = Comparison(rows({("a", x, "de"): [1.0] for x in (0.6, 0.0, 0.2)}), axis="noise")
    names = Comparison(rows({("a", x, "de"): [1.0] for x in ("human", "baidu")}), axis="noise")
    assert numbers.labels == [0.0, 0.2, 0.6]
    assert names.labels == ["human", "baidu"]


def test_a_method_that_ran_at_some_values_alone_has_empty_cells():
    some = {**TWO, ("nrccr-cycle", 0.4, "de"): [60.0, 61.0, 62.0]}
    assert "| nrccr-cycle |  | 61.0 ± 2.5 |" in Comparison(rows(some), axis="noise").markdown()


def test_the_mean_of_languages_is_taken_seed_by_seed():
    figures = {("a", 0.0, "de"): [10.0, 20.0], ("a", 0.0, "zh"): [30.0, 20.0]}
    comparison = Comparison(rows(figures), axis="noise", average=["de", "zh"])
    mean = comparison.mean("a", 0.0, ("", "mean of de, zh"))
    assert (mean.mean, mean.half) == (20.0, 0.0)
    assert comparison.keys[-1] == ("", "mean of de, zh")


def test_a_language_to_average_that_no_run_has_is_named():
    with pytest.raises(ConfigError, match=r"average: no run has figures of 'ed'.*with figures: de"):
        Comparison(rows(TWO), axis="noise", average=["ed"])


def test_tests_have_tables_of_their_own_and_stay_together():
    found = [{**row, "test": test} for row in rows(TWO) for test in ("written", "translated")]
    found += [{**row, "lang": "en"} for row in found]
    comparison = Comparison(found, axis="noise")
    assert comparison.keys == [
        ("written", "de"), ("written", "en"), ("translated", "de"), ("translated", "en"),
    ]  # fmt: skip
    assert "**translated, de**" in comparison.markdown()


def save(folder, figures=TWO, **changes):
    options = {"axis": "noise", "baseline": "contrastive", "average": (), "plotted": None,
               "page": folder / "page.md", "plot": folder / "plot.png", "title": "noise"}  # fmt: skip
    return save_comparison(rows(figures), **{**options, **changes})


def test_a_page_keeps_what_is_around_its_tables(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"# Noise\n\nHow it was done.\n\n{BEGIN}\nstale\n{END}\n\nWhat it says.\n")
    for _ in range(2):
        tables = save(tmp_path)
        text = page.read_text()
        assert text.startswith("# Noise\n\nHow it was done.\n")
        assert text.endswith("\n\nWhat it says.\n")
        assert tables in text
        assert "stale" not in text


def test_a_page_that_is_not_there_is_made_and_can_be_written_again(tmp_path):
    save(tmp_path)
    first = (tmp_path / "page.md").read_text()
    assert first.startswith("# noise\n")
    save(tmp_path)
    assert (tmp_path / "page.md").read_text() == first


def test_a_page_without_marks_is_refused_and_left_alone(tmp_path):
    (tmp_path / "page.md").write_text("# Mine\n")
    with pytest.raises(ConfigError, match=r"page.md has no lines '<!-- tables"):
        around_tables(tmp_path / "page.md")
    with pytest.raises(ConfigError):
        save(tmp_path)
    assert (tmp_path / "page.md").read_text() == "# Mine\n"


def colours(path):
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return set(np.unique(pixels @ (65536, 256, 1)).tolist())


@pytest.mark.parametrize("labels", [(0.0, 0.4), ("baidu", "human"), (0.0,)])
def test_the_plot_is_drawn_over_numbers_and_over_names(tmp_path, labels):
    figures = {
        (method, label, lang): [1.0 + place, 2.0, 4.0]
        for method in ("contrastive", "nrccr")
        for place, label in enumerate(labels)
        for lang in ("de", "zh")
    }
    save(tmp_path, figures)
    both = colours(tmp_path / "plot.png")
    save(tmp_path, figures, plotted=["contrastive"])
    one = colours(tmp_path / "plot.png")
    orange = 0xD55E00  # the second method's colour
    assert orange in both
    assert orange not in one
