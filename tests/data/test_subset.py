import pickle

import pytest
import torch
from PIL import Image

from xlcm.data.subset import Subset
from xlcm.types import Caption, Item


class Numbers:
    """Item i has i captions, a picture and features that say i."""

    name, split = "numbers", "train"

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Item:
        captions = tuple(Caption(f"{index}.{n}", "en", str(n)) for n in range(index))
        return Item(str(index), "train", captions, where=f"m.jsonl:{index}")

    def load_image(self, index: int) -> Image.Image:
        return Image.new("RGB", (1, 1), (index, 0, 0))

    def load_features(self, index: int) -> torch.Tensor:
        return torch.tensor([float(index)])


def texts(item: Item) -> list[str]:
    return [caption.text for caption in item.captions]


def test_items_are_numbered_anew_with_their_own_pictures_and_features():
    part = Subset(Numbers(), [1, 4, 5])
    assert (len(part), part.name, part.split) == (3, "numbers", "train")
    assert [part[i].id for i in range(3)] == ["1", "4", "5"]
    assert [part.load_image(i).getpixel((0, 0))[0] for i in range(3)] == [1, 4, 5]
    assert [part.load_features(i).item() for i in range(3)] == [1, 4, 5]
    assert part[1] == Numbers()[4]
    with pytest.raises(IndexError):
        part[3]


def test_captions_are_left_out_by_place_in_one_item_alone():
    part = Subset(Numbers(), [3, 4], {4: {0, 2}})
    assert [texts(part[i]) for i in range(2)] == [["0", "1", "2"], ["1", "3"]]
    assert [part.lost_captions(i) for i in range(2)] == [False, True]
    assert part[1].where == "m.jsonl:4"


def test_a_subset_of_a_subset_keeps_what_both_keep():
    inner = Subset(Numbers(), [2, 3, 5], {5: {0}})
    outer = Subset(inner, [1, 2], {2: {0}})
    assert [outer[i].id for i in range(2)] == ["3", "5"]
    assert [texts(outer[i]) for i in range(2)] == [["0", "1", "2"], ["2", "3", "4"]]
    assert outer.load_features(1).item() == 5


def test_it_travels_into_a_worker():
    part = Subset(Numbers(), [1, 4], {4: {3}})
    again = pickle.loads(pickle.dumps(part))
    assert [again[i] for i in range(2)] == [part[i] for i in range(2)]
