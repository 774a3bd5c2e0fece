"""What holds for every image-text source of text files, tried on one of its files."""

import image_text_folders as folders
import pytest
from faults import bad_encoding, bom, crlf, packed, truncated
from image_text_folders import imported

from xlcm.data.manifest import DataError
from xlcm.data.sources import coco, coco_cn, crossmodal3600, stair, wit, xflickrco, xtd10
from xlcm.data.sources.text_lines import read_lines

SOURCES = {
    "coco": (coco, folders.karpathy, "dataset_coco.json", 10),
    "coco-cn": (coco_cn, folders.coco_cn, "imageid.human-written-caption.txt", 3),
    "stair": (stair, folders.stair, "stair_captions_v1.2_val.json", 10),
    "xtd10": (xtd10, folders.xtd10, "XTD10/test_1kcaptions_es.txt", 2),
    "xflickrco": (xflickrco, folders.xflickrco, "xFlickrCO/annotations/de/test.jsonl", 2),
    "wit": (wit, folders.wit, "wit/annotations/test_ar.jsonl", 2),
    "crossmodal3600": (crossmodal3600, folders.crossmodal3600, "captions.jsonl", 2),
}


@pytest.fixture(params=SOURCES)
def case(request, tmp_path):
    """The source's module, its folder, and one of its files with one of its lines."""
    module, make, file, line = SOURCES[request.param]
    make(tmp_path / "data")
    return module, tmp_path / "data", tmp_path / "data" / file, line


def captions(items):
    return {key: (item.split, item.captions) for key, item in items.items()}


def test_a_missing_file_is_named_with_where_to_get_it_and_the_terms(case):
    module, root, path, _ = case
    path.unlink()
    with pytest.raises(DataError, match=f"(?s){path.name}.*Get it by hand: .*http.*Terms: "):
        imported(module, root)
    assert not (root.parent / "out").exists()


def test_a_line_that_is_not_utf8_is_named(case):
    module, root, path, line = case
    bad_encoding(path, line)
    with pytest.raises(DataError, match=f"{path.name}:{line}: not UTF-8.*iconv"):
        imported(module, root)
    assert not (root.parent / "out" / "m.jsonl").exists()


def test_a_gzipped_file_that_is_cut_off_is_named(case):
    module, root, path, _ = case
    truncated(packed(path))
    with pytest.raises(DataError, match=f"{path.name}.gz: .*get it again"):
        imported(module, root)
    assert not (root.parent / "out" / "m.jsonl").exists()


@pytest.mark.parametrize("change", [crlf, bom, packed])
def test_windows_line_ends_a_byte_order_mark_and_gzip_change_nothing(case, change):
    module, root, path, _ = case
    _, clean, before = imported(module, root)
    change(path)
    _, items, after = imported(module, root)
    assert captions(items) == captions(clean)
    sums = [[s["sha256"] for s in report["splits"].values()] for report in (before, after)]
    assert sums[0] == sums[1]


def test_its_help_and_its_plan_say_what_a_person_needs(case):
    module, root, _, _ = case
    plan = module.plan(root)
    assert module.__doc__
    assert plan.needs
    assert "http" in plan.get
    assert plan.terms
    assert plan.cite


def test_a_real_file_in_a_turkish_encoding_is_told_and_its_twin_read(shared):
    folder = shared / "data/captions/coco_tr_val500"
    assert len(read_lines(folder / "val_baseline_1.txt.gz")) == 500
    with pytest.raises(DataError, match=r"val_baseline_2.txt.gz:2: not UTF-8 .*iconv"):
        read_lines(folder / "val_baseline_2.txt.gz")
