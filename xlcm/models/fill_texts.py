"""A text tower over captions, into a feature store by caption id; on any number of processes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from xlcm.config import ConfigError, build
from xlcm.data.dataset import Dataset
from xlcm.data.encode_settings import EncodeConfig
from xlcm.data.faults import Fault
from xlcm.data.feature_writer import FeatureWriter, source_of
from xlcm.data.manifest import DataError
from xlcm.data.progress import Progress
from xlcm.encoders.base import TextEncoder, masked
from xlcm.models.fill_faults import skip, stop_beyond
from xlcm.models.fill_store import open_model
from xlcm.models.lengths import batches_for, tokenised
from xlcm.models.precision import lowered
from xlcm.models.weights import weights_digest
from xlcm.registry import text_encoders
from xlcm.types import Caption, Encoded

Share: TypeAlias = "tuple[list[str], list[Tensor], int]"
"""Ids, rows, and how many captions were cut, of one batch of one process."""


def open_text_tower(config: EncodeConfig) -> tuple[TextEncoder, dict[str, Any]]:
    """Return the text tower, and what tells its features from those of others.

    Raises:
        ConfigError: if a saved model can't be opened.
        FileNotFoundError: naming the file of the model, or the weights, that are missing.
    """
    if config.text is not None:
        encoder: TextEncoder = build(text_encoders, config.text)
        encoder.load_weights()
        return encoder, {"text": encoder.spec(), "weights": weights_digest(encoder)}
    encoder = open_model(config).text
    return encoder, {"text": encoder.spec(), "weights": weights_digest(encoder)}


@dataclass
class TextFilling:
    """What goes through the captions of one store, one dataset after the other.

    Args:
        accelerator: the processes that share the work; the first one writes.
        encoder: on the processes' devices, in evaluation mode.
        writer: of the store.
        config: kind, batches, languages.

    Attributes:
        seen: caption id -> hash of its language and text, of all so far, on every process.
        cut: how many were longer than the tower reads and lost their end.
        skipped: what was left out, on every process.
    """

    accelerator: Accelerator
    encoder: TextEncoder
    writer: FeatureWriter
    config: EncodeConfig
    seen: dict[str, int] = field(default_factory=dict)
    cut: int = 0
    skipped: list[Fault] = field(default_factory=list)

    def add(self, dataset: Dataset) -> None:
        """Encode the captions that the store lacks; every process takes a share of them.

        Raises:
            DataError: at a line that is no item, or if an id has two texts; where such are
                skipped, if they are more than may be; if the store has another text under an id.
        """
        new = {}
        for caption in self._captions(dataset):
            if caption.id in self.writer:
                where = f"{dataset.name}: caption {caption.id!r}"
                self.writer.refuse_other(caption.id, _source(caption), where)
            else:
                new[caption.id] = caption
        todo = list(new.values())
        world, mine = self.accelerator.num_processes, self.accelerator.process_index
        show = self.accelerator.is_main_process
        told = Progress(len(todo), f"encoding {dataset.split}", show=show, unit="captions")
        with contextlib.closing(told):
            for shares in self._together(self._encoded(todo[mine::world])):
                for ids, rows, cut in shares:
                    self.cut += cut
                    if self.accelerator.is_main_process:
                        for key, row in zip(ids, rows):
                            self.writer.add(key, row, source=_source(new[key]))
                    told.advance(len(ids))

    def _captions(self, dataset: Dataset) -> Iterator[Caption]:
        """Yield each caption once in all datasets: only the first process's store has the ids."""
        skipped: list[Fault] = []
        for index in range(len(dataset)):
            try:
                item = dataset[index]
            except DataError as error:
                skipped.append(skip(self.config, dataset, index, error))
                continue
            for caption in item.captions:
                if self.config.langs is not None and caption.lang not in self.config.langs:
                    continue
                said = hash((caption.lang, caption.text))
                if caption.id not in self.seen:
                    self.seen[caption.id] = said
                    yield caption
                if self.seen[caption.id] == said:
                    continue
                other = DataError(f"{item.where or dataset.name}: caption id {caption.id!r} has "
                                  "another text than before: encode them into folders of their "
                                  "own", kind="duplicate_caption")  # fmt: skip
                skipped.append(skip(self.config, dataset, index, other, caption=caption.id))
        stop_beyond(self.config, dataset, skipped)
        self.skipped += skipped

    def _together(self, mine: Iterator[Share]) -> Iterator[list[Share]]:
        """Yield a batch of each process, until none has any."""
        nothing: Share = ([], [], 0)
        while True:
            shares = gather_object([next(mine, nothing)])
            if not any(ids for ids, *_ in shares):
                return
            yield shares

    def _encoded(self, captions: list[Caption]) -> Iterator[Share]:
        """Yield what `(width,)` or `(L, width)` the tower makes of captions, batch by batch."""
        device, config = self.accelerator.device, self.config
        texts, langs = [c.text for c in captions], [c.lang for c in captions]
        for start, tokens in tokenised(self.encoder.tokenizer, texts, langs):
            cut = tokens.cut
            for numbers, batch in batches_for(
                device, tokens, config.batch_size, config.max_batch_tokens
            ):
                with lowered(device, config.precision):
                    rows = self._rows(self.encoder(batch))
                yield [captions[start + number].id for number in numbers.tolist()], rows, cut
                cut = 0  # told once

    def _rows(self, encoded: Encoded) -> list[Tensor]:
        if self.config.kind == "pooled":
            return list(encoded.pooled.float().cpu())
        if encoded.tokens is None:
            raise ConfigError("kind: this text encoder has no tokens, take 'pooled'")
        tokens = encoded.tokens.float().cpu()
        mask = masked(tokens, None if encoded.mask is None else encoded.mask.cpu())
        # a caption without a token would be a row of nothing
        return [row[real] if bool(real.any()) else row[:1] for row, real in zip(tokens, mask)]


def _source(caption: Caption) -> int:
    return source_of(caption.lang, caption.text)
