"""What passes from room to room: items and captions, batches, encoder outputs, loss terms."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct, field

if TYPE_CHECKING:
    from torch import Tensor

Origin: TypeAlias = Literal["human", "mt", "back"]
Word: TypeAlias = Annotated[str, Meta(min_length=1)]
"""Text that is not empty; checked where a manifest is read."""
Terms: TypeAlias = "dict[str, Tensor]"
"""Unweighted loss terms by name, each a float32 scalar over the global batch."""


class Caption(Struct, frozen=True, forbid_unknown_fields=True):
    """One sentence about an item. `msgspec.structs.replace` makes a changed copy.

    Args:
        id: unique in its manifest.
        lang: BCP 47 code, such as `de` or `zh-Hant`.
        origin: `human` (written or translated by a person), `mt` (machine translation) or
            `back` (machine translation back into the source language).
        of: the id of the caption that this one was made from.
        engine: the machine that made it, for `mt` and `back`.
        noise: the kinds of known corruption in it, where they are known (scenes); the same
            words as in `xlcm.data.scenes.NOISE_KINDS`.
        quality: signals of how good a translation it is, numbers or words by name; the names are
            those of `xlcm.translation.quality`.
        relevant: the ids of further items of the same split that it describes as well as its
            own: right answers in an evaluation. Training doesn't look at them.
    """

    id: Word
    lang: str
    text: str
    origin: Origin = "human"
    of: str | None = None
    engine: str | None = None
    noise: tuple[str, ...] = ()
    quality: dict[str, int | float | str] = {}  # a copy of its own for each
    relevant: tuple[Word, ...] = ()


class Item(Struct, frozen=True, forbid_unknown_fields=True):
    """One image or video with its captions: a line of the manifest.

    Args:
        image: path of the image file, absolute or from the manifest's folder.
        video: path of the video file, likewise.
        features: key into a feature store.
        where: `file:line` for messages; empty where there is no file.
        segment: start and end in seconds from the video's first frame, where the item is that
            part of `video` and not all of it.
    """

    id: Word
    split: Word
    captions: tuple[Caption, ...]
    image: str | None = None
    video: str | None = None
    features: str | None = None
    where: str = field(default="", name="\x7f")  # never a key of a manifest
    segment: tuple[float, float] | None = None

    @property
    def clip(self) -> str | None:
        """The video's path, with `#t=<start>,<end>` behind it if the item is a segment of it.

        Two segments of one file are two clips.
        """
        if self.video is None or self.segment is None:
            return self.video
        return f"{self.video}#t={self.segment[0]},{self.segment[1]}"


class _Movable:
    """Tensors that travel to a device together, nested or not."""

    def to(self, device: Any, *, non_blocking: bool = False) -> Any:
        """Return a copy whose tensors are on `device`."""
        return replace(  # type: ignore[type-var]
            self,
            **{
                f.name: _move(getattr(self, f.name), device, non_blocking)
                for f in fields(self)  # type: ignore[arg-type]
            },
        )

    def pin_memory(self) -> Any:
        """Return a copy in page-locked memory; the loader calls it when it feeds a GPU."""
        return replace(  # type: ignore[type-var]
            self,
            **{f.name: _pin(getattr(self, f.name)) for f in fields(self)},  # type: ignore[arg-type]
        )


def _move(value: Any, device: Any, non_blocking: bool) -> Any:
    if isinstance(value, dict):
        return {key: _move(inner, device, non_blocking) for key, inner in value.items()}
    return value.to(device, non_blocking=non_blocking) if hasattr(value, "to") else value


def _pin(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _pin(inner) for key, inner in value.items()}
    return value.pin_memory() if hasattr(value, "pin_memory") else value


@dataclass(slots=True)
class TextBatch(_Movable):
    """Tokenised captions, padded to the longest of them.

    Args:
        ids: `(b, L)` int64 token ids.
        mask: `(b, L)` bool, true on real tokens.
        langs: `b` BCP 47 codes.
        cut: how many captions were longer than the tower takes and lost their end.
        keys: `b` caption ids, where the captions come from a data set.
        present: `(b,)` bool, false on rows that have no such caption: what stands there is
            filler that no loss may see. None: all have one, in every batch of the run, as
            processes must agree on whether there is a mask.
    """

    ids: Tensor
    mask: Tensor
    langs: tuple[str, ...] = ()
    cut: int = 0
    keys: tuple[str, ...] = ()
    present: Tensor | None = None

    def select(self, rows: Tensor) -> TextBatch:
        """Return some rows, padded to the longest of them; of none is it known whether it was cut.

        Args:
            rows: `(n,)` int64, on the CPU.
        """
        mask = self.mask[rows]
        used = mask.any(dim=0).nonzero()
        length = int(used[-1]) + 1 if len(used) else 1
        return TextBatch(
            ids=self.ids[rows][:, :length],
            mask=mask[:, :length],
            langs=_some(self.langs, rows),
            keys=_some(self.keys, rows),
            present=None if self.present is None else self.present[rows],
        )


@dataclass(slots=True)
class Visual(_Movable):
    """Images, or frames, regions or vectors that another model computed.

    Args:
        pixels: `(b, 3, H, W)` uint8 in 0..255; the image encoder normalises on the device.
        features: `(b, D)` pooled, or `(b, T, D)` frames or regions, float.
        mask: `(b, T)` bool for the latter, true on real rows.
    """

    pixels: Tensor | None = None
    features: Tensor | None = None
    mask: Tensor | None = None

    def select(self, rows: Tensor) -> Visual:
        """Return some rows, `(n,)` int64 on the CPU."""
        whole = (self.pixels, self.features, self.mask)
        return Visual(*(None if tensor is None else tensor[rows] for tensor in whole))


@dataclass(slots=True)
class Batch(_Movable):
    """One process's rows of a global batch.

    Args:
        ids: `(b,)` int64, the visual item of each row; equal ids are never negatives of
            one another.
        visual: None in a text-only stream.
        text: view name (`source`, `target`, `targets.de`, ...) -> captions.
        names: `b` item ids as written in the manifest, for messages.
        fixed: whether an item looks the same each time: nothing about `visual` was drawn.
    """

    ids: Tensor
    visual: Visual | None = None
    text: dict[str, TextBatch] = dataclasses.field(default_factory=dict)
    names: tuple[str, ...] = ()
    fixed: bool = False

    def select(self, rows: Tensor) -> Batch:
        """Return some rows as a batch of their own, captions padded to their own longest one.

        Args:
            rows: `(n,)` int64, on the CPU.
        """
        return Batch(
            ids=self.ids[rows],
            visual=None if self.visual is None else self.visual.select(rows),
            text={name: text.select(rows) for name, text in self.text.items()},
            names=_some(self.names, rows),
            fixed=self.fixed,
        )


def _some(words: tuple[str, ...], rows: Tensor) -> tuple[str, ...]:
    return tuple(words[row] for row in rows.tolist()) if words else ()


@dataclass(slots=True)
class Encoded:
    """What an encoder returns, before any head.

    Args:
        pooled: `(b, D)`.
        tokens: `(b, L, D)`, where the encoder has them.
        mask: `(b, L)` bool; None when every token is real.
    """

    pooled: Tensor
    tokens: Tensor | None = None
    mask: Tensor | None = None
