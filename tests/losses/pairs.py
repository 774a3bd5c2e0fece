"""Random pairs and slow losses, transcribed pair by pair, that loss tests share."""

import math

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

GROUPS = [0, 1, 1, 2, 3, 1, 4, 4]  # uneven: one image with three rows, one with two


def pairs(rows: int = 8, width: int = 5, dtype: torch.dtype = torch.float64, seed: int = 0):
    """Unit rows of image and text, and their group ids."""
    generator = torch.Generator().manual_seed(seed)
    image, text = torch.randn(2, rows, width, dtype=torch.float64, generator=generator)
    unit = torch.nn.functional.normalize
    group = torch.tensor((GROUPS * rows)[:rows])
    return unit(image, dim=1).to(dtype), unit(text, dim=1).to(dtype), group


def similarities(rows: Tensor, columns: Tensor) -> list[list[float]]:
    """Dot products in Python's floats."""
    return [
        [sum(a * b for a, b in zip(row, column)) for column in columns.tolist()]
        for row in rows.tolist()
    ]


def slow_info_nce(image, text, group, scale: float, smoothing: float) -> float:
    """Double loop over Khosla et al. 2020, equation 2, in both directions."""
    ids = group.tolist()

    def one_way(matrix: list[list[float]]) -> float:
        total = 0.0
        for i, row in enumerate(matrix):
            logits = [scale * s for s in row]
            partition = math.log(sum(math.exp(x) for x in logits))
            right = [j for j in range(len(row)) if ids[j] == ids[i]]
            for j, logit in enumerate(logits):
                mass = (1 - smoothing) * (j in right) / len(right) + smoothing / len(row)
                total -= mass * (logit - partition)
        return total / len(matrix)

    return (one_way(similarities(image, text)) + one_way(similarities(text, image))) / 2


def slow_sigmoid(image, text, group, scale: float, bias: float) -> float:
    """Double loop over Zhai et al. 2023, algorithm 1; all pairs of a group are right."""
    ids, matrix = group.tolist(), similarities(image, text)
    total = 0.0
    for i, row in enumerate(matrix):
        for j, similarity in enumerate(row):
            sign = 1 if ids[i] == ids[j] else -1
            total += math.log1p(math.exp(-sign * (scale * similarity + bias)))
    return total / len(matrix)


def slow_triplet(image, text, group, margin: float, negatives: str, reduction: str, direction: str):
    """Double loop over Faghri et al. 2018, section 2, without negatives of one's own group."""
    ids = group.tolist()

    def row_violations(row: list[float], i: int) -> list[float]:
        others = [j for j in range(len(row)) if ids[j] != ids[i]]
        if negatives == "semi_hard":
            others = [j for j in others if row[j] < row[i]]
        if negatives != "all":
            others = sorted(others, key=lambda j: -row[j])[:1]
        return [max(0.0, margin + row[j] - row[i]) for j in others]

    def one_way(matrix: list[list[float]]) -> float:
        rows = [row_violations(row, i) for i, row in enumerate(matrix)]
        if reduction == "sum":
            return sum(sum(row) for row in rows)
        return sum(sum(row) / max(1, len(row)) for row in rows) / len(rows)

    to_text = one_way(similarities(image, text)) if direction != "text_to_image" else 0.0
    to_image = one_way(similarities(text, image)) if direction != "image_to_text" else 0.0
    return to_text + to_image


class Largest(TorchDispatchMode):
    """Sees the largest tensor that any operation returns, in numbers of 8 bytes."""

    numbers = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for one in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(one, torch.Tensor):
                self.numbers = max(self.numbers, one.untyped_storage().nbytes() // 8)
        return result
