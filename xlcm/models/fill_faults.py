"""Items that a store does without: whether it may, and how they are told."""

from __future__ import annotations

from collections.abc import Sequence

from xlcm.data.dataset import Dataset, ManifestDataset
from xlcm.data.encode_settings import EncodeConfig
from xlcm.data.faults import Fault
from xlcm.data.manifest import DataError


def skip(
    config: EncodeConfig,
    dataset: Dataset,
    index: int,
    error: DataError,
    *,
    caption: str | None = None,
) -> Fault:
    """Return the fault of an item, or of one of its captions, that is to be skipped; or raise it.

    Args:
        config: says whether it may be skipped.
        dataset: the item's; of one that is no manifest nothing is skipped.
        index: of the item.
        error: what is wrong.
        caption: its id, where the fault is a caption's.

    Raises:
        DataError: the error itself, if it may not.
    """
    if config.on_error == "raise" or not isinstance(dataset, ManifestDataset):
        raise error
    where = dataset.manifest.where(index)
    message = str(error).removeprefix(f"{where}: ")
    try:
        name = dataset[index].id
    except DataError:
        name = ""
    return Fault(where, name, caption, error.kind, message)


def stop_beyond(config: EncodeConfig, dataset: Dataset, skipped: Sequence[Fault]) -> None:
    """Stop, on every process alike, if more items of a dataset have faults than may.

    Raises:
        DataError: with the first of them.
    """
    bad = len({fault.where for fault in skipped})
    share = bad / len(dataset)
    if share > config.max_skipped:
        shown = "\n  ".join(str(fault) for fault in skipped[:5])
        where = dataset.manifest.path if isinstance(dataset, ManifestDataset) else dataset.name
        raise DataError(
            f"{where}, split {dataset.split!r}: {bad} of {len(dataset)} items can't be read so "
            f"far, {share:.1%}, more than max_skipped={config.max_skipped:.1%}:\n  {shown}"
        )
