"""From a dataset to tar shards: `xlcm data shard`."""

from __future__ import annotations

import fcntl
import io
import json
import math
import os
import shutil
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from xlcm.data.dataset import ManifestDataset
from xlcm.data.manifest import DataError
from xlcm.data.seen import Seen
from xlcm.data.shard_parts import Part, item_parts
from xlcm.data.shard_relevant import lost_answers, told
from xlcm.data.shards import INDEX
from xlcm.data.sources.hf import ReadError
from xlcm.data.tar_index import tar_index

VERSION = 1
PROGRESS, LOCK = "progress.json", "lock"  # of a folder that is not finished


@dataclass
class Written:
    """What `write_shards` has done.

    Args:
        folder: of the shards.
        items: in each shard.
        skipped: messages of items that were left out.
        lacking: sentences about captions, and right answers of them, that written items lack.
    """

    folder: Path
    items: list[int] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)


def write_shards(
    dataset: ManifestDataset,
    out: str | Path,
    *,
    shards: int | None = None,
    shard_items: int = 1000,
    seed: int | None = 0,
    images: bool = True,
    check: bool = True,
    skip: bool = False,
    on_item: Callable[[], None] = lambda: None,
) -> Written:
    """Write a split as tar shards, aside first; the folder is there when all of it is.

    The same dataset and options give the same bytes, also where a killed writing is gone on with:
    behind its last whole shard.

    Args:
        dataset: with its pictures, and features if it has a store.
        out: the new folder.
        shards: how many; None: as many as `shard_items` asks for. They differ by one item at most.
        shard_items: most items a shard, where `shards` is None.
        seed: items are shuffled by it, since training mixes only shards that are open together;
            None: in the manifest's order.
        images: write the pictures; False: captions and features only.
        check: decode each picture before it is written.
        skip: leave out and name items whose picture or features can't be had, also among the
            right answers (`relevant`) of captions; False: stop there.
        on_item: called for each item that is done.

    Raises:
        DataError: if the folder exists, there are fewer items than shards, or an item is bad.
    """
    count = len(dataset)
    number = shards or math.ceil(count / shard_items)
    if count < number:
        raise DataError(f"{dataset.name}: {count} items do not fill {number} shards; "
                        f"--shards {count} at most")  # fmt: skip
    order = np.arange(count) if seed is None else np.random.default_rng(seed).permutation(count)
    lost = lost_answers(dataset, images=images, check=check, skip=skip)
    about = [_source(dataset), number, seed, images, check, skip, *sorted(lost)]
    with ShardWriter(out, dataset.split, about=about) as writer:
        for shard, chosen in enumerate(np.array_split(order, number)):
            whole = shard < (writer.kept or 0)
            if not whole:
                writer.begin()
            for index in chosen.tolist():
                if not whole:
                    writer.add(item_parts(dataset, index, images, check, lost), skip=skip)
                on_item()
            if not whole:
                writer.keep(shard + 1)
    return Written(writer.folder, writer.items, writer.skipped, told(lost))


def _source(dataset: ManifestDataset) -> list[Any]:
    """Return what tells a dataset from others, and from itself after a change."""
    store = dataset.store.folder if dataset.store is not None else None
    stamps = [
        (str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns)
        for path in (Path(dataset.manifest.path), store)
        if path is not None
    ]
    langs = None if dataset.langs is None else sorted(dataset.langs)
    return [stamps, dataset.split, langs, str(dataset.image_root.resolve())]


class ShardWriter:
    """Writes tar shards into a folder aside, which gets its name when all of it is there.

    Use it as `with ShardWriter(folder, "train") as writer:`, and `begin` each shard.

    Args:
        folder: the new folder.
        split: of all items.
        about: what is written, as plain data. With it, what was written before a kill or a fault
            of the source stays aside up to the last `keep`, and who writes the same goes on.
        numbered: whether ids are mere numbers of rows, which mean nothing elsewhere.

    Attributes:
        items: in each shard.
        skipped: messages of items that were left out.
        kept: what the last `keep` was given, where an earlier writing goes on; None otherwise.

    Raises:
        DataError: if the folder exists, another process writes it, or something else was begun; at
            the end, if no item was written.
    """

    def __init__(
        self, folder: str | Path, split: str, *, about: Any = None, numbered: bool = False
    ) -> None:
        self.folder = Path(folder)
        self.split = split
        self.items: list[int] = []
        self.skipped: list[str] = []
        self.kept: Any = None
        self._numbered = {"numbered": True} if numbered else {}
        self._about = json.loads(json.dumps(about))
        self._tar: tarfile.TarFile | None = None

    def __enter__(self) -> ShardWriter:
        self._refuse_finished()
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        ending = os.getpid() if self._about is None else "part"
        self._aside = self.folder.with_name(f".{self.folder.name}.{ending}")
        if self._about is None:  # of a killed process that had the same number
            shutil.rmtree(self._aside, ignore_errors=True)
        self._aside.mkdir(exist_ok=self._about is not None)
        if self._about is not None:
            self._own()
            self._go_on()
        return self

    def _own(self) -> None:
        """Lock what lies aside."""
        self._lock = open(self._aside / LOCK, "ab")  # noqa: SIM115 -- held while it is written
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise DataError(f"{self.folder}: another process is writing it") from error
        if self.folder.exists():  # by now
            self._lock.close()
            shutil.rmtree(self._aside, ignore_errors=True)
            self._refuse_finished()

    def _refuse_finished(self) -> None:
        if self.folder.exists():
            if (self.folder / INDEX).is_file():
                self._tidy()  # a kill may have come between the last two steps
            raise DataError(f"{self.folder} is there already; give another --out, or remove it")

    def _tidy(self) -> None:
        for file in (PROGRESS, LOCK):
            (self.folder / file).unlink(missing_ok=True)

    def _go_on(self) -> None:
        """Take up what lies aside; a shard that is no longer known as whole is written again."""
        known = self._aside / PROGRESS
        if known.is_file():
            before = json.loads(known.read_text(encoding="utf-8"))
            if before["about"] != self._about:
                self._lock.close()
                raise DataError(f"{self._aside}: an interrupted writing of other data, or with "
                                "other options; remove it, or give another --out")  # fmt: skip
            self.items, self.skipped = before["items"], before["skipped"]
            self.kept = before["kept"]
        for file in self._aside.glob("*.tar"):
            if file.name not in map(_file, range(len(self.items))):
                file.unlink()

    def ids(self) -> Seen:
        """Return the ids of the items that are written."""
        seen = Seen()
        for file in map(self._aside.joinpath, map(_file, range(len(self.items)))):
            index = tar_index(file, remember=False)
            with open(file, "rb") as tar:
                for number in range(len(index)):
                    if place := index.place(number, "json"):
                        tar.seek(place.offset)
                        seen.add(json.loads(tar.read(place.size))["id"])
        return seen

    def begin(self) -> None:
        """End the shard that is open and begin the next one."""
        self._end()
        path = self._aside / _file(len(self.items))
        self._tar = tarfile.open(path, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        self.items.append(0)

    def add(self, parts: Iterable[Part], *, skip: bool = False) -> None:
        """Write the files of one item.

        Args:
            parts: its files; they may raise while they are taken.
            skip: note an item that can't be had, and go on.

        Raises:
            DataError: of `parts`, unless it is to be skipped.
        """
        assert self._tar is not None, "begin a shard first"
        try:
            whole = list(parts)
        except DataError as error:
            if not skip:
                raise
            self.skipped.append(str(error))
            return
        key = f"{sum(self.items):09d}"
        for ending, data in whole:
            member = tarfile.TarInfo(f"{key}.{ending}")
            member.size = len(data)
            self._tar.addfile(member, io.BytesIO(data))
        self.items[-1] += 1

    def keep(self, kept: Any) -> None:
        """End the shard that is open; a later writing goes on behind it, and is given `kept`."""
        self._end()
        known = {"about": self._about, "items": self.items, "skipped": self.skipped, "kept": kept}
        aside = self._aside / f"{PROGRESS}.new"
        aside.write_text(json.dumps(known), encoding="utf-8")
        _sync(aside)
        os.replace(aside, self._aside / PROGRESS)

    def _end(self) -> None:
        if self._tar is not None:
            self._tar.close()
            self._tar = None
            _sync(self._aside / _file(len(self.items) - 1))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # bad input would stop it again; anything else is worth a second try
        worth = not isinstance(error, DataError) or isinstance(error, ReadError)
        try:
            self._end()
            if kind is None:
                self._finish()
        except DataError:
            worth = False
            raise
        finally:
            if not worth or self._about is None:
                shutil.rmtree(self._aside, ignore_errors=True)
            if self._about is not None:
                self._lock.close()

    def _finish(self) -> None:
        if not sum(self.items):
            first = f"; the first: {self.skipped[0]}" if self.skipped else ""
            raise DataError(f"{self.folder}: no item can be written{first}")
        listed = [{"file": _file(n), "items": items} for n, items in enumerate(self.items)]
        known = {"version": VERSION, "split": self.split, "items": sum(self.items)}
        text = json.dumps({**known, **self._numbered, "shards": listed}, indent=1) + "\n"
        (self._aside / INDEX).write_text(text, encoding="utf-8")
        _sync(self._aside / INDEX)
        os.rename(self._aside, self.folder)
        self._tidy()  # last: until the folder has its name, they are the place to go on from


def _sync(path: Path) -> None:
    """Wait until a file is on the disk: what is noted as whole must be whole after a power cut."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _file(number: int) -> str:
    return f"{number:06d}.tar"
