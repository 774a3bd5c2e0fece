"""Fused scores: the published formula over whole matrices against vectors ranked in tiles."""

import json
from unittest import mock

import pytest
import tiny
import torch
from torch import Tensor
from torch.nn.functional import normalize

from xlcm import cli
from xlcm.config import ConfigError, build, check
from xlcm.data.dataset import ManifestDataset
from xlcm.data.manifest import DataError
from xlcm.data.scenes import Scenes
from xlcm.evaluation.evaluate import evaluate
from xlcm.evaluation.fusion import fuse, fused_results, score_range
from xlcm.evaluation.queries import queries
from xlcm.evaluation.ranks import Ranks, retrieval_ranks
from xlcm.evaluation.report import RetrievalReport
from xlcm.evaluation.retrieval import evaluate_embeddings
from xlcm.evaluation.settings import EvaluationConfig, FusionConfig
from xlcm.registry import models


def embeddings(images: int = 30, each: int = 3, width: int = 16) -> dict[str, Tensor]:
    """Images, queries and their translations, both of which know their image more or less."""
    draw = torch.Generator().manual_seed(4)
    image = normalize(torch.randn(images, width, generator=draw))
    owner = torch.arange(images).repeat_interleave(each)
    noise = torch.randn(2, len(owner), width, generator=draw)
    target, translation = (normalize(image[owner] + s * n) for s, n in zip((0.9, 0.6), noise))
    return {"image": image, "target": target, "translation": translation, "owner": owner}


def scaled(errors: Tensor) -> Tensor:
    """Norm of the released code: errors (negative cosines) to [-1, 0]."""
    scores = -errors
    return -(scores - scores.min()) / (scores - scores.min()).max()


def fused_errors(given: dict[str, Tensor], weight: float) -> Tensor:
    """The definition, with both matrices in float64: `(M, N)`."""
    image, target, translation = (
        given[name].double() for name in ("image", "target", "translation")
    )
    return weight * scaled(-translation @ image.T) + (1 - weight) * scaled(-target @ image.T)


def ranks_of(errors: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
    """Sort each row and each column; the image's best caption counts. Only without ties."""
    rows = errors.argsort(dim=1).argsort(dim=1)
    text_to_image = rows[torch.arange(len(owner)), owner] + 1
    best = []
    for image in range(errors.shape[1]):
        own = errors[owner == image, image].min()
        best.append(int((errors[owner != image, image] < own).sum()) + 1)
    return text_to_image.double(), torch.tensor(best, dtype=torch.float64)


def same(ranks: Ranks, expected: tuple[Tensor, Tensor]) -> bool:
    found = ranks.text_to_image, ranks.image_to_text
    return all(torch.equal(a, b) for a, b in zip(found, expected))


def ranked(given: dict[str, Tensor], text: Tensor) -> Ranks:
    return retrieval_ranks(given["image"], text, given["owner"])


def fused(given: dict[str, Tensor], weight: float) -> Tensor:
    return fuse(given["image"], given["target"], given["translation"], weight)


# -- the formula ---------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_fused_vectors_rank_as_the_fused_matrices_do(weight):
    given = embeddings()
    assert same(ranked(given, fused(given, weight)), ranks_of(fused_errors(given, weight),
                                                              given["owner"]))  # fmt: skip


def test_weights_at_the_ends_are_one_side_alone():
    given = embeddings()
    assert torch.equal(fused(given, 1.0), given["translation"])
    assert torch.equal(fused(given, 0.0), given["target"])
    between = ranked(given, fused(given, 0.5)).text_to_image
    for side in ("target", "translation"):
        assert not torch.equal(between, ranked(given, given[side]).text_to_image)


def test_scores_are_scaled_to_one_range_up_to_a_constant():
    """Norm has minimum -1 and maximum 0, and scaling again changes nothing."""
    given = embeddings()
    errors = -given["target"].double() @ given["image"].double().T
    once = scaled(errors)
    assert (float(once.min()), float(once.max())) == (-1, 0)
    torch.testing.assert_close(scaled(once), once)
    scores = fused(given, 0.3).double() @ given["image"].double().T
    gap = scores + fused_errors(given, 0.3)
    assert float(gap.max() - gap.min()) < 1e-6
    for side in ("target", "translation"):  # the same text on both sides is scaled alone
        alone = fuse(given["image"], given[side], given[side], 0.3)
        low, high = score_range(given["image"], alone)
        assert high - low == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("tile", [(1, 1), (7, 11), (512, 4096)])
def test_the_range_does_not_depend_on_the_tile(tile):
    given = embeddings()
    whole = given["target"] @ given["image"].T
    found = score_range(given["image"], given["target"], tile=tile)
    assert found == pytest.approx((float(whole.min()), float(whole.max())), abs=1e-6)


def ranges_in_pool():
    """The range of all scores on this process, and the numbers of tiles that it made for it."""
    given, tiles = embeddings(), mock.Mock(side_effect=torch.aminmax)
    with mock.patch.object(torch, "aminmax", tiles):
        found = score_range(given["image"], given["target"], tile=(7, 40), shared=True)
    return found, tiles.call_count


def test_processes_share_the_tiles_of_a_range_and_all_have_it(processes):
    given = embeddings()
    wanted = score_range(given["image"], given["target"], tile=(7, 40))
    assert processes.run(2, ranges_in_pool) == [(wanted, 8), (wanted, 7)]


def test_a_range_is_that_of_float32_products_whatever_is_allowed():
    given, seen = embeddings(), []
    torch.set_float32_matmul_precision("medium")

    def look(scores):
        seen.append(torch.get_float32_matmul_precision())
        return scores.min(), scores.max()

    try:
        with mock.patch.object(torch, "aminmax", look):
            score_range(given["image"], given["target"])
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == ["highest"]


def test_the_larger_range_does_not_outweigh_the_smaller():
    """Targets whose cosines hardly differ count as much as if they were spread out."""
    given = embeddings()
    narrow = {**given, "target": given["target"] / 100}
    assert torch.equal(
        ranked(narrow, fused(narrow, 0.5)).text_to_image,
        ranked(given, fused(given, 0.5)).text_to_image,
    )


def test_a_side_whose_scores_are_all_equal_says_nothing():
    given = embeddings()
    flat = {**given, "image": torch.cat([given["image"], torch.ones(30, 1)], dim=1)}
    flat["target"] = torch.cat([torch.zeros(90, 16), torch.ones(90, 1)], dim=1)
    flat["translation"] = torch.cat([given["translation"], torch.zeros(90, 1)], dim=1)
    alone = ranked(given, given["translation"]).text_to_image
    assert torch.equal(ranked(flat, fused(flat, 0.2)).text_to_image, alone)
    both = {**flat, "translation": flat["target"]}
    assert set(ranked(both, fused(both, 0.2)).text_to_image.tolist()) == {15.5}


def test_what_can_not_be_fused_is_told():
    given = embeddings()
    with pytest.raises(ValueError, match=r"in \[0, 1\], got 1\.5"):
        fused(given, 1.5)
    with pytest.raises(ValueError, match=r"\(90, 16\), \(89, 16\), \(30, 16\)"):
        fuse(given["image"], given["target"], given["translation"][1:], 0.5)


@pytest.mark.parametrize("gallery", ["all", "captioned"])
def test_the_gallery_that_is_ranked_is_the_one_that_scales(gallery):
    given = embeddings()
    shown = given["owner"] < 20
    part = {name: rows[shown] for name, rows in given.items() if name != "image"}
    seen = given["image"][:20] if gallery == "captioned" else given["image"]
    part["image"] = seen
    (found,) = fused_results(
        given["image"], {"de": (part["target"], part["owner"])}, {"de": part["translation"]}, [0.4],
        gallery=gallery, bootstrap=0,
    )  # fmt: skip
    text = fused(part, 0.4)
    expected = evaluate_embeddings(
        seen, {"de": (text, part["owner"])}, dataset="", split="", bootstrap=0
    )
    assert found.results == expected.results
    assert found.sum_r == expected.sum_r


# -- a model on a split --------------------------------------------------------------------------


@pytest.fixture
def manifest(tiny_data, tmp_path):
    """The tiny manifest, whose German test captions have translations into English."""
    lines = [json.loads(line) for line in (tiny_data / "tiny.jsonl").read_text().splitlines()]
    for item in lines:
        if item["split"] == "test":
            german = item["captions"][1]
            item["captions"].append(
                {"id": german["id"] + ".en", "lang": "en", "text": german["text"][4:],
                 "origin": "mt", "of": german["id"], "engine": "one"}
            )  # fmt: skip
    path = tmp_path / "fused.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in lines))
    return path


def opened(data, path, split="test"):
    torch.manual_seed(1)
    model = build(models, tiny.tree(data, data)["model"])
    store = str(data / "store")
    return model, ManifestDataset(path=str(path), split=split, features=store, image_root=str(data))


CONFIG = EvaluationConfig(bootstrap=20, fusion=FusionConfig(weights=[0.0, 0.3, 1.0]))


def test_a_report_has_fused_figures_beside_those_without(tiny_data, manifest, tmp_path):
    model, dataset = opened(tiny_data, manifest)
    report = evaluate(model, dataset, CONFIG).report
    plain = evaluate(model, dataset, CONFIG.model_copy(update={"fusion": None})).report
    assert report.results == plain.results
    assert "fused" not in plain.to_dict()
    assert [one.weight for one in report.fused] == [0.0, 0.3, 1.0]
    for one in report.fused:
        assert list(one.sum_r) == ["de"]  # queries in the source language need no translator
        assert {row.direction for row in one.results} == {"text_to_image", "image_to_text"}
        low, high = one.sum_r_ci95["de"]
        assert low <= one.sum_r["de"] <= high
    assert report.fused[0].results == [row for row in plain.results if row.lang == "de"]
    items = [dataset[i] for i in range(len(dataset))]
    made = [c.text for item in items for c in item.captions if c.origin == "mt"]
    image = model.encode_features(torch.stack([dataset.load_features(i) for i in range(16)]))
    english = {"de": (model.encode_text(made), torch.arange(16))}
    alone = evaluate_embeddings(image, english, dataset="", split="", bootstrap=20)
    assert report.fused[2].results == alone.results
    report.save(tmp_path)
    assert RetrievalReport.load(tmp_path) == report
    assert list(json.loads((tmp_path / "report.json").read_text())["fused"][0])[:3] == [
        "weight", "results", "sum_r",
    ]  # fmt: skip


def test_the_page_says_that_fusion_calls_a_translator(tiny_data, manifest, tmp_path):
    model, dataset = opened(tiny_data, manifest)
    report = evaluate(model, dataset, CONFIG).report
    report.save(tmp_path)
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    section = page.split("## With the query's translation")[1].split("## ")[0]
    assert "calls a translator for each query" in section
    rows = [line for line in section.splitlines() if line.startswith("| de")]
    assert [row.split(" | ")[1] for row in rows] == ["not fused", "0", "0.3", "1"]
    assert f"| {report.fused[1].sum_r['de']:.1f} [" in rows[2]
    assert "Fused with weight 0.3 with the translation of each query: SumR de " in str(report)


def in_pool(data, path):
    """Evaluate on this process of several."""
    model, dataset = opened(data, path)
    return evaluate(model, dataset, CONFIG, progress=False).report.to_dict()


def test_two_processes_fuse_as_one(tiny_data, manifest, processes):
    two = processes.run(2, in_pool, tiny_data, manifest)
    assert two[0] == two[1] == in_pool(tiny_data, manifest)
    assert two[0]["fused"]


def test_a_query_without_a_translation_is_named_with_the_way_out(tiny_data, manifest):
    _, dataset = opened(tiny_data, manifest, split="val")
    with pytest.raises(DataError) as raised:
        queries(dataset, CONFIG)
    said = str(raised.value)
    assert "fused.jsonl:65: item 'val0', caption 'val0de' (de)" in said
    assert "xlcm translate" in said
    assert "leave evaluation.fusion out" in said


def test_two_translations_of_a_query_want_an_engine(tiny_data, manifest):
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    for item in lines:
        if item["split"] == "test":
            again = {**item["captions"][-1], "engine": "two", "text": "two"}
            item["captions"].append({**again, "id": again["id"] + "2"})
    manifest.write_text("".join(json.dumps(item) + "\n" for item in lines))
    _, dataset = opened(tiny_data, manifest)
    with pytest.raises(DataError, match=r"there are 2 \(engines: one, two\): name one by"):
        queries(dataset, CONFIG)
    named = CONFIG.model_copy(update={"fusion": FusionConfig(engine="two")})
    assert set(queries(dataset, named).translations["de"]) == {"two"}
    absent = CONFIG.model_copy(update={"fusion": FusionConfig(engine="three")})
    with pytest.raises(DataError, match=r"no caption of origin mt by three was made `of` it"):
        queries(dataset, absent)


def test_queries_in_the_source_language_alone_have_nothing_to_fuse(tiny_data, manifest):
    _, dataset = opened(tiny_data, manifest)
    with pytest.raises(DataError, match=r"all queries are in the source language, en"):
        queries(dataset, CONFIG.model_copy(update={"langs": ["en"]}))


def test_scenes_translate_their_queries(tmp_path):
    data = Scenes(split="test", size=6, query_translations=True, cache=None)
    found = queries(data, CONFIG)
    assert {lang: len(texts) for lang, texts in found.translations.items()} == {"de": 12, "zh": 12}
    assert list(found.texts) == ["en", "de", "zh"]
    with pytest.raises(DataError, match="query_translations: true"):
        queries(Scenes(split="test", size=6, cache=None), CONFIG)


def test_the_command_takes_fusion_and_a_config_checks_it(tiny_data, manifest, tmp_path, capsys):
    model, _ = opened(tiny_data, manifest)
    model.save_pretrained(tmp_path / "model")
    asked = ["evaluate", str(tmp_path / "model"), str(manifest), "--image-root", str(tiny_data)]
    asked += ["--features", str(tiny_data / "store"), "--workers", "0", "--json", "--set"]
    asked += ["evaluation.bootstrap=0"]
    assert cli.main([*asked, "evaluation.fusion={}"]) == 0
    assert [one["weight"] for one in json.loads(capsys.readouterr().out)["fused"]] == [0.2, 0.5]
    for wrong in ({"weights": [1.2]}, {"weights": []}, {"origin": ["mt"]}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            check(EvaluationConfig, {"fusion": wrong})
