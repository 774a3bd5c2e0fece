"""What a run says: every step in `metrics.jsonl`, a line now and then on the screen, trackers."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from xlcm.training.checkpoint import write_text


class Journal:
    """Writes the metrics of a run and prints its progress; on the main process only.

    Args:
        accelerator: knows the trackers and which process this is.
        path: of `metrics.jsonl`; records after `step` are dropped, since those steps come again.
        step: where the run continues.
        steps: of the whole run.
        every: steps between lines on the screen.
        rate: rows a second, over all processes, at which the devices would do nothing but the
            model's products; 0: not known.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        path: Path,
        step: int,
        steps: int,
        every: int,
        rate: float = 0.0,
    ) -> None:
        self.accelerator = accelerator
        self.path = path
        self.first, self.steps, self.every = step, steps, every
        self.rate = rate
        self.begin = time.monotonic()
        self._items = self._waited = 0.0
        self._since = self.begin
        if accelerator.is_main_process:
            self._cut(step)

    def _cut(self, step: int) -> None:
        kept = []
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True):
                whole = line.endswith("\n")  # the last line of a killed run may be half
                if whole and json.loads(line)["step"] <= step:
                    kept.append(line)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, "".join(kept))

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record; it must carry `step`."""
        if not self.accelerator.is_main_process:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(record)) + "\n")
        flat = {k: v for k, v in record.items() if isinstance(v, int | float) and k != "step"}
        self.accelerator.log(flat, step=record["step"])

    def step(
        self, step: int, figures: Mapping[str, float], *, items: int, seconds: float, waited: float
    ) -> None:
        """Record one optimiser step.

        Args:
            step: steps done, this one included.
            figures: terms, loss, rates.
            items: rows of the step over all processes.
            seconds: that it took.
            waited: of them, for data.
        """
        speed = {"items_per_s": items / seconds, "data_share": waited / seconds}
        if self.rate:
            speed["mfu"] = items / seconds / self.rate
        rounded = {  # JSON has no infinity: the gradient norm where fp16 overflows
            k: float(f"{v:.7g}") if math.isfinite(v) else None
            for k, v in {**figures, **speed}.items()
        }
        self.write({"step": step, **rounded})
        self._items += items
        self._waited += waited
        if step % self.every == 0 or step == self.steps:
            now = time.monotonic()
            spent = max(now - self._since, 1e-9)
            left = (self.steps - step) * (now - self.begin) / max(step - self.first, 1)
            shown = "  ".join(f"{k} {v:.4g}" for k, v in figures.items())
            share = self._waited / spent
            advice = "  (loading is slow: raise data.workers)" if share > 0.1 else ""
            mfu = f"mfu {self._items / spent / self.rate:.1%}  " if self.rate else ""
            self.say(
                f"step {step}/{self.steps}  {shown}  {self._items / spent:,.0f} items/s  {mfu}"
                f"data {share:.0%}  left {clock(left)}{advice}"
            )
            self._items = self._waited = 0.0
            self._since = now

    def pause(self) -> None:
        """Leave out of the next speed what went into an evaluation or a checkpoint."""
        self._items = self._waited = 0.0
        self._since = time.monotonic()

    def say(self, line: str) -> None:
        """Print on the main process."""
        if self.accelerator.is_main_process:
            print(line, flush=True)


def clock(seconds: float) -> str:
    """Return `1:02:03` or `2:03`."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
