"""Captions with several right pictures, and their ranks by plain loops."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

Case = tuple[Tensor, Tensor, Tensor, Tensor]


def case(seed: int = 0, images: int = 41, captions: int = 70, ties: bool = False) -> Case:
    """Captions with 1 to 5 right pictures; some pictures are right for none, some for many."""
    draw = torch.Generator().manual_seed(seed)
    image = normalize(torch.randn(images, 24, generator=draw))
    owner = torch.randint(0, images - 6, (captions,), generator=draw)
    further = []
    for caption in range(captions):
        others = [i for i in torch.randperm(images - 3, generator=draw).tolist()
                  if i != owner[caption]]  # fmt: skip
        further += [(caption, i) for i in others[: int(torch.randint(0, 5, (), generator=draw))]]
    mixed = torch.randperm(len(further), generator=draw)
    relevant = torch.tensor(further)[mixed]
    text = image[owner] + 0.5 * torch.randn(captions, 24, generator=draw)
    text.index_add_(0, relevant[:, 0], 0.3 * image[relevant[:, 1]])
    text = normalize(text)
    if ties:
        image[5], image[30], image[7] = image[2], image[31], image[8]
        text[40:60] = text[:20]
        text[60:64] = text[7]
    return image, text, owner, relevant


def right_pairs(owner: Tensor, relevant: Tensor, images: int) -> np.ndarray:
    """Return `(M, N)` bool: whether a caption describes a picture."""
    right = np.zeros((len(owner), images), dtype=bool)
    for caption, image in [*enumerate(owner.tolist()), *relevant.tolist()]:
        right[caption, image] = True
    return right


def one_side(scores: np.ndarray, right: np.ndarray) -> tuple[list, list, list]:
    """Return queries, best rank and average precision, a query a row, by loops."""
    asked, ranks, precisions = [], [], []
    for query, (row, mine) in enumerate(zip(scores, right)):
        if not mine.any():
            continue
        ahead = []
        for answer in np.flatnonzero(mine):
            greater = sum(row[wrong] > row[answer] for wrong in np.flatnonzero(~mine))
            equal = sum(row[wrong] == row[answer] for wrong in np.flatnonzero(~mine))
            ahead.append(greater + equal / 2)
        asked.append(query)
        ranks.append(1 + min(ahead))
        precisions.append(np.mean([h / (h + w) for h, w in enumerate(sorted(ahead), 1)]))
    return asked, ranks, precisions
