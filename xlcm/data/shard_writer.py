"""From a dataset to tar shards: `xlcm data shard`."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from xlcm.data.dataset import ManifestDataset
from xlcm.data.images import load_image
from xlcm.data.manifest import DataError, to_line
from xlcm.data.shards import INDEX
from xlcm.data.tar_index import IMAGE_ENDINGS

VERSION = 1
Part = tuple[str, bytes]  # ending of the name, content


@dataclass
class Written:
    """What `write_shards` has done.

    Args:
        folder: of the shards.
        items: in each shard.
        skipped: messages of items that were left out.
    """

    folder: Path
    items: list[int] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def write_shards(
    dataset: ManifestDataset,
    out: str | Path,
    *,
    shards: int | None = None,
    shard_items: int = 1000,
    seed: int | None = 0,
    images: bool = True,
    check: bool = True,
    skip: bool = False,
    on_item: Callable[[], None] = lambda: None,
) -> Written:
    """Write a split as tar shards, aside first; the folder is there when all of it is.

    The same dataset and options give the same bytes.

    Args:
        dataset: with its pictures, and features if it has a store.
        out: the new folder.
        shards: how many; None: as many as `shard_items` asks for. They differ by one item at most.
        shard_items: most items a shard, where `shards` is None.
        seed: items are shuffled by it, since training mixes only shards that are open together;
            None: in the manifest's order.
        images: write the pictures; False: captions and features only.
        check: decode each picture before it is written.
        skip: leave out and name items whose picture or features can't be had; False: stop there.
        on_item: called after each item.

    Raises:
        DataError: if the folder exists, there are fewer items than shards, or an item is bad.
    """
    out = Path(out)
    if out.exists():
        raise DataError(f"{out} is there already; give another --out, or remove it")
    count = len(dataset)
    number = shards or math.ceil(count / shard_items)
    if count < number:
        raise DataError(f"{dataset.name}: {count} items do not fill {number} shards; "
                        f"--shards {count} at most")  # fmt: skip
    order = np.arange(count) if seed is None else np.random.default_rng(seed).permutation(count)
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f".{out.name}.{os.getpid()}")
    aside.mkdir()
    written = Written(out)
    try:
        listed = []
        serial = 0
        for shard, chosen in enumerate(np.array_split(order, number)):
            file = f"{shard:06d}.tar"
            here = 0
            with tarfile.open(aside / file, "w", format=tarfile.PAX_FORMAT) as tar:
                for index in chosen.tolist():
                    try:
                        parts = list(_parts(dataset, index, images, check))
                    except DataError as error:
                        if not skip:
                            raise
                        written.skipped.append(str(error))
                    else:
                        _add(tar, f"{serial:09d}", parts)
                        serial, here = serial + 1, here + 1
                    on_item()
            listed.append({"file": file, "items": here})
            written.items.append(here)
        if not serial:
            raise DataError(f"{dataset.name}: none of its {count} items can be written; the first: "
                            f"{written.skipped[0]}")  # fmt: skip
        known = {"version": VERSION, "split": dataset.split, "items": serial, "shards": listed}
        (aside / INDEX).write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        os.rename(aside, out)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return written


def _parts(dataset: ManifestDataset, index: int, images: bool, check: bool) -> Iterator[Part]:
    """Yield the files of an item.

    Raises:
        DataError: naming the manifest's line, if one can't be had.
    """
    item = dataset[index]
    yield "json", to_line(replace(item, image=None, video=None), item.where)
    if images:
        yield _picture(dataset, index, check)
    if dataset.store is not None:
        found = dataset.load_features(index)
        if isinstance(found, Tensor):
            yield f"{'pooled' if found.ndim == 1 else 'tokens'}.npy", _npy([found])
        else:
            yield "views.npy", _npy(found, stack=True)


def _picture(dataset: ManifestDataset, index: int, check: bool) -> Part:
    item = dataset[index]
    if item.image is None:
        raise DataError(f"{item.where}: item {item.id!r} has no image; --no-images writes "
                        "captions and features alone", kind="image_missing")  # fmt: skip
    try:
        data = (dataset.image_root / item.image).read_bytes()
        if check:
            load_image(data, name=item.image)
    except OSError as error:
        raise DataError(f"{item.where}: image {item.image!r}: {error.strerror}",
                        kind="image_missing") from error  # fmt: skip
    except DataError as error:
        raise DataError(f"{item.where}: {error}", kind=error.kind) from error
    ending = Path(item.image).suffix[1:].lower()
    return ending if ending in IMAGE_ENDINGS else "img", data


def _npy(values: Sequence[Tensor], stack: bool = False) -> bytes:
    out = io.BytesIO()
    arrays = [value.numpy() for value in values]
    np.save(out, np.stack(arrays) if stack else arrays[0], allow_pickle=False)
    return out.getvalue()


def _add(tar: tarfile.TarFile, key: str, parts: Sequence[Part]) -> None:
    for ending, data in parts:
        member = tarfile.TarInfo(f"{key}.{ending}")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
