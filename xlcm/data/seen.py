"""Which names there were, in 8 bytes and some room for each: millions of ids fit in memory."""

from __future__ import annotations

from array import array

ROOM = 1 << 10


class Seen:
    """Digests of the names that were added: an open table of 64-bit hashes.

    Two names may have one digest (of 15 million names, some pair with a chance of 6 in a million),
    so "was there" is to be looked up where it matters, and "was not there" is certain. A table is
    half full at most: 16 to 32 bytes a name, where a set of short strings takes about 110.
    """

    def __init__(self) -> None:
        self._table = array("q", bytes(8 * ROOM))
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, name: str) -> bool:
        """Note a name; return whether one with its digest was there."""
        key = hash(name) or 1  # 0 is a free place
        table = self._table
        mask = len(table) - 1
        at = key & mask
        while found := table[at]:
            if found == key:
                return True
            at = (at + 1) & mask
        table[at] = key
        self._count += 1
        if 2 * self._count > mask:
            self._grow()
        return False

    def _grow(self) -> None:
        table = array("q", bytes(16 * len(self._table)))
        mask = len(table) - 1
        for key in self._table:
            if key:
                at = key & mask
                while table[at]:
                    at = (at + 1) & mask
                table[at] = key
        self._table = table
