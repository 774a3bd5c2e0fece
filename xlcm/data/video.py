"""Frames of a video file, by PyAV; or an error that says what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, NoReturn

import numpy as np
from PIL import Image
from pydantic import Field

from xlcm.config import Section
from xlcm.data.manifest import DataError

_LOST = 0.05  # share of the promised frames that may be missing: headers are often off by a few


class FrameSampling(Section):
    """Which frames of a video are taken.

    Args:
        how: `uniform`: the middle frame of each of `count` equal parts; `fps`: so many a second,
            from the beginning, as many as the video is long.
        count: frames of `uniform`; a video with fewer frames gives those it has, each once.
        fps: frames a second.
        most: of `fps`; from a video with more, as many are taken evenly over its whole length.
    """

    how: Literal["uniform", "fps"] = "uniform"
    count: Annotated[int, Field(gt=0)] = 12
    fps: Annotated[float, Field(gt=0)] = 1.0
    most: Annotated[int, Field(gt=0)] = 64

    @property
    def longest(self) -> int:
        """Return how many frames a video gives at most."""
        return self.count if self.how == "uniform" else self.most

    def choose(self, times: Sequence[float]) -> list[int]:
        """Return numbers of frames, rising.

        Args:
            times: seconds at which the frames are shown, rising, at least one.
        """
        if self.how == "uniform":
            return _spread(len(times), self.count)
        wanted = np.arange(times[0], times[-1] + 1e-6, 1 / self.fps)
        # the frame that is on screen then: the last one that began before
        shown = np.searchsorted(np.asarray(times), wanted + 1e-6, side="right") - 1
        chosen = list(dict.fromkeys(shown.tolist()))
        return [chosen[i] for i in _spread(len(chosen), self.most)]


def _spread(total: int, count: int) -> list[int]:
    """Return the middles of `count` equal parts of `range(total)`; all of it if it is shorter."""
    if total <= count:
        return list(range(total))
    return [int((i + 0.5) * total / count) for i in range(count)]


class Frames(list[Image.Image]):
    """Frames of a video.

    Attributes:
        damaged: how many of them could not be decoded whole. What is there in their place is the
            decoder's repair, or the next frame that it could decode.
    """

    damaged: int = 0


def load_frames(
    source: str | Path,
    sampling: FrameSampling,
    *,
    segment: tuple[float, float] | None = None,
    name: str | None = None,
) -> Frames:
    """Return frames as upright RGB, in the order in which they are shown; count damaged ones.

    The file is read twice: once without decoding, to know when each frame is shown (whatever the
    frame rate does), and then from the key frame before each one that is wanted. Of segments of one
    file in a row, only the first needs the first reading.

    Args:
        source: the file.
        sampling: which frames.
        segment: start and end in seconds from the first frame: only the frames that are shown
            then are there to choose from. None: all of the video.
        name: what to call it in messages; the path by default.

    Raises:
        DataError: naming the video and the reason: missing, empty, cut short, no video, without
            frames, or damaged; or too short for the segment.
        ImportError: without PyAV.
    """
    av = _av()
    path = Path(source)
    name = name or str(source)
    try:
        status = path.stat()
        if status.st_size == 0:
            _fail(name, "empty (0 bytes)", kind="video_empty")
    except OSError as error:
        _fail(name, "no such file" if isinstance(error, FileNotFoundError) else str(error), error,
              kind="video_missing")  # fmt: skip
    try:
        stamps, seconds = _remembered(av, path, (status.st_size, status.st_mtime_ns), name)
        shown = range(len(seconds)) if segment is None else _shown(seconds, segment, name)
        chosen = sampling.choose([seconds[i] for i in shown])
        wanted = [stamps[shown[i]] for i in chosen]
        return _decode(av, path, wanted, name)
    except DataError:
        raise
    except MemoryError:
        raise
    # beside FFmpegError, broken headers lead to a few types of PyAV's own
    except Exception as error:
        _fail(name, f"can't be decoded: {error or type(error).__name__}; was its download cut "
              "short?", error)  # fmt: skip


def _av() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise ImportError("videos are read by PyAV: pip install 'xlcm[video]'") from error
    return av


def _open(av: ModuleType, path: Path, name: str) -> tuple[Any, Any]:
    # titles in old files are often in Latin-1
    container = av.open(str(path), metadata_errors="replace")
    if not container.streams.video:
        container.close()
        _fail(name, "there is no video in this file")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        container.close()
        _fail(name, "no decoder is known for this video")
    stream.codec_context.thread_count = 1  # workers share the cores already
    return container, stream


_last: tuple[Any, tuple[list[int], list[float]]] | None = None


def _remembered(
    av: ModuleType, path: Path, state: tuple[int, int], name: str
) -> tuple[list[int], list[float]]:
    """Return `_stamps`, of a file that is asked for again without reading it again.

    A manifest's segments of one video follow each other, and may be a hundred.
    """
    global _last
    known = _last  # threads may read several videos at once
    if known is None or known[0] != (path, state):
        known = _last = (path, state), _stamps(av, path, name)
    return known[1]


def _stamps(av: ModuleType, path: Path, name: str) -> tuple[list[int], list[float]]:
    """Return when each frame is shown, in the stream's ticks and in seconds from the first."""
    container, stream = _open(av, path, name)
    with container:
        packets = [p for p in container.demux(stream) if p.size]
        # those before the first shown frame of a clip that was cut out of a video are never shown
        stamps = sorted({p.pts for p in packets if p.pts is not None and not p.is_discard})
        promised, tick = stream.frames, float(stream.time_base)
    if not packets:
        _fail(name, "it has no frames", kind="video_empty")
    if not stamps:
        _fail(name, "its frames have no times; rewrite it by `ffmpeg -i IN -c:v libx264 OUT.mp4`")
    if len(packets) < promised * (1 - _LOST):
        _fail(name, f"cut short: {len(packets)} of {promised} frames are there")
    return stamps, [(stamp - stamps[0]) * tick for stamp in stamps]


def _shown(seconds: list[float], segment: tuple[float, float], name: str) -> range:
    """Return which frames are on screen between start and end, the one that began before too."""
    start, end = segment
    # times of annotators are rounded, and subtitles stand on beyond the last frame: half will do
    if seconds[-1] < (start + end) / 2:
        _fail(name, f"its last frame is at {seconds[-1]:.1f} s, and the segment goes from "
              f"{start:g} to {end:g} s; is it another cut of the video?")  # fmt: skip
    first = int(np.searchsorted(seconds, start + 1e-6, side="right")) - 1
    last = int(np.searchsorted(seconds, end - 1e-6, side="left"))
    return range(max(first, 0), max(last, first + 1))


def _decode(av: ModuleType, path: Path, wanted: list[int], name: str) -> Frames:
    container, stream = _open(av, path, name)
    found = Frames()
    with container:
        gap = 2.0 / float(stream.time_base)  # seeking less far costs more than decoding on
        last: int | None = None
        decoded = container.decode(stream)
        for stamp in wanted:
            if last is None or stamp - last > gap:
                container.seek(stamp, stream=stream)  # to the key frame before
                decoded = container.decode(stream)
            frame = next((f for f in decoded if f.pts is not None and f.pts >= stamp), None)
            if frame is None:
                _fail(name, f"damaged: no frame comes after {len(found)} of {len(wanted)}")
            last = frame.pts
            found.damaged += frame.pts != stamp or bool(frame.is_corrupt)
            found.append(_upright(frame))
    return found


def _upright(frame: Any) -> Image.Image:
    """Return RGB, turned as a phone noted that it was held."""
    image: Image.Image = frame.to_image()
    angle = round(getattr(frame, "rotation", 0) or 0) % 360
    turns = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180,
             270: Image.Transpose.ROTATE_270}  # fmt: skip
    return image.transpose(turns[angle]) if angle in turns else image


def _fail(
    name: str, what: str, cause: BaseException | None = None, *, kind: str = "video_undecodable"
) -> NoReturn:
    raise DataError(f"video {name!r}: {what}", kind=kind) from cause
