import errno
import logging
import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from xlcm.data.scenes import Scenes
from xlcm.data.scenes.cache import CHECK, CHUNK, PictureCache, default_folder


def scenes(folder, **options) -> Scenes:
    return Scenes(**{"size": 40, "cache": str(folder), **options})


def pictures(dataset: Scenes) -> list[bytes]:
    return [dataset.load_image(i).tobytes() for i in range(len(dataset))]


@pytest.fixture(scope="module")
def drawn() -> list[bytes]:
    return pictures(Scenes(size=40, cache=None))


def no_drawing(*_: object) -> None:
    raise AssertionError("drawn although it is in the cache")


def test_second_pass_reads_what_the_first_has_drawn(tmp_path, drawn, monkeypatch):
    assert pictures(scenes(tmp_path)) == drawn
    monkeypatch.setattr(Scenes, "_draw", no_drawing)
    assert pictures(scenes(tmp_path)) == drawn
    others = {"captions": 4, "noise_rate": 0.3, "target_langs": ["ja"], "size": 30}
    assert pictures(scenes(tmp_path, **others)) == drawn[:30]


def test_split_seed_and_size_have_pictures_of_their_own(tmp_path, drawn):
    pictures(scenes(tmp_path))
    for options in ({"split": "test"}, {"seed": 1}, {"image_size": 32}):
        found = pictures(scenes(tmp_path, **options))
        assert found == pictures(Scenes(size=40, cache=None, **options))
        assert found != drawn


@pytest.mark.parametrize("damage", ["half a picture", "no checksum", "file cut short", "foreign"])
def test_interrupted_fill_is_drawn_again_and_repaired(tmp_path, drawn, damage, monkeypatch):
    pictures(scenes(tmp_path))
    (file,) = tmp_path.rglob("*.npy")
    width = 64 * 64 * 3 + CHECK
    start = file.stat().st_size - CHUNK * width
    with file.open("r+b") as data:
        if damage == "half a picture":
            data.seek(start + 7 * width + width // 2)
            data.write(bytes(width // 2 - CHECK))
        elif damage == "no checksum":
            data.seek(start + 8 * width - CHECK)
            data.write(bytes(CHECK))
        elif damage == "file cut short":
            data.truncate(start + 9 * width + 100)
        else:
            data.write(b"<!DOCTYPE html>")
    assert pictures(scenes(tmp_path)) == drawn
    monkeypatch.setattr(Scenes, "_draw", no_drawing)
    assert pictures(scenes(tmp_path)) == drawn
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [file.name]


def _fill(folder: str, order: list[int], seen: "multiprocessing.Queue[bool]", start) -> None:
    dataset, clean = Scenes(size=300, cache=folder), Scenes(size=300, cache=None)
    start.wait()
    seen.put(all(dataset.load_image(i).tobytes() == clean.load_image(i).tobytes() for i in order))


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="needs to fork processes"
)
def test_processes_that_fill_at_once_read_only_whole_pictures(tmp_path, monkeypatch):
    context = multiprocessing.get_context("fork")
    seen, start = context.Queue(), context.Barrier(3)
    orders = [list(range(300)), list(range(299, -1, -1)), list(range(0, 300, 2))]
    workers = [
        context.Process(target=_fill, args=(str(tmp_path), order, seen, start)) for order in orders
    ]
    for worker in workers:
        worker.start()
    assert [seen.get(timeout=60) for _ in workers] == [True] * 3
    for worker in workers:
        worker.join()
    clean = Scenes(size=300, cache=None)
    expected = pictures(clean)
    monkeypatch.setattr(Scenes, "_draw", no_drawing)
    assert pictures(Scenes(size=300, cache=str(tmp_path))) == expected


def test_folder_that_can_not_be_written_costs_one_warning_and_no_picture(tmp_path, drawn, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with caplog.at_level(logging.WARNING):
        assert pictures(scenes(blocked)) == drawn
    assert [str(blocked) in record.getMessage() for record in caplog.records] == [True]


def test_full_disk_costs_one_warning_and_no_picture(tmp_path, drawn, caplog, monkeypatch):
    dataset = scenes(tmp_path)
    dataset.load_image(0)
    real = Path.open

    def full(self: Path, mode: str = "r", *rest: object, **more: object) -> object:
        if mode == "r+b":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, mode, *rest, **more)

    monkeypatch.setattr(Path, "open", full)
    with caplog.at_level(logging.WARNING):
        assert pictures(dataset) == drawn
    (message,) = [record.getMessage() for record in caplog.records]
    assert str(tmp_path) in message
    assert "No space left" in message
    assert "XLCM_CACHE" in message


def test_default_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("XLCM_CACHE", str(tmp_path))
    assert default_folder() == tmp_path / "scenes"
    Scenes(size=2).load_image(1)
    assert len(list((tmp_path / "scenes").rglob("train-0-00000.npy"))) == 1
    monkeypatch.delenv("XLCM_CACHE")
    assert default_folder() == Path.home() / ".cache" / "xlcm" / "scenes"


def test_rows_that_were_never_written_are_not_pictures(tmp_path):
    cache = PictureCache(tmp_path, "train-0", 32)
    assert cache.get(5) is None
    picture = np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3)
    cache.put(5, picture)
    found = cache.get(5)
    assert found is not None
    assert np.array_equal(found, picture)
    assert cache.get(6) is None
    assert cache.get(CHUNK + 5) is None


def test_file_that_another_process_made_in_the_meantime_is_kept(tmp_path, monkeypatch):
    first, second = (PictureCache(tmp_path, "train-0", 32) for _ in range(2))
    picture = np.full((32, 32, 3), 7, np.uint8)
    real = PictureCache._open

    def overtaken(self: PictureCache, chunk: int) -> object:
        found = real(self, chunk)
        if self is second and found is None:
            first.put(0, picture)  # just after the second has seen that there is no file
        return found

    monkeypatch.setattr(PictureCache, "_open", overtaken)
    second.put(1, picture)
    assert first.get(0) is not None
    assert first.get(1) is not None
    assert second.get(0) is not None
