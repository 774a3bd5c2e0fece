"""Translate a manifest's captions into further languages, and back.

accelerate launch recipes/translate.py configs/translate/nllb.yaml manifest=data/photos.jsonl

Writes the manifest (`output`) with a translation (`origin: mt`) of each caption of the `source`
language for each of `targets`, and what it becomes when it is translated back (`origin: back`),
with signals of their quality. Any number of processes share the work; a run that was stopped at any
moment goes on when it is started again, and no line is lost or made twice.
"""

import sys

from accelerate import Accelerator

from xlcm.cli import recipe
from xlcm.config import load
from xlcm.launched import patient
from xlcm.translation.settings import TranslateConfig
from xlcm.translation.translate import translate


def main(path: str, *overrides: str) -> int:
    """Translate; return the exit code."""
    config = load(TranslateConfig, path, overrides)
    accelerator = Accelerator(kwargs_handlers=patient())
    counts = translate(config, accelerator)
    if accelerator.is_main_process:
        print(f"{config.output}: " + ", ".join(f"{n:,} {what}" for what, n in counts.items() if n))
    accelerator.end_training()
    return 0


if __name__ == "__main__":
    sys.exit(recipe(main, "xlcm.translation.settings:TranslateConfig", __doc__))
