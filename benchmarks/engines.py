"""How much faster do other engines and precisions encode, and how far are they from float32?

A text tower as wide as XLM-R base, with 3 of its 12 layers and random weights, and captions of the
benchmark `encoding`; and a ViT-B/16 with random weights on noise, 4 pictures at a time. Every way
reads the same token ids and pixels, so that neither tokenising nor decoding is in the times. Graphs
are those of `xlcm export`; `torch-int8` is torch's own dynamic quantisation of linear layers, which
torch is about to drop and xlcm doesn't offer. Cosines are the smallest of any caption or picture.
Recalls are those of trained models on their test splits, where `runs/` has them: English captions
that find photographs through a small attention tower (`configs/benchmarks/photos_teacher.yaml`).
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.encoding import captions, model_of
from benchmarks.measure import compare, installed, number, ratios
from xlcm.data.dataset import ManifestDataset
from xlcm.encoders.heads import IdentityHead
from xlcm.encoders.image_timm import TimmImageEncoder
from xlcm.evaluation.evaluate import evaluate
from xlcm.evaluation.settings import EvaluationConfig
from xlcm.models.dual_encoder import DualEncoder
from xlcm.models.export import export
from xlcm.models.exported import ExportedModel
from xlcm.models.lengths import CPU_PADDING, CPU_TOKENS, by_length
from xlcm.models.precision import lowered, supported
from xlcm.types import Visual

PEERS = ("onnxruntime", "openvino", "onnx")
TARGETS: dict[str, str] = {
    "onnx-int8, captions": "at least 1.5 x as fast as float32",
    "onnx-int8, change of R@1": "at most 0.5 points",
}
CPU = torch.device("cpu")
EAGER, BF16, COMPILED, INT8 = "float32", "bf16", "compiled", "onnx-int8"
TORCH_INT8 = "torch-int8"
ROUGH = (BF16, INT8, TORCH_INT8)
OFFERED = {
    EAGER: "float32", COMPILED: "`compile: true`", BF16: "`precision: bf16`", "onnx": "`onnx`",
    INT8: "`onnx-int8`", "openvino": "`openvino`",
}  # fmt: skip
ENGINES = {"onnx": "onnxruntime", INT8: "onnxruntime", "openvino": "openvino"}
ROOT = Path(__file__).resolve().parents[1]
TRAINED = ROOT / "runs/benchmarks/photos_teacher/model"
PHOTOS = {
    "path": str(ROOT / "runs/photos/data/human.jsonl"),
    "features": str(ROOT / "runs/photos/features"),
    "split": "test",
}
Way = Callable[[], Tensor]
Model = DualEncoder | ExportedModel


def both_towers(small: bool) -> DualEncoder:
    """Return a model of a text tower and a vision transformer, with random weights."""
    model = model_of(*((1, 64) if small else (3, 768)))
    torch.manual_seed(1)
    backbone = {"backbone": "test_vit", "image_size": 32} if small else {
        "backbone": "vit_base_patch16_224"
    }  # fmt: skip
    image = TimmImageEncoder(**backbone)  # type: ignore[arg-type]
    model.image, model.image_head = image, IdentityHead(image.width, model.width)
    return model.eval()


def text_way(model: Model, batches: list[Any]) -> Way:
    """Return what embeds the batches of captions."""

    def run() -> Tensor:
        with torch.no_grad():
            return torch.cat([model.embed_text(batch) for batch in batches]).float()

    return run


def image_way(model: Model, pixels: Tensor) -> Way:
    """Return what embeds the pictures."""

    def run() -> Tensor:
        with torch.no_grad():
            return model.embed_visual(Visual(pixels)).float()

    return run


def in_bf16(way: Way) -> Way:
    """Return the same in bf16."""

    def run() -> Tensor:
        with lowered(CPU, "bf16"):
            return way()

    return run


def quantised(model: DualEncoder) -> DualEncoder | None:
    """Return the model with int8 weights in linear layers; None where torch can't do that."""
    try:
        from torch.ao.quantization import quantize_dynamic
    except ImportError:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it will be dropped
        found: DualEncoder = quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    return found


def speeds(small: bool) -> dict[str, Any]:
    """Return times and smallest cosines by tower and way."""
    model = both_towers(small)
    side = model.image.transform.size  # type: ignore[union-attr]
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (4, 3, side, side), generator=draw, dtype=torch.uint8)
    tokens = model.text.tokenizer(captions(64 if small else 192))
    batches = [batch for _, batch in by_length(tokens, budget=CPU_TOKENS, padding=CPU_PADDING)]
    text, image = {EAGER: text_way(model, batches)}, {EAGER: image_way(model, pixels)}
    text[BF16], image[BF16] = in_bf16(text[EAGER]), in_bf16(image[EAGER])
    if int8 := quantised(model):
        text[TORCH_INT8], image[TORCH_INT8] = text_way(int8, batches), image_way(int8, pixels)
    slow = () if supported(CPU, "bf16") else (BF16,)
    with tempfile.TemporaryDirectory() as folder:
        for engine, needs in ENGINES.items():
            if installed(needs) and installed("onnx"):
                export(model, Path(folder) / engine, engine=engine)  # type: ignore[arg-type]
                graphs = ExportedModel(Path(folder) / engine)
                text[engine], image[engine] = text_way(graphs, batches), image_way(graphs, pixels)
        if not small:
            compiled = both_towers(small)
            compiled.text.compile(dynamic=True)
            compiled.image.compile()
            text[COMPILED] = text_way(compiled, batches)
            image[COMPILED] = image_way(compiled, pixels)
        out: dict[str, Any] = {}
        for tower, ways in (("captions", text), ("pictures", image)):
            exact = ways[EAGER]()
            cosine = {name: (way() * exact).sum(dim=1).min().item() for name, way in ways.items()}
            wrong = [n for n in cosine if n not in ROUGH and cosine[n] < 0.99999]
            assert not wrong, (wrong, cosine)
            found = compare(ways, rounds=1 if small else 3, memory=False, once=slow)
            out[tower] = {"ways": found, "cosine": cosine}
    return out | {"bf16_instructions": not slow}


def recalls() -> dict[str, Any]:
    """Return R@1 of a trained model by direction and way; nothing where there is none."""
    if not (TRAINED / "config.json").is_file() or not Path(PHOTOS["features"]).is_dir():
        return {}
    dataset = ManifestDataset(**PHOTOS)  # type: ignore[arg-type]
    model = DualEncoder.from_pretrained(TRAINED)
    texts = [c.text for i in range(len(dataset)) for c in dataset[i].captions if c.lang == "en"]
    exact = model.encode_text(texts, progress=False)
    config = EvaluationConfig(langs=["en"], bootstrap=0)
    out: dict[str, Any] = {}

    def judge(name: str, judged: Model, **precision: Any) -> None:
        report = evaluate(
            judged, dataset, config.model_copy(update=precision), progress=False
        ).report
        vectors = judged.encode_text(texts, progress=False, **precision)
        out[name] = {
            "text_to_image": report.result("en").r1,
            "image_to_text": report.result("en", "image_to_text").r1,
            "queries": report.result("en").queries,
            "cosine": (vectors * exact).sum(dim=1).min().item(),
        }

    judge(EAGER, model)
    judge(BF16, model, precision="bf16")
    if int8 := quantised(model):
        judge(TORCH_INT8, int8)
    with tempfile.TemporaryDirectory() as folder:
        for engine, needs in ENGINES.items():
            if installed(needs) and installed("onnx"):
                export(model, Path(folder) / engine, engine=engine)  # type: ignore[arg-type]
                judge(engine, ExportedModel(Path(folder) / engine))
    return out


def measure(*, small: bool) -> dict[str, Any]:
    """Return speeds, cosines and recalls."""
    return {"speed": speeds(small), "recall": {} if small else recalls()}


def table(found: dict[str, Any]) -> str:
    """Return the tables of both towers and of the recalls."""
    lines = []
    for tower in ("captions", "pictures"):
        one = found["speed"][tower]
        by = ratios(one["ways"], EAGER)
        lines += [
            f"| {tower} | CPU ms | wall ms | times as fast as float32 | smallest cosine |",
            "|---|--:|--:|--:|--:|",
        ]
        for name, way in one["ways"].items():
            fast, cosine = 1 / by[name]["cpu"], one["cosine"][name]
            lines.append(
                f"| {name} | {number(way['cpu_ms'])} | {number(way['wall_ms'])} | {fast:.2f} | "
                f"{cosine:.6f} |"
            )
        lines.append("")
    if not found["speed"]["bf16_instructions"]:
        lines += ["This processor has no instructions for bf16, which therefore ran once.", ""]
    if found["recall"]:
        lines += [
            "| trained model | text to image R@1 | change | image to text R@1 | change | "
            "smallest cosine |",
            "|---|--:|--:|--:|--:|--:|",
        ]
        base = found["recall"][EAGER]
        for name, one in found["recall"].items():
            cells = [
                f"{one[way]:.2f} | {one[way] - base[way]:+.2f}"
                for way in ("text_to_image", "image_to_text")
            ]
            lines.append(f"| {name} | {' | '.join(cells)} | {one['cosine']:.6f} |")
    return "\n".join(lines).strip()


def summary(found: dict[str, Any]) -> str:
    """Return what each way that xlcm offers costs and gains, in one table."""
    speed, recall = found["speed"], found["recall"]
    lines = [
        "| way | captions, times as fast | pictures, times as fast | smallest cosine | "
        "text to image R@1 | image to text R@1 |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    faster = {tower: ratios(speed[tower]["ways"], EAGER) for tower in ("captions", "pictures")}
    for name, shown in OFFERED.items():
        times = [f"{1 / by[name]['cpu']:.2f}" if name in by else "" for by in faster.values()]
        cosines = [speed[tower]["cosine"].get(name, 1.0) for tower in ("captions", "pictures")]
        cosines += [recall[name]["cosine"]] if name in recall else []
        cells = [""] * 2
        if name in recall:
            cells = [f"{recall[name][way]:.2f}" for way in ("text_to_image", "image_to_text")]
        if name in speed["captions"]["ways"]:
            lines.append(
                f"| {shown} | {' | '.join(times)} | {min(cosines):.5f} | {' | '.join(cells)} |"
            )
    return "\n".join(lines)


def reached(found: dict[str, Any]) -> dict[str, tuple[str, bool | None]]:
    """Return what was measured for each target, and whether that reaches it."""
    speed, change = TARGETS
    out: dict[str, tuple[str, bool | None]] = {}
    ways = found["speed"]["captions"]["ways"]
    if INT8 in ways:
        times = 1 / ratios(ways, EAGER)[INT8]["cpu"]
        out[speed] = (f"{times:.2f} x", times >= 1.5)
    if INT8 in found["recall"]:
        base, one = found["recall"][EAGER], found["recall"][INT8]
        worst = max(abs(one[way] - base[way]) for way in ("text_to_image", "image_to_text"))
        out[change] = (f"{worst:.2f} points", worst <= 0.5)
    return out
