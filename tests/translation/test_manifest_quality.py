"""A caption's quality signals on disk."""

import json

import pytest

from xlcm.data.manifest import DataError, parse_item, to_line
from xlcm.types import Caption, Item


def test_signals_come_back_as_they_were_written():
    caption = Caption("a#0.de", "de", "Ein Hund.", "mt", "a#0", "m", (), {"back_chrf": 71.3, "language": "de"})  # fmt: skip
    item = Item("a", "train", (Caption("a#0", "en", "A dog."), caption))
    line = to_line(item)
    assert json.loads(line)["captions"][1]["quality"] == {"back_chrf": 71.3, "language": "de"}
    assert parse_item(line) == item


@pytest.mark.parametrize("quality", [[1], {"chrf": None}, {"chrf": True}, {"chrf": [1]}, "good"])
def test_signals_of_another_kind_are_refused_with_the_line(quality):
    row = {
        "id": "a", "split": "train",
        "captions": [{"id": "a#0", "lang": "en", "text": "x", "quality": quality}],
    }  # fmt: skip
    with pytest.raises(DataError, match=r"f\.jsonl:3: captions\[0\]\.quality must be"):
        parse_item(json.dumps(row).encode(), "f.jsonl:3")
