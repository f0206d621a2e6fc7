"""Losses on features and logits once more, number by number in double precision."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np

Array = np.ndarray


def softmax(row: Any, temperature: float = 1.0) -> list[float]:
    e = [math.exp(v / temperature) for v in row]
    return [v / sum(e) for v in e]


def kl_rows(p: Any, q: Any) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a)


def unit(row: Any) -> list[float]:
    row = list(row)
    length = math.sqrt(sum(v * v for v in row))
    return [v / length for v in row]


def dot(a: Any, b: Any) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def mean(values: Any) -> float:
    values = list(values)
    return sum(values) / len(values)


def pooled(maps: Array, size: int, of: Any = np.mean) -> Array:
    """Maps (N, C, H, H) over size x size parts, for H a multiple of size."""
    step = maps.shape[2] // size
    out = np.zeros((*maps.shape[:2], size, size))
    for n, c, i, j in np.ndindex(*out.shape):
        out[n, c, i, j] = of(maps[n, c, i * step : (i + 1) * step, j * step : (j + 1) * step])
    return out


def one_size(s: Array, t: Array) -> tuple[Array, Array]:
    size = min(s.shape[2], t.shape[2])
    return pooled(s, size), pooled(t, size)


def squared_difference(s: Array, t: Array) -> float:
    return mean((a - b) ** 2 for a, b in zip(s.flat, t.flat, strict=True))


def attention_rows(maps: Array) -> list[list[float]]:
    return [unit([sum(v * v for v in image[:, i, j]) for i, j in np.ndindex(*image.shape[1:])]) for image in maps]


def attention(s: Array, t: Array) -> float:
    rows = list(zip(*map(attention_rows, one_size(s, t)), strict=True))
    return mean((a - b) ** 2 for p, q in rows for a, b in zip(p, q, strict=True))


def attention_paper(s: Array, t: Array) -> float:
    return mean(math.dist(p, q) for p, q in zip(*map(attention_rows, one_size(s, t)), strict=True))


def factor_transfer(s: Array, t: Array) -> float:
    return mean(abs(a - b) for p, q in zip(s, t, strict=True) for a, b in zip(unit(p.flat), unit(q.flat), strict=True))


def neuron_selectivity(s: Array, t: Array) -> float:
    total = []
    for image_s, image_t in zip(*one_size(s, t), strict=True):
        a, b = [unit(c.flat) for c in image_s], [unit(c.flat) for c in image_t]
        kernels = [mean(dot(x, y) ** 2 for x in m for y in n) for m, n in ((a, a), (b, b), (a, b))]
        total.append(kernels[0] + kernels[1] - 2 * kernels[2])
    return mean(total)


def flows(layers: list[Array], of: Any) -> list[Array]:
    found = []
    for first, second in pairwise(layers):
        size = min(first.shape[2], second.shape[2])
        a, b = pooled(first, size, of), pooled(second, size, of)
        g = np.zeros((len(a), a.shape[1], b.shape[1]))
        for n, c, d in np.ndindex(*g.shape):
            g[n, c, d] = mean(x * y for x, y in zip(a[n, c].flat, b[n, d].flat, strict=True))
        found.append(g)
    return found


def solution_flow(s: list[Array], t: list[Array]) -> float:
    return sum(squared_difference(a, b) for a, b in zip(flows(s, np.mean), flows(t, np.mean), strict=True))


def solution_flow_paper(s: list[Array], t: list[Array]) -> float:
    both = zip(flows(s, np.max), flows(t, np.max), strict=True)
    return sum(squared_difference(a, b) * a[0].size for a, b in both)


def activation_boundary(s: list[Array], t: list[Array]) -> float:
    total = 0.0
    for layer, (a, b) in enumerate(zip(s, t, strict=True)):
        for x, y in zip(a.flat, b.flat, strict=True):
            loss = (x + 1) ** 2 if x > -1 and y <= 0 else (x - 1) ** 2 if x <= 1 and y > 0 else 0
            total += loss * 2.0 ** (layer - len(s) + 1) / len(a) * 3 / 1000
    return total


def partial_l2(s: list[Array], t: list[Array]) -> float:
    total = 0.0
    for layer, (a, b) in enumerate(zip(s, t, strict=True)):
        margins = [mean(v for v in b[:, c].flat if v < 0) for c in range(b.shape[1])]
        for n, c, i, j in np.ndindex(*a.shape):
            target = max(b[n, c, i, j], margins[c])
            x = a[n, c, i, j]
            total += 0 if x <= target <= 0 else (x - target) ** 2 * 2.0 ** (layer - len(s) + 1) / len(a)
    return total


def channel_correlation(s: Array, t: Array) -> float:
    total = 0.0
    for image_s, image_t in zip(s, t, strict=True):
        rows = [[unit([dot(a.flat, b.flat) for b in image]) for a in image] for image in (image_s, image_t)]
        total += sum((x - y) ** 2 for p, q in zip(*rows, strict=True) for x, y in zip(p, q, strict=True))
    return total / s.shape[1] / len(s)


def hierarchical_context(s: Array, t: Array) -> float:
    found = [squared_difference(pooled(s, size), pooled(t, size)) for size in (8, 4, 2, 1)]
    return (found[0] + found[1] / 2 + found[2] / 4 + found[3] / 8) / 1.875


def similarity_preserving(s: Array, t: Array) -> float:
    rows = [[unit([dot(a.flat, b.flat) for b in f]) for a in f] for f in (s, t)]
    return mean((x - y) ** 2 for p, q in zip(*rows, strict=True) for x, y in zip(p, q, strict=True))


def neighbours(s: Array, t: Array) -> float:
    apart = [[abs(x - y) for x, y in zip(a, b, strict=True)] for a, b in zip(s, t, strict=True)]
    return mean(dot(a, b) for a, b in pairwise(apart))


def gaussian_kernel(s: Array, t: Array) -> float:
    def kernel(a: Any, b: Any) -> float:
        x = 0.8 * dot(a, b)
        return math.exp(-0.8) * (1 + x + x * x / 2)

    squares = [(kernel(s[i], s[j]) - kernel(t[i], t[j])) ** 2 for i in range(len(s)) for j in range(len(s))]
    return math.sqrt(sum(squares)) / len(s) ** 2


def huber(a: float, b: float) -> float:
    return (a - b) ** 2 / 2 if abs(a - b) < 1 else abs(a - b) - 0.5


def relational(s: Array, t: Array) -> float:
    n = range(len(s))
    distances, angles = [], []
    for f in (s, t):
        apart = [math.dist(f[i], f[j]) for i in n for j in n]
        usual = mean(d for d in apart if d > 0)
        distances.append([d / usual for d in apart])
        zero = [0.0] * f.shape[1]
        to = [[unit(f[j] - f[i]) if i != j else zero for j in n] for i in n]
        angles.append([dot(to[i][j], to[i][k]) for i in n for j in n for k in n])
    return 25 * mean(map(huber, *distances)) + 50 * mean(map(huber, *angles))


def probabilistic_transfer(s: Array, t: Array) -> float:
    rows = []
    for f in (t, s):
        similar = [[(dot(unit(a), unit(b)) + 1) / 2 for b in f] for a in f]
        rows.append([[v / sum(row) for v in row] for row in similar])
    return mean(kl_rows(p, q) / len(p) for p, q in zip(*rows, strict=True))


def standardised_power(s: Array, t: Array) -> float:
    total = 0.0
    for a, b in zip(s.T, t.T, strict=True):
        columns = []
        for column in (a, b):
            centre = mean(column)
            spread = math.sqrt(mean((v - centre) ** 2 for v in column) + 1e-4)
            columns.append([(v - centre) / spread for v in column])
        total += sum(abs(x - y) ** 4 for x, y in zip(*columns, strict=True))
    return math.log(total)


def decoupled(s: Array, t: Array, labels: Array) -> float:
    total = 0.0
    for a, b, y in zip(s, t, labels, strict=True):
        q, p = softmax(a, 4), softmax(b, 4)
        total += kl_rows([p[y], 1 - p[y]], [q[y], 1 - q[y]])
        rest_p = [v / (1 - p[y]) for k, v in enumerate(p) if k != y]
        total += 8 * kl_rows(rest_p, [v / (1 - q[y]) for k, v in enumerate(q) if k != y])
    return 16 * total / len(s)


def correlation(a: Any, b: Any) -> float:
    a, b = [v - mean(a) for v in a], [v - mean(b) for v in b]
    return dot(unit(a), unit(b))


def dist(s: Array, t: Array) -> float:
    q, p = (np.array([softmax(row, 2) for row in z]) for z in (s, t))
    return 4 * (1 - mean(map(correlation, q, p)) + 1 - mean(map(correlation, q.T, p.T)))


def standardised_kl(s: Array, t: Array) -> float:
    def standardised(row: Any) -> list[float]:
        centre = mean(row)
        spread = math.sqrt(sum((v - centre) ** 2 for v in row) / (len(row) - 1))
        return [(v - centre) / spread for v in row]

    return 4 * mean(
        kl_rows(softmax(standardised(b), 2), softmax(standardised(a), 2)) for a, b in zip(s, t, strict=True)
    )


def multi_level(s: Array, t: Array) -> float:
    total = 0.0
    for temperature in (2, 3, 4, 5, 6):
        q, p = (np.array([softmax(row, temperature) for row in z]) for z in (s, t))
        total += temperature**2 * mean(map(kl_rows, p, q))
        for a, b, over in ((q, p, len(q)), (q.T, p.T, q.shape[1])):
            total += sum((dot(x, y) - dot(v, w)) ** 2 for x, v in zip(a, b) for y, w in zip(a, b)) / over  # noqa: B905
    return total


def smoothed_labels(s: Array, t: Array, labels: Array) -> float:
    total = 0.0
    for row, y in zip(s, labels, strict=True):
        q = softmax(row)
        total -= 0.9 * math.log(q[y]) + 0.1 * mean(map(math.log, q))
    return total / len(s)


def virtual_teacher(s: Array, t: Array, labels: Array) -> float:
    k = s.shape[1]
    told = [softmax([0.99 if c == y else 0.01 / (k - 1) for c in range(k)], 20) for y in labels]
    return mean(kl_rows(p, softmax(row)) for p, row in zip(told, s, strict=True))
