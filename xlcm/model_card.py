"""The README.md of a saved model, written from what is known of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from xlcm.encoders.text_spec import innermost
from xlcm.registry import image_encoders

if TYPE_CHECKING:
    from xlcm.encoders.base import ImageEncoder

DIRECTIONS = {
    "text_to_image": "text → image",
    "image_to_text": "image → text",
    "text_to_video": "text → video",
    "video_to_text": "video → text",
}
RECALLS = (("r1", "R@1"), ("r5", "R@5"), ("r10", "R@10"))


def write_card(
    file: Path, title: str, config: Mapping[str, Any], report: Mapping[str, Any] | None
) -> None:
    """Write the model card.

    Args:
        file: where to.
        title: its heading.
        config: as `config.json` of the model's folder.
        report: as `report.json` of an evaluation, where there was one.
    """
    parts = [
        _front_matter(title, config, report),
        f"# {title}\n",
        "Finds images from text, and text from images, across languages: a dual encoder trained "
        "with [xlcm](https://pypi.org/project/xlcm/).\n",
        _facts(config),
        _use(title, config),
        _results(report),
        _limits(config, report),
    ]
    file.write_text("\n".join(parts), encoding="utf-8")


def _front_matter(title: str, config: Mapping[str, Any], report: Mapping[str, Any] | None) -> str:
    # the hub knows main languages alone: zh-Hant is zh to it
    languages = sorted({code.partition("-")[0].lower() for code in config["languages"]})
    matter: dict[str, Any] = {
        "library_name": "xlcm",
        "pipeline_tag": "feature-extraction",
        "tags": ["image-text-retrieval", "cross-lingual", "multilingual", "xlcm"],
    }
    if languages:
        matter["language"] = languages
    if config["about"].get("licence"):
        matter["license"] = config["about"]["licence"]
    if report is not None and report.get("results"):
        matter["model-index"] = [{"name": title, "results": _index(report)}]
    return f"---\n{yaml.safe_dump(matter, sort_keys=False, allow_unicode=True)}---\n"


def _index(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "task": {"type": "image-text-retrieval", "name": _direction(r)},
            "dataset": {
                "name": f"{report.get('dataset', 'unnamed')} ({r['lang']})",
                "type": str(report.get("dataset", "unnamed")),
                "split": str(report.get("split", "test")),
            },
            "metrics": [
                {"type": name, "name": label, "value": r[name]}
                for name, label in RECALLS
                if r.get(name) is not None
            ],
        }
        for r in report["results"]
    ]


def _direction(result: Mapping[str, Any]) -> str:
    return DIRECTIONS.get(result["direction"], str(result["direction"]))


def _facts(config: Mapping[str, Any]) -> str:
    spec, about = config["model"], config["about"]
    image, text = spec["image"], spec["text"]
    tokens = innermost(text)["tokenizer"]["max_tokens"]
    rows = {
        "Languages": ", ".join(config["languages"]) or "not stated",
        "Training data": about.get("data", "not stated"),
        "Method": about.get("method", "not stated"),
        "Image tower": _tower(image),
        "Text tower": f"{_tower(text)}, at most {tokens} tokens",
        "Embedding": f"{spec['width']} numbers, L2-normalised; compare by cosine",
        **{k.capitalize(): v for k, v in about.items() if k not in ("data", "method")},
        "Written by": f"xlcm {config['xlcm_version']}",
    }
    lines = [f"| {key} | {_cell(value)} |" for key, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines, ""])


def _tower(spec: Mapping[str, Any]) -> str:
    what = spec.get("backbone") or (spec.get("architecture") or {}).get("model_type")
    details = [str(what)] if what else []
    if spec.get("width"):
        details.append(f"width {spec['width']}")
    if "encoder" in spec:
        details.append(f"on {_tower(spec['encoder'])}")
    return f"`{spec['name']}`" + (f" ({', '.join(details)})" if details else "")


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return " ".join(text.replace("|", "\\|").split())


def _use(title: str, config: Mapping[str, Any]) -> str:
    encoder: type[ImageEncoder] = image_encoders.get(config["model"]["image"]["name"])
    reads_features = encoder.reads_features
    encode = (
        "images = model.encode_features(features)  # of the encoder named under Training data"
        if reads_features
        else 'images = model.encode_image(["one.jpg", "two.jpg"])'
    )
    return f"""## Use

```python
from xlcm import DualEncoder

model = DualEncoder.from_pretrained("{title}")  # this folder, or owner/{title} on the hub
{encode}
texts = model.encode_text(["ein roter Kreis", "一个红色的圆"])
print(model.similarity(texts, images))
```
"""


def _results(report: Mapping[str, Any] | None) -> str:
    if report is None or not report.get("results"):
        return "## Results\n\nNot evaluated.\n"
    head = ["lang", "direction", "queries", "gallery", *(label for _, label in RECALLS), "median"]
    lines = [
        "## Results\n",
        f"On `{report.get('dataset', 'unnamed')}`, split `{report.get('split', '?')}`: recall in "
        "percent, in brackets the 95 % bootstrap interval over queries.\n",
        f"| {' | '.join(head)} |",
        "|" + "---|" * len(head),
        *(_row(r) for r in report["results"]),
        "",
    ]
    if report.get("sum_r"):
        sums = ", ".join(f"{lang} {value:.1f}" for lang, value in report["sum_r"].items())
        lines.append(f"Sum of the six recalls (SumR): {sums}.\n")
    return "\n".join(lines)


def _row(result: Mapping[str, Any]) -> str:
    intervals = result.get("ci95") or {}
    cells = [
        str(result["lang"]),
        _direction(result),
        str(result.get("queries", "")),
        str(result.get("gallery", "")),
    ]
    for name, _ in RECALLS:
        low_high = intervals.get(name)
        shown = "" if result.get(name) is None else f"{result[name]:.1f}"
        cells.append(shown + (f" [{low_high[0]:.1f}, {low_high[1]:.1f}]" if low_high else ""))
    median = result.get("median_rank")
    cells.append("" if median is None else f"{median:g}")
    return f"| {' | '.join(cells)} |"


def _limits(config: Mapping[str, Any], report: Mapping[str, Any] | None) -> str:
    measured = sorted({r["lang"] for r in (report or {}).get("results", ())})
    unmeasured = [code for code in config["languages"] if code not in measured]
    lines = [
        "## Limits\n",
        "- Text beyond the stated number of tokens is cut.",
        "- In languages that training did not see, expect little.",
        "- The model repeats what its captions and pictures say about people and places; "
        "whoever uses it for decisions about people must check that first.",
    ]
    if unmeasured and measured:
        lines.insert(2, f"- Trained on but not measured: {', '.join(unmeasured)}.")
    return "\n".join([*lines, ""])
