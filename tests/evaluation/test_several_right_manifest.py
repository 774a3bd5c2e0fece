"""A manifest whose captions are right for further items: what a model on it is judged by."""

import io
import json
import logging
from base64 import b64encode
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from relevance import one_side, right_pairs

from xlcm.cli import main
from xlcm.config import build
from xlcm.data.dataset import ManifestDataset
from xlcm.data.manifest import DataError
from xlcm.data.subset import Subset
from xlcm.evaluation.evaluate import evaluate
from xlcm.evaluation.queries import queries
from xlcm.evaluation.settings import EvaluationConfig, FusionConfig
from xlcm.registry import models

QUICK = EvaluationConfig(bootstrap=20, batch_size=5)


@pytest.fixture
def manifest(tiny_data: Path, tmp_path: Path) -> Path:
    """The test split, where some English captions are right for further pictures."""
    lines = [json.loads(line) for line in (tiny_data / "tiny.jsonl").read_text().splitlines()]
    for item in lines:
        if item["split"] == "test":
            number = int(item["id"].removeprefix("test"))
            others = [f"test{n}" for n in range(number + 1, min(number + 1 + number % 4, 16))]
            item["captions"][0] |= {"relevant": others} if others else {}
    path = tmp_path / "several.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in lines))
    return path


def opened(data: Path, path: Path):
    torch.manual_seed(1)
    model = build(models, tiny.tree(data, data)["model"])
    return model, ManifestDataset(path=str(path), split="test", features=str(data / "store"))


def in_pool(data: Path, path: Path) -> dict:
    return evaluate(*opened(data, path), QUICK, progress=False).report.to_dict()


def test_a_model_is_judged_by_all_right_pictures_of_the_manifest(tiny_data, manifest) -> None:
    model, dataset = opened(tiny_data, manifest)
    found = evaluate(model, dataset, QUICK).report
    assert found.protocol["several_right_pictures"]["pictures_a_caption"].keys() == {"en"}
    image = model.encode_features(torch.stack([dataset.load_features(i) for i in range(16)]))
    pairs = [(i, int(name.removeprefix("test"))) for i in range(16)
             for name in dataset[i].captions[0].relevant]  # fmt: skip
    right = right_pairs(torch.arange(16), torch.tensor(pairs), 16)
    for lang, place, relevance in (("en", 0, right), ("de", 1, np.eye(16, dtype=bool))):
        text = model.encode_text([dataset[i].captions[place].text for i in range(16)])
        scores = (text.double() @ image.double().T).numpy().round(12)
        for direction, asked in (("text_to_image", (scores, relevance)),
                                 ("image_to_text", (scores.T, relevance.T))):  # fmt: skip
            _, ranks, precisions = one_side(*asked)
            row = found.result(lang, direction)
            assert row.mean_rank == pytest.approx(np.mean(ranks))
            assert row.r5 == pytest.approx(100 * np.mean(np.array(ranks) <= 5))
            assert row.map == pytest.approx(100 * np.mean(precisions))


def test_two_processes_judge_as_one(tiny_data, manifest, processes) -> None:
    expected = evaluate(*opened(tiny_data, manifest), QUICK).report.to_dict()
    assert processes.run(2, in_pool, tiny_data, manifest) == [expected, expected]


def test_fused_queries_have_the_right_pictures_of_the_queries(tiny_data, manifest) -> None:
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    for item in lines:
        own = item["captions"][0]
        own["lang"] = "fr"
        item["captions"].append({"id": f"{own['id']}mt", "lang": "en", "text": own["text"],
                                 "origin": "mt", "of": own["id"]})  # fmt: skip
    manifest.write_text("".join(json.dumps(item) + "\n" for item in lines))
    config = EvaluationConfig(bootstrap=0, langs=["fr"], fusion=FusionConfig(weights=[0.0]))
    found = evaluate(*opened(tiny_data, manifest), config).report
    assert found.fused[0].results == [row for row in found.results if row.lang == "fr"]


def test_an_item_that_is_not_there_is_named_with_the_caption(tiny_data, manifest) -> None:
    text = manifest.read_text().replace('"relevant": ["test2"]', '"relevant": ["val2"]')
    manifest.write_text(text)
    _, dataset = opened(tiny_data, manifest)
    said = r"several\.jsonl:82: caption 'test1en' names the relevant item 'val2', .* split 'test'"
    with pytest.raises(DataError, match=said):
        queries(dataset, QUICK)


def test_items_that_were_left_out_are_no_answers_and_are_counted(
    tiny_data, manifest, caplog
) -> None:
    _, dataset = opened(tiny_data, manifest)
    kept = [i for i in range(16) if i not in (3, 4)]
    with caplog.at_level(logging.WARNING):
        asked = queries(Subset(Subset(dataset, range(16)), kept), QUICK)
    named = [(n, name) for n, i in enumerate(kept) for name in dataset[i].captions[0].relevant]
    there = {f"test{i}": n for n, i in enumerate(kept)}
    expected = [[n, there[name]] for n, name in named if name in there]
    assert asked.relevant["en"].tolist() == expected
    lost = len(named) - len(expected)
    assert f"{lost} right answers are items that are left out of several" in caplog.text


def test_data_without_further_pictures_are_read_once(tiny_data) -> None:
    _, dataset = opened(tiny_data, tiny_data / "tiny.jsonl")
    read: list[int] = []

    class Counted(ManifestDataset):
        def __getitem__(self, index: int):
            read.append(index)
            return super().__getitem__(index)

    counted = Counted(path=str(tiny_data / "tiny.jsonl"), split="test")
    assert queries(counted, QUICK).relevant == {}
    assert read == list(range(len(dataset)))


# -- from the folder that a shop's benchmark is given out as ---------------------------------------


def put_shop(root: Path, pictures: int = 12) -> dict[int, list[int]]:
    """Write MUGE's layout, a colour a picture; return the right pictures of each query."""
    root.mkdir()
    draw = np.random.default_rng(3)
    lines = []
    for number in range(pictures):
        out = io.BytesIO()
        Image.new("RGB", (32, 32), tuple(draw.integers(0, 256, 3).tolist())).save(out, "PNG")
        lines.append(f"{100 + number}\t{b64encode(out.getvalue()).decode()}\n")
    (root / "MR_valid_imgs.tsv").write_text("".join(lines))
    right = {query: (100 + draw.permutation(pictures)[: 1 + query % 4]).tolist()
             for query in range(9)}  # fmt: skip
    rows = [{"query_id": query, "query_text": f"{tiny.COLOURS[query % 8]} {query}",
             "item_ids": images} for query, images in right.items()]  # fmt: skip
    (root / "MR_valid_queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return right


def test_a_shop_is_imported_and_judged_as_loops_over_its_files_say(tiny_data, tmp_path) -> None:
    right = put_shop(tmp_path / "MUGE")
    out = str(tmp_path / "shop.jsonl")
    command = ["data", "import", "chinese-clip", "--dataset", "muge", "--root",
               str(tmp_path / "MUGE"), "--out", out, "--splits", "valid"]  # fmt: skip
    assert main(command) == 0
    torch.manual_seed(1)
    tree = tiny.tree(tiny_data, tiny_data, **tiny.pictures(tiny_data))
    model = build(models, tree["model"])
    dataset = ManifestDataset(path=out, split="val")
    config = EvaluationConfig(bootstrap=0, source_lang="zh")
    found = evaluate(model, dataset, config).report

    pictures = [Image.open(tmp_path / "shop_images" / "valid" / f"{100 + n}.png")
                for n in range(12)]  # fmt: skip
    texts = [f"{tiny.COLOURS[query % 8]} {query}" for query in right]
    image, text = model.encode_image(pictures), model.encode_text(texts, ["zh"] * 9)
    scores = (text.double() @ image.double().T).numpy().round(12)
    relevance = np.array([[100 + n in images for n in range(12)] for images in right.values()])
    assert (relevance.sum(axis=1) > 1).sum() > 5
    for direction, asked in (("text_to_image", (scores, relevance)),
                             ("image_to_text", (scores.T, relevance.T))):  # fmt: skip
        _, ranks, precisions = one_side(*asked)
        row = found.result("zh", direction)
        assert (row.queries, row.gallery) == (len(ranks), asked[0].shape[1])
        for k in (1, 5, 10):
            assert getattr(row, f"r{k}") == pytest.approx(100 * np.mean(np.array(ranks) <= k))
        assert row.mean_rank == pytest.approx(np.mean(ranks))
        assert row.map == pytest.approx(100 * np.mean(precisions))
    first = found.result("zh")
    order = (-scores).argsort(axis=1)
    hits = [bool(relevance[q, order[q, :1]].any()) for q in range(9)]  # the published rule
    assert first.r1 == pytest.approx(100 * np.mean(hits))
