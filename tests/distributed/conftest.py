"""What starts the processes of all distributed tests."""

import pytest
from pool import Pool


@pytest.fixture(scope="session")
def processes() -> Pool:
    """`processes.run(world, function, *arguments)` -> results by rank."""
    return Pool()
