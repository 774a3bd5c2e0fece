"""Invented folders in the exact layout of image-text sets, and their import."""

from __future__ import annotations

import argparse
import bz2
import json
from pathlib import Path
from types import ModuleType
from typing import Any

from xlcm.data.manifest import read_manifest
from xlcm.types import Item

TRAIN, REST, VAL, TEST = (
    "COCO_train2014_000000000011", "COCO_val2014_000000000022",
    "COCO_val2014_000000000033", "COCO_val2014_000000000044",
)  # fmt: skip
SPLITS = {TRAIN: "train", REST: "restval", VAL: "val", TEST: "test"}
XTD_LANGS = ("es", "it", "ko", "pl", "ru", "tr", "zh")


def imported(
    module: ModuleType, root: Path, *options: str, out: Path | None = None
) -> tuple[int, dict[str, Item], dict[str, Any]]:
    """Return exit code, items by id, and the report of an import."""
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    out = out or root.parent / "out" / "m.jsonl"
    code = module.run(parser.parse_args(["--root", str(root), "--out", str(out), *options]))
    items = list(read_manifest(out))
    assert len({item.id for item in items}) == len(items)
    report = json.loads(Path(f"{out}.report.json").read_text())
    return code, {item.id: item for item in items}, report


def texts(item: Item, lang: str, origin: str = "human") -> list[str]:
    return [c.text for c in item.captions if (c.lang, c.origin) == (lang, origin)]


def number(identity: str) -> int:
    return int(identity[-12:])


def write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    write(path, [json.dumps(row, ensure_ascii=False) for row in rows])


def karpathy(root: Path, name: str = "coco") -> Path:
    """Four pictures; the first has six captions."""
    images = []
    for i, (identity, split) in enumerate(SPLITS.items()):
        folder = "train2014" if "train" in identity else "val2014"
        raw = [f"A dog {k} in {identity[-2:]}, né." for k in range(6 if i == 0 else 5)]
        images.append({
            "filepath": folder, "filename": f"{identity}.jpg", "imgid": i,
            "cocoid": number(identity), "split": split, "sentids": [],
            "sentences": [{"tokens": t.split(), "raw": t, "imgid": i} for t in raw],
        })  # fmt: skip
    path = root / f"dataset_{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {"dataset": name, "images": images}
    path.write_text(json.dumps(data, ensure_ascii=False, indent=1), encoding="utf-8")
    return path


def coco_cn(root: Path) -> None:
    write(root / "coco-cn_train.txt", [TRAIN, REST])
    write(root / "coco-cn_val.txt", [VAL])
    write(root / "coco-cn_test.txt", [TEST])
    written = [f"{i}#0\t一只狗{n}" for n, i in enumerate((TRAIN, REST, VAL, TEST))]
    write(root / "imageid.human-written-caption.txt", [*written, f"{TEST}#1\t两只狗"])
    write(root / "imageid.manually-translated-caption.txt",
          [f"{TEST}#{n}\t翻译{n}" for n in range(5)])  # fmt: skip


def extension(root: Path) -> None:
    write(root / "data/coco-cn_ext.icap2020.txt",
          [f"{TRAIN}#0\t一只猫", f"{TRAIN}#1\t两只猫", f"{TEST}#0\t三只猫"])  # fmt: skip


def stair(root: Path) -> None:
    for part, ids in (("train", [TRAIN]), ("val", [REST, VAL, TEST])):
        data = {
            "images": [{"id": number(i), "file_name": f"{i}.jpg"} for i in ids],
            "annotations": [
                {"id": 10 * number(i) + k, "image_id": number(i), "caption": f"犬{k}"}
                for k in range(5)
                for i in ids
            ],
        }
        path = root / f"stair_captions_v1.2_{part}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data, ensure_ascii=False, indent=1), encoding="utf-8")


def xtd10(root: Path) -> None:
    ids = (TRAIN, TEST)
    write(root / "XTD10/test_image_names.txt", [f"{i}.jpg" for i in ids])
    for lang in ("en", *XTD_LANGS):
        write(root / f"XTD10/test_1kcaptions_{lang}.txt", [f"{lang} é {i}" for i in ids])
    for lang in ("de", "fr"):
        write(root / f"MIC/test_1kcaptions_{lang}.txt", [f"{lang} {i}" for i in ids])
    write(root / "STAIR/test_1kcaptions_jp.txt", [f"犬 {i}" for i in ids])


def xflickrco(root: Path) -> None:
    def rows(word: str, each: int = 1) -> list[dict[str, Any]]:
        return [
            {"sentences": [f"{word} é {k}" for k in range(each)], "id": "36979",
             "img_path": "36979.jpg"},
            {"sentences": [f"{word} {k}" for k in range(each)], "id": 44,
             "img_path": f"{TEST}.jpg"},
        ]  # fmt: skip

    flickr = root / "flickr30k"
    for lang in ("de", "en", "es", "id", "ja", "ru", "tr", "zh"):
        here = root / "xFlickrCO"
        jsonl(here / f"annotations/{lang}/test.jsonl", rows(lang))
        if lang == "en":
            continue
        jsonl(here / f"annotations_machine-translate/{lang}/test_gmt.jsonl", rows(f"from {lang}"))
        taught = [{"sentences": [f"{lang} t"], "id": "77", "img_path": "77.jpg"}]
        jsonl(here / f"annotations/{lang}/train_1.jsonl", taught)
        valid = {"sentences": [f"{lang} v", "dog 1"], "id": "88", "img_path": "88.jpg"}
        jsonl(flickr / f"annotations_machine-translate/valid-{lang}_gmt.jsonl", [valid])
    valid = {"sentences": ["dog 0", "dog 1"], "id": "88", "img_path": "88.jpg"}
    jsonl(flickr / "annotations/valid_ann.jsonl", [valid])
    train = {"sentences": ["cat 0", "cat 1"], "id": "77", "img_path": "77.jpg"}
    jsonl(flickr / "annotations/train_ann.jsonl", [train])


def wit(root: Path) -> None:
    def row(lang: str, ix: str, text: str, name: str) -> dict[str, Any]:
        return {"image_url": f"https://up.example.org/a/{name}", "language": lang, "wit_ix": ix,
                "caption_reference_description": text, "page_url": "https://x"}  # fmt: skip

    here = root / "wit/annotations"
    jsonl(here / "val_en.jsonl", [row("en", "wit_1", "a tower, né", "T%C3%BCrm.JPG")])
    for lang in ("ar", "bg", "da", "el", "en", "et", "id", "ja", "ko", "tr", "vi"):
        rows = [row(lang, "wit-test_3", f"{lang} é 0", "b.jpg"),
                row(lang, "wit-test_3", f"{lang} 1", "b.jpg")]  # fmt: skip
        jsonl(here / f"test_{lang}.jsonl", rows)
        if lang != "en":
            rows = [{**r, "caption_reference_description": f"from {lang} {n}"}
                    for n, r in enumerate(rows)]  # fmt: skip
            jsonl(root / f"wit/annotations_machine-translate/test_{lang}_gmt.jsonl", rows)


def crossmodal3600(root: Path) -> None:
    rows = [
        {"image/key": key, "image/locale": "de",
         "en": {"caption": ["a boat, né", "the boat"], "caption/tokenized": []},
         "quz": {"caption": [f"wampu {key}"]}}
        for key in ("0a", "0b")
    ]  # fmt: skip
    jsonl(root / "captions.jsonl", rows)


def translations(root: Path, name: str = "coco") -> None:
    """German and Chinese of two pictures (coco) or rows (cc3m) a file; the languages in turn."""
    karpathy(root)
    for file, ids in (("train", (11, 22)), ("dev", (33,))):
        rows = []
        for lang in ("de", "zh"):
            for i in ids:
                key = {"image_id": f"{i}_1"} if name == "coco" else {"rec_num": i}
                rows.append({
                    **key, "src_lang": "en", "trg_lang": lang, "caption_tokenized": f"dog é {i}",
                    "translation_tokenized": f"{lang} {i}",
                    "backtranslation_tokenized": f"back {lang} {i}",
                })  # fmt: skip
        path = root / f"{name}_mt_{file}.jsonl.bz2"
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path.write_bytes(bz2.compress(data.encode()))
