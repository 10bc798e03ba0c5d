"""The DNC of Graves et al., Nature 538 (2016), Methods, slot by slot and number by number, in Python's floats."""

from __future__ import annotations

import math

Vector = list[float]
Matrix = list[Vector]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def oneplus(x: float) -> float:
    return 1 + math.log(1 + math.exp(x))


def softmax(xs: Vector) -> Vector:
    exponentials = [math.exp(x) for x in xs]
    return [x / sum(exponentials) for x in exponentials]


def affine(weight: Matrix, x: Vector, bias: Vector) -> Vector:
    return [sum(w * value for w, value in zip(row, x, strict=True)) + b for row, b in zip(weight, bias, strict=True)]


def cosine(u: Vector, v: Vector) -> float:
    return sum(a * b for a, b in zip(u, v, strict=True)) / (math.hypot(*u) * math.hypot(*v) + 1e-6)


def content(memory: Matrix, key: Vector, strength: float) -> Vector:
    return softmax([strength * cosine(key, slot) for slot in memory])


def usage(before: Vector, written: Vector, reads: Matrix, free_gates: Vector) -> Vector:
    result = []
    for i in range(len(before)):
        retention = 1.0
        for gate, read in zip(free_gates, reads, strict=True):
            retention *= 1 - gate * read[i]
        result.append((before[i] + written[i] - before[i] * written[i]) * retention)
    return result


def allocation(used: Vector) -> Vector:
    free_list = sorted(range(len(used)), key=lambda i: used[i])  # stable: ties by number
    result = [0.0] * len(used)
    for j, slot in enumerate(free_list):
        result[slot] = 1 - used[slot]
        for i in range(j):
            result[slot] *= used[free_list[i]]
    return result


def write_weights(by_content: Vector, by_allocation: Vector, write_gate: float, allocation_gate: float) -> Vector:
    return [
        write_gate * (allocation_gate * a + (1 - allocation_gate) * c)
        for a, c in zip(by_allocation, by_content, strict=True)
    ]


def memory(before: Matrix, written: Vector, erase: Vector, write: Vector) -> Matrix:
    return [
        [m * (1 - w * e) + w * v for m, e, v in zip(slot, erase, write, strict=True)]
        for slot, w in zip(before, written, strict=True)
    ]


def link(before: Matrix, precedence: Vector, w: Vector) -> Matrix:
    slots = range(len(w))
    return [[0.0 if i == j else (1 - w[i] - w[j]) * before[i][j] + w[i] * precedence[j] for j in slots] for i in slots]


def precedence(before: Vector, written: Vector) -> Vector:
    return [(1 - sum(written)) * p + w for p, w in zip(before, written, strict=True)]


def read_weights(links: Matrix, before: Vector, by_content: Vector, modes: Vector) -> Vector:
    slots = range(len(before))
    forward = [sum(links[i][j] * before[j] for j in slots) for i in slots]
    backward = [sum(links[j][i] * before[j] for j in slots) for i in slots]
    return [modes[0] * backward[i] + modes[1] * by_content[i] + modes[2] * forward[i] for i in slots]


def read(slots: Matrix, weights: Vector) -> Vector:
    return [sum(w * slot[k] for w, slot in zip(weights, slots, strict=True)) for k in range(len(slots[0]))]


def lstm(gates: Vector, c: Vector) -> tuple[Vector, Vector]:
    size = len(c)
    i, f, z, o = (gates[k * size : (k + 1) * size] for k in range(4))
    c = [sigmoid(f[k]) * c[k] + sigmoid(i[k]) * math.tanh(z[k]) for k in range(size)]
    return [sigmoid(o[k]) * math.tanh(c[k]) for k in range(size)], c
