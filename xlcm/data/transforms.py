"""Random changes to training pictures, before the encoder's own resize and crop."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
from PIL import Image, ImageEnhance
from pydantic import Field
from torch import Tensor

from xlcm.config import Section
from xlcm.data.images import to_pixels


class Augment(Section):
    """Crop, mirror and recolour; all off by default. Drawn from the row's own generator.

    Args:
        crop: smallest share of the area that a random crop keeps, in (0, 1]; 1: no crop.
        ratio: largest change of the aspect ratio by the crop, at least 1.
        flip: probability of a mirror image. Captions that say left and right then lie.
        colour: largest relative change of brightness, contrast and saturation, in [0, 1).
        grey: probability of a grey picture. Captions that name colours then lie.
    """

    crop: Annotated[float, Field(gt=0, le=1)] = 1.0
    ratio: Annotated[float, Field(ge=1)] = 4 / 3
    flip: Annotated[float, Field(ge=0, le=1)] = 0.0
    colour: Annotated[float, Field(ge=0, lt=1)] = 0.0
    grey: Annotated[float, Field(ge=0, le=1)] = 0.0

    @property
    def active(self) -> bool:
        """Whether anything is changed at all."""
        return self.crop < 1 or self.flip > 0 or self.colour > 0 or self.grey > 0

    def __call__(
        self, image: Image.Image | Tensor, random: np.random.Generator
    ) -> Image.Image | Tensor:
        """Return a changed copy of an RGB picture, or of its pixels `(3, H, W)`."""
        if not isinstance(image, Tensor):
            return self._coloured(self._cut(image, random), random)
        if self.crop < 1:
            left, top, right, bottom = self._box((image.shape[2], image.shape[1]), random)
            image = image[:, top:bottom, left:right]
        if self.flip and random.random() < self.flip:
            image = image.flip(2)
        if not (self.colour or self.grey):
            return image
        values = image.permute(1, 2, 0).contiguous().numpy()
        return to_pixels(self._coloured(Image.fromarray(values), random))

    def _cut(self, image: Image.Image, random: np.random.Generator) -> Image.Image:
        if self.crop < 1:
            image = image.crop(self._box(image.size, random))
        if self.flip and random.random() < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image

    def _coloured(self, image: Image.Image, random: np.random.Generator) -> Image.Image:
        if self.colour:
            for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
                image = enhance(image).enhance(1 + self.colour * random.uniform(-1, 1))
        if self.grey and random.random() < self.grey:
            image = image.convert("L").convert("RGB")
        return image

    def _box(self, size: tuple[int, int], random: np.random.Generator) -> tuple[int, int, int, int]:
        width, height = size
        share = random.uniform(self.crop, 1)
        # a stronger stretch would not fit into the picture and cost area
        most = min(math.log(self.ratio), -math.log(share))
        stretch = math.exp(random.uniform(-most, most))
        wide = min(math.ceil(width * math.sqrt(share * stretch)), width)
        high = min(math.ceil(height * math.sqrt(share / stretch)), height)
        left = int(random.integers(width - wide + 1))
        top = int(random.integers(height - high + 1))
        return left, top, left + wide, top + high
