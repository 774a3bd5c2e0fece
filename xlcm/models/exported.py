"""An exported model in use: the same `encode_*` as a `DualEncoder`, run by another engine.

ONNX Runtime and OpenVINO compute on the CPU, in float32 or int8, with as many threads as torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xlcm.config import ConfigError, build
from xlcm.encoders.base import ImageEncoder, TextEncoder
from xlcm.encoders.transform import ImageTransform
from xlcm.models import encoding
from xlcm.models.dual_encoder import DualEncoder
from xlcm.models.engines import GRAPHS, Graph, open_graph, require
from xlcm.models.precision import Precision
from xlcm.registry import tokenizers
from xlcm.types import Encoded, TextBatch, Visual

FACTS = "exported.json"
FORMAT = 1  # raised when an older version can no longer read the folder


def is_exported(source: str | Path) -> bool:
    """Whether this is a folder that `xlcm export` wrote."""
    return (Path(source) / FACTS).is_file()


def open_saved(source: str | Path) -> DualEncoder | ExportedModel:
    """Open a saved model, or an export of one, on the CPU.

    Raises:
        ConfigError: if a file is broken or of a newer version, or the engine isn't installed.
        FileNotFoundError: naming the file that is missing.
    """
    try:
        return ExportedModel(source) if is_exported(source) else DualEncoder.from_pretrained(source)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"model {source}: {error}") from error


class ExportedModel(nn.Module):
    """Images and texts as vectors, by the graphs that `xlcm export` wrote; it can't be trained.

    Args:
        folder: that `xlcm export` wrote. A tower's graph is opened when it is first used.

    Attributes:
        image: the image tower, with its `transform`.
        text: the text tower, with its `tokenizer`.
        width: size of the common space.
        languages: BCP 47 codes that training saw.
        engine: that computes.
        device: always the CPU.

    Raises:
        FileNotFoundError: naming the file that is missing.
        ImportError: naming the command that installs the engine.
        ConfigError: if a newer version wrote the folder.
    """

    device = torch.device("cpu")

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        folder = Path(folder)
        facts = _read(folder)
        self.engine: str = facts["engine"]
        require(self.engine)
        self.width = int(facts["width"])
        self.languages = tuple(facts["languages"])
        self.image = ExportedImage(folder / "image", self.engine, facts["image"])
        self.text = ExportedText(folder / "text", self.engine, facts["text"])

    def embed_visual(self, visual: Visual) -> Tensor:
        """Return `(b, width)` float32, of length 1."""
        return self.image.compute(visual, "vectors")

    def embed_text(self, text: TextBatch) -> Tensor:
        """Return `(b, width)` float32, of length 1."""
        return self.text.compute(text, "vectors")

    def encode_image(
        self,
        images: encoding.Picture | Iterable[encoding.Picture],
        *,
        batch_size: int = 64,
        precision: Precision = "fp32",
        progress: bool | None = None,
        device: str | torch.device | None = None,
    ) -> Tensor:
        """See `DualEncoder.encode_image`; precision and device are the engine's."""
        self.refuse(precision=precision, device=device)
        return encoding.encode_images(self, images, batch_size, "fp32", progress, None)

    def encode_features(
        self,
        features: Tensor,
        mask: Tensor | None = None,
        *,
        batch_size: int = 1024,
        progress: bool | None = None,
        device: str | torch.device | None = None,
    ) -> Tensor:
        """See `DualEncoder.encode_features`; the device is the engine's."""
        self.refuse(device=device)
        return encoding.encode_features(self, features, mask, batch_size, progress, None)

    def encode_text(
        self,
        texts: str | Sequence[str],
        lang: str | Sequence[str] | None = None,
        *,
        batch_size: int | None = None,
        max_batch_tokens: int | None = None,
        precision: Precision = "fp32",
        progress: bool | None = None,
        device: str | torch.device | None = None,
    ) -> Tensor:
        """See `DualEncoder.encode_text`; precision and device are the engine's."""
        self.refuse(precision=precision, device=device)
        return encoding.encode_texts(
            self, texts, lang, batch_size, max_batch_tokens, "fp32", progress, None
        )

    similarity = staticmethod(DualEncoder.similarity)

    def refuse(
        self,
        *,
        precision: str = "fp32",
        device: str | torch.device | None = None,
        compile: bool = False,
        kind: str = "pooled",
    ) -> None:
        """Stop where something is asked that only the model itself can do.

        Args:
            precision: of the computation.
            device: of the computation.
            compile: whether towers are to be compiled.
            kind: of features; `tokens` are not part of a graph.

        Raises:
            ConfigError: saying what to do.
        """
        wishes = {
            f"precision={precision}": precision != "fp32",
            f"device={device}": device is not None and torch.device(device).type != "cpu",
            "compile": compile,
            f"kind={kind}": kind == "tokens",
        }
        for wish, unmet in wishes.items():
            if unmet:
                raise ConfigError(
                    f"{wish}: an export for {self.engine} computes pooled vectors on the CPU, in a "
                    "precision of its own: leave it out, or use the model itself"
                )


class ExportedImage(ImageEncoder):
    """An image tower's graph; `pooled` is what the tower itself says, before the head."""

    def __init__(self, folder: Path, engine: str, facts: Mapping[str, Any]) -> None:
        super().__init__()
        self.width = int(facts["width"])
        self.reads_features = bool(facts["reads_features"])  # type: ignore[misc]
        if facts["feature_width"] is not None:
            self.feature_width = int(facts["feature_width"])
        given = facts["transform"]
        self.transform = None if given is None else ImageTransform(**given)
        self.weights_digest: str = facts["weights"]
        self._run = _Lazy(folder, engine, facts)

    def forward(self, visual: Visual) -> Encoded:
        """Return `pooled (b, width)`."""
        return Encoded(self.compute(visual, "pooled"))

    def compute(self, visual: Visual, output: str) -> Tensor:
        """Return `vectors` of the common space, or `pooled`.

        Raises:
            ValueError: if the batch lacks what the tower reads.
        """
        values = visual.features if self.reads_features else visual.pixels
        if values is None:
            reads = "features" if self.reads_features else "pixels"
            raise ValueError(f"this model reads {reads}, and the batch has none")
        if not self.reads_features:
            return self._run({"pixels": values}, output)
        if "mask" not in self._run.inputs:
            return self._run({"features": values.float()}, output)
        mask = visual.mask
        if mask is None:
            mask = torch.ones(values.shape[:2], dtype=torch.bool)
        return self._run({"features": values.float(), "mask": mask}, output)

    def spec(self) -> dict[str, Any]:
        """Return what tells its features from those of the tower itself."""
        return self._run.spec()


class ExportedText(TextEncoder):
    """A text tower's graph; `pooled` is what the tower itself says, before the head."""

    def __init__(self, folder: Path, engine: str, facts: Mapping[str, Any]) -> None:
        super().__init__()
        self.width = int(facts["width"])
        saved = dict(facts["tokenizer"])
        self.tokenizer = build(tokenizers, {**saved, "path": str(folder.parent / saved["path"])})
        self.weights_digest: str = facts["weights"]
        self._run = _Lazy(folder, engine, facts)

    def forward(self, text: TextBatch) -> Encoded:
        """Return `pooled (b, width)`."""
        return Encoded(self.compute(text, "pooled"))

    def compute(self, text: TextBatch, output: str) -> Tensor:
        """Return `vectors` of the common space, or `pooled`."""
        return self._run({"ids": text.ids, "mask": text.mask}, output)

    def spec(self) -> dict[str, Any]:
        """Return what tells its features from those of the tower itself."""
        return self._run.spec()


class _Lazy:
    """A graph that is opened when it is first run."""

    def __init__(self, folder: Path, engine: str, facts: Mapping[str, Any]) -> None:
        self.file, self.engine, self.facts = folder / GRAPHS[engine], engine, facts
        self.inputs = frozenset(facts["inputs"])
        self._graph: Graph | None = None
        if not self.file.is_file():
            raise FileNotFoundError(f"expected a tower at {self.file}, but there is no such file: "
                                    "export or copy the folder again")  # fmt: skip

    def __call__(self, inputs: Mapping[str, Tensor], output: str) -> Tensor:
        self._graph = self._graph or open_graph(self.file, self.engine)
        return self._graph(inputs, output)

    def spec(self) -> dict[str, Any]:
        return {**self.facts["spec"], "engine": self.engine}


def _read(folder: Path) -> dict[str, Any]:
    file = folder / FACTS
    if not file.is_file():
        raise FileNotFoundError(f"expected {file}, which `xlcm export` writes")
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{file} is not JSON: {error}") from error
    if not isinstance(facts, dict) or not {"format", "engine", "image", "text"} <= facts.keys():
        raise ConfigError(f"{file} is not what `xlcm export` writes: export the model again")
    if facts["format"] > FORMAT:
        raise ConfigError(
            f"{file} has format {facts['format']}, of xlcm {facts.get('xlcm_version', '?')}; "
            f"this one reads up to format {FORMAT}: pip install --upgrade xlcm"
        )
    return facts
