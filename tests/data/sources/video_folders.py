"""Invented folders in the layouts of video data sets, and the command on them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from xlcm.cli import main
from xlcm.data.manifest import read_manifest

CLIPS = ["-a_b-c_1_000000_000010", "d_-e_000003_000013", "ffff_000001_000011"]


def put(path: Path, value: object) -> Path:
    """Write text, or JSON in lines that line faults can hit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)
    path.write_text(text, encoding="utf-8")
    return path


def tagged(path: Path, tag: str, rows: dict[str, list[str]], end: str = "") -> Path:
    """Write `<id><end>#<tag>#<n> <text>` lines."""
    lines = [f"{i}{end}#{tag}#{n} {t}\n" for i, own in rows.items() for n, t in enumerate(own)]
    return put(path, "".join(lines))


def command(source: str, root: Path, *words: str) -> int:
    """Run `xlcm data import`; the manifest is `root/out/m.jsonl`."""
    out = str(root / "out" / "m.jsonl")
    return main(["data", "import", source, "--root", str(root), "--out", out, *words])


def items(root: Path):
    """Return the manifest's items by id, in order."""
    return {item.id: item for item in read_manifest(root / "out" / "m.jsonl")}


def told(root: Path) -> dict:
    """Return the report."""
    return json.loads((root / "out" / "m.jsonl.report.json").read_text("utf-8"))


def fails(capsys: pytest.CaptureFixture, root: Path, source: str, *words: str) -> str:
    """Return what the command says when it refuses; nothing may be written."""
    assert command(source, root, *words) == 2
    assert not list(root.glob("out/*"))
    said = capsys.readouterr()
    return said.err + said.out


# -- layouts ------------------------------------------------------------------------------------


def nrccr_videos(root: Path, name: str, clips: list[str]) -> Path:
    """Three splits of a video collection as NRCCR packs it; returns TextData."""
    text = root / "TextData"
    for split, clip in zip(("train", "val", "test"), clips, strict=True):
        chinese, english = {clip: ["船。", "红船。"]}, {clip: ["A boat.", "A red  boat."]}
        if split == "train":
            tagged(text / f"{name}train.caption.txt", "enc", english)
            tagged(text / f"{name}train_google_enc2zh.caption.txt", "enc2zh", chinese)
            tagged(text / f"{name}train_google_enc2zh2enc.caption.txt", "enc2zh2enc", english)
        else:
            tagged(text / f"{name}{split}_zh.caption.txt", "zh", chinese)
            tagged(text / f"{name}{split}_google_zh2enc.caption.txt", "zh2enc", english)
    return text


def vatex(root: Path) -> None:
    """The official files of VATEX."""

    def row(clip: str) -> dict:
        return {"videoID": clip, "enCap": ["A boat.", ""], "chCap": ["船。", "红船。"]}

    put(root / "vatex_training_v1.0.json", [row(CLIPS[0])])
    put(root / "vatex_validation_v1.0.json", [row(CLIPS[1]), row(CLIPS[2])])
    put(root / "val.txt", CLIPS[2] + "\n")
    put(root / "test.txt", CLIPS[1] + "\n")


HALVES = ("--val-ids", "{root}/val.txt", "--test-ids", "{root}/test.txt")


def msrvtt(root: Path) -> None:
    """Five clips of MSR-VTT with two captions each, and a test of one."""
    parts = {"video0": "train", "video1": "train", "video2": "validate", "video3": "test",
             "video4": "test"}  # fmt: skip
    sentences = [
        {"video_id": clip, "caption": f"{clip} is shown, {n}.", "sen_id": 2 * i + n}
        for n in range(2) for i, clip in enumerate(parts)
    ]  # fmt: skip
    videos = [{"video_id": clip, "split": part, "url": "-"} for clip, part in parts.items()]
    put(root / "MSRVTT_data.json", {"videos": videos, "sentences": sentences})
    put(root / "MSRVTT_JSFUSION_test.csv",
        'key,vid_key,video_id,sentence\nret0,msr3,video3,"a dog, running"\n')  # fmt: skip


def youcook2(root: Path) -> None:
    """Two videos of YouCook2."""

    def video(subset: str, *segments: tuple[float, float, str]) -> dict:
        rows = [{"id": i, "segment": [a, b], "sentence": s} for i, (a, b, s) in enumerate(segments)]
        return {"subset": subset, "annotations": rows, "duration": 99.0}

    put(root / "youcookii_annotations_trainval.json", {"database": {
        "-xx_y": video("validation", (4, 9, "cut the leek")),
        "zz": video("training", (1, 2.5, "wash rice"), (1, 2.5, "again"), (3, 4, " ")),
    }})  # fmt: skip


def howto100m(root: Path) -> None:
    """Two videos in English, one of them in German."""
    put(root / "how2_en.json", {
        "v_1": {"text": ["cut it", "stir it", ""], "start": [0.5, 3, 7], "end": [2.25, 5, 8]},
        "v-2": {"text": ["hello"], "start": [1], "end": [2]},
    })  # fmt: skip
    put(root / "how2_de.json", {
        "v_1": {"text": ["schneide es", "spät"], "start": [0.5, 9], "end": [2.25, 10]},
    })  # fmt: skip


def converted(root: Path, split: str, *rows: dict) -> Path:
    """What recipes/convert_c2kd.py writes."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return put(root / f"{split}.jsonl", text)
