"""Encode pictures, videos or captions once, so that training can read features instead.

accelerate launch recipes/encode.py configs/encode/photos.yaml

Writes a feature store (`xlcm.data.features`): one vector a picture, or several for changed copies
of it (`views`), or one a place in the picture (`tokens`). The pictures are those of a manifest
(`manifest`, `splits`) or of data sets (`data`); a tower of its own (`image`) or that of a saved
model (`model`) encodes them. With `frames` the frames of the items' videos are encoded, one vector
each; with `text`, or `captions` and `model`, the captions, by their ids. Any number of processes
share the work; an interrupted run continues after its last shard. Pictures, videos and captions
that can't be had stop it, or with `on_error=skip` are left out and listed in `skipped.jsonl`. At
the end the store's items are counted and its checksums compared.
"""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from xlcm.cli import recipe
from xlcm.config import load
from xlcm.data.bad_rows import write_skipped
from xlcm.data.convert_features import verified
from xlcm.data.dataset import require_languages
from xlcm.data.encode_settings import EncodeConfig
from xlcm.data.faults import Fault
from xlcm.data.features import FeatureWriter
from xlcm.launched import patient
from xlcm.models.encoding import inference
from xlcm.models.fill_store import Filling, drawings, open_datasets, open_tower
from xlcm.models.fill_texts import TextFilling, open_text_tower


def main(path: str, *overrides: str) -> int:
    """Encode; return the exit code."""
    config = load(EncodeConfig, path, overrides)
    accelerator = Accelerator(kwargs_handlers=patient())
    torch.manual_seed(config.seed)
    return _captions(config, accelerator) if config.of_captions else _visuals(config, accelerator)


def _visuals(config: EncodeConfig, accelerator: Accelerator) -> int:
    encoder, made_by = open_tower(config)
    if config.image is not None:
        _tell_untrained(accelerator, "image", config.image.get("weights"))
    encoder.to(accelerator.device)
    if config.compile:
        encoder.compile(dynamic=True)
    splits = open_datasets(config)
    if drawn := drawings(splits):
        made_by["drawings"] = drawn
    if config.precision != "fp32":
        made_by["precision"] = config.precision
    if config.kind == "views":
        made_by |= {"augment": config.augment.model_dump(), "seed": config.seed}
    if config.frames is not None:
        made_by["frames"] = config.frames.model_dump()
    of_places = config.kind == "tokens" and config.frames is None
    writer = FeatureWriter(
        config.output,
        kind=config.kind,
        dim=encoder.token_width if of_places else encoder.width,
        encoder=made_by,
        views=config.views if config.kind == "views" else None,
        shard_items=config.shard_items,
    )
    before = len(writer)
    filling = Filling(accelerator, encoder, writer, config)
    with inference(encoder):
        for dataset in splits:
            filling.add(dataset)
    _list_skipped(config, accelerator, filling.skipped, "item(s)")
    if filling.damaged:
        first = ", ".join(list(filling.damaged)[:5])
        accelerator.print(f"{filling.damaged.total()} frame(s) of {len(filling.damaged)} video(s) "
                          "can't be decoded whole; what the decoder made of them, or the next "
                          f"frame, stands in their place: {first}")  # fmt: skip
    return _finish(accelerator, writer, before, "pictures" if config.frames is None else "videos")


def _captions(config: EncodeConfig, accelerator: Accelerator) -> int:
    opened = open_datasets(config)
    if config.langs is not None:
        require_languages(opened, config.langs)
    encoder, made_by = open_text_tower(config)
    if config.text is not None:
        usual = "hub" if config.text["name"] == "hf" else None
        _tell_untrained(accelerator, "text", config.text.get("weights", usual))
    encoder.to(accelerator.device)
    if config.compile:
        encoder.compile(dynamic=True)
    if config.precision != "fp32":
        made_by["precision"] = config.precision
    writer = FeatureWriter(
        config.output,
        kind=config.kind,
        dim=encoder.width,
        encoder=made_by,
        shard_items=config.shard_items,
    )
    before = len(writer)
    filling = TextFilling(accelerator, encoder, writer, config)
    with inference(encoder):
        for dataset in opened:
            filling.add(dataset)
    _list_skipped(config, accelerator, filling.skipped, "line(s) and caption(s)")
    if filling.cut:
        accelerator.print(f"{filling.cut} of them are longer than {encoder.max_tokens} tokens and "
                          "were cut")  # fmt: skip
    return _finish(accelerator, writer, before, "captions")


def _list_skipped(
    config: EncodeConfig, accelerator: Accelerator, faults: list[Fault], what: str
) -> None:
    if accelerator.is_main_process and config.on_error == "skip":
        # a line too broken to tell its split is met in each
        skipped = list(dict.fromkeys(faults))
        listed = Path(config.output) / "skipped.jsonl"
        write_skipped(skipped, listed)
        print(f"{len(skipped)} {what} skipped, listed in {listed}")


def _tell_untrained(accelerator: Accelerator, option: str, weights: str | None) -> None:
    if weights is None:
        accelerator.print(f"{option}: no weights are named, so these are features of an untrained "
                          f"tower; `{option}.weights` names some")  # fmt: skip


def _finish(accelerator: Accelerator, writer: FeatureWriter, before: int, what: str) -> int:
    if accelerator.is_main_process:
        writer.close()
        verified(writer.folder, len(writer))
        earlier = f", {before} of them from before" if before else ""
        print(f"{len(writer)} {what} are in {writer.folder}{earlier}")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return 0


if __name__ == "__main__":
    sys.exit(recipe(main, "xlcm.data.encode_settings:EncodeConfig", __doc__))
