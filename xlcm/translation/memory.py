"""What has been translated so far, on disk: nothing is lost when a run is killed, nothing doubled.

A folder with `engine.json` and files of JSON lines `["en", "de", text, translation]`. Every process
of every start appends to a file of its own, a batch in one write, and reads the files of all the
others. The last line of a file may be torn by a kill; it is left out and its text translated again.
A blank translation is no translation: it isn't kept, and the next run tries its text again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from xlcm.data.manifest import DataError

Key = tuple[str, str, str]
"""Source language, target language, text."""


class Memory:
    """Translations by source language, target language and text.

    Args:
        folder: is made if it is missing.
        engine: what made them; another engine's memory is refused, unless there is nothing in it
            yet: a command may be corrected after a first try that made nothing.
        rank: of this process, from 0.

    Raises:
        DataError: if the folder belongs to another engine, or a file is damaged before its end.
    """

    def __init__(self, folder: str | Path, engine: Mapping[str, Any], rank: int = 0) -> None:
        self.folder, self.rank = Path(folder), rank
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file: Any = None
        self._known: dict[Key, str] = {}
        self._read_to: dict[Path, tuple[int, int]] = {}  # bytes and lines
        self._engine = json.loads(json.dumps(engine))
        self._check(self._engine)
        self.refresh()

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, key: Key) -> bool:
        return key in self._known

    def get(self, key: Key) -> str:
        """Return the translation; "" if there is none."""
        return self._known.get(key, "")

    def _check(self, engine: dict[str, Any]) -> None:
        path = self.folder / "engine.json"
        known: Any = None
        try:
            known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        except ValueError as error:
            if not self._empty():
                raise DataError(f"{path}: damaged ({error}); delete the folder") from error
        if known != engine and self._empty():
            aside = path.with_name(f".engine.{os.getpid()}")
            aside.write_text(json.dumps(engine, ensure_ascii=False) + "\n", encoding="utf-8")
            os.replace(aside, path)
        elif known != engine:
            raise DataError(
                f"{self.folder} holds translations of another engine, {known}, not of {engine}: "
                "name another output or `memory`, or delete this folder"
            )

    def _empty(self) -> bool:
        """Return whether no whole line of a translation is here."""
        return not any(b"\n" in file.read_bytes() for file in self.folder.glob("*.jsonl"))

    def refresh(self) -> None:
        """Read what all processes have added since."""
        for path in sorted(self.folder.glob("*.jsonl")):
            start, lines = self._read_to.get(path, (0, 0))
            with open(path, "rb") as file:
                file.seek(start)
                data = file.read()
            whole = data.rfind(b"\n") + 1  # what follows was torn, or is being written
            rows = data[:whole].splitlines()
            for number, line in enumerate(rows, lines + 1):
                self._learn(path, number, line)
            self._read_to[path] = start + whole, lines + len(rows)

    def _learn(self, path: Path, number: int, line: bytes) -> None:
        try:
            source, target, text, translation = json.loads(line)
        except (ValueError, TypeError) as error:  # no JSON, or no list of four
            raise DataError(
                f"{path}:{number}: damaged ({error}); delete this line: its text is then "
                "translated again"
            ) from error
        if translation:  # older versions kept blank ones
            self._known.setdefault((source, target, text), translation)

    def add(self, source: str, target: str, texts: Sequence[str], made: Iterable[str]) -> None:
        """Keep the translations of a batch that are not blank; then the system has them.

        Raises:
            DataError: if another engine has begun to fill the folder.
        """
        if self._file is None:
            self._check(self._engine)  # another may have taken an empty folder since
            self._file = self._new()
        pairs = zip(texts, made, strict=True)
        rows = [(source, target, text, new) for text, new in pairs if new]
        self._file.write("".join(json.dumps(row) + "\n" for row in rows).encode())  # ASCII
        self._file.flush()
        self._known.update({row[:3]: row[3] for row in rows})

    def _new(self) -> Any:
        number = len(list(self.folder.glob("*.jsonl")))
        while True:
            path = self.folder / f"{number:05d}-{self.rank:03d}.jsonl"
            try:
                return open(path, "xb")
            except FileExistsError:
                number += 1

    def close(self) -> None:
        """Put on disk what the system still holds."""
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None
