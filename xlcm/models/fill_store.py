"""An image tower over pictures or frames, into a feature store; on any number of processes."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from xlcm.config import ConfigError, build
from xlcm.data.dataset import Dataset, ManifestDataset, feature_key, picture
from xlcm.data.encode_settings import EncodeConfig
from xlcm.data.faults import Fault
from xlcm.data.feature_writer import FeatureWriter, source_of
from xlcm.data.manifest import DataError, lines, parse_item, read_manifest
from xlcm.data.progress import Progress
from xlcm.data.video import Frames
from xlcm.distributed import gather
from xlcm.encoders.base import ImageEncoder
from xlcm.models.dual_encoder import DualEncoder
from xlcm.models.exported import ExportedModel, open_saved
from xlcm.models.fill_faults import skip, stop_beyond
from xlcm.models.precision import lowered
from xlcm.models.weights import weights_digest
from xlcm.registry import datasets, image_encoders
from xlcm.types import Encoded, Item, Visual


def open_tower(config: EncodeConfig) -> tuple[ImageEncoder, dict[str, Any]]:
    """Return the image tower, and what tells its features from those of others.

    Raises:
        ConfigError: if a saved model can't be opened, or reads no pictures itself.
        FileNotFoundError: naming the file of the model, or the weights, that are missing.
    """
    # files may move, and other weights may come to lie in their place: only the weights tell
    if config.image is not None:
        encoder: ImageEncoder = build(image_encoders, config.image)
        encoder.load_weights()
        return encoder, {"image": encoder.spec(), "weights": weights_digest(encoder)}
    encoder = open_model(config).image
    if encoder.reads_features:
        raise ConfigError(
            f"model {config.model}: its image tower reads features of width "
            f"{encoder.feature_width} and no pictures: name the model or the `image` encoder that "
            "made those"
        )
    return encoder, {"image": encoder.spec(), "weights": weights_digest(encoder)}


def open_model(config: EncodeConfig) -> DualEncoder | ExportedModel:
    """Return the saved model that the config names.

    Raises:
        ConfigError: if it can't be opened, or is an export and can't do what is asked.
    """
    assert config.model is not None
    if isinstance(model := open_saved(config.model), ExportedModel):
        model.refuse(precision=config.precision, compile=config.compile, kind=config.kind)
    return model


def open_datasets(config: EncodeConfig) -> list[Dataset]:
    """Return what is to be encoded, split by split.

    Raises:
        ConfigError: for datasets that can't be opened.
        DataError: for a split without items, or (unless such are skipped) a line that is no item.
        FileNotFoundError: if there is no such manifest.
    """
    if config.data is not None:
        opened = [build(datasets, spec) for spec in config.data]
        other = [d.name for d in opened if not isinstance(d, ManifestDataset)]
        if config.frames is not None and other:
            raise ConfigError(f"frames: {other[0]} has no videos, only manifests have")
        return opened
    assert config.manifest is not None  # the settings see to it
    splits = config.splits or _all_splits(config.manifest, config.on_error)
    return [ManifestDataset(path=config.manifest, split=split) for split in splits]


def _all_splits(manifest: str, on_error: Literal["raise", "skip"]) -> list[str]:
    """Return the splits of the manifest; lines that are no items count if they may not be."""
    if on_error == "raise":
        return sorted({item.split for item in read_manifest(manifest)})
    splits: set[str] = set()
    for number, _, raw in lines(manifest):
        with contextlib.suppress(DataError):  # met again, and listed, in a split
            splits.add(parse_item(raw, f"{manifest}:{number}").split)
    return sorted(splits)


def drawings(opened: Sequence[Dataset]) -> dict[str, Any]:
    """Return by name what else than its ids the pictures of a drawn dataset hang on.

    Raises:
        ConfigError: if two datasets would write different pictures under the same ids.
    """
    found: dict[str, Any] = {}
    for dataset in opened:
        drawing = getattr(dataset, "drawing", None)
        if drawing is None:
            continue
        if found.setdefault(dataset.name, drawing) != drawing:
            raise ConfigError(
                f"data: {dataset.name} with {found[dataset.name]} and with {drawing} have the same "
                "ids and other pictures: encode them into folders of their own"
            )
    return found


@dataclass
class Filling:
    """What goes through the datasets of one store, one after the other.

    Args:
        accelerator: the processes that share the work; the first one writes.
        encoder: on the processes' devices, in evaluation mode.
        writer: of the store.
        config: kind, views, batches, what happens at a fault.

    Attributes:
        pictures: key -> source and picture behind it, of all items so far, on every process (the
            first one's store has the keys, the others' has not); items may share a key, in one
            dataset or in two.
        skipped: what was left out, on every process.
        damaged: key -> how many of a video's frames could not be decoded, so that the ones behind
            them stand in their place; on every process.
    """

    accelerator: Accelerator
    encoder: ImageEncoder
    writer: FeatureWriter
    config: EncodeConfig
    pictures: dict[str, tuple[str, str]] = field(default_factory=dict)
    skipped: list[Fault] = field(default_factory=list)
    damaged: Counter[str] = field(default_factory=Counter)

    def add(self, dataset: Dataset) -> None:
        """Encode what the store lacks; every process takes a share of each block.

        Raises:
            DataError: at a picture that can't be read, or if more can't than may be skipped; if
                another item has another picture under the same key, here or in the store.
        """
        skipped: list[Fault] = []
        keys: dict[int, str] = {}
        todo = []
        for index in range(len(dataset)):
            try:
                item = dataset[index]
                known = self._known(dataset, item, feature_key(item))
            except DataError as error:
                skipped.append(skip(self.config, dataset, index, error))
                continue
            keys[index] = feature_key(item)
            if known:
                continue
            if keys[index] in self.writer:
                where = item.where or dataset.name
                self.writer.refuse_other(keys[index], self._source(dataset, item), where)
            else:
                todo.append(index)
        stop_beyond(self.config, dataset, skipped)
        world, mine = self.accelerator.num_processes, self.accelerator.process_index
        padded = todo + todo[:1] * (-len(todo) % world)  # equal shares; repeats are not written
        loader = DataLoader(
            _Pictures(dataset, self.encoder, self.config),
            sampler=padded[mine::world],
            batch_size=self.config.items_at_once,
            collate_fn=list,
            num_workers=self.config.workers,
        )
        done = 0
        unit = "images" if self.config.frames is None else "videos"
        show = self.accelerator.is_main_process
        told = Progress(len(todo), f"encoding {dataset.split}", show=show, unit=unit)
        with contextlib.closing(told):
            for found in loader:
                block = todo[done : done + len(found) * world]
                share = padded[done : done + len(found) * world][mine::world]
                noted = {i: tuple(said) for i, (_, *said) in zip(share, found) if any(said)}
                noted = {i: said for part in gather_object([noted]) for i, said in part.items()}
                noted = {index: noted[index] for index in block if index in noted}  # no repeats
                bad = {index: fault for index, (fault, _) in noted.items() if fault}
                self.damaged.update({keys[i]: lost for i, (_, lost) in noted.items() if lost})
                skipped += [skip(self.config, dataset, i, fault) for i, fault in bad.items()]
                stop_beyond(self.config, dataset, skipped)
                rows = self._encode([picture for picture, *_ in found])
                if self.accelerator.is_main_process:
                    for index, row in zip(block, rows):
                        if index not in bad:
                            source = self._source(dataset, dataset[index])
                            self.writer.add(keys[index], row, source=source)
                done += len(block)
                told.advance(len(block))
        self.skipped += skipped

    def _known(self, dataset: Dataset, item: Item, key: str) -> bool:
        """Whether an earlier item had the same key; note the picture behind it."""
        source, picture = dataset.name, item.id
        if isinstance(dataset, ManifestDataset):
            source, picture = (
                str(dataset.manifest.path),
                str(dataset.image_root / (self._file(item) or "")),
            )
        if key not in self.pictures:
            self.pictures[key] = (source, picture)
            return False
        before = self.pictures[key]
        if before[1] != picture and (isinstance(dataset, ManifestDataset) or before[0] != source):
            raise DataError(
                f"{item.where or dataset.name}: key {key!r} stands for {picture} here and for "
                f"{before[1]} in {before[0]}: give each a key of its own, or encode the datasets "
                "into folders of their own",
                kind="duplicate_key",
            )
        return True

    def _source(self, dataset: Dataset, item: Item) -> int:
        """Return what tells a file from another, its size, as it may move; 0 if there is none."""
        file = item.image if self.config.frames is None else item.video
        if not isinstance(dataset, ManifestDataset) or file is None:
            return 0
        with contextlib.suppress(OSError):  # it may be gone, once it is encoded
            return source_of((dataset.image_root / file).stat().st_size, item.segment)
        return 0

    def _file(self, item: Item) -> str | None:
        return item.image if self.config.frames is None else item.clip

    def _encode(self, found: list[Tensor]) -> Sequence[Tensor]:
        """Return the features of all processes' items, in order of the block."""
        if self.config.frames is None:
            return list(self._encode_pictures(torch.stack(found)))
        mine = [self._encode_frames(frames) for frames in found]
        shares = gather_object([mine])
        return [share[i] for i in range(len(mine)) for share in shares]

    def _run(self, pixels: Tensor) -> Encoded:
        with lowered(self.accelerator.device, self.config.precision):
            return self.encoder(Visual(pixels.to(self.accelerator.device)))

    def _encode_frames(self, frames: Tensor) -> Tensor:
        """Return `(T, dim)`, or `(dim,)`, the mean, for the frames `(T, 3, H, W)` of one video."""
        parts = [
            self._run(part).pooled.float().cpu()
            for part in frames.split(self.config.pictures_at_once)
        ]
        rows = torch.cat(parts)
        return rows.mean(dim=0) if self.config.kind == "pooled" else rows

    def _encode_pictures(self, pictures: Tensor) -> Tensor:
        """Return the features of all processes' pictures `(b, views, 3, H, W)`, in order."""
        encoded = self._run(pictures.flatten(0, 1))
        rows = encoded.tokens if self.config.kind == "tokens" else encoded.pooled
        assert rows is not None
        rows = rows.reshape(len(pictures), -1, rows.shape[-1])
        rows = rows[:, 0] if self.config.kind == "pooled" else rows
        gathered = gather(rows.float().contiguous()).cpu()
        # process r has positions r, r + world, ... of the block: put them back into order
        world = self.accelerator.num_processes
        shaped = gathered.reshape(world, len(pictures), *gathered.shape[1:])
        return shaped.transpose(0, 1).flatten(0, 1)


class _Pictures(TorchDataset[tuple[Tensor, "DataError | None", int]]):
    """`pictures[i]` is `(views or frames, 3, H, W)`, the fault that prevented it, lost frames."""

    def __init__(self, dataset: Dataset, encoder: ImageEncoder, config: EncodeConfig) -> None:
        assert encoder.transform is not None
        self.dataset, self.transform, self.config = dataset, encoder.transform, config

    def __getitem__(self, index: int) -> tuple[Tensor, DataError | None, int]:
        if self.config.frames is not None:
            return self._frames(index)
        fault = None
        try:
            image = picture(self.dataset, index, self.transform)
        except DataError as error:
            image, fault = Image.new("RGB", (32, 32)), error  # keeps the batch whole; not written
        copies = [self.transform(image)]
        for view in range(1, self.config.views if self.config.kind == "views" else 1):
            random = np.random.default_rng([self.config.seed, view, index])
            copies.append(self.transform(self.config.augment(image, random)))
        return torch.stack(copies), fault, 0

    def _frames(self, index: int) -> tuple[Tensor, DataError | None, int]:
        assert isinstance(self.dataset, ManifestDataset)
        assert self.config.frames is not None
        fault = None
        try:
            frames = self.dataset.load_frames(index, self.config.frames)
        except DataError as error:
            frames, fault = Frames([Image.new("RGB", (32, 32))]), error
        return torch.stack([self.transform(frame) for frame in frames]), fault, frames.damaged
