"""Encode the pictures of a manifest once, so that training can read features instead.

accelerate launch recipes/encode.py configs/encode/photos.yaml

Writes a feature store (`xlcm.data.features`): one vector a picture, or several for changed copies
of it (`views`), or one a place in the picture (`tokens`). Any number of processes share the work;
an interrupted run continues after its last shard.
"""

import sys

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset

from xlcm.cli import recipe
from xlcm.config import build, load
from xlcm.data.dataset import ManifestDataset, feature_key
from xlcm.data.encode_settings import EncodeConfig
from xlcm.data.features import FeatureWriter
from xlcm.data.manifest import DataError, read_manifest
from xlcm.distributed import gather
from xlcm.models.encoding import bar, inference
from xlcm.registry import image_encoders
from xlcm.types import Visual


class Pictures(Dataset):
    """`pictures[i]` is `(views, 3, H, W)`, or the fault that prevented it."""

    def __init__(self, dataset, transform, config: EncodeConfig) -> None:
        self.dataset, self.transform, self.config = dataset, transform, config

    def __getitem__(self, index: int) -> torch.Tensor | DataError:
        """Return the picture and its changed copies."""
        try:
            image = self.dataset.load_image(index)
        except DataError as error:
            return error
        copies = [self.transform(image)]
        for view in range(1, self.config.views if self.config.kind == "views" else 1):
            random = np.random.default_rng([self.config.seed, view, index])
            copies.append(self.transform(self.config.augment(image, random)))
        return torch.stack(copies)


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
    splits = config.splits or sorted({item.split for item in read_manifest(config.manifest)})
    seen: set[str] = set()
    with inference(encoder):
        for split in splits:
            encode_split(accelerator, encoder, writer, seen, config, split)
    if accelerator.is_main_process:
        writer.close()
    accelerator.print(f"{len(writer)} pictures are in {config.output}")
    accelerator.end_training()
    return 0


def encode_split(
    accelerator, encoder, writer, seen: set[str], config: EncodeConfig, split: str
) -> None:
    """Encode what the store lacks; every process takes a share of each block, the first writes.

    `seen` holds the keys of this run on every process (the first one's store has them, the others'
    has not); items may share a key, in one split or in two.
    """
    dataset = ManifestDataset(path=config.manifest, split=split)
    keys = [feature_key(dataset[i]) for i in range(len(dataset))]
    todo = []
    for i, key in enumerate(keys):
        if key not in writer and key not in seen:
            todo.append(i)
        seen.add(key)
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
            faults = [one for one in found if isinstance(one, DataError)]
            if faults:
                raise faults[0]
            pixels = torch.stack(found).to(accelerator.device)
            encoded = encoder(Visual(pixels.flatten(0, 1)))
            rows = encoded.tokens if config.kind == "tokens" else encoded.pooled
            rows = rows.reshape(len(pixels), -1, dim_of(rows))
            rows = rows[:, 0] if config.kind == "pooled" else rows
            rows = gather(rows.float().contiguous()).cpu()
            # process r has positions r, r + world, ... of the block: put them back into order
            rows = rows.reshape(world, len(found), *rows.shape[1:]).transpose(0, 1).flatten(0, 1)
            block = todo[done : done + len(rows)]
            if accelerator.is_main_process:
                for index, row in zip(block, rows):
                    writer.add(keys[index], row)
            done += len(block)
            advance(len(block))


def dim_of(rows: torch.Tensor) -> int:
    """Return the width of a vector."""
    return rows.shape[-1]


if __name__ == "__main__":
    sys.exit(recipe(main, "xlcm.data.encode_settings:EncodeConfig", __doc__))
