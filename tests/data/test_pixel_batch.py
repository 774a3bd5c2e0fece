"""Pictures of a batch come in order, in whatever steps they are read, into memory of the batch."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from xlcm.data import pixel_batch
from xlcm.data.batching import Batching, Row, RowStream
from xlcm.data.collate import Collator, TrainLoader
from xlcm.data.dataset import ManifestDataset
from xlcm.data.manifest import DataError
from xlcm.data.pixel_batch import TOGETHER, stack_pixels
from xlcm.data.subset import Subset
from xlcm.data.transforms import Augment
from xlcm.data.views import View, Views
from xlcm.encoders.transform import ImageTransform
from xlcm.types import TextBatch

COUNT = 2 * TOGETHER + 3
TRANSFORM = ImageTransform(8)


def tokens(texts, langs):
    ids = torch.ones(len(texts), 1, dtype=torch.int64)
    return TextBatch(ids, ids.bool(), tuple(langs))


@pytest.fixture
def dataset(tmp_path):
    lines = []
    for i in range(COUNT):
        values = np.random.default_rng(i).integers(0, 256, (12 + i % 3, 10 + i, 3), dtype=np.uint8)
        kind = "png" if i % 4 == 1 else "jpeg"
        out = io.BytesIO()
        Image.fromarray(values).save(out, kind)
        (tmp_path / f"{i}.{kind}").write_bytes(out.getvalue())
        caption = {"id": f"{i}#en", "lang": "en", "text": "x"}
        line = {"id": str(i), "split": "train", "image": f"{i}.{kind}", "captions": [caption]}
        lines.append(json.dumps(line) + "\n")
    (tmp_path / "m.jsonl").write_text("".join(lines))
    return ManifestDataset(path=str(tmp_path / "m.jsonl"), split="train")


def collator(dataset, **options):
    return Collator(dataset, Views({"source": View(langs=["en"])}), tokens, TRANSFORM, **options)


@pytest.mark.parametrize("count", [1, TOGETHER, TOGETHER + 1, COUNT])
def test_each_row_has_its_own_picture_in_any_number_of_groups(dataset, count):
    order = np.random.default_rng(1).permutation(COUNT)[:count].tolist()
    found = collator(dataset)([Row(i, 0, 0) for i in order]).visual.pixels
    wanted = torch.stack([TRANSFORM(dataset.load_pixels(i)) for i in order])
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_groups_change_no_draw_of_the_augmentation(dataset, monkeypatch):
    rows = [Row(i, 0, 0) for i in range(COUNT)]
    augment = Augment(crop=0.5, flip=0.5)
    grouped = collator(dataset, augment=augment)(rows).visual.pixels
    monkeypatch.setattr(pixel_batch, "TOGETHER", 1)
    torch.testing.assert_close(collator(dataset, augment=augment)(rows).visual.pixels, grouped)


def test_a_dataset_that_reads_one_by_one_gives_the_same(dataset):
    rows = [Row(i, 0, 0) for i in range(COUNT)]
    part = Subset(dataset, np.arange(COUNT))
    assert not hasattr(part, "load_pixel_rows")
    found, wanted = (collator(one)(rows).visual.pixels for one in (part, dataset))
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_a_worker_writes_pixels_into_shared_memory_that_the_batch_keeps(dataset):
    stream = RowStream(Batching(np.ones(COUNT, dtype=np.int32), 4, seed=3), 0, 1)
    loader = TrainLoader(stream, collator(dataset), workers=1)
    kept = []
    for _, batch in zip(range(6), loader):
        assert batch.visual.pixels.is_shared()
        assert batch.visual.pixels.is_contiguous()
        kept.append(batch)
    for batch in kept:  # none was written over by a later one
        wanted = collator(dataset)([Row(i, 0, 0) for i in batch.ids.tolist()])
        torch.testing.assert_close(batch.visual.pixels, wanted.visual.pixels, rtol=0, atol=0)
    assert not wanted.visual.pixels.is_shared()


@pytest.mark.parametrize("place", [0, TOGETHER, COUNT - 1])
def test_a_picture_that_is_missing_or_broken_is_named_with_its_line(dataset, tmp_path, place):
    name = dataset[place].image
    rows = [Row(i, 0, 0) for i in range(COUNT)]
    (tmp_path / name).write_bytes(b"<html>")
    with pytest.raises(DataError, match=rf"m\.jsonl:{place + 1}: image '{name}': a web page"):
        collator(dataset)(rows)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=rf"m\.jsonl:{place + 1}: image '{name}': no such file in"):
        collator(dataset)(rows)


def test_pictures_of_several_shapes_or_types_are_no_batch():
    one = torch.zeros(3, 4, 4, dtype=torch.uint8)
    for other in (one[:1], one[:, :2], one.float()):
        with pytest.raises(ValueError, match="pictures of several kinds"):
            stack_pixels([one, other], 2)
    with pytest.raises(ValueError, match="at least one"):
        stack_pixels([], 0)
