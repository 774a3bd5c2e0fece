"""A model on a split: pictures or features, one process or two, and what is left out."""

import json
from types import SimpleNamespace
from unittest import mock

import pytest
import tiny
import torch

from xlcm.config import build
from xlcm.data.dataset import ManifestDataset
from xlcm.data.features import FeatureWriter
from xlcm.data.manifest import DataError
from xlcm.data.scenes import Scenes
from xlcm.data.subset import Subset
from xlcm.evaluation.evaluate import EvaluationConfig, _whole, evaluate
from xlcm.evaluation.retrieval import evaluate_embeddings
from xlcm.registry import models

QUICK = EvaluationConfig(bootstrap=20, batch_size=5)


def opened(data, kind="features", path=None, split="test"):
    """Return a model with fixed weights and a split for it."""
    config = tiny.tree(data, data, **(tiny.pictures(data) if kind == "pixels" else {}))
    torch.manual_seed(1)
    model = build(models, config["model"]).train()
    path = str(path or data / "tiny.jsonl")
    store = str(data / "store") if kind == "features" else None
    return model, ManifestDataset(path=path, split=split, features=store, image_root=str(data))


def in_pool(data, path):
    """Evaluate features and pixels on this process of several."""
    processes = torch.distributed.get_world_size()
    reports = []
    for kind in ("features", "pixels"):
        model, dataset = opened(data, kind, path)
        reports.append(evaluate(model, dataset, QUICK, progress=False).report.to_dict())
    return {"processes": processes, "reports": reports}


@pytest.fixture
def manifest(tiny_data, tmp_path):
    """The manifest with a single Czech caption, and machine translations into French."""
    lines = [json.loads(line) for line in (tiny_data / "tiny.jsonl").read_text().splitlines()]
    held_out = [item for item in lines if item["split"] == "test"]
    name = held_out[6]["id"]
    held_out[6]["captions"].append({"id": f"{name}cs", "lang": "cs", "text": "red 1",
                                    "origin": "human"})  # fmt: skip
    for item in held_out[:3]:
        item["captions"].append({"id": f"{item['id']}fr", "lang": "fr", "text": "rouge 2",
                                 "origin": "mt", "of": f"{item['id']}en"})  # fmt: skip
    path = tmp_path / "more.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in lines))
    return path


def test_two_processes_give_the_report_of_one(tiny_data, manifest, processes):
    # one of them has no Czech caption
    two = processes.run(2, in_pool, tiny_data, manifest)
    assert [result["processes"] for result in two] == [2, 2]
    assert two[0] == two[1]
    for report, kind in zip(two[0]["reports"], ("features", "pixels")):
        model, dataset = opened(tiny_data, kind, manifest)
        assert report == evaluate(model, dataset, QUICK).report.to_dict()


def test_the_report_is_that_of_the_embeddings_that_a_user_gets(tiny_data):
    model, dataset = opened(tiny_data, "pixels")
    report = evaluate(model, dataset, QUICK).report
    items = [dataset[i] for i in range(len(dataset))]
    image = model.encode_image([dataset.load_image(i) for i in range(len(dataset))])
    text = {
        lang: (
            model.encode_text([c.text for item in items for c in item.captions if c.lang == lang]),
            torch.arange(len(items)),
        )
        for lang in ("en", "de")
    }
    expected = evaluate_embeddings(
        image, text, dataset="tiny", split="test", source_lang="en", bootstrap=20
    )
    assert report.results == expected.results
    assert report.sum_r == expected.sum_r
    assert {row.queries for row in report.results} == {16}


def test_embeddings_stay_on_the_device_of_the_model_if_it_has_float64():
    there = SimpleNamespace(width=4, device=torch.device("meta"))  # a device like any other
    rows = [torch.empty(2, 4, device="meta"), torch.empty(1, 4, device="meta")]
    assert _whole(rows, 3, there).device.type == "meta"
    assert _whole([], 0, there).device.type == "meta"
    without = mock.patch("xlcm.evaluation.evaluate.NO_FLOAT64", ("meta",))
    with without, pytest.raises(NotImplementedError, match="meta"):  # nothing to copy to the CPU
        _whole(rows, 3, there)


def test_each_caption_and_picture_is_encoded_once(tiny_data):
    model, dataset = opened(tiny_data)
    rows = {"text": 0, "visual": 0}
    embed_text, embed_visual = model.embed_text, model.embed_visual

    def text(batch):
        rows["text"] += len(batch.ids)
        return embed_text(batch)

    def visual(batch):
        rows["visual"] += len(batch.features)
        return embed_visual(batch)

    model.embed_text, model.embed_visual = text, visual
    evaluate(model, dataset, QUICK)
    assert rows == {"text": 32, "visual": 16}


def test_batch_size_and_workers_change_nothing(tiny_data):
    model, dataset = opened(tiny_data, "pixels")
    one = evaluate(model, dataset, QUICK).report
    other = QUICK.model_copy(update={"batch_size": 16})
    assert one.to_dict() == evaluate(model, dataset, other, workers=2).report.to_dict()


def test_dropout_is_off_and_the_model_stays_in_the_mode_it_was_in(tiny_data):
    model, dataset = opened(tiny_data)
    assert model.text.dropout.p > 0
    reports = [evaluate(model, dataset, QUICK).report.to_dict() for _ in range(2)]
    assert reports[0] == reports[1]
    assert all(module.training for module in model.modules())


def test_langs_and_origins_choose_the_queries(tiny_data, manifest):
    model, dataset = opened(tiny_data, path=manifest)
    default = evaluate(model, dataset, QUICK).report
    assert default.langs == ["en", "de", "cs"]  # people's captions; French is a machine's
    machine = EvaluationConfig(bootstrap=0, origins=["human", "mt"], langs=["fr", "en"])
    report = evaluate(model, dataset, machine).report
    assert report.langs == ["fr", "en"]
    assert report.result("fr").queries == 3
    assert report.result("fr").gallery == 16
    assert "human, mt" in report.protocol["queries"]


def test_a_language_without_captions_is_said_with_the_keys_to_change(tiny_data, manifest):
    model, dataset = opened(tiny_data, path=manifest)
    with pytest.raises(ValueError, match=r"'test'.*origin human in fr.*evaluation.langs"):
        evaluate(model, dataset, EvaluationConfig(langs=["en", "fr"]))


def frames(data, tmp_path, keep=(), tokens=True):
    """Return a model of frames and a split whose items name only what is in `keep`."""
    lines = [json.loads(line) for line in (data / "tiny.jsonl").read_text().splitlines()]
    lines = [{**item, "video": f"{item['id']}.mp4"} for item in lines if item["split"] == "test"]
    out = {"image", "video"} - set(keep)
    lines = [{k: v for k, v in item.items() if k not in out} for item in lines]
    (tmp_path / "frames.jsonl").write_text("".join(json.dumps(item) + "\n" for item in lines))
    kind = "tokens" if tokens else "pooled"
    with FeatureWriter(tmp_path / "frames", kind=kind, dim=8, dtype="float32") as store:
        for number, item in enumerate(lines):
            rows = torch.randn(1 + number % 3, 8)
            store.add(item["id"], rows if tokens else rows[0])
    image = {"name": "features", "width": 8, "tokens": tokens}
    model = build(models, tiny.tree(data, data, model={"image": image})["model"])
    split = {"path": str(tmp_path / "frames.jsonl"), "split": "test"}
    return model, ManifestDataset(**split, features=str(tmp_path / "frames"))


@pytest.mark.parametrize(
    ("keep", "tokens", "asked", "said"),
    [
        (["video"], True, None, "video"),
        (["video", "image"], False, None, "video"),
        ([], True, None, "video"),  # frames, and no word about images
        (["image"], True, None, "image"),  # regions of an image
        ([], False, None, "image"),
        (["image"], True, "video", "video"),
        (["video"], True, "image", "image"),
    ],
)
def test_directions_are_called_by_what_items_name(tiny_data, tmp_path, keep, tokens, asked, said):
    model, dataset = frames(tiny_data, tmp_path, keep, tokens)
    for split in (dataset, Subset(dataset, range(8))):
        config = QUICK.model_copy(update={"visual": asked})
        report = evaluate(model, split, config).report
        assert report.directions == [f"text_to_{said}", f"{said}_to_text"]


def test_patches_of_scenes_are_pictures(tmp_path, tiny_data):
    with FeatureWriter(tmp_path / "store", kind="tokens", dim=8) as store:
        for number in range(4):
            store.add(f"scenes-test-{number:06d}", torch.randn(3, 8))
    model, _ = frames(tiny_data, tmp_path)
    dataset = Scenes(split="test", size=4, cache=None, features=str(tmp_path / "store"))
    assert evaluate(model, dataset, QUICK).report.directions == ["text_to_image", "image_to_text"]


def test_ties_and_the_official_number_of_queries_come_from_the_config(tiny_data):
    model, dataset = opened(tiny_data)
    changes = {"ties": "favourable", "official_queries": 20, "bootstrap": 0}
    report = evaluate(model, dataset, QUICK.model_copy(update=changes)).report
    plain = evaluate(model, dataset, QUICK).report
    assert report.result("de").r10 == pytest.approx(plain.result("de").r10 * 16 / 20)
    assert report.protocol["ties"].startswith("favourable")
    with pytest.raises(ValueError, match=r"'en': official_queries is 15, but 16 captions"):
        evaluate(model, dataset, QUICK.model_copy(update={"official_queries": 15}))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_picture_stops_with_file_and_line(tiny_data, tmp_path, workers):
    lines = (tiny_data / "tiny.jsonl").read_text().splitlines(keepends=True)
    number = next(i for i, line in enumerate(lines) if '"test4"' in line)
    (tmp_path / "bad.png").write_bytes(b"<html>not found</html>")
    lines[number] = lines[number].replace('"test4.png"', json.dumps(str(tmp_path / "bad.png")))
    (tmp_path / "bad.jsonl").write_text("".join(lines))
    model, dataset = opened(tiny_data, "pixels", tmp_path / "bad.jsonl")
    with pytest.raises(DataError, match=rf"bad\.jsonl:{number + 1}: .*bad\.png"):
        evaluate(model, dataset, QUICK, workers=workers)


def test_a_sheet_needs_pictures_and_queries(tiny_data, tmp_path):
    model, dataset = opened(tiny_data, "pixels")
    result = evaluate(model, dataset, QUICK, top_k=5)
    path = result.save_sheet(tmp_path / "sheet.png", QUICK)
    assert path.read_bytes().startswith(b"\x89PNG")
    none = QUICK.model_copy(update={"sheet_queries": 0})
    assert result.save_sheet(tmp_path / "none.png", none) is None
    assert not (tmp_path / "none.png").exists()
