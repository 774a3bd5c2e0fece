import pickle

import numpy as np
import pytest
import torch

from xlcm import config
from xlcm.data.features import FeatureWriter
from xlcm.data.manifest import DataError
from xlcm.data.scenes import LANGS, NOISE_KINDS, Scenes
from xlcm.data.scenes.grammar import STYLES, sentence
from xlcm.data.scenes.splits import SHARES, meaning, scene_at, tenth
from xlcm.data.scenes.world import fits
from xlcm.data.views import View, Views
from xlcm.registry import datasets


def scenes(**options) -> Scenes:
    return Scenes(**{"size": 400, "cache": None, **options})


def machine(dataset: Scenes, count: int = 400) -> dict:
    return {c.id: c for i in range(count) for c in dataset[i].captions if c.origin == "mt"}


def right(dataset: Scenes, index: int, lang: str, number: int) -> set[str]:
    """All right captions: the statement in every style of the language."""
    statement = dataset.statement(index, lang, number)
    return {sentence(lang, statement, style) for style in range(STYLES[lang])}


def test_items_and_pictures_depend_on_seed_and_index_alone():
    small = scenes(size=20, seed=7)
    wide = scenes(size=50, seed=7, captions=4, target_langs=LANGS[1:])
    for index in (19, 3, 11):
        known = {c.id: c for c in wide[index].captions}
        assert all(known[c.id] == c for c in small[index].captions)
        assert small.load_image(index).tobytes() == wide.load_image(index).tobytes()
    assert small[3] == small[3]
    assert small.load_image(3).mode == "RGB"
    assert scenes(seed=8)[3].captions != small[3].captions


def test_items_carry_ids_languages_and_descent():
    item = scenes(captions=1, target_langs=["de"])[123]
    assert item.id == "scenes-train-000123"
    assert [(c.id, c.lang, c.origin, c.of) for c in item.captions] == [
        ("scenes-train-000123#en.0", "en", "human", None),
        ("scenes-train-000123#de.0", "de", "mt", "scenes-train-000123#en.0"),
        ("scenes-train-000123#de.0.back", "en", "back", "scenes-train-000123#de.0"),
    ]
    views = Views(
        {
            "source": View(langs=["en"], origin=["human"]),
            "target": View(langs=["de"], of="source"),
            "back": View(langs=["en"], of="target"),
        }
    )
    drawn = views.draw(item, np.random.default_rng(0))
    assert [c.origin for c in drawn.values()] == ["human", "mt", "back"]


def test_number_and_languages_of_captions_are_the_same_for_every_item():
    for dataset in (scenes(captions=3), scenes(split="test", captions=3)):
        assert dataset.uniform
        kinds = {tuple((c.lang, c.origin) for c in dataset[i].captions) for i in range(60)}
        assert len(kinds) == 1


def test_splits_share_no_meaning_and_test_scenes_are_distinct():
    seen = {
        split: [meaning(scene_at(0, split, index)) for index in range(count)]
        for split, count in (("train", 3000), ("val", 500), ("test", 500))
    }
    assert not set(seen["train"]) & (set(seen["val"]) | set(seen["test"]))
    assert not set(seen["val"]) & set(seen["test"])
    assert len(set(seen["test"])) == 500
    assert len(set(seen["val"])) == 500
    for split, share in SHARES.items():
        assert {tenth(scene_at(1, split, i)) for i in range(60)} == set(share)


def test_scene_does_not_depend_on_the_order_of_access():
    from xlcm.data.scenes import splits

    forward = [scene_at(5, "test", i) for i in range(40)]
    splits._distinct.cache_clear()
    assert [scene_at(5, "test", i) for i in reversed(range(40))] == forward[::-1]


def test_captions_wrong_at_a_low_rate_are_wrong_in_the_same_way_at_a_higher_one():
    low, high = machine(scenes(noise_rate=0.2)), machine(scenes(noise_rate=0.4))
    wrong = [name for name, caption in low.items() if caption.noise]
    assert wrong
    assert all(high[name] == low[name] for name in wrong)
    clean = machine(scenes())
    assert all(low[name] == clean[name] for name in low if name not in wrong)
    few = machine(scenes(noise_rate=0.2, noise_kinds=["omission"]))
    assert [name for name, caption in few.items() if caption.noise] == wrong
    assert all(few[name] == clean[name] for name in few if name not in wrong)


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.4, 1.0])
def test_share_of_wrong_captions_is_the_rate(rate):
    captions = machine(scenes(noise_rate=rate)).values()
    share = np.mean([bool(c.noise) for c in captions])
    assert len(captions) == 1600
    assert abs(share - rate) <= 4 * np.sqrt(rate * (1 - rate) / len(captions))


def test_kinds_are_drawn_evenly_from_those_asked_for():
    every = [c.noise[0] for c in machine(scenes(noise_rate=1.0)).values()]
    for kind in NOISE_KINDS:
        assert every.count(kind) == pytest.approx(1600 / 7, rel=0.3)
    some = machine(scenes(noise_rate=1.0, noise_kinds=["omission", "word_order"]), 50).values()
    assert {c.noise for c in some} == {("omission",), ("word_order",)}


def test_noise_label_tells_whether_the_caption_is_right():
    dataset = scenes(noise_rate=0.5, captions=1)
    for index in range(150):
        for caption in dataset[index].captions:
            if caption.origin != "mt":
                continue
            good = right(dataset, index, caption.lang, 0)
            assert (caption.text in good) == (not caption.noise), caption


def test_back_translation_carries_the_mistake():
    dataset = scenes(noise_rate=0.7, captions=1, target_langs=["de", "sw"])
    for index in range(150):
        item = dataset[index]
        source = item.captions[0]
        by_id = {c.id: c for c in item.captions}
        for back in (c for c in item.captions if c.origin == "back"):
            target = by_id[back.of]
            assert back.noise == target.noise
            assert (back.lang, target.of) == ("en", source.id)
            good = right(dataset, index, "en", 0)
            told = not back.noise or back.noise == ("untranslated",)
            assert (back.text in good) == told, back
            assert back.text != source.text


def test_captions_of_val_and_test_are_clean_and_speak_for_themselves():
    for split in ("val", "test"):
        dataset = scenes(split=split, noise_rate=1.0, target_langs=LANGS[1:])
        differ = 0
        for index in range(40):
            for caption in dataset[index].captions:
                assert (caption.origin, caption.noise, caption.of) == ("human", (), None)
                number = int(caption.id[-1])
                statement = dataset.statement(index, caption.lang, number)
                assert fits(statement, dataset.scene(index))
                assert caption.text in right(dataset, index, caption.lang, number)
                differ += statement != dataset.statement(index, "en", number)
        assert differ > 200


def test_human_targets_in_train_are_clean_and_independent():
    dataset = scenes(target_origin="human", noise_rate=1.0)
    captions = [c for i in range(50) for c in dataset[i].captions]
    assert {(c.origin, c.noise) for c in captions} == {("human", ())}
    assert any(dataset.statement(i, "de", 0) != dataset.statement(i, "en", 0) for i in range(50))


def test_dataset_is_cheap_to_send_to_a_worker_and_arrives_whole(tmp_path):
    dataset = Scenes(size=1000, cache=str(tmp_path), noise_rate=0.3)
    dataset.load_image(4)
    data = pickle.dumps(dataset)
    assert len(data) < 2000
    arrived = pickle.loads(data)
    assert arrived[4] == dataset[4]
    assert arrived.load_image(4).tobytes() == dataset.load_image(4).tobytes()


def test_config_builds_it_and_refuses_what_it_can_not_take(tmp_path):
    spec = {"name": "scenes", "size": 10, "target_langs": ["cs"], "cache": str(tmp_path)}
    built = config.build(datasets, {**spec, "noise_kinds": ["omission"], "noise_rate": 0.1})
    assert built.target_langs == ("cs",)
    assert built.noise_kinds == ("omission",)
    for wrong in ({"noise_rate": 1.5}, {"noise_kinds": ["typo"]}, {"captions": 6}, {"seed": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            config.build(datasets, {**spec, **wrong})


def test_errors_say_what_came_and_what_there_is():
    with pytest.raises(ValueError, match=r"no grammar of 'tr'.*en, de"):
        scenes(target_langs=["tr"])
    with pytest.raises(ValueError, match="twice: en, de, de"):
        scenes(target_langs=["de", "de"])
    dataset = scenes(size=3)
    for call in (dataset.__getitem__, dataset.load_image):
        with pytest.raises(IndexError, match="item 3 of scenes-train, which has 3"):
            call(3)
    with pytest.raises(DataError, match="no precomputed features"):
        dataset.load_features(0)


# -- features ------------------------------------------------------------------------------------


def feature_store(folder, numbers, split="val", **options):
    drawn = {"drawings": {"scenes": {"seed": 0, "image_size": 64}}}
    with FeatureWriter(folder, **{"kind": "pooled", "dim": 3, "encoder": drawn, **options}) as out:
        for number in numbers:
            shape = (2, 3) if "views" in options else (3,)
            out.add(f"scenes-{split}-{number:06d}", torch.full(shape, float(number)))
    return str(folder)


def test_features_of_a_store_are_found_by_the_item(tmp_path):
    store = feature_store(tmp_path / "store", range(5))
    dataset = pickle.loads(pickle.dumps(scenes(split="val", size=5, features=store)))
    assert torch.equal(dataset.load_features(4), torch.full((3,), 4.0))
    assert dataset[4] == scenes(split="val", size=5)[4]
    with pytest.raises(IndexError):
        dataset.load_features(5)
    views = feature_store(tmp_path / "views", range(2), kind="views", views=2)
    found = scenes(split="val", size=2, features=views).load_features(1)
    assert [view.tolist() for view in found] == [[1.0] * 3] * 2


def test_features_of_other_pictures_or_too_few_are_refused_at_once(tmp_path):
    store = feature_store(tmp_path / "store", range(5))
    with pytest.raises(DataError, match=r"no features of scenes-val-000005.*recipes/encode\.py"):
        scenes(split="val", size=6, features=store)
    with pytest.raises(DataError, match=r"no features of scenes-test-000000"):
        scenes(split="test", size=5, features=store)
    for other in ({"seed": 1}, {"image_size": 32}):
        with pytest.raises(DataError, match=r"are of scenes with seed=0, image_size=64, not seed"):
            scenes(split="val", size=5, features=store, **other)


# -- translations of queries ---------------------------------------------------------------------


def test_query_translations_say_what_the_query_says_unless_noise_names_a_mistake():
    dataset = scenes(split="test", noise_rate=0.4, query_translations=True)
    plain = scenes(split="test")
    wrong = total = 0
    for index in range(150):
        captions = dataset[index].captions
        assert tuple(c for c in captions if c.origin == "human") == plain[index].captions
        asked = {c.id for c in captions if c.origin == "human" and c.lang != "en"}
        made = [c for c in captions if c.origin == "mt"]
        assert {c.of for c in made} == asked
        assert len(made) == len(asked) == 4
        for caption in made:
            _, lang, number = caption.of.replace("#", ".").split(".")
            statement = dataset.statement(index, lang, int(number))
            good = {sentence("en", statement, style) for style in range(STYLES["en"])}
            # English stays English where a word is left as it was
            told = not caption.noise or caption.noise == ("untranslated",)
            assert (caption.lang, caption.text in good) == ("en", told), caption
            wrong += bool(caption.noise)
            total += 1
    assert abs(wrong / total - 0.4) <= 4 * np.sqrt(0.24 / total)


def test_query_translations_wrong_at_a_low_rate_are_wrong_in_the_same_way_at_a_higher_one():
    low, high = (
        machine(scenes(split="val", noise_rate=rate, query_translations=True), 100)
        for rate in (0.2, 0.5)
    )
    assert all(high[name] == caption for name, caption in low.items() if caption.noise)
    assert sum(bool(c.noise) for c in low.values()) < sum(bool(c.noise) for c in high.values())


def test_query_translations_of_translations_are_refused():
    with pytest.raises(ValueError, match=r"way back.*`val` or `test`"):
        scenes(query_translations=True)
    assert machine(scenes(query_translations=True, target_origin="human"), 3)
