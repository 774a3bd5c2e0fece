import io
import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from xlcm.data import rows as rows_module
from xlcm.data.batching import Batching, RowStream
from xlcm.data.collate import Collator, TrainLoader
from xlcm.data.features import FeatureWriter
from xlcm.data.manifest import DataError
from xlcm.data.rows import open_splits, survey, training_texts
from xlcm.data.views import View, Views
from xlcm.types import Caption, Item, TextBatch

VIEWS = {"text": View(langs=["en"]), "german": View(langs=["de"], temperature=2.0)}
BAD = 4  # the line where faults are put


def codes(texts, langs) -> TextBatch:
    longest = max(map(len, texts))
    ids = torch.tensor([[ord(c) for c in text.ljust(longest, "\0")] for text in texts])
    return TextBatch(ids, ids != 0, tuple(langs))


def small(image: Image.Image) -> torch.Tensor:
    data = torch.frombuffer(bytearray(image.resize((4, 4)).tobytes()), dtype=torch.uint8)
    return data.view(4, 4, 3).permute(2, 0, 1)


def jpeg(number: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (32, 32), (number * 9 % 256, 255 - number * 7 % 256, 90)).save(out, "JPEG")
    return out.getvalue()


def good(name: str, split: str = "train") -> dict:
    captions = [
        {"id": f"{name}#{n}", "lang": "en", "text": f"{name} says {n}"} for n in range(2)
    ] + [
        {"id": f"{name}#de", "lang": "de", "text": f"{name} sagt", "origin": "mt", "of": f"{name}#0"}
    ]  # fmt: skip
    return {"id": name, "split": split, "image": f"{name}.jpg", "captions": captions}


class Folder:
    """Pictures, and manifests that are written from rows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for number in range(14):
            (path / f"i{number}.jpg").write_bytes(jpeg(number))
        self.good = [good(f"i{n}") for n in range(12)] + [good("i12", "test"), good("i13", "test")]

    def write(self, name: str, rows: list) -> str:
        raw = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in rows]
        (self.path / name).write_bytes(b"\n".join(raw) + b"\n")
        return str(self.path / name)

    def with_row(self, row: dict | bytes) -> str:
        return self.write("bad.jsonl", [*self.good[: BAD - 1], row, *self.good[BAD - 1 :]])

    def with_caption(self, **caption) -> str:
        """Put a caption before the others of the item on the bad line."""
        item = dict(self.good[BAD - 1])
        made = {"id": "new", "lang": "en", "text": "new", **caption}
        item["captions"] = [made, *item["captions"]]
        return self.write("bad.jsonl", [*self.good[: BAD - 1], item, *self.good[BAD:]])

    @property
    def clean(self) -> str:
        return self.write("clean.jsonl", self.good)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Folder:
    monkeypatch.setenv("XLCM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    return Folder(tmp_path / "data")


def spec(path: str, split: str = "train", **options) -> dict:
    return {"name": "manifest", "path": path, "split": split, **options}


def opened(path: str, **options):
    settings = {"visual": "image", "max_skipped": 1.0, **options}
    return open_splits([spec(path), spec(path, "test")], **settings)


def seen(dataset, *, visual: str = "image", per: str = "caption") -> list[tuple]:
    """Return what a run gets to see in two epochs: names, ids, words, languages and pixels."""
    rows = survey(dataset, VIEWS, rows=per)
    collate = Collator(
        rows.dataset, rows.views, codes, small if visual == "image" else None,
        seed=5, slot_view=rows.slot_view,
    )  # fmt: skip
    loader = TrainLoader(RowStream(Batching(rows.slots, 3, seed=5)), collate)
    return [
        (
            batch.names,
            batch.ids.tolist(),
            {name: (text.ids.tolist(), text.langs) for name, text in batch.text.items()},
            (batch.visual.pixels if visual == "image" else batch.visual.features).tolist(),
        )
        for batch in islice(loader, 2 * loader.batches_per_epoch)
    ]


# what makes a bad row; each gives the fault's kind
ROW_FAULTS = {
    "missing": ("image_missing", lambda f: {**good("new"), "image": "nope.jpg"}),
    "empty": ("image_empty", lambda f: picture(f, b"")),
    "truncated": ("image_undecodable", lambda f: picture(f, jpeg(3)[:-200])),
    "html": ("image_undecodable", lambda f: picture(f, b"<html>403 Forbidden</html>")),
    "no picture": ("image_missing", lambda f: {k: v for k, v in good("new").items() if k != "image"}),
    "not utf-8": ("not_utf8", lambda f: json.dumps(good("new")).encode().replace(b"says", b"s\xe9")),
    "not json": ("bad_line", lambda f: json.dumps(good("new")).encode()[:-2]),
    "unknown key": ("bad_line", lambda f: {**good("new"), "caption": 1}),
    "repeated id": ("duplicate_item", lambda f: {**picture(f, jpeg(77)), "id": "i0"}),
}  # fmt: skip
CAPTION_FAULTS = {
    "empty": ("caption_empty", {"text": " "}),
    "unknown language": ("unknown_language", {"lang": "jp"}),
    "control character": ("control_character", {"text": "a\0b"}),
    "of nowhere": ("of_nowhere", {"origin": "mt", "of": "nobody"}),
    "of another item": ("of_other_item", {"origin": "mt", "of": "i0#0"}),
    "relevant nowhere": ("relevant_nowhere", {"relevant": ["nobody"]}),
    "id of another item": ("duplicate_caption", {"id": "i0#0"}),
}
IMAGES = [name for name, (kind, _) in ROW_FAULTS.items() if kind.startswith("image")]


def picture(folder: Folder, data: bytes) -> dict:
    (folder.path / "new.jpg").write_bytes(data)
    return good("new")


# -- faults stop, or are left out as if they had never been --------------------------------------


def test_good_data_are_opened_as_they_are(folder):
    for on_error in ("raise", "skip"):
        (train, test), skipped = opened(folder.clean, on_error=on_error)
        assert (len(train), len(test), skipped) == (12, 2, [])
        assert (train.split, test.split, train.name) == ("train", "test", "clean")


@pytest.mark.parametrize("name", ROW_FAULTS)
def test_a_bad_row_is_skipped_as_if_it_had_never_been(folder, name):
    kind, make = ROW_FAULTS[name]
    path = folder.with_row(make(folder))
    (train, test), skipped = opened(path, on_error="skip")
    assert [(f.where, f.kind, f.caption) for f in skipped] == [(f"{path}:{BAD}", kind, None)]
    assert (len(train), len(test)) == (12, 2)
    (clean, _), _ = opened(folder.clean)
    assert seen(train) == seen(clean)
    assert seen(train, per="item") == seen(clean, per="item")


@pytest.mark.parametrize("name", CAPTION_FAULTS)
def test_a_bad_caption_alone_is_lost(folder, name):
    kind, caption = CAPTION_FAULTS[name]
    path = folder.with_caption(**caption)
    (train, _), skipped = opened(path, on_error="skip")
    told = [(f.where, f.kind, f.caption) for f in skipped]
    assert told == [(f"{path}:{BAD}", kind, caption.get("id", "new"))]
    (clean, _), _ = opened(folder.clean)
    assert [train[i].captions for i in range(12)] == [clean[i].captions for i in range(12)]
    assert seen(train) == seen(clean)


@pytest.mark.parametrize("name", [n for n in ROW_FAULTS if n not in IMAGES])
def test_a_bad_row_of_text_stops_at_the_start_with_its_line(folder, name):
    path = folder.with_row(ROW_FAULTS[name][1](folder))
    with pytest.raises(DataError) as raised:
        opened(path)
    assert f"\n  {path}:{BAD}: " in str(raised.value)
    assert "1 fault(s) in bad, split 'train'" in str(raised.value)
    assert "data.on_error=skip leaves them out" in str(raised.value)


@pytest.mark.parametrize("name", CAPTION_FAULTS)
def test_a_bad_caption_stops_at_the_start_with_its_line_and_id(folder, name):
    caption = CAPTION_FAULTS[name][1]
    path = folder.with_caption(**caption)
    with pytest.raises(DataError) as raised:
        opened(path)
    assert f"\n  {path}:{BAD}: caption " in str(raised.value)
    assert repr(caption.get("id", "new")) in str(raised.value)


@pytest.mark.parametrize("name", IMAGES)
def test_a_bad_picture_stops_when_it_is_loaded_with_its_line(folder, name):
    path = folder.with_row(ROW_FAULTS[name][1](folder))
    (train, _), skipped = opened(path)
    assert (len(train), skipped) == (13, [])
    with pytest.raises(DataError) as raised:
        seen(train)
    assert str(raised.value).startswith(f"{path}:{BAD}: ")


def test_a_repeated_line_leaves_the_first_one_whole(folder):
    path = folder.with_row(folder.good[0])
    (train, _), skipped = opened(path, on_error="skip")
    assert {f.where for f in skipped} == {f"{path}:{BAD}"}
    (clean, _), _ = opened(folder.clean)
    assert seen(train) == seen(clean)


def test_of_an_id_used_twice_in_one_item_the_first_caption_stays(folder):
    item = good("i3")
    item["captions"].append({"id": "i3#1", "lang": "en", "text": "again"})
    path = folder.write("bad.jsonl", [*folder.good[:3], item, *folder.good[4:]])
    (train, _), skipped = opened(path, on_error="skip")
    assert [(f.kind, f.caption) for f in skipped] == [("duplicate_caption", "i3#1")]
    assert [c.text for c in train[3].captions] == ["i3 says 0", "i3 says 1", "i3 sagt"]


def test_all_faults_at_once_leave_the_good_rows(folder):
    bad = [make(folder) for name, (_, make) in ROW_FAULTS.items() if name not in IMAGES]
    bad += [{**good("a"), "image": "no.jpg"}, picture(folder, b"")]
    mixed = [row for pair in zip(bad, folder.good) for row in pair] + folder.good[len(bad) :]
    for item in (folder.good[10], folder.good[11]):
        broken = [{"id": f"{item['id']}+{n}", "lang": "en", "text": "", **c}
                  for n, (_, c) in enumerate(CAPTION_FAULTS.values()) if "id" not in c]  # fmt: skip
        mixed[mixed.index(item)] = {**item, "captions": [*broken, *item["captions"]]}
    (train, _), skipped = opened(folder.write("bad.jsonl", mixed), on_error="skip")
    assert len({f.where for f in skipped}) == len(bad) + 2
    (clean, _), _ = opened(folder.clean)
    assert seen(train) == seen(clean)


def test_a_line_of_no_known_split_is_listed_once(folder):
    path = folder.with_row(b"{broken")
    (train, test), skipped = opened(path, on_error="skip")
    assert (len(train), len(test)) == (12, 2)
    assert [f.where for f in skipped] == [f"{path}:{BAD}"]


# -- splits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("same", ["id", "image"])
def test_training_rows_that_are_tested_on_stop_or_are_left_out(folder, same):
    row = picture(folder, jpeg(77))
    row = {**row, "id": "i12"} if same == "id" else {**row, "image": "i12.jpg"}
    path = folder.with_row(row)
    with pytest.raises(DataError) as raised:
        opened(path)
    assert f"{path}:{BAD}: " in str(raised.value)
    assert f"is also at {path}:14, which scores are measured on" in str(raised.value)
    (train, test), skipped = opened(path, on_error="skip")
    assert [(f.where, f.kind) for f in skipped] == [(f"{path}:{BAD}", "split_overlap")]
    assert len(test) == 2
    (clean, _), _ = opened(folder.clean)
    assert seen(train) == seen(clean)


def test_validation_and_test_data_may_not_overlap_either(folder):
    rows = [*folder.good, good("v", "val"), {**good("w", "val"), "image": "i13.jpg"}]
    (folder.path / "v.jpg").write_bytes(jpeg(78))
    path = folder.write("bad.jsonl", rows)
    specs = [spec(path), spec(path, "val"), spec(path, "test")]
    with pytest.raises(DataError) as raised:
        open_splits(specs, visual="image")
    assert "1 fault(s) in bad, split 'val'" in str(raised.value)
    assert f"{path}:16: image " in str(raised.value)
    assert f"is also at {path}:14, which scores are measured on" in str(raised.value)
    (train, val, test), skipped = open_splits(
        specs, visual="image", on_error="skip", max_skipped=0.5
    )
    assert [(f.where, f.kind) for f in skipped] == [(f"{path}:16", "split_overlap")]
    assert (len(train), [val[i].id for i in range(len(val))], len(test)) == (12, ["v"], 2)


@pytest.mark.parametrize("other", ["val", "test"])
def test_a_caption_id_that_is_scored_on_too_stops_or_is_left_out(folder, other):
    later = good("v", other)
    later["captions"][0]["id"] = "i3#1"
    later["captions"][2]["of"] = "i3#1"
    (folder.path / "v.jpg").write_bytes(jpeg(78))
    path = folder.write("bad.jsonl", [*folder.good, later])
    specs = [spec(path), spec(path, other)]
    with pytest.raises(DataError, match=rf"{BAD}: caption id 'i3#1' is also at .*:15"):
        open_splits(specs, visual="image")
    (train, scored), skipped = open_splits(specs, visual="image", on_error="skip", max_skipped=0.5)
    assert [(f.where, f.caption) for f in skipped] == [(f"{path}:{BAD}", "i3#1")]
    assert [c.id for c in train[3].captions] == ["i3#0", "i3#de"]
    assert "i3#1" in [c.id for i in range(len(scored)) for c in scored[i].captions]


def test_faults_of_the_test_split_count_too(folder):
    path = folder.with_row({**good("new", "test"), "image": "nope.jpg"})
    (train, test), skipped = opened(path, on_error="skip", max_skipped=0.4)
    assert (len(train), len(test)) == (12, 2)
    assert [f.kind for f in skipped] == ["image_missing"]
    with pytest.raises(DataError, match=r"split 'test'(.|\n)*33\.3% of its items"):
        opened(path, on_error="skip", max_skipped=0.3)


def test_more_faults_than_allowed_stop_with_share_and_list(folder):
    rows = [{**good(f"n{n}"), "image": f"no{n}.jpg"} for n in range(7)]
    path = folder.write("bad.jsonl", [*folder.good, *rows])
    with pytest.raises(DataError) as raised:
        opened(path, on_error="skip", max_skipped=0.01)
    told = str(raised.value)
    assert "7 fault(s) in bad, split 'train'" in told
    assert "36.8% of its items, more than data.max_skipped=1.0%" in told
    for line in range(15, 20):
        assert f"{path}:{line}: image 'no{line - 15}.jpg': no such file" in told
    assert "and 2 more" in told


def test_the_allowed_share_itself_is_allowed(folder):
    rows = [good(f"n{n}") for n in range(100)]
    for row in rows[:29]:
        row["captions"][1]["text"] = ""
    path = folder.write("bad.jsonl", rows)
    for allowed, stops in ((0.29, False), (0.28, True)):
        options = {"visual": "features", "on_error": "skip", "max_skipped": allowed}
        if stops:
            with pytest.raises(DataError, match=r"29\.0%"):
                open_splits([spec(path)], **options)
        else:
            assert len(open_splits([spec(path)], **options)[1]) == 29


# -- features -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pooled", "tokens", "views"])
def test_bad_features_stop_when_loaded_and_are_skipped_when_asked(folder, kind):
    shape = {"pooled": (4,), "tokens": (3, 4), "views": (2, 4)}[kind]
    views = {"views": 2} if kind == "views" else {}
    path = folder.write("bad.jsonl", [*folder.good[:3], good("new"), *folder.good[3:], good("nan")])
    store = folder.path / "store"
    with FeatureWriter(store, kind=kind, dim=4, dtype="float32", **views) as writer:
        for number in range(14):
            writer.add(f"i{number}", torch.full(shape, float(number)))
        writer.add("nan", torch.zeros(shape))
    shard = store / "shard-00000.safetensors"
    tensors = load_file(shard)
    tensors["values"].view(-1)[-1] = float("nan")  # the last one that was written
    save_file(tensors, shard)
    where = {"new": f"{path}:4", "nan": f"{path}:16"}
    specs = [spec(path, features=str(store))]

    (loose,), _ = open_splits(specs, visual="features")
    for index, name, message in ((3, "new", "no key 'new'"), (13, "nan", "NaN or infinity")):
        with pytest.raises(DataError, match=message) as raised:
            loose.load_features(index)
        assert str(raised.value).startswith(f"{where[name]}: ")
    with pytest.raises(DataError):
        seen(loose, visual="features")

    (train,), skipped = open_splits(specs, visual="features", on_error="skip", max_skipped=0.2)
    assert [(f.where, f.kind) for f in skipped] == [
        (where["new"], "feature_missing"), (where["nan"], "feature_not_finite"),
    ]  # fmt: skip
    (clean,), _ = open_splits([spec(folder.clean, features=str(store))], visual="features")
    assert seen(train, visual="features") == seen(clean, visual="features")


# -- survey -------------------------------------------------------------------------------------


class Listed:
    """Items in memory; counts how many were asked for."""

    name, split = "listed", "train"

    def __init__(self, *items: Item, uniform: bool = False) -> None:
        self.items, self.uniform, self.asked = items, uniform, 0

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Item:
        self.asked += 1
        return self.items[index]


def item(name: str, **captions: list[str]) -> Item:
    made = [
        Caption(f"{name}.{lang}{n}", lang, text)
        for lang, texts in captions.items()
        for n, text in enumerate(texts)
    ]
    return Item(name, "train", tuple(made), where=f"m.jsonl:{name}")


BOTH = {"source": View(langs=["en"]), "target": View(langs=["de"])}


def test_rows_are_items_or_the_captions_of_the_first_view():
    data = Listed(item("1", en=["a", "bb"], de=["c"]), item("2", en=["ddd"], de=["e", "f"]))
    rows = survey(data, BOTH, lengths=True)
    assert (rows.slots.tolist(), rows.slot_view) == ([1, 1], None)
    assert rows.lengths.tolist() == [1.5, 3]
    rows = survey(data, BOTH, rows="caption")
    assert (rows.slots.tolist(), rows.slot_view, rows.lengths) == ([2, 1], "source", None)
    assert (rows.dataset, rows.dropped) == (data, [])


def test_items_without_a_view_stop_or_are_dropped_and_named():
    data = Listed(
        item("1", de=["x"]), item("2", en=["a"], de=["b"]), item("3", en=["c"]),
        item("4", en=["dd", "eeee"], de=["f"]),
    )  # fmt: skip
    with pytest.raises(DataError, match=r"m\.jsonl:1: item '1' has no caption for .*`source`"):
        survey(data, BOTH)
    rows = survey(data, BOTH, rows="caption", incomplete="drop", lengths=True)
    assert rows.dropped == ["1", "3"]
    assert [rows.dataset[i].id for i in range(len(rows.dataset))] == ["2", "4"]
    assert (rows.slots.tolist(), rows.lengths.tolist()) == ([1, 2], [1, 3])
    with pytest.raises(DataError, match=r"listed, split 'train': no item has .* source, target"):
        survey(Listed(item("1", en=["a"])), BOTH, incomplete="drop")


def test_an_item_that_lost_its_only_caption_to_a_fault_is_dropped_and_others_still_stop(folder):
    rows = [good(f"i{n}") for n in range(4)]
    rows[2]["captions"][2]["text"] = ""
    path = folder.write("bad.jsonl", rows)
    (train,), _ = open_splits([spec(path)], visual="image", on_error="skip", max_skipped=0.3)
    surveyed = survey(train, BOTH)
    assert surveyed.dropped == ["i2"]
    assert [surveyed.dataset[i].id for i in range(3)] == ["i0", "i1", "i3"]
    del rows[3]["captions"][2]
    path = folder.write("worse.jsonl", rows)
    (train,), _ = open_splits([spec(path)], visual="image", on_error="skip", max_skipped=0.3)
    with pytest.raises(DataError, match="item 'i3' has no caption"):
        survey(train, BOTH)


def test_languages_are_counted_for_each_view_by_itself():
    data = Listed(*(item(str(n), en=["a", "b"], de=["c"] if n < 3 else []) for n in range(9)))
    views = {"english": View(langs=["en"]), "any": View(langs=["en", "de"], temperature=2.0)}
    rows = survey(data, views)
    assert rows.views.odds["any"] == {"en": 18**0.5, "de": 3**0.5}


def test_a_language_without_captions_stops_and_what_there_is_is_told():
    data = Listed(item("1", en=["a", "b"], de=["c"], cs=["d"]), item("2", en=["e"], de=["f"]))
    views = {"source": View(langs=["en"]), "target": View(langs=["de", "zh", "fr"])}
    with pytest.raises(DataError) as raised:
        survey(data, views)
    told = str(raised.value)
    for part in (
        "listed, split 'train': data.views.target.langs: no caption in 'zh'",
        "data.views.target.langs: 'fr'", "1 x cs human, 2 x de human, 3 x en human",
    ):  # fmt: skip
        assert part in told, part
    views["target"] = View(langs=["de"], origin=["mt"])
    with pytest.raises(DataError, match="has no caption for the view"):
        survey(data, views)
    views["target"] = View(langs=["en", "cs"], origin=["human"])
    rows = survey(data, views)
    assert rows.langs_seen == ["en", "cs"]


def test_a_language_of_another_origin_alone_is_one_without_captions():
    made = Caption("x", "zh", "c", origin="mt")
    data = Listed(Item("1", "train", (*item("1", en=["a"], de=["b"]).captions, made)))
    views = {"text": View(langs=["en", "zh"], origin=["human"])}
    with pytest.raises(DataError, match=r"no caption in 'zh' of origin human; .*1 x zh mt"):
        survey(data, views)
    views = {"text": View(langs=["en", "zh"])}
    assert survey(data, views).langs_seen == ["en", "zh"]


def test_a_uniform_dataset_is_looked_at_once_unless_lengths_are_wanted():
    items = [item(str(n), en=["a" * (n + 1), "b"], de=["c"]) for n in range(50)]
    data = Listed(*items, uniform=True)
    rows = survey(data, BOTH, rows="caption")
    assert data.asked == 1
    assert rows.slots.tolist() == [2] * 50
    assert survey(data, BOTH, lengths=True).lengths[9] == 5.5
    assert data.asked == 51
    assert survey(Listed(*items), BOTH, rows="caption").slots.tolist() == [2] * 50


def test_scenes_need_no_look_at_their_faults():
    scenes = {"name": "scenes", "size": 6, "cache": None}
    (train, test), skipped = open_splits(
        [scenes, {**scenes, "split": "test"}], visual="image", on_error="skip"
    )
    assert (len(train), len(test), skipped) == (6, 6, [])
    views = {"source": View(langs=["en"], origin=["human"]), "target": View(langs=["de"])}
    assert survey(train, views, rows="caption").slots.tolist() == [2] * 6


@pytest.mark.parametrize("items", [1, 10, 11, 19, 20, 35])
def test_a_tokenizer_is_trained_on_a_bounded_part_of_the_training_captions(monkeypatch, items):
    monkeypatch.setattr(rows_module, "TOKENIZER_ITEMS", 10)
    data = Listed(*(item(str(n), en=[f"{n}"], de=[f"{n}"], fr=["never"]) for n in range(items)))
    texts = list(training_texts(data, Views(BOTH)))
    assert "never" not in texts
    assert len(texts) == 2 * len(set(texts))
    assert min(items, 5) <= len(set(texts)) <= 10
    numbers = sorted(map(int, set(texts)))
    assert numbers[-1] - numbers[0] >= 0.6 * (items - 1)
