"""Every transform, and tables to transform."""

from __future__ import annotations

import torch

from zo_kernels import SeedGradient
from zo_kernels.transforms import (
    Context,
    State,
    Transform,
    centred_rank,
    chain,
    clip_coeffs,
    clip_norm,
    fzoo,
    meazo,
    momentum,
    scale,
    scale_by_lr,
    sign,
    z_score,
)

CONTEXT = Context(step=3, lr=0.125, numel=10_000, eps=0.25)

# One line here buys a transform all tests of test_common.py.
CASES: dict[str, Transform] = {
    "scale": scale(-0.75),
    "scale_by_lr": scale_by_lr(),
    "clip_coeffs": clip_coeffs(0.5),
    "clip_norm": clip_norm(20.0),
    "centred_rank": centred_rank(),
    "z_score": z_score(),
    "sign": sign(),
    "fzoo": fzoo(),
    "meazo": meazo(0.9),
    "momentum": momentum(0.5, 3),
    "momentum of one step": momentum(0.9, 1),
    "chain": chain(clip_coeffs(1.0), z_score(), momentum(0.9, 2), clip_norm(1.0), momentum(0.5, 4)),
    "empty chain": chain(),
}

TABLES: dict[str, list[float]] = {
    "several": [0.5, -2.0, 0.25, 3.0, -0.125],
    "ties": [1.0, -1.0, 1.0, 0.0, -1.0, 1.0],
    "none": [],
    "one": [-0.7],
    "zeros": [0.0, 0.0, -0.0],
    "equal": [0.1] * 7,
    "large": [1e300, -1e300, 3e299],
    "small": [5e-324, -5e-324, 2e-320],
}


def table(coeffs: list[float], distribution: str = "rademacher", first: int = 10) -> SeedGradient:
    return SeedGradient(list(range(first, first + len(coeffs))), coeffs, distribution)


def run(transform: Transform, gradients: list[SeedGradient], state: State | None = None) -> tuple[SeedGradient, State]:
    """What the last of several steps gives."""
    state = transform.init() if state is None else state
    for step, gradient in enumerate(gradients):
        result, state = transform.update(gradient, state, CONTEXT._replace(step=step))
    return result, state


def one(transform: Transform, coeffs: list[float], context: Context = CONTEXT) -> list[float]:
    """The coefficients after a first step."""
    return transform.update(table(coeffs), transform.init(), context)[0].coeffs.tolist()


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)
