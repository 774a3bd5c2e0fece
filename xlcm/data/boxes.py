"""Where a region lies in its picture: 4, 5 or 7 numbers made of its corners.

Corners are `x1, y1, x2, y2` as shares of the picture's width and height, so 0 to 1.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from xlcm.data.manifest import DataError

BoxSize: TypeAlias = Literal[0, 4, 5, 7]
_SLACK = 1.01  # detectors round outwards


def describe_boxes(corners: Tensor, size: BoxSize) -> Tensor:
    """Return `(T, size)`: the corners, and as the size says what follows from them.

    Args:
        corners: `(T, 4)`, shares of the picture.
        size: 4: corners; 5: corners, area; 7: corners, width, height, area; 0: nothing.

    Source: 5 numbers: ViLBERT, Lu et al. 2019, https://arxiv.org/abs/1908.02265, section 3.1; 7:
    UNITER, Chen et al. 2020, https://arxiv.org/abs/1909.11740, section 3.1.
    """
    if size in (0, 4):
        return corners[:, :size]
    sides = corners[:, 2:] - corners[:, :2]
    area = sides.prod(dim=1, keepdim=True)
    return torch.cat([corners, area] if size == 5 else [corners, sides, area], dim=1)


def corners_from(found: np.ndarray, size: tuple[float, float] | None, where: str) -> np.ndarray:
    """Return `(T, 4)` float32 shares of the picture.

    Args:
        found: `(T, 4)` or wider, of which the first four are the corners; in pixels or shares.
        size: width and height of the picture in pixels, where the file gives them.
        where: for messages.

    Raises:
        DataError: for another shape, or pixels of a picture whose size is not known.
    """
    if found.ndim != 2 or found.shape[1] < 4:
        raise DataError(f"{where}: boxes must be (T, 4), (T, 5) or (T, 7), got {found.shape}",
                        kind="feature_unreadable")  # fmt: skip
    corners = np.asarray(found[:, :4], dtype=np.float32)
    if not corners.size or corners.max() <= _SLACK:
        return corners
    if size is None or min(size) <= 0:
        raise DataError(
            f"{where}: boxes are in pixels (up to {corners.max():g}) and the picture's size is not "
            "in the file; store x1, y1, x2, y2 divided by width and height, or put `wh` beside",
            kind="feature_unreadable",
        )
    return corners / np.asarray([*size, *size], dtype=np.float32)
