import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from xlcm.config import ConfigError
from xlcm.data.manifest import DataError
from xlcm.data.views import View, Views
from xlcm.types import Caption, Item

CHAIN = {
    "source": View(langs=["en"], origin=["human"]),
    "target": View(langs=["de", "zh"], of="source"),
    "back": View(langs=["en"], of="target"),
}


def item(*captions: Caption) -> Item:
    return Item("photo", "train", captions, where="m.jsonl:7")


def caption(identity: str, lang: str, of: str | None = None, origin: str | None = None) -> Caption:
    made = origin or ("mt" if of else "human")
    return Caption(identity, lang, f"text of {identity}", made, of)


def shares(views: Views, of: Item, name: str, draws: int) -> dict[str, float]:
    random = np.random.default_rng(0)
    drawn = [views.draw(of, random)[name].lang for _ in range(draws)]
    return {lang: drawn.count(lang) / draws for lang in views.views[name].langs}


# -- descent ------------------------------------------------------------------------------------


@st.composite
def families(draw) -> Item:
    """Sources of which some have translations, of which some have back-translations."""
    captions = []
    for number in range(draw(st.integers(1, 4))):
        source = caption(f"s{number}", "en")
        captions.append(source)
        for way in range(draw(st.integers(0, 2))):
            target = caption(f"s{number}.t{way}", draw(st.sampled_from(["de", "zh"])), source.id)
            captions.append(target)
            for again in range(draw(st.integers(0, 2))):
                captions.append(caption(f"{target.id}.b{again}", "en", target.id, "back"))
    return item(*draw(st.permutations(captions)))


@given(families(), st.integers(0, 1000))
@settings(max_examples=150, deadline=None)
def test_chains_descend_from_one_another_whatever_is_translated(family, seed):
    views = Views(CHAIN)
    ids = {c.id: c for c in family.captions}
    complete = {ids[b.of].of for b in family.captions if b.origin == "back"}
    if not complete:
        assert views.missing(family) == ["source", "target", "back"]
        with pytest.raises(DataError, match="photo"):
            views.draw(family, np.random.default_rng(seed))
        return
    assert views.missing(family) == []
    assert {c.id for c in views.candidates(family)["source"]} == complete
    for _ in range(5):
        drawn = views.draw(family, np.random.default_rng(seed))
        assert drawn["target"].of == drawn["source"].id
        assert drawn["back"].of == drawn["target"].id
        assert [c.origin for c in drawn.values()] == ["human", "mt", "back"]


def test_every_complete_chain_is_drawn():
    captions = [caption(f"s{n}", "en") for n in range(4)]
    captions += [caption(f"t{n}", "de", f"s{n}") for n in (1, 2, 3)]
    captions += [caption(f"b{n}", "en", f"t{n}", "back") for n in (2, 3)]
    views, random = Views(CHAIN), np.random.default_rng(0)
    drawn = [views.draw(item(*captions), random)["source"].id for _ in range(100)]
    assert set(drawn) == {"s2", "s3"}


def test_two_views_made_from_one_caption_both_find_theirs():
    views = Views(
        {
            "german": View(langs=["de"], of="source"),
            "czech": View(langs=["cs"], of="source"),
            "source": View(langs=["en"]),
        }
    )
    some = item(
        *(caption(f"s{n}", "en") for n in range(3)),
        *(caption(f"d{n}", "de", f"s{n}") for n in (0, 1)),
        *(caption(f"c{n}", "cs", f"s{n}") for n in (1, 2)),
    )
    for seed in range(10):
        drawn = views.draw(some, np.random.default_rng(seed))
        assert {name: c.id for name, c in drawn.items()} == {
            "source": "s1", "german": "d1", "czech": "c1",
        }  # fmt: skip


def test_parents_come_first_in_whatever_order_the_config_names_them():
    backwards = {name: CHAIN[name] for name in ("back", "target", "source")}
    assert list(Views(backwards).views) == ["source", "target", "back"]
    assert Views(backwards).langs == ["en", "de", "zh"]


def test_a_circle_and_an_unknown_view_are_refused():
    circle = {"a": View(langs=["en"], of="b"), "b": View(langs=["de"], of="a")}
    with pytest.raises(ValueError, match="goes round in a circle among a, b"):
        Views({**circle, "free": View(langs=["en"])})
    with pytest.raises(ValueError, match="circle"):
        Views({"a": View(langs=["en"], of="a")})
    with pytest.raises(ConfigError, match=r"data\.views\.a\.of: no view is called 'sauce'; .* a$"):
        Views({"a": View(langs=["en"], of="sauce")})
    near = {"source": View(langs=["en"]), "target": View(langs=["de"], of="sorce")}
    with pytest.raises(ConfigError, match=r"target\.of: .*'sorce'; did you mean 'source'"):
        Views(near)


# -- languages and origins ----------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_languages_come_as_often_as_the_formula_says(temperature):
    view = View(langs=["en", "de", "sw"], temperature=temperature)
    counts = {"en": 5000, "de": 700, "sw": 30}
    all_three = item(caption("a", "en"), caption("b", "en"), caption("c", "de"), caption("d", "sw"))
    draws = 4000
    found = shares(Views({"text": view}, {"text": counts}), all_three, "text", draws)
    total = sum(n ** (1 / temperature) for n in counts.values())
    for lang, count in counts.items():
        expected = count ** (1 / temperature) / total
        sigma = (expected * (1 - expected) / draws) ** 0.5
        assert abs(found[lang] - expected) < 4 * sigma, lang


def test_only_languages_that_the_item_has_share_the_odds():
    view = View(langs=["en", "de", "sw"])
    two = item(caption("a", "de"), caption("b", "sw"))
    found = shares(
        Views({"text": view}, {"text": {"en": 1, "de": 30, "sw": 10}}), two, "text", 3000
    )
    assert found["en"] == 0
    assert abs(found["de"] - 0.75) < 4 * (0.75 * 0.25 / 3000) ** 0.5


def test_without_counts_all_languages_are_alike_however_many_captions_an_item_has():
    many = item(*(caption(f"e{n}", "en") for n in range(9)), caption("d", "de"))
    found = shares(Views({"text": View(langs=["en", "de"])}), many, "text", 2000)
    assert abs(found["de"] - 0.5) < 4 * (0.25 / 2000) ** 0.5


def test_only_the_asked_origins_and_languages_fit():
    mixed = item(
        caption("human", "de"), caption("machine", "de", "e", "mt"), caption("e", "en"),
        caption("back", "de", "machine", "back"),
    )  # fmt: skip
    ids = {
        tuple(origin or ()): [
            c.id for c in Views({"v": View(langs=["de"], origin=origin)}).candidates(mixed)["v"]
        ]
        for origin in (None, ["human"], ["mt", "back"])
    }
    assert ids == {
        (): ["human", "machine", "back"],
        ("human",): ["human"],
        ("mt", "back"): ["machine", "back"],
    }
    with pytest.raises(ValidationError):
        View(langs=["de"], origin=["machine"])
    with pytest.raises(ValidationError):
        View(langs=[])
    for wrong, meant in (("jp", "did you mean 'ja'"), ("xx-yy-zzzz", "no BCP 47")):
        with pytest.raises(ValidationError, match=f"{wrong}.*{meant}"):
            View(langs=["de", wrong])
    with pytest.raises(ValidationError):
        View(langs=["de"], temperature=0)


# -- one row ------------------------------------------------------------------------------------


def test_a_fixed_caption_is_taken_and_its_descendants_with_it():
    some = item(
        *(caption(f"s{n}", "en") for n in range(3)),
        *(caption(f"t{n}", "de", f"s{n}") for n in range(3)),
        *(caption(f"b{n}", "en", f"t{n}", "back") for n in range(3)),
    )
    for number in range(3):
        drawn = Views(CHAIN).draw(some, np.random.default_rng(9), fixed=f"s{number}")
        assert [c.id for c in drawn.values()] == [f"s{number}", f"t{number}", f"b{number}"]


def test_the_generator_alone_decides():
    some = item(*(caption(f"s{n}", "en") for n in range(50)))
    views = Views({"text": View(langs=["en"])})
    drawn = [views.draw(some, np.random.default_rng(seed))["text"].id for seed in range(30)]
    assert drawn == [views.draw(some, np.random.default_rng(s))["text"].id for s in range(30)]
    assert len(set(drawn)) > 15


def test_a_missing_caption_names_line_item_view_and_way_out():
    with pytest.raises(DataError) as raised:
        Views(CHAIN).draw(
            item(caption("s", "en"), caption("t", "fr", "s")), np.random.default_rng(0)
        )
    told = str(raised.value)
    for part in (
        "m.jsonl:7", "'photo'", "view `target`", "(de/zh made from its `source` caption)",
        "1 x en human, 1 x fr mt", "by machine translation (`xlcm translate`)", "data.views",
        "data.incomplete=drop",
    ):  # fmt: skip
        assert part in told, part
    with pytest.raises(DataError, match=r"view `source` \(en of origin human\); it has none"):
        Views(CHAIN).draw(item(), np.random.default_rng(0))


def test_chains_that_are_all_broken_somewhere_are_told_from_captions_that_lack():
    both = {"source": View(langs=["en"])} | {
        name: View(langs=[name], of="source") for name in ("de", "zh")
    }
    apart = item(
        caption("a", "en"),
        caption("b", "en"),
        caption("a.de", "de", "a"),
        caption("b.zh", "zh", "b"),
    )
    with pytest.raises(DataError, match=r"`source` \(en\) of which captions for all of `de`, `zh`"):
        Views(both).draw(apart, np.random.default_rng(0))
