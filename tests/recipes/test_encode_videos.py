"""recipes/encode.py on videos: the encoder's own features of each frame, on any number of processes."""

import json
from fractions import Fraction

import numpy as np
import pytest
import tiny
import torch
import yaml

from xlcm.config import ConfigError, build
from xlcm.data.dataset import ManifestDataset
from xlcm.data.features import FeatureStore
from xlcm.data.manifest import DataError, ManifestWriter
from xlcm.data.video import FrameSampling
from xlcm.registry import image_encoders
from xlcm.types import Item, Visual

av = pytest.importorskip("av")
IMAGE = {"name": "timm", "backbone": "test_vit", "image_size": 32}
FRAMES = {"how": "fps", "fps": 5, "most": 6}
LENGTHS = (3, 10, 1, 25, 8)  # frames, at 10 a second


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A manifest of five videos of different lengths, and two that can't be read."""
    folder = tmp_path_factory.mktemp("videos")
    random = np.random.default_rng(0)
    for number, length in enumerate(LENGTHS):
        with av.open(str(folder / f"{number}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=10)
            stream.width = stream.height = 64
            stream.pix_fmt = "yuv420p"
            for i in range(length):
                colour = random.integers(0, 255, (1, 1, 3), dtype=np.uint8)
                pixels = np.ascontiguousarray(np.broadcast_to(colour, (64, 64, 3)))
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = i, Fraction(1, 10)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    (folder / "empty.mp4").write_bytes(b"")
    for name, files in (("whole", []), ("faulty", ["empty.mp4", "gone.mp4"])):
        with ManifestWriter(folder / f"{name}.jsonl") as writer:
            for file in [*files, *(f"{n}.mp4" for n in range(len(LENGTHS)))]:
                writer.write(Item(file.removesuffix(".mp4"), "train", (), video=file))
    return folder


def config(videos, folder, **changes):
    spec = {
        "image": IMAGE, "manifest": str(videos / "whole.jsonl"), "output": str(folder / "store"),
        "batch_size": 12, "workers": 0, "shard_items": 2, "kind": "tokens", "frames": FRAMES,
        **changes,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "encode.yaml").write_text(yaml.safe_dump(spec))
    return str(folder / "encode.yaml")


def encode(path):
    tiny.forget_processes()
    return tiny.recipe("encode.py").main(path)


def encode_in_pool(path):
    tiny.join_pool()
    return tiny.recipe("encode.py").main(path)


def own(videos):
    """Return the encoder's features of the frames, video by video."""
    torch.manual_seed(0)
    encoder = build(image_encoders, IMAGE).eval()
    data = ManifestDataset(path=str(videos / "whole.jsonl"), split="train")
    found = {}
    for i in range(len(data)):
        frames = data.load_frames(i, FrameSampling(**FRAMES))
        with torch.no_grad():
            pixels = torch.stack([encoder.transform(frame) for frame in frames])
            found[data[i].id] = encoder(Visual(pixels)).pooled
    return found


def close(store, expected):
    assert sorted(store.keys()) == sorted(expected)
    for key, value in expected.items():
        torch.testing.assert_close(store[key], value, rtol=1e-3, atol=1e-3)


def test_a_store_has_one_vector_a_frame_as_many_as_the_video_is_long(videos, tmp_path, capsys):
    assert encode(config(videos, tmp_path)) == 0
    store = FeatureStore(tmp_path / "store")
    assert {key: len(store[key]) for key in store.keys()} == {  # noqa: SIM118
        "0": 2, "1": 5, "2": 1, "3": 6, "4": 4,
    }  # fmt: skip
    close(store, own(videos))
    assert store.encoder["frames"]["fps"] == 5
    assert "5 videos are in" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"another folder or delete this one"):
        encode(config(videos, tmp_path, frames={**FRAMES, "fps": 1}))


def test_pooled_videos_are_the_mean_of_their_frames(videos, tmp_path):
    assert encode(config(videos, tmp_path, kind="pooled")) == 0
    close(FeatureStore(tmp_path / "store"), {k: v.mean(dim=0) for k, v in own(videos).items()})


def test_two_processes_encode_videos_as_one(videos, tmp_path, processes):
    found = processes.run(2, encode_in_pool, config(videos, tmp_path))
    assert found == [0, 0]
    close(FeatureStore(tmp_path / "store"), own(videos))


def test_videos_without_frames_and_those_that_are_gone_are_counted_and_listed(videos, tmp_path):
    faulty = {"manifest": str(videos / "faulty.jsonl")}
    with pytest.raises(DataError, match=r"faulty\.jsonl:1: video 'empty\.mp4': empty \(0 bytes\)"):
        encode(config(videos, tmp_path / "a", **faulty))
    skip = {**faulty, "on_error": "skip", "max_skipped": 0.5}
    assert encode(config(videos, tmp_path / "b", **skip)) == 0
    close(FeatureStore(tmp_path / "b" / "store"), own(videos))
    lines = (tmp_path / "b" / "store" / "skipped.jsonl").read_text().splitlines()
    listed = [(row["item"], row["kind"]) for row in map(json.loads, lines)]
    assert listed == [("empty", "video_empty"), ("gone", "video_missing")]
    with pytest.raises(DataError, match=r"2 of 7 items can't be read"):
        encode(config(videos, tmp_path / "c", **{**skip, "max_skipped": 0.1}))


def test_frames_that_can_not_be_decoded_are_counted_and_told(videos, tmp_path, capsys, monkeypatch):
    def damaged(self, index, sampling):
        frames = load(self, index, sampling)
        frames.damaged = {"1": 2, "4": 1}.get(self[index].id, 0)
        return frames

    load = ManifestDataset.load_frames
    monkeypatch.setattr(ManifestDataset, "load_frames", damaged)
    assert encode(config(videos, tmp_path)) == 0
    said = capsys.readouterr().out
    assert "3 frame(s) of 2 video(s) can't be decoded whole" in said
    assert "stands in their place: 1, 4" in said


def test_frames_are_refused_where_they_mean_nothing(videos, tmp_path):
    with pytest.raises(ConfigError, match=r"`tokens` \(one vector each\) or `pooled`"):
        encode(config(videos, tmp_path, kind="views", views=2))
    scenes = [{"name": "scenes", "split": "train", "size": 4}]
    with pytest.raises(ConfigError, match="only manifests have"):
        encode(config(videos, tmp_path, manifest=None, data=scenes))
