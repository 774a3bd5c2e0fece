"""Slow transport in Python's floats, cell by cell, and the word loss on top of it."""

import math

INFINITY = math.inf


def slow_sinkhorn(cost, rows, columns, epsilon, iterations):
    """Potentials of Peyré and Cuturi 2019, section 4.4, columns first; one problem in lists."""
    f, g = [0.0] * len(rows), [0.0] * len(columns)
    for _ in range(iterations):
        for j, mass in enumerate(columns):
            terms = [(f[i] - cost[i][j]) / epsilon for i in range(len(rows))]
            g[j] = epsilon * (math.log(mass) - slow_logsumexp(terms))
        for i, mass in enumerate(rows):
            terms = [(g[j] - cost[i][j]) / epsilon for j in range(len(columns))]
            f[i] = epsilon * (math.log(mass) - slow_logsumexp(terms))
    return [
        [math.exp((f[i] + g[j] - c) / epsilon) for j, c in enumerate(row)]
        for i, row in enumerate(cost)
    ]


def slow_ipot(cost, rows, columns, proximal, iterations, inner):
    """Xie et al. 2018, algorithm 1, with its factors a and b."""
    n, m = len(rows), len(columns)
    b = [1 / m] * m
    plan = [[1.0] * m for _ in range(n)]
    for _ in range(iterations):
        q = [[math.exp(-cost[i][j] / proximal) * plan[i][j] for j in range(m)] for i in range(n)]
        for _ in range(inner):
            a = [rows[i] / sum(q[i][j] * b[j] for j in range(m)) for i in range(n)]
            b = [columns[j] / sum(q[i][j] * a[i] for i in range(n)) for j in range(m)]
        plan = [[a[i] * q[i][j] * b[j] for j in range(m)] for i in range(n)]
    return plan


def slow_logsumexp(terms):
    top = max(terms)
    return top + math.log(sum(math.exp(term - top) for term in terms))


def slow_word_loss(source, target, *, marginals, threshold, temperature, word_loss, solve):
    """One pair of captions, real words alone: `source` and `target` are lists of vectors."""
    lengths = [[math.sqrt(sum(x * x for x in w)) for w in side] for side in (source, target)]
    cosine = [
        [
            sum(x * y for x, y in zip(word, other)) / lengths[0][i] / lengths[1][j]
            for j, other in enumerate(target)
        ]
        for i, word in enumerate(source)
    ]
    weights = lengths if marginals == "norm" else [[1.0] * len(side) for side in lengths]
    rows, columns = ([w / sum(side) for w in side] for side in weights)
    cost = [[1 - value for value in row] for row in cosine]
    plan = solve(cost, rows, columns)
    if word_loss == "ot_distance":
        return sum(p * c for line, costs in zip(plan, cost) for p, c in zip(line, costs))
    forth = slow_labels_loss(plan, cosine, rows, threshold, temperature)
    plan, cosine = ([list(line) for line in zip(*matrix)] for matrix in (plan, cosine))
    return (forth + slow_labels_loss(plan, cosine, columns, threshold, temperature)) / 2


def slow_labels_loss(plan, cosine, masses, threshold, temperature):
    kept = []
    for line, values, mass in zip(plan, cosine, masses):
        labels = [p / mass for p in line]
        if max(labels) < threshold - 1e-5:
            continue
        partition = slow_logsumexp([value / temperature for value in values])
        logs = [value / temperature - partition for value in values]
        kept.append(-sum(label * log for label, log in zip(labels, logs)))
    return sum(kept) / len(kept) if kept else 0.0
