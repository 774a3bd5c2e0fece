"""Japanese: counters, いる for what lives and ある for the rest, modifiers before the noun.

To correct a form, change the tables: `NOUNS`, `COLOUR`, `SIZE`, `TEXTURE`, `SIDE`, `BACKDROP`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from xlcm.data.scenes.world import Background, Mention, Relation, Statement

NOUNS: dict[str, tuple[str, str]] = {
    # noun, counter
    "circle": ("丸", "つ"),
    "square": ("正方形", "つ"),
    "triangle": ("三角形", "つ"),
    "star": ("星", "つ"),
    "heart": ("ハート", "つ"),
    "moon": ("月", "つ"),
    "house": ("家", "軒"),
    "tree": ("木", "本"),
    "car": ("車", "台"),
    "fish": ("魚", "匹"),
    "flower": ("花", "輪"),
    "cup": ("カップ", "つ"),
    # what a machine may take them for
    "club": ("クラブ", "つ"),
    "market": ("市場", "つ"),
    "drum": ("太鼓", "つ"),
    "celebrity": ("スター", "人"),
    "courage": ("勇気", "つ"),
    "month": ("暦の月", "つ"),
    "parliament": ("議会", "つ"),
    "beam": ("梁", "本"),
    "wagon": ("貨車", "両"),
    "angler": ("釣り人", "人"),
    "flour": ("小麦粉", "袋"),
    "trophy": ("トロフィー", "つ"),
}
ANIMATE = frozenset({"fish", "celebrity", "angler"})
NUMBER = ("", "一", "二", "三", "四")
COLOUR = {
    "red": "赤い", "blue": "青い", "green": "緑の", "yellow": "黄色い", "orange": "オレンジ色の",
    "purple": "紫の", "pink": "ピンクの", "brown": "茶色い", "black": "黒い",
}  # fmt: skip
SIZE = {"small": "小さな", "large": "大きな"}
TEXTURE = {
    "plain": "無地の", "striped": "しま模様の", "dotted": "水玉模様の", "chequered": "チェック柄の",
}  # fmt: skip
SIDE: dict[Relation, str] = {"left_of": "左", "right_of": "右", "above": "上", "below": "下"}
BACKDROP: dict[Background, str] = {
    "white": "白", "grey": "灰色", "meadow": "草原", "night": "夜空", "sea": "海", "desert": "砂漠",
}  # fmt: skip
Clauses: TypeAlias = list[list[str]]


def words(statement: Statement, style: int) -> list[str]:
    """Return the sentence in pieces of about one word, without a full stop.

    Args:
        statement: the meaning, of one mention or more.
        style: the pattern, from 0 to `STYLES` - 1.
    """
    clauses = [clause for clause in _PATTERNS[style](statement) if clause]
    for clause in clauses[:-1]:
        clause[-1] += "、"
    return [piece for clause in clauses for piece in clause]


def _existence(said: Statement) -> Clauses:
    """草原を背景に、一軒の家の左に星が一つあり、ほかに木が一本あります."""
    backdrop = [BACKDROP[said.background] + "を", "背景に"] if said.background else []
    if said.relation is None:
        return [backdrop, [*_list_counted(said.mentions), _be(said.mentions)]]
    related, rest = said.mentions[:1], said.mentions[2:]
    first = [*_beside_second(said), *_list_counted(related)]
    if not rest:
        return [backdrop, [*first, _be(related)]]
    return [backdrop, [*first, _being(related)], ["ほかに", *_list_counted(rest), _be(rest)]]


def _subject_first(said: Statement) -> Clauses:
    """背景は草原で、一つの星が一軒の家の左にあり、一本の木もあります."""
    backdrop = ["背景は", BACKDROP[said.background] + "で"] if said.background else []
    if said.relation is None:
        return [backdrop, [*_list(said.mentions, "が"), _be(said.mentions)]]
    related, rest = said.mentions[:1], said.mentions[2:]
    first = [*_list(related, "が"), *_beside_second(said)]
    if not rest:
        return [backdrop, [*first, _be(related)]]
    return [backdrop, [*first, _being(related)], [*_list(rest, "も"), _be(rest)]]


def _drawn(said: Statement) -> Clauses:
    """この絵には、草原を背景に、一軒の家の左に星が一つ描かれ、ほかに木が一本描かれています."""
    backdrop = [BACKDROP[said.background] + "を", "背景に"] if said.background else []
    start: Clauses = [["この", "絵には"], backdrop]
    if said.relation is None:
        return [*start, [*_list_counted(said.mentions), "描かれて", "います"]]
    first = [*_beside_second(said), *_list_counted(said.mentions[:1])]
    if not (rest := said.mentions[2:]):
        return [*start, [*first, "描かれて", "います"]]
    return [*start, [*first, "描かれ"], ["ほかに", *_list_counted(rest), "描かれて", "います"]]


def _title(said: Statement) -> Clauses:
    """一軒の家の左にある一つの星、そして一本の木、背景は草原."""
    backdrop = ["背景は", BACKDROP[said.background]] if said.background else []
    if said.relation is None:
        return [_list(said.mentions), backdrop]
    related, rest = said.mentions[:1], said.mentions[2:]
    first = [*_beside_second(said), _be_plain(related), *_list(related)]
    return [first, ["そして", *_list(rest)] if rest else [], backdrop]


def _visible(said: Statement) -> Clauses:
    """一軒の家の左に一つの星が見え、一本の木も見え、背景は草原です."""
    backdrop = ["背景は", BACKDROP[said.background], "です"] if said.background else []
    last = "見え" if backdrop else "見えます"
    if said.relation is None:
        return [[*_list(said.mentions, "が"), last], backdrop]
    first = [*_beside_second(said), *_list(said.mentions[:1], "が")]
    if not (rest := said.mentions[2:]):
        return [[*first, last], backdrop]
    return [[*first, "見え"], [*_list(rest, "も"), last], backdrop]


def _second_first(said: Statement) -> Clauses:
    """草原が背景で、家が一軒あり、その左に星が一つあり、さらに木が一本ある."""
    backdrop = [BACKDROP[said.background] + "が", "背景で"] if said.background else []
    if said.relation is None:
        return [backdrop, [*_list_counted(said.mentions), _be_plain(said.mentions)]]
    related, place, rest = said.mentions[:1], said.mentions[1:2], said.mentions[2:]
    second = [*_list_counted(place), _being(place)]
    first = ["その", SIDE[said.relation] + "に", *_list_counted(related)]
    if not rest:
        return [backdrop, second, [*first, _be_plain(related)]]
    then = ["さらに", *_list_counted(rest), _be_plain(rest)]
    return [backdrop, second, [*first, _being(related)], then]


_PATTERNS: tuple[Callable[[Statement], Clauses], ...] = (
    _existence,
    _subject_first,
    _drawn,
    _title,
    _visible,
    _second_first,
)
STYLES = len(_PATTERNS)


def _described(mention: Mention) -> list[str]:
    """しま模様の / 小さな / 赤い / 星."""
    pieces = []
    if mention.texture is not None:
        pieces.append(TEXTURE[mention.texture])
    if mention.size is not None:
        pieces.append(SIZE[mention.size])
    if mention.colour is not None:
        pieces.append(COLOUR[mention.colour])
    pieces.append(mention.shape if mention.untranslated else NOUNS[mention.shape][0])
    return pieces


def _number(mention: Mention) -> str:
    """一つ, 二軒, 三匹: nouns keep their counter when the machine leaves them in English."""
    return NUMBER[mention.count] + NOUNS[mention.shape][1]


def _list(mentions: Sequence[Mention], particle: str = "") -> list[str]:
    """一つの / 星と / 二軒の / 家が; from three on with commas."""
    groups = [[_number(mention) + "の", *_described(mention)] for mention in mentions]
    return _joined(groups, particle)


def _list_counted(mentions: Sequence[Mention]) -> list[str]:
    """星が / 一つと / 家が / 二軒: the number after the noun, as before a verb."""
    groups = [[*_described(mention), _number(mention)] for mention in mentions]
    for group in groups:
        group[-2] += "が"
    return _joined(groups)


def _joined(groups: list[list[str]], particle: str = "") -> list[str]:
    for group in groups[:-1]:
        group[-1] += "と" if len(groups) == 2 else "、"
    groups[-1][-1] += particle
    return [piece for group in groups for piece in group]


def _beside_second(said: Statement) -> list[str]:
    """一軒の / 家の / 左に."""
    assert said.relation is not None
    return [*_list(said.mentions[1:2], "の"), SIDE[said.relation] + "に"]


def _be(mentions: Sequence[Mention]) -> str:
    """The verb goes with the last of a list, the one that stands beside it."""
    return "います" if mentions[-1].shape in ANIMATE else "あります"


def _be_plain(mentions: Sequence[Mention]) -> str:
    return "いる" if mentions[-1].shape in ANIMATE else "ある"


def _being(mentions: Sequence[Mention]) -> str:
    return "いて" if mentions[-1].shape in ANIMATE else "あり"
