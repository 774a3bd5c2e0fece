"""The benchmark as a dataset: items, captions with controlled noise, pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from torch import Tensor

from xlcm.data.features import FeatureStore
from xlcm.data.manifest import DataError
from xlcm.data.scenes.cache import PictureCache, default_folder
from xlcm.data.scenes.draw import draw
from xlcm.data.scenes.grammar import LANGS, STYLES, join, pieces, sentence
from xlcm.data.scenes.noise import NOISE_KINDS, NoiseKind, corrupt, shuffle_words
from xlcm.data.scenes.splits import Split, generator, scene_at
from xlcm.data.scenes.world import Scene, Statement, random_scene, random_statement
from xlcm.registry import nearest
from xlcm.types import Caption, Item

ENGINE = "scenes-noise"
REMEMBERED = 20_000
"""Items whose captions are kept once they were made, which takes 0.4 ms; 3 KB each."""


class Scenes:
    """Drawn pictures with captions in up to seven languages, and machine translation at will.

    Item `i` of a split depends on the seed alone: not on the size, the other languages, the
    number of captions or the order of access. A caption that is wrong at one noise rate is
    wrong in the same way at every higher rate.

    Args:
        split: no meaning of a scene is in two splits.
        size: number of items.
        source_lang: of the captions that people wrote, and of the back-translations.
        target_langs: further languages.
        captions: number of captions an item and language.
        noise_rate: share of the machine's captions that are wrong.
        noise_kinds: what may be wrong with them, drawn evenly; None: everything.
        target_origin: `mt` makes target captions in `train` translations of the source captions,
            with noise, and adds their back-translations; `human` gives each language captions of
            its own, as in `val` and `test` always.
        query_translations: each target caption that a person wrote has a machine's translation
            into `source_lang` beside it, with noise at the same rate, for methods that translate
            queries; for `val`, `test` and `target_origin: human`.
        image_size: side of the pictures in pixels.
        seed: another one gives other scenes.
        cache: folder for pictures; `auto` is `$XLCM_CACHE/scenes` or `~/.cache/xlcm/scenes`;
            None draws them each time.
        features: the folder of a feature store that `recipes/encode.py` made of these pictures;
            keys are the items' ids.

    Attributes:
        uniform: every item has the same languages and number of captions.
        store: the feature store, if one was given.

    Raises:
        ValueError: for a language without a grammar, or one named twice; for query translations
            of captions that are translations themselves.
        DataError: for a feature store that can't be used, or is of other pictures.
    """

    name = "scenes"
    uniform = True

    def __init__(
        self,
        *,
        split: Literal["train", "val", "test"] = "train",
        size: Annotated[int, Field(gt=0)] = 10_000,
        source_lang: str = "en",
        target_langs: Sequence[str] = ("de", "zh"),
        captions: Annotated[int, Field(ge=1, le=5)] = 2,
        noise_rate: Annotated[float, Field(ge=0, le=1)] = 0.0,
        noise_kinds: Annotated[Sequence[NoiseKind], Field(min_length=1)] | None = None,
        target_origin: Literal["mt", "human"] = "mt",
        query_translations: bool = False,
        image_size: Annotated[int, Field(ge=32)] = 64,
        seed: Annotated[int, Field(ge=0)] = 0,
        cache: str | None = "auto",
        features: str | None = None,
    ) -> None:
        _check_langs(source_lang, target_langs)
        self.split: Split = split
        self.size = size
        self.source_lang = source_lang
        self.target_langs = tuple(target_langs)
        self.captions = captions
        self.noise_rate = noise_rate
        self.noise_kinds = tuple(noise_kinds) if noise_kinds is not None else NOISE_KINDS
        self.translated = target_origin == "mt" and split == "train"
        if query_translations and self.translated:
            raise ValueError(
                "query_translations: target captions in `train` are translations, and have their "
                "way back; ask for them in `val` or `test`, or set target_origin: human"
            )
        self.query_translations = query_translations
        self.image_size = image_size
        self.seed = seed
        folder = default_folder() if cache == "auto" else cache
        self.pictures = (
            None if folder is None else PictureCache(folder, f"{split}-{seed}", image_size)
        )
        self._made: dict[int, Item] = {}
        self.store = None if features is None else FeatureStore(features)
        if self.store is not None:
            self._check_store(self.store)

    @property
    def drawing(self) -> dict[str, int]:
        """What the pictures hang on beside an item's id; a feature store keeps it."""
        return {"seed": self.seed, "image_size": self.image_size}

    def _check_store(self, store: FeatureStore) -> None:
        made_of = store.encoder.get("drawings", {}).get(self.name, self.drawing)
        if made_of != self.drawing:
            raise DataError(
                f"scenes-{self.split}: the features in {store.folder} are of scenes with "
                f"{_options(made_of)}, not {_options(self.drawing)}: encode these into another "
                "folder with recipes/encode.py, or name the store that was made of them"
            )
        for index in (0, self.size - 1):
            if (name := self._name(index)) not in store:
                raise DataError(
                    f"scenes-{self.split}: {store.folder} has no features of {name}, which this "
                    f"split of size {self.size} has: encode it with recipes/encode.py (it goes on "
                    "where it was), or set a smaller size",
                    kind="feature_missing",
                )

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Item:
        """Return the captions of an item, without its pixels.

        Raises:
            IndexError: outside `0 <= index < size`.
        """
        if index in self._made:
            return self._made[index]
        scene = self.scene(index)
        name = self._name(index)
        captions: list[Caption] = []
        for number in range(self.captions):
            captions += self._captions(scene, index, name, number)
        item = Item(id=name, split=self.split, captions=tuple(captions))
        if len(self._made) < REMEMBERED:
            self._made[index] = item
        return item

    def _name(self, index: int) -> str:
        return f"scenes-{self.split}-{index:06d}"

    def scene(self, index: int) -> Scene:
        """Return what the picture of an item shows.

        Raises:
            IndexError: outside `0 <= index < size`.
        """
        if not 0 <= index < self.size:
            raise IndexError(f"item {index} of scenes-{self.split}, which has {self.size}")
        return scene_at(self.seed, self.split, index)

    def statement(self, index: int, lang: str, number: int) -> Statement:
        """Return what caption `number` of an item says in a language, before any noise."""
        lang = self.source_lang if self.translated else lang
        return self._say(self.scene(index), index, lang, number)[0]

    def load_image(self, index: int) -> Image.Image:
        """Return the picture as RGB, drawn or from the cache.

        Raises:
            IndexError: outside `0 <= index < size`.
        """
        if not 0 <= index < self.size:
            raise IndexError(f"item {index} of scenes-{self.split}, which has {self.size}")
        picture = self.pictures.get(index) if self.pictures is not None else None
        if picture is None:
            picture = self._draw(index)
            if self.pictures is not None:
                self.pictures.put(index, picture)
        return Image.fromarray(picture)

    def load_features(self, index: int) -> Tensor | Sequence[Tensor]:
        """Return what the feature store holds of a picture: `(D,)`, `(T, D)` or a list of views.

        Raises:
            DataError: if no store was given, or it lacks the item.
            IndexError: outside `0 <= index < size`.
        """
        if not 0 <= index < self.size:
            raise IndexError(f"item {index} of scenes-{self.split}, which has {self.size}")
        if self.store is None:
            raise DataError(
                f"scenes-{self.split}: item {index} has no precomputed features; use an image "
                "encoder that takes pixels, such as `timm`, or encode the pictures with "
                "recipes/encode.py and set the dataset's `features` to its folder"
            )
        found = self.store[self._name(index)]
        return list(found) if self.store.kind == "views" else found

    def _draw(self, index: int) -> NDArray[np.uint8]:
        random = generator("picture", self.seed, self.split, index)
        return draw(self.scene(index), random, self.image_size)

    def _say(self, scene: Scene, index: int, lang: str, number: int) -> tuple[Statement, int]:
        random = generator("say", self.seed, self.split, index, lang, number)
        statement = random_statement(scene, random)
        return statement, int(random.integers(STYLES[lang]))

    def _captions(self, scene: Scene, index: int, name: str, number: int) -> list[Caption]:
        lang = self.source_lang
        statement, style = self._say(scene, index, lang, number)
        source = Caption(f"{name}#{lang}.{number}", lang, sentence(lang, statement, style))
        made = [source]
        for lang in self.target_langs:
            label = f"{name}#{lang}.{number}"
            if self.translated:
                made += self._translate(source, statement, style, index, lang, number, label)
            else:
                said, way = self._say(scene, index, lang, number)
                made.append(Caption(label, lang, sentence(lang, said, way)))
                if self.query_translations:
                    made.append(self._translate_query(made[-1], said, index, number))
        return made

    def _translate(
        self,
        source: Caption,
        statement: Statement,
        style: int,
        index: int,
        lang: str,
        number: int,
        label: str,
    ) -> tuple[Caption, Caption]:
        """Return the machine's caption and its way back; both carry the same mistake."""
        random = generator("translate", self.seed, self.split, index, lang, number)
        noise = self._mistake(random)
        there = int(random.integers(STYLES[lang]))
        others = STYLES[source.lang] - 1
        back = (style + 1 + int(random.integers(max(others, 1)))) % STYLES[source.lang]
        said = self._corrupted(statement, noise, random)
        returned = replace(
            said, mentions=tuple(replace(m, untranslated=False) for m in said.mentions)
        )
        text = _write(lang, said, there, noise, random)
        target = Caption(label, lang, text, "mt", source.id, ENGINE, noise)
        text = _write(source.lang, returned, back, noise, random)
        return target, Caption(f"{label}.back", source.lang, text, "back", label, ENGINE, noise)

    def _translate_query(
        self, query: Caption, statement: Statement, index: int, number: int
    ) -> Caption:
        """Return the machine's translation of a person's caption into the source language."""
        random = generator("query", self.seed, self.split, index, query.lang, number)
        noise = self._mistake(random)
        style = int(random.integers(STYLES[self.source_lang]))
        said = self._corrupted(statement, noise, random)
        text = _write(self.source_lang, said, style, noise, random)
        label = f"{query.id}.{self.source_lang}"
        return Caption(label, self.source_lang, text, "mt", query.id, ENGINE, noise)

    def _mistake(self, random: np.random.Generator) -> tuple[NoiseKind, ...]:
        """Draw what is wrong with a translation, if anything is."""
        # as many numbers are drawn whatever the options, so that these change nothing else
        chance, which = random.random(), random.random()
        kind = self.noise_kinds[int(which * len(self.noise_kinds))]
        return (kind,) if chance < self.noise_rate else ()

    def _corrupted(
        self, statement: Statement, noise: Sequence[NoiseKind], random: np.random.Generator
    ) -> Statement:
        for kind in noise:
            statement = corrupt(statement, kind, random, lambda: self._elsewhere(random))
        return statement

    def _elsewhere(self, random: np.random.Generator) -> Statement:
        """Return what is said of another picture; of no item in particular."""
        return random_statement(random_scene(random), random)


def _write(
    lang: str,
    statement: Statement,
    style: int,
    noise: Sequence[NoiseKind],
    random: np.random.Generator,
) -> str:
    if "word_order" not in noise:
        return sentence(lang, statement, style)
    return join(lang, shuffle_words(pieces(lang, statement, style), random))


def _options(drawing: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value}" for name, value in drawing.items())


def _check_langs(source_lang: str, target_langs: Sequence[str]) -> None:
    langs = [source_lang, *target_langs]
    for lang in langs:
        if lang not in LANGS:
            raise ValueError(
                f"scenes have no grammar of {lang!r}{nearest(lang, LANGS)}; there are "
                f"{', '.join(LANGS)}"
            )
    if len(set(langs)) < len(langs):
        raise ValueError(f"source_lang and target_langs name a language twice: {', '.join(langs)}")
