"""Fixtures that many tests share."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# started processes get one thread too: sums of floats differ with the number of threads
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

# what is imported stays: looking through its million objects takes 0.5 s a time
gc.disable()

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_collection_finish() -> None:
    """Collect garbage from now on, but not among what the tests imported."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real photographs, captions and weights, beside the repository."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip(f"needs the folder of real data {folder}, which is not here")
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of made-up features, pictures and captions; `tiny.tree` makes configs for it."""
    from tiny import write_data

    return write_data(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture(scope="session")
def processes():
    """`processes.run(world, function, *arguments)` -> results by rank, of fresh gloo processes."""
    from distributed.pool import Pool

    return Pool()


@pytest.fixture(scope="module")
def blank_plots() -> Iterator[None]:
    """Plots of runs are empty files, which saves a second a run: for tests of everything else."""
    import tiny

    with pytest.MonkeyPatch.context() as patch:
        tiny.blank_plots(patch)
        yield
