"""Rows that say a query again at further pictures -> one caption that is right for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from msgspec.structs import replace

from xlcm.data.manifest import DataError
from xlcm.data.sources.row_captions import OnSkip, Row, word
from xlcm.types import Caption, Item

TRAIN = "train"  # there a caption stands at each of its pictures, since training looks at pairs


@dataclass(frozen=True)
class _First:
    """Where a query was met first, and as which caption."""

    item: str
    caption: Caption
    where: str


class SeveralRight:
    """Joins the captions of one query in one split.

    Args:
        column: that tells the queries apart.
    """

    def __init__(self, column: str) -> None:
        self.column = column
        self._first: dict[tuple[str | int, ...], _First] = {}
        self._further: dict[str, list[str]] = {}

    def take(
        self, row: Row, split: str, key: str, captions: Iterable[Caption]
    ) -> Iterator[Caption]:
        """Yield the captions of a row that are not there yet; note where the others are right.

        Args:
            row: of the query.
            split: of the item.
            key: the item's id.
            captions: of the row.

        Raises:
            DataError: for a row without query, or one whose query has another text than before.
        """
        query = word(row, self.column)
        for place, caption in enumerate(captions):
            if split == TRAIN:
                yield caption
                continue
            name = (split, query, caption.lang, caption.origin, place)
            first = self._first.setdefault(name, _First(key, caption, row.where))
            if first.caption is caption:
                yield caption
            elif first.caption.text != caption.text:
                raise DataError(
                    f"{row.where}: query {query!r} is {caption.text!r:.60} here, "
                    f"{first.caption.text!r:.60} at {first.where}; does {self.column!r} tell "
                    "queries apart?"
                )
            elif key != first.item:
                further = self._further.setdefault(first.caption.id, [])
                further += [] if key in further else [key]

    def done(self, item: Item) -> Item:
        """Return an item whose captions name their further right items."""
        captions = tuple(
            replace(caption, relevant=tuple(self._further[caption.id]))
            if caption.id in self._further
            else caption
            for caption in item.captions
        )
        return replace(item, captions=captions)


def kept(rows: Iterable[Row], only: tuple[str, str] | None, on_skip: OnSkip) -> Iterator[Row]:
    """Yield the rows that have the value in the column that `only` names; all, if it is None.

    Raises:
        DataError: for a row without the column.
    """
    for row in rows:
        if only is None or word(row, only[0]) == only[1]:
            yield row
        else:
            on_skip(row.where, f"rows whose {only[0]!r} is not {only[1]!r}")
