"""A Hugging Face data set streamed into shards, without a network: Parquet files in a folder."""

import io

import pytest
from PIL import Image

from xlcm.cli import main
from xlcm.data.shards import Shards

datasets = pytest.importorskip("datasets")


def png(number):
    out = io.BytesIO()
    Image.new("RGB", (6, 4), (number, 0, 0)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Seven rows in two files; the fourth picture is none if `spoil` is called."""
    monkeypatch.setenv("XLCM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")

    def write(spoil=False, silent=()):
        rows = {
            "picture": [{"bytes": b"<html>" if spoil and n == 3 else png(n), "path": None}
                        for n in range(7)],
            "english": [f"a picture of {n} dots" for n in range(7)],
            "german": ["" if n in silent else f"ein Bild mit {n} Punkten" for n in range(7)],
        }  # fmt: skip
        features = datasets.Features(
            picture=datasets.Image(), english=datasets.Value("string"),
            german=datasets.Value("string"),
        )  # fmt: skip
        folder = tmp_path / "hf"
        folder.mkdir()
        for number, chosen in enumerate((slice(0, 4), slice(4, 7))):
            part = datasets.Dataset.from_dict(
                {name: values[chosen] for name, values in rows.items()}, features=features
            )
            part.to_parquet(folder / f"train-{number:05d}-of-00002.parquet")
        return folder

    return write


def command(folder, out, *more):
    return main(["data", "shard-hf", str(folder), "--out", str(out), "--shard-items", "3",
                 "--picture-data", "picture", "--captions", "en=english",
                 "de:mt:english=german", *more])  # fmt: skip


def test_rows_of_a_stream_come_back_from_shards_with_pictures_and_translations(source, tmp_path):
    assert command(source(), tmp_path / "out") == 0
    found = Shards(path=str(tmp_path / "out"))
    assert [len(index) for index in found.indices] == [3, 3, 1]
    for number in range(7):
        english, german = found[number].captions
        assert (english.lang, english.text) == ("en", f"a picture of {number} dots")
        assert (german.lang, german.origin, german.of) == ("de", "mt", english.id)
        assert found.load_image(number).getpixel((0, 0)) == (number, 0, 0)


def test_a_row_that_is_no_picture_stops_or_is_named(source, tmp_path, capsys):
    folder = source(spoil=True)
    assert command(folder, tmp_path / "out") != 0
    assert "row 4" in "".join(capsys.readouterr())
    assert not list(tmp_path.glob("*out*"))
    assert command(folder, tmp_path / "out", "--bad-pictures", "drop") == 1
    assert len(Shards(path=str(tmp_path / "out"))) == 6


def test_captions_without_text_are_told_and_not_counted_as_items(source, tmp_path, capsys):
    assert command(source(silent=(1, 2)), tmp_path / "out") == 0
    said = "".join(capsys.readouterr())
    assert "2 captions without text, such as at" in said
    assert "7 items in 3 shards, 0 left out" in said
    assert [len(Shards(path=str(tmp_path / "out"))[n].captions) for n in range(3)] == [2, 1, 1]


def test_pictures_outside_the_rows_and_rows_gathered_into_items_are_refused(
    source, tmp_path, capsys
):
    folder = source()
    arguments = ["data", "shard-hf", str(folder), "--out", str(tmp_path / "out"), "--captions",
                 "en=english"]  # fmt: skip
    assert main([*arguments, "--image", "german"]) != 0
    assert "--picture-data" in "".join(capsys.readouterr())
    assert main([*arguments, "--id", "german", "--picture-data", "picture"]) != 0
    assert "--id @row" in "".join(capsys.readouterr())


def test_a_wrong_column_or_split_is_named(source, tmp_path, capsys):
    folder = source()
    assert command(folder, tmp_path / "out", "--lang-column", "tongue") != 0
    assert "no column 'tongue'" in "".join(capsys.readouterr())
    assert command(folder, tmp_path / "out", "--take", "tests") != 0
    assert "tests" in "".join(capsys.readouterr())
    assert not list(tmp_path.glob("*out*"))
