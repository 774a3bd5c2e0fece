"""The frames that were written are those that are read, or the message says why not."""

import numpy as np
import pytest
from PIL import Image
from tiny_videos import SIZE, numbers, write

from xlcm.data import video
from xlcm.data.dataset import ManifestDataset
from xlcm.data.manifest import DataError, ManifestWriter
from xlcm.data.video import FrameSampling, load_frames
from xlcm.types import Item

av = pytest.importorskip("av")


@pytest.mark.parametrize("codec", ["libx264", "ffv1"])
@pytest.mark.parametrize("gop", [1, 12, 100])
def test_uniform_frames_are_the_middles_of_equal_parts(tmp_path, codec, gop):
    path = write(tmp_path / "v.mkv", 60, codec=codec, gop=gop)
    assert numbers(load_frames(path, FrameSampling(count=4))) == [7, 22, 37, 52]
    assert numbers(load_frames(path, FrameSampling(count=1))) == [30]
    assert numbers(load_frames(path, FrameSampling(count=100))) == list(range(60))


def test_far_frames_are_reached_by_seeking(tmp_path):
    path = write(tmp_path / "v.mkv", 60, rate=1, gop=5)  # a minute
    assert numbers(load_frames(path, FrameSampling(count=3))) == [10, 30, 50]


def test_frames_by_the_second_are_as_many_as_the_video_is_long(tmp_path):
    path = write(tmp_path / "v.mp4", 45, rate=10)
    by_second = FrameSampling(how="fps", fps=1)
    assert numbers(load_frames(path, by_second)) == [0, 10, 20, 30, 40]
    assert numbers(load_frames(path, FrameSampling(how="fps", fps=2, most=3))) == [5, 20, 35]
    assert numbers(load_frames(path, FrameSampling(how="fps", fps=1000))) == list(range(45))
    assert numbers(load_frames(write(tmp_path / "s.mp4", 3), by_second)) == [0]


def test_a_second_is_a_second_where_the_frame_rate_changes(tmp_path):
    times = [*range(10), *range(10, 60, 10)]  # ten frames in the first second, then one each
    path = write(tmp_path / "v.mkv", 15, times=times)
    assert numbers(load_frames(path, FrameSampling(how="fps"))) == [0, 10, 11, 12, 13, 14]


def test_a_video_that_begins_late_is_read_from_its_first_frame(tmp_path):
    path = write(tmp_path / "v.mkv", 20, start=50)
    assert numbers(load_frames(path, FrameSampling(how="fps"))) == [0, 10]


def test_a_segment_gives_the_frames_that_are_shown_in_it_and_no_others(tmp_path):
    path = write(tmp_path / "v.mp4", 60, gop=12)  # six seconds
    every, two = FrameSampling(how="fps", fps=10), FrameSampling(count=2)
    assert numbers(load_frames(path, every, segment=(1, 2))) == list(range(10, 20))
    assert numbers(load_frames(path, every, segment=(2, 2.5))) == list(range(20, 25))
    assert numbers(load_frames(path, two, segment=(1, 3))) == [15, 25]
    assert numbers(load_frames(path, two, segment=(3.32, 3.38))) == [33]  # on screen all the while
    assert numbers(load_frames(path, every, segment=(5, 6.5))) == list(range(50, 60))


def test_the_times_of_frames_are_read_once_for_segments_in_a_row_and_anew_if_the_file_changed(
    tmp_path, monkeypatch
):
    read = []
    real = video._stamps
    monkeypatch.setattr(video, "_stamps", lambda *given: read.append(given[1]) or real(*given))
    path, other = write(tmp_path / "v.mp4", 20), write(tmp_path / "w.mp4", 20)
    every = FrameSampling(how="fps", fps=10)
    assert numbers(load_frames(path, every, segment=(0, 0.5))) == list(range(5))
    assert numbers(load_frames(path, every, segment=(0.5, 1))) == list(range(5, 10))
    load_frames(other, every)
    assert read == [path, other]
    write(other, 12)
    assert numbers(load_frames(other, every)) == list(range(12))
    assert read == [path, other, other]


def test_a_segment_that_the_video_is_too_short_for_is_named(tmp_path):
    path = write(tmp_path / "v.mp4", 20)
    with pytest.raises(
        DataError, match=r"last frame is at 1\.9 s, and the segment goes from 1 to 5"
    ):
        load_frames(path, FrameSampling(), segment=(1, 5))


def test_one_frame_is_a_video(tmp_path):
    path = write(tmp_path / "v.mp4", 1)
    for sampling in (FrameSampling(), FrameSampling(how="fps")):
        assert numbers(load_frames(path, sampling)) == [0]


def test_a_clip_that_was_cut_without_encoding_gives_the_frames_that_are_shown(tmp_path):
    """Its first key frame lies before the clip: what comes before is stored and never shown."""
    with (
        av.open(str(write(tmp_path / "v.mp4", 60, gop=60))) as source,
        av.open(str(tmp_path / "clip.mp4"), "w", options={"avoid_negative_ts": "disabled"}) as clip,
    ):
        read = source.streams.video[0]
        written = clip.add_stream_from_template(read)
        start = int(2.05 / read.time_base)
        for packet in source.demux(read):
            if packet.size:
                packet.pts, packet.dts = packet.pts - start, packet.dts - start
                packet.stream = written
                clip.mux(packet)
    every = FrameSampling(how="fps", fps=10)
    assert numbers(load_frames(tmp_path / "clip.mp4", every)) == list(range(21, 60))


@pytest.mark.parametrize(
    ("matrix", "bright"),
    [
        ((0, 1, -1, 0), (0, slice(None))),  # a quarter turn to the right: left comes on top
        ((-1, 0, 0, -1), (slice(None), -1)),
        ((0, -1, 1, 0), (-1, slice(None))),
    ],
)
def test_a_video_is_turned_as_the_phone_was_held(tmp_path, matrix, bright):
    path = tmp_path / "v.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "yuv420p"
        pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
        pixels[:, : SIZE // 2] = 200
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44  # a, b, u, c, d, v, ... in 16.16
    for place, value in zip((0, 1, 3, 4), matrix):
        data[at + 4 * place : at + 4 * place + 4] = (value << 16).to_bytes(4, "big", signed=True)
    path.write_bytes(data)
    shown = np.asarray(load_frames(path, FrameSampling())[0]).mean(axis=2)
    assert shown[bright].min() > 150
    assert shown.mean() < 120


def said(path, kind):
    with pytest.raises(DataError) as raised:
        load_frames(path, FrameSampling(), name="clip")
    assert str(raised.value).startswith("video 'clip': ")
    assert raised.value.kind == kind
    return str(raised.value)


def test_files_that_are_no_whole_videos_are_told_apart(tmp_path):
    assert "no such file" in said(tmp_path / "gone.mp4", "video_missing")
    (tmp_path / "empty.mp4").write_bytes(b"")
    assert "empty (0 bytes)" in said(tmp_path / "empty.mp4", "video_empty")
    (tmp_path / "page.mp4").write_text("<html>refused</html>" * 40)
    assert "can't be decoded" in said(tmp_path / "page.mp4", "video_undecodable")
    whole = write(tmp_path / "v.mp4", 60).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    assert "can't be decoded" in said(tmp_path / "cut.mp4", "video_undecodable")


def test_an_mp4_whose_index_comes_first_is_told_to_be_cut_short(tmp_path):
    path = tmp_path / "v.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        random = np.random.default_rng(0)
        for _ in range(40):
            noise = random.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
        container.mux(stream.encode(None))
    whole = path.read_bytes()
    assert len(load_frames(path, FrameSampling())) == 12
    path.write_bytes(whole[: len(whole) // 2])
    message = said(path, "video_undecodable")
    assert "cut short: " in message or "can't be decoded" in message


def test_whatever_byte_is_damaged_there_are_frames_or_a_message(tmp_path):
    random = np.random.default_rng(0)
    read = told = 0
    for name in ("v.mp4", "v.mkv"):
        whole = np.frombuffer(write(tmp_path / name, 20).read_bytes(), dtype=np.uint8)
        for number in range(30):
            damaged = whole.copy()
            places = random.integers(0, len(whole), (1, 10, 200)[number % 3])
            damaged[places] = random.integers(0, 256, len(places))
            (tmp_path / name).write_bytes(damaged.tobytes())
            try:
                read += len(load_frames(tmp_path / name, FrameSampling(count=2))) > 0
            except DataError:
                told += 1
    assert read + told == 60
    assert read > 5
    assert told > 5


def test_frames_that_are_damaged_or_lost_are_counted(tmp_path):
    path = write(tmp_path / "v.mkv", 40, gop=1)
    whole = path.read_bytes()
    assert load_frames(path, FrameSampling(count=40)).damaged == 0
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    lost = packets[17]
    assert whole.count(lost) == 1
    half = len(lost) // 2
    path.write_bytes(whole.replace(lost, lost[:half] + bytes(len(lost) - half)))
    frames = load_frames(path, FrameSampling(count=40))
    assert frames.damaged == 1
    assert [i for i, number in enumerate(numbers(frames)) if i != number] == [17]


def test_a_title_that_is_not_utf8_hides_no_video(tmp_path):
    path = tmp_path / "v.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "a dull title"
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.full((SIZE, SIZE, 3), 2, np.uint8), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    path.write_bytes(path.read_bytes().replace(b"a dull title", b"a d\xfcll title"))
    assert numbers(load_frames(path, FrameSampling())) == [0]


def test_sound_alone_and_a_video_without_frames_are_told(tmp_path):
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = np.zeros((1, 800), dtype=np.int16)
        frame = av.AudioFrame.from_ndarray(sound, format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert "no video in this file" in said(tmp_path / "sound.wav", "video_undecodable")
    with av.open(str(tmp_path / "none.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        container.start_encoding()
    assert "no frames" in said(tmp_path / "none.avi", "video_empty")


def test_a_dataset_loads_the_frames_of_its_videos(tmp_path):
    write(tmp_path / "v.mp4", 30)
    Image.new("RGB", (8, 8)).save(tmp_path / "p.png")
    with ManifestWriter(tmp_path / "m.jsonl") as writer:
        writer.write(Item("a", "test", (), video="v.mp4"))
        writer.write(Item("b", "test", (), video="gone.mp4"))
        writer.write(Item("c", "test", (), image="p.png"))
    data = ManifestDataset(path=str(tmp_path / "m.jsonl"), split="test")
    assert numbers(data.load_frames(0, FrameSampling(count=2))) == [7, 22]
    with pytest.raises(DataError, match=r"m\.jsonl:2: video 'gone\.mp4': no such file in "):
        data.load_frames(1, FrameSampling())
    with pytest.raises(DataError, match=r"m\.jsonl:3: item 'c' has no video"):
        data.load_frames(2, FrameSampling())
