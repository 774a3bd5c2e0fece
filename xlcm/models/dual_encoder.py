"""Two towers, two heads, one space: what training makes and a user keeps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from xlcm.config import Part, build
from xlcm.encoders.base import ImageEncoder, TextEncoder
from xlcm.encoders.heads import HeadFactory
from xlcm.models import encoding
from xlcm.models.precision import Precision
from xlcm.registry import heads, image_encoders, models, text_encoders
from xlcm.types import TextBatch, Visual


class DualEncoder(nn.Module):
    """Images and texts of any language as vectors whose cosine says how well they fit.

    Args:
        image: tower for pictures, or for features computed before.
        text: tower for captions, with its tokenizer.
        width: size of the common space.
        image_head: from the image tower's width to the common one.
        text_head: from the text tower's width to the common one.
        temperature: at the start; cosines are divided by it in the losses.
        max_scale: upper bound of the inverse temperature.
        learn_temperature: whether the temperature is trained.
        bias: starting value of a learned bias on the logits, for the sigmoid loss; None: no bias.

    Attributes:
        languages: BCP 47 codes that training saw.
        about: what else travels with the model: training data, method, anything for its card.

    Source: Radford et al. 2021, https://arxiv.org/abs/2103.00020, section 2.5 and figure 3
    (temperature 0.07, scale at most 100); the bias: Zhai et al. 2023,
    https://arxiv.org/abs/2303.15343, algorithm 1.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        *,
        image: Annotated[ImageEncoder, Part(image_encoders)],
        text: Annotated[TextEncoder, Part(text_encoders)],
        width: Annotated[int, Field(gt=0)] = 256,
        image_head: Annotated[HeadFactory, Part(heads, "linear")],
        text_head: Annotated[HeadFactory, Part(heads, "linear")],
        temperature: Annotated[float, Field(gt=0.0)] = 0.07,
        max_scale: Annotated[float, Field(gt=0.0)] = 100.0,
        learn_temperature: bool = True,
        bias: float | None = None,
    ) -> None:
        super().__init__()
        if 1.0 / temperature > max_scale * (1 + 1e-6):
            raise ValueError(
                f"temperature={temperature} is a scale of {1 / temperature:.4g}, above "
                f"max_scale={max_scale}"
            )
        self.image, self.text = image, text
        self.width = width
        self.image_head = image_head(image.width, width)
        self.text_head = text_head(text.width, width)
        self.temperature, self.max_scale = temperature, max_scale
        self.learn_temperature = learn_temperature
        log_scale = torch.tensor(-math.log(temperature))
        if learn_temperature:
            self.log_scale: Tensor = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)
        self.register_parameter("bias", None if bias is None else nn.Parameter(torch.tensor(bias)))
        self._bias = bias
        self.languages: tuple[str, ...] = ()
        self.about: dict[str, Any] = {}

    @classmethod
    def from_config(cls, spec: Mapping[str, Any], load_weights: bool = True) -> DualEncoder:
        """Build from the `model` section of a config.

        Args:
            spec: options by name; unknown keys are faults.
            load_weights: fetch the pretrained weights that the towers name, from a folder or
                the hub; false leaves them random.

        Raises:
            ConfigError: for an unknown part or option.
            FileNotFoundError: if weights or a tokenizer can't be had.
        """
        model: DualEncoder = build(models, {"name": "dual_encoder", **spec})
        if load_weights:
            model.load_weights()
        return model

    def load_weights(self) -> None:
        """Fetch the pretrained weights that the towers' configs name, if they name any."""
        self.image.load_weights()
        self.text.load_weights()

    @property
    def config(self) -> dict[str, Any]:
        """The resolved spec, from which `from_config` rebuilds it without a network."""
        return {
            "name": "dual_encoder",
            "image": self.image.spec(),
            "text": self.text.spec(),
            "width": self.width,
            "image_head": self.image_head.spec(),
            "text_head": self.text_head.spec(),
            "temperature": self.temperature,
            "max_scale": self.max_scale,
            "learn_temperature": self.learn_temperature,
            "bias": self._bias,
        }

    # -- training -------------------------------------------------------------------------------

    def embed_visual(self, visual: Visual) -> Tensor:
        """Return `(b, width)` float32, of length 1."""
        return self.map_visual(self.image(visual).pooled)

    def embed_text(self, text: TextBatch) -> Tensor:
        """Return `(b, width)` float32, of length 1."""
        return self.map_text(self.text(text).pooled)

    def map_visual(self, pooled: Tensor) -> Tensor:
        """Return `(b, width)` float32 of length 1 for the image tower's `(b, image.width)`."""
        return _unit(self.image_head(pooled))

    def map_text(self, pooled: Tensor) -> Tensor:
        """Return `(b, width)` float32 of length 1 for the text tower's `(b, text.width)`."""
        return _unit(self.text_head(pooled))

    @property
    def scale(self) -> Tensor:
        """Inverse temperature, `()` float32, at most `max_scale`.

        At the bound the gradient is still that of the exponential, or a scale that reached it
        once could never come down again.
        """
        scale = self.log_scale.float().exp()
        return scale + (scale.clamp(max=self.max_scale) - scale).detach()

    @torch.no_grad()
    def clamp_(self) -> None:
        """Bring the scale back to `max_scale`; the training loop calls it after each step."""
        self.log_scale.clamp_(max=math.log(self.max_scale))

    # -- use ------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.log_scale.device

    def encode_image(
        self,
        images: encoding.Picture | Iterable[encoding.Picture],
        *,
        batch_size: int = 64,
        precision: Precision = "fp32",
        progress: bool | None = None,
        device: str | torch.device | None = None,
    ) -> Tensor:
        """Return the vectors of pictures, `(n, width)` float32 on the CPU, of length 1.

        Args:
            images: paths, PIL images or uint8 tensors `(3, H, W)` of any size, in any iterable;
                a single one gives one row.
            batch_size: pictures at a time; it doesn't change the result.
            precision: `bf16` or `fp16` for towers on a GPU, or a CPU with the instructions.
            progress: show a bar; None: if it takes more than two seconds.
            device: move the model there first.

        Raises:
            ValueError: naming the picture that can't be read, or if the model reads features; if
                a tower overflows in fp16.
        """
        return encoding.encode_images(self, images, batch_size, precision, progress, device)

    def encode_features(
        self,
        features: Tensor,
        mask: Tensor | None = None,
        *,
        batch_size: int = 1024,
        progress: bool | None = None,
        device: str | torch.device | None = None,
    ) -> Tensor:
        """Return the vectors of precomputed features, `(n, width)` float32 on the CPU.

        Args:
            features: `(n, D)`, or `(n, T, D)` frames or regions.
            mask: `(n, T)` bool for the latter, true on real rows.
            batch_size: rows at a time.
            progress: show a bar; None: if it takes more than two seconds.
            device: move the model there first.
        """
        return encoding.encode_features(self, features, mask, batch_size, progress, device)

    def encode_text(
        self,
        texts: str | Sequence[str],
        lang: str | Sequence[str] | None = None,
        *,
        batch_size: int | None = None,
        max_batch_tokens: int | None = None,
        precision: Precision = "fp32",
        progress: bool | None = None,
        device: str | torch.device | None = None,
    ) -> Tensor:
        """Return the vectors of texts, `(n, width)` float32 on the CPU, of length 1.

        Args:
            texts: in any language; a single one gives one row.
            lang: BCP 47 code of all, or one of each, for towers that want it.
            batch_size: texts at a time at most; None: as many as tokens fit. Neither this nor the
                next changes the result.
            max_batch_tokens: tokens at a time, padding included, as texts are sorted by their
                number; None: 1,024 on a CPU, 16,384 on a GPU.
            precision: `bf16` or `fp16` for the tower on a GPU, or a CPU with the instructions.
            progress: show a bar; None: if it takes more than two seconds.
            device: move the model there first.

        Raises:
            ValueError: if a code is no BCP 47 code, or their number is not that of the texts; if
                the tower overflows in fp16.
        """
        return encoding.encode_texts(
            self, texts, lang, batch_size, max_batch_tokens, precision, progress, device
        )

    @staticmethod
    def similarity(a: Tensor, b: Tensor) -> Tensor:
        """Return the cosines `(n, m)` of the rows of `a (n, width)` and `b (m, width)`.

        Raises:
            ValueError: if the widths differ.
        """
        if a.shape[-1] != b.shape[-1]:
            raise ValueError(f"vectors of width {a.shape[-1]} and {b.shape[-1]} don't compare")
        return _unit(a) @ _unit(b).T

    # -- saving ---------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path, **options: Any) -> Path:
        """Write everything that `from_pretrained` needs; see `xlcm.hub.save_pretrained`."""
        from xlcm.hub import save_pretrained

        return save_pretrained(self, folder, **options)

    @classmethod
    def from_pretrained(cls, source: str | Path, **options: Any) -> DualEncoder:
        """Open a saved model; see `xlcm.hub.from_pretrained`."""
        from xlcm.hub import from_pretrained

        return from_pretrained(source, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the model; see `xlcm.hub.push_to_hub`."""
        from xlcm.hub import push_to_hub

        return push_to_hub(self, repo_id, **options)


def _unit(vectors: Tensor) -> Tensor:
    return F.normalize(vectors.float(), dim=-1)
