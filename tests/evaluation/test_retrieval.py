"""The report: what it holds, how it is saved, and that it needs little memory."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from xlcm.evaluation.report import RetrievalReport
from xlcm.evaluation.retrieval import evaluate_embeddings

IMAGES = 60


def captions(seed: int, each: int, noise: float, images: int = IMAGES) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    owner = torch.arange(images).repeat_interleave(each)
    return normalize(pictures()[owner] + noise * torch.randn(len(owner), 16, generator=draw)), owner


def pictures() -> Tensor:
    return normalize(torch.randn(IMAGES, 16, generator=torch.Generator().manual_seed(9)))


def report(**options: object) -> RetrievalReport:
    text = {
        "en": captions(0, 3, 0.2),
        "de": captions(1, 3, 0.3, images=55),
        "zh": captions(2, 1, 0.5),
    }
    options = {"dataset": "Scenes", "split": "test", "bootstrap": 100} | options
    return evaluate_embeddings(pictures(), text, **options)


def test_report_has_the_layout_of_the_design() -> None:
    found = report().to_dict()
    assert list(found) == [
        "dataset", "split", "protocol", "results", "sum_r", "sum_r_ci95", "mean_rank_variance", "gap_to",
    ]  # fmt: skip
    assert [(row["lang"], row["direction"]) for row in found["results"]] == [
        (lang, way) for way in ("text_to_image", "image_to_text") for lang in ("en", "de", "zh")
    ]
    assert list(found["results"][0]) == [
        "lang", "direction", "queries", "gallery", "r1", "r5", "r10", "median_rank", "mean_rank",
        "map", "ci95", "chance",
    ]  # fmt: skip
    row = found["results"][0]
    assert (row["queries"], row["gallery"]) == (180, 60)
    for name, (low, high) in row["ci95"].items():
        assert low <= row[name] <= high
    assert found["gap_to"]["lang"] == "en"
    assert found["gap_to"]["sum_r"]["de"] == found["sum_r"]["de"] - found["sum_r"]["en"]
    low, high = found["gap_to"]["ci95"]["zh"]
    assert low < found["gap_to"]["sum_r"]["zh"] < high < 0
    json.dumps(found, allow_nan=False)


def test_sum_r_is_the_sum_of_six_recalls_and_its_mean_the_validation_score() -> None:
    found = report()
    rows = [found.result("de", way) for way in found.directions]
    assert found.sum_r["de"] == pytest.approx(sum(r.r1 + r.r5 + r.r10 for r in rows))
    assert found.sum_r_mean == pytest.approx(sum(found.sum_r.values()) / 3)
    low, high = found.sum_r_ci95["de"]
    assert low < found.sum_r["de"] < high


def test_whole_gallery_by_default_and_captioned_images_on_request() -> None:
    assert report().result("de").gallery == 60
    smaller = report(gallery="captioned", top_k=5)
    assert smaller.result("de").gallery == 55
    assert smaller.result("en").gallery == 60
    assert smaller.protocol["gallery"] == "captioned"
    assert smaller.mean_rank_variance is not None


def test_captioned_gallery_keeps_the_numbers_of_the_images() -> None:
    """Only the last images have captions: their numbers must not shift."""
    text, owner = captions(1, 2, 0.1)
    chosen = owner >= 40
    found = evaluate_embeddings(
        pictures(), {"de": (text[chosen], owner[chosen])}, dataset="d", split="test",
        gallery="captioned", top_k=3, bootstrap=20,
    )  # fmt: skip
    ranks = found.ranks["de"]
    assert ranks.images.tolist() == list(range(40, 60))
    assert ranks.gallery == 20
    first = ranks.top_images.index[:, 0]
    assert torch.equal(first == owner[chosen], ranks.text_to_image == 1)
    assert found.result("de").r1 > 90


def test_perfect_embeddings_reach_everything() -> None:
    owner = torch.arange(20).repeat_interleave(2)
    found = evaluate_embeddings(
        torch.eye(20),
        {"en": (torch.eye(20)[owner], owner)},
        dataset="d",
        split="test",
        bootstrap=50,
    )
    assert found.sum_r == {"en": 600}
    for row in found.results:
        assert (row.r1, row.map, row.median_rank, row.ci95["r1"]) == (100, 100, 1, [100, 100])
    assert found.mean_rank_variance is None
    assert found.gap_to["sum_r"] == {}


def test_a_single_pair_has_a_report() -> None:
    one = torch.ones(1, 4)
    found = evaluate_embeddings(one, {"en": (one, torch.tensor([0]))}, dataset="d", split="test")
    assert found.sum_r_mean == 600
    assert found.result("en").chance["r1"] == 100


def test_video_names_the_directions() -> None:
    found = report(visual="video")
    assert found.directions == ["text_to_video", "video_to_text"]
    assert found.result("de") == found.result("de", "text_to_video")


def test_same_seed_gives_the_same_report_and_another_seed_other_intervals() -> None:
    assert report() == report()
    assert report().result("de").ci95 != report(seed=1).result("de").ci95
    assert report(bootstrap=0).result("de").ci95 == {}


def test_report_comes_back_from_disk_equal(tmp_path: Path) -> None:
    found = report(protocol={"checkpoint": "step 100"}, top_k=3)
    found.save(tmp_path / "new")
    assert RetrievalReport.load(tmp_path / "new") == found
    assert RetrievalReport.load(tmp_path / "new" / "report.json") == found
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["report.json", "report.md"]
    page = (tmp_path / "new" / "report.md").read_text(encoding="utf-8")
    row = found.result("zh")
    assert f"| zh | {row.r1:.1f} [{row.ci95['r1'][0]:.1f}, {row.ci95['r1'][1]:.1f}] |" in page
    assert "- checkpoint: step 100" in page


def test_a_failed_write_leaves_the_old_report(tmp_path: Path) -> None:
    found = report(bootstrap=0)
    found.save(tmp_path)
    before = (tmp_path / "report.json").read_bytes()
    found.sum_r["en"] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        found.save(tmp_path)
    assert (tmp_path / "report.json").read_bytes() == before


def test_files_that_are_no_report_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "report.json"))):
        RetrievalReport.load(tmp_path)
    for text in ("{", "[]", "{}", '{"results": [{"lung": 1}]}'):
        (tmp_path / "report.json").write_text(text)
        with pytest.raises(ValueError, match=r"report\.json is not a retrieval report"):
            RetrievalReport.load(tmp_path)


def test_tables_show_every_language_and_direction() -> None:
    from rich.console import Console

    found = report()
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(found)
    for shown in (str(found), console.export_text()):
        for row in found.results:
            assert f"{row.r10:.1f}" in shown
        assert "text → image" in shown
        assert f"{found.mean_rank_variance:.2f}" in shown


def test_errors_name_the_language() -> None:
    text, owner = captions(0, 1, 0.1)
    text[4] = torch.nan
    with pytest.raises(ValueError, match="'de': 1 of 60 rows of the text embeddings"):
        evaluate_embeddings(pictures(), {"de": (text, owner)}, dataset="d", split="test")
    for gallery in ("all", "captioned"):
        with pytest.raises(ValueError, match=r"'de': caption_image must lie in \[0, 60\)"):
            evaluate_embeddings(
                pictures(), {"de": (pictures(), owner + 5)}, dataset="d", split="t", gallery=gallery
            )
    with pytest.raises(ValueError, match="no captions"):
        evaluate_embeddings(pictures(), {}, dataset="d", split="test")
    with pytest.raises(KeyError, match="languages: en, de, zh"):
        report(bootstrap=0).result("fr")


MEMORY = """
import torch
from xlcm.evaluation.fusion import fuse
from xlcm.evaluation.retrieval import evaluate_embeddings

def status(key):
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(key)) / 1024

torch.set_num_threads(1)
draw = torch.Generator().manual_seed(0)
def run(images):
    owner = torch.arange(images).repeat_interleave(5)
    image = torch.randn(images, 64, generator=draw)
    text = image[owner] + torch.randn(len(owner), 64, generator=draw)
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS")
    evaluate_embeddings(image, {"en": (text, owner)}, dataset="d", split="test", top_k=5)
    fuse(image, text, text, 0.5)
    return status("VmHWM") - before
run(50)  # libraries loaded
print(run(4000))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's peak memory")
def test_peak_memory_stays_far_below_the_full_matrix() -> None:
    """4,000 x 20,000 scores are 305 MB in float32; a sort of them 900 MB more."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True,
        cwd=Path(__file__).resolve().parents[2],
    )  # fmt: skip
    assert float(done.stdout) < 100
