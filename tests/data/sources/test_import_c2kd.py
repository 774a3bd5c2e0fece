import importlib.util
import json
import os
import pickle
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from faults import truncated
from video_folders import command, converted, fails, items, put, told

from xlcm.data.feature_formats import open_features

SCRIPT = Path(__file__).parents[3] / "recipes" / "convert_c2kd.py"


def script():
    spec = importlib.util.spec_from_file_location("convert_c2kd", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pickled(path: Path, rows: object, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(rows, protocol=protocol))
    return path


FRAMES = np.arange(12, dtype=np.float32).reshape(3, 4)
MSRVTT = {"id": "video7", "2d": FRAMES, "audio": np.ones((40, 5)), "caption_en": ["A.", "B."],
          "caption_de": ["Ah.", "Be."]}  # fmt: skip


class Command:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


# -- conversion ---------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_becomes_lines_and_arrays_that_can_be_imported(tmp_path, protocol):
    source = pickled(tmp_path / "x.pkl", [MSRVTT], protocol)
    out = tmp_path / "converted"
    script().convert(source, out, "train")
    assert command("c2kd", out, "--dataset", "msrvtt", "--engine", "e") == 1  # no test
    assert [row["path"] for row in told(out)["missing"]] == ["test.jsonl"]
    captions = items(out)["video7"].captions
    assert [(c.id, c.text, c.origin, c.of, c.engine) for c in captions] == [
        ("video7#en.0", "A.", "human", None, None), ("video7#en.1", "B.", "human", None, None),
        ("video7#de.mt.0", "Ah.", "mt", "video7#en.0", "e"),
        ("video7#de.mt.1", "Be.", "mt", "video7#en.1", "e"),
    ]  # fmt: skip
    with np.load(out / "train.2d.npz", allow_pickle=False) as arrays:
        assert np.array_equal(arrays["video7"], FRAMES)
    assert open_features(out / "train.2d.npz")["video7"].shape == (3, 4)
    assert np.load(out / "train.audio.npz")["video7"].shape == (40, 5)


def test_frames_are_cut_and_normalised_as_the_method_does(tmp_path):
    source = pickled(tmp_path / "x.pkl", [MSRVTT])
    script().convert(source, tmp_path, "train", frames=2, normalise=True)
    with np.load(tmp_path / "train.2d.npz") as arrays:
        assert arrays["video7"].shape == (2, 4)
        assert np.allclose(np.linalg.norm(arrays["video7"], axis=1), 1)
    assert np.load(tmp_path / "train.audio.npz")["video7"].shape == (40, 5)


def test_no_code_of_a_pickle_is_run(tmp_path):
    target = tmp_path / "made"
    for rows in ([Command(target)], [{"id": "a", "caption": Command(target)}]):
        source = pickled(tmp_path / "x.pkl", rows)
        with pytest.raises(SystemExit, match=r"refused.*mkdir"):
            script().convert(source, tmp_path / "out", "train")
        assert not target.exists()
        assert not (tmp_path / "out").exists()
    pickle.loads(source.read_bytes())
    assert target.exists()  # it would have


@pytest.mark.parametrize(
    "value", [np.array([{"a": 1}], dtype=object), OrderedDict(a=1), print, np.ma.array([1]),
     np.zeros(2, dtype=[("a", "f4")]), np.zeros(1, "M8[s]")],
    ids=["objects", "other-class", "function", "masked", "fields", "times"],
)  # fmt: skip
def test_anything_but_arrays_and_plain_values_is_refused(tmp_path, value):
    source = pickled(tmp_path / "x.pkl", [{"id": "a", "2d": value}])
    with pytest.raises(SystemExit, match=r"x\.pkl: refused"):
        script().convert(source, tmp_path / "out", "train")


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize(
    "value", [np.arange(6, dtype=">i2").reshape(2, 3), np.asfortranarray(FRAMES), FRAMES[::2].T,
              FRAMES.astype(np.float16), np.zeros((0, 4), np.float32), np.array(3.0)],
    ids=["big-endian", "fortran", "strided", "half", "empty", "scalar"],
)  # fmt: skip
def test_arrays_of_any_order_are_read_as_pickle_reads_them(tmp_path, value, protocol):
    rows = [{"id": "a", "2d": value, "again": value}]
    read = script().load(pickled(tmp_path / "x.pkl", rows, protocol))
    for name in ("2d", "again"):
        assert np.array_equal(read[0][name], value)
        assert read[0][name].dtype == value.dtype


def test_numbers_of_numpy_are_plain_values(tmp_path):
    source = pickled(tmp_path / "x.pkl", [{"id": "a", "caption": "A.", "start": np.float64(2.5)}])
    rows = script().load(source)
    assert rows[0]["start"] == 2.5


def test_cut_off_or_other_files_are_named(tmp_path):
    source = truncated(pickled(tmp_path / "x.pkl", [MSRVTT]))
    with pytest.raises(SystemExit, match=r"x\.pkl: refused"):
        script().load(source)
    with pytest.raises(SystemExit, match="expected a list of dictionaries"):
        script().load(pickled(source, {"a": 1}))
    with pytest.raises(SystemExit, match="no such file"):
        script().load(tmp_path / "y.pkl")
    with pytest.raises(SystemExit, match="row 0 has no 'id'"):
        script().convert(pickled(source, [{"2d": FRAMES}]), tmp_path, "train")
    pickled(source, [{"id": "a", "2d": FRAMES * np.nan}])
    with pytest.raises(SystemExit, match="NaN"):
        script().convert(source, tmp_path / "out", "train")
    assert not (tmp_path / "out").exists()


def test_clips_of_one_video_get_ids_of_their_own(tmp_path):
    rows = [{"id": "v", "caption": "a", "caption_cz": "á", "3d": FRAMES + n} for n in range(2)]
    script().convert(pickled(tmp_path / "x.pkl", rows), tmp_path / "c", "val")
    command("youcook2", tmp_path / "c")
    assert list(items(tmp_path / "c")) == ["v@0", "v@1"]
    assert [c.lang for c in items(tmp_path / "c")["v@0"].captions] == ["en", "cs"]
    assert np.load(tmp_path / "c" / "val.3d.npz")["v@1"][0, 0] == 1


def test_the_script_runs_as_a_command(tmp_path, monkeypatch, capsys):
    source = pickled(tmp_path / "x.pkl", [{**MSRVTT, "start": 3}])
    words = ["convert_c2kd.py", str(source), "--out", str(tmp_path / "c"), "--split", "test"]
    monkeypatch.setattr(sys, "argv", words)
    script().main()
    said = capsys.readouterr().out
    assert "test.jsonl: 1 rows" in said
    assert "left out: 'start' of 1 rows" in said


# -- import -------------------------------------------------------------------------------------


def test_a_folder_of_pickles_is_refused_with_the_way_out(tmp_path, capsys):
    pickled(tmp_path / "msrvtt_train.pkl", [MSRVTT])
    for source in (("c2kd", "--dataset", "msrvtt"), ("rudder",), ("youcook2",)):
        said = fails(capsys, tmp_path, *([source[0]]), *source[1:])
        assert "msrvtt_train.pkl: a pickle is a program" in said
        assert "recipes/convert_c2kd.py" in said


def test_in_test_the_one_caption_is_asked_with(tmp_path):
    row = {"id": "video7", "captions": {"en": ["A.", "B."]}, "eval_captions": {"en": ["A."]}}
    converted(tmp_path, "test", row)
    converted(tmp_path, "train", {**row, "id": "video8"})
    assert command("c2kd", tmp_path, "--dataset", "msrvtt") == 1  # not 1,000
    assert {i: len(item.captions) for i, item in items(tmp_path).items()} == {
        "video7": 1, "video8": 2}  # fmt: skip


def test_chinese_of_vatex_is_peoples_and_linked_to_nothing(tmp_path):
    row = {"id": "v_000000_000010", "captions": {"en": ["A."], "zh": ["船", "红船"]}}
    converted(tmp_path, "train", row)
    assert command("c2kd", tmp_path, "--dataset", "vatex") == 0
    captions = items(tmp_path)["v_000000_000010"].captions
    assert [(c.origin, c.of) for c in captions] == [("human", None)] * 3


def test_peoples_captions_are_paired_by_their_place_when_asked_for(tmp_path, capsys):
    row = {"id": "v_000000_000010", "captions": {"en": ["A.", "B."], "zh": ["船", "红船"]}}
    converted(tmp_path, "train", row)
    command("c2kd", tmp_path, "--dataset", "vatex", "--pair")
    captions = items(tmp_path)["v_000000_000010"].captions
    assert [(c.lang, c.origin, c.of) for c in captions] == [
        ("en", "human", None), ("en", "human", None),
        ("zh", "human", "v_000000_000010#en.0"), ("zh", "human", "v_000000_000010#en.1"),
    ]  # fmt: skip


def test_gaps_of_rudder_stay_gaps_and_are_counted(tmp_path):
    converted(tmp_path, "test", {"id": "r1", "captions": {"en": ["A."], "hi": ["नाव"]}},
              {"id": "r2", "captions": {"en": ["B."], "hi": None, "mr": ""}})  # fmt: skip
    assert command("rudder", tmp_path) == 0
    found = items(tmp_path)
    assert [[c.lang for c in item.captions] for item in found.values()] == [["en", "hi"], ["en"]]
    left = told(tmp_path)["left_out"]
    assert left["captions in hi that a video doesn't have"]["count"] == 1
    command("rudder", tmp_path, "--origin", "mt")
    assert items(tmp_path)["r1"].captions[1].of == "r1#en.0"


def test_translations_more_or_fewer_than_english_are_named(tmp_path, capsys):
    row = {"id": "video7", "captions": {"en": ["A.", "B."], "de": ["Ah."]}}
    file = converted(tmp_path, "train", row)
    said = fails(capsys, tmp_path, "c2kd", "--dataset", "msrvtt")
    assert f"{file}:1: 1 captions in de, 2 in en" in said


def test_broken_rows_are_named(tmp_path, capsys):
    good = {"id": "a", "captions": {"en": ["A."]}}
    for bad, word in (
        (good, "id 'a' is also at line 1"), ({"id": 7, "captions": {}}, "'id' must be text"),
        ({"id": "b"}, "'captions'"), ({"id": "b", "captions": {"en": [1]}}, "list of texts"),
        ({"id": "b", "captions": {"german": ["x"]}}, "german"),
    ):  # fmt: skip
        file = converted(tmp_path, "train", good, bad)
        said = fails(capsys, tmp_path, "c2kd", "--dataset", "msrvtt")
        assert f"{file}:2" in said
        assert word in said
    put(file, json.dumps(good) + "\n{")
    assert f"{file}:2: not JSON" in fails(capsys, tmp_path, "c2kd", "--dataset", "msrvtt")
    put(file, json.dumps(good) + "\n")
    said = fails(capsys, tmp_path, "c2kd", "--dataset", "msrvtt", "--langs", "de")
    assert "no captions in 'de', only in en" in said
