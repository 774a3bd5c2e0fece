"""Chinese (simplified): measure words, 两 for two, 的, and the place before what is there.

To correct a form, change the tables: `NOUNS`, `COLOUR`, `TEXTURE`, `SIDE`, `PLACE`, `BACKDROP`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from xlcm.data.scenes.world import Background, Mention, Relation, Statement

NOUNS: dict[str, tuple[str, str, str]] = {
    # measure word for one, measure word for several, noun
    "circle": ("个", "个", "圆形"),
    "square": ("个", "个", "正方形"),
    "triangle": ("个", "个", "三角形"),
    "star": ("颗", "颗", "星星"),
    "heart": ("颗", "颗", "爱心"),
    "moon": ("弯", "个", "月亮"),
    "house": ("座", "座", "房子"),
    "tree": ("棵", "棵", "树"),
    "car": ("辆", "辆", "汽车"),
    "fish": ("条", "条", "鱼"),
    "flower": ("朵", "朵", "花"),
    "cup": ("个", "个", "杯子"),
    # what a machine may take them for
    "club": ("家", "家", "俱乐部"),
    "market": ("个", "个", "市场"),
    "drum": ("面", "面", "鼓"),
    "celebrity": ("位", "位", "明星"),
    "courage": ("股", "股", "勇气"),
    "month": ("个", "个", "月份"),
    "parliament": ("个", "个", "议会"),
    "beam": ("根", "根", "横梁"),
    "wagon": ("节", "节", "车厢"),
    "angler": ("名", "名", "钓鱼者"),
    "flour": ("袋", "袋", "面粉"),
    "trophy": ("座", "座", "奖杯"),
}
NUMBER = ("", "一", "两", "三", "四")
COLOUR = {
    "red": "红色", "blue": "蓝色", "green": "绿色", "yellow": "黄色", "orange": "橙色",
    "purple": "紫色", "pink": "粉色", "brown": "棕色", "black": "黑色",
}  # fmt: skip
SIZE = {"small": "小", "large": "大"}
TEXTURE = {
    "plain": "纯色的", "striped": "带条纹的", "dotted": "带圆点的", "chequered": "带格子的",
}  # fmt: skip
SIDE: dict[Relation, tuple[str, str]] = {
    # in speech, in writing
    "left_of": ("左边", "左侧"),
    "right_of": ("右边", "右侧"),
    "above": ("上面", "上方"),
    "below": ("下面", "下方"),
}
PLACE: dict[Background, list[str]] = {
    "white": ["白色", "背景上"],
    "grey": ["灰色", "背景上"],
    "meadow": ["草地上"],
    "night": ["夜色中"],
    "sea": ["大海上"],
    "desert": ["沙漠里"],
}
BACKDROP: dict[Background, str] = {
    "white": "白色", "grey": "灰色", "meadow": "草地", "night": "夜空", "sea": "大海",
    "desert": "沙漠",
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
        clause[-1] += "，"
    return [piece for clause in clauses for piece in clause]


def _existence(said: Statement) -> Clauses:
    """有一颗星星在一座房子左边，还有一棵树，背景是草地."""
    backdrop = ["背景", "是", BACKDROP[said.background]] if said.background else []
    if said.relation is None:
        return [["有", *_list(said.mentions)], backdrop]
    first = ["有", *_one(said.mentions[0]), "在", *_beside_second(said)]
    return [first, _rest(said, "还有"), backdrop]


def _place_first(said: Statement) -> Clauses:
    """在草地上，一座房子左边有一颗星星，另外还有一棵树."""
    place = ["在", *PLACE[said.background]] if said.background else []
    if said.relation is None:
        return [place, ["这里", "有", *_list(said.mentions)]]
    first = [*_beside_second(said), "有", *_one(said.mentions[0])]
    return [place, first, _rest(said, "另外", "还有")]


def _picture_shows(said: Statement) -> Clauses:
    """图片显示一颗星星位于一座房子左侧，还有一棵树，背景为草地."""
    backdrop = ["背景", "为", BACKDROP[said.background]] if said.background else []
    if said.relation is None:
        return [["图片", "显示了", *_list(said.mentions)], backdrop]
    first = ["图片", "显示", *_one(said.mentions[0]), "位于", *_beside_second(said, written=True)]
    return [first, _rest(said, "还有"), backdrop]


def _title(said: Statement) -> Clauses:
    """一座房子左侧的一颗星星，以及一棵树，草地背景."""
    backdrop = [BACKDROP[said.background], "背景"] if said.background else []
    if said.relation is None:
        return [_list(said.mentions), backdrop]
    beside = _beside_second(said, written=True)
    beside[-1] += "的"
    return [[*beside, *_one(said.mentions[0])], _rest(said, "以及"), backdrop]


def _one_can_see(said: Statement) -> Clauses:
    """在草地上可以看到一座房子左边有一颗星星，还能看到一棵树."""
    place = ["在", *PLACE[said.background]] if said.background else []
    sight = [*place, "可以", "看到"]
    if said.relation is None:
        return [sight + _list(said.mentions)]
    first = [*sight, *_beside_second(said), "有", *_one(said.mentions[0])]
    return [first, _rest(said, "还能", "看到")]


def _drawn_on(said: Statement) -> Clauses:
    """画面以草地为背景，画的是一座房子和它左边的一颗星星，另外画了一棵树."""
    backdrop = ["画面", "以", BACKDROP[said.background], "为", "背景"] if said.background else []
    drawn = ["画的", "是"] if backdrop else ["画面上", "画的", "是"]
    if said.relation is None:
        return [backdrop, drawn + _list(said.mentions)]
    its = "它" if said.mentions[1].count == 1 else "它们"
    side = SIDE[said.relation][0] + "的"
    first = [*drawn, *_one(said.mentions[1]), "和", its, side, *_one(said.mentions[0])]
    return [backdrop, first, _rest(said, "另外", "画了")]


_PATTERNS: tuple[Callable[[Statement], Clauses], ...] = (
    _existence,
    _place_first,
    _picture_shows,
    _title,
    _one_can_see,
    _drawn_on,
)
STYLES = len(_PATTERNS)


def _one(mention: Mention) -> list[str]:
    """两颗 / 红色的 / 小 / 星星; one 的 is enough in 两颗 / 带条纹的 / 红色 / 小 / 星星.

    Yet 一条带条纹的红色的鱼: a noun of one syllable doesn't follow a colour of two.
    """
    for_one, for_several, noun = NOUNS[mention.shape]
    short = len(noun) == 1 and mention.size is None
    pieces = [NUMBER[mention.count] + (for_one if mention.count == 1 else for_several)]
    if mention.texture is not None:
        pieces.append(TEXTURE[mention.texture])
    if mention.colour is not None:
        pieces.append(COLOUR[mention.colour] + ("的" if short or mention.texture is None else ""))
    if mention.size is not None:
        pieces.append(SIZE[mention.size])
    pieces.append(mention.shape if mention.untranslated else noun)
    return pieces


def _list(mentions: Sequence[Mention]) -> list[str]:
    """一颗星星、一座房子和一棵树."""
    groups = [_one(mention) for mention in mentions]
    for group in groups[:-2]:
        group[-1] += "、"
    if len(groups) > 1:
        groups.insert(-1, ["和"])
    return [piece for group in groups for piece in group]


def _beside_second(said: Statement, *, written: bool = False) -> list[str]:
    """一座房子 / 左边, in writing 一座房子 / 左侧."""
    assert said.relation is not None
    return [*_one(said.mentions[1]), SIDE[said.relation][written]]


def _rest(said: Statement, *link: str) -> list[str]:
    """还有 / 一棵 / 树, if there are more mentions than the two in relation."""
    return [*link, *_list(said.mentions[2:])] if said.mentions[2:] else []
