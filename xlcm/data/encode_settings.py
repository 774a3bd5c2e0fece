"""The config of `recipes/encode.py`: which pictures, videos or captions are encoded, with what."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from xlcm.config import Section, part_field
from xlcm.data.languages import language_fault
from xlcm.data.transforms import Augment
from xlcm.data.video import FrameSampling
from xlcm.registry import datasets, image_encoders, text_encoders

PICTURES = 64  # at once, if no other number is given


class EncodeConfig(Section):
    """What is encoded, with what, into which folder.

    Args:
        image: the encoder of pictures, with its weights; give this, `text` or `model`.
        text: the encoder of captions, with its weights and tokenizer.
        model: folder of a saved model (of a run: its `model/`), or its id on the hub: the pictures
            are encoded by its image tower, as they are before the head.
        captions: with `model`: its text tower encodes the captions, in place of the pictures.
        langs: only captions in these languages; None: all.
        frames: the frames of videos are encoded in place of pictures, and which: `kind` is then
            `tokens`, one vector a frame, or `pooled`, the mean over them.
        manifest: whose pictures are encoded; give this or `data`.
        splits: which splits of the manifest; None: all.
        data: data sets whose pictures are encoded, `{name: scenes, split: train, ...}` or
            `{name: manifest, ...}`, all into one store.
        output: folder of the feature store.
        kind: one vector a picture (`pooled`), one a place (`tokens`), or one for each of several
            changed copies (`views`).
        views: how many, the unchanged picture included.
        augment: how the copies are changed.
        seed: of the changes.
        batch_size: pictures or frames at once for each process, 64 if it is not given; captions at
            most: they are batched by their tokens.
        max_batch_tokens: of captions, tokens at once for each process, padding included; None:
            1,024 on a CPU, 16,384 on a GPU.
        precision: what the towers compute in; `bf16` and `fp16` on a GPU, or a CPU that has
            instructions for it.
        compile: compile the tower first, by `torch.compile`.
        workers: loading processes.
        shard_items: pictures a shard: an interruption costs at most one.
        on_error: `raise` stops at the first picture that can't be read; `skip` encodes the others
            and lists the bad ones in `skipped.jsonl` in the store's folder.
        max_skipped: share of bad items, of any split, above which `skip` stops all the same.
    """

    image: part_field(image_encoders) | None = None  # type: ignore[valid-type]
    text: part_field(text_encoders) | None = None  # type: ignore[valid-type]
    model: str | None = None
    captions: bool = False
    langs: Annotated[list[str], Field(min_length=1)] | None = None
    frames: FrameSampling | None = None
    manifest: str | None = None
    splits: Annotated[list[str], Field(min_length=1)] | None = None
    data: Annotated[list[part_field(datasets)], Field(min_length=1)] | None = None  # type: ignore[valid-type]
    output: str
    kind: Literal["pooled", "tokens", "views"] = "pooled"
    views: Annotated[int, Field(gt=0)] = 1
    augment: Augment = Augment()
    seed: int = 0
    batch_size: Annotated[int, Field(gt=0)] | None = None
    max_batch_tokens: Annotated[int, Field(gt=0)] | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    workers: Annotated[int, Field(ge=0)] = 2
    shard_items: Annotated[int, Field(gt=0)] = 2048
    on_error: Literal["raise", "skip"] = "raise"
    max_skipped: Annotated[float, Field(ge=0, le=1)] = 0.01

    @property
    def of_captions(self) -> bool:
        """Return whether captions are encoded."""
        return self.text is not None or self.captions

    @property
    def pictures_at_once(self) -> int:
        """Return how many pictures or frames a process encodes together."""
        return self.batch_size or PICTURES

    @property
    def items_at_once(self) -> int:
        """Return how many pictures or videos a process loads together."""
        return max(1, self.pictures_at_once // (1 if self.frames is None else self.frames.longest))

    @field_validator("langs")
    @classmethod
    def _languages(cls, langs: list[str] | None) -> list[str] | None:
        for lang in langs or ():
            if fault := language_fault(lang):
                raise ValueError(fault)
        return langs

    @model_validator(mode="after")
    def _captions_or_pictures(self) -> EncodeConfig:
        if self.text is not None and (self.image is not None or self.model is not None):
            raise ValueError("`text` encodes captions: leave `image` and `model` out")
        if self.captions and self.model is None:
            raise ValueError("`captions` goes with `model`, whose text tower encodes them")
        if self.langs is not None and not self.of_captions:
            raise ValueError("`langs` goes with captions: give `text`, or `captions` and `model`")
        if self.max_batch_tokens is not None and not self.of_captions:
            raise ValueError("`max_batch_tokens` goes with captions; pictures have `batch_size`")
        if self.of_captions and (self.frames is not None or self.kind == "views"):
            raise ValueError("captions have neither `frames` nor `views`")
        if self.frames is not None and self.kind == "views":
            raise ValueError("frames are `tokens` (one vector each) or `pooled` (their mean)")
        return self

    @model_validator(mode="after")
    def _one_of_each(self) -> EncodeConfig:
        for what, names in (("encodes", ("image", "model")), ("is encoded", ("manifest", "data"))):
            given = [name for name in names if getattr(self, name) is not None]
            if self.text is not None and "image" in names:
                continue
            if len(given) != 1:
                raise ValueError(
                    f"say what {what} by `{names[0]}` or by `{names[1]}`, one of the two; "
                    + ("both are given" if given else "neither is given")
                )
        if self.splits is not None and self.manifest is None:
            raise ValueError("`splits` goes with `manifest`; each entry of `data` names its split")
        return self
