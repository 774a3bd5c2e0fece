"""A loader that counts what was trained on: rows of each corpus, captions of each language."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xlcm.data.batching import RowStream
from xlcm.data.collate import Collator, TrainLoader
from xlcm.data.stream_order import StreamBatching
from xlcm.types import Batch

Report = Callable[[dict[str, Any], bool], None]
"""Gets the shares so far, and whether an epoch has ended."""


class CountingLoader(TrainLoader):
    """A `TrainLoader` for a `StreamBatching` whose state has the shares so far.

    Rows are counted over all processes. Languages are those of this process's rows: a random part
    of each global batch.

    Args:
        stream: which rows, in which order.
        collate: how they become a batch.
        workers: loading processes; 0 loads in this one.
        device: see `TrainLoader`.
        report: called every so many batches, and at the end of an epoch.
        every: batches between reports.
    """

    def __init__(
        self,
        stream: RowStream,
        collate: Collator,
        *,
        workers: int = 0,
        device: torch.device | None = None,
        report: Report | None = None,
        every: int = 100,
    ) -> None:
        super().__init__(stream, collate, workers=workers, device=device)
        assert isinstance(stream.batching, StreamBatching)
        self.batching = stream.batching
        self.report = report
        self.every = every
        self.counts: Counter[str] = Counter()

    def state_dict(self) -> dict[str, int]:
        """Return the position of the next batch, and the counts of what came before it."""
        return {**super().state_dict(), **self.counts}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue with the batch after the last one that was used."""
        super().load_state_dict(state)
        self.counts = Counter({k: v for k, v in state.items() if k not in ("epoch", "batch")})

    def __iter__(self) -> Iterator[Batch]:
        batches = super().__iter__()
        while True:
            epoch, number = self.epoch, self.batch
            batch = next(batches)
            self._count(batch, self.batching.batches(epoch)[number, :, 0])
            if self.report is not None and (self.batch % self.every == 0):
                self.report(self.shares(), self.batch == 0)
            used = [batch]
            del batch  # as in `TrainLoader`
            yield used.pop()

    def _count(self, batch: Batch, items: np.ndarray) -> None:
        layout = self.batching.layout
        found = np.bincount(layout.corpus[items], minlength=len(layout.names))
        self.counts.update({f"rows/{n}": int(c) for n, c in zip(layout.names, found)})
        for view in self.collate.only:
            text = batch.text[view]
            there = [True] * len(text.langs) if text.present is None else text.present.tolist()
            langs = Counter(lang for lang, is_there in zip(text.langs, there) if is_there)
            self.counts.update({f"captions/{view}/{lang}": n for lang, n in langs.items()})

    def shares(self) -> dict[str, Any]:
        """Return counts and shares of rows by corpus, and of captions by view and language.

        Rows have the share that the temperature asks for beside that which came.
        """
        names, quotas = self.batching.layout.names, self.batching.quotas
        asked = {f"rows/{n}": round(q / sum(quotas), 4) for n, q in zip(names, quotas)}
        tree: dict[str, dict[str, int]] = {}
        for key, count in sorted(self.counts.items()):
            group, _, name = key.rpartition("/")
            tree.setdefault(group, {})[name] = count
        return {
            group: {
                name: {
                    "count": count,
                    "share": round(count / max(sum(counts.values()), 1), 4),
                    **({"asked": asked[f"rows/{name}"]} if group == "rows" else {}),
                }
                for name, count in counts.items()
            }
            for group, counts in tree.items()
        }


def write_shares(folder: Path, shares: dict[str, Any], epoch_ended: bool) -> None:
    """Write `shares.json` into the folder of a run, and print the shares when an epoch has ended.

    Args:
        folder: of the run.
        shares: of `CountingLoader.shares`.
        epoch_ended: print them too.
    """
    path = folder / "shares.json"
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(json.dumps(shares, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(aside, path)
    if epoch_ended:
        for group, found in shares.items():
            if len(found) < 2:
                continue
            listed = ", ".join(f"{name} {one['share']:.1%}" for name, one in found.items())
            print(f"shares of {group}: {listed}")
