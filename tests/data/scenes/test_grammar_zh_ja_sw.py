"""Chinese, Japanese and Swahili: agreement word for word, and one sentence for one meaning."""

import itertools
import time
from importlib import import_module

import numpy as np
import pytest

from xlcm.data.scenes.noise import NOISE_KINDS, corrupt
from xlcm.data.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    RELATIONS,
    SENSES,
    SHAPES,
    TEXTURES,
    Mention,
    Statement,
    random_scene,
    random_statement,
)

LANGS = ("zh", "ja", "sw")
GRAMMARS = {lang: import_module(f"xlcm.data.scenes.grammar_{lang}") for lang in LANGS}
STYLES = [(lang, style) for lang in LANGS for style in range(GRAMMARS[lang].STYLES)]

STAR = Mention("star", 1, "red", "small")
STRIPED_STARS = Mention("star", 2, "red", "small", "striped")
STRIPED_FISH = Mention("fish", 1, "red", None, "striped")
HOUSE = Mention("house", 1, "blue")
HOUSES = Mention("house", 2, "blue")
TREE = Mention("tree", 1)
TREES = Mention("tree", 2, "green", "small")
CARS = Mention("car", 2, "red", "large")
FISH = Mention("fish", 3, None, "large")
CUP = Mention("cup", 1, "black", "small", "chequered")
FLOWERS = Mention("flower", 4, "yellow", None, "dotted")
MOON = Mention("moon", 1, "yellow")


def sentence(lang, statement, style):
    return (" " if lang == "sw" else "").join(GRAMMARS[lang].words(statement, style))


def noisy_statements(count, seed=0):
    """Right and wrong statements by turns."""
    random = np.random.default_rng(seed)
    found = []
    for i in range(count):
        said = random_statement(random_scene(random), random)
        if i % 2:
            kind = NOISE_KINDS[i // 2 % len(NOISE_KINDS)]
            said = corrupt(said, kind, random, lambda: found[int(random.integers(len(found)))])
        found.append(said)
    return found


@pytest.mark.parametrize(
    ("statement", "style", "expected"),
    [
        (Statement((STAR, HOUSES), "left_of"), 0, "有一颗红色的小星星在两座蓝色的房子左边"),
        (
            Statement((STRIPED_STARS, HOUSE, TREE), "right_of", "meadow"),
            1,
            "在草地上，一座蓝色的房子右边有两颗带条纹的红色小星星，另外还有一棵树",
        ),
        (
            Statement((CARS, FISH), "above", "white"),
            2,
            "图片显示两辆红色的大汽车位于三条大鱼上方，背景为白色",
        ),
        (
            Statement((CUP, FLOWERS, TREE, MOON), None, "night"),
            3,
            "一个带格子的黑色小杯子、四朵带圆点的黄色的花、一棵树和一弯黄色的月亮，夜空背景",
        ),
        (
            Statement((STRIPED_FISH, HOUSE, TREE), "below", "sea"),
            4,
            "在大海上可以看到一座蓝色的房子下面有一条带条纹的红色的鱼，还能看到一棵树",
        ),
        (
            Statement((STAR, HOUSES, TREE, MOON), "left_of", "desert"),
            5,
            "画面以沙漠为背景，画的是两座蓝色的房子和它们左边的一颗红色的小星星，"
            "另外画了一棵树和一弯黄色的月亮",
        ),
        (Statement((Mention("moon", 2, "pink"),)), 1, "这里有两个粉色的月亮"),
        (Statement((Mention("flour", 3), Mention("celebrity", 2))), 3, "三袋面粉和两位明星"),
        (
            Statement((Mention("star", 2, "red", untranslated=True),), None, "grey"),
            0,
            "有两颗红色的star，背景是灰色",
        ),
    ],
)
def test_chinese_sentences_are_right(statement, style, expected):
    assert sentence("zh", statement, style) == expected


@pytest.mark.parametrize(
    ("statement", "style", "expected"),
    [
        (
            Statement((STAR, HOUSES, TREE), "left_of", "meadow"),
            0,
            "草原を背景に、二軒の青い家の左に小さな赤い星が一つあり、ほかに木が一本あります",
        ),
        (
            Statement((FISH, CARS, TREES), "below", "sea"),
            1,
            "背景は海で、三匹の大きな魚が二台の大きな赤い車の下にいて、二本の小さな緑の木もあります",
        ),
        (
            Statement((CARS, FISH, FLOWERS), "right_of", "desert"),
            2,
            "この絵には、砂漠を背景に、三匹の大きな魚の右に大きな赤い車が二台描かれ、"
            "ほかに水玉模様の黄色い花が四輪描かれています",
        ),
        (
            Statement((STRIPED_FISH, CUP), "above", "night"),
            3,
            "一つのチェック柄の小さな黒いカップの上にいる一匹のしま模様の赤い魚、背景は夜空",
        ),
        (
            Statement((HOUSE, CUP, FISH, MOON), "left_of", "grey"),
            4,
            "一つのチェック柄の小さな黒いカップの左に一軒の青い家が見え、"
            "三匹の大きな魚と一つの黄色い月も見え、背景は灰色です",
        ),
        (
            Statement((HOUSE, STRIPED_FISH, TREE), "right_of", "white"),
            5,
            "白が背景で、しま模様の赤い魚が一匹いて、その右に青い家が一軒あり、さらに木が一本ある",
        ),
        # the verb of a list goes with its last member
        (Statement((TREE, FISH)), 0, "木が一本と大きな魚が三匹います"),
        (
            Statement((FISH, TREE, STAR)),
            1,
            "三匹の大きな魚、一本の木、一つの小さな赤い星があります",
        ),
        (
            Statement((Mention("celebrity", 2), Mention("wagon", 3)), "left_of"),
            0,
            "三両の貨車の左にスターが二人います",
        ),
        (
            Statement((Mention("fish", 2, "pink", untranslated=True), MOON)),
            3,
            "二匹のピンクのfishと一つの黄色い月",
        ),
    ],
)
def test_japanese_sentences_are_right(statement, style, expected):
    assert sentence("ja", statement, style) == expected


@pytest.mark.parametrize(
    ("statement", "style", "expected"),
    [
        (
            Statement((STAR, HOUSES, TREE), "left_of", "white"),
            0,
            "kuna nyota moja ndogo nyekundu kushoto kwa nyumba mbili za buluu, na pia mti mmoja, "
            "kwenye mandharinyuma nyeupe",
        ),
        (
            Statement((CARS, TREES), "above", "sea"),
            1,
            "baharini, juu ya miti miwili midogo ya kijani kuna magari mawili makubwa mekundu",
        ),
        (
            Statement((FISH, CUP, FLOWERS), "below", "grey"),
            2,
            "picha inaonyesha samaki watatu wakubwa chini ya kikombe kimoja kidogo cheusi cha "
            "drafti, pamoja na maua manne ya njano yenye madoadoa, na mandharinyuma ni ya kijivu",
        ),
        (
            Statement((CUP, STRIPED_FISH, MOON), None, "desert"),
            3,
            "kikombe kimoja kidogo cheusi cha drafti, samaki mmoja mwekundu mwenye mistari na "
            "mwezi mmoja wa njano, mandharinyuma ya jangwa",
        ),
        # -ko agrees with the first
        (
            Statement((CARS, HOUSE), "right_of"),
            4,
            "magari mawili makubwa mekundu yako kulia kwa nyumba moja ya buluu",
        ),
        (
            Statement((FISH, HOUSE), "above"),
            4,
            "samaki watatu wakubwa wako juu ya nyumba moja ya buluu",
        ),
        (
            Statement((Mention("cup", 3, "red", None, "striped"), TREE), "left_of"),
            4,
            "vikombe vitatu vyekundu vyenye mistari viko kushoto kwa mti mmoja",
        ),
        (
            Statement((Mention("car", 1, "red"), HOUSE, TREE, MOON), "left_of", "night"),
            5,
            "kwenye picha yenye mandharinyuma ya usiku tunaona gari moja jekundu upande wa kushoto "
            "wa nyumba moja ya buluu, na pia mti mmoja na mwezi mmoja wa njano",
        ),
        (
            Statement((Mention("heart", 2, "pink", "large", "chequered"),), None, "night"),
            1,
            "usiku kuna mioyo miwili mikubwa ya rangi ya waridi ya drafti",
        ),
        (
            Statement((Mention("tree", 2, "black", None, "striped"), Mention("cup", 2, "brown"))),
            3,
            "miti miwili myeusi yenye mistari na vikombe viwili vya kahawia",
        ),
        (
            Statement(
                (
                    Mention("cup", 2, "red", untranslated=True),
                    Mention("fish", 2, "red", untranslated=True),
                )
            ),
            3,
            "cups mbili nyekundu na fish wawili wekundu",
        ),
        (
            Statement((Mention("angler", 1, "black", "large"), Mention("flour", 1, "red"))),
            3,
            "mvuvi mmoja mkubwa mweusi na unga mmoja mwekundu",
        ),
    ],
)
def test_swahili_sentences_are_right(statement, style, expected):
    assert sentence("sw", statement, style) == expected


@pytest.mark.parametrize(("lang", "style"), STYLES)
def test_every_kind_of_mention_has_its_own_words(lang, style):
    said = {}
    for shape, colour, size, texture, count, untranslated in itertools.product(
        SHAPES + SENSES, (*COLOURS, None), ("small", "large", None), (*TEXTURES[1:], None),
        range(1, 5), (False, True),
    ):  # fmt: skip
        mention = Mention(shape, count, colour, size, texture, untranslated)
        assert said.setdefault(sentence(lang, Statement((mention,)), style), mention) == mention


@pytest.mark.parametrize(("lang", "style"), STYLES)
def test_the_side_said_is_the_side_meant(lang, style):
    word = dict(
        zip(RELATIONS, ("kushoto", "kulia", "juu", "chini") if lang == "sw" else "左右上下")
    )
    for relation in RELATIONS:
        said = sentence(lang, Statement((STAR, HOUSES), relation), style)
        said = said.replace("画面上", "")  # in a picture, not above something
        assert [name for name in RELATIONS if word[name] in said] == [relation]


@pytest.mark.parametrize(("lang", "style"), STYLES)
def test_relations_backgrounds_and_lists_all_differ(lang, style):
    mentions = (STAR, HOUSES, CUP, FISH)
    said = [
        Statement(order[:many], relation, background)
        for many in (1, 2, 3, 4)
        for order in itertools.permutations(mentions)
        for relation in ((*RELATIONS, None) if many > 1 else (None,))
        for background in (*BACKGROUNDS, None)
    ]
    sentences = {sentence(lang, statement, style) for statement in said}
    assert len(sentences) == len(set(said))


@pytest.mark.parametrize(("lang", "style"), STYLES)
def test_distinct_statements_have_distinct_sentences(lang, style):
    said = {}
    for statement in noisy_statements(2000):
        assert said.setdefault(sentence(lang, statement, style), statement) == statement
    assert len(said) > 1500


@pytest.mark.parametrize(("lang", "style"), STYLES)
def test_pieces_are_words_with_their_marks_and_no_full_stop(lang, style):
    marks = {"zh": "，、", "ja": "、", "sw": ",;:"}[lang]
    for statement in noisy_statements(300):
        pieces = GRAMMARS[lang].words(statement, style)
        assert all(pieces)
        assert all(len(piece) <= 16 and " " not in piece for piece in pieces)
        assert not any(mark in piece[:-1] for piece in pieces for mark in marks + "。.")
        assert not any(piece in marks for piece in pieces)
        assert pieces[-1][-1] not in marks + "。."


@pytest.mark.parametrize("lang", LANGS)
def test_styles_are_distinct_patterns(lang):
    statement = Statement((STAR, HOUSE, TREES), "left_of", "sea")
    sentences = {sentence(lang, statement, style) for style in range(GRAMMARS[lang].STYLES)}
    assert len(sentences) == GRAMMARS[lang].STYLES >= 4


@pytest.mark.parametrize("lang", LANGS)
def test_ten_thousand_sentences_take_about_a_second(lang):
    said, words = noisy_statements(1000), GRAMMARS[lang].words
    start = time.process_time()
    for i, statement in enumerate(said):
        words(statement, i % GRAMMARS[lang].STYLES)
    assert time.process_time() - start < 0.2  # half the speed promised: the machine is shared
