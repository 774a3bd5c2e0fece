"""Imports that are killed, at every place where something on disk changes."""

import io
import itertools
import json
import os
import signal
from argparse import Namespace
from pathlib import Path

import pytest
from PIL import Image

from xlcm.data.aside import aside
from xlcm.data.manifest import read_manifest
from xlcm.data.sources.base import Plan, run_import
from xlcm.data.sources.pictures import PictureFolder
from xlcm.types import Caption, Item

NOBODY = 2**22  # numbers of processes stay below

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def import_items(out: Path, word: str, count: int = 3) -> int:
    def items():
        for n in range(count):
            yield Item(str(n), "train", (Caption(f"{n}#0", "en", word),), where=f"list.txt:{n}")

    plan = Plan("invented", word, "", "", "", (), items)
    args = Namespace(root=str(out.parent), out=str(out), images=None, against=[],
                     missing_images="error")  # fmt: skip
    return run_import(plan, args)


def left(path: Path, process: int) -> Path:
    """Return where a process of this machine writes a file aside."""
    mine = aside(path)
    return mine.with_name(mine.name.removesuffix(str(os.getpid())) + str(process))


def words(out: Path) -> set[str]:
    return {item.captions[0].text for item in read_manifest(out)}


def killed_at(place: int, when: str, out: Path) -> int:
    """Import in a process that dies at a change on disk; return what ended it."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    count = iter(range(100))

    def deadly(function):
        def call(*args, **more):
            last = next(count) == place
            if last and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            made = function(*args, **more)
            if last:
                os.kill(os.getpid(), signal.SIGKILL)
            return made

        return call

    os.replace, os.fsync, os.unlink = deadly(os.replace), deadly(os.fsync), deadly(os.unlink)
    Path.write_text, Path.unlink = deadly(Path.write_text), deadly(Path.unlink)
    try:
        import_items(out, "new")
    except BaseException:  # nothing of the test may run on in here
        os._exit(1)
    os._exit(0)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_killed_import_leaves_no_report_of_another_manifest(tmp_path, when, capsys):
    found = set()
    for place in itertools.count():
        out = tmp_path / str(place) / "m.jsonl"
        out.parent.mkdir()
        import_items(out, "old")
        ended = killed_at(place, when, out)
        told = Path(f"{out}.report.json")
        title = json.loads(told.read_text())["title"] if told.is_file() else None
        (word,) = words(out)
        found.add((word, title))
        assert len(list(read_manifest(out))) == 3, "whole, the old one or the new one"
        assert import_items(out, "next", 2) == 0
        assert (words(out), json.loads(told.read_text())["title"]) == ({"next"}, "next")
        assert sorted(path.name for path in out.parent.iterdir()) == [
            "m.jsonl", "m.jsonl.report.json",
        ]  # fmt: skip
        if ended == 0:  # every place was met
            break
        assert ended == signal.SIGKILL
    assert place >= 5
    assert {("old", "old"), ("old", None), ("new", None), ("new", "new")} >= found
    assert ("new", None) in found


def test_what_a_running_import_writes_aside_is_left_alone(tmp_path):
    out = tmp_path / "m.jsonl"
    mine, parents, gone = (left(out, n) for n in (os.getpid(), os.getppid(), NOBODY))
    elsewhere = tmp_path / f".m.jsonl.another_{gone.name.rpartition('.')[2]}"
    others = [elsewhere, left(tmp_path / "other.jsonl", NOBODY)]
    others += [tmp_path / name for name in (".m.jsonl.tar", ".m.jsonl.2024")]
    for path in (parents, gone, *others):
        path.write_bytes(b"half")
    import_items(out, "new")
    assert not gone.exists()
    assert not mine.exists()
    assert all(path.exists() for path in (parents, *others))


def test_half_pictures_of_a_killed_import_are_removed_by_the_next_one(tmp_path):
    raw = io.BytesIO()
    Image.new("RGB", (4, 4)).save(raw, "PNG")
    (tmp_path / "sub").mkdir()
    gone, running = (left(tmp_path / "sub" / "b.png", n) for n in (NOBODY, os.getppid()))
    others = [left(tmp_path / "sub" / "notes.txt", NOBODY), tmp_path / "sub" / ".c.png.2"]
    for path in (gone, running, *others):
        path.write_bytes(b"half")
    assert PictureFolder(tmp_path).save("sub/a", raw.getvalue(), "list.txt:1") == "sub/a.png"
    assert sorted(path.name for path in (tmp_path / "sub").iterdir()) == sorted(
        [running.name, *(path.name for path in others), "a.png"]
    )
