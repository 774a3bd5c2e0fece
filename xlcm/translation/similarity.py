"""The cosine of a saved model's vectors of captions and of their translations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgspec.structs import replace

from xlcm.config import ConfigError
from xlcm.types import Caption, Item

AT_ONCE = 4096  # captions that are encoded together


class Similarity:
    """Writes the cosine beside translations, for many items at a time.

    Args:
        model: folder or hub id of a saved model.
        device: to compute on.

    Raises:
        ConfigError: if there is no such model.
    """

    def __init__(self, model: str, device: Any) -> None:
        from xlcm.models.dual_encoder import DualEncoder

        try:
            self._model = DualEncoder.from_pretrained(model).to(device)
        except ValueError as error:
            raise ConfigError(f"similarity {model}: {error}") from error
        self._waiting: list[tuple[Item, set[str]]] = []
        self._count = 0

    def add(self, item: Item, made: set[str]) -> Iterator[Item]:
        """Take an item; yield those that are done, in the order in which they came.

        Args:
            item: with its translations.
            made: the ids of those that get the signal.
        """
        self._waiting.append((item, made))
        self._count += len(made)
        if self._count >= AT_ONCE:
            yield from self.rest()

    def rest(self) -> Iterator[Item]:
        """Yield the items that wait."""
        waiting, self._waiting, self._count = self._waiting, [], 0
        needed = {_key(c): c for item, made in waiting for c in _rows(item, made)}
        if needed:
            rows = list(needed.values())
            vectors = self._model.encode_text(
                [c.text for c in rows], [c.lang for c in rows], progress=False
            )
            at = dict(zip(needed, vectors))
        for item, made in waiting:
            known = {caption.id: caption for caption in item.captions}
            captions = []
            for caption in item.captions:
                if caption.id in made:
                    cosine = float(at[_key(caption)] @ at[_key(known[str(caption.of)])])
                    signals = {**caption.quality, "similarity": round(cosine, 4)}
                    caption = replace(caption, quality=signals)
                captions.append(caption)
            yield replace(item, captions=tuple(captions))


def _rows(item: Item, made: set[str]) -> Iterator[Caption]:
    used = made | {c.of for c in item.captions if c.id in made}
    return (caption for caption in item.captions if caption.id in used)


def _key(caption: Caption) -> tuple[str, str]:
    return caption.text, caption.lang
