"""What training and evaluation read: items by number, and the pixels or features of one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from msgspec.structs import replace
from PIL import Image
from torch import Tensor

from xlcm.data.boxes import BoxSize
from xlcm.data.feature_formats import open_features
from xlcm.data.images import Opened, load_image, load_pixels, read_file
from xlcm.data.languages import language_fault
from xlcm.data.manifest import DataError, Manifest
from xlcm.data.video import Frames, FrameSampling, load_frames
from xlcm.registry import nearest
from xlcm.types import Item


class Dataset(Protocol):
    """One split of one source of items; cheap to copy into a worker.

    Attributes:
        name: for reports.
        split: `train`, `val`, `test`, ...
    """

    name: str
    split: str

    def __len__(self) -> int:
        """Return the number of items."""
        ...

    def __getitem__(self, index: int) -> Item:
        """Return the captions of an item, without its pixels."""
        ...

    def load_image(self, index: int) -> Image.Image:
        """Return the picture as RGB.

        Raises:
            DataError: naming the manifest's line and the file, if it can't be had.
        """
        ...

    def load_features(self, index: int) -> Tensor | Sequence[Tensor]:
        """Return precomputed features `(D,)` or `(T, D)`, float32; or a sequence of views.

        Views are features of changed copies of one picture, the unchanged one first.
        """
        ...


class ManifestDataset:
    """One split of a manifest, with its pictures and features.

    Args:
        path: the manifest.
        split: which of its splits.
        langs: captions in other languages are left out; items stay, even without a caption.
        image_root: what the paths of images and videos start from; the manifest's folder by
            default.
        features: the folder of a feature store (`xlcm.data.features`), or features of another
            format (`xlcm.data.feature_formats`); an item's key is its `features`, or else its id.
        feature_ids: a file that names the rows of a matrix of features, where they are in no file
            beside it.
        boxes: how many numbers about its box each region gets behind its features: 4 (corners), 5
            (and area), 7 (and width, height, area), or 0.

    Attributes:
        name: the manifest's file name without its ending.

    Raises:
        DataError: for a split without items, or a feature store that can't be used.
        FileNotFoundError: if there is no such manifest.
        ValueError: for a language that is no BCP 47 code.
    """

    def __init__(
        self,
        *,
        path: str,
        split: str,
        langs: list[str] | None = None,
        image_root: str | None = None,
        features: str | None = None,
        feature_ids: str | None = None,
        boxes: BoxSize = 0,
    ) -> None:
        for lang in langs or ():
            if fault := language_fault(lang):
                raise ValueError(f"langs: {fault}")
        self.manifest = Manifest(path, split)
        self.name = Path(path).stem
        self.split = split
        self.langs = frozenset(langs) if langs is not None else None
        self.image_root = Path(path).parent if image_root is None else Path(image_root)
        if features is None and (feature_ids is not None or boxes):
            raise ValueError("`feature_ids` and `boxes` go with `features`")
        self.store = (
            open_features(features, ids=feature_ids, boxes=boxes) if features is not None else None
        )

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, index: int) -> Item:
        """Return the captions of an item, without its pixels.

        Raises:
            DataError: naming file and line, if the line is no item.
        """
        item = self.manifest[index]
        if self.langs is None:
            return item
        return replace(item, captions=tuple(c for c in item.captions if c.lang in self.langs))

    def load_image(self, index: int) -> Image.Image:
        """Return the picture as RGB.

        Raises:
            DataError: naming the manifest's line and the file, if it can't be had.
        """
        return self._opened(self.manifest[index], load_image)

    def load_pixels(self, index: int) -> Tensor:
        """Return the pixels of the picture, uint8 `(3, H, W)`; sooner than `load_image`.

        Raises:
            DataError: as for `load_image`.
        """
        return self._opened(self.manifest[index], load_pixels)

    def load_pixel_rows(self, items: Sequence[Item]) -> list[Tensor]:
        """Return what `load_pixels` does, for some items at once: first all files are read.

        Raises:
            DataError: as for `load_image`.
        """
        files = [self._opened(item, read_file) for item in items]
        return [self._opened(item, load_pixels, file) for item, file in zip(items, files)]

    def _opened(self, item: Item, load: Callable[..., Opened], file: bytes | None = None) -> Opened:
        if item.image is None:
            message = (
                f"{item.where}: item {item.id!r} has no image; give it one, or read `features` "
                "with an encoder that takes them"
            )
            raise DataError(message, kind="image_missing")
        try:
            source = self.image_root / item.image if file is None else file
            return load(source, name=item.image)
        except DataError as error:
            message = f"{item.where}: {error}{self._looked_in(error)}"
            raise DataError(message, kind=error.kind) from error

    def load_frames(self, index: int, sampling: FrameSampling) -> Frames:
        """Return frames of the item's video as RGB, in order; at least one.

        Raises:
            DataError: naming the manifest's line and the file, if they can't be had.
            ImportError: without PyAV.
        """
        item = self.manifest[index]
        if item.video is None:
            message = f"{item.where}: item {item.id!r} has no video; leave `frames` out for images"
            raise DataError(message, kind="video_missing")
        try:
            path = self.image_root / item.video
            return load_frames(path, sampling, segment=item.segment, name=item.clip)
        except DataError as error:
            message = f"{item.where}: {error}{self._looked_in(error)}"
            raise DataError(message, kind=error.kind) from error

    def _looked_in(self, error: DataError) -> str:
        missing = error.kind in ("image_missing", "video_missing")
        return f" in {self.image_root}" if missing else ""

    def load_features(self, index: int) -> Tensor | list[Tensor]:
        """Return precomputed features, float32: `(D,)`, `(T, D)`, or a list of views `(D,)`.

        Raises:
            DataError: naming the manifest's line and the key, if they can't be had.
        """
        item = self.manifest[index]
        if self.store is None:
            raise DataError(f"{item.where}: no feature store was given; set the dataset's "
                            "`features` to the folder of one")  # fmt: skip
        try:
            found = self.store[feature_key(item)]
        except DataError as error:
            raise DataError(f"{item.where}: {error}", kind=error.kind) from error
        if not found.isfinite().all():
            raise DataError(f"{item.where}: features {feature_key(item)!r} in {self.store.folder} "
                            "hold NaN or infinity", kind="feature_not_finite")  # fmt: skip
        return list(found) if self.store.kind == "views" else found

    def load_feature_rows(self, items: Sequence[Item]) -> Tensor | None:
        """Return pooled features of many items at once, `(n, D)`; None: take them one by one.

        None comes also where one of them is missing or not finite: `load_features` says which.
        """
        if self.store is None or self.store.kind != "pooled":
            return None
        try:
            found = self.store.rows([feature_key(item) for item in items])
        except DataError:
            return None
        # a sum that is finite has no NaN or infinity in it, and costs a fraction of a full check
        return found if bool(found.sum().isfinite()) else None


def picture(dataset: Dataset, index: int, transform: object) -> Image.Image | Tensor:
    """Return a picture, or its pixels where the dataset has them sooner and `transform` takes them.

    Raises:
        DataError: as for `dataset.load_image`.
    """
    load = dataset.load_image
    if getattr(transform, "takes_pixels", False):
        load = getattr(dataset, "load_pixels", load)
    found: Image.Image | Tensor = load(index)
    return found


def require_languages(opened: Sequence[Dataset], langs: Sequence[str]) -> None:
    """Read datasets until each language was met.

    Args:
        opened: one after the other; items that can't be read are left to others.
        langs: codes.

    Raises:
        DataError: naming the languages that no caption is in, and those that there are.
    """
    known: set[str] = set()
    for dataset in opened:
        for index in range(len(dataset)):
            with contextlib.suppress(DataError):
                known.update(caption.lang for caption in dataset[index].captions)
            if known.issuperset(langs):
                return
    missing = [lang for lang in langs if lang not in known]
    where = ", ".join(f"{dataset.name}, split {dataset.split!r}" for dataset in opened)
    raise DataError(
        f"{where}: langs: no caption in {', '.join(missing)}"
        f"{nearest(missing[0], sorted(known))}; there are {', '.join(sorted(known)) or 'none'}"
    )


def feature_key(item: Item) -> str:
    """Return the key of an item in a feature store."""
    return item.features if item.features is not None else item.id
