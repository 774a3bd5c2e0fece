"""What NRCCR's released code computes, in loops, from the description of it; dropout is off.

Weights come by the names of our modules; everything else is independent of them. Masks are lists
of 0 and 1, tokens are of one row.
"""

import math

import torch


def layer_norm(row, weights, name):
    """One vector, eps 1e-5."""
    mean = sum(row) / len(row)
    variance = sum((x - mean) ** 2 for x in row) / len(row)
    scale, shift = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return torch.stack(
        [(x - mean) / (variance + 1e-5).sqrt() * s + b for x, s, b in zip(row, scale, shift)]
    )


def linear(row, weights, name):
    """One vector."""
    out = weights[f"{name}.weight"]
    bias = weights[f"{name}.bias"]
    return torch.stack([(w * row).sum() + b for w, b in zip(out, bias)])


def projection(tokens, weights):
    """LayerNorm, Linear, ReLU, + positions, LayerNorm for each token of a row."""
    out = []
    for position, token in enumerate(tokens):
        hidden = linear(layer_norm(token, weights, "in_norm"), weights, "linear").clamp(min=0)
        hidden = hidden + weights["positions.weight"][position]
        out.append(layer_norm(hidden, weights, "out_norm"))
    return out


def attention(query, query_mask, key, key_mask, weights, heads, cross):
    """The block on one row: divisor of the value width, -10,000 on the outer product of masks."""
    width = len(query[0])
    queries = [linear(token, weights, "query").chunk(heads) for token in query]
    keys = [linear(token, weights, "key").chunk(heads) for token in key]
    values = [linear(token, weights, "value").chunk(heads) for token in key]
    out = []
    for i, token in enumerate(query):
        merged = []
        for head in range(heads):
            scores = []
            for j in range(len(key)):
                score = (queries[i][head] * keys[j][head]).sum() / math.sqrt(width / heads)
                scores.append(score + (1 - query_mask[i] * key_mask[j]) * -10000)
            highest = max(scores)
            shares = [(score - highest).exp() for score in scores]
            mixed = sum(s * values[j][head] for j, s in enumerate(shares)) / sum(shares)
            merged.append(mixed)
        hidden = linear(torch.cat(merged), weights, "out")
        out.append(layer_norm(hidden if cross else hidden + token, weights, "norm"))
    return out


def mean(tokens):
    """Over all positions, padding included."""
    return sum(tokens) / len(tokens)


def own_branch(tokens, mask, weights, heads):
    """A caption or video that reads itself, from the inner tower's states: `(width,)`."""
    projected = projection(tokens, part(weights, "projection"))
    return mean(
        attention(projected, mask, projected, mask, part(weights, "block"), heads, cross=False)
    )


def cross_branch(source, source_mask, target, target_mask, weights, heads):
    """The teacher: what the source gathers of the target, beside the target: `(width,)`."""
    source, target = (projection(t, part(weights, "projection")) for t in (source, target))
    gathered = attention(
        source, source_mask, target, target_mask, part(weights, "block"), heads, cross=True
    )
    return mean(gathered + target)


def part(weights, name):
    """The weights of one module."""
    return {k.removeprefix(f"{name}."): w for k, w in weights.items() if k.startswith(f"{name}.")}
