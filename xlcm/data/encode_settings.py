"""The config of `recipes/encode.py`: which pictures are encoded once, with what."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from xlcm.config import Section, part_field
from xlcm.data.transforms import Augment
from xlcm.registry import datasets, image_encoders


class EncodeConfig(Section):
    """What is encoded, with what, into which folder.

    Args:
        image: the encoder, with its weights; give this or `model`.
        model: folder of a saved model (of a run: its `model/`), or its id on the hub: the pictures
            are encoded by its image tower, as they are before the head.
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
        batch_size: pictures at once for each process.
        workers: loading processes.
        shard_items: pictures a shard: an interruption costs at most one.
        on_error: `raise` stops at the first picture that can't be read; `skip` encodes the others
            and lists the bad ones in `skipped.jsonl` in the store's folder.
        max_skipped: share of bad items, of any split, above which `skip` stops all the same.
    """

    image: part_field(image_encoders) | None = None  # type: ignore[valid-type]
    model: str | None = None
    manifest: str | None = None
    splits: Annotated[list[str], Field(min_length=1)] | None = None
    data: Annotated[list[part_field(datasets)], Field(min_length=1)] | None = None  # type: ignore[valid-type]
    output: str
    kind: Literal["pooled", "tokens", "views"] = "pooled"
    views: Annotated[int, Field(gt=0)] = 1
    augment: Augment = Augment()
    seed: int = 0
    batch_size: Annotated[int, Field(gt=0)] = 64
    workers: Annotated[int, Field(ge=0)] = 2
    shard_items: Annotated[int, Field(gt=0)] = 2048
    on_error: Literal["raise", "skip"] = "raise"
    max_skipped: Annotated[float, Field(ge=0, le=1)] = 0.01

    @model_validator(mode="after")
    def _one_of_each(self) -> EncodeConfig:
        for what, names in (("encodes", ("image", "model")), ("is encoded", ("manifest", "data"))):
            given = [name for name in names if getattr(self, name) is not None]
            if len(given) != 1:
                raise ValueError(
                    f"say what {what} by `{names[0]}` or by `{names[1]}`, one of the two; "
                    + ("both are given" if given else "neither is given")
                )
        if self.splits is not None and self.manifest is None:
            raise ValueError("`splits` goes with `manifest`; each entry of `data` names its split")
        return self
