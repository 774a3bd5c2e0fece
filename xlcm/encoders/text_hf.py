"""Any text encoder of transformers as a tower: mBERT, XLM-R, LaBSE, E5, mDeBERTa, T5, CLIP."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from xlcm.config import Part
from xlcm.encoders import text_backbones as backbones
from xlcm.encoders import text_weights
from xlcm.encoders.base import Freeze, KeepLast, TextEncoder, Tokenizer
from xlcm.encoders.pooling import Pooling, PoolingFactory
from xlcm.encoders.tokenizer import HFTokenizer
from xlcm.registry import poolings, tokenizers
from xlcm.types import Encoded, TextBatch


class HFTextEncoder(TextEncoder):
    """A transformer for text, pooled by us or by its own pooler.

    The network is built from its config with random weights; `load_weights` is the second step.

    Args:
        backbone: hub id or local folder of a pretrained model; its config and, if no other is
            given, its tokenizer are read at construction.
        architecture: config of the network in transformers' words, `model_type` included, such
            as `{model_type: bert, hidden_size: 256, num_hidden_layers: 4, ...}`; instead of, or
            over, that of the backbone. `vocab_size` and `pad_token_id` are the tokenizer's where
            they are not given.
        weights: `hub` (those of the backbone), a safetensors file or a folder with one, or None
            for random ones.
        revision: of the backbone's repository on the hub.
        tokenizer: None: the backbone's own, cut at 64 tokens.
        output: what the pooled vector is. `pooled`: the tokens through `pooling`; `own`: the
            backbone's pooler (LaBSE, CLIP, SigLIP); `projected`: CLIP's, mapped on to the
            space that it shares with its image tower.
        pooling: from tokens to one vector; CLIP's tower wants `last`, a classic BERT `cls`.
        dropout: rate in place of all those of the config.
        gradient_checkpointing: compute the blocks again in the backward pass, to save memory.
        freeze: see `Tower.freeze`; the layers are embeddings, each block, and the final norm
            with poolers, if there is any.

    Raises:
        ValueError: if neither backbone nor architecture is given, or they don't fit together.
        FileNotFoundError: if the backbone can't be had.

    Source: E5 wants the mean of the tokens and a prefix, Wang et al. 2024,
    https://arxiv.org/abs/2402.05672; LaBSE its own pooler, Feng et al. 2022,
    https://arxiv.org/abs/2007.01852.
    """

    def __init__(
        self,
        *,
        backbone: str | None = None,
        architecture: dict[str, Any] | None = None,
        weights: str | None = "hub",
        revision: str | None = None,
        tokenizer: Annotated[Tokenizer | None, Part(tokenizers)] = None,
        output: Literal["pooled", "own", "projected"] = "pooled",
        pooling: Annotated[PoolingFactory, Part(poolings, "mean")],
        dropout: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None,
        gradient_checkpointing: bool = False,
        freeze: Freeze = "none",
    ) -> None:
        super().__init__()
        if tokenizer is None:
            if backbone is None:
                raise ValueError("text: give a `backbone`, or an `architecture` and a `tokenizer`")
            tokenizer = HFTokenizer(path=backbone, revision=revision)
        if getattr(tokenizer, "needs_training", False):
            raise ValueError(
                "text.tokenizer is a sentencepiece tokenizer without a model: "
                "recipes/train.py trains it on the captions (prepare_tokenizer); elsewhere give "
                "the `path` of a .model file, as `xlcm data train-tokenizer` writes it"
            )
        self.tokenizer = tokenizer
        self.config = backbones.read_config(backbone, architecture, revision, tokenizer)
        if dropout is not None:
            backbones.set_dropout(self.config, dropout)
        backbones.check_sizes(self.config, tokenizer)
        self.model: PreTrainedModel = backbones.make(self.config, output)
        self.output = output
        self.token_width = backbones.token_width(self.config)
        self.width = backbones.pooled_width(self.config, output)
        built = pooling(self.token_width)
        self._pooling_spec = built.spec()
        # a pooling that nothing reaches would have weights without gradient, which DDP refuses
        self.pooling: Pooling | None = built if output == "pooled" else None
        # SigLIP was trained on padded text without a mask and reads the last position
        self._full_length = (
            int(self.config.max_position_embeddings)
            if self.config.model_type.startswith("siglip") and output != "pooled"
            else None
        )
        if gradient_checkpointing:
            backbones.save_memory(self.model)
        self._options: dict[str, Any] = {
            "backbone": backbone, "weights": weights, "revision": revision, "output": output,
            "dropout": dropout, "gradient_checkpointing": gradient_checkpointing,
        }  # fmt: skip
        self.weights = weights
        self._freeze_spec = freeze
        self.freeze(freeze)

    def load_weights(self) -> None:
        """Read the weights from safetensors, strictly; nothing to do where none are named.

        Raises:
            FileNotFoundError: naming the file that was expected and where.
            ValueError: if weights are missing or of another shape.
        """
        source = self._options["weights"]
        source = self._options["backbone"] if source == "hub" else source
        if source is not None:
            text_weights.load(self.model, source, self._options["revision"])

    def layers(self) -> list[nn.Module]:
        """Return embeddings, each block, and what follows them (final norm, poolers)."""
        return backbones.layers(self.model, [] if self.pooling is None else [self.pooling])

    def spec(self) -> dict[str, Any]:
        """Return the config that rebuilds the tower without a network and without weights.

        `backbone` stays, as a record of where the weights came from.
        """
        freeze = self._freeze_spec
        return {
            "name": "hf",
            **self._options,
            "weights": None,
            "architecture": backbones.as_dict(self.config),
            "tokenizer": self.tokenizer.spec(),
            "pooling": self._pooling_spec,
            "freeze": freeze.model_dump() if isinstance(freeze, KeepLast) else freeze,
        }

    def forward(self, text: TextBatch) -> Encoded:
        """Return `tokens (b, L, token_width)`, `mask (b, L)` and `pooled (b, width)`."""
        length = text.ids.shape[1]
        # the mask goes along where nothing is padded, too: transformers then drops it (but in a
        # compiled tower), few batches are so, and on a CPU attention is as fast with it
        if self._full_length is None:
            out = self.model(input_ids=text.ids, attention_mask=text.mask.long())
        else:
            room = (0, self._full_length - length)
            out = self.model(input_ids=F.pad(text.ids, room, value=self.tokenizer.pad_id))
        tokens: Tensor = out.last_hidden_state[:, :length]
        return Encoded(self._pool(out, tokens, text.mask), tokens, text.mask)

    def _pool(self, out: Any, tokens: Tensor, mask: Tensor) -> Tensor:
        if self.pooling is not None:
            return self.pooling(tokens, mask)
        pooled: Tensor = out.text_embeds if self.output == "projected" else out.pooler_output
        return pooled
