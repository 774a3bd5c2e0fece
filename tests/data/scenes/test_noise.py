"""Each kind of noise does what it says, always, and the same for the same seed."""

from collections import Counter

import numpy as np
import pytest

from xlcm.data.scenes.noise import (
    MARKS,
    NOISE_KINDS,
    corrupt,
    is_wrong,
    meaning,
    shuffle_words,
)
from xlcm.data.scenes.world import (
    SENSES,
    WRONG_SENSE,
    Mention,
    Statement,
    fits,
    random_scene,
    random_statement,
)

RED_STAR = Mention("star", 1, "red")
BLUE_STAR = Mention("star", 1, "blue")
BARE = Statement((Mention("star", 1),))


def statements(count, seed=0):
    random = np.random.default_rng(seed)
    drawn = [random_statement(random_scene(random), random) for _ in range(count)]
    assert sum(len(s.mentions) == 1 for s in drawn) > count // 20
    return drawn


def mistakes(kind, drawn, seed=1):
    random = np.random.default_rng(seed)
    return [
        corrupt(s, kind, random, lambda: drawn[int(random.integers(len(drawn)))]) for s in drawn
    ]


def never():
    raise AssertionError("only a wrong sentence needs another statement")


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_a_mistake_changes_the_meaning_exactly_if_its_kind_says_so(kind):
    drawn = statements(500)
    for right, wrong in zip(drawn, mistakes(kind, drawn)):
        assert (meaning(right) != meaning(wrong)) == is_wrong(kind), (right, wrong)


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_mistakes_depend_on_the_seed_alone(kind):
    drawn = statements(500)
    assert mistakes(kind, drawn) == mistakes(kind, drawn)
    if kind != "word_order":
        assert mistakes(kind, drawn, seed=1) != mistakes(kind, drawn, seed=2)


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_a_bare_single_mention_is_corrupted_too(kind):
    for seed in range(20):
        wrong = corrupt(BARE, kind, np.random.default_rng(seed), lambda: Statement((RED_STAR,)))
        assert (meaning(wrong) != meaning(BARE)) == is_wrong(kind)


@pytest.mark.parametrize("kind", ["wrong_sense", "attribute_swap", "hallucination"])
def test_a_wrong_caption_no_longer_fits_its_picture(kind):
    random = np.random.default_rng(0)
    for _ in range(500):
        scene = random_scene(random)
        right = random_statement(scene, random)
        assert fits(right, scene)
        wrong = corrupt(right, kind, random, never)
        assert not fits(wrong, scene)


def test_wrong_sense_replaces_one_noun_by_its_other_sense():
    for right, wrong in zip(statements(500), mistakes("wrong_sense", statements(500))):
        changed = [(a, b) for a, b in zip(right.mentions, wrong.mentions) if a != b]
        assert len(changed) == 1
        assert changed[0][1].shape == WRONG_SENSE[changed[0][0].shape]


def test_wrong_sense_of_a_wrong_sense_is_a_third_one():
    mistaken = Statement((Mention("celebrity", 1),))
    wrong = corrupt(mistaken, "wrong_sense", np.random.default_rng(0), never)
    assert wrong.mentions[0].shape in set(SENSES) - {"celebrity"}


def test_omission_of_a_related_mention_drops_the_relation():
    three = Statement((RED_STAR, Mention("tree", 2), Mention("cup", 1)), "above", "night")
    seen = {corrupt(three, "omission", np.random.default_rng(i), never) for i in range(40)}
    a, b, c = three.mentions
    assert seen == {
        Statement((b, c), None, "night"),
        Statement((a, c), None, "night"),
        Statement((a, b), "above", "night"),
    }


def test_omission_takes_a_detail_of_the_only_mention():
    one = Statement((Mention("star", 2, "red", "small", "dotted"),), None, "sea")
    seen = {corrupt(one, "omission", np.random.default_rng(i), never) for i in range(40)}
    assert seen == {
        Statement((Mention("star", 2, None, "small", "dotted"),), None, "sea"),
        Statement((Mention("star", 2, "red", None, "dotted"),), None, "sea"),
        Statement((Mention("star", 2, "red", "small", None),), None, "sea"),
    }


def test_attribute_swap_exchanges_or_turns_the_relation_round():
    two = Statement((RED_STAR, Mention("tree", 2, "green")), "left_of")
    seen = {corrupt(two, "attribute_swap", np.random.default_rng(i), never) for i in range(60)}
    assert seen == {
        Statement((Mention("star", 1, "green"), Mention("tree", 2, "red")), "left_of"),
        Statement((Mention("star", 2, "red"), Mention("tree", 1, "green")), "left_of"),
        Statement(two.mentions, "right_of"),
    }


def test_attribute_swap_in_a_list_of_equal_shapes_is_no_mere_change_of_order():
    both = Statement((RED_STAR, BLUE_STAR))
    for seed in range(40):
        wrong = corrupt(both, "attribute_swap", np.random.default_rng(seed), never)
        assert {m.colour for m in wrong.mentions} != {"red", "blue"}


def test_untranslated_marks_one_more_noun_until_none_is_left():
    two = Statement((RED_STAR, BLUE_STAR))
    random = np.random.default_rng(0)
    for marked in (1, 2, 2):
        two = corrupt(two, "untranslated", random, never)
        assert sum(m.untranslated for m in two.mentions) == marked


def test_hallucination_adds_a_shape_that_nothing_in_the_statement_stands_for():
    mistaken = Statement((Mention("celebrity", 1), Mention("tree", 1)), "above")
    for seed in range(300):
        wrong = corrupt(mistaken, "hallucination", np.random.default_rng(seed), never)
        assert wrong.mentions[:2] == mistaken.mentions
        assert wrong.relation == "above"
        assert wrong.mentions[2].shape not in ("celebrity", "star", "tree")
        assert wrong.mentions[2].colour is not None


def test_wrong_sentence_skips_statements_that_say_the_same():
    said = iter([Statement((BLUE_STAR, RED_STAR)), Statement((RED_STAR,))])
    both = Statement((RED_STAR, BLUE_STAR))
    random = np.random.default_rng(0)
    assert corrupt(both, "wrong_sentence", random, lambda: next(said)) == Statement((RED_STAR,))
    with pytest.raises(ValueError, match="draw from other pictures"):
        corrupt(both, "wrong_sentence", random, lambda: both)


def test_an_unknown_kind_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'typo'.*wrong_sense, omission"):
        corrupt(BARE, "typo", np.random.default_rng(0), never)


def test_the_same_said_from_the_other_side_means_the_same():
    left = Statement((RED_STAR, BLUE_STAR), "left_of")
    assert meaning(left) == meaning(Statement((BLUE_STAR, RED_STAR), "right_of"))
    assert meaning(left) != meaning(Statement((BLUE_STAR, RED_STAR), "left_of"))
    assert meaning(left) != meaning(Statement((RED_STAR, BLUE_STAR), "above"))
    assert meaning(left) != meaning(Statement((RED_STAR, BLUE_STAR)))


def test_shuffled_words_are_the_same_words_in_another_order():
    pieces = ["Links", "von", "einem", "Haus", "ist", "ein", "Stern,", "und", "dort", "ein", "Baum"]
    bare = Counter(p.rstrip(MARKS) for p in pieces)
    orders = set()
    for seed in range(300):
        shuffled = shuffle_words(pieces, np.random.default_rng(seed))
        assert shuffled == shuffle_words(pieces, np.random.default_rng(seed))
        assert [p.rstrip(MARKS) for p in shuffled] != [p.rstrip(MARKS) for p in pieces]
        assert Counter(p.rstrip(MARKS) for p in shuffled) == bare
        assert [p[-1] in MARKS for p in shuffled] == [p[-1] in MARKS for p in pieces]
        orders.add(tuple(shuffled))
    assert len(orders) > 200


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [([], []), (["星"], ["星"]), (["a", "a"], ["a", "a"]), (["a,", "b"], ["b,", "a"])],
)
def test_the_shortest_sentences_are_shuffled_if_they_can_be(pieces, expected):
    for seed in range(10):
        assert shuffle_words(pieces, np.random.default_rng(seed)) == expected
