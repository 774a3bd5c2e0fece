"""One pool of processes for all distributed tests."""

from collections.abc import Iterator

import pytest
from pool import Pool


class Revived:
    """The pool, started again if a failed test ended it."""

    def __init__(self) -> None:
        self.pool: Pool | None = None

    def run(self, world, function, *arguments):
        if self.pool is None:
            self.pool = Pool(4)
        try:
            results = self.pool.run(world, function, *arguments)
        except (RuntimeError, TimeoutError):
            self.pool = None
            raise
        assert len(results) == world
        return results


@pytest.fixture(scope="session")
def processes() -> Iterator[Revived]:
    """`processes.run(world, function, *arguments)` -> results by rank."""
    revived = Revived()
    yield revived
    if revived.pool is not None:
        revived.pool.close()
