"""The config of `recipes/encode.py`: which pictures are encoded once, with what."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from xlcm.config import Section, part_field
from xlcm.data.transforms import Augment
from xlcm.registry import image_encoders


class EncodeConfig(Section):
    """What is encoded, with what, into which folder.

    Args:
        image: the encoder, with its weights.
        manifest: whose pictures are encoded.
        splits: which of its splits; None: all.
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

    image: part_field(image_encoders)  # type: ignore[valid-type]
    manifest: str
    splits: list[str] | None = None
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
