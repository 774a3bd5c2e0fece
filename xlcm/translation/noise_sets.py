"""Real machine translation beside what people wrote: which files belong together."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from xlcm.data.manifest import DataError

XTD10 = {
    "de": ("MIC/test_1kcaptions_de", "deu_Latn"), "fr": ("MIC/test_1kcaptions_fr", "fra_Latn"),
    "es": ("XTD10/test_1kcaptions_es", "spa_Latn"), "it": ("XTD10/test_1kcaptions_it", "ita_Latn"),
    "pl": ("XTD10/test_1kcaptions_pl", "pol_Latn"), "ru": ("XTD10/test_1kcaptions_ru", "rus_Cyrl"),
    "tr": ("XTD10/test_1kcaptions_tr", "tur_Latn"), "ko": ("XTD10/test_1kcaptions_ko", "kor_Hang"),
    "zh": ("XTD10/test_1kcaptions_zh", "zho_Hans"),
}  # fmt: skip
"""Language -> (people's translation, NLLB's), of the same English lines."""


@dataclass(frozen=True)
class Comparison:
    """Translations and references of the same sources, line by line, all that there are.

    Where a picture has several captions, all first ones come first, then all second ones.
    """

    lang: str
    engine: str
    name: str
    translations: list[str]
    references: list[str]
    parallel: bool = True  # the references translate the same sentences


def comparisons(root: str | Path) -> Iterator[Comparison]:
    """Yield all that can be compared in the folder of real data.

    Raises:
        DataError: if a file is missing.
    """
    root = Path(root)
    captions = root / "captions"
    for lang, (reference, made) in XTD10.items():
        yield Comparison(
            lang, "NLLB-200", "XTD10",
            _lines(captions / f"xtd10_mt_nllb/{made}.txt.gz"),
            _lines(captions / f"xtd10/{reference}.txt.gz"),
        )  # fmt: skip
    yield Comparison(
        "ja", "NLLB-200", "XTD10, STAIR",
        _lines(captions / "xtd10_mt_nllb/jpn_Jpan.txt.gz"),
        _lines(captions / "xtd10/STAIR/test_1kcaptions_jp.txt.gz"), parallel=False,
    )  # fmt: skip
    photos = root / "photos/captions"
    people = _table(photos / "zh.human_translation.tsv.gz")
    for engine in ("baidu", "google"):
        machine = _table(photos / f"zh.mt_{engine}.tsv.gz")
        keys = sorted((key for key in people if key in machine), key=lambda key: int(key[1]))
        yield Comparison(
            "zh", f"{engine.title()}, 2016", "Flickr8k test",
            [machine[key] for key in keys], [people[key] for key in keys],
        )  # fmt: skip
    english = captions / "iglue/xFlickrCO"
    for lang in ("de", "es", "id", "ja", "ru", "tr", "zh"):
        written = _sentences(english / "annotations/en/test.jsonl.gz")
        made_of = _sentences(english / f"annotations_machine-translate/{lang}/test_gmt.jsonl.gz")
        keys2 = [key for key in written if key in made_of]
        yield Comparison(
            "en", "Google, 2021", f"xFlickr&CO, from {lang}",
            [made_of[key] for key in keys2], [written[key] for key in keys2], parallel=False,
        )  # fmt: skip


def _open(path: Path) -> str:
    if not path.is_file():
        raise DataError(f"{path} is missing; the first argument is the folder that has captions/ "
                        "and photos/")  # fmt: skip
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
        return file.read()


def _lines(path: Path) -> list[str]:
    return _open(path).removesuffix("\n").split("\n")


def _table(path: Path) -> dict[tuple[str, str], str]:
    rows = csv.reader(_lines(path)[1:], delimiter="\t", quoting=csv.QUOTE_NONE)
    return {(row[0], row[1]): row[2] for row in rows}


def _sentences(path: Path) -> dict[str, str]:
    rows = [json.loads(line) for line in _lines(path)]
    return {str(row["id"]): row["sentences"][0] for row in rows}
