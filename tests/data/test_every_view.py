"""Views of every language at once, lacking languages, cleaning, and second tokenizers."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from xlcm.config import ConfigError
from xlcm.data.batching import Row
from xlcm.data.collate import Collator
from xlcm.data.manifest import DataError
from xlcm.data.rows import survey, training_texts
from xlcm.data.transforms import Augment
from xlcm.data.views import View, Views
from xlcm.types import Caption, Item, TextBatch

LANGS = ["de", "zh", "sw"]
SOURCE = View(langs=["en"], origin=["human"])
EVERY = {"source": SOURCE, "targets": View(langs=LANGS, of="source", every=True)}
SOME = {**EVERY, "targets": View(langs=LANGS, of="source", every=True, optional=True)}


def family(name: str = "photo", *, sources: int = 3, without: dict | None = None) -> Item:
    """Sources with a translation into each language, but for {number of the source: languages}."""
    captions = []
    for n in range(sources):
        source = Caption(f"{name}.{n}", "en", f"A dog, {name} {n}!")
        langs = [lang for lang in LANGS if lang not in (without or {}).get(n, ())]
        captions += [source] + [
            Caption(f"{source.id}.{lang}", lang, f"{lang} of {source.id}", "mt", source.id)
            for lang in langs
        ]
    return Item(name, "train", tuple(captions), where="m.jsonl:3")


class Made:
    """Items in memory, with features of three kinds."""

    name, split = "made", "train"

    def __init__(self, *items: Item, features: str = "pooled") -> None:
        self.items, self.features = items, features

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Item:
        return self.items[index]

    def load_image(self, index: int) -> int:
        return index

    def load_features(self, index: int) -> torch.Tensor | list[torch.Tensor]:
        one = torch.full((4,), float(index))
        return [one, one + 1] if self.features == "views" else one


class Codes:
    """Characters as ids, plus an offset that tells tokenizers apart; opens each text with 1."""

    def __init__(self, offset: int = 0) -> None:
        self.offset = offset

    def __call__(self, texts, langs) -> TextBatch:
        rows = [[1] + [ord(c) + self.offset for c in text] for text in texts]
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
        for row, pieces in zip(ids, rows):
            row[: len(pieces)] = torch.tensor(pieces)
        return TextBatch(ids, ids != 0, tuple(langs))


def words(text: TextBatch, offset: int = 0) -> list[str]:
    return ["".join(chr(i - offset) for i in row if i > 1) for row in text.ids.tolist()]


def collator(dataset: Made, views: Views, **options) -> Collator:
    return Collator(dataset, views, Codes(), None, **options)


def rows(*items: int, epoch: int = 0) -> list[Row]:
    return [Row(item, 0, epoch) for item in items]


def draws(views: Views, item: Item, count: int = 20) -> list[dict[str, Caption]]:
    return [views.draw(item, np.random.default_rng(seed)) for seed in range(count)]


# -- every --------------------------------------------------------------------------------------


def test_a_view_of_every_language_stands_for_one_view_a_language():
    views = Views(EVERY)
    assert list(views.views) == ["source", "targets.de", "targets.zh", "targets.sw"]
    assert views.names("targets") == ("targets.de", "targets.zh", "targets.sw")
    assert views.names("source") == ("source",)
    assert views.names("targets.zh") == ("targets.zh",)
    assert views.written("targets.zh") == "targets"
    assert views.langs == ["en", *LANGS]
    with pytest.raises(ConfigError, match=r"no view is called 'target'; did you mean 'targets'"):
        views.names("target")


def test_all_languages_of_a_row_are_made_from_the_same_caption():
    found = draws(Views(EVERY), family())
    for drawn in found:
        assert {c.of for name, c in drawn.items() if name != "source"} == {drawn["source"].id}
        assert [c.lang for c in drawn.values()] == ["en", *LANGS]
    assert {drawn["source"].id for drawn in found} == {"photo.0", "photo.1", "photo.2"}


def test_only_captions_with_all_languages_are_drawn_where_all_are_needed():
    uneven = family(without={0: ["sw"], 2: ["de", "zh"]})
    assert {drawn["source"].id for drawn in draws(Views(EVERY), uneven)} == {"photo.1"}


def test_without_a_parent_each_language_is_drawn_by_itself():
    views = Views({"all": View(langs=["en", "de"], every=True)})
    found = draws(views, family())
    assert all([c.lang for c in drawn.values()] == ["en", "de"] for drawn in found)
    assert any(drawn["all.de"].of != drawn["all.en"].id for drawn in found)


def test_a_child_names_the_language_that_it_is_made_from():
    back = Caption("b", "en", "back", "back", "photo.1.de")
    item = family()
    item = Item(item.id, item.split, (*item.captions, back))
    views = Views({**EVERY, "back": View(langs=["en"], of="targets.de")})
    assert {d["back"].of for d in draws(views, item)} == {"photo.1.de"}
    with pytest.raises(ConfigError, match=r"data\.views\.back\.of: 'targets' has .* 'targets\.de'"):
        Views({**EVERY, "back": View(langs=["en"], of="targets")})


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"every": True, "temperature": 2.0}, "leave one of the two out"),
        ({"every": True, "langs": ["de", "de"]}, "twice"),
        ({"optional": True}, "optional=true is for views with every=true"),
        ({"clean": "letter"}, "letters"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(options, told):
    with pytest.raises(ValidationError, match=told):
        View(**{"langs": LANGS, **options})


def test_two_views_of_one_name_are_refused():
    with pytest.raises(ConfigError, match=r"data\.views\.targets\.de: .* rename"):
        Views({**EVERY, "targets.de": View(langs=["de"])})


def test_a_missing_language_names_view_item_and_ways_out():
    item = family(without={n: ["sw"] for n in range(3)})
    for stop in (
        lambda: survey(Made(item), EVERY),
        lambda: Views(EVERY).draw(item, np.random.default_rng(0)),
    ):
        with pytest.raises(DataError) as raised:
            stop()
        for part in (
            "m.jsonl:3", "'photo'", "view `targets.sw` (sw made from its `source` caption)",
            "machine translation (`xlcm translate`)", "data.incomplete=drop",
            "data.views.targets.optional=true",
        ):  # fmt: skip
            assert part in str(raised.value), part
    assert Views(EVERY).missing(item) == list(Views(EVERY).views)  # no chain is whole


def test_the_language_of_the_source_among_its_own_translations_is_explained():
    asked = {**EVERY, "targets": View(langs=["en", "de"], of="source", every=True, optional=True)}
    with pytest.raises(DataError, match=r"no caption in 'en' .* whose own language en is"):
        survey(Made(family()), asked)


# -- optional -----------------------------------------------------------------------------------


def test_an_item_that_lacks_a_language_still_makes_a_row():
    lacking = family(without={n: ["sw"] for n in range(3)})
    views = Views(SOME)
    assert views.missing(lacking) == []
    for drawn in draws(views, lacking):
        assert list(drawn) == ["source", "targets.de", "targets.zh"]
    found = survey(Made(lacking, family("other")), SOME)
    assert (found.dropped, found.slots.tolist()) == ([], [1, 1])
    assert found.langs_seen == ["en", *LANGS]


def test_presence_is_said_of_each_row_and_filler_is_an_empty_caption():
    lacking = family("bare", without={n: ["sw"] for n in range(3)})
    batch = collator(Made(family("full"), lacking), Views(SOME))(rows(1, 0, 1))
    text = batch.text["targets.sw"]
    assert text.present.tolist() == [False, True, False]
    assert text.present.dtype == torch.bool
    assert text.mask.sum(1).tolist()[::2] == [1, 1]  # what the tokenizer makes of no text
    assert words(text)[::2] == ["", ""]
    assert text.keys[0] == text.keys[2] == ""
    assert text.langs == ("sw",) * 3
    assert batch.text["targets.de"].present.tolist() == [True] * 3
    assert batch.text["source"].present is None


def test_processes_agree_on_a_mask_also_where_nothing_is_missing():
    batch = collator(Made(family("a"), family("b")), Views(SOME))(rows(0, 1))
    assert all(batch.text[f"targets.{lang}"].present.all() for lang in LANGS)
    needed = collator(Made(family("a")), Views(EVERY))(rows(0))
    assert all(text.present is None for text in needed.text.values())


def test_languages_that_may_lack_do_not_choose_the_source():
    uneven = family(without={0: ["sw"], 2: LANGS})
    found = draws(Views(SOME), uneven, 60)
    assert {d["source"].id for d in found} == {"photo.0", "photo.1", "photo.2"}
    assert {len(d) for d in found if d["source"].id == "photo.0"} == {3}
    assert {len(d) for d in found if d["source"].id == "photo.2"} == {1}


def test_an_item_without_any_caption_makes_no_row():
    alone = {"all": View(langs=["de", "sw"], every=True, optional=True)}
    assert Views(alone).missing(Item("x", "train", ())) == ["all.de", "all.sw"]
    with pytest.raises(DataError, match=r"view `all\.de`"):
        Views(alone).draw(Item("x", "train", ()), np.random.default_rng(0))


def test_a_language_that_no_item_has_is_an_error_though_optional():
    lacking = family(without={n: ["sw"] for n in range(3)})
    with pytest.raises(DataError, match=r"data\.views\.targets\.langs: no caption in 'sw'"):
        survey(Made(lacking), SOME)


def test_what_others_are_made_from_can_not_be_optional():
    with pytest.raises(ConfigError, match=r"back\.of: .* 'targets\.de', as it is optional"):
        Views({**SOME, "back": View(langs=["en"], of="targets.de")})


def test_rows_over_captions_go_over_a_view_that_every_item_has():
    first = {"all": View(langs=["de", "sw"], every=True, optional=True), "source": SOURCE}
    dataset = Made(family(without={n: ["sw"] for n in range(3)}), family("other"))
    found = survey(dataset, first, rows="caption")
    assert (found.slot_view, found.slots.tolist()) == ("source", [3, 3])
    batch = collator(dataset, found.views, slot_view="source")([Row(0, n, 0) for n in range(3)])
    assert batch.text["source"].keys == ("photo.0", "photo.1", "photo.2")
    with pytest.raises(ConfigError, match=r"data\.rows=caption"):
        survey(dataset, {"all": first["all"]}, rows="caption")
    lengths = survey(dataset, {"all": first["all"]}, lengths=True).lengths
    assert np.isfinite(lengths).all()


def test_a_fixed_caption_that_does_not_fit_is_named():
    with pytest.raises(DataError, match=r"caption 'nobody' of item 'photo' does not fit .*source"):
        Views(SOME).draw(family(), np.random.default_rng(0), fixed="nobody")


# -- clean --------------------------------------------------------------------------------------


def test_cleaning_changes_text_alone_and_for_all_who_ask():
    views = Views({**EVERY, "source": View(langs=["en"], clean="letters")})
    drawn = views.draw(family(), np.random.default_rng(0), fixed="photo.1")
    assert (drawn["source"].text, drawn["source"].id) == ("A dog photo 1.", "photo.1")
    assert drawn["targets.de"].text == "de of photo.1"
    assert views.candidates(family())["source"][1] == drawn["source"]
    seen = list(training_texts(Made(family()), views))
    assert "A dog photo 2." in seen
    assert "A dog, photo 2!" not in seen
    plain = Views({"source": View(langs=["en"], clean="words")})
    assert plain.candidates(family())["source"][0].text == "A dog photo 0"


def test_a_caption_that_cleaning_empties_stops_with_its_id():
    views = Views({"target": View(langs=["zh"], clean="letters")})
    item = Item("x", "train", (Caption("x.zh", "zh", "两只狗"),), where="m.jsonl:9")
    for ask in (
        lambda: views.draw(item, np.random.default_rng(0)),
        lambda: survey(Made(item), {"target": View(langs=["zh"], clean="letters")}),
    ):
        with pytest.raises(DataError, match=r"m\.jsonl:9: data\.views\.target\.clean.*'x\.zh'"):
            ask()


# -- the batch ----------------------------------------------------------------------------------


def test_only_takes_the_names_of_the_config():
    batch = collator(Made(family()), Views(EVERY), only=["targets"])(rows(0))
    assert list(batch.text) == ["targets.de", "targets.zh", "targets.sw"]
    with pytest.raises(ConfigError, match="no view is called 'tagets'; did you mean 'targets'"):
        collator(Made(family()), Views(EVERY), only=["tagets"])


def test_another_tokenizer_reads_the_same_drawn_captions():
    extra = {"teacher0": ("source", Codes(7)), "teacher1": ("targets", Codes(9))}
    make = collator(Made(family("a"), family("b")), Views(EVERY), only=["source"], extra=extra)
    for epoch in range(10):
        batch = make(rows(0, 1, epoch=epoch))
        assert words(batch.text["teacher0"], 7) == words(batch.text["source"])
        assert batch.text["teacher0"].keys == batch.text["source"].keys
        sources = batch.text["source"].keys
        assert batch.text["teacher1.zh"].keys == tuple(f"{key}.zh" for key in sources)
        assert words(batch.text["teacher1.zh"], 9) == [f"zh of {key}" for key in sources]
    assert set(batch.text) == {"source", "teacher0", *(f"teacher1.{lang}" for lang in LANGS)}


def test_a_second_tokenizer_can_not_take_the_name_of_a_view():
    with pytest.raises(ValueError, match=r"'source' is the name of a view and"):
        collator(Made(family()), Views(EVERY), extra={"source": ("source", Codes())})
    with pytest.raises(ConfigError, match="no view is called 'sauce'"):
        collator(Made(family()), Views(EVERY), extra={"teacher0": ("sauce", Codes())})


def test_asking_for_more_captions_changes_no_draw():
    dataset = Made(family("a"), family("b"))
    extra = {"teacher0": ("source", Codes(7))}
    for epoch in range(5):
        bare, more = (
            collator(dataset, Views(EVERY), **options)(rows(0, 1, epoch=epoch))
            for options in ({"only": ["source"]}, {"extra": extra})
        )
        assert bare.text["source"].keys == more.text["source"].keys


@pytest.mark.parametrize(
    ("features", "pixels", "augment", "fixed"),
    [
        ("pooled", False, Augment(), True),
        ("pooled", False, Augment(flip=0.5), True),  # features are not augmented
        ("views", False, Augment(), False),
        ("pooled", True, Augment(), True),
        ("pooled", True, Augment(flip=0.5), False),
    ],
)
def test_a_batch_says_whether_its_items_look_the_same_each_time(
    monkeypatch, features, pixels, augment, fixed
):
    monkeypatch.setattr(Augment, "__call__", lambda self, image, random: image)
    transform = (lambda image: torch.tensor([image])) if pixels else None
    dataset = Made(family("a"), family("b"), features=features)
    make = Collator(dataset, Views(EVERY), Codes(), transform, augment=augment)
    assert make(rows(0, 1)).fixed is fixed
