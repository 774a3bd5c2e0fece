"""The engines that translate, by name: a model, a command, a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from xlcm.registry import Registry

engines = Registry(
    "translation engine",
    {
        "seq2seq": "xlcm.translation.seq2seq:Seq2Seq",
        "command": "xlcm.translation.command:Command",
        "scenes_table": "xlcm.translation.scenes_table:ScenesTable",
    },
)


class Engine(Protocol):
    """Translates lines.

    Attributes:
        label: what is written as a caption's `engine`.
        cut: how many lines were longer than it takes and lost their end.
    """

    label: str
    cut: int

    def check(self, source: str, target: str) -> None:
        """Raise `ConfigError` if it can't translate between two languages; cheap."""

    def to(self, device: Any) -> None:
        """Compute there from now on."""

    def translate(self, texts: Sequence[str], source: str, target: str) -> list[str]:
        """Return the translations, one a text, in order.

        Args:
            texts: without line breaks, none blank.
            source: BCP 47 code of theirs.
            target: of the translations.
        """
