"""Looks at pictures and videos, in this process or in several, which then need not load torch."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import TypeAlias

from xlcm.data.images import decode
from xlcm.data.manifest import DataError

VideoTask: TypeAlias = "tuple[str, str, tuple[float, float] | None]"


@dataclass(frozen=True)
class Look:
    """What one look at a picture found.

    Args:
        kind: of the fault or warning; None: all is well.
        message: in words.
        content: digest of the file's bytes, where asked for.
    """

    kind: str | None = None
    message: str = ""
    content: str | None = None


def look_at(task: tuple[str, str, bool]) -> Look:
    """Decode one picture.

    Args:
        task: the path, its name in messages, whether to digest its bytes.
    """
    path, name, digest = task
    content = None
    try:
        if not digest:
            note = decode(Path(path), name=name)[1]
        else:
            data = Path(path).read_bytes()
            content = hashlib.blake2b(data, digest_size=12).hexdigest()
            note = decode(data, name=name)[1]
    except FileNotFoundError:
        return Look("image_missing", f"image {name!r}: no such file")
    except DataError as error:
        return Look(error.kind, str(error), content)
    kind = "image_converted" if note else None
    return Look(kind, f"image {name!r}: {note}" if note else "", content)


def look_closely(task: tuple[str, str, bool]) -> Look:
    """Decode one picture as `look_at` does, then as training does, which may complain."""
    look = look_at(task)
    if look.kind in (None, "image_converted"):
        said = decoder_says(Path(task[0]).read_bytes())
        if said:
            return replace(look, kind="image_damaged", message=f"image {task[1]!r}: {said}")
    return look


def look_at_video(task: VideoTask) -> Look:
    """Read the times of all frames of a video, and decode the one in the middle.

    Args:
        task: the path, its name in messages, the segment that is meant.
    """
    from xlcm.data.video import FrameSampling, load_frames

    path, name, segment = task
    try:
        load_frames(path, FrameSampling(count=1), segment=segment, name=name)
    except DataError as error:
        return Look(error.kind, str(error))
    return Look()


def decoder_says(data: bytes) -> str:
    """Return what the JPEG decoder of training complains of while it decodes a picture; often "".

    It is libjpeg, which knows no names and writes to the process's standard error: what others
    write there meanwhile is taken for its words.

    Args:
        data: the file.
    """
    if data[:2] != b"\xff\xd8":
        return ""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    with tempfile.TemporaryFile() as heard:
        before = os.dup(2)
        os.dup2(heard.fileno(), 2)
        try:
            decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8),
                        mode=ImageReadMode.RGB)  # fmt: skip
        except RuntimeError:  # refused: Pillow decodes it in training too
            pass
        finally:
            os.dup2(before, 2)
            os.close(before)
        heard.seek(0)
        return "; ".join(dict.fromkeys(heard.read().decode("utf-8", "replace").splitlines()))


class Looker:
    """Looks at many pictures and videos, in this process or in several."""

    def __init__(self, pool: ProcessPoolExecutor | None, closely: bool = False) -> None:
        self._pool, self._closely = pool, closely

    def __call__(self, tasks: list[tuple[str, str, bool]]) -> Iterable[Look]:
        """Return one look a task, in order."""
        look = look_closely if self._closely else look_at
        if self._pool is None:
            return map(look, tasks)
        return self._pool.map(look, tasks, chunksize=32)

    def videos(self, tasks: list[VideoTask]) -> Iterable[Look]:
        """Return one look a video, in order.

        Raises:
            DataError: if there are some, and PyAV is not installed.
        """
        if tasks and find_spec("av") is None:
            raise DataError("videos are opened by PyAV: pip install 'xlcm[video]'; or leave out "
                            "pictures and videos with --no-images")  # fmt: skip
        if self._pool is None:
            return map(look_at_video, tasks)
        return self._pool.map(look_at_video, tasks)


@contextmanager
def looker(workers: int, *, closely: bool = False) -> Iterator[Looker]:
    """Give a `Looker` whose processes end with the block.

    Args:
        workers: processes; at most 1: this one does it.
        closely: listen to the decoder of training too; always in a process of its own.
    """
    if workers <= 1 and not closely:
        yield Looker(None)
        return
    # spawned, because a fork of a process whose torch has threads can hang
    with ProcessPoolExecutor(max(workers, 1), mp_context=get_context("spawn")) as pool:
        yield Looker(pool, closely)
