"""Slow distillation of similarities with loops, and embeddings whose similarities are given."""

import math

import torch
from pairs import similarities

# The student S and two teachers of the closed-form checks; rows are texts, columns are images.
STUDENT = [[0.8, 0.1], [0.3, 0.6]]
TEACHERS = [[[0.9, 0.1], [0.2, 0.8]], [[0.5, 0.3], [0.4, 0.6]]]


def embeddings(matrix) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts and images whose dot products are the entries of a square matrix, in float64."""
    text = torch.as_tensor(matrix, dtype=torch.float64)
    return text, torch.eye(len(text), dtype=torch.float64)


def softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(x) for x in row)
    return [math.exp(x) / total for x in row]


def transposed(matrix):
    return [list(column) for column in zip(*matrix)]


def slow_rows(teacher, student, temperature: float, divergence: str, mix: float = 0.0) -> float:
    """Mean over rows of the divergence from the teacher's softmax to the student's."""
    total = 0.0
    for i, (wanted, given) in enumerate(zip(teacher, student)):
        p = softmax([x / temperature for x in wanted])
        p = [(1 - mix) * x + mix * (i == j) for j, x in enumerate(p)]
        q = softmax([x / temperature for x in given])
        for x, y in zip(p, q):
            total -= x * math.log(y)
            if divergence == "kl" and x > 0:
                total += x * math.log(x)
    return total / len(teacher)


def slow_pool(matrices, pool: str):
    """Entry by entry over several matrices."""
    size = range(len(matrices[0]))
    one = {"max": max, "min": min, "mean": lambda values: sum(values) / len(values)}[pool]
    return [[one([m[i][j] for m in matrices]) for j in size] for i in size]


def slow_distillation(
    text, image, teachers, temperature, divergence, pool, reduction, direction
) -> float:
    """What C2KD and NRCCR ask of a student, from bare embeddings."""
    student = similarities(text, image)
    target = slow_pool([similarities(*teacher) for teacher in teachers], pool)
    if divergence == "smooth_l1":
        gaps = [abs(a - b) for s, t in zip(student, target) for a, b in zip(s, t)]
        return sum(0.5 * d * d if d < 1 else d - 0.5 for d in gaps) / len(gaps)
    terms = []
    if direction != "image_to_text":
        terms.append(slow_rows(target, student, temperature, divergence))
    if direction != "text_to_image":
        student, target = transposed(student), transposed(target)
        terms.append(slow_rows(target, student, temperature, divergence))
    return sum(terms) / (len(terms) if reduction == "mean" else 1)
