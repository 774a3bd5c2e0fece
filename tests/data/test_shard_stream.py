"""A Hugging Face data set streamed into shards, without a network: Parquet files in a folder."""

import io
import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from xlcm.cli import main
from xlcm.data.hf_rows import files_of, open_builder, stream_of
from xlcm.data.manifest import DataError
from xlcm.data.shard_stream import write_stream
from xlcm.data.shard_writer import ShardWriter
from xlcm.data.shards import Shards
from xlcm.data.sources.columns import ROW, Layout, TextColumn

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
    assert "7 items of train in 3 shards, 0 left out" in said
    assert [len(Shards(path=str(tmp_path / "out"))[n].captions) for n in range(3)] == [2, 1, 1]


def test_pictures_outside_the_rows_are_refused(source, tmp_path, capsys):
    folder = source()
    arguments = ["data", "shard-hf", str(folder), "--out", str(tmp_path / "out"), "--captions",
                 "en=english"]  # fmt: skip
    assert main([*arguments, "--image", "german"]) != 0
    assert "--picture-data" in "".join(capsys.readouterr())


def test_rows_are_called_by_a_column_of_ids_and_two_of_one_id_are_refused(source, tmp_path, capsys):
    folder = source()
    assert command(folder, tmp_path / "out", "--id", "german") == 0
    found = Shards(path=str(tmp_path / "out"))
    assert [found[n].id for n in (0, 6)] == ["ein Bild mit 0 Punkten", "ein Bild mit 6 Punkten"]
    rows = datasets.Dataset.from_dict({"name": ["a", "b", "c", "a"], "english": ["x"] * 4})
    rows.to_parquet(tmp_path / "twice" / "train.parquet")
    layout = Layout((TextColumn("english", "en"),), "name")
    builder = open_builder(str(tmp_path / "twice"))

    def write(on_item=lambda: None):
        write_stream(stream_of(builder, "twice", "train"), tmp_path / "none", layout, name="twice",
                     split="train", shard_items=2, about="twice", on_item=on_item)  # fmt: skip

    with pytest.raises(DataError, match=r"train row 4: an earlier row has the id 'a' too"):
        write()
    left = iter(range(2))
    with pytest.raises(StopIteration):  # behind the first shard
        write(lambda: next(left))
    assert (tmp_path / ".none.part" / "000000.tar").is_file()
    with pytest.raises(DataError, match=r"train row 4: an earlier row has the id 'a' too"):
        write()


def test_long_work_is_told(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("xlcm.data.progress.FILE_S", 0.0)
    assert command(source(), tmp_path / "out") == 0
    assert "hf, train: 7 rows" in capsys.readouterr().err


def test_a_wrong_column_or_split_is_named(source, tmp_path, capsys):
    folder = source()
    assert command(folder, tmp_path / "out", "--lang-column", "tongue") != 0
    assert "no column 'tongue'" in "".join(capsys.readouterr())
    assert command(folder, tmp_path / "out", "--take", "tests") != 0
    assert "tests" in "".join(capsys.readouterr())
    assert not list(tmp_path.glob("*out*"))


# -- interrupted ---------------------------------------------------------------------------------

WRITES = """
import os, signal, sys
import datasets  # before the forks
from xlcm.data.hf_rows import files_of, open_builder, stream_of
from xlcm.data.shard_stream import write_stream
from xlcm.data.sources.columns import ROW, Layout, TextColumn

folder, out, *kills = sys.argv[1:]
layout = Layout((TextColumn("english", "en"), TextColumn("german", "de")), ROW, picture="picture")
for kill in kills:
    left = int(kill)
    def on_item():
        global left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
    if not os.fork():
        builder = open_builder(folder)
        write_stream(stream_of(builder, folder, "train"), out, layout, name=folder, split="train",
                     shard_items=2, skip=True, about=files_of(builder, "train"), on_item=on_item)
        os._exit(0)
    os.wait()
"""


def killed(folder, out, *after):
    """Write, and kill it after so many rows each time."""
    words = [sys.executable, "-c", WRITES, str(folder), str(out), *map(str, after)]
    subprocess.run(words, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def written(folder, out):
    """Write what `killed` writes, to the end."""
    layout = Layout((TextColumn("english", "en"), TextColumn("german", "de")), ROW,
                    picture="picture")  # fmt: skip
    builder = open_builder(str(folder))
    write_stream(
        stream_of(builder, str(folder), "train"), out, layout, name=str(folder), split="train",
        shard_items=2, skip=True, about=files_of(builder, "train"),
    )  # fmt: skip
    return {file.name: file.read_bytes() for file in sorted(out.iterdir())}


def test_a_killed_stream_goes_on_without_a_lost_or_doubled_row(source, tmp_path):
    folder = source(spoil=True, silent=(1, 5))
    # in the first shard, right behind one, and twice in one
    killed(folder, tmp_path / "cut", 1, 2, 2, 4, 1)
    assert not (tmp_path / "cut").exists()
    left = json.loads((tmp_path / ".cut.part" / "progress.json").read_text())
    assert left["kept"]["rows"] == 5
    assert left["kept"]["counts"] == {"captions without text": 1}
    assert written(folder, tmp_path / "cut") == written(folder, tmp_path / "whole")
    assert len(Shards(path=str(tmp_path / "cut"))) == 6
    assert not list(tmp_path.glob(".cut*"))


def test_an_interrupted_writing_goes_on_with_nothing_else_and_in_one_process(
    source, tmp_path, capsys
):
    folder = source()
    writer = ShardWriter(tmp_path / "out", "train", about="something else")
    with writer:
        writer.begin()
        writer.add([("json", b"{}")])
        writer.keep(None)
        assert command(folder, tmp_path / "out") != 0
        assert "another process is writing it" in "".join(capsys.readouterr()).replace("\n", " ")
        writer.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
        assert command(folder, tmp_path / "out") != 0
        assert "interrupted writing of other data" in "".join(capsys.readouterr()).replace(
            "\n", " "
        )
    assert (tmp_path / "out" / "000000.tar").is_file()


AT_EACH_LINE = """
import os, sys
from pathlib import Path
from xlcm.data import shard_writer

def write(out, noted):
    with shard_writer.ShardWriter(out, "train", about="rows") as writer:
        done = writer.kept or 0
        for row in range(done, 2):
            writer.begin()
            writer.add([("json", str(row).encode())])
            if not row:
                writer.keep(1)
                os.write(noted, b".")
    return done

def dies_at(line):
    def trace(frame, event, argument):
        nonlocal line
        if frame.f_code.co_filename != shard_writer.__file__:
            return None
        if event == "line":
            line -= 1
            if not line:
                os._exit(1)
        return trace
    return trace

def content(out):
    return {file.name: file.read_bytes() for file in Path(out).iterdir()}

here = Path(sys.argv[1])
write(here / "whole", os.open(here / "none", os.O_CREAT | os.O_WRONLY))
line, status, finished = 0, 1, 0
while status:
    line += 1
    out, noted = here / f"{line}", os.open(here / f"noted{line}", os.O_CREAT | os.O_RDWR)
    child = os.fork()
    if not child:
        sys.settrace(dies_at(line))
        write(out, noted)
        sys.settrace(None)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    kept = os.fstat(noted).st_size
    if out.exists():
        finished += 1
        try:
            write(out, noted)
            raise SystemExit("a finished folder was written again")
        except shard_writer.DataError as error:
            assert "is there already" in str(error)
    else:
        went_on = write(out, noted)
        assert went_on >= kept, f"line {line}: {kept} rows were kept, but it began at {went_on}"
    assert content(out) == content(here / "whole"), f"line {line}: {[*content(out)]}"
    assert not (here / f".{out.name}.part").exists()
print(line, finished)
"""


def test_a_writing_goes_on_from_its_last_place_wherever_it_was_killed(tmp_path):
    """The process ends before each single line of the writer, in turn."""
    words = [sys.executable, "-c", AT_EACH_LINE, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines, finished = map(int, done.stdout.split())
    assert lines > 60
    assert finished > 3  # between the new name and the end


def test_a_full_disk_at_the_end_costs_nothing_that_was_kept(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left on device")

    def write_one():
        with ShardWriter(tmp_path / "out", "train", about="rows") as writer:
            writer.begin()
            writer.add([("json", b"{}")])
            writer.keep(1)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", full)
        with pytest.raises(OSError, match="no space"):
            write_one()
    with ShardWriter(tmp_path / "out", "train", about="rows") as writer:
        assert writer.kept == 1
    assert [file.name for file in sorted((tmp_path / "out").iterdir())] == [
        "000000.tar",
        "shards.json",
    ]


def test_a_shard_is_on_the_disk_before_it_is_noted_as_whole(tmp_path, monkeypatch):
    on_disk = []
    monkeypatch.setattr(os, "fsync", lambda file: on_disk.append(os.fstat(file)[:]))
    move, moved = os.replace, []

    def replace(source, target):
        tar = os.stat(tmp_path / ".out.part" / "000000.tar")[:]
        moved.append({tar, os.stat(source)[:]} <= {*on_disk})
        move(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with ShardWriter(tmp_path / "out", "train", about="rows") as writer:
        writer.begin()
        writer.add([("json", b"{}")])
        writer.keep(None)
    assert moved == [True]


def test_a_file_that_breaks_off_names_the_row_and_keeps_what_is_written(source, tmp_path, capsys):
    folder = source()
    file = folder / "train-00001-of-00002.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[:200])
    os.utime(file, (1, 1))
    assert command(folder, tmp_path / "out") != 0
    assert "behind row 4: `datasets` can't read on" in "".join(capsys.readouterr()).replace(
        "\n", " "
    )
    assert (tmp_path / ".out.part" / "000000.tar").is_file()
    file.write_bytes(whole)
    os.utime(file, (1, 1))
    assert command(folder, tmp_path / "out") == 0
    assert len(Shards(path=str(tmp_path / "out"))) == 7
