import io
import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from xlcm.data.batching import Batching, Row, RowStream
from xlcm.data.collate import Collator, TrainLoader, pick_view, stack_visuals
from xlcm.data.dataset import ManifestDataset
from xlcm.data.manifest import DataError
from xlcm.data.subset import Subset
from xlcm.data.transforms import Augment
from xlcm.data.views import View, Views
from xlcm.encoders.transform import ImageTransform
from xlcm.types import Batch, Caption, Item, TextBatch

SIZE = 8


class Made:
    """Items in memory; item i has i % 3 + 1 English captions, each with a German translation."""

    name, split = "made", "train"

    def __init__(self, count: int = 12, features: str | None = None) -> None:
        self.count, self.features = count, features

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Item:
        if not 0 <= index < self.count:
            raise IndexError(index)
        captions = []
        for n in range(index % 3 + 1):
            source = Caption(f"{index}.{n}", "en", f"{index} has {n}" + "!" * index)
            captions += [
                source,
                Caption(f"{source.id}.de", "de", f"{index} hat {n}", "mt", source.id),
            ]
        return Item(f"item{index}", "train", tuple(captions), where=f"made:{index}")

    def load_image(self, index: int) -> Image.Image:
        values = np.random.default_rng(index).integers(0, 256, (20, 16, 3), dtype=np.uint8)
        return Image.fromarray(values)

    def load_features(self, index: int) -> torch.Tensor | list[torch.Tensor]:
        if self.features == "tokens":
            return torch.full((index % 4 + 1, 5), float(index))
        if self.features == "views":
            return [torch.full((5,), float(view)) for view in range(3)]
        return torch.full((5,), float(index))


class Codes:
    """Characters as ids, padded with 0; says how often and with what it was called."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], list[str]]] = []

    def __call__(self, texts, langs) -> TextBatch:
        self.calls.append((list(texts), list(langs)))
        longest = max(map(len, texts))
        ids = torch.tensor([[ord(c) for c in text.ljust(longest, "\0")] for text in texts])
        return TextBatch(ids, ids != 0, tuple(langs))


def shrink(image: Image.Image) -> torch.Tensor:
    data = bytearray(image.resize((SIZE, SIZE)).tobytes())
    return torch.frombuffer(data, dtype=torch.uint8).view(SIZE, SIZE, 3).permute(2, 0, 1)


VIEWS = Views({"source": View(langs=["en"]), "target": View(langs=["de"], of="source")})
AUGMENT = Augment(crop=0.5, flip=0.5, colour=0.2)


def collator(dataset=None, transform=shrink, **options) -> Collator:
    return Collator(dataset or Made(), VIEWS, Codes(), transform, **options)


def loader(workers: int = 0, *, size: int = 4, dataset=None, slots=None, **options) -> TrainLoader:
    dataset = dataset or Made()
    slots = np.array([i % 3 + 1 for i in range(len(dataset))]) if slots is None else slots
    options = {"augment": AUGMENT, "seed": 3, "slot_view": "source", **options}
    stream = RowStream(Batching(slots, size, seed=3))
    return TrainLoader(stream, collator(dataset, **options), workers=workers)


def words(text: TextBatch) -> list[str]:
    return ["".join(map(chr, row[row > 0].tolist())) for row in text.ids]


def told(batch: Batch) -> tuple:
    """Return everything in a batch, to compare."""
    visual = batch.visual
    parts = (visual.pixels, visual.features, visual.mask)
    return (
        batch.names,
        batch.ids.tolist(),
        {k: (t.ids.tolist(), t.mask.tolist(), t.langs, t.cut) for k, t in batch.text.items()},
        [None if part is None else part.tolist() for part in parts],
    )


def rows(*items: int, slot: int = 0, epoch: int = 0) -> list[Row]:
    return [Row(item, slot, epoch) for item in items]


# -- one batch ----------------------------------------------------------------------------------


def test_a_batch_says_of_each_row_item_captions_and_pixels():
    batch = collator(slot_view="source")([Row(2, 1, 0), Row(5, 0, 0), Row(2, 2, 0)])
    assert batch.ids.tolist() == [2, 5, 2]
    assert batch.ids.dtype == torch.int64
    assert batch.names == ("item2", "item5", "item2")
    assert words(batch.text["source"]) == ["2 has 1!!", "5 has 0!!!!!", "2 has 2!!"]
    assert words(batch.text["target"]) == ["2 hat 1", "5 hat 0", "2 hat 2"]
    assert batch.text["target"].langs == ("de",) * 3
    assert (batch.visual.pixels.dtype, batch.visual.pixels.shape) == (
        torch.uint8,
        (3, 3, SIZE, SIZE),
    )
    assert torch.equal(batch.visual.pixels[1], shrink(Made().load_image(5)))
    assert torch.equal(batch.visual.pixels[0], batch.visual.pixels[2])
    assert batch.visual.features is None


def test_captions_are_padded_to_the_longest_of_the_batch_alone():
    text = collator()(rows(0, 3)).text["source"]
    assert text.ids.shape == text.mask.shape == (2, len("3 has 0!!!"))
    assert text.mask.sum(1).tolist() == [len("0 has 0"), len("3 has 0!!!")]


def test_each_view_is_tokenised_in_one_call_and_only_those_asked_for():
    both = collator()
    both(rows(0, 1, 2, 3))
    assert [(len(texts), set(langs)) for texts, langs in both.tokenizer.calls] == [
        (4, {"en"}), (4, {"de"}),
    ]  # fmt: skip
    one = collator(only=["target"])
    batch = one(rows(0, 1, 2, 3))
    assert (list(batch.text), len(one.tokenizer.calls)) == (["target"], 1)
    assert words(batch.text["target"]) == words(both(rows(0, 1, 2, 3)).text["target"])


def test_rows_over_captions_take_each_caption_once():
    dataset = Made()
    every = [Row(i, slot, 0) for i in range(12) for slot in range(i % 3 + 1)]
    found = words(collator(slot_view="source")(every).text["source"])
    assert found == [c.text for i in range(12) for c in dataset[i].captions if c.lang == "en"]


def test_rows_over_items_draw_captions_anew_each_epoch():
    drawn = {words(collator()(rows(2, epoch=e)).text["source"])[0] for e in range(30)}
    assert drawn == {"2 has 0!!", "2 has 1!!", "2 has 2!!"}


def test_a_row_depends_on_seed_epoch_item_and_slot_and_not_on_its_neighbours():
    make = collator(augment=AUGMENT, seed=1)
    together = make(rows(2, 5, 7))
    alone = make(rows(5))
    assert torch.equal(together.visual.pixels[1], alone.visual.pixels[0])
    assert words(together.text["source"])[1] == words(alone.text["source"])[0]
    backwards = make(rows(7, 5, 2))
    assert torch.equal(together.visual.pixels.flip(0), backwards.visual.pixels)
    others = [
        make(rows(5, epoch=1)), make(rows(5, slot=1)), collator(augment=AUGMENT, seed=2)(rows(5)),
    ]  # fmt: skip
    others += [make([Row(5, 0, 0, n)]) for n in (1, 2)]  # again in the same epoch
    pixels = {b.visual.pixels.numpy().tobytes() for b in (alone, *others)}
    assert len(pixels) == 6


def test_a_row_that_has_nothing_to_draw_makes_no_generator(monkeypatch):
    made = []
    real = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda key: made.append(key) or real(key))
    collator(slot_view="source")(rows(1, 2))
    assert not [key for key in made if type(key) is list]  # the others draw the data
    collator(augment=AUGMENT, slot_view="source", seed=9)(rows(1, 2))
    assert [key for key in made if type(key) is list] == [[9, 0, 1, 0], [9, 0, 2, 0]]


def test_without_augmentation_pictures_are_the_same_in_each_epoch():
    plain = collator(augment=Augment())
    assert plain.augment is None
    first, second = plain(rows(4)), plain(rows(4, epoch=1))
    assert torch.equal(first.visual.pixels, second.visual.pixels)


# -- features -----------------------------------------------------------------------------------


def test_pooled_features_are_stacked_and_no_picture_is_opened(monkeypatch):
    monkeypatch.setattr(Made, "load_image", None)
    visual = collator(Made(features="pooled"), None)(rows(3, 1)).visual
    assert (visual.pixels, visual.mask) == (None, None)
    assert torch.equal(visual.features, torch.tensor([[3.0], [1.0]]).expand(2, 5))


def test_pooled_features_that_a_dataset_reads_at_once_give_the_same_batch():
    class Together(Made):
        asked = 0

        def load_feature_rows(self, items):
            self.asked += 1
            return torch.stack([self.load_features(int(item.id[4:])) for item in items])

    together = Together()
    for transform in (None, shrink):
        some = rows(3, 1, 7)
        expected = told(collator(transform=transform)(some))
        assert told(collator(together, transform)(some)) == expected
    assert together.asked == 1  # pictures are read as pictures


def test_token_features_are_padded_with_zeros_under_a_mask():
    visual = collator(Made(features="tokens"), None)(rows(3, 4, 2)).visual
    assert visual.features.shape == (3, 4, 5)
    lengths = [4, 1, 3]
    assert visual.mask.dtype == torch.bool
    assert visual.mask.tolist() == [[t < n for t in range(4)] for n in lengths]
    for row, (value, length) in enumerate(zip((3, 4, 2), lengths)):
        assert (visual.features[row, :length] == value).all()
        assert (visual.features[row, length:] == 0).all()


def test_stacking_keeps_the_type_and_one_row():
    visual = stack_visuals([torch.ones(2, 3, dtype=torch.float64)])
    assert (visual.features.dtype, visual.mask.tolist()) == (torch.float64, [[True, True]])


def test_all_views_of_an_item_come_the_unchanged_one_too():
    make = collator(Made(features="views"), None)
    counts = torch.stack(
        [make(rows(4, epoch=e)).visual.features[0, 0].long() for e in range(300)]
    ).bincount()
    assert len(counts) == 3
    assert all(abs(count - 100) < 4 * (300 * 2 / 9) ** 0.5 for count in counts.tolist())
    only = torch.ones(5)
    assert pick_view(only, np.random.default_rng(0)) is only


# -- the loader ---------------------------------------------------------------------------------


def test_workers_change_nothing_over_an_epoch_border():
    count = 2 * loader().batches_per_epoch + 1
    plain = [told(batch) for batch in islice(loader(), count)]
    assert [told(batch) for batch in islice(loader(2), count)] == plain
    assert len({str(batch) for batch in plain}) == count


@pytest.mark.parametrize("workers", [0, 2])
def test_the_position_is_that_of_the_next_batch_whatever_was_prefetched(workers):
    each = loader().batches_per_epoch
    made = loader(workers)
    assert made.state_dict() == {"epoch": 0, "batch": 0}
    positions = []
    batches = iter(made)
    for _ in range(2 * each + 1):
        next(batches)
        positions.append(tuple(made.state_dict().values()))
    assert positions == [divmod(n, each) for n in range(1, 2 * each + 2)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_loader_goes_on_exactly_from_any_place(workers):
    each = loader().batches_per_epoch
    straight = [told(batch) for batch in islice(loader(), 2 * each + 2)]
    places = range(2 * each) if workers == 0 else (1, each - 1, each)
    for place in places:
        before, after = loader(workers), loader(workers)
        for _ in zip(range(place), before):
            pass
        # zip asks the loader only after its counter: exactly `place` batches were used
        after.load_state_dict(json.loads(json.dumps(before.state_dict())))
        assert [told(batch) for batch in islice(after, 2)] == straight[place : place + 2], place


def test_a_loader_that_is_iterated_again_goes_on():
    straight = [told(batch) for batch in islice(loader(), 6)]
    made = loader()
    first = [told(batch) for batch in islice(made, 2)]
    assert [*first, *(told(batch) for batch in islice(made, 4))] == straight


def test_separate_batches_resume_although_epochs_differ_in_length():
    slots = np.array([3, 2, 2, 1])

    def make():
        stream = RowStream(Batching(slots, 2, seed=1, same_image="separate"))
        return TrainLoader(stream, collator(Made(4)))

    lengths = {len(make().stream.batching.batches(e)) for e in range(30)}
    assert len(lengths) > 1
    straight = [told(batch) for batch in islice(make(), 40)]
    made = make()
    again = []
    for _ in range(40):
        state = made.state_dict()
        made = make()
        made.load_state_dict(state)
        again.append(told(next(iter(made))))
    assert again == straight


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_moves_no_global_generator(workers):
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.random.get_rng_state(), np.random.get_state()
    list(islice(loader(workers), 3))
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert str(np.random.get_state()) == str(before[1])


# -- faults -------------------------------------------------------------------------------------


def manifest(folder: Path, count: int = 8, bad: int = 5) -> ManifestDataset:
    lines = []
    for n in range(count):
        out = io.BytesIO()
        Image.new("RGB", (16, 16), (n * 20, 0, 0)).save(out, "JPEG")
        (folder / f"{n}.jpg").write_bytes(out.getvalue() if n != bad else b"<html>no</html>")
        captions = [{"id": f"{n}.en", "lang": "en", "text": "a dog"},
                    {"id": f"{n}.de", "lang": "de", "text": "Hund", "origin": "mt", "of": f"{n}.en"}]  # fmt: skip
        lines.append({"id": f"i{n}", "split": "train", "image": f"{n}.jpg", "captions": captions})
    path = folder / "m.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return ManifestDataset(path=str(path), split="train")


def test_pixels_are_read_where_the_transform_takes_them_and_change_nothing(tmp_path, monkeypatch):
    data = Subset(manifest(tmp_path), range(5))
    some = [Row(item, 0, 2) for item in (4, 0, 3)]
    augment = Augment(crop=0.5, flip=0.5)
    slow = collator(data, lambda image: ImageTransform(SIZE)(image), augment=augment)(some)
    monkeypatch.setattr("xlcm.data.images.decode", None)
    fast = collator(data, ImageTransform(SIZE), augment=augment)(some)
    assert torch.equal(slow.visual.pixels, fast.visual.pixels)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_picture_is_raised_here_with_its_line_and_file(tmp_path, workers):
    made = loader(
        workers, dataset=manifest(tmp_path), slots=np.ones(8, int), size=1, slot_view=None
    )
    names = []

    def use_all():
        for batch in islice(made, 9):  # more than an epoch
            names.extend(batch.names)

    with pytest.raises(DataError) as raised:
        use_all()
    message = str(raised.value)
    assert message.startswith(f"{tmp_path / 'm.jsonl'}:6: image '5.jpg': a web page")
    assert "Traceback" not in message
    assert "worker" not in message
    assert "\n" not in message
    assert raised.value.kind == "image_undecodable"
    assert "i5" not in names
    order = [int(i) for i in made.stream.batching.batches(0)[:, 0, 0]]
    assert names == [f"i{i}" for i in order[: order.index(5)]]  # and all before it were given
    assert made.state_dict() == {"epoch": 0, "batch": order.index(5)}


def test_a_missing_caption_is_raised_with_its_place():
    class Wordless(Made):
        def __getitem__(self, index: int) -> Item:
            return Item(f"item{index}", "train", (), where=f"made:{index}")

    with pytest.raises(DataError, match="made:1: item 'item1' has no caption"):
        collator(Wordless())(rows(1))


def test_our_own_bugs_are_not_taken_for_bad_data():
    def broken(image):
        raise RuntimeError("a bug in the transform")

    with pytest.raises(RuntimeError, match="a bug in the transform"):
        next(iter(loader(transform=broken)))


@pytest.mark.parametrize("reason", ["raise SystemExit(7)", "next(bad)"])
def test_a_program_that_fails_with_workers_at_work_ends(reason):
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_collate\n"
        "batches = iter(test_collate.loader(2)); next(batches)\n"
        f"bad = iter(test_collate.loader(2, transform=len))\n{reason}"
    )
    # it used to wait for ever for workers that ignore SIGTERM
    ended = subprocess.run([sys.executable, "-c", code], timeout=60, capture_output=True, text=True)
    assert ended.returncode == (7 if "7" in reason else 1)
    assert ("TypeError" in ended.stderr) == ("bad" in reason)
