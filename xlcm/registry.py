"""Names for parts: `{name: timm, backbone: ...}` in a config finds its class here.

A registry maps a short name to the module and class that carry it, and imports the module only
when the name is asked for, so that `import xlcm` loads no torch. A part of your own joins with
the decorator: `@losses.register("my_loss")`.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T", bound=type)


class Registry:
    """The parts of one kind, by name.

    Args:
        kind: what one entry is called in messages, such as `"loss"`.
        builtin: name -> `"module:Class"`; imported on first use.
    """

    def __init__(self, kind: str, builtin: dict[str, str] | None = None) -> None:
        self.kind = kind
        self._parts: dict[str, type | str] = dict(builtin or {})

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that enters a class under `name`.

        Raises:
            ValueError: if the name already belongs to another class.
        """

        def enter(part: T) -> T:
            known = self._parts.get(name)
            where = f"{part.__module__}:{part.__qualname__}"
            known_at = (
                known
                if isinstance(known, str) or known is None
                else f"{known.__module__}:{known.__qualname__}"
            )
            if known is not None and known_at != where:
                raise ValueError(f"{self.kind} {name!r} is already {known_at}")
            self._parts[name] = part
            return part

        return enter

    def get(self, name: str) -> type:
        """Return the class called `name`.

        Raises:
            KeyError: if there is none; the message names the nearest and all known ones.
        """
        part = self._parts.get(name)
        if part is None:
            raise KeyError(
                f"no {self.kind} is called {name!r}{nearest(name, self)}; known: {', '.join(self)}"
            )
        if isinstance(part, str):
            module, _, attribute = part.partition(":")
            part = getattr(importlib.import_module(module), attribute)
            self._parts[name] = part
        return part

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._parts))

    def __contains__(self, name: object) -> bool:
        return name in self._parts


def nearest(word: str, known: object) -> str:
    """Return `"; did you mean 'x'?"` for the closest of the known words, or an empty string."""
    close = difflib.get_close_matches(str(word), [str(k) for k in known], n=1)  # type: ignore[attr-defined]
    return f"; did you mean {close[0]!r}?" if close else ""


datasets = Registry(
    "dataset",
    {
        "hf_stream": "xlcm.data.hf_stream:HfStream",
        "manifest": "xlcm.data.dataset:ManifestDataset",
        "mix": "xlcm.data.mixing:Mix",
        "scenes": "xlcm.data.scenes:Scenes",
        "shards": "xlcm.data.shards:Shards",
    },
)
tokenizers = Registry(
    "tokenizer",
    {
        "hf": "xlcm.encoders.tokenizer:HFTokenizer",
        "sentencepiece": "xlcm.encoders.tokenizer:SentencePieceTokenizer",
    },
)
image_encoders = Registry(
    "image encoder",
    {
        "timm": "xlcm.encoders.image_timm:TimmImageEncoder",
        "hf": "xlcm.encoders.image_hf:HFImageEncoder",
        "features": "xlcm.encoders.features:FeatureEncoder",
        "frame_attention": "xlcm.encoders.video_attention:FrameAttentionEncoder",
        "frame_transformer": "xlcm.encoders.video_transformer:FrameTransformerEncoder",
    },
)
text_encoders = Registry(
    "text encoder",
    {
        "hf": "xlcm.encoders.text_hf:HFTextEncoder",
        "bag": "xlcm.encoders.text_bag:BagTextEncoder",
        "refined": "xlcm.encoders.text_refined:RefinedTextEncoder",
    },
)
poolings = Registry(
    "pooling",
    {
        "cls": "xlcm.encoders.pooling:ClsPooling",
        "mean": "xlcm.encoders.pooling:MeanPooling",
        "max": "xlcm.encoders.pooling:MaxPooling",
        "attention": "xlcm.encoders.pooling:AttentionPooling",
        "last": "xlcm.encoders.pooling:LastTokenPooling",
    },
)
heads = Registry(
    "head",
    {
        "identity": "xlcm.encoders.heads:IdentityHead",
        "linear": "xlcm.encoders.heads:LinearHead",
        "mlp": "xlcm.encoders.heads:MLPHead",
        "batch_norm": "xlcm.encoders.heads:BatchNormHead",
        "gated": "xlcm.encoders.heads:GatedUnitHead",
    },
)
models = Registry("model", {"dual_encoder": "xlcm.models.dual_encoder:DualEncoder"})
losses = Registry(
    "loss",
    {
        "info_nce": "xlcm.losses.info_nce:InfoNCELoss",
        "sigmoid": "xlcm.losses.sigmoid:SigmoidLoss",
        "triplet": "xlcm.losses.triplet:TripletLoss",
    },
)
methods = Registry(
    "method",
    {
        "contrastive": "xlcm.methods.contrastive:Contrastive",
        "nrccr": "xlcm.methods.nrccr:NRCCR",
        "c2kd": "xlcm.methods.c2kd:C2KD",
        "translate_train": "xlcm.methods.translate_train:TranslateTrain",
        "cl2cm": "xlcm.methods.cl2cm:CL2CM",
    },
)
