"""Encode the pictures of a manifest once, so that training can read features instead.

accelerate launch recipes/encode.py configs/encode/photos.yaml

Writes a feature store (`xlcm.data.features`): one vector a picture, or several for changed copies
of it (`views`), or one a place in the picture (`tokens`). Any number of processes share the work;
an interrupted run continues after its last shard. Pictures that can't be read stop it, or with
`on_error=skip` are left out and listed in `skipped.jsonl`.
"""

import contextlib
import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from xlcm.cli import recipe
from xlcm.config import build, load
from xlcm.data.bad_rows import write_skipped
from xlcm.data.dataset import ManifestDataset, feature_key
from xlcm.data.encode_settings import EncodeConfig
from xlcm.data.faults import Fault
from xlcm.data.features import FeatureWriter
from xlcm.data.manifest import DataError, lines, parse_item, read_manifest
from xlcm.distributed import gather
from xlcm.models.encoding import bar, inference
from xlcm.registry import image_encoders
from xlcm.types import Visual


class Pictures(Dataset):
    """`pictures[i]` is `(views, 3, H, W)` and the fault that prevented it, if one did."""

    def __init__(self, dataset, transform, config: EncodeConfig) -> None:
        self.dataset, self.transform, self.config = dataset, transform, config

    def __getitem__(self, index: int) -> tuple[torch.Tensor, DataError | None]:
        """Return the picture and its changed copies; in place of a bad one a black one."""
        fault = None
        try:
            image = self.dataset.load_image(index)
        except DataError as error:
            image, fault = Image.new("RGB", (32, 32)), error  # keeps the batch whole; not written
        copies = [self.transform(image)]
        for view in range(1, self.config.views if self.config.kind == "views" else 1):
            random = np.random.default_rng([self.config.seed, view, index])
            copies.append(self.transform(self.config.augment(image, random)))
        return torch.stack(copies), fault


def main(path: str, *overrides: str) -> int:
    """Encode; return the exit code."""
    config = load(EncodeConfig, path, overrides)
    accelerator = Accelerator()
    torch.manual_seed(config.seed)
    encoder = build(image_encoders, config.image)
    encoder.load_weights()
    encoder.to(accelerator.device)
    dim = encoder.token_width if config.kind == "tokens" else encoder.width
    changes = {"augment": config.augment.model_dump(), "seed": config.seed}
    changes = changes if config.kind == "views" else {}
    writer = FeatureWriter(
        config.output,
        kind=config.kind,
        dim=dim,
        encoder={"image": encoder.spec(), "weights": config.image.get("weights"), **changes},
        views=config.views if config.kind == "views" else None,
        shard_items=config.shard_items,
    )
    seen: set[str] = set()
    skipped: list[Fault] = []
    with inference(encoder):
        for split in config.splits or all_splits(config):
            skipped += encode_split(accelerator, encoder, writer, seen, config, split)
    if accelerator.is_main_process:
        writer.close()
        if config.on_error == "skip":
            # a line too broken to tell its split is met in each
            list_skipped(list(dict.fromkeys(skipped)), config)
    accelerator.print(f"{len(writer)} pictures are in {config.output}")
    accelerator.end_training()
    return 0


def all_splits(config: EncodeConfig) -> list[str]:
    """Return the splits of the manifest; lines that are no items count if they may not be."""
    if config.on_error == "raise":
        return sorted({item.split for item in read_manifest(config.manifest)})
    splits: set[str] = set()
    for number, _, raw in lines(config.manifest):
        with contextlib.suppress(DataError):  # met again, and listed, in a split
            splits.add(parse_item(raw, f"{config.manifest}:{number}").split)
    return sorted(splits)


def list_skipped(skipped: list[Fault], config: EncodeConfig) -> None:
    """Write `skipped.jsonl`; say how many there are and where."""
    path = Path(config.output) / "skipped.jsonl"
    write_skipped(skipped, path)
    print(f"{len(skipped)} item(s) skipped, listed in {path}")


def encode_split(
    accelerator, encoder, writer, seen: set[str], config: EncodeConfig, split: str
) -> list[Fault]:
    """Encode what the store lacks; every process takes a share of each block, the first writes.

    `seen` holds the keys of this run on every process (the first one's store has them, the others'
    has not); items may share a key, in one split or in two.

    Returns:
        What was left out, on every process.

    Raises:
        DataError: at a picture that can't be read, or if more can't than may be skipped.
    """
    dataset = ManifestDataset(path=config.manifest, split=split)
    skipped: list[Fault] = []
    keys: dict[int, str] = {}
    for i in range(len(dataset)):
        try:
            keys[i] = feature_key(dataset[i])
        except DataError as error:
            skipped.append(skip(dataset, i, error, config))
    todo = []
    for i, key in keys.items():
        if key not in writer and key not in seen:
            todo.append(i)
        seen.add(key)
    stop_beyond(skipped, dataset, config)
    world, mine = accelerator.num_processes, accelerator.process_index
    todo_padded = todo + todo[:1] * (-len(todo) % world)  # equal shares; repeats are not written
    loader = DataLoader(
        Pictures(dataset, encoder.transform, config),
        sampler=todo_padded[mine::world],
        batch_size=config.batch_size,
        collate_fn=list,
        num_workers=config.workers,
    )
    done = 0
    with bar(
        len(todo), f"{split} images", None if accelerator.is_main_process else False
    ) as advance:
        for found in loader:
            block = todo[done : done + len(found) * world]
            share = todo_padded[done : done + len(found) * world][mine::world]
            mine_bad = {index: fault for index, (_, fault) in zip(share, found) if fault}
            bad = {i: fault for part in gather_object([mine_bad]) for i, fault in part.items()}
            bad = {index: bad[index] for index in block if index in bad}  # without the repeats
            skipped += [skip(dataset, index, fault, config) for index, fault in bad.items()]
            stop_beyond(skipped, dataset, config)
            pixels = torch.stack([picture for picture, _ in found]).to(accelerator.device)
            encoded = encoder(Visual(pixels.flatten(0, 1)))
            rows = encoded.tokens if config.kind == "tokens" else encoded.pooled
            rows = rows.reshape(len(pixels), -1, dim_of(rows))
            rows = rows[:, 0] if config.kind == "pooled" else rows
            rows = gather(rows.float().contiguous()).cpu()
            # process r has positions r, r + world, ... of the block: put them back into order
            rows = rows.reshape(world, len(found), *rows.shape[1:]).transpose(0, 1).flatten(0, 1)
            if accelerator.is_main_process:
                for index, row in zip(block, rows):
                    if index not in bad:
                        writer.add(keys[index], row)
            done += len(block)
            advance(len(block))
    return skipped


def skip(dataset, index: int, error: DataError, config: EncodeConfig) -> Fault:
    """Return the fault of an item that is to be skipped, or raise it."""
    if config.on_error == "raise":
        raise error
    where = dataset.manifest.where(index)
    message = str(error).removeprefix(f"{where}: ")
    try:
        name = dataset[index].id
    except DataError:
        name = ""
    return Fault(where, name, None, error.kind, message)


def stop_beyond(skipped: list[Fault], dataset, config: EncodeConfig) -> None:
    """Raise, on every process alike, if more is skipped than may be."""
    share = len(skipped) / len(dataset)
    if share > config.max_skipped:
        shown = "\n  ".join(str(fault) for fault in skipped[:5])
        raise DataError(
            f"{config.manifest}, split {dataset.split!r}: {len(skipped)} of {len(dataset)} items "
            f"can't be read so far, {share:.1%}, more than max_skipped={config.max_skipped:.1%}:"
            f"\n  {shown}"
        )


def dim_of(rows: torch.Tensor) -> int:
    """Return the width of a vector."""
    return rows.shape[-1]


if __name__ == "__main__":
    sys.exit(recipe(main, "xlcm.data.encode_settings:EncodeConfig", __doc__))
