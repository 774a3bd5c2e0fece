"""Find images and videos from text in any language: train, evaluate, search.

Names are imported when they are first used, so that `import xlcm` is quick and loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xlcm.data.dataset import ManifestDataset as ManifestDataset
    from xlcm.data.manifest import Manifest as Manifest
    from xlcm.data.manifest import ManifestWriter as ManifestWriter
    from xlcm.data.manifest import read_manifest as read_manifest
    from xlcm.data.scenes import Scenes as Scenes
    from xlcm.evaluation.evaluate import evaluate as evaluate
    from xlcm.evaluation.report import RetrievalReport as RetrievalReport
    from xlcm.evaluation.retrieval import evaluate_embeddings as evaluate_embeddings
    from xlcm.models.dual_encoder import DualEncoder as DualEncoder
    from xlcm.training.loop import fit as fit
    from xlcm.types import Batch as Batch
    from xlcm.types import Caption as Caption
    from xlcm.types import Item as Item

__version__ = "0.1.0"

_WHERE = {
    "Batch": "xlcm.types",
    "Caption": "xlcm.types",
    "DualEncoder": "xlcm.models.dual_encoder",
    "Item": "xlcm.types",
    "Manifest": "xlcm.data.manifest",
    "ManifestDataset": "xlcm.data.dataset",
    "ManifestWriter": "xlcm.data.manifest",
    "RetrievalReport": "xlcm.evaluation.report",
    "Scenes": "xlcm.data.scenes",
    "evaluate": "xlcm.evaluation.evaluate",
    "evaluate_embeddings": "xlcm.evaluation.retrieval",
    "fit": "xlcm.training.loop",
    "read_manifest": "xlcm.data.manifest",
}

__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'xlcm' has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
