"""What a scene is, what a caption says about it, and how both are drawn by lot.

A scene is one to three groups of equal objects along a horizontal or vertical line, on a
background. A caption says a part of that: a `Statement`, a meaning without words, which the
grammar of each language (`grammar_<lang>.py`) puts into a sentence. Noise changes the meaning
before the words are chosen, so that agreement stays right and only the content is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np

Shape: TypeAlias = Literal[
    "circle", "square", "triangle", "star", "heart", "moon",
    "house", "tree", "car", "fish", "flower", "cup",
]  # fmt: skip
Sense: TypeAlias = Literal[
    "club", "market", "drum", "celebrity", "courage", "month",
    "parliament", "beam", "wagon", "angler", "flour", "trophy",
]  # fmt: skip
"""What a machine may take each shape's word for: never drawn, only said by mistake."""
Colour: TypeAlias = Literal[
    "red", "blue", "green", "yellow", "orange", "purple", "pink", "brown", "black"
]
Size: TypeAlias = Literal["small", "large"]
Texture: TypeAlias = Literal["plain", "striped", "dotted", "chequered"]
Relation: TypeAlias = Literal["left_of", "right_of", "above", "below"]
Background: TypeAlias = Literal["white", "grey", "meadow", "night", "sea", "desert"]

SHAPES: tuple[Shape, ...] = get_args(Shape)
SENSES: tuple[Sense, ...] = get_args(Sense)
COLOURS: tuple[Colour, ...] = get_args(Colour)
TEXTURES: tuple[Texture, ...] = get_args(Texture)
RELATIONS: tuple[Relation, ...] = get_args(Relation)
BACKGROUNDS: tuple[Background, ...] = get_args(Background)
WRONG_SENSE: dict[str, Sense] = dict(zip(SHAPES, SENSES))
OPPOSITE: dict[Relation, Relation] = {
    "left_of": "right_of", "right_of": "left_of", "above": "below", "below": "above"
}  # fmt: skip
UNSEEN = {"night": ("black", "purple", "blue"), "sea": ("blue",), "meadow": ("green",),
          "desert": ("yellow", "orange", "brown"), "grey": ("black",), "white": ()}  # fmt: skip
"""Colours that hardly show on a background; scenes don't have them there."""


@dataclass(frozen=True, slots=True)
class Group:
    """`count` (1 to 4) equal objects in one place."""

    shape: Shape
    colour: Colour
    count: int
    size: Size
    texture: Texture


@dataclass(frozen=True, slots=True)
class Scene:
    """Groups in order along the axis: from left to right, or from top to bottom."""

    groups: tuple[Group, ...]
    axis: Literal["horizontal", "vertical"]
    background: Background

    def relation(self, first: int, second: int) -> Relation:
        """Return where group `first` is, seen from group `second`."""
        if self.axis == "horizontal":
            return "left_of" if first < second else "right_of"
        return "above" if first < second else "below"


@dataclass(frozen=True, slots=True)
class Mention:
    """What a caption says of one group; None where it is silent.

    Args:
        shape: what the objects are; a `Sense` after a mistake.
        count: 1 to 4, always said (as the article or the number).
        untranslated: the noun stays in the source language: a mistake of the machine.
    """

    shape: Shape | Sense
    count: int
    colour: Colour | None = None
    size: Size | None = None
    texture: Texture | None = None  # `plain` is never said
    untranslated: bool = False


@dataclass(frozen=True, slots=True)
class Statement:
    """The meaning of one caption.

    Args:
        mentions: one to four groups, in the order of the sentence.
        relation: where the first mention is, seen from the second; None with one mention, or
            when the caption only lists.
        background: None where the caption is silent.
    """

    mentions: tuple[Mention, ...]
    relation: Relation | None = None
    background: Background | None = None


def random_scene(random: np.random.Generator) -> Scene:
    """Draw a scene; at most six objects, no two groups of one shape and colour."""
    background = BACKGROUNDS[int(random.integers(len(BACKGROUNDS)))]
    colours = [c for c in COLOURS if c not in UNSEEN[background]]
    wanted = int(random.choice([1, 2, 3], p=[0.15, 0.6, 0.25]))
    most = {1: 4, 2: 3, 3: 2}[wanted]
    groups: list[Group] = []
    while len(groups) < wanted:
        shape = SHAPES[int(random.integers(len(SHAPES)))]
        colour = colours[int(random.integers(len(colours)))]
        if any(g.shape == shape or g.colour == colour for g in groups):
            continue
        count = int(random.choice(most, p=_falling(most))) + 1
        size: Size = "large" if random.random() < 0.5 else "small"
        texture = TEXTURES[int(random.choice(4, p=[0.55, 0.15, 0.15, 0.15]))]
        groups.append(Group(shape, colour, count, size, texture))
    axis: Literal["horizontal", "vertical"] = "horizontal" if random.random() < 0.5 else "vertical"
    return Scene(tuple(groups), axis, background)


def _falling(most: int) -> list[float]:
    weights = [0.5, 0.25, 0.15, 0.1][:most]
    return [w / sum(weights) for w in weights]


def random_statement(scene: Scene, random: np.random.Generator) -> Statement:
    """Draw what a caption says: every group and its colour, most of the rest.

    Size is said for 60 % of the groups, a texture other than plain for 90 %, the relation of the
    first two for 80 %, the background for 60 %. The order of the groups is drawn too.
    """
    order = [int(i) for i in random.permutation(len(scene.groups))]
    mentions = []
    for i in order:
        group = scene.groups[i]
        says_size, says_texture = random.random() < 0.6, random.random() < 0.9
        mentions.append(
            Mention(
                group.shape,
                group.count,
                group.colour,
                group.size if says_size else None,
                group.texture if says_texture and group.texture != "plain" else None,
            )
        )
    relation = scene.relation(order[0], order[1]) if len(order) > 1 else None
    if random.random() >= 0.8:
        relation = None
    background = scene.background if random.random() < 0.6 else None
    return Statement(tuple(mentions), relation, background)


def fits(statement: Statement, scene: Scene) -> bool:
    """Return whether everything that a statement says is true of a scene with so many groups."""
    if len(statement.mentions) != len(scene.groups):
        return False
    if statement.background not in (None, scene.background):
        return False
    places = []
    for mention in statement.mentions:
        found = [i for i, group in enumerate(scene.groups) if _fits_group(mention, group)]
        if len(found) != 1:
            return False
        places.append(found[0])
    if len(set(places)) != len(places):
        return False
    return statement.relation is None or scene.relation(places[0], places[1]) == statement.relation


def _fits_group(mention: Mention, group: Group) -> bool:
    return (
        mention.shape == group.shape
        and mention.count == group.count
        and mention.colour in (None, group.colour)
        and mention.size in (None, group.size)
        and mention.texture in (None, group.texture)
    )
