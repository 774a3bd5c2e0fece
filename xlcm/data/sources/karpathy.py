"""Reads Karpathy's `dataset_{coco,flickr30k,flickr8k}.json`: splits and English captions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlcm.data.manifest import DataError
from xlcm.data.sources.text_lines import read_json

SPLITS = ("train", "restval", "val", "test")
GET = (
    "caption_datasets.zip, https://cs.stanford.edu/people/karpathy/deepimagesent/"
    "caption_datasets.zip, unpacked"
)


@dataclass(frozen=True)
class Entry:
    """One picture.

    Args:
        id: its file name without ending.
        file: below the folder of pictures, such as `val2014/COCO_val2014_000000123456.jpg`.
        number: COCO's, None for Flickr's pictures.
        split: `train`, `restval`, `val` or `test`.
        texts: the sentences as they were written.
        where: for messages.
    """

    id: str
    file: str
    number: int | None
    split: str
    texts: tuple[str, ...]
    where: str


def read_karpathy(path: str | Path, restval: str | None = "train") -> Iterator[Entry]:
    """Yield the pictures in the file's order.

    Args:
        path: the JSON file.
        restval: the split that `restval` goes to; None: its pictures are left out.

    Raises:
        DataError: naming the file and the entry.
    """
    data = read_json(path)
    if not isinstance(data, dict) or not isinstance(data.get("images"), list):
        raise DataError(f"{path}: expected an object with a list 'images', as in Karpathy's "
                        "dataset_coco.json; COCO's own captions_*2014.json are read by `xlcm data "
                        "import coco-json`")  # fmt: skip
    for number, row in enumerate(data["images"]):
        entry = _entry(row, f"{path}: images[{number}]")
        if entry.split == "restval":
            if restval is None:
                continue
            entry = Entry(**{**entry.__dict__, "split": restval})
        yield entry


def _entry(row: Any, where: str) -> Entry:
    try:
        name, split, sentences = row["filename"], row["split"], row["sentences"]
        texts = tuple(sentence["raw"] for sentence in sentences)
        folder, number = row.get("filepath"), row.get("cocoid")
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{where}: expected filename, split and sentences with raw text, "
                        f"got {row!r:.80}") from error  # fmt: skip
    if not isinstance(name, str) or split not in SPLITS:
        raise DataError(f"{where}: filename must be text and split one of {', '.join(SPLITS)}, "
                        f"got {name!r} and {split!r}")  # fmt: skip
    return Entry(
        id=name.rpartition(".")[0] or name,
        file=f"{folder}/{name}" if folder else name,
        number=number if isinstance(number, int) else None,
        split=split,
        texts=texts,
        where=where,
    )
