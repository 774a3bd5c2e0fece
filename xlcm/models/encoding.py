"""The user's side of a dual encoder: long lists in, one matrix out, whatever the batch size."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from torch import Tensor, nn

from xlcm.data.images import load_image, load_pixels, to_rgb
from xlcm.data.languages import language_fault
from xlcm.models.lengths import ahead, embed_texts
from xlcm.models.precision import Precision, lowered, refuse_overflow
from xlcm.types import Visual

if TYPE_CHECKING:
    from xlcm.models.dual_encoder import DualEncoder
    from xlcm.models.exported import ExportedModel

log = logging.getLogger(__name__)

Picture: TypeAlias = str | Path | Image.Image | Tensor
Device: TypeAlias = str | torch.device | None

PATIENCE_S = 2.0  # a bar that is gone before it can be read only flickers
READERS = max(1, min(8, (os.cpu_count() or 1) // 2))  # threads that read pictures


def encode_images(
    model: DualEncoder | ExportedModel,
    images: Picture | Iterable[Picture],
    batch_size: int,
    precision: Precision,
    progress: bool | None,
    device: Device,
) -> Tensor:
    """See `DualEncoder.encode_image`."""
    transform = model.image.transform
    if transform is None:
        raise ValueError(
            "this model reads precomputed features, not pictures: use encode_features on what "
            "recipes/encode.py makes of them"
        )
    if isinstance(images, str | Path | Image.Image) or (
        isinstance(images, Tensor) and images.ndim == 3
    ):
        images = [images]
    images = list(images)  # a generator has no length
    starts = range(0, len(images), _positive(batch_size))
    out = torch.empty(len(images), model.width)

    def load(start: int) -> Tensor:
        numbers = range(start, min(start + batch_size, len(images)))
        return torch.stack(list(readers.map(lambda i: _load(images[i], i, transform), numbers)))

    # one batch is read while the model works on the one before
    with (
        inference(model, device),
        lowered(model.device, precision),
        bar(len(images), "images", progress) as advance,
        ThreadPoolExecutor(READERS) as readers,
    ):
        for start, pixels in zip(starts, ahead(load, starts)):
            out[start : start + len(pixels)] = model.embed_visual(Visual(pixels.to(model.device)))
            advance(len(pixels))
    refuse_overflow(out, precision)
    return out


def _load(picture: Picture, number: int, transform: Callable[[Any], Tensor]) -> Tensor:
    both = getattr(transform, "takes_pixels", False)
    if isinstance(picture, str | Path):
        return transform((load_pixels if both else load_image)(picture))
    if isinstance(picture, Image.Image):
        return transform(to_rgb(ImageOps.exif_transpose(picture))[0])
    if not isinstance(picture, Tensor):
        raise TypeError(f"images[{number}] is a {type(picture).__name__}; expected a path, a PIL "
                        "image or a uint8 tensor (3, H, W)")  # fmt: skip
    if picture.ndim != 3 or picture.shape[0] != 3 or picture.dtype != torch.uint8:
        raise ValueError(f"images[{number}] is {picture.dtype} {tuple(picture.shape)}; a tensor "
                         "must be uint8 (3, H, W), in 0..255")  # fmt: skip
    picture = picture.cpu()
    return transform(
        picture if both else Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
    )


def encode_features(
    model: DualEncoder | ExportedModel,
    features: Tensor,
    mask: Tensor | None,
    batch_size: int,
    progress: bool | None,
    device: Device,
) -> Tensor:
    """See `DualEncoder.encode_features`."""
    features = torch.as_tensor(features)
    out = torch.empty(len(features), model.width)
    with inference(model, device), bar(len(features), "items", progress) as advance:
        for start in range(0, len(features), _positive(batch_size)):
            rows = slice(start, start + batch_size)
            visual = Visual(features=features[rows], mask=None if mask is None else mask[rows])
            out[rows] = model.embed_visual(visual.to(model.device))
            advance(len(out[rows]))
    return out


def encode_texts(
    model: DualEncoder | ExportedModel,
    texts: str | Sequence[str],
    lang: str | Sequence[str] | None,
    batch_size: int | None,
    max_batch_tokens: int | None,
    precision: Precision,
    progress: bool | None,
    device: Device,
) -> Tensor:
    """See `DualEncoder.encode_text`."""
    texts = [texts] if isinstance(texts, str) else list(texts)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts[{number}] is a {type(text).__name__}, expected a str")
    langs = [lang] * len(texts) if isinstance(lang, str) else list(lang or ())
    if langs and len(langs) != len(texts):
        raise ValueError(f"{len(texts)} texts, but {len(langs)} languages")
    for code in dict.fromkeys(langs):
        if fault := language_fault(str(code)):
            raise ValueError(f"lang: {fault}")
    if batch_size is not None:
        _positive(batch_size)
    with (
        inference(model, device),
        lowered(model.device, precision),
        bar(len(texts), "texts", progress) as advance,
    ):
        out, cut = embed_texts(
            model, texts, langs, batch_size=batch_size, budget=max_batch_tokens, advance=advance
        )
    refuse_overflow(out, precision)
    if cut:
        log.warning(
            "%d of %d texts are longer than the %d tokens that the model reads and were cut",
            cut, len(texts), model.text.max_tokens,
        )  # fmt: skip
    return out


@contextlib.contextmanager
def inference(model: nn.Module, device: Device = None) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module is in the mode it was in."""
    if device is not None:
        model.to(device)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


class _Speed(TextColumn):
    def __init__(self, unit: str) -> None:
        super().__init__("")
        self.unit = unit

    def render(self, task: Task) -> Any:
        self.text_format = f"{task.speed or 0:.0f} {self.unit}/s"
        return super().render(task)


@contextlib.contextmanager
def bar(total: int, unit: str, show: bool | None = None) -> Iterator[Callable[[int], None]]:
    """Yield `advance(n)` of a progress bar on standard error with throughput and time left.

    Args:
        total: number of items.
        unit: what they are.
        show: None: only once the work has taken longer than two seconds, on a terminal.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Speed(unit),
        TimeRemainingColumn(),
    )  # fmt: skip
    progress = Progress(*columns, console=console, transient=show is None)
    task = progress.add_task(f"encoding {unit}", total=total)
    begin = time.monotonic()

    def advance(count: int) -> None:
        progress.advance(task, count)
        late = show is None and console.is_terminal and time.monotonic() - begin > PATIENCE_S
        if late and not progress.live.is_started:
            progress.start()

    if show:
        progress.start()
    try:
        yield advance
    finally:
        if progress.live.is_started:
            progress.stop()


def _positive(batch_size: int) -> int:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    return batch_size
