"""Pictures to pixels: resize and crop in the loader's workers, normalise on the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

Interpolation = Literal["bilinear", "bicubic"]
Resizer = Literal["torch", "pillow"]
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_NAMES = {int(filter_): name for name, filter_ in FILTERS.items()}


@dataclass(frozen=True)
class ImageTransform:
    """RGB picture -> uint8 `(3, size, size)`: resize with antialiasing, then a centre crop.

    The shorter side becomes `floor(size / crop_pct)` pixels; both sides do with `squash`, which
    keeps the whole picture and not its shape. With `resizer="pillow"` the pixels are those of
    timm's evaluation transform; torch's differ by a grey level here and there, rarely by two.

    Args:
        size: side of the square that the encoder sees.
        crop_pct: share of the shorter side that the crop keeps, in (0, 1].
        interpolation: `bilinear` or `bicubic`.
        squash: resize both sides alike, as SigLIP was trained.
        resizer: who resizes.

    Raises:
        ValueError: for values out of range.
    """

    size: int
    crop_pct: float = 1.0
    interpolation: Interpolation = "bicubic"
    squash: bool = False
    resizer: Resizer = "torch"

    takes_pixels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.size < 1 or not 0.0 < self.crop_pct <= 1.0:
            raise ValueError(
                f"expected size > 0 and 0 < crop_pct <= 1, got size={self.size}, "
                f"crop_pct={self.crop_pct}"
            )
        if self.interpolation not in FILTERS:
            raise ValueError(
                f"interpolation must be one of {', '.join(FILTERS)}, got {self.interpolation!r}"
            )

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        """Return the picture's pixels, uint8 `(3, size, size)`.

        Args:
            image: an RGB picture, or its pixels, uint8 `(3, H, W)`.

        Raises:
            ValueError: if the picture isn't RGB.
        """
        if isinstance(image, Tensor):
            if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8:
                raise ValueError(f"expected RGB pixels, uint8 (3, H, W), got {image.dtype} "
                                 f"{(*image.shape,)}")  # fmt: skip
        elif image.mode != "RGB":
            raise ValueError(f"expected an RGB picture, got mode {image.mode!r}: convert it first")
        pixels = image if isinstance(image, Tensor) else _pixels(image)
        resized = self._resized(pixels.shape[2], pixels.shape[1])
        if resized != (pixels.shape[2], pixels.shape[1]):
            pixels = self._resize(pixels, *resized)
        left, top = (round((side - self.size) / 2.0) for side in resized)
        # a view of the resized picture: whoever makes a batch of it copies it anyway
        return pixels[:, top : top + self.size, left : left + self.size]

    def _resize(self, pixels: Tensor, width: int, height: int) -> Tensor:
        if self.resizer == "torch":
            return F.interpolate(pixels[None], (height, width), mode=self.interpolation,
                                 antialias=True)[0]  # fmt: skip
        image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())
        return _pixels(image.resize((width, height), FILTERS[self.interpolation]))

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        short = math.floor(self.size / self.crop_pct)
        if self.squash:
            return short, short
        if width <= height:
            return short, int(short * height / width)
        return int(short * width / height), short

    def spec(self) -> dict[str, Any]:
        """Return the arguments that rebuild it."""
        return asdict(self)

    @classmethod
    def from_timm(cls, data_config: Mapping[str, Any]) -> ImageTransform:
        """Return the evaluation transform that timm's `resolve_model_data_config` describes.

        Raises:
            ValueError: for an input that isn't square, or a crop mode other than center, squash.
        """
        _, height, width = data_config["input_size"]
        mode = data_config.get("crop_mode") or "center"
        if height != width or mode not in ("center", "squash"):
            raise ValueError(
                f"expected a square input, cropped by center or squash, got input_size="
                f"{height}x{width}, crop_mode={mode!r}"
            )
        name = data_config.get("interpolation", "bicubic")
        return cls(height, data_config.get("crop_pct") or 0.875, name, mode == "squash")

    @classmethod
    def from_hf(cls, processor: Mapping[str, Any]) -> ImageTransform:
        """Return the transform that a `preprocessor_config.json` describes.

        Pillow resizes here and the crop is timm's; transformers' own may start a pixel earlier
        where the margin is odd.

        Raises:
            ValueError: if it doesn't end in a square.
        """
        size, crop = _sides(processor.get("size")), _sides(processor.get("crop_size"))
        name = _NAMES.get(int(processor.get("resample", 3)))
        cropped = processor.get("do_center_crop", crop is not None) and crop is not None
        squash = size is not None and len(size) == 2 and not cropped
        final = crop if cropped else size
        square = final is not None and len({*final}) == 1 and (cropped or squash)
        if not square or size is None or final is None or name is None or min(size) < final[0]:
            known = {
                k: processor.get(k) for k in ("size", "crop_size", "do_center_crop", "resample")
            }
            raise ValueError(
                "expected an image processor that resizes (bilinear or bicubic) and ends in a "
                f"square, got {known}; set image_size, crop_pct, interpolation and squash yourself"
            )
        share = final[0] / min(size)
        if math.floor(final[0] / share) < min(size):  # rounding: 255 would come out of 256
            share = math.nextafter(share, 0.0)
        return cls(final[0], share, name, squash)  # type: ignore[arg-type]


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _sides(value: Any) -> tuple[int, ...] | None:
    """Return `(shorter,)` or `(height, width)` of what image processors call a size."""
    if value is None or isinstance(value, int):
        return None if value is None else (value,)
    if "shortest_edge" in value:
        return (value["shortest_edge"],)
    return (value["height"], value["width"]) if "height" in value else None


class Normalise(nn.Module):
    """Pixels -> `(pixel / 255 - mean) / std` by channel, computed in float32 on the device.

    Args:
        mean: of red, green and blue in 0..1.
        std: likewise, above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"expected 3 means and 3 stds above 0, got {mean} and {std}")
        self.values = (tuple(map(float, mean)), tuple(map(float, std)))
        self.register_buffer("mean", torch.zeros(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.ones(3, 1, 1), persistent=False)
        self._fill()

    def _fill(self) -> None:
        for name, values in zip(("mean", "std"), self.values):
            device = getattr(self, name).device
            setattr(
                self, name, torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Normalise:
        """Follow the device, not the dtype: bfloat16 would move the mean by 0.2 %."""
        super()._apply(fn, recurse)
        self._fill()
        return self

    def forward(self, pixels: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Return normalised pixels `(b, 3, H, W)` in `dtype`.

        Args:
            pixels: `(b, 3, H, W)`, uint8 in 0..255 or floating in 0..1.
            dtype: what the backbone computes in.

        Raises:
            ValueError: for no pixels, and pixels of another shape, dtype or range.
        """
        if pixels is None:
            raise ValueError(
                "this encoder reads pixels, but the batch has none: give the items of the "
                "manifest an `image` key, or choose the encoder `features`"
            )
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ValueError(f"expected pixels (batch, 3, height, width), got {(*pixels.shape,)}")
        if pixels.dtype == torch.uint8:
            values = pixels.float() / 255
        elif pixels.is_floating_point():
            values = pixels.float()
            if not torch.compiler.is_compiling() and values.numel():
                low, high = (float(v) for v in torch.aminmax(values))
                if not (low >= 0 and high <= 1):
                    raise ValueError(
                        f"expected floating pixels in 0..1, got {low:.4g}..{high:.4g}: hand over "
                        "uint8 (the encoder's transform does) or divide by 255, and don't normalise"
                    )
        else:
            raise ValueError(f"expected uint8 pixels, or floating ones in 0..1, got {pixels.dtype}")
        return ((values - self.mean) / self.std).to(dtype)
